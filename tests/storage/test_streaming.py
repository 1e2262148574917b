"""Downloads from a store without files, through the real handlers on both event loops."""

from __future__ import annotations

import asyncio
import errno
import os
import queue
import random
import select
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import uvloop
from aiohttp import web
from structlog.testing import capture_logs

from services.storage.files import Files
from services.storage.handlers import FILES, OPENINGS, SETTINGS, add_storage_routes
from services.storage.openings import Openings
from services.storage.settings import Settings
from shared.blobs.filesystem import FilesystemStore
from shared.blobs.store import UploadNotFound
from shared.outbox import Outbox
from shared.publisher import Publisher
from shared.serve import new_application
from shared.streams import connect
from tests.processes import RedisServer
from tests.storage.stored_files import put_file

MiB: Final = 1024 * 1024
LOOPS: Final[dict[str, Callable[[], asyncio.AbstractEventLoop]]] = {
    "std": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
SIZE: Final = 24 * MiB + 12345
"""More than all the buffers between a server and a client that does not read."""
STALL_S: Final = 1.0
LIMIT_S: Final = 30.0


class FilelessStore(FilesystemStore):
    """A store that gives bytes only in pieces, as object stores do, and fails when told to."""

    fails_after: int | None = None
    """Pieces that a download gets before the store fails; ``None``: it does not fail."""
    failure: Exception = OSError(errno.EIO, "gone")
    given = 0
    """Pieces given to downloads so far."""
    closed: queue.Queue[int]
    """Tells of each download that was closed, by the pieces it had been given."""

    async def open_blob(self, upload_id: str) -> None:  # type: ignore[override]
        """Return that there is none."""
        del upload_id

    async def read_range(self, upload_id: str, start: int, length: int) -> AsyncIterator[bytes]:
        """Yield the bytes until the time to fail has come."""
        count = 0
        try:
            if self.fails_after == 0:
                raise self.failure
            async for piece in super().read_range(upload_id, start, length):
                count += 1
                self.given += 1
                yield piece
                if count == self.fails_after:
                    raise self.failure
        finally:
            self.closed.put(count)


class Server:
    """Storage on a store without files, in a thread."""

    def __init__(self, root: Path, redis_url: str, loop: str) -> None:
        self.store: Final = FilelessStore(root)
        self.store.closed = queue.Queue()
        self.content: Final = random.Random(1).randbytes(SIZE)
        self.complaints: Final[list[dict[str, Any]]] = []
        self.port = 0
        self.path = ""
        self._redis_url: Final = redis_url
        self._factory: Final = LOOPS[loop]
        self._ready: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._run)
        self._stop: Callable[[], object] = lambda: None

    def start(self) -> None:
        """Serve."""
        self._thread.start()
        assert self._ready.wait(LIMIT_S)
        with self.connect() as client:  # what the first bytes are is asked of the store once
            client.sendall(f"HEAD {self.path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert read_head(client)[0] == 200
        assert self.store.closed.get(timeout=LIMIT_S) == 1
        self.store.given = 0

    def stop(self) -> None:
        """End."""
        self._stop()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=self._factory) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self.path = f"/api/v1/storage/{await put_file(self.store, self.content)}"
        settings = Settings(auth_mode="open", download_stall_timeout=STALL_S)
        redis = connect(self._redis_url)
        publisher = Publisher(redis, partitions=1, interval_s=1)
        app = new_application(settings)
        app[SETTINGS] = settings
        app[FILES] = Files(self.store, Outbox(self.store, publisher, redis, recent_s=1))
        app[OPENINGS] = Openings(app[FILES], self.store)
        add_storage_routes(app.router)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        self._stop = lambda: loop.call_soon_threadsafe(stopped.set)
        self._ready.set()
        await stopped.wait()
        await runner.cleanup()
        await redis.aclose()
        await self.store.close()

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        """Open a connection."""
        client = socket.socket()
        client.settimeout(LIMIT_S)
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(("127.0.0.1", self.port))
        return client

    def ask(self, client: socket.socket, *headers: str, path: str = "") -> None:
        """Send a GET."""
        lines = [f"GET {path or self.path} HTTP/1.1", "Host: localhost", *headers, "", ""]
        client.sendall("\r\n".join(lines).encode())


@pytest.fixture(params=LOOPS)
def server(
    request: pytest.FixtureRequest, data_dir: Path, redis_server: RedisServer
) -> Iterator[Server]:
    """A server on each loop; nothing may have been raised past the handlers, or left open."""
    one = Server(data_dir / "blobs", redis_server.url, request.param)
    with capture_logs() as logged:
        one.start()
        try:
            yield one
        finally:
            one.stop()
    assert one.complaints == []
    assert [entry for entry in logged if entry["event"] == "request_failed"] == []


def read_head(client: socket.socket) -> tuple[int, int, bytes]:
    """Return status and length of a response, and what has come of its body."""
    seen = b""
    while b"\r\n\r\n" not in seen:
        block = client.recv(65536)
        assert block, "the server closed the connection"
        seen += block
    head, _, rest = seen.partition(b"\r\n\r\n")
    _, _, length = head.lower().partition(b"content-length: ")
    return int(head.split()[1]), int(length.split(b"\r\n")[0]), rest


def read_all(client: socket.socket) -> tuple[int, bytes]:
    """Read a whole response."""
    status, length, rest = read_head(client)
    body = bytearray(rest)
    while len(body) < length:
        block = client.recv(MiB)
        assert block, "the server closed the connection"
        body += block
    return status, bytes(body)


def read_to_the_cut(client: socket.socket) -> bytes:
    """Read until the connection is reset."""
    body = bytearray()
    with pytest.raises(ConnectionResetError):  # noqa: PT012
        while True:
            block = client.recv(MiB)
            assert block, "an orderly end looks as if all had been sent"
            body += block
    return bytes(body)


def test_bytes_arrive_intact(server: Server) -> None:
    """Whole files and parts arrive as they are, one after another on one connection."""
    with server.connect() as client:
        for first, last in [(0, SIZE - 1), (0, 0), (MiB - 1, 3 * MiB), (SIZE - 5, SIZE - 1)]:
            server.ask(client, f"Range: bytes={first}-{last}")
            assert read_all(client) == (206, server.content[first : last + 1])
        server.ask(client)
        assert read_all(client) == (200, server.content)


def test_a_slow_client_is_waited_for(server: Server) -> None:
    """Whoever takes bytes at all, however slowly, gets them; the rest stays in the store."""
    with server.connect(receive_buffer=4096) as client:
        server.ask(client, "Range: bytes=0-1500000")
        _, _, body = read_head(client)
        started = time.monotonic()
        while time.monotonic() - started < 2 * STALL_S:
            body += client.recv(20_000)
            time.sleep(0.05)
        while len(body) < 1_500_001:
            block = client.recv(MiB)
            assert block
            body += block
    assert body == server.content[:1_500_001]


def test_a_client_that_does_not_read_is_cut(server: Server) -> None:
    """Whoever takes nothing is let go soon, and the store was not read to the end for it."""
    with server.connect(receive_buffer=4096) as client:
        server.ask(client)
        started = time.monotonic()
        read_head(client)
        server.store.closed.get(timeout=LIMIT_S)
        assert STALL_S * 0.9 < time.monotonic() - started < STALL_S * 20
        poll = select.poll()
        poll.register(client, 0)  # errors and hang-ups are reported unasked
        assert poll.poll(LIMIT_S * 1000)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
    assert server.store.given < SIZE // MiB


def test_a_set_of_ranges_is_read_as_it_is_taken(server: Server) -> None:
    """Of several ranges, those that a stalled client never gets to are never begun."""
    with server.connect(receive_buffer=4096) as client:
        server.ask(client, f"Range: bytes=0-{SIZE // 2},{SIZE // 2 + MiB}-")
        assert read_head(client)[0] == 206
        assert server.store.closed.get(timeout=LIMIT_S) < SIZE // 2 // MiB
        assert server.store.closed.empty()
    with server.connect() as client:
        server.ask(client, f"Range: bytes=5-6,{MiB}-{2 * MiB},9-9")
        status, body = read_all(client)
        assert (status, body.count(b"Content-Range")) == (206, 3)
        assert server.content[MiB : 2 * MiB + 1] in body


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_leaves_ends_the_download(server: Server, how: str) -> None:
    """When the client goes the store is not read on, and others are served."""
    with server.connect(receive_buffer=4096) as client:
        server.ask(client)
        read_head(client)
        if how == "reset":
            client.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
            )
    assert server.store.closed.get(timeout=LIMIT_S) < SIZE // MiB
    with server.connect() as client:
        server.ask(client, "Range: bytes=0-9")
        assert read_all(client) == (206, server.content[:10])


@pytest.mark.parametrize(
    "failure", [OSError(errno.EIO, "gone"), TimeoutError(), UploadNotFound("deleted")]
)
def test_a_store_that_fails_in_the_middle(server: Server, failure: Exception) -> None:
    """The connection is cut, so that nobody takes the beginning of a file for the whole."""
    server.store.failure, server.store.fails_after = failure, 3
    with server.connect() as client:
        server.ask(client)
        status, length, rest = read_head(client)
        body = rest + read_to_the_cut(client)
    assert (status, length) == (200, SIZE)
    assert body == server.content[: len(body)]
    assert len(body) <= 3 * MiB


def test_a_file_that_ends_too_early(server: Server) -> None:
    """A store that has fewer bytes than it said does not leave the client waiting."""
    file_id = server.path.rpartition("/")[2]
    with server.connect(receive_buffer=4096) as client:
        server.ask(client)
        read_head(client)
        os.truncate(server.store.path(file_id), 20 * MiB)
        read_to_the_cut(client)


@pytest.mark.parametrize(
    ("failure", "status"), [(OSError(errno.EIO, "gone"), 503), (UploadNotFound("deleted"), 404)]
)
def test_a_store_that_fails_at_once(server: Server, failure: Exception, status: int) -> None:
    """A failure before the first byte is answered as such, and the connection goes on."""
    server.store.failure, server.store.fails_after = failure, 0
    with server.connect() as client:
        server.ask(client)
        assert read_all(client)[0] == status
        server.store.fails_after = None
        server.ask(client, "Range: bytes=0-9")
        assert read_all(client) == (206, server.content[:10])
