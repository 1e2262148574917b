"""Artifacts on a file system keep their promises, and crashes leave nothing for good."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from shared.blobs.artifacts import Artifact
from shared.blobs.filesystem import FilesystemStore
from shared.blobs.store import BlobStore, UploadNotFound
from tests.shared.blobs.artifact_conformance import ArtifactConformance, pieces
from tests.shared.blobs.conformance import OpenStore
from tests.shared.blobs.sharing_conformance import filled


@pytest.fixture
def open_store(data_dir: Path) -> Iterator[OpenStore]:
    """Open stores on one folder; their threads end after the test."""
    with ExitStack() as stack:

        def open_one() -> FilesystemStore:
            store = FilesystemStore(data_dir)
            stack.callback(store._threads.close)
            return store

        yield open_one


class TestFilesystemArtifacts(ArtifactConformance):
    """The file system keeps every promise."""


async def test_halves_are_swept(open_store: OpenStore, data_dir: Path) -> None:
    """What a crash left of a put goes once it is old; it is never listed before."""
    store = open_store()
    upload_id = await filled(store, b"x")
    await store.artifacts.put(upload_id, "a", pieces(b"whole"))
    half = data_dir / upload_id[:2] / f"{upload_id}.artifacts" / ".new-0123"
    half.write_bytes(b"hal")

    assert await store.sweep_leftovers(older_than_s=3600, dry_run=False) == []
    assert [one.name for one in await store.artifacts.all(upload_id)] == ["a"]
    assert await store.sweep_leftovers(older_than_s=-60, dry_run=False) == [
        f"{upload_id}.artifacts/.new-0123"
    ]
    assert [one.name for one in await store.artifacts.all(upload_id)] == ["a"]


async def idle_put(store: BlobStore, upload_id: str, go: asyncio.Event) -> Artifact:
    """Put an artifact whose last bytes come when they are let go."""

    async def content() -> AsyncIterator[bytes]:
        yield b"first "
        await go.wait()
        yield b"last"

    return await store.artifacts.put(upload_id, "b", content())


async def half_of(folder: Path) -> Path:
    """Return what is not whole yet, once its first bytes are there."""
    while True:
        for one in folder.glob(".new-*"):
            if one.stat().st_size:
                return one
        await asyncio.sleep(0.01)


async def test_whoever_is_slow_is_no_leftover(open_store: OpenStore, data_dir: Path) -> None:
    """A sweep takes nothing from a put that has been idle for longer than leftovers may be."""
    store, sweeper, go = open_store(), open_store(), asyncio.Event()
    upload_id = await filled(store, b"x")
    putting = asyncio.ensure_future(idle_put(store, upload_id, go))
    await half_of(data_dir / upload_id[:2] / f"{upload_id}.artifacts")
    assert await sweeper.sweep_leftovers(older_than_s=-60, dry_run=False) == []
    go.set()
    assert (await putting).size == len(b"first last")
    assert await sweeper.sweep_leftovers(older_than_s=-60, dry_run=True) == []


async def test_a_lost_half_takes_nothing_along(open_store: OpenStore, data_dir: Path) -> None:
    """If what a put has written vanishes, the put fails, and the other artifacts stay."""
    store, go = open_store(), asyncio.Event()
    upload_id = await filled(store, b"x")
    await store.artifacts.put(upload_id, "a", pieces(b"whole"))
    putting = asyncio.ensure_future(idle_put(store, upload_id, go))
    (await half_of(data_dir / upload_id[:2] / f"{upload_id}.artifacts")).unlink()
    go.set()
    with pytest.raises(OSError, match="removed"):
        await putting
    assert [one.name for one in await store.artifacts.all(upload_id)] == ["a"]


async def test_nobodys_artifacts_are_swept(open_store: OpenStore, data_dir: Path) -> None:
    """A folder of artifacts without a record is of no use to anybody."""
    store = open_store()
    upload_id = await filled(store, b"x")
    await store.artifacts.put(upload_id, "a", pieces(b"whole"))
    for suffix in ("", ".info"):
        (data_dir / upload_id[:2] / f"{upload_id}{suffix}").unlink()

    assert await store.sweep_leftovers(older_than_s=-60, dry_run=False) == [
        f"{upload_id}.artifacts"
    ]
    assert not (data_dir / upload_id[:2] / f"{upload_id}.artifacts").exists()


@pytest.mark.parametrize("planted", ["link", "pipe", "folder"])
async def test_what_is_no_file(open_store: OpenStore, data_dir: Path, planted: str) -> None:
    """A symbolic link, a pipe or a folder in the place of an artifact is not followed."""
    store = open_store()
    upload_id = await filled(store, b"x")
    await store.artifacts.put(upload_id, "a", pieces(b"whole"))
    place = data_dir / upload_id[:2] / f"{upload_id}.artifacts" / "b"
    if planted == "link":
        place.symlink_to(data_dir / upload_id[:2] / upload_id)
    elif planted == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()

    with pytest.raises((UploadNotFound, OSError)):
        await store.artifacts.open(upload_id, "b")
    assert [one.name for one in await store.artifacts.all(upload_id)] == ["a"]


async def test_a_link_in_place_of_the_folder(
    open_store: OpenStore, data_dir: Path, tmp_path: Path
) -> None:
    """Whoever plants a link there makes nothing readable that lies elsewhere, nor writes it."""
    store, elsewhere = open_store(), tmp_path / "elsewhere"
    upload_id = await filled(store, b"x")
    elsewhere.mkdir()
    (elsewhere / "secret").write_bytes(b"of somebody else")
    (data_dir / upload_id[:2] / f"{upload_id}.artifacts").symlink_to(elsewhere)

    for attempt in (
        store.artifacts.open(upload_id, "secret"),
        store.artifacts.all(upload_id),
        store.artifacts.put(upload_id, "secret", pieces(b"mine")),
    ):
        with pytest.raises(OSError, match="directory"):
            await attempt
    await store.artifacts.remove(upload_id)
    assert (elsewhere / "secret").read_bytes() == b"of somebody else"
