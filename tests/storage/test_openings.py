"""Files that were opened a moment ago: as quick as may be, never what they were before."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from services.storage.files import Files
from services.storage.openings import Opened, Openings
from shared.blobs.filesystem import FilesystemStore
from shared.errors import Forbidden, NotFound
from shared.outbox import Outbox
from shared.principal import Principal
from shared.publisher import Publisher
from tests.storage.stored_files import put_file, tombstone_of

CONTENT = b"the bytes of a file"


def user(user_id: str, tenant: str) -> Principal:
    """Return somebody."""
    return Principal(
        user_id=user_id, tenant=tenant, username=user_id, scopes=frozenset(), expires_at=None
    )


LOCAL = user("local", "local")


class CountingStore(FilesystemStore):
    """Counts the searches that go through threads."""

    reads = 0

    async def read(self, upload_id: str):  # type: ignore[no-untyped-def]
        """Count, and read."""
        self.reads += 1
        return await super().read(upload_id)


@pytest.fixture
async def store(data_dir: Path) -> AsyncIterator[CountingStore]:
    """What keeps the files."""
    one = CountingStore(data_dir / "blobs")
    yield one
    await one.close()


@pytest.fixture
def openings(store: CountingStore, redis: Redis) -> Openings:
    """What is tested."""
    publisher = Publisher(redis, partitions=1, interval_s=1)
    return Openings(Files(store, Outbox(store, publisher, redis, recent_s=1)), store)


def content_of(opened: Opened) -> bytes:
    """Return the bytes, and close the file."""
    assert opened.fd is not None
    try:
        return os.pread(opened.fd, 100, 0)
    finally:
        os.close(opened.fd)


async def test_the_second_time_is_quick(openings: Openings, store: CountingStore) -> None:
    """A file that is still the same is found without a thread, and is the same file."""
    file_id = await put_file(store, CONTENT)

    first = await openings.open(file_id, LOCAL)
    second = await openings.open(file_id, LOCAL)

    assert store.reads == 1
    assert replace(first, fd=None) == replace(second, fd=None)
    assert content_of(first) == content_of(second) == CONTENT


async def test_a_changed_record_is_read(openings: Openings, store: CountingStore) -> None:
    """A digest that was computed meanwhile is told at once, and the former tag stays good."""
    file_id = await put_file(store, CONTENT)
    os.close((before := await openings.open(file_id, LOCAL)).fd or -1)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    sidecar = await store.load(file_id)
    await store.run(store.save, replace(sidecar, digests={"sha256": sha256}))

    after = await openings.open(file_id, LOCAL)

    assert content_of(after) == CONTENT
    assert after.headers["ETag"] == f'"{sha256}"'
    assert after.validators.has(before.headers["ETag"])


@pytest.mark.parametrize("what", ["tombstone", "bytes", "record"])
async def test_a_deleted_file_is_gone(
    openings: Openings, store: CountingStore, what: str
) -> None:
    """However far a delete has come, in whatever process, nobody opens the file again."""
    file_id = await put_file(store, CONTENT)
    os.close((await openings.open(file_id, LOCAL)).fd or -1)
    record = store.path(file_id, ".info")
    if what == "tombstone":
        new = record.with_suffix(".info.new")
        new.write_bytes(tombstone_of(store.load_now(file_id)))
        new.rename(record)
    else:
        (record if what == "record" else store.path(file_id)).unlink()

    for _ in range(2):
        with pytest.raises(NotFound):
            await openings.open(file_id, LOCAL)


async def test_nobody_else_profits(openings: Openings, store: CountingStore) -> None:
    """That its owner has just had a file opens it for nobody."""
    file_id = await put_file(store, CONTENT)
    os.close((await openings.open(file_id, LOCAL)).fd or -1)

    for name, tenant in [("bob", "local"), ("local", "other")]:
        with pytest.raises(Forbidden):
            await openings.open(file_id, user(name, tenant))


async def test_many_at_once(openings: Openings, store: CountingStore) -> None:
    """Each of those who come together has a descriptor of its own."""
    file_id = await put_file(store, CONTENT)

    opened = await asyncio.gather(*(openings.open(file_id, LOCAL) for _ in range(20)))

    assert len({one.fd for one in opened}) == 20
    assert all(content_of(one) == CONTENT for one in opened)
