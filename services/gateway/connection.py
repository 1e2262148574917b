"""One WebSocket, from after its handshake to its close, the same for every dialect.

Whatever the other end does (vanish, send garbage, stop reading) ends at most this socket.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import structlog
from aiohttp import WSCloseCode, WSMsgType, web
from prometheus_client import Counter

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
from services.gateway.hub import Hub, Watcher
from services.gateway.outbound import Flusher, Outbound
from services.gateway.projection import Projection
from shared.errors import ApiError, Forbidden, NotFound, Unauthorized
from shared.identity import Principal, principal_from
from shared.lifecycle import TaskSet
from shared.serve import AUTHENTICATOR
from shared.streams import REDIS_FAILURES

__all__ = ["Connection"]

log = structlog.stdlib.get_logger(__name__)

_LOGIN_S: Final = 10.0
_ABORT_S: Final = 5.0
"""How long a closed socket may linger before it is cut."""

UNAUTHORIZED: Final = 4001
FORBIDDEN: Final = 4003
NOT_FOUND: Final = 4004

CLOSED = Counter("gateway_closed_total", "Sockets closed by us, by code.", ["code"])


class Closing(Exception):
    """The socket must be closed; its text, if any, goes to the client as an error first."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code: Final = code
        self.message: Final = message


class Connection:
    """One socket.

    Args:
        request: The handshake.
        ws: Its answer, prepared.
        dialect: What is spoken on it.
        hub: Delivers events.
        projection: Knows the sessions of a user.
        flusher: Writes to all sockets.
        tasks: Keeps the task that closes it.

    Raises:
        ConnectionResetError: The client has gone already.

    """

    def __init__(
        self,
        request: web.Request,
        ws: web.WebSocketResponse,
        dialect: Dialect,
        *,
        hub: Hub,
        projection: Projection,
        flusher: Flusher,
        tasks: TaskSet,
    ) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        self._request: Final = request
        self._ws: Final = ws
        self._dialect: Final = dialect
        self._hub: Final = hub
        self._projection: Final = projection
        self._flusher: Final = flusher
        self._tasks: Final = tasks
        self._loop: Final = asyncio.get_running_loop()
        self._transport: Final = transport
        self._upload_id: Final = request.match_info.get("upload_id", "")
        self._outbound: Final = Outbound(transport, flusher, self._too_slow)
        self._watcher: Watcher | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._closing = False
        self._closed: Final = asyncio.Event()
        self.heard_at = self._loop.time()
        self.asked_at: float | None = None

    async def run(self) -> None:
        """Serve the socket until either side ends it."""
        try:
            caller, first = await self._login()
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
            if not self._transport.is_closing():
                log.warning("socket_without_redis", error=repr(exc))
                self.close(WSCloseCode.TRY_AGAIN_LATER, "try again later")
        finally:
            if self._closing:  # the end of the handler must not cut the closing handshake
                await self._closed.wait()

    async def _login(self) -> tuple[Principal, Message | None]:
        """Return who is calling, from the handshake or from the first message.

        A first message may ask for something besides; it is returned too.

        Raises:
            Closing: Nobody, or with bad credentials.

        """
        auth = self._request.app[AUTHENTICATOR]
        try:
            caller = await principal_from(auth, self._request)
            if caller is not None:
                return caller, None
            async with asyncio.timeout(_LOGIN_S):
                text = await self._next_text()
            first = self._dialect.parse(text) if text is not None else None
            if first is None or first.token is None:
                raise Closing(UNAUTHORIZED, "Authentication is required.")
            return await auth.from_token(first.token), first
        except Unauthorized as exc:
            raise Closing(UNAUTHORIZED, exc.message) from None
        except TimeoutError:
            raise Closing(UNAUTHORIZED, "Authentication is required.") from None

    async def _begin(self, watcher: Watcher) -> None:
        """Watch what the path names: one upload, or all of the caller's."""
        try:
            if self._upload_id:
                await self._hub.subscribe(watcher, self._upload_id)
                return
            caller = watcher.caller
            recorded = await self._projection.sessions_of(caller.user_id)
            self._hub.follow(watcher, [s for s in recorded if s.tenant == caller.tenant])
        except Forbidden as exc:
            raise Closing(FORBIDDEN, exc.message) from None
        except NotFound as exc:
            raise Closing(NOT_FOUND, exc.message) from None

    async def _next_text(self) -> str | None:
        """Return the next text message, ``None`` at the end; answer pings, refuse binary."""
        while True:
            message = await self._ws.receive()
            self.heard_at = self._loop.time()
            if message.type is WSMsgType.TEXT:
                return str(message.data)
            if message.type is WSMsgType.PING:
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
                self._hub.unsubscribe(watcher, upload_id)
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
        """Go on under a newer token of the same caller.

        Raises:
            Closing: The token is bad, or somebody else's. Rights never outlive a failure.

        """
        try:
            caller = await self._request.app[AUTHENTICATOR].from_token(token)
        except Unauthorized as exc:
            raise Closing(UNAUTHORIZED, exc.message) from None
        if (caller.user_id, caller.tenant) != (watcher.caller.user_id, watcher.caller.tenant):
            raise Closing(FORBIDDEN, "The token is somebody else's.")
        watcher.caller = caller
        self._end_with_token(caller)

    async def _subscribe(self, watcher: Watcher, upload_id: str) -> None:
        try:
            await self._hub.subscribe(watcher, upload_id)
        except ApiError as exc:
            self._reply("error", upload_id=upload_id, message=exc.message)
        else:
            self._reply("subscribed", upload_id=upload_id)

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

    def ping(self, frame: bytes) -> None:
        """Write a ping, unless the socket is busy: what it owes us then is to read."""
        if not self._transport.is_closing() and not self._transport.get_write_buffer_size():
            self._transport.write(frame)

    def _too_slow(self) -> None:
        self.close(WSCloseCode.TRY_AGAIN_LATER, "too slow")

    def close(self, code: int, reason: str) -> None:
        """Begin to close the socket; returns at once."""
        if self._closing:
            return
        self._closing = True
        CLOSED.labels(int(code)).inc()
        self._outbound.flush()
        self._tasks.start(self._close(code, reason))

    async def _close(self, code: int, reason: str) -> None:
        # A peer that does not read never sees the close frame; it must not keep us waiting.
        cut = self._loop.call_later(_ABORT_S, self.abort)
        try:
            await self._ws.close(code=code, message=reason.encode()[:120], drain=False)
        finally:
            cut.cancel()
            if not self._transport.is_closing() and self._transport.get_write_buffer_size():
                self.abort()
            self._closed.set()

    def abort(self) -> None:
        """Cut the connection."""
        self._transport.abort()

    def forget(self) -> None:
        """Leave no trace of the socket in what outlives it."""
        if self._expiry is not None:
            self._expiry.cancel()
        if self._watcher is not None:
            self._hub.drop(self._watcher)
        self._flusher.forget(self._outbound)
