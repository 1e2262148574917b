"""The sockets of one process: who is let in, how many there are, and how all are closed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, Self

import structlog
from aiohttp import WSCloseCode, hdrs, web
from prometheus_client import Counter, Gauge

from services.gateway.closing import Closing
from services.gateway.connection import Connection, Surroundings
from services.gateway.dialects.protocol import Dialect
from services.gateway.heartbeat import Heartbeat
from services.gateway.keepalive import Alive, Keepalive
from services.gateway.login import from_handshake
from services.gateway.outbound import Flusher
from services.gateway.own_wire import OwnWire
from services.gateway.relay import Relay
from services.gateway.settings import Settings
from services.gateway.takeover import Handover, why_not
from services.gateway.wire import PumpedWire
from shared.cors import origin_allowed
from shared.errors import Forbidden, Unavailable
from shared.identity import (
    BEARER_SUBPROTOCOL,
    Authenticator,
    Principal,
    authenticates_itself,
)
from shared.lifecycle import TaskSet
from shared.serve import CORS

__all__ = ["SOCKETS", "Sockets", "add_socket_routes"]

log = structlog.stdlib.get_logger(__name__)

_MAX_MESSAGE: Final = 64 * 1024
_CLOSE_S: Final = 2.0
"""How long a peer has for the closing handshake."""

OPEN = Gauge("gateway_sockets", "Open sockets.")
STALLED = Gauge("gateway_stalled", "Open sockets that do not drain.")
REFUSED = Counter("gateway_refused_total", "Handshakes refused, by reason.", ["reason"])


class Held(Alive, Protocol):
    """What is open between a client and this process."""

    @property
    def tenant(self) -> str | None:
        """Whose it is, once that is known."""

    def close(self, code: int, reason: str) -> None:
        """Begin to end it; returns at once."""

    def abort(self) -> None:
        """Cut the connection."""


class Sockets:
    """The sockets of one process.

    Args:
        relay: Delivers events.
        auth: Knows good credentials.
        settings: How many sockets there may be, and how long each thing may take.

    """

    def __init__(self, relay: Relay, auth: Authenticator, settings: Settings) -> None:
        self.around: Final = Surroundings(
            relay=relay,
            flusher=Flusher(
                asyncio.get_running_loop(), stall_limit_s=settings.websocket_stall_timeout
            ),
            auth=auth,
            tasks=TaskSet("conversations"),
            closings=TaskSet("closings"),
            login_s=settings.websocket_auth_timeout,
        )
        self.keepalive: Final = Keepalive(
            interval_s=settings.websocket_ping_interval,
            timeout_s=settings.websocket_ping_timeout,
            on_dead=self._on_dead,
        )
        self.heartbeat: Final = Heartbeat(interval_s=settings.websocket_heartbeat_interval)
        self._limit: Final = settings.websocket_max_connections_total
        self._open: Final[set[Held]] = set()
        self._closing = False
        self._takes_over = False
        self._may_take_over: Final = settings.websocket_reader == "auto"
        STALLED.set_function(lambda: self.around.flusher.stalled)

    async def prepared(self) -> Self:
        """Return these, once it is known whether they can be read without aiohttp."""
        if self._may_take_over:
            fault = await why_not()
            self._takes_over = fault is None
            if fault is not None:
                log.warning("sockets_read_by_aiohttp", reason=fault)
        return self

    def takes_over(self, request: web.Request) -> bool:
        """Whether a socket is served without aiohttp; one on TLS is not."""
        transport = request.transport
        return (
            self._takes_over
            and transport is not None
            and transport.get_extra_info("sslcontext") is None
        )

    def _on_dead(self, one: Alive) -> None:
        if isinstance(one, Connection):  # others are not asked for an answer
            one.abort()

    def admit(self, request: web.Request) -> None:
        """Refuse a handshake that cannot become a socket.

        Raises:
            Unavailable: The process is full, or about to end.
            Forbidden: The page is not one that may.

        """
        if self._closing:
            REFUSED.labels("closing").inc()
            raise Unavailable("The server restarts.")
        if self.is_full:
            REFUSED.labels("full").inc()
            raise Unavailable("No more sockets here.", retry_after=5)
        if not origin_allowed(request.app[CORS], request):
            REFUSED.labels("origin").inc()
            raise Forbidden("This page may not open a socket.")

    def add(self, one: Held) -> None:
        """Count a socket in."""
        self._open.add(one)
        self.keepalive.add(one)
        if isinstance(one, Connection):  # others have none in their dialects
            self.heartbeat.add(one)
        OPEN.set(len(self._open))

    def remove(self, one: Held) -> None:
        """Count it out."""
        self._open.discard(one)
        self.keepalive.remove(one)
        if isinstance(one, Connection):
            self.heartbeat.remove(one)
        OPEN.set(len(self._open))

    def open_of(self, tenant: str) -> int:
        """Return how many sockets are open that a tenant's users have logged in on."""
        return sum(one.tenant == tenant for one in self._open)

    @property
    def is_full(self) -> bool:
        """Whether no more sockets are let in."""
        return len(self._open) >= self._limit

    async def take_over(
        self,
        request: web.Request,
        protocol: str | None,
        dialect: Dialect,
        caller: Principal | Closing | None,
    ) -> web.StreamResponse:
        """Answer a handshake and serve the socket without aiohttp; returns at once."""
        answer = Handover(request, protocol)
        taken = await answer.take(request)
        if taken is None:
            return answer
        transport, tail = taken
        wire = OwnWire(transport, limit=_MAX_MESSAGE, on_gone=lambda: self._gone(connection))
        connection = Connection(wire, dialect, subject_of(request), self.around)
        self.add(connection)
        connection.open(caller)
        wire.start(connection, tail)
        return answer

    async def serve_pumped(
        self,
        request: web.Request,
        ws: web.WebSocketResponse,
        dialect: Dialect,
        caller: Principal | Closing | None,
    ) -> web.StreamResponse:
        """Serve a socket that aiohttp reads, until it ends."""
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        wire = PumpedWire(ws, transport)
        connection = Connection(wire, dialect, subject_of(request), self.around)
        self.add(connection)
        try:
            connection.open(caller)
            await wire.serve(connection)
        finally:
            self._gone(connection)
        return ws

    def _gone(self, one: Connection) -> None:
        self.remove(one)
        one.forget()

    async def close_all(self) -> None:
        """Tell all to reconnect elsewhere, at once, waiting for nobody longer than for all."""
        self._closing = True
        for one in list(self._open):
            one.close(WSCloseCode.SERVICE_RESTART, "restarting")
        await self.around.closings.join()


SOCKETS: Final = web.AppKey("sockets", Sockets)


def add_socket_routes(router: web.UrlDispatcher, dialects: tuple[Dialect, ...]) -> None:
    """Register the paths of the dialects."""
    by_path: dict[str, list[Dialect]] = {}
    for dialect in dialects:
        for path in dialect.paths:
            by_path.setdefault(path, []).append(dialect)
    for path, spoken in by_path.items():
        router.add_get(path, _route(tuple(spoken)), allow_head=False)


def subject_of(request: web.Request) -> str:
    """Return what the path names; empty: nothing."""
    return next(iter(request.match_info.values()), "")


def _chosen(dialects: tuple[Dialect, ...], request: web.Request) -> Dialect:
    """Return the dialect whose subprotocol the client offers first, else the first one."""
    lines = request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, [])
    offered = [item.strip() for line in lines for item in line.split(",")]
    named = {one.subprotocol: one for one in dialects}
    return next((named[item] for item in offered if item in named), dialects[0])


def _route(
    dialects: tuple[Dialect, ...],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    @authenticates_itself
    async def open_socket(request: web.Request) -> web.StreamResponse:
        sockets = request.app[SOCKETS]
        sockets.admit(request)
        dialect = _chosen(dialects, request)
        caller = await from_handshake(sockets.around.auth, request)
        spoken = (dialect.subprotocol,) if dialect.subprotocol is not None else ()
        ws = web.WebSocketResponse(
            protocols=(*spoken, BEARER_SUBPROTOCOL),
            autoping=False,
            compress=False,
            max_msg_size=_MAX_MESSAGE,
            timeout=_CLOSE_S,
        )
        ready = ws.can_prepare(request)
        if ready.ok and sockets.takes_over(request):
            return await sockets.take_over(request, ready.protocol, dialect, caller)
        await ws.prepare(request)
        return await sockets.serve_pumped(request, ws, dialect, caller)

    return open_socket
