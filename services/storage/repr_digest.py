"""The digest of a whole file that goes with any part of it (RFC 9530). Without I/O."""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Mapping
from typing import Final

__all__ = ["repr_digest"]

_ALGORITHMS: Final = {"sha-256": "sha256", "sha-512": "sha512"}
"""RFC 9530's active algorithms, and what records call them; what is sent unasked is first."""
_MEMBER: Final = re.compile(r"([a-z*][a-z0-9_.*-]*)=(10|[0-9])(?:; *[a-z*][a-z0-9_.*=-]*)*")
"""A member of the dictionary (RFC 9651) that is a preference; parameters mean nothing."""
_UNASKED: Final = {"sha-256": 1}


def repr_digest(digests: Mapping[str, str], wish: str | None) -> str | None:
    """Return the ``Repr-Digest`` of a file, None if there is none to send.

    SHA-256 unless the client prefers another one that is known, too. Nothing is hashed for it.

    Args:
        digests: Those that are known, hex.
        wish: ``Want-Repr-Digest``: preferences from 1 to 10, and 0 for what is not wanted
            (RFC 9530, section 4). One that can't be read is ignored: it only asks a favour.

    """
    if not digests:
        return None
    if wish is None and (sha256 := digests.get("sha256")):
        return _field("sha-256", sha256)
    preferences = _UNASKED if wish is None else {**_UNASKED, **_preferences(wish)}
    known = [one for one, ours in _ALGORITHMS.items() if ours in digests]
    best = max(known, key=lambda one: preferences.get(one, 0), default=None)
    if best is None or not preferences.get(best):
        return None
    return _field(best, digests[_ALGORITHMS[best]])


@functools.lru_cache(1000)
def _field(algorithm: str, digest: str) -> str:
    value = base64.b64encode(bytes.fromhex(digest)).decode("ascii")
    return f"{algorithm}=:{value}:"


def _preferences(wish: str) -> Mapping[str, int]:
    """Return the preferences of a header that keeps to the rules; of another one, none."""
    found = {}
    for text in wish.strip(" ").split(","):
        member = _MEMBER.fullmatch(text.strip(" \t"))
        if member is None:
            return {}
        found[member[1]] = int(member[2])
    return found
