"""The tus 1.0.0 protocol without I/O: header values in, decisions out.

Specification: tus resumable upload protocol 1.0.0. "Item" numbers in comments are those of
the project's protocol checklist; the tests in ``tests/ingest/test_protocol*.py`` carry them.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Final

from multidict import MultiMapping

from services.ingest.claimed import clean_filename, clean_type
from services.ingest.concatenation import named_parts
from services.ingest.creation import Creation
from services.ingest.errors import OffsetMismatch, UnsupportedMediaType, VersionUnsupported
from services.ingest.location import COLLECTION
from services.ingest.validation import kind_of
from shared.errors import InvalidRequest, PayloadTooLarge

__all__ = [
    "CHUNK_TYPE",
    "EXTENSIONS",
    "VERSION",
    "check_chunk_type",
    "check_given_once",
    "check_not_passed",
    "check_version",
    "declared_length",
    "http_date",
    "parse_count",
    "parse_creation",
    "parse_metadata",
    "room_for_chunk",
]

VERSION: Final = "1.0.0"
CHUNK_TYPE: Final = "application/offset+octet-stream"
EXTENSIONS: Final = ",".join(
    (
        *("creation", "creation-with-upload", "creation-defer-length"),
        *("termination", "expiration", "checksum"),
        *("concatenation", "concatenation-unfinished"),
    )
)

_MAX_DIGITS: Final = 18
"""Stays below 2**63 bytes, and below what makes parsing a number expensive."""
_MAX_METADATA_KEYS: Final = 32
_BASE64: Final = re.compile(  # RFC 4648 section 4; b64decode lets surplus padding pass
    r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
)
_SINGLE: Final = (
    *("Tus-Resumable", "Upload-Length", "Upload-Offset", "Upload-Defer-Length"),
    *("Upload-Metadata", "Upload-Checksum", "Upload-Concat"),
    *("Content-Type", "X-HTTP-Method-Override"),
)


def check_version(headers: Mapping[str, str]) -> None:
    """Refuse a request in another version of the protocol, or in none.

    Raises:
        VersionUnsupported: Items 5 and 7.

    """
    if headers.get("Tus-Resumable") != VERSION:
        raise VersionUnsupported(
            f"Tus-Resumable must be {VERSION}.", headers={"Tus-Version": VERSION}
        )


def check_given_once(headers: MultiMapping[str]) -> None:
    """Refuse a request that says something twice.

    A proxy in between may believe the other one (RFC 9110 section 5.3).

    Raises:
        InvalidRequest: A header that has one value has several lines.

    """
    for name in _SINGLE:
        if len(headers.getall(name, ())) > 1:
            raise InvalidRequest(f"{name} is given more than once.")


def check_chunk_type(headers: Mapping[str, str]) -> None:
    """Refuse a body that is not declared as a piece of an upload.

    Raises:
        UnsupportedMediaType: Item 20. Or the body is compressed: offsets count the bytes as
            they are sent, so nothing may unpack them on the way (item 33).

    """
    declared = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if declared != CHUNK_TYPE:
        raise UnsupportedMediaType(f"Content-Type must be {CHUNK_TYPE}.")
    if headers.get("Content-Encoding", "identity").strip().lower() not in {"", "identity"}:
        raise UnsupportedMediaType("Content-Encoding is not accepted.")


def parse_count(headers: Mapping[str, str], name: str) -> int:
    """Return a header that holds a number of bytes.

    Raises:
        InvalidRequest: It is missing, or not a plain decimal integer (items 1, 2, 23).
            ``int()`` would also take ``+5``, ``5_0``, spaces and other alphabets' digits.

    """
    value = headers.get(name, "")
    if not value or not value.isascii() or not value.isdecimal() or len(value) > _MAX_DIGITS:
        raise InvalidRequest(f"{name} must be a non-negative integer.")
    return int(value)


def parse_creation(
    headers: Mapping[str, str], *, max_size: int, collection: str = COLLECTION
) -> Creation:
    """Return what a POST asks for.

    Args:
        headers: Of the request.
        max_size: Largest upload in bytes; 0 is no limit.
        collection: URL of the collection as the client sees it.

    Raises:
        InvalidRequest: Length, metadata or parts break the protocol (items 44, 45, 51, 52, 91).
        PayloadTooLarge: The declared length is over the limit (item 49).

    """
    concat = headers.get("Upload-Concat", "")
    parts = named_parts(concat, collection) if "Upload-Concat" in headers else ()
    raw = headers.get("Upload-Metadata", "")
    metadata = parse_metadata(raw)
    filename = clean_filename(metadata.get("filename") or metadata.get("name") or "")
    content_type = clean_type(metadata.get("filetype") or metadata.get("type") or "")
    return Creation(
        size=_creation_length(headers, is_final=bool(parts), max_size=max_size),
        metadata_header=raw,
        metadata=metadata,
        filename=filename,
        content_type=content_type,
        kind=kind_of(content_type, filename),
        expected={"sha256": metadata["sha256"].lower()} if "sha256" in metadata else {},
        concat=concat,
        parts=parts,
    )


def _creation_length(
    headers: Mapping[str, str], *, is_final: bool, max_size: int
) -> int | None:
    deferred = headers.get("Upload-Defer-Length")
    if is_final:
        # Item 93: it is as long as its parts, whatever the client believes.
        if deferred is not None or "Upload-Length" in headers:
            raise InvalidRequest("A final upload is as long as its parts.")
        return None
    if deferred is not None and deferred != "1":
        raise InvalidRequest("Upload-Defer-Length must be 1.")
    if (deferred is None) == ("Upload-Length" not in headers):
        raise InvalidRequest("Exactly one of Upload-Length and Upload-Defer-Length is needed.")
    return None if deferred else _limited(parse_count(headers, "Upload-Length"), max_size)


def _limited(size: int, max_size: int) -> int:
    if max_size and size > max_size:
        raise PayloadTooLarge(
            f"The upload may have at most {max_size} bytes.",
            headers={"Tus-Max-Size": str(max_size)},
        )
    return size


def parse_metadata(header: str) -> dict[str, str]:
    """Return the pairs of ``Upload-Metadata``; values that are no UTF-8 text are left out.

    Raises:
        InvalidRequest: A key is empty, doubled, or not plain ASCII; a value is not Base64;
            or there are too many (items 51 to 53, 56).

    """
    pairs: dict[str, str] = {}
    if not header.strip():
        return pairs
    parts = header.split(",")
    if len(parts) > _MAX_METADATA_KEYS:
        raise InvalidRequest(f"Upload-Metadata may have {_MAX_METADATA_KEYS} keys.")
    seen = set()
    for part in parts:
        key, _, encoded = part.strip().partition(" ")
        if not key or not key.isascii() or not key.isprintable() or key in seen:
            raise InvalidRequest("Upload-Metadata has an empty, doubled or non-ASCII key.")
        seen.add(key)
        if not _BASE64.fullmatch(encoded):
            raise InvalidRequest("Upload-Metadata has a value that is not Base64.")
        with contextlib.suppress(UnicodeDecodeError):  # the header is given back as it came
            pairs[key] = base64.b64decode(encoded).decode()
    return pairs


def declared_length(
    headers: Mapping[str, str], *, known: int | None, offset: int, max_size: int
) -> int | None:
    """Return the upload's length after a PATCH that may declare it (items 62 to 64).

    Args:
        headers: Of the PATCH.
        known: The length so far; ``None`` while it is deferred.
        offset: Bytes that are there.
        max_size: Largest upload in bytes; 0 is no limit.

    Raises:
        InvalidRequest: The length was known and is another one, or is below the offset.
        PayloadTooLarge: It is over the limit.

    """
    if "Upload-Length" not in headers:
        return known
    size = parse_count(headers, "Upload-Length")
    if known is not None and size != known:
        # Item 63: "The length MUST NOT be changed" once it is set.
        raise InvalidRequest("Upload-Length is already set to another value.")
    if size < offset:
        raise InvalidRequest("Upload-Length is below the bytes already received.")
    return _limited(size, max_size)


def check_not_passed(provided: int, offset: int) -> None:
    """Refuse a chunk for a place that is taken, before its upload's writer is disturbed.

    Raises:
        OffsetMismatch: There are more bytes already, and offsets never decrease.

    """
    if provided < offset:
        raise OffsetMismatch(f"The upload is at {offset}, not {provided}.")


def room_for_chunk(
    *, provided: int, offset: int, size: int | None, length: int | None, max_size: int
) -> int | None:
    """Return how many bytes a PATCH may add; ``None`` is no limit.

    Args:
        provided: ``Upload-Offset`` of the request.
        offset: Bytes that are there.
        size: Declared length of the upload; ``None`` while it is deferred.
        length: ``Content-Length`` of the request; ``None`` if it is chunked.
        max_size: Largest upload in bytes; 0 is no limit. Binds deferred uploads (item 65).

    Raises:
        OffsetMismatch: The chunk would not start where the upload ends.
        PayloadTooLarge: The chunk would pass the end (item 29).

    """
    if provided != offset:
        # Item 22: "If the offsets do not match, the Server MUST respond with the 409
        # Conflict status without modifying the upload resource."
        raise OffsetMismatch(f"The upload is at {offset}, not {provided}.")
    end = size if size is not None else (max_size or None)
    if end is None:
        return None
    room = end - offset
    if length is not None and length > room:
        raise PayloadTooLarge(f"{length} bytes are sent, but there is room for {room}.")
    return room


def http_date(at: float) -> str:
    """Return a time (UTC, seconds since the epoch) as an IMF-fixdate (item 74)."""
    return format_datetime(datetime.fromtimestamp(int(at), UTC), usegmt=True)
