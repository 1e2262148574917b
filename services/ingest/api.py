"""What ingest offers, for its OpenAPI document: uploads by tus, and their status."""

from __future__ import annotations

import uuid
from typing import Annotated, Final, Literal

import msgspec

from services.ingest import errors
from services.ingest.api_form import FORMS
from services.ingest.api_ietf import IETF
from services.ingest.location import COLLECTION
from services.ingest.status import UploadStatus
from services.ingest.tus import CHUNK_TYPE, VERSION
from shared.errors import (
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    StorageFull,
    Unavailable,
)
from shared.operations import (
    JSON,
    PROBLEM,
    TEXT,
    Body,
    Header,
    Operation,
    Parameter,
    Response,
    Section,
)

__all__ = ["SECTIONS"]

_ONE: Final = COLLECTION + "/{upload_id}"
_Count = Annotated[int, msgspec.Meta(ge=0, lt=10**18)]
"""A number of bytes."""
_BYTES: Final = {"type": "string", "format": "binary"}

_ID: Final = Parameter("upload_id", "path", uuid.UUID, "Id of the upload.")
_VERSION: Final = Parameter("Tus-Resumable", "header", Literal["1.0.0"], "Version of tus.")
_SPEAKS_TUS: Final = (Header("Tus-Resumable", str, "Version of tus"),)
_CREATES: Final = (
    *_SPEAKS_TUS,
    Header("Location", str, "URL of the upload, of refusals if there is one", always=False),
)
_CHECKSUM: Final = Parameter(
    "Upload-Checksum",
    "header",
    str,
    "Name and Base64 digest of the body, such as `sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0=`; a body "
    "with another digest is thrown away.",
    always=False,
)
_IN_TEXT: Final = (TEXT, PROBLEM)
_NO_STORE: Final = Header("Cache-Control", str, "`no-store`")
_OFFSET: Final = Header("Upload-Offset", int, "So many bytes are on stable storage")
_EXPIRES: Final = Header(
    "Upload-Expires", str, "When the upload ends if no byte comes (an HTTP date)", always=False
)
_LOCATION: Final = Header("Location", str, "URL of the upload")
_TOO_LATE: Final = Response("", (Header("Upload-Offset", int, "", always=False),))
_OTHER_VERSION: Final = Response(
    "", (Header("Tus-Version", str, "Versions that are spoken", always=False),)
)
_SUPPORTED: Final = Response(
    "This is.",
    (
        Header("Upload-Limit", str, "IETF: what an upload may be", always=False),
        Header("Accept-Patch", str, "Media types of bodies that add bytes"),
        Header("Tus-Version", str, "Versions, the preferred one first"),
        Header("Tus-Extension", str, "Extensions that are spoken"),
        Header("Tus-Checksum-Algorithm", str, "Digests that `Upload-Checksum` may name"),
        Header("Tus-Max-Size", int, "Largest upload in bytes", always=False),
    ),
)
_STATE: Final = (
    Header(
        "Upload-Offset",
        int,
        "So many bytes are on stable storage; absent while a final upload is not joined yet",
        always=False,
    ),
    Header("Upload-Concat", str, "As the client gave it", always=False),
    Header("Upload-Length", int, "Size of the whole; absent while deferred", always=False),
    Header("Upload-Defer-Length", int, "`1` while the length is deferred", always=False),
    Header("Upload-Metadata", str, "As the client gave it", always=False),
    _EXPIRES,
    _NO_STORE,
)
_CHUNK: Final = Body({CHUNK_TYPE: _BYTES}, "The bytes from `Upload-Offset` on.", required=False)
_STORE: Final = (NotFound, errors.Gone, errors.Locked, Unavailable)
_RECEIVING: Final = (
    InvalidRequest,
    errors.UnsupportedMediaType,
    errors.OffsetMismatch,
    errors.BodyStalled,
    errors.ChecksumMismatch,
    errors.ContentMismatch,
    errors.HashMismatch,
    PayloadTooLarge,
    errors.QuotaExceeded,
    StorageFull,
)

_TUS: Final = (
    Operation(
        name="discover",
        method="OPTIONS",
        path=COLLECTION,
        summary="Ask what is supported",
        access="public",
        headers=_SPEAKS_TUS,
        responses={204: _SUPPORTED},
        examples=("curl -i -X OPTIONS $URL/api/v1/uploads",),
    ),
    Operation(
        name="create_upload",
        method="POST",
        path=COLLECTION,
        summary="Open an upload, perhaps with its first bytes",
        about="tus: one of `Upload-Length` and `Upload-Defer-Length` is needed, none for a "
        f"final upload. A body of type `{CHUNK_TYPE}` is the first piece; others are ignored.",
        parameters=(
            _VERSION,
            Parameter("Upload-Length", "header", _Count, "Size of the whole.", always=False),
            Parameter(
                "Upload-Defer-Length",
                "header",
                Literal["1"],
                "The length comes with a later PATCH.",
                always=False,
            ),
            Parameter(
                "Upload-Metadata",
                "header",
                str,
                "Pairs of a key and a Base64 value, parted by commas. `filename` and "
                "`filetype` name the file.",
                always=False,
            ),
            Parameter(
                "Upload-Concat",
                "header",
                str,
                "`partial`: this is a piece of another upload. `final;` and the URLs of "
                "pieces: it is made of them, and they may still be coming in.",
                always=False,
            ),
            _CHECKSUM,
        ),
        body=msgspec.structs.replace(_CHUNK, meaning="The first bytes, if any."),
        headers=_CREATES,
        responses={
            201: Response(
                "It is open, and survives a crash.",
                (_LOCATION, *_STATE[:-1]),
            ),
            408: _TOO_LATE,
            412: _OTHER_VERSION,
        },
        errors=(*_RECEIVING, errors.VersionUnsupported, *_STORE),
        codes={"TOO_MANY_OPEN_UPLOADS": "429: Finish or cancel some uploads first."},
        errors_in=_IN_TEXT,
        examples=(
            f'curl -i -X POST $URL{COLLECTION} -H "Authorization: Bearer $TOKEN" \\\n'
            f"  -H 'Tus-Resumable: {VERSION}' -H 'Content-Type: {CHUNK_TYPE}' \\\n"
            '  -H "Upload-Length: $(wc -c < film.mp4)" \\\n'
            '  -H "Upload-Metadata: filename $(printf film.mp4 | base64)" \\\n'
            "  --data-binary @film.mp4",
        ),
    ),
    Operation(
        name="discover_upload",
        method="OPTIONS",
        path=_ONE,
        summary="Ask what is supported",
        about="The same answer as for the collection, whether there is such an upload or not.",
        access="public",
        parameters=(_ID,),
        headers=_SPEAKS_TUS,
        responses={204: _SUPPORTED},
    ),
    Operation(
        name="read_offset",
        method="HEAD",
        path=_ONE,
        summary="Ask how many bytes need not be sent again",
        about="A PATCH that still runs is asked to let go first, so that the answer holds for "
        "the next one.",
        parameters=(_ID, _VERSION),
        headers=_SPEAKS_TUS,
        responses={200: Response("So many.", _STATE), 412: _OTHER_VERSION},
        errors=(InvalidRequest, errors.VersionUnsupported, *_STORE),
        errors_in=_IN_TEXT,
        examples=(
            f'curl -I $URL{COLLECTION}/$ID -H "Authorization: Bearer $TOKEN" '
            f"-H 'Tus-Resumable: {VERSION}'",
        ),
    ),
    Operation(
        name="append_chunk",
        method="PATCH",
        path=_ONE,
        summary="Add bytes",
        about="When the connection ends early, all that arrived is kept: ask with HEAD, then "
        "go on from there. A body that is longer than the upload is refused.",
        parameters=(
            _ID,
            _VERSION,
            Parameter("Upload-Offset", "header", _Count, "Where the body starts."),
            Parameter(
                "Upload-Length",
                "header",
                _Count,
                "Size of the whole, if it was deferred.",
                always=False,
            ),
            _CHECKSUM,
        ),
        body=_CHUNK,
        headers=_SPEAKS_TUS,
        responses={
            204: Response("All of them are on stable storage.", (_OFFSET, _EXPIRES)),
            408: _TOO_LATE,
            412: _OTHER_VERSION,
        },
        errors=(*_RECEIVING, errors.VersionUnsupported, *_STORE),
        errors_in=_IN_TEXT,
        examples=(
            f'curl -i -X PATCH $URL{COLLECTION}/$ID -H "Authorization: Bearer $TOKEN" \\\n'
            f"  -H 'Tus-Resumable: {VERSION}' -H 'Content-Type: {CHUNK_TYPE}' \\\n"
            "  -H 'Upload-Offset: 1048576' --data-binary @rest",
        ),
    ),
    Operation(
        name="terminate_upload",
        method="DELETE",
        path=_ONE,
        summary="End an upload, finished or not, and remove its bytes",
        about="Of a finished one the file is deleted. A PATCH that still runs is ended first.",
        parameters=(_ID, _VERSION),
        headers=_SPEAKS_TUS,
        responses={204: Response("It is gone."), 412: _OTHER_VERSION},
        errors=(InvalidRequest, errors.VersionUnsupported, *_STORE, StorageFull),
        errors_in=_IN_TEXT,
        examples=(
            f'curl -X DELETE $URL{COLLECTION}/$ID -H "Authorization: Bearer $TOKEN" '
            f"-H 'Tus-Resumable: {VERSION}'",
        ),
    ),
    Operation(
        name="look_at_upload",
        method="GET",
        path=_ONE,
        summary="Go to the file, or see how far it is",
        parameters=(_ID,),
        headers=_SPEAKS_TUS,
        responses={
            204: Response("It is not complete yet.", _STATE),
            307: Response(
                "It is complete.", (Header("Location", str, "Where the file is"), *_STATE)
            ),
        },
        errors=(InvalidRequest, NotFound, Unavailable),
        errors_in=_IN_TEXT,
        examples=(f'curl -L -O -J $URL{COLLECTION}/$ID -H "Authorization: Bearer $TOKEN"',),
    ),
)

_STATUS: Final = Operation(
    name="read_status",
    method="GET",
    path=COLLECTION + "/meta/{token}/status",
    summary="Ask how far an upload is, in JSON",
    about="Answered from what is stored; disturbs nobody who writes.",
    parameters=(Parameter("token", "path", str, "Id of the upload."),),
    headers=_SPEAKS_TUS,
    responses={200: Response("So far.", (_NO_STORE,), {JSON: UploadStatus})},
    errors=(NotFound, Unavailable),
    examples=(f'curl $URL{COLLECTION}/meta/$ID/status -H "Authorization: Bearer $TOKEN"',),
)

_UPLOADS: Final = Section(
    "Resumable uploads",
    "Two protocols on the same URLs, told apart by their headers; an upload is continued in "
    "the one that opened it. In both, an offset that is acknowledged is on stable storage, and "
    "a client that cannot send PATCH or DELETE sends POST with the method in "
    "`X-HTTP-Method-Override`.\n\n"
    "tus 1.0.0 (`Tus-Resumable`): a POST opens an upload, PATCHes add bytes until its length "
    "is reached, HEAD tells where to go on after a break. Refusals are a line of text.\n\n"
    "Resumable Uploads for HTTP, an IETF draft (`Upload-Complete`): the same, but the last "
    "request says that it is. Refusals are a `Problem`.",
    (*_TUS, *IETF, _STATUS),
)

SECTIONS: Final = (_UPLOADS, FORMS)
"""All that ingest serves."""
