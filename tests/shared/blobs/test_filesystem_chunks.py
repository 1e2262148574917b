"""Chunks on a file system: what every store promises, and that nothing is left of others."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from shared.blobs.filesystem import FilesystemStore
from shared.sidecar import new_id
from tests.shared.blobs.chunk_conformance import ChunkConformance, commit
from tests.shared.blobs.conformance import OpenStore, finished, writing
from tests.shared.samples import new_sidecar


@pytest.fixture
def open_store(data_dir: Path) -> Iterator[OpenStore]:
    """Open stores on one folder; they are closed after the test."""
    with ExitStack() as stack:

        def open_one() -> FilesystemStore:
            store = FilesystemStore(data_dir)
            stack.callback(lambda: asyncio.run(store.close()))
            return store

        yield open_one


class TestFilesystemChunks(ChunkConformance):
    """The file system keeps every promise."""


async def test_chunks_that_are_given_up_leave_nothing(open_store: OpenStore) -> None:
    """Each request that ends early would leave a file, a folder or a descriptor behind."""
    store = open_store()
    assert isinstance(store, FilesystemStore)
    files = sorted(store.root.rglob("*"))
    descriptors = len(os.listdir("/proc/self/fd"))
    guess = new_id()
    for _ in range(3):
        staged = [await store.stage(guess) for _ in range(20)]
        await asyncio.gather(*(one.write([b"x" * 1000]) for one in staged))
        await asyncio.gather(*(one.discard() for one in staged))
    assert sorted(store.root.rglob("*")) == files
    assert len(os.listdir("/proc/self/fd")) <= descriptors


async def test_sweep_removes_the_chunks_that_a_crash_left_of_a_complete_upload(
    open_store: OpenStore,
) -> None:
    """A crash between the last record and the removal of the chunks would double the file."""
    store, sidecar = open_store(), new_sidecar()
    assert isinstance(store, FilesystemStore)
    await store.create(sidecar)
    await commit(store, sidecar.upload_id, 0, b"a chunk")
    folder = store.path(sidecar.upload_id, ".chunks")
    kept = folder.rename(folder.with_suffix(".kept"))
    async with writing(store, sidecar.upload_id) as writer:
        await writer.finish(finished(writer.sidecar))
    kept.rename(folder)
    os.utime(folder, (time.time() - 100,) * 2)
    assert await store.sweep_leftovers(older_than_s=1000, dry_run=False) == []
    assert await store.sweep_leftovers(older_than_s=50, dry_run=False) == [folder.name]
    assert not folder.exists()
