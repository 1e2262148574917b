"""Server-Sent Events: a socket that only we speak on, and that any HTTP client can open."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Mapping
from typing import Any, Final

import structlog
from aiohttp import HttpVersion11, WSCloseCode, hdrs, web

from services.gateway.closing import UNAUTHORIZED
from services.gateway.connection import ABORT_S, CLOSED, Surroundings
from services.gateway.dialects.protocol import Dialect
from services.gateway.dialects.server_sent import CHUNKED, HEARTBEAT, PLAIN, hint
from services.gateway.hub import Watcher
from services.gateway.outbound import Outbound
from services.gateway.resume import ALL, Since, last_events
from services.gateway.sockets import SOCKETS
from services.gateway.subscribing import Subscribing, require_any
from shared.errors import ApiError, InvalidRequest, Unavailable
from shared.identity import Principal, credentials_in_url, principal_of
from shared.streams import REDIS_FAILURES

__all__ = ["add_event_stream_route"]

log = structlog.stdlib.get_logger(__name__)

_MOST_IDS: Final = 100
"""More does not fit into the URLs that proxies take."""
_LOOK_S: Final = 1.0
_INTERNET: Final = {socket.AF_INET, socket.AF_INET6}
_RETRY_MS: Final = (1_000, 4_000)
"""At random, so that those who are sent away together do not come back together."""


class EventStream:
    """One answer that goes on.

    Args:
        transport: Of the request; the head of the answer is out.
        dialect: What the body is in.
        caller: Who gets it.
        around: What all sockets share.

    """

    def __init__(
        self,
        transport: asyncio.Transport,
        dialect: Dialect,
        caller: Principal,
        around: Surroundings,
    ) -> None:
        self._transport: Final = transport
        self._dialect: Final = dialect
        self._around: Final = around
        self._loop: Final = asyncio.get_running_loop()
        self._outbound: Final = Outbound(transport, around.flusher, self._too_slow, dialect)
        self._expiry: asyncio.TimerHandle | None = None
        self._ended: Final = asyncio.Event()
        self._watcher: Final = Watcher(
            dialect, self._outbound, caller, on_caller=self._end_with_token
        )
        self.heard_at = self._loop.time()
        self.asked_at: float | None = None

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self._watcher.caller.tenant

    @property
    def dialect(self) -> Dialect:
        """What the body is in."""
        return self._dialect

    def _end_with_token(self, caller: Principal) -> None:
        if caller.expires_at is not None:
            left_s = max(caller.expires_at - time.time(), 0)
            self._expiry = self._loop.call_later(
                left_s, self.close, UNAUTHORIZED, "the token has expired"
            )

    async def serve(self, last: Since) -> None:
        """Send what is asked for until either side ends it."""
        self._around.tasks.start(self._subscribe(last))
        while not self._ended.is_set() and not self._transport.is_closing():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):  # nobody tells when the other end goes
                    await self._ended.wait()

    async def _subscribe(self, last: Since) -> None:
        subscribing = Subscribing(self._around.relay, self._watcher)
        try:
            if ALL not in last:
                await subscribing.watch(last, self._answer)
            elif (found := await subscribing.follow(last[ALL])) is not None:
                self._reply("subscribed", "", {"ids": found})
        except REDIS_FAILURES as exc:
            log.warning("event_stream_without_redis", error=repr(exc))
            self.close(WSCloseCode.TRY_AGAIN_LATER, "try again later")

    def _answer(self, outcome: Mapping[str, str | ApiError]) -> None:
        granted = [name for name, one in outcome.items() if isinstance(one, str)]
        for name, one in outcome.items():
            if isinstance(one, ApiError):
                self._reply("error", name, {"message": one.message})
        if granted:
            self._reply("subscribed", "", {"ids": granted})

    def _reply(self, kind: str, subject: str, data: dict[str, Any]) -> None:
        caller = self._watcher.caller
        payload = self._dialect.reply(kind, subject=subject, caller=caller, data=data)
        self._outbound.put(self._dialect.framed(payload))

    def ping(self, frame: bytes) -> bool:
        """Write a comment, which nobody answers; False, since no answer is to be waited for."""
        if self._transport.get_write_buffer_size():
            self._around.flusher.expect_drain(self._outbound)
        elif not self._transport.is_closing():
            self._outbound.put(self._dialect.framed(HEARTBEAT))
            self.heard_at = self._loop.time()
        return False

    def _too_slow(self) -> None:
        self.close(WSCloseCode.TRY_AGAIN_LATER, "too slow")
        self.abort()

    def close(self, code: int, reason: str) -> None:
        """End the answer; the client comes back by itself. The code is for our figures."""
        if self._ended.is_set():
            return
        CLOSED.labels(int(code)).inc()
        self._outbound.finish()
        self._ended.set()
        self.forget()
        if self._transport.get_write_buffer_size():
            self._loop.call_later(ABORT_S, self.abort)

    def abort(self) -> None:
        """Cut the connection."""
        self._transport.abort()

    def forget(self) -> None:
        """Leave no trace of the connection in what outlives it."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._around.relay.hub.forget(self._watcher)
        self._around.flusher.forget(self._outbound)


@credentials_in_url
async def follow_events(request: web.Request) -> web.StreamResponse:
    """Answer with the events of the uploads that are asked for, as they come."""
    sockets, caller = request.app[SOCKETS], principal_of(request)
    last = _asked_for(request)
    place = sockets.enter(request)
    try:
        await place.claim(caller)
        return await _answered(request, caller, last)
    finally:
        place.release()


async def _answered(request: web.Request, caller: Principal, last: Since) -> web.StreamResponse:
    sockets = request.app[SOCKETS]
    dialect = CHUNKED if request.version >= HttpVersion11 else PLAIN
    if ALL not in last:
        try:
            await require_any(sockets.around.relay, caller, last)
        except REDIS_FAILURES:
            raise Unavailable("Progress cannot be read right now.") from None
    answer = web.StreamResponse(
        headers={
            hdrs.CONTENT_TYPE: "text/event-stream",
            hdrs.CACHE_CONTROL: "no-store",
            "X-Accel-Buffering": "no",
        }
    )
    await answer.prepare(request)
    await answer.write(hint(random.randint(*_RETRY_MS)))  # noqa: S311 - spreads load
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    _end_unless_acknowledged(transport, within_s=sockets.unacknowledged_s)
    stream = EventStream(transport, dialect, caller, sockets.around)
    sockets.add(stream)
    try:
        await stream.serve(last)
    finally:
        sockets.remove(stream)
        stream.forget()
    return answer


def _end_unless_acknowledged(transport: asyncio.Transport, *, within_s: float) -> None:
    """Have the kernel end a connection whose other end has gone without a word.

    Nobody answers comments; but a peer that is there acknowledges them (RFC 5482). Without a
    limit the kernel tries for a quarter of an hour, and the place counts as taken for as long.
    """
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # not everywhere
    sock = transport.get_extra_info("socket")
    if option is not None and sock is not None and sock.family in _INTERNET:
        with contextlib.suppress(OSError):  # the client has gone
            sock.setsockopt(socket.IPPROTO_TCP, option, int(1000 * within_s))


def _asked_for(request: web.Request) -> Since:
    """Return what is asked for, and what the client has of it.

    Raises:
        InvalidRequest: It cannot be meant so.

    """
    ids = [one for line in request.query.getall("ids", []) for one in line.split(",") if one]
    if len(ids) > _MOST_IDS:
        raise InvalidRequest(f"ids must be at most {_MOST_IDS}.")
    if "ids" in request.query and not ids:
        raise InvalidRequest("ids must name something.")
    # After a break a browser repeats the query, so what it has got since then goes first.
    since = request.headers.get("Last-Event-ID") or request.query.get("since")
    try:
        return last_events(ids or (ALL,), since)
    except ValueError as exc:
        raise InvalidRequest(str(exc)) from None


def add_event_stream_route(router: web.UrlDispatcher) -> None:
    """Register the endpoint."""
    router.add_get("/v1/events", follow_events, allow_head=False)
