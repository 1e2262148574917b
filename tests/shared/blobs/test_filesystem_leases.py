"""The file system store where its locks do not suffice: a lease is taken before the lock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from shared.blobs.filesystem import FilesystemStore
from shared.blobs.store import UploadBusy, UploadNotFound
from shared.leases import LeaseLost
from shared.redis_leases import RedisLease, RedisLeases
from shared.sidecar import new_id
from tests.processes import RedisServer
from tests.shared.samples import completed, new_sidecar
from tests.shared.waiting import eventually


class Recorded(RedisLeases):
    """Leases of which a test knows the last one."""

    last: RedisLease

    async def acquire(self, upload_id: str, *, least_fence: int = 0) -> RedisLease:
        """Take the lease and remember it."""
        self.last = await super().acquire(upload_id, least_fence=least_fence)
        return self.last

    def is_free(self, upload_id: str) -> bool:
        """Tell whether this process does not hold an upload."""
        return upload_id not in self._held


@pytest.fixture
async def leases(redis_server: RedisServer, redis: Redis) -> AsyncIterator[Recorded]:
    """Leases that are granted at once."""
    one = Recorded(redis_server.url, fenced=False)
    async with one.running():
        memory = "lease:{writers}:memory"
        await eventually(lambda: redis.exists(memory), "a process has pulsed")
        await redis.hincrby(memory, "born", -60_000)
        yield one


@pytest.fixture
async def store(data_dir: Path, leases: Recorded) -> AsyncIterator[FilesystemStore]:
    """A store that needs leases."""
    one = FilesystemStore(data_dir, leases=leases)
    yield one
    await one.close()


@pytest.fixture
async def upload_id(store: FilesystemStore) -> str:
    """An open upload."""
    sidecar = new_sidecar()
    await store.create(sidecar)
    return sidecar.upload_id


async def test_lease_is_held_as_long_as_the_writer(
    store: FilesystemStore, leases: Recorded, upload_id: str
) -> None:
    """Whoever writes has the lease too, and gives it up when it is done."""
    writer = await store.acquire(upload_id)
    leases.last.check()
    with pytest.raises(UploadBusy):
        await store.acquire(upload_id)
    await writer.close()
    await writer.close()
    assert leases.is_free(upload_id)
    await (await store.acquire(upload_id)).close()


async def test_lease_without_the_lock_is_given_back(
    store: FilesystemStore, leases: Recorded, data_dir: Path, upload_id: str
) -> None:
    """Who cannot lock the bytes does not keep others from them by a lease."""
    elsewhere = FilesystemStore(data_dir)
    holder = await elsewhere.acquire(upload_id)
    with pytest.raises(UploadBusy):
        await store.acquire(upload_id)
    assert leases.is_free(upload_id)
    await holder.close()
    await elsewhere.close()
    with pytest.raises(UploadNotFound):
        await store.acquire(unknown := new_id())
    assert leases.is_free(unknown)


OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "write": lambda writer: writer.write([b"late"]),
    "record": lambda writer: writer.record(writer.sidecar),
    "finish": lambda writer: writer.finish(
        writer.sidecar.after("completed", completed(writer.sidecar.upload_id))
    ),
    "bury": lambda writer: writer.bury(writer.sidecar),
    "join": lambda writer: writer.join_chunks([]),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_nothing_is_written_without_the_lease(
    store: FilesystemStore, leases: Recorded, data_dir: Path, upload_id: str, operation: str
) -> None:
    """Once the lease is lost no operation changes anything; what was there stays."""
    writer = await store.acquire(upload_id)
    await writer.write([b"early"])
    await writer.sync()
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}
    leases.last.lose()

    with pytest.raises(LeaseLost):
        await OPERATIONS[operation](writer)

    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")} == before
    await writer.close()
    assert (await store.read(upload_id)).offset == 5


async def test_lease_that_is_lost_during_a_write_is_not_acknowledged(
    store: FilesystemStore, leases: Recorded, upload_id: str
) -> None:
    """What may have been written beside another one's bytes is never told to be safe."""
    writer = await store.acquire(upload_id)
    writing = asyncio.ensure_future(writer.write([bytes(64 * 1024 * 1024)]))
    await asyncio.sleep(0.001)
    leases.last.lose()
    with pytest.raises(LeaseLost):
        await writing
    with pytest.raises(LeaseLost):
        await writer.sync()
    await writer.close()


async def test_questions_come_both_ways(
    store: FilesystemStore, leases: Recorded, data_dir: Path, redis_server: RedisServer
) -> None:
    """Whoever waits leaves word in Redis and in the folder; both are passed on."""
    uploads = [new_sidecar().upload_id for _ in range(2)]
    plain = FilesystemStore(data_dir)
    for upload_id in uploads:
        await leases.acquire(upload_id)
    other = RedisLeases(redis_server.url, fenced=False)
    async with other.running():
        await other.ask(uploads[0])
        await plain.ask_release(uploads[1])

        async def asked() -> bool:
            return await store.release_asked() == set(uploads)

        await eventually(asked, "both are known")
    await plain.close()
