"""Bytes that the writer of a file takes where they come from."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.blobs.drawing import Drawing, Source
from shared.blobs.filesystem import FilesystemStore
from tests.shared.blobs.conformance import writing
from tests.shared.samples import new_sidecar


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FilesystemStore]:
    """A store in a fresh folder."""
    one = FilesystemStore(tmp_path / "blobs")
    yield one
    asyncio.run(one.close())


def source_of(*pieces: bytes) -> Source:
    """Return a source that gives a piece a call, cut where the buffer ends; then nothing."""
    left = list(pieces)

    def fill(buffer: memoryview) -> int:
        if not left:
            return 0
        count = min(len(buffer), len(left[0]))
        buffer[:count] = left[0][:count]
        left[0] = left[0][count:]
        if not left[0]:
            del left[0]
        return count

    return fill


@pytest.mark.parametrize("most", [1, 700_000, 1_500_000, 10**9])
async def test_no_more_than_is_wanted(store: FilesystemStore, most: int) -> None:
    """Bytes come in their order, behind what is there, and not one too many or lost."""
    sent = os.urandom(1_500_000)
    record = new_sidecar()
    await store.create(record)
    source = source_of(sent[:1], sent[1:600_000], sent[600_000:])
    async with writing(store, record.upload_id) as writer:
        await writer.write([b"before"])
        assert isinstance(writer, Drawing)
        await writer.draw(source, most)
        expected = b"before" + sent[:most]
        assert writer.offset == len(expected)
        assert store.path(record.upload_id, ".part").read_bytes() == expected
        await writer.draw(source, 10**9)
        await writer.write([b"behind"])
        await writer.sync()
    assert store.path(record.upload_id, ".part").read_bytes() == b"before" + sent + b"behind"


async def test_a_file_that_may_not_grow(
    store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The offset counts what is in the file when the disk takes only a part of a piece."""
    record = new_sidecar()
    await store.create(record)
    real = os.writev

    def writev(fd: int, pieces: list[memoryview]) -> int:
        if os.fstat(fd).st_size >= 1000:
            os.write(fd, pieces[0][:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, pieces)

    async with writing(store, record.upload_id) as writer:
        assert isinstance(writer, Drawing)
        monkeypatch.setattr(os, "writev", writev)
        with pytest.raises(OSError, match="No space"):
            await writer.draw(source_of(b"a" * 1000, b"b" * 1000), 10**9)
        assert writer.offset == 1010
    assert store.path(record.upload_id, ".part").read_bytes() == b"a" * 1000 + b"b" * 10


async def test_a_cancelled_caller_waits_for_its_thread(store: FilesystemStore) -> None:
    """Nothing is drawn any more once the caller was told that it is cancelled."""
    record = new_sidecar()
    await store.create(record)
    begun, go_on = threading.Event(), threading.Event()
    pieces = source_of(b"a" * 1000, b"b" * 1000)

    def slow(buffer: memoryview) -> int:
        begun.set()
        assert go_on.wait(10)
        return pieces(buffer)

    async with writing(store, record.upload_id) as writer:
        assert isinstance(writer, Drawing)
        drawing = asyncio.ensure_future(writer.draw(slow, 10**9))
        await asyncio.get_running_loop().run_in_executor(None, begun.wait, 10)
        drawing.cancel()
        asyncio.get_running_loop().call_later(0.1, go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await drawing
        assert writer.offset == 2000
        assert store.path(record.upload_id, ".part").stat().st_size == 2000
