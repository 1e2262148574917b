"""The reaper: what nobody comes back for goes, once, and nothing else does."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis as redis_client
from msgspec.structs import replace

from services.ingest.abandoned import Remains, remains_of
from shared.blobs.store import Stored
from shared.events import UploadCreated, UploadFacts, UploadFailed
from shared.sidecar import Sidecar, encode, new_id
from tests.ingest.conftest import Ingest, Starter, prepare, started
from tests.ingest.evidence import (
    blob,
    completed_once,
    files_of,
    lifecycle,
    no_file_is_left,
    sidecar,
    snapshot,
    tracebacks,
)
from tests.ingest.tus_client import id_of
from tests.processes import ROOT, RedisServer, free_port, running, wait_until

DAY_S = 86_400.0


def age(data_dir: Path, path: str, by_s: float = 25 * 3600) -> None:
    """Have an upload look as if its last byte came so long ago."""
    shard = data_dir / "blobs" / id_of(path)[:2]
    for suffix in (".part", ""):
        file = shard / f"{id_of(path)}{suffix}"
        if file.exists():
            then = time.time() - by_s
            os.utime(file, (then, then))


def change(data_dir: Path, path: str, record: Sidecar) -> None:
    """Replace the record of an upload that rests."""
    file = data_dir / "blobs" / id_of(path)[:2] / f"{id_of(path)}.info"
    file.write_bytes(encode(record))


def fail(data_dir: Path, path: str) -> None:
    """Have an upload look as if it had failed yesterday, and everybody knows."""
    before = sidecar(data_dir, path)
    long_ago = int((time.time() - 25 * 3600) * 1000)
    event = UploadFailed(
        upload_id=before.upload_id,
        seq=before.next_seq,
        at=long_ago,
        upload=before.facts,
        error_code="X",
    )
    change(data_dir, path, before.after("failed", event))
    (data_dir / "blobs" / id_of(path)[:2] / f"{id_of(path)}.part").unlink()


class Place:
    """A data folder and a Redis that services and reapers work on."""

    def __init__(self, redis: RedisServer, folder: Path, stack: ExitStack) -> None:
        self.redis = redis
        self.folder = folder
        self.data_dir = folder / "data"
        self._stack = stack
        self._count = 0

    def serve(self, **env: str) -> Ingest:
        """Start a process that serves."""
        self._count += 1
        log = self.folder / f"log{self._count}"
        one = prepare(self.redis, self.data_dir, log, **{"REAPER_INTERVAL": "0", **env})
        self._stack.enter_context(started(one))
        return one

    def reaping(self, *flags: str, **env: str) -> subprocess.Popen[str]:
        """Start ``python -m services.ingest reap``."""
        kept = {k: v for k, v in os.environ.items() if k in {"PATH", "HOME", "LANG"}}
        given = {"REDIS_URL": self.redis.url, "DATA_DIR": str(self.data_dir), **env}
        return subprocess.Popen(
            [sys.executable, "-m", "services.ingest", "reap", *flags],
            cwd=ROOT,
            env={**kept, "LOG_FORMAT": "json", "AUTH_MODE": "open", **given},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def reap(self, *flags: str, code: int = 0, **env: str) -> list[str]:
        """Reap to the end; return the lines that it wrote."""
        process = self.reaping(*flags, **env)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, (out, err)
        assert "Traceback" not in err, err
        return (out + (err if code else "")).splitlines()

    def client(self) -> Any:
        """Return a client of the Redis."""
        client: Any = redis_client.Redis.from_url(self.redis.url)
        self._stack.callback(client.close)
        return client


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place with a Redis of its own."""
    with ExitStack() as stack:
        server = RedisServer(tmp_path / "redis")
        stack.enter_context(running(server))
        yield Place(server, tmp_path, stack)


def expired(redis: RedisServer, path: str) -> None:
    """Wait until the stream tells that an upload has expired; check that it does so once."""

    def kinds() -> list[str]:
        return [type(event).__name__ for event in lifecycle(redis.url, path)]

    wait_until(lambda: "UploadExpired" in kinds(), "it has expired", kinds, limit_s=20)
    assert kinds().count("UploadExpired") == 1


def test_everything_that_is_abandoned_goes(place: Place) -> None:
    """One line for each thing that went, its event on the stream, and all else untouched."""
    ingest = place.serve()
    tus, data_dir = ingest.tus, ingest.data_dir
    left, empty = tus.create(100), tus.create(100)
    tus.patch(left, 0, b"x" * 50)
    part, failed, unrecorded = tus.create(10), tus.create(10), tus.create(10)
    for path in (part, unrecorded):
        tus.patch(path, 0, os.urandom(10))  # equal ones would share their bytes
        completed_once(place.redis, path)
    quarantined, done, alive, fresh_part = (tus.create(10) for _ in range(4))
    for path in (done, fresh_part, quarantined):
        tus.patch(path, 0, os.urandom(10))
        completed_once(place.redis, path)
    leftover = data_dir / "blobs" / "ab" / f"ab{new_id()[2:]}.part"
    leftover.write_bytes(b"")
    os.utime(leftover, (1, 1))
    snapshot(data_dir)  # all events are published
    for path in (part, fresh_part):
        change(data_dir, path, replace(sidecar(data_dir, path), concat="partial"))
    change(data_dir, quarantined, replace(sidecar(data_dir, quarantined), status="quarantined"))
    before = sidecar(data_dir, unrecorded)
    change(data_dir, unrecorded, replace(before, status="created", outbox=before.outbox[:1]))
    fail(data_dir, failed)
    for path in (left, empty, part, unrecorded, quarantined, done):
        age(data_dir, path)
    lines = place.reap()
    assert sorted(lines) == sorted(
        [
            *(f"reaped upload {id_of(path)}" for path in (left, empty)),
            f"reaped part {id_of(part)}",
            f"reaped record {id_of(failed)}",
            f"reaped unrecorded {id_of(unrecorded)}",
            f"reaped leftover {leftover.name}",
            "6 reaped",
        ]
    )
    for path in (left, empty, part):
        expired(place.redis, path)
        no_file_is_left(data_dir, path)
        assert tus.head(path).status in {404, 410}
        client = place.client()
        assert client.hget(f"upload:{id_of(path)}", "status") == b"expired"
    no_file_is_left(data_dir, failed)
    assert not leftover.exists()
    assert sidecar(data_dir, unrecorded).status == "completed"
    assert sidecar(data_dir, quarantined).status == "quarantined"
    assert (len(blob(data_dir, done)), len(blob(data_dir, fresh_part))) == (10, 10)
    assert tus.patch(alive, 0, b"x" * 10).status == 204
    assert place.reap() == ["0 reaped"]
    assert tracebacks(ingest.service) == []


def test_a_dry_run_changes_nothing(place: Place) -> None:
    """It tells what would go, in the same words, and needs no Redis for it."""
    ingest = place.serve()
    paths = [ingest.tus.create(100) for _ in range(3)]
    for path in paths:
        ingest.tus.patch(path, 0, b"x" * 50)
    snapshot(ingest.data_dir)
    for path in paths[:2]:
        age(ingest.data_dir, path)
    before, client = snapshot(ingest.data_dir), place.client()
    wait_until(lambda: len(client.keys("upload:*")) == 3, "the records are written")
    keys = set(client.keys())
    expected = sorted(
        [*(f"would reap upload {id_of(path)}" for path in paths[:2]), "2 to reap"]
    )
    assert sorted(place.reap("--dry-run")) == expected
    nowhere = f"redis://127.0.0.1:{free_port()}"
    assert sorted(place.reap("--dry-run", REDIS_URL=nowhere)) == expected
    assert snapshot(ingest.data_dir) == before
    assert set(client.keys()) == keys


def test_without_redis_nothing_is_reaped(place: Place) -> None:
    """A real run needs to know that nobody else is at it; it says so in one line."""
    ingest = place.serve()
    path = ingest.tus.create(100)
    snapshot(ingest.data_dir)
    age(ingest.data_dir, path)
    before = snapshot(ingest.data_dir)
    lines = place.reap(code=2, REDIS_URL=f"redis://127.0.0.1:{free_port()}")
    assert len(lines) == 1
    assert "no Redis answers there" in lines[0]
    assert snapshot(ingest.data_dir) == before


@pytest.mark.parametrize("arguments", [("--wet-run",), ("--dry-run", "now"), ("reap",)])
def test_unknown_flags(place: Place, arguments: tuple[str, ...]) -> None:
    """A typing error must not turn a dry run into a real one."""
    lines = place.reap(*arguments, code=2)
    assert len(lines) == 1
    assert "reap --dry-run" in lines[0]


def test_one_at_a_time(place: Place) -> None:
    """Of two reapers one does the work, the other one says so and is content."""
    ingest = place.serve()
    paths = [ingest.tus.create(100) for _ in range(60)]
    snapshot(ingest.data_dir)
    for path in paths:
        age(ingest.data_dir, path)
    both = [place.reaping() for _ in range(2)]
    outs = [one.communicate(timeout=60)[0].splitlines() for one in both]
    assert [one.returncode for one in both] == [0, 0]
    reaped = [line for out in outs for line in out if line.startswith("reaped ")]
    assert sorted(reaped) == sorted(f"reaped upload {id_of(path)}" for path in paths)
    place.client().set("ingest:reaper", "somebody", px=60_000)
    assert place.reap() == ["another process is cleaning up", "0 reaped"]


def test_a_killed_reaper_leaves_nothing_half_done(place: Place) -> None:
    """After kill -9 in the middle each upload is whole or gone, and the next one goes on."""
    ingest = place.serve()
    paths = [ingest.tus.create(100) for _ in range(80)]
    for path in paths:
        ingest.tus.patch(path, 0, b"x" * 50)
    snapshot(ingest.data_dir)
    for path in paths:
        age(ingest.data_dir, path)
    process = place.reaping()
    assert process.stdout is not None
    for _ in range(20):
        process.stdout.readline()
    process.kill()
    process.communicate()
    client = place.client()
    assert 0 < client.pttl("ingest:reaper") <= 60_000, "its turn ends by itself"
    whole = [path for path in paths if files_of(ingest.data_dir, path)]
    assert 0 < len(whole) < 80
    client.pexpire("ingest:reaper", 1)
    wait_until(lambda: not client.exists("ingest:reaper"), "its turn has ended")
    place.reap()
    ingest.service.kill()
    ingest.service.start()  # what the dead one could not publish, a start does
    for path in paths:
        expired_at_least_once(place.redis, path)
        no_file_is_left(ingest.data_dir, path)


def expired_at_least_once(redis: RedisServer, path: str) -> None:
    """Wait for the event; it may be there twice, being the same, after a crash."""

    def found() -> set[int]:
        events = lifecycle(redis.url, path)
        return {one.seq for one in events if type(one).__name__ == "UploadExpired"}

    wait_until(lambda: found() == {2}, "it has expired", found, limit_s=20)


def test_in_the_background(place: Place) -> None:
    """Processes that serve do it by themselves, one of them at a time."""
    pair = [place.serve(REAPER_INTERVAL="0.2") for _ in range(2)]
    tus = pair[0].tus
    paths, alive = [tus.create(100) for _ in range(20)], tus.create(100)
    snapshot(pair[0].data_dir)
    for path in paths:
        age(pair[0].data_dir, path)
    for path in paths:
        expired(place.redis, path)
        no_file_is_left(pair[0].data_dir, path)
    assert tus.offset(alive) == 0
    text = "".join(one.service.log.read_text() for one in pair)
    assert text.count("upload_reaped") == 20


def test_a_cut_finish_whose_content_is_wrong_has_failed(place: Place) -> None:
    """The check that was cut off is made up for too; what it finds ends no process."""
    ingest = place.serve()
    path = ingest.tus.create(10)
    ingest.tus.patch(path, 0, b"x" * 10)
    completed_once(place.redis, path)
    snapshot(ingest.data_dir)
    before = sidecar(ingest.data_dir, path)
    ingest.service.kill()
    cut_off = replace(
        before,
        status="created",
        completed_at=None,
        outbox=before.outbox[:1],
        expected={"sha256": "0" * 64},
        digests={},
    )
    change(ingest.data_dir, path, cut_off)
    age(ingest.data_dir, path)
    there = place.serve(REAPER_INTERVAL="0.2")

    def status() -> str:
        return sidecar(ingest.data_dir, path).status

    wait_until(lambda: status() == "failed", "it has failed", status)
    assert there.tus.offset(there.tus.create(1)) == 0
    assert tracebacks(there.service) == []


def test_redis_away_in_the_background(place: Place) -> None:
    """A reaper without Redis waits for it, and goes on when it is back."""
    ingest = place.serve(REAPER_INTERVAL="0.2")
    path = ingest.tus.create(100)
    snapshot(ingest.data_dir)
    place.redis.kill()
    age(ingest.data_dir, path)
    time.sleep(0.6)  # some rounds
    assert files_of(ingest.data_dir, path)
    assert ingest.tus.head(path).status == 410
    place.redis.start()
    expired(place.redis, path)
    no_file_is_left(ingest.data_dir, path)


def test_whoever_comes_back_in_time_goes_on(place: Place) -> None:
    """Around the end a client goes on, or is told that the upload is gone; never half."""
    lifetime_s = 1.5
    ingest = place.serve(
        REAPER_INTERVAL="0.05", UPLOAD_SESSION_TIMEOUT_HOURS=str(lifetime_s / 3600)
    )
    tus, rng = ingest.tus, random.Random(37)
    began = threading.Event()

    def come_back(_: int) -> tuple[str, int, int]:
        path = tus.create(100)
        assert tus.patch(path, 0, b"x" * 40).status == 204
        began.wait(lifetime_s + rng.uniform(-0.4, 0.3))
        status = tus.patch(path, 40, b"y" * 60).status
        return path, status, tus.head(path).status

    with ThreadPoolExecutor(24) as pool:
        ends = list(pool.map(come_back, range(48)))
    statuses = {status for _, status, _ in ends}
    assert statuses <= {204, 404, 410}
    assert len(statuses) > 1, "the clients did not come around the end"
    for path, status, head in ends:
        if status == 204:
            assert head == 200
            assert blob(ingest.data_dir, path) == b"x" * 40 + b"y" * 60
        else:
            expired(place.redis, path)
            no_file_is_left(ingest.data_dir, path)
    assert tracebacks(ingest.service) == []


def test_a_running_request_is_not_disturbed(start_ingest: Starter) -> None:
    """An upload whose client is there is not ended, however old its last byte is."""
    ingest = start_ingest(REAPER_INTERVAL="0.1")
    tus = ingest.tus
    path = tus.create(100)
    with tus.begin_patch(path, 0, 100, b"x" * 10) as one:
        wait_until(lambda: blob(ingest.data_dir, path) == b"x" * 10, "it is there")
        age(ingest.data_dir, path)
        time.sleep(0.5)  # some rounds
        one.send(b"y" * 90)
        assert one.read().status == 204
    assert blob(ingest.data_dir, path) == b"x" * 10 + b"y" * 90
    assert tus.ask("GET", path, {}).status == 307


def stored(offset: int = 5, visible: bool = False, **changes: Any) -> Stored:
    """Return an upload whose last byte came at 1000."""
    facts = UploadFacts(user_id="u", tenant="t", created_at=1, job_id="j", size=9)
    event = UploadCreated(upload_id="i", seq=1, at=1, upload=facts)
    record = Sidecar(
        upload_id="i", facts=facts, outbox=(event,), **{"status": "created", **changes}
    )
    return Stored(sidecar=record, offset=offset, modified_at=1000.0, visible=visible)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (stored(), "upload"),
        (stored(concat="partial"), "upload"),
        (stored(visible=True), "unrecorded"),
        (stored(status="completed", visible=True), None),
        (stored(status="completed", visible=True, concat="partial"), "part"),
        (stored(status="completed", visible=True, concat="final;/a /b", parts=("a",)), None),
        (stored(status="quarantined"), None),
        (stored(status="quarantined", concat="partial"), None),
        (stored(status="failed", offset=0), "record"),
    ],
)
def test_what_is_abandoned(state: Stored, expected: Remains | None) -> None:
    """What is complete or waits for a scan stays for ever; all else until its time is over."""
    assert remains_of(state, DAY_S, 1000.0 + DAY_S) is None
    assert remains_of(state, DAY_S, 1000.1 + DAY_S) == expected
