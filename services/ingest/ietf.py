"""Resumable Uploads for HTTP (IETF draft) without I/O: header values in, decisions out.

Text: draft-ietf-httpbis-resumable-upload, editor's copy of July 2026. "Item" numbers are those
of the project's protocol checklist; the tests in ``tests/ingest/test_ietf*.py`` carry them.
Clients name the draft they were made for in ``Upload-Draft-Interop-Version``; where drafts
differ, the answers are in that of the client. Those who name none, or one that is not spoken,
get the newest text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Final, Literal

import msgspec
from multidict import MultiMapping

from services.ingest import tus
from services.ingest.claimed import clean_filename, clean_type
from services.ingest.content_disposition import offered_name
from services.ingest.creation import Creation
from services.ingest.digest_fields import declared_digests, wanted_digest
from services.ingest.errors import (
    InconsistentLength,
    OffsetMismatch,
    OverLength,
    UnsupportedMediaType,
)
from services.ingest.structured_fields import BareItem, NotStructured, parse_item
from shared.errors import InvalidRequest, PayloadTooLarge

__all__ = [
    "PARTIAL_TYPE",
    "Request",
    "append_status",
    "asks_for_interim",
    "check_append",
    "check_carries_nothing",
    "check_offset",
    "check_representation",
    "creation_of",
    "detect",
    "length_after",
    "limits",
    "offset_headers",
    "progress_interim",
    "read_request",
    "room_for",
    "told_in",
]

PARTIAL_TYPE: Final = "application/partial-upload"

NEWEST: Final = 8
VERSIONS: Final = (3, 5, 6, NEWEST)
"""Interop versions of draft -01, -03, -04/-05, and -09 to the editor's copy."""

_MAX_INTEGER: Final = 10**15 - 1  # RFC 9651 section 3.3.1
_NO_TYPES: Final = {PARTIAL_TYPE, "application/x-www-form-urlencoded"}
"""What says nothing of a file: the second is what curl sends for ``--data-binary``."""

_TUS_ONLY: Final = (
    *("Upload-Length", "Upload-Metadata", "Upload-Defer-Length", "Upload-Concat"),
    "Upload-Checksum",
)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the header fields of the protocol say; ``None``: absent, or to be ignored."""

    interop: int | None = None
    """One of ``VERSIONS``, as the client names it."""
    offset: int | None = None
    complete: bool | None = None
    """Whether this request's body is the end of the upload."""
    length: int | None = None

    @property
    def version(self) -> int:
        """The version to answer in."""
        return self.interop or NEWEST


def read_request(headers: MultiMapping[str]) -> Request:
    """Return what a request says; fields with other values are ignored (items 105 to 109)."""
    interop = _item(headers, "Upload-Draft-Interop-Version")
    version = interop if _is_integer(interop) and interop in VERSIONS else None
    complete = _item(headers, "Upload-Complete")
    if version == 3:
        incomplete = _item(headers, "Upload-Incomplete")
        complete = not incomplete if isinstance(incomplete, bool) else None
    return Request(
        interop=version,  # type: ignore[arg-type]
        offset=_count(headers, "Upload-Offset"),
        complete=complete if isinstance(complete, bool) else None,
        length=_count(headers, "Upload-Length"),
    )


def _item(headers: MultiMapping[str], name: str) -> BareItem | None:
    if name not in headers:
        return None
    # Several lines are one list (RFC 9651 section 4.2), which is no item.
    with contextlib.suppress(NotStructured):
        return parse_item(", ".join(headers.getall(name)))
    return None


def _is_integer(value: BareItem | None) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _count(headers: MultiMapping[str], name: str) -> int | None:
    value = _item(headers, name)
    return value if _is_integer(value) and value >= 0 else None  # type: ignore[operator,return-value]


def detect(
    method: str, headers: MultiMapping[str], *, creates: bool
) -> Literal["tus", "ietf", "plain"]:
    """Return which protocol a request speaks (items 136 and 169 to 171).

    ``plain`` is a conventional upload: a POST to the collection whose body is a file and that
    says nothing of resuming. What looks like tus without its version is tus, to be refused.

    Args:
        method: The one that counts.
        headers: Of the request.
        creates: Whether it is sent to the collection.

    """
    if "Tus-Resumable" in headers or method == "OPTIONS":
        return "tus"
    request = read_request(headers)
    if creates:
        if request.complete is not None:
            return "ietf"
        said = "Upload-Complete" in headers or request.interop is not None
        if said or (_has_content(headers) and not _looks_like_tus(headers)):
            return "plain" if method == "POST" else "ietf"
        return "tus"
    marks = ("Upload-Complete", "Upload-Draft-Interop-Version")
    if any(name in headers for name in marks) or method in {"HEAD", "DELETE"}:
        return "ietf"
    return "ietf" if method == "PATCH" and _type_of(headers) == PARTIAL_TYPE else "tus"


def _has_content(headers: Mapping[str, str]) -> bool:
    length = headers.get("Content-Length", "0").strip("0")
    return bool(length) or "Transfer-Encoding" in headers or "Content-Type" in headers


def _looks_like_tus(headers: Mapping[str, str]) -> bool:
    return any(name in headers for name in _TUS_ONLY) or _type_of(headers) == tus.CHUNK_TYPE


def _type_of(headers: Mapping[str, str]) -> str:
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()


# Requests.


def check_representation(headers: MultiMapping[str]) -> None:
    """Refuse a body that cannot be kept as the file that it is.

    Raises:
        UnsupportedMediaType: It is compressed, and who downloads it would not know (items 33
            and 134); or it is a form, whose place is elsewhere.

    """
    if headers.get("Content-Encoding", "identity").strip().lower() not in {"", "identity"}:
        raise UnsupportedMediaType("Content-Encoding is not accepted.")
    if _type_of(headers).startswith("multipart/"):
        raise UnsupportedMediaType("Send forms to /v1/upload/file.")


def creation_of(headers: MultiMapping[str], size: int | None) -> Creation:
    """Return what a request that opens an upload says of the file (items 134, 161, 162).

    Of its name, type and metadata, what cannot be read is left out.

    Args:
        headers: Of the request.
        size: The length, as far as it is known.

    Raises:
        DigestUnreadable: A digest to be checked cannot be.

    """
    said, declared = {}, clean_type(_type_of(headers))
    raw = headers.get("Upload-Metadata", "")
    with contextlib.suppress(InvalidRequest):  # tus-js-client sends it in IETF modes too
        said = tus.parse_metadata(raw)
    if not declared or declared in _NO_TYPES:
        declared = clean_type(said.get("filetype", ""))
    name = offered_name(headers.get("Content-Disposition", ""))
    return Creation(
        size=size,
        filename=clean_filename(name or said.get("filename", "")),
        content_type=declared,
        metadata=said,
        metadata_header=raw if said else "",
        expected=declared_digests(headers, "Repr-Digest"),
        wants_digest=wanted_digest(headers),
        protocol="ietf",
    )


def check_append(headers: MultiMapping[str], request: Request) -> tuple[int, bool]:
    """Return offset and completeness of a request that appends (items 143 and 105).

    Raises:
        UnsupportedMediaType: The body is not declared as a part of an upload. Drafts before
            -04 have no type for that.
        InvalidRequest: A field is missing, or has a value that is to be ignored.

    """
    if request.version >= 6 and _type_of(headers) != PARTIAL_TYPE:
        raise UnsupportedMediaType(f"Content-Type must be {PARTIAL_TYPE}.")
    check_representation(headers)
    if request.offset is None:
        raise InvalidRequest("Upload-Offset must be a non-negative integer.")
    if request.complete is None:
        name = "Upload-Incomplete" if request.version == 3 else "Upload-Complete"
        raise InvalidRequest(f"{name} must be ?0 or ?1.")
    return request.offset, request.complete


def check_carries_nothing(headers: Mapping[str, str]) -> None:
    """Refuse a HEAD or DELETE that says where it continues (items 141 and 154).

    Drafts up to -05 demand it; later ones are silent.

    Raises:
        InvalidRequest: It does.

    """
    for name in ("Upload-Offset", "Upload-Complete", "Upload-Incomplete", "Upload-Length"):
        if name in headers:
            raise InvalidRequest(f"{name} has no meaning here.")


def check_offset(provided: int, offset: int) -> None:
    """Refuse a body that does not begin where the upload ends (item 144).

    Raises:
        OffsetMismatch: With what it takes to go on.

    """
    if provided != offset:
        raise OffsetMismatch(
            f"The upload is at {offset}, not {provided}.",
            headers={"Upload-Offset": str(offset)},
            members={"expected-offset": offset, "provided-offset": provided},
        )


def length_after(
    request: Request, *, known: int | None, offset: int, content_length: int | None
) -> int | None:
    """Return the upload's length after what a request says of it; ``None``: still unknown.

    Args:
        request: What its fields say.
        known: The length so far.
        offset: Where its body begins.
        content_length: Bytes of its body; ``None`` if nobody knows yet.

    Raises:
        OverLength: The body would pass the end that was told (item 117).
        InconsistentLength: Two sources contradict each other (item 115).

    """
    said = {one for one in (known, request.length) if one is not None}
    end = None if content_length is None else offset + content_length
    if len(said) > 1:
        raise InconsistentLength("Upload-Length is another one than before.")
    length = next(iter(said), None)
    if length is not None and length < offset:
        raise InconsistentLength("Upload-Length is below the bytes already received.")
    if length is not None and end is not None and end > length:
        raise OverLength(f"The upload may have {length} bytes, and would have {end}.")
    if not request.complete or end is None:
        return length
    if length is not None and end != length:
        raise InconsistentLength(f"The upload would end at {end}, not {length}.")
    return end


def room_for(
    *, offset: int, length: int | None, content_length: int | None, max_size: int
) -> int | None:
    """Return how many bytes a body may add; ``None`` is no limit (item 123).

    Args:
        offset: Bytes that are there.
        length: Of the upload, if it is known.
        content_length: Of the request, if it is known.
        max_size: Largest upload in bytes; 0 is no limit.

    Raises:
        PayloadTooLarge: The upload would be larger than is allowed.

    """
    if not max_size:
        return None if length is None else length - offset
    if max(length or 0, offset + (content_length or 0)) > max_size:
        raise PayloadTooLarge(f"The upload may have at most {max_size} bytes.")
    return (max_size if length is None else length) - offset


# Answers.


def told_in(version: int, answer: Mapping[str, str]) -> dict[str, str]:
    """Return the field that says whose answer it is, as a draft calls it (items 114 and 132).

    Args:
        version: To answer in.
        answer: The headers of the answer. What does not say that it comes from a complete
            upload comes from the machinery.

    """
    complete = answer.get("Upload-Complete") == "?1"
    if version == 3:  # in -01 the name and the sense are the opposite
        return {"Upload-Incomplete": "?0" if complete else "?1"}
    return {"Upload-Complete": "?1" if complete else "?0"}


def limits(version: int, *, max_size: int, lifetime_s: float | None) -> dict[str, str]:
    """Return ``Upload-Limit``; nothing for drafts that do not know it (items 108, 119, 124).

    Args:
        version: To answer in.
        max_size: Largest upload in bytes; 0 is no limit.
        lifetime_s: Seconds that the upload has if no byte comes; ``None``: it does not end.

    """
    if version < 6:
        return {}
    members = []
    if max_size:
        members.append(f"max-size={min(max_size, _MAX_INTEGER)}")
    if lifetime_s is not None:
        key = "expires" if version == 6 else "max-age"
        members.append(f"{key}={max(int(lifetime_s), 0)}")
    return {"Upload-Limit": ", ".join(members) or "min-size=0"}


def offset_headers(
    version: int, *, offset: int, length: int | None, complete: bool
) -> dict[str, str]:
    """Return the fields that tell the state of an upload (items 137 and 146).

    Completeness is told the newest way; ``told_in`` puts it into the client's words.
    """
    headers = {"Upload-Offset": str(offset), "Cache-Control": "no-store"}
    if length is not None and version >= 6:
        headers["Upload-Length"] = str(length)
    return headers | {"Upload-Complete": "?1" if complete else "?0"}


def append_status(version: int) -> int:
    """Return the status of an answer that says "go on": drafts until -05 ask for 201."""
    return 201 if version < NEWEST else 204


def asks_for_interim(request: Request, policy: Literal["asked", "always", "never"]) -> bool:
    """Tell whether the client is sent 104 (items 166 to 168)."""
    return policy == "always" or (policy == "asked" and request.interop is not None)


def progress_interim(request: Request) -> bool:
    """Tell whether a 104 may say how far the upload is: draft -01 has none of these."""
    return request.version >= 5
