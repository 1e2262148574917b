"""Checksums of request bodies, without I/O: which are known, and what a request promises.

``crc32`` is the CRC of IEEE 802.3 (as in zlib, gzip and PNG) as four bytes, most significant
first. The protocol does not say how a number becomes the value to encode; this is how ``crc32``
is written wherever it is a digest, such as in S3.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol

from blake3 import blake3
from multidict import MultiMapping

from services.ingest.errors import ChecksumMismatch
from shared.errors import InvalidRequest

__all__ = ["TUS_ALGORITHMS", "Check", "Checking", "tus_checks"]

TUS_ALGORITHMS: Final = ("sha1", "sha256", "md5", "crc32", "blake3")
"""What ``Upload-Checksum`` may name, as ``Tus-Checksum-Algorithm`` tells (items 77 and 78)."""

_VALUE: Final = re.compile(  # RFC 4648 section 4; b64decode lets surplus padding pass
    r"([!-+\--~]+) ((?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)"
)


class Check(NamedTuple):
    """What a request says of its body."""

    algorithm: str
    """A name that ``Checking`` knows: one of tus's, or ``sha512``."""
    expected: bytes


class _Hash(Protocol):
    def update(self, data: bytes, /) -> object: ...

    def digest(self) -> bytes: ...


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


_HASHES: Final[dict[str, Callable[[], _Hash]]] = {
    # Not for security: the client asks whether its bytes arrived.
    "sha1": partial(hashlib.sha1, usedforsecurity=False),
    "md5": partial(hashlib.md5, usedforsecurity=False),
    "sha256": hashlib.sha256,
    "sha512": hashlib.sha512,
    "crc32": _Crc32,
    "blake3": blake3,
}


class Checking:
    """Compares a body with what was said of it.

    Args:
        checks: What was said; all of it must be true.

    """

    def __init__(self, checks: Sequence[Check]) -> None:
        self._checks: Final = [(check, _HASHES[check.algorithm]()) for check in checks]

    def update(self, pieces: Sequence[bytes]) -> None:
        """Take in the next bytes. Blocks for as long as hashing takes, without the GIL."""
        for _, running in self._checks:
            for piece in pieces:
                running.update(piece)

    def verify(self) -> None:
        """Return if the bytes are those that were meant.

        Raises:
            ChecksumMismatch: They are others.

        """
        for check, running in self._checks:
            if running.digest() != check.expected:
                raise ChecksumMismatch(f"The {check.algorithm} of the body is another one.")


def tus_checks(headers: MultiMapping[str]) -> tuple[Check, ...]:
    """Return what ``Upload-Checksum`` demands; nothing if there is none.

    A digest of the wrong length is well-formed and simply never matches.

    Raises:
        InvalidRequest: The value is malformed, the algorithm unknown (items 79 and 81), or the
            checksum is to come as a trailer, which cannot be read here (item 83).

    """
    trailers = ",".join(headers.getall("Trailer", ())).lower().split(",")
    if "upload-checksum" in (name.strip() for name in trailers):
        raise InvalidRequest("Upload-Checksum is not accepted as a trailer.")
    if "Upload-Checksum" not in headers:
        return ()
    value = _VALUE.fullmatch(headers["Upload-Checksum"])
    if value is None or not value[2]:
        raise InvalidRequest("Upload-Checksum must be an algorithm, a space, and Base64.")
    if value[1] not in TUS_ALGORITHMS:
        raise InvalidRequest(
            "The checksum algorithm is not supported.",
            headers={"Tus-Checksum-Algorithm": ",".join(TUS_ALGORITHMS)},
        )
    return (Check(value[1], base64.b64decode(value[2])),)
