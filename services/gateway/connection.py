"""One WebSocket, from after its handshake to its close, the same for every dialect.

Whatever the other end does (vanish, send garbage, stop reading) ends at most this socket. A
socket that nobody speaks on has no task: what it costs is this object and what it watches.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiohttp import WSCloseCode
from prometheus_client import Counter

from services.gateway.admission import Place
from services.gateway.closing import UNAUTHORIZED, Closing
from services.gateway.conversation import Conversation
from services.gateway.dialects.protocol import Dialect, Message
from services.gateway.flusher import Flusher
from services.gateway.frames import frame
from services.gateway.hub import Watcher
from services.gateway.outbound import Outbound
from services.gateway.relay import Relay
from services.gateway.wire import Wire
from shared.identity import Authenticator, Principal
from shared.lifecycle import TaskSet
from shared.streams import REDIS_FAILURES
from shared.token_bucket import Bucket, Limit, take

__all__ = ["ABORT_S", "CLOSED", "Connection", "Surroundings"]

log = structlog.stdlib.get_logger(__name__)

ABORT_S: Final = 3.0
"""How long a closed socket may linger before it is cut."""
_MOST_WAITING: Final = 256
"""Messages of one client that may wait while the one before them is obeyed."""

_HEARTBEAT: Final = object()
"""What heartbeats are conflated under."""

CLOSED = Counter("gateway_closed_total", "Sockets closed by us, by code.", ["code"])


@dataclass(frozen=True)
class Surroundings:
    """What all sockets of a process share."""

    relay: Relay
    """Delivers events, knows the sessions of a user."""
    flusher: Flusher
    """Writes to all sockets."""
    auth: Authenticator
    tasks: TaskSet
    """What sockets do for their clients."""
    closings: TaskSet
    """What closes them."""
    login_s: float
    """How long it may take to say who is calling."""
    message_limit: Limit
    """How often a client may say something."""
    most_subscriptions: int
    """Uploads that one socket may ask for at a time."""


class Connection:
    """One socket.

    Args:
        wire: What it speaks over.
        dialect: What is spoken on it.
        subject: What the path names; empty: nothing.
        around: What all sockets share.
        place: Its right to be there; given up when it has gone.

    """

    __slots__ = (
        *("_around", "_bucket", "_closing", "_conversation", "_cut", "_dialect", "_expiry"),
        *("_inbox", "_loop", "_outbound", "_place", "_subject", "_transport", "_wire"),
        *("_working", "asked_at", "heard_at"),
    )

    def __init__(
        self,
        wire: Wire,
        dialect: Dialect,
        subject: str,
        around: Surroundings,
        place: Place,
    ) -> None:
        self._wire: Final = wire
        self._transport: Final = wire.transport
        self._dialect: Final = dialect
        self._subject: Final = subject
        self._around: Final = around
        self._place: Final = place
        self._loop: Final = asyncio.get_running_loop()
        self._outbound: Final = Outbound(
            wire.transport, around.flusher, self._too_slow, dialect, wire.send
        )
        self._conversation: Final = Conversation(
            subject,
            around,
            claim=place.claim,
            make_watcher=self._make_watcher,
            reply=self._reply,
            fail=self._fail,
        )
        self._inbox: deque[Message] | None = None
        self._bucket: Bucket | None = None
        self._working = False
        self._expiry: asyncio.TimerHandle | None = None
        self._cut: asyncio.TimerHandle | None = None
        self._closing = False
        self.heard_at = self._loop.time()
        self.asked_at: float | None = None

    @property
    def tenant(self) -> str | None:
        """The tenant of who is logged in; ``None`` before."""
        watcher = self._conversation.watcher
        return watcher.caller.tenant if watcher is not None else None

    # What comes in.

    def open(self, caller: Principal | Closing | None) -> None:
        """Begin: with the caller, if the handshake told who it is; with the refusal, if so."""
        if isinstance(caller, Closing):
            self._fail(caller)
        elif caller is None:
            self._expiry = self._loop.call_later(
                self._around.login_s,
                self._fail,
                Closing(UNAUTHORIZED, "Authentication is required."),
            )
        else:
            self._working = True
            self._around.tasks.start(self._work(caller))

    def on_sign_of_life(self) -> None:
        """Note that the other end is there."""
        self.heard_at = self._loop.time()
        if self._transport.get_write_buffer_size():  # it talks, but may never read
            self._around.flusher.expect_drain(self._outbound)

    def on_text(self, text: str) -> None:
        """Obey a message, after those before it."""
        self._take(self._dialect.parse(text))

    def on_binary(self, data: bytes) -> None:
        """Obey a binary message, after those before it."""
        self._take(self._dialect.parse_binary(data))

    def _take(self, message: Message) -> None:
        if self._closing:
            return
        self._bucket, verdict = take(self._bucket, self._around.message_limit, self.heard_at)
        if not verdict.allowed:
            self.close(WSCloseCode.POLICY_VIOLATION, "too many messages")
            return
        if self._inbox is None:
            self._inbox = deque()
        if len(self._inbox) >= _MOST_WAITING:
            self.close(WSCloseCode.POLICY_VIOLATION, "too many messages")
            return
        self._inbox.append(message)
        if not self._working:
            self._working = True
            self._around.tasks.start(self._work(None))

    async def _work(self, caller: Principal | None) -> None:
        """Obey what has come; ends when there is nothing more."""
        try:
            if caller is not None and not self._closing:
                await self._begin(caller)
            while self._inbox and not self._closing:
                await self._conversation.obey(self._inbox.popleft())
        except (Closing, *REDIS_FAILURES) as exc:
            self._fail(exc)
        finally:
            self._working = False
            self._inbox = None
            if self._closing:  # it may have become a watcher after it had left
                self._leave()

    async def _begin(self, caller: Principal) -> None:
        if self._dialect.says_authenticated:
            self._reply("authenticated", "", {"message": "Authentication successful"})
        await self._conversation.begin(caller)

    def _make_watcher(self, caller: Principal) -> Watcher:
        return Watcher(self._dialect, self._outbound, caller, on_caller=self._end_with_token)

    def _end_with_token(self, caller: Principal) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if caller.expires_at is not None and not self._closing:
            left_s = max(caller.expires_at - time.time(), 0)
            self._expiry = self._loop.call_later(
                left_s, self.close, UNAUTHORIZED, "the token has expired"
            )

    # The way out.

    def _reply(self, kind: str, subject: str, data: dict[str, Any]) -> None:
        watcher = self._conversation.watcher
        payload = self._dialect.reply(
            kind,
            subject=subject or self._subject,
            caller=watcher.caller if watcher is not None else None,
            data=data,
        )
        self._outbound.put(frame(payload, binary=self._dialect.binary))

    def ping(self, frame: bytes) -> bool:
        """Write a ping and return True, unless the socket is busy with what it got before."""
        if self._transport.is_closing():
            return False
        if not self._wire.send(frame):
            self._around.flusher.expect_drain(self._outbound)
            return False
        return True

    @property
    def dialect(self) -> Dialect:
        """What is spoken here."""
        return self._dialect

    @property
    def written_at(self) -> float:
        """When the last message went out; the loop's clock, seconds."""
        return self._outbound.written_at

    def beat(self, framed: bytes) -> None:
        """Write a heartbeat, unless older messages still wait."""
        if not self._closing and self._outbound.stalled_at is None:
            self._outbound.put_latest(_HEARTBEAT, framed)

    def _too_slow(self) -> None:
        self.close(WSCloseCode.TRY_AGAIN_LATER, "too slow")

    def _fail(self, exc: BaseException) -> None:
        """End the socket: the client is told why, or to come again while Redis is away."""
        if self._closing:
            return
        if isinstance(exc, Closing):
            self._reply("error", "", {"message": exc.message})
            self.close(exc.code, exc.message)
        elif not self._transport.is_closing():
            log.warning("socket_without_redis", error=repr(exc))
            self.close(WSCloseCode.TRY_AGAIN_LATER, "try again later")

    @property
    def is_closing(self) -> bool:
        """Whether ``close`` has been called."""
        return self._closing

    def close(self, code: int, reason: str) -> None:
        """Begin to close the socket; returns at once. Nothing is delivered to it any more."""
        if self._closing:
            return
        self._closing = True
        CLOSED.labels(int(code)).inc()
        self._outbound.finish()
        self._leave()
        self._around.closings.start(self._close(code, reason))

    async def _close(self, code: int, reason: str) -> None:
        # A peer that does not read never sees the close frame; it must not keep us waiting.
        self._cut = self._loop.call_later(ABORT_S, self.abort)
        try:
            await self._wire.close(code, reason)
        finally:
            if not self._transport.get_write_buffer_size():
                self._cut.cancel()

    def abort(self) -> None:
        """Cut the connection."""
        self._transport.abort()

    def _leave(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if self._conversation.watcher is not None:
            self._around.relay.hub.forget(self._conversation.watcher)

    def forget(self) -> None:
        """Leave no trace of the socket in what outlives it."""
        self._closing = True
        if self._cut is not None:
            self._cut.cancel()
        self._leave()
        self._around.flusher.forget(self._outbound)
        self._place.release()
