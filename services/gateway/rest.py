"""Progress over HTTP, as seed document 000 publishes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from aiohttp import web

from services.gateway.errors import ProgressNotFound
from services.gateway.relay import Relay
from services.gateway.state import ProgressState
from shared.errors import Forbidden, NotFound, Unavailable
from shared.identity import principal_of
from shared.streams import REDIS_FAILURES
from shared.times import Timestamp, rfc3339
from shared.web import json_response

__all__ = ["RELAY", "Progress", "add_rest_routes", "progress_of"]

RELAY: Final = web.AppKey("relay", Relay)

_Status: TypeAlias = Literal["uploading", "completed", "error", "cancelled"]
_STATUS: Final[Mapping[str, _Status]] = {
    "cancelled": "cancelled",
    "error": "error",
    "completed": "completed",
}


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far an upload is."""

    session_id: str
    percentage: Annotated[
        float, msgspec.Meta(description="Never goes down; 100.0 only when all bytes are safe")
    ]
    bytes_uploaded: int
    total_bytes: Annotated[
        int | None, msgspec.Meta(description="`null` while the client defers the length")
    ]
    upload_speed: Annotated[float, msgspec.Meta(description="Bytes per second, smoothed")]
    estimated_completion: Annotated[
        Timestamp | None, msgspec.Meta(description="`null` while it cannot be known")
    ]
    status: _Status
    filename: str
    video_id: str | None
    analysis_id: str | None
    redirect_url: str | None
    error_message: str | None
    error_code: str | None
    started_at: Timestamp
    last_updated: Timestamp
    completed_at: Timestamp | None


def add_rest_routes(router: web.UrlDispatcher) -> None:
    """Register the endpoints."""
    router.add_get("/v1/dashboard/upload/progress/{session_id}", read_progress)


async def read_progress(request: web.Request) -> web.Response:
    """Answer with the progress of the caller's session.

    An id that is not known yet is waited for: its first event may be under way.
    """
    session_id, caller = request.match_info["session_id"], principal_of(request)
    details = {"session_id": session_id, "user_id": caller.user_id}
    try:
        relay = request.app[RELAY]
        state = await relay.hub.find(await relay.upload_of(session_id, caller))
    except NotFound:
        raise ProgressNotFound(
            "There is no progress for this session.", details=details
        ) from None
    except REDIS_FAILURES:
        raise Unavailable("Progress cannot be read right now.") from None
    if not caller.owns(user_id=state.user_id, tenant=state.tenant):
        raise Forbidden("This session belongs to somebody else.", details=details)
    return json_response(progress_of(state), headers={"Cache-Control": "no-store"})


def progress_of(state: ProgressState) -> Progress:
    """Return what a state looks like to clients."""
    return Progress(
        session_id=state.session_id,
        percentage=state.percentage,
        bytes_uploaded=state.bytes_uploaded,
        total_bytes=state.total_bytes,
        upload_speed=round(state.upload_speed, 1),
        estimated_completion=state.estimated_completion,
        status=_STATUS.get(state.status, "uploading"),
        filename=state.filename,
        video_id=state.video_id,
        analysis_id=state.analysis_id,
        redirect_url=state.redirect_url,
        error_message=state.error_message,
        error_code=state.error_code,
        started_at=rfc3339(state.started_at),
        last_updated=rfc3339(state.last_updated),
        completed_at=None if state.completed_at is None else rfc3339(state.completed_at),
    )
