"""Every byte that arrived is handed out, however the connection ends.

Pins what ``request_body`` knows of aiohttp's reader, which is private there: if a new version
of aiohttp withholds or forgets buffered bytes, these tests fail.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from aiohttp import ClientError, web
from aiohttp.http_exceptions import TransferEncodingError

from services.ingest.request_body import BodyCut, RequestBody, invite_later
from tests.ingest.wire import Connection, Cut, chunk, head_of
from tests.processes import free_port

BUFFERED = 100_000
"""Bytes that aiohttp buffers without pausing the socket."""


@dataclass
class Reader:
    """A server whose only handler reads one body, not before it is told to."""

    port: int = 0
    go: asyncio.Event = field(default_factory=asyncio.Event)
    requests: asyncio.Queue[web.Request] = field(default_factory=asyncio.Queue)
    ends: asyncio.Queue[tuple[bytes, str]] = field(default_factory=asyncio.Queue)
    clients: ExitStack = field(default_factory=ExitStack)

    async def handle(self, request: web.Request) -> web.Response:
        """Read the body to its end; note what came and how it ended."""
        self.requests.put_nowait(request)
        body = RequestBody(request)
        got = b""
        await self.go.wait()
        try:
            await body.invite()
            while piece := await body.read():
                got += piece
        except BodyCut:
            with pytest.raises(BodyCut):
                await body.read()
            self.ends.put_nowait((got, "cut"))
        else:
            assert await body.read() == b""
            self.ends.put_nowait((got, "complete"))
        return web.Response(text="read")

    def connect(self) -> Connection:
        """Return a connection that is closed when the test ends."""
        return self.clients.enter_context(Connection(self.port))

    def begin(self, body: bytes, **framing: str) -> Connection:
        """Send a request's head and some of its body."""
        one = self.connect()
        headers = {name.replace("_", "-"): value for name, value in framing.items()}
        one.send(head_of("POST", "/", headers), body)
        return one

    async def buffered(self, size: int) -> web.Request:
        """Return the request once aiohttp has so many bytes of its body."""
        request = await self.requests.get()
        await until(lambda: request.content.total_bytes >= size)
        return request

    async def end(self) -> tuple[bytes, str]:
        """Let the handler read; return what it got and how it ended."""
        self.go.set()
        async with asyncio.timeout(10):
            return await self.ends.get()


async def until(check: Callable[[], bool]) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(10):
        while not check():
            await asyncio.sleep(0.002)


@pytest.fixture
async def reader() -> AsyncIterator[Reader]:
    """A server that reads bodies."""
    reader = Reader()
    app = web.Application()
    app.router.add_post("/", reader.handle, expect_handler=invite_later)
    reader.port = free_port()
    # Not aiohttp's TestServer: that one cancels handlers whose client has gone.
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", reader.port).start()
    try:
        with reader.clients:
            yield reader
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("how", ["fin", "rst", "half-close"])
@pytest.mark.parametrize("size", [0, 1, BUFFERED])
async def test_buffered_bytes_before_a_cut(reader: Reader, how: Cut, size: int) -> None:
    """Bytes that arrived before the connection ended come out before the end is told."""
    sent = bytes(range(256)) * (size // 256) + bytes(size % 256)
    client = reader.begin(sent, Content_Length="1000000")
    request = await reader.buffered(size)
    client.cut(how)
    await until(lambda: request.content.exception() is not None)
    assert await reader.end() == (sent, "cut")


@pytest.mark.parametrize("how", ["fin", "rst", "half-close"])
async def test_cut_while_waiting(reader: Reader, how: Cut) -> None:
    """A reader that waits for more is told of the end, and loses nothing of before."""
    reader.go.set()
    client = reader.begin(b"x" * 1000, Content_Length="1000000")
    await reader.buffered(1000)
    client.cut(how)
    assert await reader.end() == (b"x" * 1000, "cut")


async def test_more_than_is_buffered(reader: Reader) -> None:
    """What still lies in the socket when the client closes comes out as well."""
    sent = bytes(range(256)) * 8000
    client = reader.connect()
    client.send(head_of("POST", "/", {"Content-Length": "9000000"}))
    sending = asyncio.get_running_loop().run_in_executor(None, client.send, sent)
    await reader.buffered(BUFFERED)
    reader.go.set()
    await sending
    client.cut("fin")
    assert await reader.end() == (sent, "cut")


@pytest.mark.parametrize(
    ("tail", "kept"),
    [
        (chunk(b"b" * 500)[:300], 295),  # in the data of a chunk: "1f4\r\n" is framing
        (b"1f", 0),  # in the size of a chunk
        (b"1f4\r\n", 0),  # before its data
        (chunk(b"b" * 500)[:-1], 500),  # in the line end after its data
        (b"", 0),  # between two chunks
        (b"0\r\n", 0),  # before the end of the trailers
    ],
)
@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_cut_in_a_chunked_frame(reader: Reader, tail: bytes, kept: int, how: Cut) -> None:
    """A chunked body that ends within its framing gives all of its data that arrived."""
    client = reader.begin(chunk(b"a" * 1000) + tail, Transfer_Encoding="chunked")
    request = await reader.buffered(1000 + kept)
    client.cut(how)
    await until(lambda: request.content.exception() is not None)
    assert await reader.end() == (b"a" * 1000 + b"b" * kept, "cut")


@pytest.mark.parametrize("garbage", [b"xyz\r\n", b"-5\r\n", b"5;\x00\r\n", b"5\rhello"])
async def test_broken_framing(reader: Reader, garbage: bytes) -> None:
    """Data before framing that breaks is kept; aiohttp tells of the end once the client goes.

    Until then it looks like a client that is silent, which ends by its own limit.
    """
    client = reader.begin(chunk(b"a" * 1000), Transfer_Encoding="chunked")
    request = await reader.buffered(1000)
    client.send(garbage)
    client.cut("fin")
    await until(lambda: request.content.exception() is not None)
    assert await reader.end() == (b"a" * 1000, "cut")


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("Connection lost"),
        TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
        OSError(errno.EHOSTUNREACH, "No route to host"),
        ClientError("payload"),
        TransferEncodingError("chunk"),
        RuntimeError("Connection closed."),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_every_error_of_a_connection(
    reader: Reader, error: BaseException, waiting: bool
) -> None:
    """Whatever aiohttp says of a lost connection, buffered bytes come first, then the end."""
    if waiting:
        reader.go.set()
    reader.begin(b"x" * BUFFERED, Content_Length="1000000")
    request = await reader.buffered(BUFFERED)
    if waiting:
        await until(lambda: request.content._waiter is not None)
    request.content.set_exception(error)
    assert await reader.end() == (b"x" * BUFFERED, "cut")


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
async def test_complete(reader: Reader, size: int) -> None:
    """A complete body ends with an empty piece, and keeps on ending so."""
    reader.go.set()
    client = reader.connect()
    sent = bytes(size)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, client.request, "POST", "/", {}, sent)
    assert await reader.end() == (sent, "complete")
    assert (await loop.run_in_executor(None, client.read)).status == 200


async def test_closed_after_a_complete_body(reader: Reader) -> None:
    """A client that leaves right after its last byte has sent a complete body."""
    client = reader.begin(b"x" * 500, Content_Length="500")
    request = await reader.buffered(500)
    client.cut("fin")
    await until(lambda: request.transport is None)
    assert (await reader.end())[0] == b"x" * 500


@pytest.mark.parametrize(
    ("version", "expect", "statuses"),
    [("1.1", "100-continue", [100, 200]), ("1.1", "100-Continue", [100, 200])],
)
async def test_invitation(
    reader: Reader, version: str, expect: str, statuses: list[int]
) -> None:
    """A client that asks for it is invited once the body is wanted, not before."""
    client = reader.begin(b"", Content_Length="5", Expect=expect)
    await reader.buffered(0)
    client.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.socket.recv(1)
    client.socket.settimeout(10)
    reader.go.set()
    loop = asyncio.get_running_loop()
    interim = await loop.run_in_executor(None, client.read_interim)
    client.send(b"hello")
    final = await loop.run_in_executor(None, client.read)
    assert [interim, final.status] == statuses
    assert await reader.end() == (b"hello", "complete")


async def test_no_invitation_in_http_10(reader: Reader) -> None:
    """A client of HTTP/1.0 gets no interim response."""
    client = reader.connect()
    head = b"POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    client.send(head, b"hello")
    reader.go.set()
    answer = await asyncio.get_running_loop().run_in_executor(None, client.read)
    assert (answer.status, answer.interim) == (200, ())


async def test_other_expectations(reader: Reader) -> None:
    """An expectation that nobody knows is refused."""
    client = reader.begin(b"", Content_Length="5", Expect="tea")
    answer = await asyncio.get_running_loop().run_in_executor(None, client.read)
    assert answer.status == 417
