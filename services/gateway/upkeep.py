"""Statistics and cleaning up, for admins, each of the own tenant (seed document 000, line 60).

That document names both without shapes; these are ours. Both are 503 while Redis is away.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from aiohttp import web

from services.gateway.cleaning import Cleaner
from services.gateway.rest import KEPT_S, NO_STORE, PATH, RELAY, needs_redis
from services.gateway.sessions_index import SessionsIndex
from services.gateway.sockets import SOCKETS
from services.gateway.state import ProgressState
from shared.cors import origin_allowed
from shared.errors import Forbidden, InvalidRequest
from shared.identity import Principal, principal_of
from shared.serve import CORS
from shared.times import Timestamp, now_ms, rfc3339
from shared.web import json_response

__all__ = [
    "CLEANER",
    "INDEX",
    "CleanupRequest",
    "CleanupResult",
    "Stats",
    "add_upkeep_routes",
]

INDEX: Final = web.AppKey("index", SessionsIndex)
CLEANER: Final = web.AppKey("cleaner", Cleaner)

_MEASURED: Final = 1000
"""Active sessions whose bytes and speeds are read for statistics."""
_LONGEST_S: Final = 10 * 365 * 86_400
_AT_ONCE: Final = 1000
"""Sessions that one request cleans up: some tens of milliseconds of Redis's time."""


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """What goes on in a tenant."""

    tenant: str
    total_sessions: int
    active_sessions: int
    completed_sessions: int
    error_sessions: int
    cancelled_sessions: int
    measured_sessions: Annotated[
        int,
        msgspec.Meta(
            description="How many active sessions, those heard of last, the next four are of; "
            f"at most {_MEASURED:,}"
        ),
    ]
    bytes_uploaded: int
    total_bytes: Annotated[int, msgspec.Meta(description="Where the length is known")]
    upload_speed: Annotated[float, msgspec.Meta(description="Bytes per second, all together")]
    average_speed: Annotated[
        float, msgspec.Meta(description="Bytes per second of one that is not at rest")
    ]
    open_sockets: Annotated[
        int, msgspec.Meta(description="Of the tenant's users, on the process that answers")
    ]
    timestamp: Timestamp


class CleanupRequest(msgspec.Struct, frozen=True):
    """Which sessions are to be cleaned up."""

    older_than_seconds: (
        Annotated[
            float,
            msgspec.Meta(
                ge=0,
                le=_LONGEST_S,
                description="Finished sessions of which nothing was heard for so long; if "
                "absent, `PROGRESS_TTL_SECONDS`: only what is left of those that have run out",
            ),
        ]
        | msgspec.UnsetType
    ) = msgspec.UNSET


class CleanupResult(msgspec.Struct, frozen=True, kw_only=True):
    """What cleaning up has come to."""

    removed_sessions: Annotated[
        int, msgspec.Meta(description="Finished sessions whose progress is gone now")
    ]
    stale_entries: Annotated[
        int, msgspec.Meta(description="Of lists, naming sessions that had run out before")
    ]
    remaining: Annotated[
        int, msgspec.Meta(description="Left for further requests; ask again until it is 0")
    ]
    timestamp: Timestamp


_requests: Final = msgspec.json.Decoder(CleanupRequest)


def add_upkeep_routes(router: web.UrlDispatcher) -> None:
    """Register both."""
    router.add_get(f"{PATH}/stats", read_stats)
    router.add_post(f"{PATH}/cleanup", clean_up)


async def read_stats(request: web.Request) -> web.Response:
    """Answer with what goes on in the caller's tenant."""
    tenant = _admin(request).tenant
    index = request.app[INDEX]
    with needs_redis():
        counts = await index.counts(tenant)
        newest = await index.newest(tenant, "uploading", _MEASURED)
        states = await request.app[RELAY].load_all(session for _, session in newest)
    active = [one for one in states.values() if not one.is_over]
    speeds = [one.upload_speed for one in active if one.upload_speed > 0]
    body = Stats(
        tenant=tenant,
        total_sessions=sum(counts.values()),
        active_sessions=counts["uploading"],
        completed_sessions=counts["completed"],
        error_sessions=counts["error"],
        cancelled_sessions=counts["cancelled"],
        measured_sessions=len(active),
        bytes_uploaded=sum(one.bytes_uploaded for one in active),
        total_bytes=sum(_known_bytes(one) for one in active),
        upload_speed=round(sum(speeds), 1),
        average_speed=round(sum(speeds) / len(speeds), 1) if speeds else 0.0,
        open_sockets=request.app[SOCKETS].open_of(tenant),
        timestamp=rfc3339(now_ms()),
    )
    return json_response(body, headers=NO_STORE)


async def clean_up(request: web.Request) -> web.Response:
    """Remove progress of the caller's tenant, a bounded number of sessions."""
    tenant = _admin(request).tenant
    # Where everyone is the local user, pages that he looks at must not do it for him.
    if not origin_allowed(request.app[CORS], request):
        raise Forbidden("This page may not clean up.")
    older_than_s = _wanted(await request.read()).older_than_seconds
    if isinstance(older_than_s, msgspec.UnsetType):
        older_than_s = float(request.app[KEPT_S])
    with needs_redis():
        done = await request.app[CLEANER].clean(
            tenant, older_than_s=older_than_s, limit=_AT_ONCE
        )
    body = CleanupResult(
        removed_sessions=done.removed,
        stale_entries=done.stale,
        remaining=done.remaining,
        timestamp=rfc3339(now_ms()),
    )
    return json_response(body)


def _admin(request: web.Request) -> Principal:
    caller = principal_of(request)
    if not caller.is_admin:
        details = {"user_id": caller.user_id}
        raise Forbidden("This needs the scope admin.", details=details)
    return caller


def _known_bytes(state: ProgressState) -> int:
    return state.total_bytes or 0


def _wanted(body: bytes) -> CleanupRequest:
    """Return what the body asks for; an empty one asks for what is usual.

    Raises:
        InvalidRequest: It is not as described.

    """
    try:
        return _requests.decode(body) if body else CleanupRequest()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        text = "nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise InvalidRequest(f"The body is not as described: {text}.") from None
