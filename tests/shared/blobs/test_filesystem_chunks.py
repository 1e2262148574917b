"""Chunks on a file system: what every store promises, and that nothing is left of others."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from shared.blobs.filesystem import FilesystemStore
from shared.blobs.filesystem_chunks import FilesystemChunk
from shared.blobs.filesystem_writer import FilesystemWriter
from shared.blobs.store import Chunk, UploadBusy
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


async def test_an_empty_upload_becomes_what_is_staged(open_store: OpenStore) -> None:
    """Bytes that are written twice cost twice; and the lock must go with the file."""
    store, other = open_store(), open_store()
    assert isinstance(store, FilesystemStore)
    sidecar = new_sidecar()
    await store.create(sidecar)
    staged = await store.stage(sidecar.upload_id)
    await staged.write([b"x" * 1000])
    inode = os.fstat(staged.descriptor).st_ino
    async with writing(store, sidecar.upload_id) as writer:
        await writer.take(staged)
        await staged.discard()
        part = store.path(sidecar.upload_id, ".part")
        assert (part.stat().st_ino, writer.offset) == (inode, 1000)
        with pytest.raises(UploadBusy):
            await other.acquire(sidecar.upload_id)
    assert (await other.read(sidecar.upload_id)).offset == 1000
    assert not store.path(sidecar.upload_id, ".chunks").exists()


async def test_staged_bytes_of_an_upload_that_has_ended(open_store: OpenStore) -> None:
    """Whoever gives an upload up for a new one has removed what was staged beside the old."""
    store, old, sidecar = open_store(), new_id(), new_sidecar()
    assert isinstance(store, FilesystemStore)
    await store.create(sidecar)
    staged = await store.stage(old)
    await staged.write([b"x" * 1000])
    await store.remove_bytes(old)
    async with writing(store, sidecar.upload_id) as writer:
        await writer.take(staged)
        assert writer.offset == 1000
    await staged.discard()


def sha(content: bytes) -> str:
    """Return the digest that a chunk is named by."""
    return hashlib.sha256(content).hexdigest()


def just_before(
    monkeypatch: pytest.MonkeyPatch, place: object, name: str, others: Callable[[], object]
) -> None:
    """Let others do something in the moment before a system call that is to come, once."""
    call = getattr(place, name)

    def later(*args: Any, **kwargs: Any) -> object:
        monkeypatch.setattr(place, name, call)
        others()
        return call(*args, **kwargs)

    monkeypatch.setattr(place, name, later)


@pytest.mark.parametrize("commits", [False, True], ids=["stages", "commits"])
async def test_a_folder_that_goes_while_it_is_made(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, commits: bool
) -> None:
    """A request that ends as another one begins would have it answered 503."""
    store, sidecar = open_store(), new_sidecar()
    assert isinstance(store, FilesystemStore)
    await store.create(sidecar)
    staged = await store.stage(new_id()) if commits else None
    other = FilesystemChunk(store, sidecar.upload_id)
    make = os.mkdir

    def mkdir(*args: Any) -> None:
        try:
            make(*args)
        except FileExistsError:
            other.release()  # the other one was the last there
            raise

    monkeypatch.setattr(os, "mkdir", mkdir)
    chunk = staged or await store.stage(sidecar.upload_id)
    await chunk.write([b"a chunk"])
    there = await chunk.commit(sidecar.upload_id, 0, sha(b"a chunk"))
    assert other.descriptor == -1
    assert await store.chunks(sidecar.upload_id) == [there]


async def test_two_chunks_for_one_place_in_a_folder_that_is_made_twice(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock on a folder that has gone would let both stay, and the file be joined wrongly."""
    store, sidecar = open_store(), new_sidecar()
    assert isinstance(store, FilesystemStore)
    await store.create(sidecar)
    folder = store.path(sidecar.upload_id, ".chunks")
    one, other = [FilesystemChunk(store, new_id()) for _ in range(2)]
    for chunk, content in ((one, b"one"), (other, b"the other")):
        await chunk.write([content])
    placed: list[Chunk] = []

    def place_the_other() -> None:
        placed.append(other._commit(sidecar.upload_id, 0, sha(b"the other")))

    def leave() -> None:
        folder.rmdir()
        just_before(monkeypatch, os, "rename", place_the_other)

    just_before(monkeypatch, fcntl, "flock", leave)
    there = await one.commit(sidecar.upload_id, 0, sha(b"one"))
    assert await store.chunks(sidecar.upload_id) == placed == [there]
    assert there.digest == sha(b"the other")


async def test_an_upload_that_is_complete_before_a_repeated_chunk_is_seen_in_its_place(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that sends the last chunk again would fail, though all is well."""
    store, sidecar = open_store(), new_sidecar()
    assert isinstance(store, FilesystemStore)
    await store.create(sidecar)
    first = await commit(store, sidecar.upload_id, 0, b"a chunk")
    repeated = FilesystemChunk(store, sidecar.upload_id)
    await repeated.write([b"a chunk"])
    async with writing(store, sidecar.upload_id) as writer:
        assert isinstance(writer, FilesystemWriter)
        await writer.join_chunks([first])
        touch = os.utime

        def utime(path: Path) -> None:
            monkeypatch.setattr(os, "utime", touch)
            touch(path)
            writer._finish(finished(writer.sidecar))

        monkeypatch.setattr(os, "utime", utime)
        assert await repeated.commit(sidecar.upload_id, 0, first.digest) == first
    assert not store.path(sidecar.upload_id, ".chunks").exists()


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
