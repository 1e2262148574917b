"""The status of an upload over HTTP, as seed document 001 publishes it.

Answered from the blob store: it holds while Redis is away, and disturbs no writer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec
from aiohttp import web

from services.ingest.form import estimated_size, total_chunks_of
from services.ingest.handlers import UPLOADS
from shared.blobs.store import Chunk, Stored
from shared.identity import principal_of
from shared.percent import percent_of
from shared.times import Timestamp, rfc3339
from shared.web import json_response

__all__ = ["UploadStatus", "add_status_route", "status_of"]

_STATES: Final = {"completed": "completed", "failed": "failed", "expired": "failed"}


class UploadStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far an upload is."""

    token: str
    status: Literal["created", "uploading", "completed", "failed"]
    progress: Annotated[
        float, msgspec.Meta(description="Percent; 100.0 only when all bytes are safe")
    ]
    offset: Annotated[int, msgspec.Meta(description="Bytes received")]
    size: Annotated[
        int | None, msgspec.Meta(description="Bytes; `null` while the client defers the length")
    ]
    created_at: Timestamp
    updated_at: Timestamp
    completed_at: Timestamp | None


def add_status_route(router: web.UrlDispatcher) -> None:
    """Register the endpoint."""
    router.add_get("/api/v1/uploads/meta/{token}/status", read_status)


async def read_status(request: web.Request) -> web.Response:
    """Answer with the state of the caller's upload."""
    uploads, upload_id = request.app[UPLOADS], request.match_info["token"]
    stored = await uploads.find(upload_id, principal_of(request))
    chunks: Sequence[Chunk] = ()
    if stored.sidecar.status == "created" and total_chunks_of(stored.sidecar):
        chunks = await uploads.store.chunks(upload_id)
        if not chunks:  # none has come, or they were joined since the record was read
            stored = await uploads.find(upload_id, principal_of(request))
    return json_response(status_of(stored, chunks), headers={"Cache-Control": "no-store"})


def status_of(stored: Stored, chunks: Sequence[Chunk] = ()) -> UploadStatus:
    """Return what a stored upload's status is.

    Args:
        stored: The upload.
        chunks: What has come of it apart, and is not joined yet.

    """
    sidecar, size, offset = stored.sidecar, stored.sidecar.size, stored.offset
    announced = size
    if chunks:
        offset = sum(one.size for one in chunks)
        announced = estimated_size(chunks, total_chunks_of(sidecar))
    ended = _STATES.get(sidecar.status)
    completed_at = sidecar.completed_at
    updated_at = completed_at if completed_at is not None else stored.modified_at * 1000
    return UploadStatus(
        token=sidecar.upload_id,
        status=ended or ("uploading" if offset else "created"),  # type: ignore[arg-type]
        progress=percent_of(offset, announced, complete=sidecar.status == "completed"),
        offset=offset,
        size=size,
        created_at=rfc3339(sidecar.facts.created_at),
        updated_at=rfc3339(max(updated_at, sidecar.facts.created_at)),
        completed_at=None if completed_at is None else rfc3339(completed_at),
    )
