"""What every blob store promises of artifacts (``shared.blobs.artifacts``), as tests.

To test another store, derive a class from ``ArtifactConformance`` in a test module and give it
the fixture ``open_store``: each call opens the same store once more, as another process would.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import pytest

from shared.blobs.artifacts import Artifact
from shared.blobs.store import BlobStore, UploadNotFound
from shared.sidecar import new_id
from tests.shared.blobs.chunk_conformance import new_upload
from tests.shared.blobs.conformance import NO_IDS, StoreFixtures, ended, pattern, writing
from tests.shared.blobs.sharing_conformance import filled

__all__ = ["ArtifactConformance", "end_while_one_is_put", "pieces"]

NO_NAMES = ["", ".", "..", ".hidden", "a/b", "../x", "a b", "x" * 129, "\0", "é", "a\n", "%2e"]


async def pieces(content: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    """Yield content piece by piece."""
    for at in range(0, len(content), size):
        yield content[at : at + size]


async def held_back(parts: Sequence[bytes], go: asyncio.Event) -> AsyncIterator[bytes]:
    """Yield parts, the last one only when it is let go."""
    for one in parts[:-1]:
        yield one
    await go.wait()
    yield parts[-1]


async def content_of(
    store: BlobStore, upload_id: str, artifact: Artifact, start: int = 0, length: int = 1 << 40
) -> bytes:
    """Return what the store gives of an artifact's bytes."""
    stream = store.artifacts.read_range(upload_id, artifact, start, length)
    return b"".join([piece async for piece in stream])


async def opened(store: BlobStore, upload_id: str, name: str) -> Artifact:
    """Return an artifact as it is opened, without its descriptor."""
    artifact, fd = await store.artifacts.open(upload_id, name)
    if fd is not None:
        os.close(fd)
    return artifact


async def bury(store: BlobStore, upload_id: str) -> None:
    """End an upload."""
    async with writing(store, upload_id) as writer:
        await writer.bury(ended(writer.sidecar))


async def end_while_one_is_put(store: BlobStore, other: BlobStore, body: bytes) -> None:
    """End an upload while the last bytes of an artifact are on their way."""
    upload_id, go = await filled(store, b"some bytes"), asyncio.Event()
    putting = asyncio.ensure_future(
        store.artifacts.put(upload_id, "a", held_back([body[:-5], body[-5:]], go))
    )
    await asyncio.sleep(0)
    await bury(other, upload_id)
    go.set()
    with pytest.raises(UploadNotFound):
        await putting
    assert await store.artifacts.all(upload_id) == []
    assert await store.sweep_leftovers(older_than_s=-60, dry_run=True) == []


class ArtifactConformance(StoreFixtures):
    """The promises, one a test."""

    @pytest.mark.parametrize("size", [0, 20_000])
    async def test_put_and_read(self, store: BlobStore, other: BlobStore, size: int) -> None:
        """What one process puts, of any size, another one lists, opens and reads in part."""
        upload_id, body = await filled(store, b"some bytes"), pattern(size)
        put = await store.artifacts.put(upload_id, "thumb-1.jpg", pieces(body))
        found = await opened(other, upload_id, "thumb-1.jpg")
        assert (found.name, found.size, found.tag) == ("thumb-1.jpg", size, put.tag)
        assert await content_of(other, upload_id, found) == body
        assert await content_of(other, upload_id, found, 5, 4000) == body[5:4005]
        assert [one.tag for one in await other.artifacts.all(upload_id)] == [put.tag]

    async def test_listed_by_name(self, store: BlobStore) -> None:
        """All of one upload's artifacts are listed, in order, and no other's."""
        upload_id, second = await filled(store, b"1"), await filled(store, b"2")
        for name in ("b.parquet", "a.info", "due", "Z_9"):
            await store.artifacts.put(upload_id, name, pieces(b"x"))
        await store.artifacts.put(second, "c", pieces(b"x"))
        names = [one.name for one in await store.artifacts.all(upload_id)]
        assert names == ["Z_9", "a.info", "b.parquet", "due"]

    async def test_replaced(self, store: BlobStore) -> None:
        """A new one has another tag, and what was opened before is not mixed with it."""
        upload_id = await filled(store, b"some bytes")
        first = await store.artifacts.put(upload_id, "a", pieces(b"first"))
        second = await store.artifacts.put(upload_id, "a", pieces(b"other"))
        assert first.tag != second.tag
        assert await content_of(store, upload_id, second) == b"other"
        with pytest.raises(OSError):  # noqa: PT011 - each store has its own
            await content_of(store, upload_id, first)

    async def test_bad_names(self, store: BlobStore) -> None:
        """A name that could leave the upload's own place is refused, an id likewise."""
        upload_id = await filled(store, b"some bytes")
        for name in NO_NAMES:
            with pytest.raises(ValueError, match="no name"):
                await store.artifacts.put(upload_id, name, pieces(b"x"))
            with pytest.raises(UploadNotFound):
                await store.artifacts.open(upload_id, name)
        for no_id in NO_IDS:
            with pytest.raises(UploadNotFound):
                await store.artifacts.put(no_id, "a", pieces(b"x"))
            with pytest.raises(UploadNotFound):
                await store.artifacts.open(no_id, "a")
            assert await store.artifacts.all(no_id) == []
            await store.artifacts.remove(no_id)

    async def test_only_of_complete_uploads(self, store: BlobStore) -> None:
        """An upload that is unfinished, unknown or gone gets none."""
        unfinished = (await new_upload(store)).upload_id
        gone = await filled(store, b"some bytes")
        await bury(store, gone)
        for upload_id in (unfinished, new_id(), gone):
            with pytest.raises(UploadNotFound):
                await store.artifacts.put(upload_id, "a", pieces(b"x"))
            assert await store.artifacts.all(upload_id) == []

    async def test_gone_with_the_upload(self, store: BlobStore) -> None:
        """The end of an upload takes its artifacts, and nobody else's."""
        upload_id, second = await filled(store, b"1"), await filled(store, b"2")
        await store.artifacts.put(upload_id, "a", pieces(pattern(9000)))
        artifact = await store.artifacts.put(second, "a", pieces(pattern(9000)))
        await bury(store, upload_id)
        assert await store.artifacts.all(upload_id) == []
        with pytest.raises(UploadNotFound):
            await store.artifacts.open(upload_id, "a")
        assert await content_of(store, second, artifact) == pattern(9000)

    async def test_gone_after_a_cut_end(self, store: BlobStore) -> None:
        """What a crash left beside a tombstone is removed with the bytes."""
        upload_id = await filled(store, b"some bytes")
        await store.artifacts.put(upload_id, "a", pieces(b"x"))
        async with writing(store, upload_id) as writer:
            await writer.record(ended(writer.sidecar))
        await store.remove_bytes(upload_id)
        assert await store.artifacts.all(upload_id) == []

    async def test_removed(self, store: BlobStore) -> None:
        """All can be removed, twice, and the upload stays."""
        upload_id = await filled(store, b"some bytes")
        await store.artifacts.put(upload_id, "a", pieces(b"x"))
        for _ in range(2):
            await store.artifacts.remove(upload_id)
            assert await store.artifacts.all(upload_id) == []
        assert (await store.read(upload_id)).visible

    async def test_end_while_one_is_put(self, store: BlobStore, other: BlobStore) -> None:
        """One that comes as its upload ends is refused, and leaves nothing."""
        await end_while_one_is_put(store, other, pattern(10))

    async def test_ends_that_race_with_puts(self, store: BlobStore, other: BlobStore) -> None:
        """However an end and many puts interleave, nothing outlives the upload."""
        for _ in range(5):
            upload_id = await filled(store, b"some bytes")
            puts = [
                store.artifacts.put(upload_id, f"a{number}", pieces(pattern(3000), 300))
                for number in range(4)
            ]
            done = await asyncio.gather(*puts, bury(other, upload_id), return_exceptions=True)
            assert done[-1] is None
            assert all(isinstance(one, Artifact | UploadNotFound) for one in done[:-1])
            assert await store.artifacts.all(upload_id) == []

    async def test_cut_in_the_middle(self, store: BlobStore) -> None:
        """Content that fails on its way leaves what was there before."""
        upload_id = await filled(store, b"some bytes")
        before = await store.artifacts.put(upload_id, "a", pieces(b"before"))

        async def failing() -> AsyncIterator[bytes]:
            yield pattern(9000)
            raise KeyError

        with suppress(KeyError):
            await store.artifacts.put(upload_id, "a", failing())
        assert await store.artifacts.all(upload_id) == [before]
        assert await content_of(store, upload_id, before) == b"before"
        assert await store.sweep_leftovers(older_than_s=-60, dry_run=True) == []

    async def test_not_swept(self, store: BlobStore) -> None:
        """A sweep leaves the artifacts of a complete upload alone, however old they are."""
        upload_id = await filled(store, b"some bytes")
        await store.artifacts.put(upload_id, "a", pieces(pattern(9000)))
        assert await store.sweep_leftovers(older_than_s=-60, dry_run=False) == []
        assert (await opened(store, upload_id, "a")).size == 9000
