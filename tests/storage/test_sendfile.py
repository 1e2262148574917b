"""Bodies sent by sendfile(2): real servers on both loops in threads, raw sockets as clients."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import web

from services.storage import sendfile
from services.storage.sendfile import send_file

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "std": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
# Well over a piece, and over what socket buffers take (a few MiB), so that a client that does
# not read stalls the transfer.
SIZE = 32 * 1024 * 1024 + 12345
# Over what a socket takes at once.
MIXED_BYTES = 8 * 1024 * 1024
LIMIT_S = 30.0
# The first loop of uvloop opens descriptors for the process: not to be counted as leaks.
uvloop.new_event_loop().close()


@dataclass
class Server:
    """A server of one file, and what it noticed.

    ``GET /?start=&length=&stall=`` sends that part of the file, ``/mixed`` parts from memory
    and from the file in turn, ``/held`` as much from memory as fills the buffers, then a part.
    """

    path: Path
    port: int = 0
    ends: queue.Queue[int | BaseException] = field(default_factory=queue.Queue)
    """What each send_file() returned or raised."""
    buffered: queue.Queue[int] = field(default_factory=queue.Queue)
    """How many written bytes had not left when ``/mixed`` called send_file()."""
    turns: int = 0
    """How often the loop turned during the last transfer."""
    limits: list[tuple[int, int]] = field(default_factory=list)
    """Limits of the transport's buffer before and after each transfer."""
    complaints: list[dict[str, Any]] = field(default_factory=list)
    """What reached the loop's exception handler."""
    turning: asyncio.Handle = field(init=False)

    async def one(self, request: web.Request) -> web.StreamResponse:
        """Answer with a part of the file."""
        start, length = int(request.query["start"]), int(request.query["length"])
        response = web.StreamResponse()
        response.content_length = length
        await response.prepare(request)
        await self.send(request, response, start, length)
        await response.write_eof()
        return response

    async def mixed(self, request: web.Request) -> web.StreamResponse:
        """Answer with memory and file in turn; aiohttp buffers the parts from memory."""
        assert request.transport is not None
        request.transport.set_write_buffer_limits(high=MIXED_BYTES * 2)
        response = web.StreamResponse()
        response.content_length = 3 * 2 * MIXED_BYTES
        await response.prepare(request)
        for turn in range(3):
            await response.write(bytes([turn]) * MIXED_BYTES)
            self.buffered.put(request.transport.get_write_buffer_size())
            await self.send(request, response, turn, MIXED_BYTES)
        await response.write_eof()
        return response

    async def held(self, request: web.Request) -> web.StreamResponse:
        """Answer so that send_file() finds written bytes that can't leave."""
        response = web.StreamResponse()
        response.content_length = 1 << 30
        await response.prepare(request)
        while request.transport and not request.transport.get_write_buffer_size():
            await response.write(bytes(16_384))
        await self.send(request, response, 0, 1000)
        return response

    async def send(
        self, request: web.Request, response: web.StreamResponse, start: int, length: int
    ) -> None:
        """Call send_file() and note its end."""
        stall_timeout_s = float(request.query.get("stall", LIMIT_S))
        fd = os.open(self.path, os.O_RDONLY)
        self.turns = 0
        self.turn()
        self.note_limits(request)
        try:
            sent = await send_file(
                request, response, fd, start, length, stall_timeout_s=stall_timeout_s
            )
        except BaseException as error:
            self.ends.put(error)
            raise
        finally:
            self.turning.cancel()
            os.close(fd)
        self.note_limits(request)
        self.ends.put(sent)

    def turn(self) -> None:
        """Count a turn of the loop, and be called in the next one."""
        self.turns += 1
        self.turning = asyncio.get_running_loop().call_soon(self.turn)

    def note_limits(self, request: web.Request) -> None:
        """Note the limits of a connection that is still there."""
        if request.transport is not None and not request.transport.is_closing():
            self.limits.append(request.transport.get_write_buffer_limits())

    def end(self) -> int | BaseException:
        """Wait for the next transfer to end."""
        return self.ends.get(timeout=LIMIT_S)

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        """Open a connection."""
        client = socket.socket()
        client.settimeout(LIMIT_S)
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(("127.0.0.1", self.port))
        return client


async def _serve(
    server: Server, ready: threading.Event, stop: list[Callable[[], object]]
) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.set_exception_handler(lambda _, context: server.complaints.append(context))
    app = web.Application()
    app.router.add_get("/", server.one)
    app.router.add_get("/mixed", server.mixed)
    app.router.add_get("/held", server.held)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.port = runner.addresses[0][1]
    stop.append(lambda: loop.call_soon_threadsafe(stopped.set))
    ready.set()
    await stopped.wait()
    await runner.cleanup()


@contextmanager
def serving(path: Path, loop: str) -> Iterator[Server]:
    """Run a server in a thread."""
    server = Server(path)
    ready, stop = threading.Event(), list[Callable[[], object]]()

    def run() -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(_serve(server, ready, stop))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(LIMIT_S)
        yield server
    finally:
        stop[0]()
        thread.join(LIMIT_S)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def content() -> bytes:
    """Return the bytes of the served file."""
    return random.Random(1).randbytes(SIZE)


@pytest.fixture(scope="module")
def path(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the served file."""
    path = tmp_path_factory.mktemp("sendfile") / "blob"
    path.write_bytes(content)
    return path


@pytest.fixture(params=LOOPS)
def server(
    request: pytest.FixtureRequest, path: Path, caplog: pytest.LogCaptureFixture
) -> Iterator[Server]:
    """Run a server on each loop; at the end nothing may have been logged or left open."""
    caplog.set_level(logging.WARNING)
    before = open_descriptors()
    with serving(path, request.param) as server:
        yield server
    assert server.complaints == []
    assert [record.getMessage() for record in caplog.records] == []
    assert open_descriptors() == before


def open_descriptors() -> int:
    """Count the descriptors of this process."""
    return len(os.listdir("/dev/fd"))


def request_line(start: int, length: int, **query: object) -> bytes:
    """Return a request for a part of the file."""
    extra = "".join(f"&{name}={value}" for name, value in query.items())
    target = f"/?start={start}&length={length}{extra}"
    return f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def read_response(client: socket.socket) -> bytes:
    """Read one response with a Content-Length; return its body."""
    received = b""
    while b"\r\n\r\n" not in received:
        block = client.recv(65536)
        assert block, "the server closed the connection"
        received += block
    head, _, rest = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    _, _, length = head.lower().partition(b"content-length: ")
    wanted = int(length.split(b"\r\n")[0])
    body = bytearray(rest)
    while len(body) < wanted:
        block = client.recv(1 << 20)
        assert block, "the server closed the connection"
        body += block
    assert len(body) == wanted
    return bytes(body)


def read_some(client: socket.socket) -> int:
    """Read until the body has begun."""
    seen = 0
    while seen < 20_000:
        seen += len(client.recv(20_000))
    return seen


def wait_until_closed(client: socket.socket, limit_s: float) -> None:
    """Wait, without reading, until the connection is reset."""
    poll = select.poll()
    poll.register(client, 0)  # errors and hang-ups are reported unasked
    assert poll.poll(limit_s * 1000)
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


@pytest.mark.parametrize(
    ("start", "length"),
    [
        (0, SIZE),
        (0, 1),
        (SIZE - 1, 1),
        (0, 0),
        (12345, 1 << 20),
        (1, (1 << 20) + 1),
        (SIZE - 5_000_000, 5_000_000),
        (4096, 65536),
    ],
)
def test_parts_arrive_intact(server: Server, content: bytes, start: int, length: int) -> None:
    """Exactly the asked bytes arrive, and the next request on the connection works."""
    with server.connect() as client:
        for _ in range(2):
            client.sendall(request_line(start, length))
            assert read_response(client) == content[start : start + length]
            assert server.end() == length


@pytest.mark.parametrize("cached", [True, False])
def test_cache_hits_and_misses(
    server: Server, content: bytes, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are the same whether a piece is sent from the loop or from a thread."""
    monkeypatch.setattr(sendfile, "_is_cached", lambda *_: cached)
    with server.connect() as client:
        client.sendall(request_line(77, SIZE - 77))
        assert read_response(client) == content[77:]


def test_evicted_file(server: Server, path: Path, content: bytes) -> None:
    """A file that the page cache has dropped arrives intact."""
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("no way to evict a file here")
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    with server.connect() as client:
        client.sendall(request_line(0, SIZE))
        assert read_response(client) == content


def test_pipelined_requests(server: Server, content: bytes) -> None:
    """Answers to requests that were sent at once arrive whole and in order."""
    with server.connect() as client:
        client.sendall(b"".join(request_line(n * 1000, 100_000) for n in range(8)))
        expected = b"".join(content[n * 1000 : n * 1000 + 100_000] for n in range(8))
        received = b""
        while received.count(b"HTTP/1.1 200 OK\r\n") < 8 or len(received) < len(expected):
            block = client.recv(1 << 20)
            assert block
            received += block
        for _n in range(8):
            assert server.end() == 100_000
        bodies = [answer.partition(b"\r\n\r\n")[2] for answer in received.split(b"HTTP/1.1 ")]
        assert b"".join(bodies) == expected


def test_written_parts_are_not_overtaken(server: Server, content: bytes) -> None:
    """Bytes that aiohttp still buffers leave before those of the file."""
    with server.connect(receive_buffer=8192) as client:
        client.sendall(b"GET /mixed HTTP/1.1\r\nHost: localhost\r\n\r\n")
        expected = b"".join(
            bytes([turn]) * MIXED_BYTES + content[turn : turn + MIXED_BYTES]
            for turn in range(3)
        )
        assert server.buffered.get(timeout=LIMIT_S) > 0  # nothing is read before
        assert read_response(client) == expected
        client.sendall(request_line(5, 5))
        assert read_response(client) == content[5:10]
    for _ in range(4):
        server.end()
    assert len(server.limits) == 8
    assert len(set(server.limits)) == 1


def test_connections_one_after_another(server: Server, content: bytes) -> None:
    """A connection that has waited leaves nothing behind that disturbs the next one."""
    for start in range(4):
        with server.connect(receive_buffer=8192) as client:
            client.sendall(request_line(start, SIZE - start))
            assert read_response(client) == content[start:]


def test_others_get_their_turn(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop turns at least once for each piece, even while the socket takes more."""
    monkeypatch.setattr(sendfile, "_PIECE_BYTES", 4096)  # so that the socket always does
    with server.connect() as client:
        client.sendall(request_line(0, 1000 * 4096))
        read_response(client)
    assert server.end() == 1000 * 4096
    assert server.turns >= 1000


def test_downloads_at_the_same_time(server: Server, content: bytes) -> None:
    """Parallel downloads don't mix, and a small one is not held up by a large stalled one."""

    def fetch(start: int) -> bool:
        with server.connect() as client:
            client.sendall(request_line(start, SIZE - start))
            return read_response(client) == content[start:]

    with server.connect(receive_buffer=8192) as stalled:
        stalled.sendall(request_line(0, SIZE))
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(fetch, range(0, 4000, 1000)))
        assert read_response(stalled) == content


def test_a_stalled_client_is_cut_off(server: Server) -> None:
    """A client that stops reading is reset after the stall timeout, not before."""
    with server.connect(receive_buffer=8192) as client:
        began = time.monotonic()
        client.sendall(request_line(0, SIZE, stall=0.5))
        wait_until_closed(client, LIMIT_S)
        assert 0.5 <= time.monotonic() - began < 5
        sent = server.end()
        assert isinstance(sent, int)
        assert 0 < sent < SIZE


def test_a_client_that_stalls_before_the_file(server: Server) -> None:
    """The timeout counts, too, while written bytes hold the file back."""
    with server.connect(receive_buffer=8192) as client:
        client.sendall(b"GET /held?stall=0.5 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until_closed(client, LIMIT_S)
        assert server.end() == 0


def test_a_slow_client_is_not_cut_off(server: Server, content: bytes) -> None:
    """A client that reads less per timeout than makes the socket writable is kept."""
    length = 12_000_000
    with server.connect(receive_buffer=8192) as client:
        client.sendall(request_line(0, length, stall=0.2))
        received = bytearray()
        began = time.monotonic()
        # At some 400 kB/s the full send buffer takes longer than this to drain by a third.
        while time.monotonic() - began < 1.5:
            received += client.recv(4096)
            time.sleep(0.01)
        head = received.index(b"\r\n\r\n") + 4
        while len(received) < head + length:
            block = client.recv(1 << 20)
            assert block, "cut off"
            received += block
        assert bytes(received[head:]) == content[:length]
        assert server.end() == length


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_vanished_client_is_no_error(server: Server, how: str) -> None:
    """A client that goes away in the middle ends its transfer without a word in the log."""
    with server.connect(receive_buffer=8192) as client:
        client.sendall(request_line(0, SIZE))
        read_some(client)
        if how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sent = server.end()
    assert isinstance(sent, int)
    assert 0 < sent < SIZE


def test_a_half_closed_client_has_vanished(server: Server) -> None:
    """A client that will send nothing more is cut off, even if it reads on."""
    with server.connect(receive_buffer=8192) as client:
        client.sendall(request_line(0, SIZE))
        seen = read_some(client)
        client.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while block := client.recv(65536):
                seen += len(block)
        assert seen < SIZE
    assert server.end() != SIZE


def test_a_short_file_is_an_error(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A file that ends before the announced length raises, and the client sees a reset."""
    with server.connect() as client:
        client.sendall(request_line(SIZE - 10, 20))
        error = server.end()
        assert isinstance(error, OSError)
        wait_until_closed(client, LIMIT_S)
    deadline = time.monotonic() + LIMIT_S
    while not caplog.records and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    caplog.clear()


def test_cancellation_leaves_nothing_behind(path: Path) -> None:
    """A server that stops in the middle of a download closes its descriptors."""
    for loop in LOOPS:
        before = open_descriptors()
        with serving(path, loop) as server:
            client = server.connect(receive_buffer=8192)
            client.sendall(request_line(0, SIZE))
            assert client.recv(1)
        assert isinstance(server.end(), asyncio.CancelledError)
        client.close()
        assert server.complaints == []
        assert open_descriptors() == before


def test_cancellation_waits_for_the_thread(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled transfer does not give its descriptors back while a thread uses them."""
    entered, release = threading.Event(), threading.Event()
    order: list[str] = []

    def slow_disk(out: int, fd: int, offset: int, count: int) -> int:
        entered.set()
        assert release.wait(LIMIT_S)
        order.append("sent")
        return os.sendfile(out, fd, offset, count)

    monkeypatch.setattr(sendfile, "_is_cached", lambda *_: False)
    monkeypatch.setattr(sendfile, "_sendfile", slow_disk)

    async def handler() -> None:
        left, right = socket.socketpair()
        fd = os.open(path, os.O_RDONLY)
        with left, right:
            left.setblocking(False)
            sending = asyncio.ensure_future(sendfile._send_from_thread(left, fd, 0, 1000))
            assert await asyncio.to_thread(entered.wait, LIMIT_S)
            for _ in range(3):  # an impatient caller
                sending.cancel()
                await asyncio.sleep(0.01)
            assert not sending.done()
            release.set()
            with pytest.raises(asyncio.CancelledError):
                await sending
            order.append("cancelled")
            os.close(fd)

    asyncio.run(handler())
    assert order == ["sent", "cancelled"]
