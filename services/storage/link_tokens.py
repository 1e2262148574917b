"""The tokens of signed links: what they say, and that it was said here. Without I/O.

A token is, in base64url without padding, a fixed head, the file name that the link proposes
(UTF-8), and the HMAC-SHA-256 over the file's id and all of that. Nothing in it is secret, and
nothing in it can be changed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import struct
from collections.abc import Iterable
from typing import Final

import msgspec

__all__ = ["LONGEST_NAME", "BadToken", "LinkTerms", "LinkTokens"]

LONGEST_NAME: Final = 255
"""Bytes of UTF-8."""

_VERSION: Final = 1
_HEAD: Final = struct.Struct(">B4sIQB12s")
"""Version, key, generation, expiry, options, nonce."""
_MAC_BYTES: Final = 32
_SINGLE_USE: Final = 1
_LONGEST_TOKEN: Final = -(-4 * (_HEAD.size + LONGEST_NAME + _MAC_BYTES) // 3)
_FORM: Final = re.compile(r"[A-Za-z0-9_-]+")
_SIGNS: Final = b"signed link to a stored file"
_NAMES: Final = b"name of a key for signed links"


class BadToken(Exception):
    """It was not made with these secrets for this file, or not all of it is here."""


class LinkTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What a link allows."""

    generation: int
    """Of the file's links, when it was made."""
    expires_at: int
    """UTC, seconds since the epoch."""
    single_use: bool = False
    filename: str = ""
    """To save the file under; empty: its own."""
    nonce: bytes = b""
    """12 random bytes that tell a link from all others."""


class LinkTokens:
    """Makes tokens and reads them.

    Args:
        keys: Secrets: the first signs, all verify, so that they can be replaced one by one.

    """

    def __init__(self, keys: Iterable[bytes]) -> None:
        self._keys: Final = [(_mac(key, _NAMES)[:4], key) for key in keys]

    def make(self, file_id: str, terms: LinkTerms) -> str:
        """Return a token for a file; ``terms.nonce`` is made here."""
        name, key = self._keys[0]
        head = _HEAD.pack(
            _VERSION,
            name,
            terms.generation,
            terms.expires_at,
            _SINGLE_USE if terms.single_use else 0,
            secrets.token_bytes(12),
        )
        content = head + terms.filename.encode()
        return _text(content + _signature(key, file_id, content))

    def read(self, file_id: str, token: str) -> LinkTerms:
        """Return what a token allows, whether or not it has expired.

        Raises:
            BadToken: It is none for this file.

        """
        content, signature = _split(token)
        version, name, generation, expires_at, options, nonce = _HEAD.unpack_from(content)
        good = [
            hmac.compare_digest(signature, _signature(key, file_id, content))
            for known, key in self._keys
            if known == name
        ]
        if version != _VERSION or not any(good):
            raise BadToken
        return LinkTerms(
            generation=generation,
            expires_at=expires_at,
            single_use=bool(options & _SINGLE_USE),
            filename=content[_HEAD.size :].decode(),
            nonce=nonce,
        )


def _split(token: str) -> tuple[bytes, bytes]:
    """Return content and signature. Of several spellings of the same bytes one is good."""
    if len(token) > _LONGEST_TOKEN or not _FORM.fullmatch(token):
        raise BadToken
    try:
        found = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except binascii.Error:
        raise BadToken from None
    if len(found) < _HEAD.size + _MAC_BYTES or _text(found) != token:
        raise BadToken
    return found[:-_MAC_BYTES], found[-_MAC_BYTES:]


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode("ascii").rstrip("=")


def _signature(key: bytes, file_id: str, content: bytes) -> bytes:
    return _mac(key, b"\0".join((_SIGNS, file_id.encode(), content)))


def _mac(key: bytes, content: bytes) -> bytes:
    return hmac.digest(key, content, hashlib.sha256)
