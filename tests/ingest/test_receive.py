"""From a real socket to a real file: what is kept, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from services.ingest.receive import _BATCH, Ended, receive
from services.ingest.request_body import RequestBody
from services.ingest.writers import Lease, Writers
from shared.blobs import durable, filesystem_writer
from shared.blobs.filesystem import FilesystemStore
from shared.events import UploadCreated, UploadFacts
from shared.sidecar import Sidecar, new_id
from tests.ingest.wire import Connection, chunk, head_of
from tests.processes import free_port

MEGABYTE = 1024 * 1024


@dataclass
class Scene:
    """A server that receives one body into one upload."""

    store: FilesystemStore
    port: int = field(default_factory=free_port)
    upload_id: str = field(default_factory=new_id)
    room: int | None = None
    idle_s: float = 10.0
    lease: Lease | None = None
    offsets: list[int] = field(default_factory=list)
    """What was reported, in order."""
    told: list[int] | None = None
    """What the client was told to be safe; ``None``: it does not want to know."""
    ends: asyncio.Queue[Ended | BaseException] = field(default_factory=asyncio.Queue)
    clients: ExitStack = field(default_factory=ExitStack)

    async def handle(self, request: web.Request) -> web.Response:
        """Receive the body; note how it ended."""
        async with Writers(self.store).writing(self.upload_id) as self.lease:
            try:
                end: Ended | BaseException = await receive(
                    RequestBody(request),
                    self.lease,
                    room=self.room,
                    idle_s=self.idle_s,
                    on_progress=self.offsets.append,
                    on_safe=None if self.told is None else self.tell,
                )
            except OSError as exc:
                end = exc
            self.ends.put_nowait(end)
        return web.Response()

    async def tell(self, offset: int) -> None:
        """Note what the client is told to be safe."""
        assert self.told is not None
        self.told.append(offset)

    def begin(self, body: bytes = b"", *, length: int | None = 10**9) -> Connection:
        """Send the head of a request and some of its body."""
        framing = {"Transfer-Encoding": "chunked"}
        if length is not None:
            framing = {"Content-Length": str(length)}
        one = self.clients.enter_context(Connection(self.port))
        one.send(head_of("POST", "/", framing), body)
        return one

    async def end(self) -> Ended | BaseException:
        """Return how receiving ended."""
        async with asyncio.timeout(10):
            return await self.ends.get()

    async def written(self, size: int) -> None:
        """Wait until so many bytes are in the file."""
        async with asyncio.timeout(10):
            while len(self.content()) < size:
                await asyncio.sleep(0.005)

    def content(self) -> bytes:
        """Return the bytes that are in the file."""
        return self.store.path(self.upload_id, ".part").read_bytes()


async def send(client: Connection, data: bytes) -> None:
    """Send in a thread, because the server that has to read is in this one."""
    await asyncio.get_running_loop().run_in_executor(None, client.send, data)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """A server with an open upload."""
    store = FilesystemStore(tmp_path / "blobs")
    one = Scene(store)
    facts = UploadFacts(user_id="u", tenant="t", created_at=1, job_id=new_id())
    event = UploadCreated(upload_id=one.upload_id, seq=1, at=1, upload=facts)
    await store.create(
        Sidecar(upload_id=one.upload_id, status="created", facts=facts, outbox=(event,))
    )
    app = web.Application()
    app.router.add_post("/", one.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", one.port).start()
    try:
        with one.clients:
            yield one
    finally:
        await runner.cleanup()
        await store.close()


@pytest.mark.parametrize("size", [0, 1, 1000, _BATCH - 1, _BATCH, _BATCH + 1, 3 * _BATCH + 7])
async def test_complete(scene: Scene, size: int) -> None:
    """A whole body is in the file, byte for byte, and the last position is the whole."""
    sent = os.urandom(size)
    client = scene.begin(length=size)
    await send(client, sent)
    assert await scene.end() is Ended.COMPLETE
    assert scene.content() == sent
    assert scene.offsets == sorted(set(scene.offsets))
    assert scene.offsets[-1:] == ([size] if size else [])


@pytest.mark.parametrize("room", [0, 1, 70_000, _BATCH])
async def test_overlong(scene: Scene, room: int) -> None:
    """A body longer than there is room for fills the room exactly, and not a byte more."""
    scene.room = room
    sent = os.urandom(room + 100_000)
    client = scene.begin(length=None)
    await send(client, chunk(sent))
    assert await scene.end() is Ended.OVERLONG
    assert scene.content() == sent[:room]


async def test_exactly_full(scene: Scene) -> None:
    """A body that fills the room exactly is complete."""
    scene.room = 5000
    client = scene.begin(length=None)
    await send(client, chunk(b"x" * 5000) + chunk(b""))
    assert await scene.end() is Ended.COMPLETE
    assert len(scene.content()) == 5000


async def test_cut(scene: Scene) -> None:
    """What arrived before the client left is in the file."""
    sent = os.urandom(_BATCH + 300_000)
    client = scene.begin()
    await send(client, sent)
    client.cut("fin")
    assert await scene.end() is Ended.CUT
    assert scene.content() == sent


async def test_stalled(scene: Scene) -> None:
    """A client that falls silent is waited for as long as is allowed; its bytes are kept."""
    scene.idle_s = 0.5
    started = time.monotonic()
    scene.begin(b"x" * 1000)
    assert await scene.end() is Ended.STALLED
    assert 0.5 <= time.monotonic() - started < 5.0
    assert scene.content() == b"x" * 1000


@pytest.mark.parametrize(("idle_s", "pause_s"), [(0.5, 0.2), (1.2, 0.3)])
async def test_slow_but_alive(scene: Scene, idle_s: float, pause_s: float) -> None:
    """A client that never pauses for too long is not stalled, however slow it is."""
    scene.idle_s = idle_s
    client = scene.begin(length=6)
    for _ in range(6):
        client.send(b"x")
        await asyncio.sleep(pause_s)
    assert await scene.end() is Ended.COMPLETE


async def test_pause_after_steady_bytes(scene: Scene) -> None:
    """The silence is measured from the last byte, not from some byte before it."""
    scene.idle_s = 1.2
    client = scene.begin(length=3)
    for pause in (0.9, 1.0, 0.0):
        client.send(b"x")
        await asyncio.sleep(pause)
    assert await scene.end() is Ended.COMPLETE


async def test_slow_bytes_reach_the_disk(scene: Scene) -> None:
    """Bytes do not wait for company for long: a few are in the file in a moment."""
    client = scene.begin(b"x" * 10)
    await scene.written(10)
    client.send(b"y" * 10)
    await scene.written(20)
    async with asyncio.timeout(10):
        while len(scene.offsets) < 2:  # told right after they are written
            await asyncio.sleep(0.005)
    assert scene.offsets == [10, 20]


@pytest.mark.parametrize("reason", ["takeover", "shutdown"])
async def test_asked(scene: Scene, reason: str) -> None:
    """Whoever is asked to let go does so at once, with what it has received."""
    scene.begin(b"x" * 1000)
    await scene.written(1000)
    assert scene.lease is not None
    started = time.monotonic()
    scene.lease.ask(reason)  # type: ignore[arg-type]
    assert await scene.end() is Ended.ASKED
    assert time.monotonic() - started < 5.0
    assert scene.content() == b"x" * 1000


async def test_asked_under_full_load(scene: Scene) -> None:
    """A fast sender cannot keep the upload from whoever asks, and loses nothing written."""
    client = scene.begin()
    sent = bytes(range(256)) * (64 * MEGABYTE // 256)
    sending = asyncio.ensure_future(send(client, sent))
    await scene.written(2 * _BATCH)
    assert scene.lease is not None
    scene.lease.ask("takeover")
    started = time.monotonic()
    assert await scene.end() is Ended.ASKED
    assert time.monotonic() - started < 5.0
    content = scene.content()
    assert content == sent[: len(content)]
    client.cut("rst")
    await asyncio.wait([sending])
    sending.exception()


@dataclass
class Disk:
    """Stands between the store and the disk: refuses one write, when told to."""

    real: Callable[[int, Sequence[bytes]], int]
    refuse_number: int
    partial: int = 0
    """Bytes that reach the file before the refusal."""
    then_writes: bool = False
    """It only takes its time for that write."""
    started: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    count: int = 0

    def write_all(self, fd: int, pieces: Sequence[bytes]) -> int:
        """Write, or fail as a full disk does."""
        self.count += 1
        if self.count != self.refuse_number:
            return self.real(fd, pieces)
        self.started.set()
        assert self.go_on.wait(10)
        if self.then_writes:
            return self.real(fd, pieces)
        os.write(fd, b"".join(pieces)[: self.partial])
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_disk_refuses(scene: Scene, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused write is told, and nothing is written behind the gap that it leaves."""
    disk = Disk(durable.write_all, number, partial=1000)
    monkeypatch.setattr(filesystem_writer, "write_all", disk.write_all)
    disk.go_on.set()
    sent = os.urandom(3 * _BATCH)
    client = scene.begin(length=len(sent))
    await send(client, sent)
    end = await scene.end()
    assert isinstance(end, OSError)
    assert end.errno == errno.ENOSPC
    content = scene.content()
    assert 1000 <= len(content) < len(sent)
    assert content == sent[: len(content)]
    assert scene.lease is not None
    assert scene.lease.writer.offset == len(content)


async def test_disk_refuses_whoever_is_asked(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails while somebody else asks for the upload leaves no gap either."""
    disk = Disk(durable.write_all, 1, partial=1000)
    monkeypatch.setattr(filesystem_writer, "write_all", disk.write_all)
    client = scene.begin()
    sent = os.urandom(_BATCH + 500_000)
    await send(client, sent)
    loop = asyncio.get_running_loop()
    assert await loop.run_in_executor(None, disk.started.wait, 10)
    await asyncio.sleep(0.3)  # the rest arrives, and receiving waits for the disk
    sent += os.urandom(100_000)
    await send(client, sent[-100_000:])
    await asyncio.sleep(0.1)  # this arrives too, and is not read
    assert scene.lease is not None
    scene.lease.ask("takeover")
    await asyncio.sleep(0.1)
    disk.go_on.set()
    await scene.end()
    content = scene.content()
    assert content == sent[: len(content)]
    assert scene.lease.writer.offset == len(content)


async def test_asked_while_the_disk_is_slow(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is asked keeps what has arrived, even what waited behind a slow disk."""
    disk = Disk(durable.write_all, 1, then_writes=True)
    monkeypatch.setattr(filesystem_writer, "write_all", disk.write_all)
    client = scene.begin()
    sent = os.urandom(_BATCH + 500_000)
    await send(client, sent)
    loop = asyncio.get_running_loop()
    assert await loop.run_in_executor(None, disk.started.wait, 10)
    await asyncio.sleep(0.3)
    more = os.urandom(100_000)
    await send(client, more)
    await asyncio.sleep(0.1)
    assert scene.lease is not None
    scene.lease.ask("takeover")
    disk.go_on.set()
    assert await scene.end() is Ended.ASKED
    assert scene.content() == sent + more


async def test_only_what_is_synced_is_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An offset that the client may forget bytes for is one that the disk has confirmed."""
    synced: list[int] = []

    def sync(fd: int) -> None:
        size = os.fstat(fd).st_size
        durable.sync_data(fd)
        synced.append(size)

    monkeypatch.setattr(filesystem_writer, "sync_data", sync)
    scene.told = []
    sent = os.urandom(2_500_000)
    client = scene.begin(length=len(sent))
    for at in range(0, len(sent), 100_000):
        await send(client, sent[at : at + 100_000])
        await asyncio.sleep(0.1)  # the pace of the client
    assert await scene.end() is Ended.COMPLETE
    assert scene.content() == sent
    assert 1 <= len(scene.told) <= 3
    assert scene.told == synced


async def test_sync_that_fails_is_not_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the disk loses bytes, nobody is told they are safe, and nothing follows the gap."""

    def sync(fd: int) -> None:
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(filesystem_writer, "sync_data", sync)
    scene.told = []
    client = scene.begin()
    with contextlib.suppress(ConnectionError):
        for _ in range(15):
            await send(client, bytes(100_000))
            await asyncio.sleep(0.1)  # the pace of the client
    end = await scene.end()
    assert isinstance(end, OSError)
    assert (end.errno, scene.told, scene.content()) == (errno.EIO, [], b"")


async def test_memory_is_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk hangs, no more than two batches and the socket's buffers are taken in."""
    disk = Disk(durable.write_all, 1)
    monkeypatch.setattr(filesystem_writer, "write_all", disk.write_all)
    client = scene.begin(length=256 * MEGABYTE)
    client.socket.settimeout(1.0)
    taken = 0
    loop = asyncio.get_running_loop()
    with contextlib.suppress(TimeoutError):
        while taken < 256 * MEGABYTE:
            taken += await loop.run_in_executor(None, client.socket.send, bytes(MEGABYTE))
    assert taken < 64 * MEGABYTE  # the kernel may take 36 of them by itself
    client.cut("rst")
    disk.go_on.set()
    await scene.end()
