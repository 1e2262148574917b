"""One WebSocket, from after its handshake to its close, the same for every dialect.

Whatever the other end does (vanish, send garbage, stop reading) ends at most this socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Final

import structlog
from aiohttp import WSCloseCode, WSMsgType, web
from prometheus_client import Counter

from services.gateway.closing import FORBIDDEN, NOT_FOUND, UNAUTHORIZED, Closing
from services.gateway.dialects.protocol import (
    Dialect,
    GetStats,
    Malformed,
    Message,
    Ping,
    Subscribe,
    Unsubscribe,
)
from services.gateway.frames import text_frame
from services.gateway.hub import Watcher
from services.gateway.login import log_in, refreshed
from services.gateway.outbound import Flusher, Outbound
from services.gateway.relay import Relay
from shared.errors import ApiError, Forbidden, NotFound
from shared.identity import Principal
from shared.lifecycle import TaskSet
from shared.serve import AUTHENTICATOR
from shared.streams import REDIS_FAILURES

__all__ = ["Connection"]

log = structlog.stdlib.get_logger(__name__)

_ABORT_S: Final = 3.0
"""How long a closed socket may linger before it is cut."""
_PATIENCE_S: Final = 0.1
"""A subscription that takes longer, to an upload that nobody knows, holds nothing else up."""
_MOST_GRANTING: Final = 16

CLOSED = Counter("gateway_closed_total", "Sockets closed by us, by code.", ["code"])


class Connection:
    """One socket.

    Args:
        request: The handshake.
        ws: Its answer, prepared.
        dialect: What is spoken on it.
        relay: Delivers events, knows the sessions of a user.
        flusher: Writes to all sockets.
        closings: Keeps the task that closes it.
        login_s: How long it may take to say who is calling.

    Raises:
        ConnectionResetError: The client has gone already.

    """

    def __init__(
        self,
        request: web.Request,
        ws: web.WebSocketResponse,
        dialect: Dialect,
        *,
        relay: Relay,
        flusher: Flusher,
        closings: TaskSet,
        login_s: float,
    ) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        self._request: Final = request
        self._ws: Final = ws
        self._dialect: Final = dialect
        self._relay: Final = relay
        self._flusher: Final = flusher
        self._closings: Final = closings
        self._login_s: Final = login_s
        self._loop: Final = asyncio.get_running_loop()
        self._transport: Final = transport
        self._upload_id: Final = request.match_info.get("upload_id", "")
        self._outbound: Final = Outbound(transport, flusher, self._too_slow)
        self._named: Final[dict[str, str]] = {}
        self._watcher: Watcher | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._granting: Final = TaskSet("subscriptions")
        self._room: Final = asyncio.Semaphore(_MOST_GRANTING)
        self._closing = False
        self._closed: Final = asyncio.Event()
        self.heard_at = self._loop.time()
        self.asked_at: float | None = None

    async def run(self) -> None:
        """Serve the socket until either side ends it."""
        auth = self._request.app[AUTHENTICATOR]
        try:
            caller, first = await log_in(
                auth, self._request, self._dialect, self._next_text, limit_s=self._login_s
            )
            structlog.contextvars.bind_contextvars(user_id=caller.user_id)
            self._watcher = watcher = Watcher(self._dialect, self._outbound, caller)
            self._end_with_token(caller)
            await self._begin(watcher)
            if first is not None:
                await self._obey(watcher, first)
            while (text := await self._next_text()) is not None:
                await self._obey(watcher, self._dialect.parse(text))
        except Closing as exc:
            self._reply("error", message=exc.message)
            self.close(exc.code, exc.message)
        except REDIS_FAILURES as exc:
            self._without_redis(exc)
        finally:
            if self._closing:  # the end of the handler must not cut the closing handshake
                await self._closed.wait()

    async def _begin(self, watcher: Watcher) -> None:
        """Watch what the path names: one upload, or all of the caller's."""
        try:
            if self._upload_id:
                await self._watch(watcher, self._upload_id)
            else:
                states = await self._relay.sessions_of(watcher.caller)
                self._relay.hub.follow(watcher, states)
        except Forbidden as exc:
            raise Closing(FORBIDDEN, exc.message) from None
        except NotFound as exc:
            raise Closing(NOT_FOUND, exc.message) from None

    async def _watch(self, watcher: Watcher, session_id: str) -> bool:
        """Subscribe by an upload's id, or by the caller's own name for its session."""
        watcher.asked.add(session_id)
        try:
            upload_id = await self._relay.upload_of(session_id, watcher.caller)
            if session_id not in watcher.asked:
                return False  # it has changed its mind, or has gone
        finally:
            watcher.asked.discard(session_id)
        if upload_id != session_id:
            self._named[session_id] = upload_id
        return await self._relay.hub.subscribe(watcher, upload_id)

    async def _next_text(self) -> str | None:
        """Return the next text message, ``None`` at the end; answer pings, refuse binary."""
        while True:
            message = await self._ws.receive()
            self.heard_at = self._loop.time()
            if message.type is WSMsgType.TEXT:
                return str(message.data)
            if message.type is WSMsgType.PING:
                with contextlib.suppress(ConnectionError):  # it is being closed
                    await self._ws.pong(message.data)
            elif message.type is WSMsgType.BINARY:
                self._reply("error", message="Only text messages are understood.")
            elif message.type is not WSMsgType.PONG:
                return None

    async def _obey(self, watcher: Watcher, message: Message) -> None:
        """Do what a message asks for."""
        if message.token is not None:
            await self._refresh(watcher, message.token)
        match message.request:
            case Subscribe(upload_id):
                await self._subscribe(watcher, upload_id)
            case Unsubscribe(upload_id):
                self._relay.hub.unsubscribe(watcher, self._named.get(upload_id, upload_id))
                self._reply("unsubscribed", upload_id=upload_id)
            case Ping():
                self._reply("pong")
            case GetStats():
                self._reply("stats", subscriptions=len(watcher.topics))
            case Malformed(reason):
                self._reply("error", message=reason)
            case None:
                self._reply("authenticated", message="Authentication successful")

    async def _refresh(self, watcher: Watcher, token: str) -> None:
        """Go on under a newer token of the same caller, with the rights that it gives."""
        auth = self._request.app[AUTHENTICATOR]
        watcher.caller = await refreshed(auth, watcher.caller, token)
        self._end_with_token(watcher.caller)
        for upload_id in self._relay.hub.recheck(watcher):
            if upload_id == self._named.get(self._upload_id, self._upload_id):
                raise Closing(FORBIDDEN, "Access denied to this upload")
            self._reply("error", upload_id=upload_id, message="Access denied to this upload")

    async def _subscribe(self, watcher: Watcher, upload_id: str) -> None:
        """Grant a subscription, or go on without it until it is decided."""
        await self._room.acquire()
        decided = asyncio.Event()
        self._granting.start(self._grant(watcher, upload_id, decided))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await decided.wait()

    async def _grant(self, watcher: Watcher, upload_id: str, decided: asyncio.Event) -> None:
        try:
            if await self._watch(watcher, upload_id):
                self._reply("subscribed", upload_id=upload_id)
        except ApiError as exc:
            self._reply("error", upload_id=upload_id, message=exc.message)
        except REDIS_FAILURES as exc:
            self._without_redis(exc)
        finally:
            self._room.release()
            decided.set()

    def _end_with_token(self, caller: Principal) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if caller.expires_at is not None:
            left_s = max(caller.expires_at - time.time(), 0)
            self._expiry = self._loop.call_later(
                left_s, self.close, UNAUTHORIZED, "the token has expired"
            )

    def _reply(self, kind: str, *, upload_id: str = "", **data: Any) -> None:
        caller = self._watcher.caller if self._watcher is not None else None
        subject = upload_id or self._upload_id
        payload = self._dialect.reply(kind, upload_id=subject, caller=caller, data=data)
        self._outbound.put(text_frame(payload))

    # The way out.

    def ping(self, frame: bytes) -> bool:
        """Write a ping and return True, unless the socket is busy with what it got before."""
        if self._transport.is_closing():
            return False
        if self._transport.get_write_buffer_size():
            self._flusher.expect_drain(self._outbound)
            return False
        self._transport.write(frame)
        return True

    def _too_slow(self) -> None:
        self.close(WSCloseCode.TRY_AGAIN_LATER, "too slow")

    def _without_redis(self, exc: BaseException) -> None:
        if not self._transport.is_closing():
            log.warning("socket_without_redis", error=repr(exc))
            self.close(WSCloseCode.TRY_AGAIN_LATER, "try again later")

    def close(self, code: int, reason: str) -> None:
        """Begin to close the socket; returns at once. Nothing is delivered to it any more."""
        if self._closing:
            return
        self._closing = True
        CLOSED.labels(int(code)).inc()
        self._outbound.finish()
        if self._watcher is not None:
            self._relay.hub.drop(self._watcher)
        self._closings.start(self._close(code, reason))

    async def _close(self, code: int, reason: str) -> None:
        # A peer that does not read never sees the close frame; it must not keep us waiting.
        cut = self._loop.call_later(_ABORT_S, self.abort)
        try:
            await self._ws.close(code=code, message=reason.encode()[:120], drain=False)
        finally:
            if not self._transport.get_write_buffer_size():
                cut.cancel()
            self._closed.set()

    def abort(self) -> None:
        """Cut the connection."""
        self._transport.abort()

    def forget(self) -> None:
        """Leave no trace of the socket in what outlives it."""
        if self._expiry is not None:
            self._expiry.cancel()
        if self._watcher is not None:
            self._relay.hub.drop(self._watcher)
        self._flusher.forget(self._outbound)
