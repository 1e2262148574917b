"""What every blob store promises of chunks that come apart from each other, as tests.

To test another store, derive a class from ``ChunkConformance`` in a test module and give it the
fixture ``open_store``: each call opens the same store once more, as another process would.
"""

from __future__ import annotations

import asyncio
import hashlib
import random

import pytest

from shared.blobs.store import BlobStore, Chunk, UploadNotFound
from shared.sidecar import Sidecar, new_id
from tests.shared.blobs.conformance import (
    StoreFixtures,
    ended,
    finished,
    writing,
)
from tests.shared.samples import new_sidecar

__all__ = ["ChunkConformance", "commit"]


async def new_upload(store: BlobStore) -> Sidecar:
    """Create an upload without bytes."""
    sidecar = new_sidecar()
    await store.create(sidecar)
    return sidecar


async def commit(
    store: BlobStore, upload_id: str, index: int, content: bytes, *, staged_for: str = ""
) -> Chunk:
    """Receive a chunk whole."""
    staged = await store.stage(staged_for or upload_id)
    await staged.write([content[:3], content[3:]])
    return await staged.commit(upload_id, index, hashlib.sha256(content).hexdigest())


async def content_of(store: BlobStore, upload_id: str) -> bytes:
    """Return all bytes of an upload."""
    return b"".join([piece async for piece in store.read_range(upload_id, 0, 2**30)])


class ChunkConformance(StoreFixtures):
    """The promises, one a test."""

    async def test_chunks_join_in_order_whatever_order_they_came_in(
        self, store: BlobStore, other: BlobStore
    ) -> None:
        """Chunks put together in the order of their arrival would spoil the file."""
        upload_id = (await new_upload(store)).upload_id
        contents = [random.Random(index).randbytes(1000 + index) for index in range(6)]
        order = [4, 0, 5, 2, 1, 3]
        await asyncio.gather(
            *(commit((store, other)[one % 2], upload_id, one, contents[one]) for one in order)
        )
        chunks = await other.chunks(upload_id)
        assert [one.size for one in chunks] == [1000, 1001, 1002, 1003, 1004, 1005]
        async with writing(store, upload_id) as writer:
            await writer.join_chunks(chunks)
            assert writer.offset == 6015
            await writer.finish(finished(writer.sidecar))
        assert await content_of(other, upload_id) == b"".join(contents)
        assert await store.chunks(upload_id) == []

    async def test_first_chunk_for_a_place_stays(
        self, store: BlobStore, other: BlobStore
    ) -> None:
        """Of two chunks for one place that race, both might think that they had it."""
        upload_id = (await new_upload(store)).upload_id
        answers = await asyncio.gather(
            *(commit((store, other)[n % 2], upload_id, 0, b"%06d" % n) for n in range(8))
        )
        assert len(set(answers)) == 1
        assert await store.chunks(upload_id) == [answers[0]]

    async def test_chunk_may_belong_elsewhere_than_it_was_staged_for(
        self, store: BlobStore
    ) -> None:
        """Bytes that come before the fields of their form would be lost, or stay behind."""
        upload_id, guess = (await new_upload(store)).upload_id, new_id()
        placed = await commit(store, upload_id, 3, b"out of place", staged_for=guess)
        assert await store.chunks(upload_id) == [placed]
        assert await store.chunks(guess) == []

    async def test_chunk_of_an_upload_that_ended_is_refused(self, store: BlobStore) -> None:
        """A chunk that comes late would bring a cancelled upload back, or stay for good."""
        complete, cancelled = await new_upload(store), await new_upload(store)
        staged = [await store.stage(one.upload_id) for one in (complete, cancelled)]
        async with writing(store, complete.upload_id) as writer:
            await writer.finish(finished(writer.sidecar))
        async with writing(store, cancelled.upload_id) as writer:
            await writer.bury(ended(writer.sidecar))
        for one, sidecar in zip(staged, (complete, cancelled), strict=True):
            with pytest.raises(UploadNotFound):
                await one.commit(sidecar.upload_id, 0, "0" * 64)
            assert await store.chunks(sidecar.upload_id) == []
        with pytest.raises(UploadNotFound):
            await commit(store, new_id(), 0, b"of nothing")

    async def test_chunk_counts_as_bytes_that_arrived(self, store: BlobStore) -> None:
        """A session that gets its chunks slowly would end as if nobody had continued it."""
        upload_id = (await new_upload(store)).upload_id
        before = (await store.read(upload_id)).modified_at
        await asyncio.sleep(1.05)  # stores may tell times by the second
        await commit(store, upload_id, 0, b"a chunk")
        assert (await store.read(upload_id)).modified_at > before
