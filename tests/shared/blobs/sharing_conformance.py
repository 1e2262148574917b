"""What every blob store promises of bytes that several uploads have, as tests.

To test another store, derive a class from ``SharingConformance`` in a test module and give it
the fixture ``open_store``: each call opens the same store once more, as another process would.
"""

from __future__ import annotations

import os

import pytest

from shared.blobs.store import BlobStore, Due, UploadNotFound
from shared.sidecar import new_id
from tests.shared.blobs.chunk_conformance import content_of, new_upload
from tests.shared.blobs.conformance import (
    StoreFixtures,
    ended,
    finished,
    writing,
)
from tests.shared.samples import FACTS, new_sidecar

__all__ = ["SharingConformance", "filled"]

SIZE = FACTS.size or 0


async def filled(store: BlobStore, content: bytes) -> str:
    """Upload bytes; return the id."""
    sidecar = await new_upload(store)
    async with writing(store, sidecar.upload_id) as writer:
        await writer.write([content])
        await writer.sync()
        await writer.finish(finished(sidecar))
    return sidecar.upload_id


class SharingConformance(StoreFixtures):
    """The promises, one a test."""

    async def test_complete_at_once(self, store: BlobStore) -> None:
        """An upload opened with another's bytes is a file, and all of its events are due."""
        content = os.urandom(SIZE)
        original, copy = await filled(store, content), finished(new_sidecar())
        due = await store.create_shared(copy, original)
        assert due == [Due(copy.upload_id, 1), Due(copy.upload_id, 2)]
        stored = await store.read(copy.upload_id)
        assert (stored.sidecar, stored.offset, stored.visible) == (copy, SIZE, True)
        assert await content_of(store, copy.upload_id) == content

    @pytest.mark.parametrize("which", ["unknown", "unfinished", "another size"])
    async def test_no_bytes_to_share(self, store: BlobStore, which: str) -> None:
        """With an original that is no whole file nothing is opened, and nothing is due."""
        if which == "unknown":
            original = new_id()
        elif which == "unfinished":
            original = (await new_upload(store)).upload_id
        else:
            original = await filled(store, b"short")
        copy = finished(new_sidecar())
        with pytest.raises(UploadNotFound):
            await store.create_shared(copy, original)
        with pytest.raises(UploadNotFound):
            await store.read(copy.upload_id)
        due = {one.upload_id for one in await store.due(older_than_s=0)}
        assert copy.upload_id not in due

    @pytest.mark.parametrize("first", ["original", "copy"])
    async def test_bytes_go_with_the_last(self, store: BlobStore, first: str) -> None:
        """Ending one of those that share bytes leaves the other whole."""
        content = os.urandom(SIZE)
        original, copy = await filled(store, content), finished(new_sidecar())
        await store.create_shared(copy, original)
        gone, kept = (original, copy.upload_id) if first == "original" else ("", original)
        async with writing(store, gone or copy.upload_id) as writer:
            await writer.bury(ended(writer.sidecar))
        assert await content_of(store, kept) == content
        assert (await store.read(kept)).visible

    async def test_a_file_takes_over_the_bytes_of_another(self, store: BlobStore) -> None:
        """A complete file that shares later on stays complete, and may do it again."""
        content = os.urandom(SIZE)
        original, late = await filled(store, content), await filled(store, content)
        for _ in range(2):
            async with writing(store, late) as writer:
                await writer.share(original)
                assert (await store.read(late)).visible
        assert await content_of(store, late) == content
        async with writing(store, original) as writer:
            await writer.bury(ended(writer.sidecar))
        assert await content_of(store, late) == content

    async def test_sharing_with_nobody(self, store: BlobStore) -> None:
        """A file whose original is gone keeps its own bytes."""
        late = await filled(store, b"own")
        async with writing(store, late) as writer:
            with pytest.raises(UploadNotFound):
                await writer.share(new_id())
        assert await content_of(store, late) == b"own"
