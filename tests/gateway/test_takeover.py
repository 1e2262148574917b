"""How aiohttp lets go of a connection: what the gateway relies on, on both event loops."""

from __future__ import annotations

import asyncio
import gc
import logging
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
from aiohttp import hdrs, web
from aiohttp.web_protocol import RequestHandler
from pytest_aiohttp import AiohttpClient
from redis.asyncio import Redis
from structlog.testing import capture_logs

from services.gateway import frames
from services.gateway.app import create_app
from services.gateway.own_wire import OwnWire
from services.gateway.settings import Settings
from services.gateway.takeover import Handover, why_not
from tests.gateway.conftest import ORIGIN, bearer
from tests.gateway.loops import on_both_loops
from tests.gateway.raw_socket import CLOSE, TEXT, Frame, RawSocket, frame
from tests.processes import RedisServer, ServiceProcess
from tests.shared.waiting import eventually

IDLE_S: Final = 0.2
"""After so long aiohttp ends an idle connection that is its own."""
HANDSHAKE: Final = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Echo:
    """Says back what it hears."""

    is_closing = False

    def __init__(self, transport: asyncio.Transport) -> None:
        self.gone: Final = asyncio.Event()
        self.wire: Final = OwnWire(transport, limit=1 << 20, on_gone=self.gone.set)

    def on_sign_of_life(self) -> None:
        """Nothing is to be noted."""

    def on_text(self, text: str) -> None:
        """Say it back."""
        self.wire.send(frames.frame(text.encode()))

    def on_binary(self, data: bytes) -> None:
        """None is sent."""


class Served:
    """An application of aiohttp whose sockets are taken over."""

    def __init__(self) -> None:
        self.echoes: Final[list[Echo]] = []
        self.runner: web.AppRunner
        self.port = 0

    async def take_over(self, request: web.Request) -> web.StreamResponse:
        """Handle a handshake."""
        answer = Handover(request, None)
        taken = await answer.take(request)
        if taken is not None:
            echo = Echo(taken[0])
            self.echoes.append(echo)
            echo.wire.start(echo, taken[1])
        return answer

    async def is_let_go(self) -> None:
        """Return when aiohttp knows of no connection any more."""
        server = self.runner.server
        assert server is not None
        await eventually(lambda: not server.connections, "aiohttp has let go")


@asynccontextmanager
async def served() -> AsyncIterator[Served]:
    """Yield a server on loopback; what is logged at its end counts as well."""
    one = Served()
    app = web.Application()
    app.router.add_get("/ws", one.take_over)
    one.runner = web.AppRunner(app, keepalive_timeout=IDLE_S, shutdown_timeout=5.0)
    await one.runner.setup()
    await web.TCPSite(one.runner, "127.0.0.1", 0).start()
    one.port = one.runner.addresses[0][1]
    try:
        yield one
    finally:
        await one.runner.cleanup()
        for echo in one.echoes:
            echo.wire.transport.abort()


@asynccontextmanager
async def said_at_once(port: int, data: bytes) -> AsyncIterator[asyncio.StreamReader]:
    """Connect, and send so much in one segment, or as few as there can be."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        yield reader
    finally:
        writer.close()


def _handlers() -> list[object]:
    return [one for one in gc.get_objects() if type(one) is RequestHandler]


@on_both_loops
async def test_aiohttp_lets_go(caplog: pytest.LogCaptureFixture) -> None:
    """No connection, no task, no object and no timer of aiohttp's is left, nor a complaint."""
    tasks = len(asyncio.all_tasks())
    others = {id(one): one for one in _handlers()}  # what other tests still hold
    async with served() as server, RawSocket.opened(server.port, "/ws") as peer:
        assert peer.status == 101
        await server.is_let_go()
        assert len(asyncio.all_tasks()) == tasks
        gc.collect()
        assert not [one for one in _handlers() if id(one) not in others]
        await asyncio.sleep(3 * IDLE_S)
        await peer.say("still here")
        assert await peer.frame() == Frame(TEXT, b"still here")
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


@on_both_loops
async def test_what_comes_with_the_handshake() -> None:
    """Frames in the same segment are heard, also half of one, before those that follow."""
    whole, cut = frame(TEXT, b"first"), frame(TEXT, b"second")
    async with served() as server, RawSocket.opened(server.port, "/ws"):
        sent = HANDSHAKE + whole + cut[:4]
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)
        await reader.readuntil(b"\r\n\r\n" + frames.frame(b"first"))
        writer.write(cut[4:])
        await reader.readuntil(frames.frame(b"second"))
        writer.close()


@on_both_loops
async def test_much_that_comes_with_the_handshake() -> None:
    """More than aiohttp wants to keep stops its reading; ours goes on from there."""
    messages = b"".join(frame(TEXT, b"%06d" % n + b"x" * 60_000) for n in range(20))
    async with served() as server, said_at_once(server.port, HANDSHAKE + messages) as reader:
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        for n in range(20):
            said = frames.frame(b"%06d" % n + b"x" * 60_000)
            assert await asyncio.wait_for(reader.readexactly(len(said)), 10) == said


@on_both_loops
async def test_the_end_of_aiohttp() -> None:
    """Its shutdown neither waits for what it has let go of nor ends it."""
    async with served() as server, RawSocket.opened(server.port, "/ws") as peer:
        await server.is_let_go()
        started = time.monotonic()
        await server.runner.cleanup()
        assert time.monotonic() - started < 10
        await peer.say("still here")
        assert await peer.frame() == Frame(TEXT, b"still here")
        await peer.send(frame(CLOSE, struct.pack("!H", 1000)))
        assert await peer.end(answers=False) == 1000
        await asyncio.wait_for(server.echoes[0].gone.wait(), 5)


@on_both_loops
async def test_the_next_request_of_a_connection() -> None:
    """A handshake may come on a connection that has been asked for other things before."""
    async with served() as server:
        before = b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n"
        async with said_at_once(server.port, before * 2 + HANDSHAKE) as reader:
            for status in (b"404", b"404", b"101"):
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
                assert head.split()[1] == status
                if status == b"404":
                    await reader.readuntil(b"404: Not Found")
        await server.is_let_go()


@on_both_loops
async def test_who_goes_during_the_handshake(caplog: pytest.LogCaptureFixture) -> None:
    """A client that vanishes before its answer costs neither an object nor a word."""
    async with served() as server:
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(HANDSHAKE)
            writer.transport.abort()
        await asyncio.sleep(0.1)
        await server.is_let_go()
        await asyncio.wait_for(asyncio.gather(*(one.gone.wait() for one in server.echoes)), 5)
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


async def test_headers_of_the_answer(gateway: ServiceProcess) -> None:
    """What every answer carries stands on the answer to a handshake, and no body does."""
    headers = [*bearer().items(), ("Origin", ORIGIN), ("X-Request-ID", "mine")]
    async with RawSocket.opened(gateway.port, "/ws/upload-progress", headers=headers) as peer:
        found = peer.headers
        assert peer.status == 101
        assert found["Sec-WebSocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert (found[hdrs.UPGRADE], found[hdrs.CONNECTION]) == ("websocket", "upgrade")
        assert found["X-Request-ID"] == "mine"
        assert found["Access-Control-Allow-Origin"] == ORIGIN
        body = {hdrs.CONTENT_LENGTH, hdrs.TRANSFER_ENCODING, hdrs.CONTENT_TYPE}
        assert body.isdisjoint(found)


@on_both_loops
async def test_the_trial_of_this_aiohttp(caplog: pytest.LogCaptureFixture) -> None:
    """With the aiohttp that is installed nothing stands against it, and nothing is left."""
    tasks = len(asyncio.all_tasks())
    assert await why_not() is None
    assert len(asyncio.all_tasks()) == tasks
    assert caplog.records == []


def _forget_nothing(handler: Any, exc: object) -> None:
    """Stand for a ``connection_lost`` that does nothing."""


def _close_all(handler: Any, exc: object) -> None:
    """Stand for a ``connection_lost`` that closes whatever it knows."""
    for transport in list(handler._manager._connections.values()):
        transport.close()


OTHERS: Final[dict[str, tuple[str, object]]] = {
    "keeps the tail elsewhere": ("_message_tail", property(lambda _: b"", lambda *_: None)),
    "has no tail": ("_message_tail", property()),
    "forgets nothing": ("connection_lost", _forget_nothing),
    "closes what it forgets": ("connection_lost", _close_all),
}


@pytest.mark.parametrize("other", OTHERS)
@on_both_loops
async def test_the_trial_of_another_aiohttp(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, other: str
) -> None:
    """One that behaves differently is found out, in words, with no noise in the log."""
    name, replaced = OTHERS[other]
    monkeypatch.setattr(RequestHandler, name, replaced)
    fault = await why_not()
    assert fault is not None
    assert ": " in fault
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


async def test_without_takeover(
    monkeypatch: pytest.MonkeyPatch,
    aiohttp_client: AiohttpClient,
    redis_server: RedisServer,
    redis: Redis,
) -> None:
    """Where the trial fails, one line says so and aiohttp reads the sockets."""
    monkeypatch.setattr(RequestHandler, *OTHERS["keeps the tail elsewhere"])
    with capture_logs() as logged:
        settings = Settings(redis_url=redis_server.url, auth_mode="open")
        client = await aiohttp_client(create_app(settings))
        async with client.ws_connect("/ws/upload-progress") as ws:
            await ws.send_str('{"type":"ping"}')
            assert "pong" in (await ws.receive_json(timeout=5)).values()
            assert client.server.runner is not None
            assert client.server.runner.server is not None
            assert len(client.server.runner.server.connections) == 1
    said = [one for one in logged if one["log_level"] == "warning"]
    assert [one["event"] for one in said] == ["sockets_read_by_aiohttp"]
