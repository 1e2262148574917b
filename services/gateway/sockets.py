"""The sockets of one process: who is let in, how many there are, and how all are closed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, Self

import structlog
from aiohttp import HttpVersion11, WSCloseCode, hdrs, web

from services.gateway.admission import REFUSED, Admission, Place
from services.gateway.closing import Closing
from services.gateway.connection import ABORT_S, Connection, Surroundings
from services.gateway.dialects.protocol import Dialect
from services.gateway.errors import UpgradeRequired
from services.gateway.figures import Figures
from services.gateway.flusher import Flusher
from services.gateway.heartbeat import Heartbeat
from services.gateway.keepalive import Alive, Keepalive
from services.gateway.lifetimes import Lifetimes, Mortal
from services.gateway.login import from_handshake
from services.gateway.own_wire import OwnWire
from services.gateway.relay import Relay
from services.gateway.settings import Settings
from services.gateway.takeover import Handover, why_not
from services.gateway.wire import PumpedWire
from shared.cors import origin_allowed
from shared.credentials import is_handshake
from shared.errors import Forbidden, InvalidRequest
from shared.identity import (
    BEARER_SUBPROTOCOL,
    Authenticator,
    Principal,
    authenticates_itself,
)
from shared.lifecycle import TaskSet
from shared.serve import CORS
from shared.token_bucket import limit_of

__all__ = ["SOCKETS", "Sockets", "add_socket_routes"]

log = structlog.stdlib.get_logger(__name__)

_MAX_MESSAGE: Final = 64 * 1024
_CLOSE_S: Final = 2.0
"""How long a peer has for the closing handshake."""
_STEP_S: Final = 0.02
"""Sockets that are due within it are closed together."""


class Held(Alive, Protocol):
    """What is open between a client and this process."""

    @property
    def tenant(self) -> str | None:
        """Whose it is, once that is known."""

    @property
    def dialect(self) -> Dialect:
        """What is spoken."""

    def close(self, code: int, reason: str) -> None:
        """Begin to end it; returns at once."""

    def abort(self) -> None:
        """Cut the connection."""


class Sockets:
    """The sockets of one process.

    Args:
        relay: Delivers events.
        auth: Knows good credentials.
        admission: Knows how many sockets there may be.
        settings: How much each of them may do, and how long each thing may take.

    """

    def __init__(
        self, relay: Relay, auth: Authenticator, admission: Admission, settings: Settings
    ) -> None:
        self.around: Final = Surroundings(
            relay=relay,
            flusher=Flusher(
                asyncio.get_running_loop(),
                stall_limit_s=settings.websocket_stall_timeout,
                on_flushed=relay.tell,
            ),
            auth=auth,
            tasks=TaskSet("conversations"),
            closings=TaskSet("closings"),
            login_s=settings.websocket_auth_timeout,
            message_limit=limit_of(settings.websocket_message_rate),
            most_subscriptions=settings.websocket_max_subscriptions,
        )
        self.admission: Final = admission
        self.keepalive: Final = Keepalive(
            interval_s=settings.websocket_ping_interval,
            timeout_s=settings.websocket_ping_timeout,
            on_dead=self._on_dead,
        )
        self.heartbeat: Final = Heartbeat(interval_s=settings.websocket_heartbeat_interval)
        self.lifetimes: Final = Lifetimes(
            most_s=settings.websocket_max_age, on_old=self._on_old
        )
        self.window_s: Final = min(
            settings.websocket_drain_window, max(settings.shutdown_timeout - ABORT_S, 0)
        )
        """How long it takes to close all."""
        self.unacknowledged_s: Final = max(
            settings.websocket_ping_timeout, settings.websocket_stall_timeout
        )
        """How long who is not asked for an answer may leave a message unacknowledged."""
        self._open: Final[set[Held]] = set()
        self._takes_over = False
        self._may_take_over: Final = settings.websocket_reader == "auto"
        self.figures: Final = Figures(relay.hub, self.around.flusher)

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

    def _on_old(self, one: Mortal) -> None:
        one.close(WSCloseCode.SERVICE_RESTART, "reconnect")

    def enter(self, request: web.Request) -> Place:
        """Return a place for what a handshake opens, before it is known who is calling.

        Raises:
            Unavailable: The process is full, or about to end.
            Forbidden: The page is not one that may.

        """
        place = self.admission.enter()
        if not origin_allowed(request.app[CORS], request):
            place.release()
            REFUSED.labels("origin").inc()
            raise Forbidden("This page may not open a socket.")
        return place

    def add(self, one: Held) -> None:
        """Count a socket in."""
        self._open.add(one)
        self.keepalive.add(one)
        if isinstance(one, Connection):  # others have none in their dialects
            self.heartbeat.add(one)
        loop = asyncio.get_running_loop()
        self.lifetimes.add(one, loop.time())
        self.figures.opened(one.dialect)
        if self.admission.closing:  # it was let in before; once it is open, it ends as all do
            loop.call_soon(one.close, WSCloseCode.SERVICE_RESTART, "restarting")

    def remove(self, one: Held) -> None:
        """Count it out."""
        self._open.discard(one)
        self.keepalive.remove(one)
        if isinstance(one, Connection):
            self.heartbeat.remove(one)
        self.lifetimes.remove(one)
        self.figures.gone(one.dialect)

    def open_of(self, tenant: str) -> int:
        """Return how many sockets are open that a tenant's users have logged in on."""
        return sum(one.tenant == tenant for one in self._open)

    def gone(self, one: Connection) -> None:
        """Forget a socket that has ended."""
        self.remove(one)
        one.forget()

    async def close_all(self, *, window_s: float = 0) -> None:
        """Tell all to reconnect elsewhere, waiting for nobody longer than for all.

        They are told at moments spread over the window (seconds), in no order, so that they do
        not all come back at once; whoever is still there gets events until then.
        """
        self.admission.closing = True
        loop = asyncio.get_running_loop()
        begun = loop.time()
        waiting = [(random.uniform(0, window_s), one) for one in self._open]  # noqa: S311
        waiting.sort(key=lambda due: due[0], reverse=True)
        while waiting and self._open:
            passed = loop.time() - begun
            while waiting and waiting[-1][0] <= passed:
                one = waiting.pop()[1]
                if one in self._open:
                    one.close(WSCloseCode.SERVICE_RESTART, "restarting")
            if waiting:
                await asyncio.sleep(max(waiting[-1][0] - passed, _STEP_S))
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


def _require_handshake(request: web.Request) -> None:
    """Refuse what aiohttp lets pass, fails at, or does not explain (RFC 6455 section 4.2.1).

    Raises:
        UpgradeRequired: It asks for something else, or for another version.
        InvalidRequest: It is a broken handshake.

    """
    if not is_handshake(request):
        raise UpgradeRequired("This is a WebSocket: send a handshake.")
    if request.version < HttpVersion11:
        raise InvalidRequest("A handshake needs HTTP/1.1.")
    if request.headers.getall(hdrs.SEC_WEBSOCKET_VERSION, []) != ["13"]:
        raise UpgradeRequired("Only version 13 of the protocol is spoken.")
    if not all(key.isascii() for key in request.headers.getall(hdrs.SEC_WEBSOCKET_KEY, [])):
        raise InvalidRequest("Sec-WebSocket-Key must be 16 bytes in base64.")


def _route(
    dialects: tuple[Dialect, ...],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    @authenticates_itself
    async def open_socket(request: web.Request) -> web.StreamResponse:
        sockets = request.app[SOCKETS]
        place = sockets.enter(request)
        try:
            dialect = _chosen(dialects, request)
            caller = await from_handshake(sockets.around.auth, request)
            if isinstance(caller, Principal):
                await place.claim(caller)
            return await _opened(request, dialect, caller, place)
        except BaseException:
            place.release()
            raise

    return open_socket


async def _opened(
    request: web.Request, dialect: Dialect, caller: Principal | Closing | None, place: Place
) -> web.StreamResponse:
    sockets = request.app[SOCKETS]
    _require_handshake(request)
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
        return await _taken_over(request, ready.protocol, dialect, caller, place)
    await ws.prepare(request)
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    wire = PumpedWire(ws, transport)
    connection = Connection(wire, dialect, subject_of(request), sockets.around, place)
    sockets.add(connection)
    try:
        connection.open(caller)
        await wire.serve(connection)
    finally:
        sockets.gone(connection)
    return ws


async def _taken_over(
    request: web.Request,
    protocol: str | None,
    dialect: Dialect,
    caller: Principal | Closing | None,
    place: Place,
) -> web.StreamResponse:
    """Answer a handshake and serve the socket without aiohttp; returns at once."""
    sockets = request.app[SOCKETS]
    answer = Handover(request, protocol)
    taken = await answer.take(request)
    if taken is None:
        place.release()
        return answer
    transport, tail = taken
    wire = OwnWire(transport, limit=_MAX_MESSAGE, on_gone=lambda: sockets.gone(connection))
    connection = Connection(wire, dialect, subject_of(request), sockets.around, place)
    sockets.add(connection)
    connection.open(caller)
    wire.start(connection, tail)
    return answer
