"""Interim responses go out before the final one, and leave no trace in it.

Pins what ``interim`` knows of aiohttp: that its writer passes bytes on past the response that
is to come, and holds that response back once it counts any byte as sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from services.ingest.interim import send_interim, takes_interim
from tests.ingest.wire import Connection
from tests.processes import free_port


async def answer(request: web.Request) -> web.StreamResponse:
    """Send three interim responses around reading the body, then fail or answer."""
    if takes_interim(request):
        await send_interim(request, 104, "Upload Resumption Supported", {"Location": "/u/1"})
        await send_interim(request, 100, "Continue")
    body = await request.read()
    if takes_interim(request):
        await send_interim(request, 104, "Upload Resumption Supported", {"Upload-Offset": "5"})
    if request.path == "/fails":
        raise RuntimeError("after interim responses")
    if request.path == "/chunked":
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(body)
        return response
    return web.Response(body=body, headers={"X-Final": "yes"})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """A server that sends interim responses."""
    app = web.Application()
    app.router.add_post("/{how}", answer)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    number = free_port()
    await web.TCPSite(runner, "127.0.0.1", number).start()
    yield number
    await runner.cleanup()


async def raw(port: int, request: bytes) -> bytes:
    """Send a request; return every byte that comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(10):
        got = await reader.read()
    writer.close()
    await writer.wait_closed()
    return got


BEFORE = (
    b"HTTP/1.1 104 Upload Resumption Supported\r\nLocation: /u/1\r\n\r\n"
    b"HTTP/1.1 100 Continue\r\n\r\n"
    b"HTTP/1.1 104 Upload Resumption Supported\r\nUpload-Offset: 5\r\n\r\n"
)
REQUEST = (
    b"POST /%s HTTP/1.%d\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"
)


async def test_before_the_final_response(port: int) -> None:
    """Each interim response stands whole before the final one, whose framing is untouched."""
    got = await raw(port, REQUEST % (b"plain", 1))
    assert got.startswith(BEFORE + b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nX-Final: yes\r\n" in got
    assert b"\r\nContent-Length: 5\r\n" in got
    assert got.endswith(b"\r\n\r\nhello")


async def test_before_a_chunked_response(port: int) -> None:
    """A response without a length is framed as ever."""
    got = await raw(port, REQUEST % (b"chunked", 1))
    assert got.startswith(BEFORE + b"HTTP/1.1 200 OK\r\n")
    assert got.endswith(b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n")


async def test_before_an_error(port: int) -> None:
    """A handler that fails afterwards is answered with 500, not with a cut connection."""
    got = await raw(port, REQUEST % (b"fails", 1))
    assert got.startswith(BEFORE + b"HTTP/1.1 500 ")


async def test_not_in_http_10(port: int) -> None:
    """A client of HTTP/1.0 would take an interim response for the final one."""
    got = await raw(port, REQUEST % (b"plain", 0))
    assert got.startswith(b"HTTP/1.0 200 OK\r\n")


async def test_second_request_of_a_connection(port: int) -> None:
    """What the first request was sent does not disturb the next one on its connection."""

    def both() -> list[tuple[int, tuple[int, ...]]]:
        with Connection(port) as one:
            found = []
            for _ in range(2):
                one.request("POST", "/plain", {}, b"hello")
                got = one.read()
                found.append((got.status, got.interim))
            return found

    found = await asyncio.get_running_loop().run_in_executor(None, both)
    assert found == [(200, (104, 100, 104))] * 2


async def test_client_that_has_gone(port: int) -> None:
    """Sending to a client that left is a connection error, which callers expect."""
    seen: asyncio.Queue[type[BaseException]] = asyncio.Queue()

    async def late(request: web.Request) -> web.StreamResponse:
        while request.transport is not None:
            await asyncio.sleep(0.002)
        try:
            await send_interim(request, 104, "Upload Resumption Supported")
        except ConnectionError as exc:
            seen.put_nowait(type(exc))
            raise
        return web.Response()

    app = web.Application()
    app.router.add_post("/", late)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    number = free_port()
    await web.TCPSite(runner, "127.0.0.1", number).start()
    try:
        with Connection(number) as one:
            one.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
        async with asyncio.timeout(10):
            assert issubclass(await seen.get(), ConnectionError)
    finally:
        await runner.cleanup()
