"""What storage offers, for its OpenAPI document."""

from __future__ import annotations

import uuid
from typing import Final

from services.storage.api_links import derived_sections
from services.storage.errors import PreconditionFailed, RangeNotSatisfiable
from services.storage.files import Quarantined
from services.storage.list_api import DESCRIBE_FILE, LIST_FILES
from shared.errors import Conflict, NotFound, Unavailable
from shared.operations import Header, Operation, Parameter, Response, Section

__all__ = ["SECTIONS"]

_PATH: Final = "/api/v1/storage/{file_id}"
_ID: Final = Parameter("file_id", "path", uuid.UUID, "Id of the upload that became the file.")
_BYTES: Final = {"*/*": {"description": "the bytes, in the type that they are found to have"}}

_CONDITIONS: Final = (
    Parameter(
        "If-Match", "header", str, "Only if the file has one of these tags.", always=False
    ),
    Parameter(
        "If-None-Match", "header", str, "Only if it has none of these tags.", always=False
    ),
    Parameter(
        "If-Modified-Since", "header", str, "Only if it is newer (an HTTP date).", always=False
    ),
    Parameter("If-Unmodified-Since", "header", str, "Only if it is no newer.", always=False),
)
_RANGE: Final = (
    Parameter(
        "Range",
        "header",
        str,
        "Ranges of bytes, such as `bytes=0-1023`, `bytes=1024-` or `bytes=-500`. Several are "
        "separated by commas; those that overlap or touch are sent as one, and of more than "
        "50 the answer is the whole file.",
        always=False,
    ),
    Parameter(
        "If-Range",
        "header",
        str,
        "The range only if the file still has this tag or date; else the whole file.",
        always=False,
    ),
)
_WISH: Final = Parameter(
    "Want-Repr-Digest",
    "header",
    str,
    "Which digest of the whole file is preferred (RFC 9530); 0 is not wanted.",
    always=False,
)
_VALIDATORS: Final = (
    Header("ETag", str, "Strong: the SHA-256 once it is known; the former one stays good"),
    Header("Last-Modified", str, "When the upload was complete"),
    Header("Accept-Ranges", str, "`bytes`"),
    Header("Cache-Control", str, "Kept by nobody but the caller"),
)
_FILE: Final = (
    *_VALIDATORS,
    Header("Content-Disposition", str, "The file's name (RFC 6266); `attachment` unless safe"),
    Header("Content-Security-Policy", str, "The file cannot act on the page that shows it"),
    Header("X-Content-Type-Options", str, "`nosniff`"),
    Header("Repr-Digest", str, "Digest of the whole file, if it is known", always=False),
)
_COVERED: Final = Header(
    "Content-Range",
    str,
    "Which bytes these are, and of how many; in each part if several",
    always=False,
)
_SIZE: Final = Header("Content-Range", str, "`bytes */<size>`")

_DOWNLOAD: Final = Operation(
    name="download_file",
    method="GET",
    path=_PATH,
    summary="Download a file, or a part of it",
    about="It is there as soon as the last answer of its upload is. Conditions and ranges "
    "follow RFC 9110; what cannot be understood of them is ignored.",
    parameters=(_ID, *_CONDITIONS, *_RANGE, _WISH),
    responses={
        200: Response("The whole file.", _FILE, _BYTES),
        206: Response(
            "The range, or several (`multipart/byteranges`).", (*_FILE, _COVERED), _BYTES
        ),
        304: Response("The client has it already.", _VALIDATORS),
        307: Response(
            "The bytes are to be had there, for a minute at most, and no longer than the link "
            "that led here is good; with S3_DOWNLOAD=redirect only.",
            (
                Header("Location", str, "A URL of the S3 server, good for anybody"),
                Header("Cache-Control", str, "`no-store`"),
            ),
        ),
        416: Response("", (*_VALIDATORS, _SIZE)),
        412: Response("", _VALIDATORS),
    },
    errors=(NotFound, Quarantined, PreconditionFailed, RangeNotSatisfiable, Unavailable),
    examples=(
        'curl -O -J $URL/api/v1/storage/$ID -H "Authorization: Bearer $TOKEN"',
        'curl -r 0-1023 $URL/api/v1/storage/$ID -H "Authorization: Bearer $TOKEN"',
    ),
)

_FILES: Final = Section(
    "Files",
    "Complete uploads. The id is the one of the upload.",
    (
        LIST_FILES,
        DESCRIBE_FILE,
        _DOWNLOAD,
        Operation(
            name="look_at_file",
            method="HEAD",
            path=_PATH,
            summary="Ask for size, name and validators of a file",
            parameters=(_ID, *_CONDITIONS, _WISH),
            responses={
                200: Response(
                    "As a GET would be answered, without the bytes.",
                    (*_FILE, Header("Content-Length", int, "Size of the file")),
                ),
                304: Response("The client has it already.", _VALIDATORS),
                412: Response("", _VALIDATORS),
            },
            errors=(NotFound, Quarantined, PreconditionFailed, Unavailable),
            examples=('curl -I $URL/api/v1/storage/$ID -H "Authorization: Bearer $TOKEN"',),
        ),
        Operation(
            name="delete_file",
            method="DELETE",
            path=_PATH,
            summary="Delete a file",
            about="When this is answered the bytes are durably gone; downloads under way go on "
            "to their end; from S3 only those that the client does not let rest. The others "
            "learn of it by an event.",
            parameters=(
                _ID,
                *(one for one in _CONDITIONS if one.name != "If-Modified-Since"),
            ),
            responses={204: Response("It is gone."), 412: Response("", _VALIDATORS)},
            errors=(NotFound, Conflict, PreconditionFailed, Unavailable),
            examples=(
                'curl -X DELETE $URL/api/v1/storage/$ID -H "Authorization: Bearer $TOKEN"',
            ),
        ),
    ),
)

_DOWNLOADS: Final = [
    one for one in _FILES.operations if one.path == _PATH and one.method in {"GET", "HEAD"}
]
SECTIONS: Final = (_FILES, *derived_sections(_ID, _DOWNLOADS))
