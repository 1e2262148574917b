"""Connections that do not behave: answered without a word too many, and got rid of."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import Final, Protocol

import pytest
from aiohttp import ClientError, web
from aiohttp.test_utils import TestClient
from prometheus_client import REGISTRY

from shared import serve
from shared.serve import new_application
from shared.settings import CommonSettings
from shared.web import create_application
from tests.processes import RedisServer, free_port
from tests.system.parts import System, ask

LIMIT_S: Final = 20.0

Client = TestClient[web.Request, web.Application]


class MakeClient(Protocol):
    """The fixture ``aiohttp_client``."""

    async def __call__(self, app: web.Application) -> Client:
        """Serve an application until the test ends."""


def exchange(port: int, request: bytes) -> bytes:
    """Send bytes; return the head of the answer and what comes with it."""
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection:
        connection.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer and (data := connection.recv(65536)):
            answer += data
    return answer


LINE: Final = b"GET /api/v1/storage/x HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.mark.parametrize("service", ["ingest", "gateway", "storage"])
@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"GET / HTTP/9.9\r\n\r\n", id="version"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="tls"),
        pytest.param(b"\x00" * 64 + b"\r\n\r\n", id="zeros"),
        pytest.param(LINE + b"X: " + b"a" * 20_000 + b"\r\n\r\n", id="long-field"),
        pytest.param(LINE + b"a: b\r\n" * 500 + b"\r\n", id="many-fields"),
        pytest.param(b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", id="long-target"),
        pytest.param(LINE.replace(b"GET", b"FOO") + b"\r\n", id="method"),
        pytest.param(LINE + b"Content-Length: -1\r\n\r\n", id="length"),
        pytest.param(
            LINE + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="both",
        ),
        pytest.param(LINE + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", id="chunk-size"),
        pytest.param(b"GET /\xff\xfe HTTP/1.1\r\n\r\n", id="raw-bytes"),
        pytest.param(LINE + b"Expect: 200-ok\r\n\r\n", id="expectation"),
    ],
)
def test_malformed_requests(shared_system: System, service: str, request_bytes: bytes) -> None:
    """What is no request is refused, without a version or a trace in answer and log."""
    port = getattr(shared_system, service).port

    answer = exchange(port, request_bytes)

    status, _, head = answer.partition(b"\r\n")
    assert status.split(b" ")[1] in {b"400", b"404", b"417"}, answer[:300]
    assert b"\r\nServer: uploads\r\n" in b"\r\n" + head
    for leak in (b"aiohttp", b"Python", b"Traceback", b".py"):
        assert leak not in answer


def test_refused_expectation_has_a_request_id(shared_system: System) -> None:
    """An answer that comes before all middlewares carries an id, too."""
    answer = exchange(shared_system.storage.port, LINE + b"Expect: 200-ok\r\n\r\n")

    [line] = [one for one in answer.split(b"\r\n") if one.startswith(b"X-Request-ID:")]
    assert len(line.split(b": ")[1]) == 32


def test_service_goes_on_after_bad_connections(shared_system: System) -> None:
    """Hundreds of connections that are cut in any state leave nothing behind."""
    descriptors = Path(f"/proc/{shared_system.storage.pid}/fd")
    before = len(list(descriptors.iterdir()))
    for end in range(0, len(LINE) + 2, 2):
        with socket.create_connection(("127.0.0.1", shared_system.storage.port)) as one:
            one.sendall((LINE + b"\r\n")[:end])

    assert ask("GET", shared_system.file_url("x")).status == 404
    assert len(list(descriptors.iterdir())) <= before + 2


async def test_vanished_clients_are_no_server_errors(aiohttp_client: MakeClient) -> None:
    """A request whose client has gone is accounted as such, not as a failure of ours."""

    async def leave(_: web.Request) -> web.StreamResponse:
        raise ConnectionResetError("Cannot write to closing transport")

    app = create_application()
    app.router.add_get("/left-early", leave)
    client = await aiohttp_client(app)

    with contextlib.suppress(ClientError):
        await client.get("/left-early")

    labels = {"method": "GET", "route": "/left-early"}
    count = "http_request_seconds_count"
    assert REGISTRY.get_sample_value(count, {**labels, "status": "499"}) == 1
    assert REGISTRY.get_sample_value(count, {**labels, "status": "500"}) is None


async def test_silent_connections_are_closed(
    monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer
) -> None:
    """Nobody holds a connection with half a request head, or with none at all."""
    monkeypatch.setattr(serve, "_IDLE_S", 0.5)
    settings = CommonSettings(
        public_bind=f"127.0.0.1:{free_port()}",
        internal_bind=f"127.0.0.1:{free_port()}",
        redis_url=redis_server.url,
        auth_mode="open",
    )
    ready = asyncio.Event()
    serving = asyncio.ensure_future(
        serve.serve(new_application(settings), settings, ready=ready.set)
    )
    await ready.wait()

    async def is_closed(bind: str, beginning: bytes) -> None:
        host, _, port = bind.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(beginning)
        async with asyncio.timeout(LIMIT_S):
            assert await reader.read() == b""
        writer.close()

    beginnings = (b"", b"GET / HTTP/1.1\r\nHost: 127.0", b"GET /healthz HTTP/1.1\r\n")
    async with asyncio.TaskGroup() as connections:
        for bind in (settings.public_bind, settings.internal_bind):
            for beginning in beginnings:
                connections.create_task(is_closed(bind, beginning))

    os.kill(os.getpid(), signal.SIGTERM)
    await serving
