"""What storage tells of files, for its OpenAPI document."""

from __future__ import annotations

import uuid
from typing import Final

from services.storage.list_handlers import PATH, FileMeta, FilePage
from services.storage.paging import LIMIT, MOST
from services.storage.record import SORTS
from shared.errors import InvalidRequest, NotFound, Unavailable
from shared.operations import JSON, Header, Operation, Parameter, Response

__all__ = ["DESCRIBE_FILE", "LIST_FILES"]

_NO_STORE: Final = Header("Cache-Control", str, "`no-store`")

LIST_FILES: Final = Operation(
    name="list_files",
    method="GET",
    path=PATH,
    summary="List your files",
    about="Files that come or go while you turn the pages move no other file to another page. "
    "Of a filter, up to 10,000 files are looked through for a page, so one may be short, or "
    "empty: there are more as long as there is a `next_cursor`.\n\n"
    "A file is listed a moment after its upload was answered; by its id it can be had at once.",
    parameters=(
        Parameter(
            "limit",
            "query",
            {"type": "integer", "minimum": 1, "maximum": MOST, "default": LIMIT},
            "Most files on the page.",
            always=False,
        ),
        Parameter(
            "cursor",
            "query",
            str,
            "`next_cursor` of the page before, with the same `sort` and `order`.",
            always=False,
        ),
        Parameter(
            "sort",
            "query",
            {"type": "string", "enum": list(SORTS), "default": SORTS[0]},
            "What the files are sorted by; names without regard to case.",
            always=False,
        ),
        Parameter(
            "order",
            "query",
            {"type": "string", "enum": ["asc", "desc"]},
            "Without it names come from A on, and the newest or largest files first.",
            always=False,
        ),
        Parameter(
            "type",
            "query",
            str,
            "Only files declared to be of this media type: `video/mp4`, or `video` for all.",
            always=False,
        ),
        Parameter(
            "name",
            "query",
            str,
            "Only files with this in their name, in any case.",
            always=False,
        ),
        Parameter(
            "created_after",
            "query",
            {"type": "string", "format": "date-time"},
            "Only files whose upload was opened then or later (RFC 3339).",
            always=False,
        ),
        Parameter(
            "created_before",
            "query",
            {"type": "string", "format": "date-time"},
            "Only files whose upload was opened before (RFC 3339).",
            always=False,
        ),
        Parameter(
            "user",
            "query",
            str,
            "Whose files; with the scope `admin` anybody's of the same tenant.",
            always=False,
        ),
    ),
    responses={
        200: Response(
            "A page of files.",
            (
                _NO_STORE,
                Header("Link", str, "The next page, as `rel=next` (RFC 8288)", always=False),
            ),
            {JSON: FilePage},
        )
    },
    errors=(InvalidRequest, Unavailable),
    examples=(
        'curl "$URL/api/v1/storage?type=video&sort=size" -H "Authorization: Bearer $TOKEN"',
    ),
)

DESCRIBE_FILE: Final = Operation(
    name="describe_file",
    method="GET",
    path=f"{PATH}/{{file_id}}/meta",
    summary="Read what is known of a file",
    about="Of one that waits for its scan, too.",
    parameters=(
        Parameter("file_id", "path", uuid.UUID, "Id of the upload that became the file."),
    ),
    responses={200: Response("The facts.", (_NO_STORE,), {JSON: FileMeta})},
    errors=(NotFound, Unavailable),
    examples=('curl $URL/api/v1/storage/$ID/meta -H "Authorization: Bearer $TOKEN"',),
)
