"""The list of files, and what is known of one, over HTTP.

Without Redis there is no list (503); what is known of one file comes from the blob store.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Final, Literal
from urllib.parse import urlencode

import msgspec
from aiohttp import web

from services.storage.handlers import FILES, explains_failures
from services.storage.listing import Listing
from services.storage.paging import query_of
from services.storage.record import FileRecord, Owner, etag_of, record_of_sidecar
from services.storage.records import Records
from shared.errors import Forbidden, InvalidRequest, Unavailable
from shared.identity import Principal, principal_of
from shared.principal import is_id
from shared.sidecar import Sidecar
from shared.streams import REDIS_FAILURES
from shared.times import Timestamp, rfc3339
from shared.web import json_response

__all__ = [
    "LISTING",
    "PATH",
    "RECORDS",
    "FileMeta",
    "FilePage",
    "ListedFile",
    "add_list_routes",
]

PATH: Final = "/api/v1/storage"
LISTING: Final = web.AppKey("listing", Listing)
RECORDS: Final = web.AppKey("records", Records)

_NO_STORE: Final = {"Cache-Control": "no-store"}

_Digest = Annotated[
    str | None, msgspec.Meta(description="SHA-256 of the bytes, hex; `null` until computed")
]
_ContentType = Annotated[str, msgspec.Meta(description="As the uploader declared it")]


class ListedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file in a list."""

    file_id: str
    filename: str
    size: Annotated[int, msgspec.Meta(description="Bytes")]
    content_type: _ContentType
    sha256: _Digest
    created_at: Annotated[Timestamp, msgspec.Meta(description="When its upload was opened")]
    completed_at: Annotated[Timestamp, msgspec.Meta(description="When its last byte was safe")]


class FilePage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of somebody's files."""

    user_id: str
    files: list[ListedFile]
    next_cursor: Annotated[
        str | None, msgspec.Meta(description="Where the next page begins; `null` on the last")
    ]
    total_files: Annotated[
        int, msgspec.Meta(description="Of this user, on whatever page, filtered out or not")
    ]
    complete: Annotated[
        bool,
        msgspec.Meta(
            description="`false` while older files are still being found again, after the "
            "index was lost"
        ),
    ]


class FileMeta(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a file."""

    file_id: str
    filename: str
    size: Annotated[int, msgspec.Meta(description="Bytes")]
    content_type: _ContentType
    sha256: _Digest
    created_at: Timestamp
    completed_at: Annotated[
        Timestamp | None, msgspec.Meta(description="`null` while it is quarantined")
    ]
    status: Annotated[
        Literal["stored", "quarantined"],
        msgspec.Meta(description="`quarantined`: a scan must clear it before it can be had"),
    ]
    etag: Annotated[str, msgspec.Meta(description="As downloads send it, quotes included")]
    user_id: str
    metadata: Annotated[
        dict[str, str], msgspec.Meta(description="What the uploader attached to it")
    ]
    duplicate_of: Annotated[
        str | None, msgspec.Meta(description="The file whose bytes this one shares")
    ]
    url: Annotated[str, msgspec.Meta(description="Where its bytes are, relative to this URL")]


def add_list_routes(router: web.UrlDispatcher) -> None:
    """Register the endpoints."""
    router.add_get(PATH, list_files)
    router.add_get(f"{PATH}/{{file_id}}/meta", read_meta)


async def list_files(request: web.Request) -> web.Response:
    """Answer with a page of the caller's files, or for admins of another user's."""
    query = query_of(request.query)
    owner = _owner(request.query.get("user"), principal_of(request))
    try:
        page = await request.app[LISTING].page(owner, query)
    except REDIS_FAILURES:
        raise Unavailable("Files cannot be listed right now.") from None
    headers = dict(_NO_STORE)
    if page.next_cursor is not None:
        asked = [(k, v) for k, v in request.query.items() if k != "cursor"]
        # Relative to this very URL, whatever path a proxy serves it under (RFC 8288, 3.1).
        target = urlencode([*asked, ("cursor", page.next_cursor)])
        headers["Link"] = f'<?{target}>; rel="next"'
    body = FilePage(
        user_id=owner.user_id,
        files=[_listed(one) for one in page.files],
        next_cursor=page.next_cursor,
        total_files=page.total,
        complete=page.complete,
    )
    return json_response(body, headers=headers)


def _owner(user_id: str | None, caller: Principal) -> Owner:
    """Return whose files are asked for; nobody learns whether another user has any."""
    if user_id is None:
        return Owner(caller.tenant, caller.user_id)
    if not is_id(user_id):
        raise InvalidRequest("user must be the id of a user.")
    if not caller.owns(user_id=user_id, tenant=caller.tenant):
        raise Forbidden("These files are somebody else's.")
    return Owner(caller.tenant, user_id)


def _listed(record: FileRecord) -> ListedFile:
    return ListedFile(
        file_id=record.file_id,
        filename=record.filename,
        size=record.size,
        content_type=record.content_type,
        sha256=record.sha256 or None,
        created_at=rfc3339(record.created_at),
        completed_at=rfc3339(record.completed_at),
    )


@explains_failures
async def read_meta(request: web.Request) -> web.Response:
    """Answer with what is known of the caller's file; one that is not listed will be."""
    files, file_id = request.app[FILES], request.match_info["file_id"]
    stored = await files.find(file_id, principal_of(request), cleared=False)
    if stored.sidecar.status == "completed":
        with suppress(*REDIS_FAILURES):
            await _record(request.app[RECORDS], stored.sidecar)
    return json_response(_meta(stored.sidecar, stored.offset), headers=_NO_STORE)


async def _record(records: Records, sidecar: Sidecar) -> None:
    """Record a file if that was not done, or before its digest was known."""
    fresh = record_of_sidecar(sidecar)
    known = await records.find(fresh.file_id)
    if known is None or known.sha256 != fresh.sha256:
        await records.register([fresh])


def _meta(sidecar: Sidecar, size: int) -> FileMeta:
    facts, completed_at = sidecar.facts, sidecar.completed_at
    return FileMeta(
        file_id=sidecar.upload_id,
        filename=facts.filename,
        size=size,
        content_type=facts.content_type,
        sha256=sidecar.digests.get("sha256"),
        created_at=rfc3339(facts.created_at),
        completed_at=None if completed_at is None else rfc3339(completed_at),
        status="quarantined" if sidecar.status == "quarantined" else "stored",
        etag=etag_of(sidecar),
        user_id=facts.user_id,
        metadata=facts.metadata,
        duplicate_of=sidecar.original_id or None,
        url=f"../{sidecar.upload_id}",
    )
