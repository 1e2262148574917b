"""What holds when requests meet, connections break and processes die, item by item."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.ingest.conftest import Ingest, Starter
from tests.ingest.evidence import blob, completed_once, no_file_is_left
from tests.ingest.tus_client import Tus, wait_for_offset
from tests.ingest.wire import Connection


def test_item_037_parallel_patches_never_mix(ingest: Ingest) -> None:
    """Of two PATCHes at one offset at most one succeeds, and the bytes are of one body only."""
    tus, size = ingest.tus, 4_000_000
    for _ in range(3):
        path = tus.create(size)
        bodies = [bytes([kind]) * size for kind in (1, 2)]
        barrier = threading.Barrier(2)

        def send(body: bytes, path: str = path, barrier: threading.Barrier = barrier) -> int:
            barrier.wait()
            return tus.patch(path, 0, body).status

        with ThreadPoolExecutor(2) as pool:
            statuses = list(pool.map(send, bodies))
        assert statuses.count(204) <= 1, statuses
        assert set(statuses) <= {204, 409, 423}, statuses
        content = blob(ingest.data_dir, path)
        assert len(set(content)) == 1
        assert tus.offset(path) == len(content)


def test_item_037_stale_patch_does_not_disturb(tus: Tus) -> None:
    """A PATCH at an offset that has been passed gets 409, and the running one goes on."""
    path = tus.create(1000)
    with tus.begin_patch(path, 0, 1000, b"x" * 400) as running:
        wait_for_offset(tus, path, 400)
        assert tus.patch(path, 0, b"y" * 1000).status == 409
        running.send(b"x" * 600)
        assert running.read().status == 204


def test_item_038_delete_during_patch(ingest: Ingest) -> None:
    """DELETE ends a running PATCH and succeeds; nothing of the upload stays."""
    tus = ingest.tus
    path = tus.create(1000)
    with tus.begin_patch(path, 0, 1000, b"x" * 400) as running:
        wait_for_offset(tus, path, 400)
        assert tus.delete(path).status == 204
        assert running.read().status == 423
    assert tus.head(path).status == 404
    no_file_is_left(ingest.data_dir, path)


def test_item_038_delete_racing_patches(ingest: Ingest) -> None:
    """However DELETE and PATCHes meet, the upload is gone afterwards, with all its files."""
    tus = ingest.tus
    for delay in (0.0, 0.001, 0.003, 0.01):
        path = tus.create(2_000_000)
        with ThreadPoolExecutor(3) as pool:
            racing = [pool.submit(tus.patch, path, 0, b"x" * 2_000_000) for _ in range(2)]
            time.sleep(delay)
            deleted = pool.submit(tus.delete, path)
            assert deleted.result().status == 204
            assert {one.result().status for one in racing} <= {204, 404, 409, 423}
        assert tus.head(path).status == 404
        no_file_is_left(ingest.data_dir, path)


def late_bytes_go_nowhere(old: Connection) -> None:
    """Send on a connection that was taken over until it is closed."""
    with pytest.raises((ConnectionError, EOFError)):  # noqa: PT012
        for _ in range(1000):
            old.send(b"late" * 10_000)
        old.read()
        old.read()


def test_item_039_bytes_that_come_keep_it_alive(start_ingest: Starter) -> None:
    """An upload would expire while its client sends, or after it, by its age alone."""
    ingest = start_ingest(UPLOAD_SESSION_TIMEOUT_HOURS="0.0004")
    tus = ingest.tus
    path, begun = tus.create(1000), time.monotonic()
    with tus.begin_patch(path, 0, 1000) as running:
        while time.monotonic() - begun < 2.5:
            running.send(b"x" * 10)
            time.sleep(0.1)
        offset = tus.offset(path)
    assert offset > 200
    assert tus.patch(path, offset, b"y" * (1000 - offset)).status == 204
    completed_once(ingest.redis, path)


def test_item_041_acknowledged_bytes_survive(mortal: Ingest) -> None:
    """An offset that PATCH or HEAD has told would be less after kill -9, or other bytes."""
    tus, content = mortal.tus, os.urandom(600_000)
    path, acknowledged = tus.create(len(content)), 0
    for end in (100_000, 250_000, 600_000):
        answer = tus.patch(path, acknowledged, content[acknowledged:end])
        assert answer.headers["Upload-Offset"] == str(end)
        mortal.service.kill()
        mortal.service.start()
        acknowledged = tus.offset(path)
        assert acknowledged == end
        assert blob(mortal.data_dir, path) == content[:end]


def test_item_040_reconnect_while_the_old_request_hangs(ingest: Ingest) -> None:
    """A client that comes back is let in at once; its old connection writes no more."""
    tus = ingest.tus
    path = tus.create(1_000_000)
    with tus.begin_patch(path, 0, 1_000_000, b"x" * 300_000) as old:
        wait_for_offset(tus, path, 300_000)
        started = time.monotonic()
        offset = tus.offset(path)
        assert time.monotonic() - started < 5
        assert offset == 300_000
        late_bytes_go_nowhere(old)
        assert tus.patch(path, offset, b"y" * 700_000).status == 204
    assert blob(ingest.data_dir, path) == b"x" * 300_000 + b"y" * 700_000


def test_item_042_offset_never_decreases(ingest: Ingest) -> None:
    """Whatever happens to connections, HEAD never tells less than before."""
    tus, content = ingest.tus, os.urandom(400_000)
    path = tus.create(len(content))
    seen: list[int] = [0]
    ends: list[Callable[[Connection], None]] = [
        lambda one: one.cut("rst"),
        lambda one: one.cut("fin"),
        lambda one: one.cut("half-close"),
        lambda one: None,
    ]
    for turn in range(40):
        at = seen[-1]
        with tus.begin_patch(path, at, len(content) - at, content[at : at + 10_000]) as one:
            ends[turn % 4](one)
            seen.append(tus.offset(path))
    assert seen == sorted(seen)
    assert tus.patch(path, seen[-1], content[seen[-1] :]).status == 204
    assert blob(ingest.data_dir, path) == content
