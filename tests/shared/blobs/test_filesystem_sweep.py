"""What crashes leave in a file system store goes; what anybody may need stays."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.blobs.filesystem import FilesystemStore
from shared.sidecar import Sidecar, new_id
from tests.shared.blobs.conformance import finished, writing
from tests.shared.samples import new_sidecar

HOUR = 3600.0


@pytest.fixture
async def store(data_dir: Path) -> AsyncIterator[FilesystemStore]:
    """An empty store."""
    one = FilesystemStore(data_dir, fsync="never")
    yield one
    await one.close()


def age(*paths: Path) -> None:
    """Have files look as if nobody had touched them for two hours."""
    for path in paths:
        then = time.time() - 2 * HOUR
        os.utime(path, (then, then), follow_symlinks=False)


def everything(store: FilesystemStore) -> set[str]:
    """Return the paths of all files and folders."""
    return {str(path.relative_to(store.root)) for path in store.root.rglob("*")}


async def sweep(store: FilesystemStore, *, dry_run: bool = False) -> list[str]:
    """Sweep what is older than an hour."""
    return await store.sweep_leftovers(older_than_s=HOUR, dry_run=dry_run)


async def upload(store: FilesystemStore, *, complete: bool = False) -> Sidecar:
    """Open an upload with some bytes; perhaps finish it."""
    sidecar = new_sidecar()
    await store.create(sidecar)
    async with writing(store, sidecar.upload_id) as writer:
        await writer.write([b"bytes"])
        if complete:
            sidecar = finished(sidecar)
            await writer.finish(sidecar)
    return sidecar


def orphan(store: FilesystemStore, suffix: str, content: bytes = b"x") -> Path:
    """Make an old file that has no record beside it."""
    path = store.path(new_id(), suffix)
    path.write_bytes(content)
    age(path)
    return path


@pytest.mark.parametrize("content", [b"", b"bytes"])
@pytest.mark.parametrize("suffix", [".part", ".info.new", ".share"])
async def test_files_without_a_record_go(
    store: FilesystemStore, suffix: str, content: bytes
) -> None:
    """A crash before the record was there leaves nothing for ever, not even an empty file."""
    path = orphan(store, suffix, content)
    assert await sweep(store, dry_run=True) == [path.name]
    assert path.exists()
    assert await sweep(store) == [path.name]
    assert not path.exists()
    assert await sweep(store) == []


async def test_chunks_without_a_record_go(store: FilesystemStore) -> None:
    """Chunks that came before a creation that never followed go with their folder."""
    chunk = await store.stage(new_id())
    await chunk.write([b"x"])
    folder = chunk._path.parent
    assert await sweep(store) == []
    age(folder)
    assert await sweep(store) == [folder.name]
    assert not folder.exists()
    await chunk.discard()


async def test_chunks_that_were_cut_go(store: FilesystemStore) -> None:
    """A chunk that was not received to its end goes; committed ones of an open upload stay."""
    sidecar = await upload(store)
    whole, cut, running = [await store.stage(sidecar.upload_id) for _ in range(3)]
    await whole.commit(sidecar.upload_id, 0, "0" * 64)
    folder = store.path(sidecar.upload_id, ".chunks")
    age(*(cut._path, folder))
    assert await sweep(store) == [f"{folder.name}/{cut._path.name}"]
    assert [one.index for one in await store.chunks(sidecar.upload_id)] == [0]
    await running.discard()
    await cut.discard()


async def test_what_belongs_to_an_upload_stays(store: FilesystemStore) -> None:
    """Bytes, records and markers of uploads stay, however old they are."""
    for complete in (False, True):
        await upload(store, complete=complete)
    age(*(path for path in store.root.rglob("*") if path.is_file()))
    before = everything(store)
    assert await sweep(store) == []
    assert everything(store) == before


async def test_a_complete_file_without_a_record_stays(store: FilesystemStore) -> None:
    """Who loses records can still have the files."""
    path = orphan(store, "")
    assert await sweep(store) == []
    assert path.exists()


async def test_what_is_young_stays(store: FilesystemStore) -> None:
    """What may be under way just now is left alone."""
    for suffix in (".part", ".info.new", ".share"):
        os.utime(orphan(store, suffix))
    before = everything(store)
    assert await sweep(store) == []
    assert everything(store) == before


async def test_what_is_being_made_stays(store: FilesystemStore) -> None:
    """A creation that hangs between its bytes and its record keeps its lock, and its file."""
    sidecar = await upload(store)
    part = store.path(sidecar.upload_id, ".part")
    async with writing(store, sidecar.upload_id):
        store.path(sidecar.upload_id, ".info").unlink()
        age(part)
        assert await sweep(store) == []
        assert part.exists()
    assert await sweep(store) == [part.name]


async def test_planted_links_are_left_alone(store: FilesystemStore, tmp_path: Path) -> None:
    """A link leads a sweep to nothing outside the store, and does not stop it."""
    target = tmp_path / "precious"
    target.mkdir()
    (target / "file").write_text("x")
    links = [store.path(new_id(), suffix) for suffix in (".part", ".chunks", ".info.new")]
    for link in links:
        link.symlink_to(target)
        age(link)
    path = orphan(store, ".part")
    assert await sweep(store) == [path.name]
    assert (target / "file").exists()
    assert all(link.is_symlink() for link in links)
