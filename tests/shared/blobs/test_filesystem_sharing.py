"""Shared bytes on a file system: what every store promises, one file for all, no leftovers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from shared.blobs.filesystem import FilesystemStore
from shared.blobs.store import UploadBusy
from shared.sidecar import new_id
from tests.processes import ROOT
from tests.shared.blobs import share_in_the_middle
from tests.shared.blobs.conformance import OpenStore, finished, writing
from tests.shared.blobs.sharing_conformance import SIZE, SharingConformance, filled
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


class TestFilesystemSharing(SharingConformance):
    """The file system keeps every promise."""


async def test_one_file_for_all(open_store: OpenStore, data_dir: Path) -> None:
    """However the bytes came to be shared, they lie on the disk once."""
    store, content = open_store(), os.urandom(SIZE)
    original, late = await filled(store, content), await filled(store, content)
    copy = finished(new_sidecar())
    await store.create_shared(copy, original)
    async with writing(store, late) as writer:
        await writer.share(original)
    ids = (original, late, copy.upload_id)
    assert len({(data_dir / one[:2] / one).stat().st_ino for one in ids}) == 1
    names = [path.name for path in data_dir.rglob("*") if path.suffix in {".share", ".new"}]
    assert names == []


async def test_a_held_original_is_busy(open_store: OpenStore) -> None:
    """Who shares waits for nobody: the lock lies on the file that both would have."""
    store = open_store()
    original, late = await filled(store, b"x"), await filled(store, b"x")
    async with writing(store, original), writing(store, late) as writer:
        with pytest.raises(UploadBusy):
            await writer.share(original)


async def test_a_link_without_a_record_is_swept(open_store: OpenStore, data_dir: Path) -> None:
    """What a crash leaves of a shared creation goes; a lone file without a record stays."""
    store = open_store()
    original, lone = await filled(store, b"x"), await filled(store, b"y")
    link = data_dir / original[:2] / new_id()
    os.link(data_dir / original[:2] / original, link)
    (data_dir / lone[:2] / f"{lone}.info").unlink()
    long_ago = time.time() - 1000
    for path in (link, data_dir / lone[:2] / lone):
        os.utime(path, (long_ago, long_ago))
    found = await store.sweep_leftovers(older_than_s=500, dry_run=False)
    assert found == [link.name]
    assert not link.exists()
    assert (data_dir / lone[:2] / lone).exists()
    assert (await store.read(original)).visible


async def test_sharing_what_is_deleted_on_a_full_disk(
    open_store: OpenStore, data_dir: Path
) -> None:
    """To make room for a tombstone, no bytes go that another upload has come to share."""
    original = await filled(open_store(), os.urandom(SIZE))
    link = data_dir / original[:2] / new_id()
    done = subprocess.run(
        [sys.executable, share_in_the_middle.__file__, str(data_dir), original, str(link)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout == f"{SIZE} True"
