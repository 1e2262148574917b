"""How often the server of a bucket is asked for a download."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
from redis.asyncio import Redis

from services.storage.files import Files
from shared.blobs.s3 import S3Store
from shared.blobs.store import UploadNotFound
from shared.identity import Principal
from shared.outbox import Outbox
from shared.publisher import Publisher
from shared.sidecar import new_id
from tests.s3_servers import MotoServer
from tests.shared.blobs.memory_leases import MemoryLeases, Registry
from tests.storage.stored_files import put_file
from tests.storage.stores import s3_options

CONTENT: Final = bytes(range(256)) * 40
LOCAL: Final = Principal("local", "local", "local", frozenset(), None)


@pytest.fixture
async def store(moto_server: MotoServer) -> AsyncIterator[S3Store]:
    """A place of the test's own."""
    one = S3Store(
        s3_options(moto_server.url),
        prefix=f"reading/{new_id()}/",
        leases=MemoryLeases(Registry()),
        part_size=5 << 20,
    )
    await one.open()
    yield one
    await one.close()


@pytest.fixture
def files(store: S3Store, redis: Redis) -> Files:
    """Its files."""
    publisher = Publisher(redis, partitions=16, interval_s=0.5)
    return Files(store, Outbox(store, publisher, redis, recent_s=60))


async def content(files: Files, file_id: str) -> bytes:
    """Find a file, open it, and return its bytes but the first."""
    found = await files.find(file_id, LOCAL)
    assert await files.open(found) is None
    return b"".join([piece async for piece in files.read(file_id, 1, found.offset - 1)])


async def test_a_download_asks_for_nothing_twice(
    store: S3Store, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at the file, its record, and its bytes: each call more is a round trip more."""
    file_id = await put_file(store, CONTENT)
    call, asked = store.client.call, list[str]()

    async def counted(operation: str, **arguments: Any) -> dict[str, Any]:
        asked.append(operation)
        return await call(operation, **arguments)

    monkeypatch.setattr(store.client, "call", counted)
    assert await content(files, file_id) == CONTENT[1:]
    assert sorted(asked) == ["get_object", "get_object", "list_objects_v2"]


async def test_bytes_that_go_before_they_are_read(store: S3Store, files: Files) -> None:
    """A file that is deleted after it was found is gone, and no empty file."""
    file_id = await put_file(store, CONTENT)
    found = await files.find(file_id, LOCAL)
    assert await files.open(found) is None
    await store.client.remove([store.keys.blob(file_id), store.keys.info(file_id)])
    with pytest.raises(UploadNotFound):
        await anext(files.read(file_id, 0, found.offset))
