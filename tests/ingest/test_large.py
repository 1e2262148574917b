"""A file far larger than memory, and than what fits in 32 bits."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.ingest.conftest import Ingest, Starter
from tests.ingest.tus_client import CHUNK, Tus, id_of
from tests.ingest.wire import Connection, head_of

GIB: Final = 2**30
SIZE: Final = 20 * 10**9 + 1
MARK: Final = os.urandom(4096)
PLACES: Final = (*range(0, SIZE - GIB, GIB - 7), SIZE - len(MARK))
"""Where the file is not empty: across every kind of boundary, and at its very end."""
MOST_GROWTH: Final = 64 * 2**20
REQUEST: Final = 6 * GIB + 12_345


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """A sparse file: holes that take no disk, with marks in between."""
    path = tmp_path / "source"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for place in PLACES:
            file.seek(place)
            file.write(MARK)
    yield path
    path.unlink()


def send(port: int, path: str, source: Path, start: int, end: int) -> int:
    """PATCH a range of a file; return the acknowledged offset."""
    with Connection(port) as one, source.open("rb") as file:
        one.socket.settimeout(300)
        length = {"Upload-Offset": str(start), "Content-Length": str(end - start)}
        one.send(head_of("PATCH", path, {**CHUNK, **length}))
        one.socket.sendfile(file, start, end - start)
        answer = one.read()
        assert answer.status == 204, answer
        return int(answer.headers["Upload-Offset"])


class PeakMemory:
    """Watches a process's resident memory; an error in the thread shows in ``stop``."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest: Final = ingest
        self._done: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._watch)
        self.bytes = ingest.service.memory()
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self.bytes = max(self.bytes, self._ingest.service.memory())

    def stop(self) -> int:
        """Return the most that was seen, in bytes."""
        self._done.set()
        self._thread.join()
        return self.bytes


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_gigabytes_in_bounded_memory(start_ingest: Starter, source: Path) -> None:
    """Offsets hold beyond 32 bits, each byte is at its place, and memory does not grow."""
    ingest = start_ingest(UPLOAD_MAX_FILE_SIZE="0")
    tus = Tus(ingest.service.port)
    before = ingest.service.memory()
    path = tus.create(SIZE)
    peak = PeakMemory(ingest)
    try:
        offset = 0
        while offset < SIZE:
            end = min(offset + REQUEST, SIZE)
            assert send(ingest.service.port, path, source, offset, end) == end
            assert tus.offset(path) == end
            offset = end
    finally:
        grown = peak.stop() - before
    assert grown < MOST_GROWTH
    received = ingest.data_dir / "blobs" / id_of(path)[:2] / id_of(path)
    assert received.stat().st_size == SIZE
    with received.open("rb") as file:
        for place in PLACES:
            file.seek(max(place - 100, 0))
            hole = bytes(min(place, 100))
            seen = file.read(len(hole) + len(MARK) + 100)
            assert seen == hole + MARK + bytes(min(100, SIZE - place - len(MARK)))
    received.unlink()
