"""Digests that a request declares or asks for (RFC 9530), as plain data.

``Repr-Digest`` speaks of the whole file, ``Content-Digest`` of this request's body,
``Want-Repr-Digest`` asks for the former in the answer.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Final

from multidict import MultiMapping

from services.ingest.errors import DigestUnreadable
from services.ingest.structured_fields import NotStructured, parse_dictionary

__all__ = ["ALGORITHMS", "declared_digests", "render_digests", "wanted_digest"]

ALGORITHMS: Final[Mapping[str, str]] = {"sha-512": "sha512", "sha-256": "sha256"}
"""Names of RFC 9530's active algorithms, and what they are called elsewhere; best first."""


def declared_digests(headers: MultiMapping[str], name: str) -> dict[str, str]:
    """Return the digests in a header that can be verified: hex by algorithm, maybe none.

    Algorithms that are not known are ignored, as RFC 9530 section 2 allows.

    Args:
        headers: Of the request.
        name: ``Repr-Digest`` or ``Content-Digest``.

    Raises:
        DigestUnreadable: It is there and cannot be read, or has the wrong length: the client
            relies on a check that nobody could make.

    """
    found = {}
    for algorithm, value in _members(headers, name).items():
        ours = ALGORITHMS.get(algorithm)
        if ours is None:
            continue
        if not isinstance(value, bytes) or len(value) != hashlib.new(ours).digest_size:
            raise DigestUnreadable(f"{name} has a value that is no {algorithm} digest.")
        found[ours] = value.hex()
    return found


def wanted_digest(headers: MultiMapping[str]) -> str:
    """Return the algorithm that ``Want-Repr-Digest`` prefers of those known; else ``""``.

    A preference is from 0, not wanted, to 10 (RFC 9530 section 4). A header that cannot be
    read is ignored: it only asks for a favour.
    """
    try:
        members = _members(headers, "Want-Repr-Digest")
    except DigestUnreadable:
        return ""
    wishes: dict[str, int] = {}
    for name, ours in ALGORITHMS.items():
        wish = members.get(name)
        if isinstance(wish, int) and not isinstance(wish, bool) and 0 < wish <= 10:
            wishes[ours] = wish
    return max(wishes, key=wishes.__getitem__, default="")


def render_digests(digests: Mapping[str, str], algorithm: str) -> dict[str, str]:
    """Return a ``Repr-Digest`` header with one of the hex digests, if it is there."""
    for name, ours in ALGORITHMS.items():
        if ours == algorithm and ours in digests:
            value = base64.b64encode(bytes.fromhex(digests[ours])).decode()
            return {"Repr-Digest": f"{name}=:{value}:"}
    return {}


def _members(headers: MultiMapping[str], name: str) -> Mapping[str, object]:
    try:
        return parse_dictionary(", ".join(headers.getall(name, [])))
    except NotStructured as exc:
        raise DigestUnreadable(f"{name} cannot be read: {exc}.") from exc
