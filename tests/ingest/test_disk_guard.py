"""The disk guard: uploads stop before the disk is full, and go on when there is room again."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path

import pytest

from services.ingest.disk_guard import DiskGuard
from shared.errors import StorageFull
from tests.ingest.conftest import Ingest, Starter
from tests.ingest.evidence import blob, completed_once, digest, tracebacks
from tests.ingest.form_client import Forms
from tests.ingest.tus_client import Tus
from tests.processes import wait_until

MEGABYTE = 1024 * 1024


def free(folder: Path) -> int:
    """Return the bytes that are free."""
    look = os.statvfs(folder)
    return look.f_bavail * look.f_frsize


def metric(ingest: Ingest, name: str) -> float:
    """Return the value of a metric."""
    with urllib.request.urlopen(f"{ingest.service.internal_url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def test_nothing_is_begun_that_does_not_fit(start_ingest: Starter, small_disk: Path) -> None:
    """What would pass the mark is refused with 507 before a byte of it is taken."""
    mark = 4 * MEGABYTE
    ingest = start_ingest(data_dir=small_disk / "data", UPLOAD_MIN_FREE_BYTES=str(mark))
    tus = ingest.tus
    wait_until(lambda: metric(ingest, "ingest_disk_free_bytes") > 0, "it has looked")
    assert metric(ingest, "ingest_disk_free_bytes") == pytest.approx(free(small_disk), rel=0.1)
    assert tus.post({"Upload-Length": str(13 * MEGABYTE)}).status == 507
    path, deferred = tus.create(8 * MEGABYTE), tus.create(None)
    content = os.urandom(8 * MEGABYTE)
    assert tus.patch(path, 0, content[: 6 * MEGABYTE]).status == 204
    wait_until(lambda: tus.post({"Upload-Length": str(7 * MEGABYTE)}).status == 507, "it looks")
    before = free(small_disk)
    assert tus.patch(deferred, 0, bytes(7 * MEGABYTE)).status == 507
    assert tus.offset(deferred) == 0
    assert free(small_disk) > before - MEGABYTE
    assert tus.patch(path, 6 * MEGABYTE, content[6 * MEGABYTE :]).status == 204
    assert digest(blob(ingest.data_dir, path)) == digest(content)
    assert free(small_disk) >= mark - MEGABYTE
    assert tracebacks(ingest.service) == []


def test_forms_respect_the_mark(start_ingest: Starter, small_disk: Path) -> None:
    """Chunks, joins and whole files by form must leave the same room as all others."""
    mark = 4 * MEGABYTE
    ingest = start_ingest(data_dir=small_disk / "data", UPLOAD_MIN_FREE_BYTES=str(mark))
    wait_until(lambda: metric(ingest, "ingest_disk_free_bytes") > 0, "it has looked")
    forms = Forms(ingest.service.port)
    assert forms.post(bytes(13 * MEGABYTE)).status == 507
    chunks = [os.urandom(3 * MEGABYTE)] * 3
    session = forms.chunk(chunks, 0).data["session_id"]
    assert forms.chunk(chunks, 1, session).status == 202
    wait_until(lambda: metric(ingest, "ingest_disk_free_bytes") < 11 * MEGABYTE, "it looks")
    assert forms.chunk(chunks, 2, session).status == 507, "they are there, but not joined"
    assert free(small_disk) >= mark - MEGABYTE
    assert forms.state(session).status == 507
    assert forms.cancel(session).status == 200
    wait_until(lambda: forms.post(bytes(9 * MEGABYTE)).status == 201, "there is room again")
    assert tracebacks(ingest.service) == []


def test_a_full_disk_and_its_recovery(start_ingest: Starter, small_disk: Path) -> None:
    """A full disk refuses only what needs room; with room again, all goes on by itself."""
    ingest = start_ingest(data_dir=small_disk / "data", UPLOAD_MIN_FREE_BYTES=str(2 * MEGABYTE))
    tus, content = ingest.tus, os.urandom(9 * MEGABYTE)
    done, path, unwanted = tus.create(MEGABYTE), tus.create(len(content)), tus.create(1000)
    tus.patch(done, 0, content[:MEGABYTE])
    tus.patch(path, 0, content[: 5 * MEGABYTE])
    filler = small_disk / "filler"
    with filler.open("wb") as out:
        out.write(bytes(free(small_disk) - MEGABYTE))
    wait_until(lambda: tus.post({"Upload-Length": "1"}).status == 507, "it is full")
    for answer in (
        tus.post({"Upload-Length": "0"}),
        tus.patch(path, 5 * MEGABYTE, content[5 * MEGABYTE :]),
    ):
        assert answer.status == 507
    assert tus.offset(path) == 5 * MEGABYTE
    assert tus.ask("GET", done, {}).status == 307
    assert tus.delete(unwanted).status == 204
    health = json.loads(
        urllib.request.urlopen(f"{ingest.service.internal_url}/readyz").read()  # ready still
    )
    assert "ingest.disk" in json.dumps(health)
    filler.unlink()
    wait_until(
        lambda: tus.patch(path, 5 * MEGABYTE, content[5 * MEGABYTE :]).status == 204,
        "it goes on",
    )
    assert digest(blob(ingest.data_dir, path)) == digest(content)
    completed_once(ingest.redis, path)


def test_percent(start_ingest: Starter, small_disk: Path) -> None:
    """The mark may be given in percent; without any the disk fills up to its last byte."""
    guarded = start_ingest(
        data_dir=small_disk / "a", UPLOAD_MIN_FREE_BYTES="0", UPLOAD_MAX_DISK_PERCENT="50"
    )
    wait_until(lambda: metric(guarded, "ingest_disk_free_bytes") > 0, "it has looked")
    assert guarded.tus.post({"Upload-Length": str(9 * MEGABYTE)}).status == 507
    assert guarded.tus.post({"Upload-Length": str(7 * MEGABYTE)}).status == 201
    open_ = start_ingest(data_dir=small_disk / "b", UPLOAD_MIN_FREE_BYTES="0")
    wait_until(lambda: metric(open_, "ingest_disk_free_bytes") > 0, "it has looked")
    assert Tus(open_.service.port).post({"Upload-Length": str(99 * MEGABYTE)}).status == 201


def test_a_store_without_a_disk() -> None:
    """Where the store is no file system, and before the first look, everything fits."""
    guard = DiskGuard(None, least_free=10, most_percent=90)
    guard.admit(10**18)
    assert not guard.is_full


def test_the_mark_itself() -> None:
    """Up to the mark there is room, not a byte more; the sum is that of ``df``."""
    guard = DiskGuard(Path("/"), least_free=100, most_percent=100)
    guard._note(os.statvfs_result((1, 1, 5000, 1100, 1000, 0, 0, 0, 0, 255)))
    guard.admit(900)
    with pytest.raises(StorageFull):
        guard.admit(901)
    guard._note(os.statvfs_result((1, 1, 5000, 1100, 99, 0, 0, 0, 0, 255)))
    assert guard.is_full
    with pytest.raises(StorageFull):
        guard.admit(0)
