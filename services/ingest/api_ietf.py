"""What ingest offers to clients of the IETF's resumable uploads, on the URLs of tus.

Joined with what ``services.ingest.api`` says of the same operations.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Final

import msgspec

from services.ingest import errors
from services.ingest.ietf import PARTIAL_TYPE
from services.ingest.ietf_answers import StoredFile
from services.ingest.location import COLLECTION
from shared.errors import InvalidRequest, NotFound, PayloadTooLarge, StorageFull, Unavailable
from shared.operations import (
    JSON,
    Body,
    Header,
    Kind,
    Operation,
    Parameter,
    Response,
)

__all__ = ["IETF"]

_ONE: Final = COLLECTION + "/{upload_id}"
_Bool: Final = {"type": "string", "enum": ["?0", "?1"]}
_Count = Annotated[int, msgspec.Meta(ge=0, lt=10**15)]
_BYTES: Final = {"type": "string", "format": "binary"}
_ID: Final = Parameter("upload_id", "path", uuid.UUID, "Id of the upload.")


def _header(name: str, kind: Kind, meaning: str) -> Parameter:
    return Parameter(name, "header", kind, meaning, always=False)


_COMPLETE: Final = _header(
    "Upload-Complete", _Bool, "IETF: whether the body is the end of the upload."
)
_LENGTH: Final = _header("Upload-Length", _Count, "Size of the whole.")
_VERSION: Final = _header(
    "Upload-Draft-Interop-Version",
    int,
    "IETF: the draft that the client was made for: 3, 5, 6 or 8. It then gets `104 Upload "
    "Resumption Supported` with `Location` before its body is read.",
)
_CONTENT_DIGEST: Final = _header(
    "Content-Digest", str, "IETF: digests of this body (RFC 9530); a wrong one drops it."
)

_WHOSE: Final = (
    Header("Upload-Complete", _Bool, "`?1`: from a complete upload", always=False),
)
_LIMIT: Final = Header("Upload-Limit", str, "What an upload may be", always=False)
_LOCATION: Final = Header("Location", str, "URL of the upload, or of the file")
_OFFSET: Final = Header("Upload-Offset", int, "So many bytes need not be sent again")
_STATE: Final = (
    _OFFSET,
    Header("Upload-Length", int, "Size of the whole, once it is known", always=False),
    _LIMIT,
    Header("Cache-Control", str, "`no-store`"),
)
_DIGEST: Final = Header("Repr-Digest", str, "The digest that was wanted", always=False)
_AGAIN: Final = Response("", (Header("Upload-Offset", int, "Where to go on", always=False),))
_WHOLE: Final = Response(
    "With a body the upload is complete, and this is its file.",
    (_LOCATION, _OFFSET, _LIMIT, _DIGEST),
    {JSON: StoredFile},
)

_STORE: Final = (NotFound, errors.Gone, errors.Locked, Unavailable)
_RECEIVING: Final = (
    InvalidRequest,
    errors.UnsupportedMediaType,
    errors.InconsistentLength,
    errors.OverLength,
    errors.OverLimit,
    errors.DigestUnreadable,
    errors.DigestMismatch,
    errors.ContentMismatch,
    errors.HashMismatch,
    errors.BodyStalled,
    PayloadTooLarge,
    errors.QuotaExceeded,
    StorageFull,
    *_STORE,
)

_CAUSES: Final = {
    "MALWARE_FOUND": "410: The upload has failed: the scanner refused it.",
    "SCAN_LIMIT": "410: The upload has failed: it is too large for the scanner.",
    "PART_MISSING": "410: The upload has failed: one that was to be joined is gone.",
}

IETF: Final = (
    Operation(
        name="open_upload",
        method="POST",
        path=COLLECTION,
        summary="Open an upload, perhaps with its first bytes",
        about="IETF: with `Upload-Complete: ?0` more is to come, with `?1` the body is all of "
        "it. Without headers of a protocol a POST is an ordinary upload: its body must come "
        "whole.",
        parameters=(
            _COMPLETE,
            _LENGTH,
            _VERSION,
            _header("Content-Disposition", str, "IETF: its `filename` names the file."),
            _CONTENT_DIGEST,
            _header("Repr-Digest", str, "IETF: digests of the whole file, to be checked."),
            _header("Want-Repr-Digest", str, "IETF: the digest to be told at the end."),
        ),
        body=Body({"*/*": _BYTES}, "IETF: the file, or its beginning, in its own type."),
        headers=_WHOSE,
        responses={201: _WHOLE, 408: _AGAIN},
        errors=_RECEIVING,
        examples=(
            f'curl -i $URL{COLLECTION} -H "Authorization: Bearer $TOKEN" \\\n'
            "  -H 'Upload-Complete: ?1' -H 'Content-Type: video/mp4' \\\n"
            "  -H 'Content-Disposition: inline; filename=\"film.mp4\"' \\\n"
            "  --data-binary @film.mp4",
        ),
    ),
    Operation(
        name="read_state",
        method="HEAD",
        path=_ONE,
        summary="Ask how many bytes need not be sent again",
        parameters=(_ID, _VERSION),
        headers=_WHOSE,
        responses={204: Response("So many; IETF.", _STATE)},
        errors=(InvalidRequest, *_STORE),
        examples=(f'curl -I $URL{COLLECTION}/$ID -H "Authorization: Bearer $TOKEN"',),
    ),
    Operation(
        name="append_part",
        method="PATCH",
        path=_ONE,
        summary="Add bytes",
        about="IETF: with `Upload-Complete: ?1` they are the last ones.",
        parameters=(
            _ID,
            _header("Upload-Offset", _Count, "IETF: where the body starts."),
            _COMPLETE,
            _LENGTH,
            _VERSION,
            _CONTENT_DIGEST,
        ),
        body=Body({PARTIAL_TYPE: _BYTES}, "IETF: a part of the upload."),
        headers=_WHOSE,
        responses={
            201: _WHOLE,
            204: Response("More is to come.", (_OFFSET, _LIMIT)),
            408: _AGAIN,
            409: _AGAIN,
        },
        errors=(
            *_RECEIVING,
            errors.OffsetMismatch,
            errors.CompletedUpload,
            errors.ProtocolMismatch,
        ),
        codes=_CAUSES,
        examples=(
            f'curl -i -X PATCH $URL{COLLECTION}/$ID -H "Authorization: Bearer $TOKEN" \\\n'
            f"  -H 'Upload-Complete: ?1' -H 'Content-Type: {PARTIAL_TYPE}' \\\n"
            "  -H 'Upload-Offset: 1048576' --data-binary @rest",
        ),
    ),
    Operation(
        name="look_at_state",
        method="GET",
        path=_ONE,
        summary="Go to the file, or see how far it is",
        parameters=(_ID, _VERSION),
        headers=_WHOSE,
        responses={
            204: Response("It is not complete yet.", _STATE),
            307: Response("It is complete.", (_LOCATION, *_STATE)),
        },
        errors=(InvalidRequest, *_STORE),
    ),
    Operation(
        name="cancel_upload",
        method="DELETE",
        path=_ONE,
        summary="End an upload, finished or not, and remove its bytes",
        parameters=(_ID,),
        headers=_WHOSE,
        responses={204: Response("It is gone.")},
        errors=(InvalidRequest, *_STORE, StorageFull),
        examples=(f'curl -X DELETE $URL{COLLECTION}/$ID -H "Authorization: Bearer $TOKEN"',),
    ),
)
