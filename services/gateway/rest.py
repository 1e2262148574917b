"""Progress over HTTP, as seed document 000 publishes it (lines 104 to 173).

Without Redis reading what is watched here works, and everything else is 503.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from aiohttp import web

from services.gateway.dismissal import Dismissals
from services.gateway.errors import InvalidStatus, ProgressNotFound
from services.gateway.listing import Listing, position_of
from services.gateway.relay import Relay
from services.gateway.state import ProgressState
from shared.errors import Forbidden, InvalidRequest, NotFound, Unavailable
from shared.identity import Principal, principal_of
from shared.streams import REDIS_FAILURES
from shared.times import Timestamp, rfc3339
from shared.web import json_response

__all__ = [
    "DISMISSALS",
    "KEPT_S",
    "LIMIT",
    "LISTING",
    "MOST",
    "NO_STORE",
    "PATH",
    "RELAY",
    "Progress",
    "Session",
    "Sessions",
    "add_rest_routes",
    "needs_redis",
    "progress_of",
]

PATH: Final = "/v1/dashboard/upload/progress"
RELAY: Final = web.AppKey("relay", Relay)
LISTING: Final = web.AppKey("listing", Listing)
DISMISSALS: Final = web.AppKey("dismissals", Dismissals)
KEPT_S: Final = web.AppKey("kept_s", int)
"""``PROGRESS_TTL_SECONDS``."""

LIMIT: Final = 50
MOST: Final = 200
"""Sessions on a page: if nothing else is asked for, and at most."""
NO_STORE: Final = {"Cache-Control": "no-store"}

_Status: TypeAlias = Literal["uploading", "completed", "error", "cancelled"]
_STATUS: Final[Mapping[str, _Status]] = {
    "cancelled": "cancelled",
    "error": "error",
    "completed": "completed",
}
_JobStatus: TypeAlias = Literal["queued", "in_progress", "completed", "failed"]
_JOB_STATUS: Final[Mapping[str, _JobStatus]] = {
    one: one for one in ("queued", "in_progress", "completed", "failed")
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
    job_id: Annotated[str | None, msgspec.Meta(description="Of the processing that follows")]
    job_status: Annotated[
        _JobStatus | None, msgspec.Meta(description="`null` until a worker is heard")
    ]
    stage: Annotated[str | None, msgspec.Meta(description="What the worker does, as it says")]
    job_progress: Annotated[float | None, msgspec.Meta(description="Percent of the processing")]
    message: Annotated[str | None, msgspec.Meta(description="The worker's last word")]
    current: Annotated[int | None, msgspec.Meta(description="Rows, or frames, of `total`")]
    total: int | None
    result: Annotated[
        dict[str, Any] | None, msgspec.Meta(description="What the processing found")
    ]


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A session in a list."""

    session_id: str
    status: _Status
    percentage: float
    filename: str
    started_at: Timestamp
    last_updated: Timestamp
    is_completed: bool
    has_error: bool


class Sessions(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a user's sessions; the numbers are of all sessions, on whatever page."""

    user_id: str
    total_sessions: Annotated[
        int, msgspec.Meta(description="Of any status, cancelled ones included")
    ]
    active_sessions: int
    completed_sessions: int
    error_sessions: int
    sessions: Annotated[list[Session], msgspec.Meta(description="Newest first")]
    next_cursor: Annotated[
        str | None, msgspec.Meta(description="Where the next page begins; `null` on the last")
    ]


def add_rest_routes(router: web.UrlDispatcher) -> None:
    """Register the endpoints."""
    # Ids of users may hold braces, which aiohttp takes for no part of a name by itself.
    router.add_get(f"{PATH}/user/{{user_id:[^/]+}}/sessions", list_sessions)
    router.add_get(f"{PATH}/{{session_id}}", read_progress)
    router.add_delete(f"{PATH}/{{session_id}}", delete_progress)


@contextmanager
def needs_redis() -> Iterator[None]:
    """Tell clients to come back when Redis is away."""
    try:
        yield
    except REDIS_FAILURES:
        raise Unavailable("Progress cannot be reached right now.") from None


async def read_progress(request: web.Request) -> web.Response:
    """Answer with the progress of the caller's session.

    An id that is not known yet is waited for: its first event may be under way.
    """
    state = await _own_session(request, principal_of(request))
    return json_response(progress_of(state), headers=NO_STORE)


async def delete_progress(request: web.Request) -> web.Response:
    """Remove what is kept of the caller's session, unless it is still uploading.

    The file stays. Sockets that watch the session stay open and hear what happens to it.
    """
    caller = principal_of(request)
    state = await _own_session(request, caller)
    details = _details(request, caller)
    if not state.is_over:
        raise InvalidStatus("Invalid status for deletion: uploading.", details=details)
    with needs_redis():
        # For as long as it would have been kept, nothing that is told later brings it back.
        removed = await request.app[DISMISSALS].dismiss([state], for_s=request.app[KEPT_S])
    if not all(removed):
        raise _not_found(details)
    return web.Response(status=204)


async def list_sessions(request: web.Request) -> web.Response:
    """Answer with a page of a user's sessions."""
    user_id, caller = request.match_info["user_id"], principal_of(request)
    if not caller.owns(user_id=user_id, tenant=caller.tenant):
        details = {"user_id": caller.user_id}
        raise Forbidden("These sessions are somebody else's.", details=details)
    limit = _limit(request.query.get("limit"))
    cursor = request.query.get("cursor")
    after = position_of(cursor) if cursor is not None else None
    with needs_redis():
        page = await request.app[LISTING].page(user_id, caller.tenant, limit=limit, after=after)
    headers = dict(NO_STORE)
    if page.next_cursor is not None:
        # Relative to this very URL, whatever path a proxy serves it under (RFC 8288, 3.1).
        headers["Link"] = f'<?limit={limit}&cursor={page.next_cursor}>; rel="next"'
    body = Sessions(
        user_id=user_id,
        total_sessions=sum(page.counts.values()),
        active_sessions=page.counts.get("uploading", 0),
        completed_sessions=page.counts.get("completed", 0),
        error_sessions=page.counts.get("error", 0),
        sessions=[_session_of(one) for one in page.sessions],
        next_cursor=page.next_cursor,
    )
    return json_response(body, headers=headers)


def _limit(text: str | None) -> int:
    """Return how many sessions a page may have.

    Raises:
        InvalidRequest: It is no number, or out of bounds.

    """
    if text is None:
        return LIMIT
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= MOST:
        raise InvalidRequest(f"limit must be a number from 1 to {MOST}.")
    return int(text)


async def _own_session(request: web.Request, caller: Principal) -> ProgressState:
    """Return the state of the session that the path names, if it is the caller's."""
    session_id, details = request.match_info["session_id"], _details(request, caller)
    relay = request.app[RELAY]
    try:
        with needs_redis():
            state = await relay.hub.find(await relay.upload_of(session_id, caller))
    except NotFound:
        raise _not_found(details) from None
    if not caller.owns(user_id=state.user_id, tenant=state.tenant):
        raise Forbidden("This session belongs to somebody else.", details=details)
    return state


def _details(request: web.Request, caller: Principal) -> dict[str, str]:
    return {"session_id": request.match_info["session_id"], "user_id": caller.user_id}


def _not_found(details: Mapping[str, str]) -> ProgressNotFound:
    return ProgressNotFound("There is no progress for this session.", details=details)


def _session_of(state: ProgressState) -> Session:
    status = _STATUS.get(state.status, "uploading")
    return Session(
        session_id=state.session_id,
        status=status,
        percentage=state.percentage,
        filename=state.filename,
        started_at=rfc3339(state.started_at),
        last_updated=rfc3339(state.last_updated),
        is_completed=status == "completed",
        has_error=status == "error",
    )


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
        job_id=state.job_id,
        job_status=_JOB_STATUS.get(state.job_status or ""),
        stage=state.stage,
        job_progress=state.job_progress,
        message=state.message,
        current=state.current,
        total=state.total,
        result=state.result,
    )
