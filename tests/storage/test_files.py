"""What is a file, how one is deleted, and what becomes of a delete that is cut."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from redis.asyncio import Redis

from services.storage.files import FileDamaged, Files
from shared.blobs.filesystem import FilesystemStore
from shared.errors import Conflict, Forbidden, NotFound
from shared.events import FileDeleted
from shared.identity import Principal
from shared.lifecycle import background
from shared.outbox import Outbox
from shared.publisher import Publisher
from shared.sidecar import SidecarDamaged
from tests.processes import ROOT, RedisServer, ServiceProcess, running, wait_until
from tests.shared.waiting import eventually
from tests.storage import delete_once
from tests.storage.stored_files import (
    lifecycle,
    put_artifact,
    put_copy,
    put_file,
    tombstone_of,
    traces,
)

CONTENT: Final = b"some bytes of a file"
LOCAL: Final = Principal("local", "local", "local", frozenset(), None)
STRANGER: Final = Principal("bob", "local", "bob", frozenset(), None)
LARGE: Final = 64 * 1024 * 1024


@pytest.fixture
def store(data_dir: Path) -> Iterator[FilesystemStore]:
    """A store on an empty data folder."""
    one = FilesystemStore(data_dir / "blobs")
    yield one
    asyncio.run(one.close())


@pytest.fixture
async def outbox(store: FilesystemStore, redis: Redis) -> AsyncIterator[Outbox]:
    """The way from the store to the streams, open."""
    publisher = Publisher(redis, partitions=16, interval_s=0.5)
    one = Outbox(store, publisher, redis, recent_s=60)
    async with background("publisher", publisher.run()):
        yield one
    await one.close()


@pytest.fixture
def files(store: FilesystemStore, outbox: Outbox) -> Files:
    """The files of the store."""
    return Files(store, outbox)


# One delete.


async def test_find_and_open(files: Files, store: FilesystemStore) -> None:
    """A complete upload is a file of its owner, and its bytes can be read."""
    file_id = await put_file(store, CONTENT)

    stored = await files.find(file_id, LOCAL)
    fd = await files.open(stored)
    assert fd is not None

    assert (stored.offset, stored.sidecar.facts.filename) == (len(CONTENT), "report.pdf")
    assert os.pread(fd, 100, 0) == CONTENT
    os.close(fd)


async def test_find_refuses(files: Files, store: FilesystemStore) -> None:
    """What is unknown, unfinished, somebody else's or damaged is told apart."""
    file_id = await put_file(store, CONTENT)
    unfinished = await put_file(store, CONTENT, complete=False)
    damaged = await put_file(store, CONTENT)
    store.path(damaged, ".info").write_bytes(b"{}")

    for unknown in (unfinished, "nonsense", "../epoch", f"{file_id}.info"):
        with pytest.raises(NotFound):
            await files.find(unknown, LOCAL)
    with pytest.raises(Forbidden):
        await files.find(file_id, STRANGER)
    with pytest.raises(Forbidden):
        await files.find(unfinished, STRANGER)
    with pytest.raises(SidecarDamaged):
        await files.find(damaged, LOCAL)


async def test_parts_are_no_files(files: Files, store: FilesystemStore) -> None:
    """A piece of a parallel upload would be served, or deleted, as if it were a file."""
    part = await put_file(store, CONTENT, concat="partial")
    with pytest.raises(NotFound):
        await files.find(part, LOCAL)
    with pytest.raises(NotFound):
        await files.delete(part, LOCAL)
    whole = await put_file(store, CONTENT, concat=f"final;/api/v1/uploads/{part}")
    assert (await files.find(whole, LOCAL)).offset == len(CONTENT)


async def test_a_finish_that_a_crash_cut(files: Files, store: FilesystemStore) -> None:
    """Bytes that have their final name, but no record that says so, are no file yet."""
    unfinished = await put_file(store, CONTENT, complete=False)
    store.path(unfinished, ".part").rename(store.path(unfinished))

    with pytest.raises(NotFound):
        await files.find(unfinished, LOCAL)


async def test_open_refuses_a_file_that_was_cut(files: Files, store: FilesystemStore) -> None:
    """Bytes that the disk has lost are noticed before any are served; the rest can go."""
    file_id = await put_file(store, CONTENT)
    os.truncate(store.path(file_id), len(CONTENT) - 1)

    with pytest.raises(FileDamaged, match="19 bytes instead of 20"):
        await files.open(await files.find(file_id, LOCAL))

    await files.delete(file_id, LOCAL)


async def test_delete_outlives_an_open_descriptor(files: Files, store: FilesystemStore) -> None:
    """Who has opened a file reads it to the end, and nobody opens it again."""
    file_id = await put_file(store, CONTENT)
    stored = await files.find(file_id, LOCAL)
    fd = await files.open(stored)
    assert fd is not None

    await files.delete(file_id, LOCAL)

    assert os.pread(fd, 100, 0) == CONTENT
    os.close(fd)
    with pytest.raises(NotFound):
        await files.open(stored)


async def test_delete_by_a_stranger(files: Files, store: FilesystemStore) -> None:
    """Somebody else's delete changes nothing."""
    file_id = await put_file(store, CONTENT)

    with pytest.raises(Forbidden):
        await files.delete(file_id, STRANGER)

    assert (await files.find(file_id, LOCAL)).visible


async def test_deletes_that_race(
    files: Files, store: FilesystemStore, redis_server: RedisServer
) -> None:
    """Exactly one of many deletes succeeds, and exactly one event is made."""
    file_id = await put_file(store, CONTENT)

    answers = await asyncio.gather(
        *(files.delete(file_id, LOCAL) for _ in range(10)), return_exceptions=True
    )

    assert answers.count(None) == 1
    assert all(isinstance(one, NotFound) for one in answers if one is not None)
    told = await eventually(lambda: lifecycle(redis_server.url, file_id), "it is told")
    assert [type(event) for event in told] == [FileDeleted]


async def test_delete_of_a_file_that_stays_busy(
    files: Files, store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds a file for too long makes the delete a conflict, not a hang."""
    monkeypatch.setattr("services.storage.files._ACQUIRE_S", 0.2)
    file_id = await put_file(store, CONTENT)
    holder = await store.acquire(file_id)

    with pytest.raises(Conflict):
        await files.delete(file_id, LOCAL)

    await holder.close()
    await files.delete(file_id, LOCAL)


async def test_delete_catches_up_on_older_events(
    files: Files, store: FilesystemStore, redis_server: RedisServer, data_dir: Path
) -> None:
    """Events that could not be published before go out with the delete, in order."""
    file_id = await put_file(store, CONTENT, announced=False)

    await files.delete(file_id, LOCAL)

    await eventually(lambda: not traces(data_dir, file_id), "no trace is left")
    assert [event.seq for event in lifecycle(redis_server.url, file_id)] == [1, 2, 3, 4]


# A delete that was cut.


async def test_sweep_of_a_delete_cut_before_the_bytes(
    store: FilesystemStore, outbox: Outbox, data_dir: Path, redis_server: RedisServer
) -> None:
    """A tombstone with its bytes beside it loses them, and the others are told."""
    file_id = await put_file(store, CONTENT)
    store.path(file_id, ".info").write_bytes(tombstone_of(store.load_now(file_id)))
    (store.root / "due" / f"{file_id}.4").touch()

    await outbox.sweep(older_than_s=0)

    await eventually(lambda: not traces(data_dir, file_id), "no trace is left")
    assert [event.seq for event in lifecycle(redis_server.url, file_id)] == [4]


async def test_sweep_of_a_delete_cut_before_the_event(
    store: FilesystemStore, outbox: Outbox, data_dir: Path, redis_server: RedisServer
) -> None:
    """A tombstone without bytes is told and removed."""
    file_id = await put_file(store, CONTENT)
    store.path(file_id, ".info").write_bytes(tombstone_of(store.load_now(file_id)))
    store.path(file_id).unlink()
    (store.root / "due" / f"{file_id}.4").touch()

    await outbox.sweep(older_than_s=0)

    await eventually(lambda: not traces(data_dir, file_id), "no trace is left")
    assert [event.seq for event in lifecycle(redis_server.url, file_id)] == [4]


async def test_delete_cut_before_the_tombstone(
    files: Files, store: FilesystemStore, outbox: Outbox, data_dir: Path
) -> None:
    """As long as the record does not say so, the file is there, and can be deleted."""
    file_id = await put_file(store, CONTENT)
    (store.root / "due" / f"{file_id}.4").touch()
    store.path(file_id, ".info.new").write_bytes(b'{"upload_id": "half a tomb')

    await outbox.sweep(older_than_s=0)
    stored = await files.find(file_id, LOCAL)
    await files.delete(file_id, LOCAL)

    assert stored.visible
    await eventually(lambda: not traces(data_dir, file_id), "no trace is left")


STEPS_TRIED: Final = 14
"""More than a delete has; a program that survives its step has done all of them."""


def delete_and_die(data_dir: Path, redis_url: str, file_id: str, step: int) -> list[str]:
    """Run the program that deletes a file and dies at a step; return the steps before."""
    program = subprocess.run(
        [
            *(sys.executable, delete_once.__file__),
            *(str(data_dir), redis_url, file_id, str(step)),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    steps = program.stdout.splitlines()
    if program.returncode:
        assert (program.returncode, len(steps)) == (-signal.SIGKILL, step - 1)
    return steps


async def test_delete_killed_at_each_step(
    files: Files,
    store: FilesystemStore,
    outbox: Outbox,
    redis_server: RedisServer,
    data_dir: Path,
) -> None:
    """Wherever SIGKILL hits, the file is whole or gone for good, and then it is told.

    What was made of it goes with it, and who shares its bytes keeps them.
    """
    url = redis_server.url
    slots = asyncio.Semaphore(4)

    async def outcome_at(step: int) -> tuple[str, int]:
        file_id = await put_file(store, CONTENT)
        await put_artifact(store, file_id)
        copy_id = await put_copy(store, file_id)
        async with slots:
            steps = await asyncio.to_thread(delete_and_die, data_dir, url, file_id, step)
        await outbox.sweep(older_than_s=0)
        assert store.path(copy_id).read_bytes() == CONTENT
        try:
            await files.find(file_id, LOCAL)
        except NotFound:
            await eventually(lambda: lifecycle(url, file_id), f"it is told after {steps}")
            await eventually(lambda: not traces(data_dir, file_id), f"no trace after {steps}")
            assert {event.seq for event in lifecycle(url, file_id)} == {4}
            return "gone", len(steps)
        assert store.path(file_id).read_bytes() == CONTENT
        assert [one.name for one in await store.artifacts.all(file_id)] == ["thumb.jpg"]
        assert lifecycle(url, file_id) == []
        await files.delete(file_id, LOCAL)
        return "there", len(steps)

    outcomes = await asyncio.gather(*(outcome_at(n) for n in range(1, STEPS_TRIED + 1)))

    kinds = [kind for kind, _ in outcomes]
    assert kinds == sorted(kinds, reverse=True), "a file came back"
    assert set(kinds) == {"there", "gone"}
    assert outcomes[-1][1] < STEPS_TRIED - 1, "a delete has more steps than were tried"


# Without Redis, and with impolite clients.


@pytest.fixture
def start(tmp_path: Path, data_dir: Path) -> Iterator[Callable[..., ServiceProcess]]:
    """Start services of the test's own on one data folder; they end with the test."""
    with ExitStack() as stack:

        def start_one(name: str, server: RedisServer) -> ServiceProcess:
            env = {"REDIS_URL": server.url, "DATA_DIR": str(data_dir)}
            service = ServiceProcess(name, env, tmp_path / f"{name}.log")
            stack.enter_context(running(service))
            return service

        yield start_one


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that the test may kill."""
    server = RedisServer(tmp_path / "own-redis", aof=True)
    with running(server):
        yield server


def ask(method: str, url: str) -> tuple[int, bytes]:
    """Send a request; return status and body."""
    try:
        with urlopen(Request(url, method=method), timeout=20) as answer:
            return answer.status, answer.read()
    except HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read()


def complaints(service: ServiceProcess) -> list[str]:
    """Return the lines of a service's log that tell of an error."""
    marks = ("Traceback", '"level": "error"', '"level": "critical"', "never retrieved")
    lines = service.log.read_text().splitlines()
    return [line for line in lines if any(mark in line for mark in marks)]


def is_degraded(service: ServiceProcess) -> bool:
    """Tell whether a service is ready, and says that it misses Redis."""
    status, body = ask("GET", f"{service.internal_url}/readyz")
    return status == 200 and b'"degraded":["storage.redis"]' in body


async def test_files_without_redis(
    start: Callable[..., ServiceProcess],
    own_redis: RedisServer,
    store: FilesystemStore,
    data_dir: Path,
) -> None:
    """While Redis is away files are served and deleted; when it is back, that is told."""
    file_id, other = await put_file(store, CONTENT), await put_file(store, CONTENT)
    service = start("storage", own_redis)
    url = f"{service.url}/api/v1/storage"
    own_redis.kill()

    assert ask("GET", f"{url}/{file_id}") == (200, CONTENT)
    assert ask("DELETE", f"{url}/{file_id}") == (204, b"")
    assert ask("GET", f"{url}/{file_id}")[0] == 404
    assert ask("DELETE", f"{url}/{file_id}")[0] == 404
    assert ask("GET", f"{url}/{other}") == (200, CONTENT)
    wait_until(lambda: is_degraded(service), "the service says that Redis is away")
    left = {f"{file_id[:2]}/{file_id}.info", f"due/{file_id}.4"}
    assert set(traces(data_dir, file_id)) == left
    own_redis.start()

    wait_until(lambda: not traces(data_dir, file_id), "no trace is left")
    assert [event.seq for event in lifecycle(own_redis.url, file_id)] == [4]
    assert complaints(service) == []


async def test_ingest_makes_up_for_a_dead_storage(
    start: Callable[..., ServiceProcess],
    own_redis: RedisServer,
    store: FilesystemStore,
    data_dir: Path,
) -> None:
    """What a killed storage has left undone, ingest does."""
    file_id = await put_file(store, CONTENT)
    service = start("storage", own_redis)
    own_redis.kill()
    assert ask("DELETE", f"{service.url}/api/v1/storage/{file_id}") == (204, b"")
    service.kill()
    own_redis.start()

    start("ingest", own_redis)

    wait_until(lambda: not traces(data_dir, file_id), "no trace is left")
    assert [event.seq for event in lifecycle(own_redis.url, file_id)] == [4]


async def test_clients_that_vanish(
    start: Callable[..., ServiceProcess], redis_server: RedisServer, store: FilesystemStore
) -> None:
    """Clients that go away in the middle of a download leave no trace but a log line."""
    file_id = await put_file(store, os.urandom(LARGE))
    service = start("storage", redis_server)
    assert ask("HEAD", f"{service.url}/api/v1/storage/{file_id}")[0] == 200
    descriptors = Path(f"/proc/{service.pid}/fd")
    before = len(list(descriptors.iterdir()))
    request = f"GET /api/v1/storage/{file_id} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()

    for how in ("fin", "rst", "unread") * 3:
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as client:
            client.sendall(request)
            if how != "unread":
                assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
            if how == "rst":
                linger = struct.pack("ii", 1, 0)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    wait_until(lambda: len(list(descriptors.iterdir())) <= before, "all descriptors are closed")
    wait_until(
        lambda: service.log.read_text().count('"request_handled"') >= 10, "all are logged"
    )
    assert complaints(service) == []
    assert ask("HEAD", f"{service.url}/api/v1/storage/{file_id}")[0] == 200
