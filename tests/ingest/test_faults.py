"""Real faults on real processes: nothing acknowledged is lost, no upload ends twice."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis as redis_client

from shared.streams import partition_of, progress_stream, read_ids
from tests.ingest.conftest import Ingest, Starter, prepare, started
from tests.ingest.evidence import (
    blob,
    completed_once,
    digest,
    files_of,
    lifecycle,
    no_file_is_left,
    sidecar,
    tracebacks,
)
from tests.ingest.form_client import Forms
from tests.ingest.system_calls import injecting
from tests.ingest.tus_client import CHUNK, Tus, id_of, wait_for_offset
from tests.ingest.wire import Connection, Cut
from tests.processes import RedisServer, running, wait_until
from tests.shared.unpacking import unpack_positions

MEGABYTE = 1024 * 1024


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, with an append-only file, to be mistreated."""
    server = RedisServer(tmp_path / "redis", aof=True)
    with running(server):
        yield server
        server.signal(signal.SIGCONT)


def restart(ingest: Ingest) -> None:
    """Kill the process -9 and start it again."""
    ingest.service.kill()
    ingest.service.start()


# The process dies.


def test_killed_in_the_middle_of_a_patch(mortal: Ingest) -> None:
    """After kill -9 the upload goes on from at least what had been written."""
    tus, content = mortal.tus, os.urandom(3_000_000)
    path = tus.create(len(content))
    assert tus.patch(path, 0, content[:1_000_000]).status == 204
    with tus.begin_patch(path, 1_000_000, 2_000_000, content[1_000_000:2_500_000]):
        wait_for_offset(tus, path, 2_000_000)
        restart(mortal)
    offset = tus.offset(path)
    assert 2_000_000 <= offset <= 2_500_000
    assert tus.patch(path, offset, content[offset:]).status == 204
    assert blob(mortal.data_dir, path) == content
    completed_once(mortal.redis, path)


STEPS: dict[str, tuple[str, Callable[[Path, str], Path]]] = {
    "bytes not synced": ("fdatasync", lambda root, one: root / one[:2] / f"{one}.part"),
    "bytes not visible": ("rename", lambda root, one: root / one[:2] / f"{one}.part"),
    "event not marked": ("openat", lambda root, one: root / "due" / f"{one}.2"),
    "record not synced": ("fdatasync", lambda root, one: root / one[:2] / f"{one}.info.new"),
    "record not in place": ("rename", lambda root, one: root / one[:2] / f"{one}.info.new"),
    "names not synced": ("fsync", lambda root, one: root / one[:2]),
    "event published": ("unlink", lambda root, one: root / "due" / f"{one}.2"),
}


@pytest.mark.skipif(not shutil.which("strace"), reason="strace stops the process between steps")
@pytest.mark.parametrize("step", STEPS)
def test_killed_between_the_steps_of_completing(mortal: Ingest, step: str) -> None:
    """Wherever kill -9 interrupts the completion, it is made up for, exactly once."""
    tus, content = mortal.tus, os.urandom(10_000)
    path = tus.create(len(content))
    call, place = STEPS[step]
    with tus.begin_patch(path, 0, len(content), content[:5000]) as one:
        wait_for_offset(tus, path, 5000)
        file = place(mortal.data_dir / "blobs", id_of(path))
        with injecting(mortal.service.pid, call, file, "signal=SIGKILL"):
            one.send(content[5000:])
            with suppress(EOFError, ConnectionError):
                assert one.read().status == 204  # only where all is done but the marker
    restart(mortal)
    headers = tus.head(path).headers
    assert headers["Upload-Offset"] == headers["Upload-Length"] == str(len(content))
    assert tus.ask("GET", path, {}).status == 307
    assert tus.patch(path, len(content)).status == 204
    assert blob(mortal.data_dir, path) == content
    completed_once(mortal.redis, path, repeats=True)
    assert [event.seq for event in sidecar(mortal.data_dir, path).outbox] == [1, 2]


@pytest.mark.skipif(not shutil.which("strace"), reason="strace stops the process between steps")
def test_killed_in_the_middle_of_a_deletion(mortal: Ingest) -> None:
    """A deletion that kill -9 interrupts is as if it had been finished, and says so."""
    path = mortal.tus.create(100)
    mortal.tus.patch(path, 0, b"x" * 50)
    part = mortal.data_dir / "blobs" / id_of(path)[:2] / f"{id_of(path)}.part"
    pid = mortal.service.pid
    with injecting(pid, "unlink", part, "signal=SIGKILL"), suppress(EOFError, ConnectionError):
        mortal.tus.delete(path)
    assert part.exists()
    restart(mortal)
    assert mortal.tus.head(path).status == 404
    no_file_is_left(mortal.data_dir, path)
    assert type(lifecycle(mortal.redis.url, path)[-1]).__name__ == "UploadCancelled"


def test_acknowledged_bytes_survive_every_kill(mortal: Ingest) -> None:
    """However often the process is killed, an offset that a client has seen is still there."""
    tus, content = mortal.tus, os.urandom(8 * MEGABYTE)
    path = tus.create(len(content))
    acknowledged = 0
    rng = random.Random(7)

    def send_small_patches() -> None:
        nonlocal acknowledged
        with suppress(EOFError, ConnectionError), Connection(tus.port) as one:
            at = acknowledged
            while at < len(content):
                headers = {**CHUNK, "Upload-Offset": str(at)}
                one.request("PATCH", path, headers, content[at : at + 50_000])
                answer = one.read()
                assert answer.status == 204, answer
                at = acknowledged = int(answer.headers["Upload-Offset"])

    for _ in range(4):
        sender = threading.Thread(target=send_small_patches)
        sender.start()
        time.sleep(rng.uniform(0.02, 0.15))
        mortal.service.kill()
        sender.join()
        mortal.service.start()
        offset = tus.offset(path)
        assert offset >= acknowledged
        assert blob(mortal.data_dir, path) == content[:offset]
        acknowledged = offset
    assert tus.patch(path, acknowledged, content[acknowledged:]).status == 204
    assert blob(mortal.data_dir, path) == content


def test_stopped_in_the_middle_of_a_patch(mortal: Ingest) -> None:
    """At SIGTERM what has arrived is kept, the client is told, and the process ends quickly."""
    tus = mortal.tus
    path = tus.create(1000)
    with tus.begin_patch(path, 0, 1000, b"x" * 400) as one:
        wait_for_offset(tus, path, 400)
        started = time.monotonic()
        assert mortal.service.terminate() == 0
        assert time.monotonic() - started < 10
        answer = one.read()
        assert answer.status == 503
        assert answer.headers["Retry-After"]
    mortal.service.start()
    assert tus.offset(path) == 400
    assert tus.patch(path, 400, b"y" * 600).status == 204
    assert tracebacks(mortal.service) == []


def test_stopped_under_load(mortal: Ingest) -> None:
    """At SIGTERM in the middle of many fast uploads each ends with 503, and none is damaged."""
    tus, content = mortal.tus, os.urandom(MEGABYTE) * 64
    paths = [tus.create(len(content)) for _ in range(4)]
    statuses = []

    def send(path: str) -> None:
        with suppress(EOFError, ConnectionError):
            statuses.append(tus.patch(path, 0, content).status)

    senders = [threading.Thread(target=send, args=(path,)) for path in paths]
    for sender in senders:
        sender.start()
    wait_for_offset(tus, paths[0], 4 * MEGABYTE)
    assert mortal.service.terminate() == 0
    for sender in senders:
        sender.join()
    mortal.service.start()
    assert set(statuses) <= {503, 204}
    for path in paths:
        offset = tus.offset(path)
        assert blob(mortal.data_dir, path) == content[:offset]
    assert tracebacks(mortal.service) == []


# Redis dies, hangs or forgets.


def test_redis_is_restarted(start_ingest: Starter, own_redis: RedisServer) -> None:
    """While Redis is away uploads go on as ever; their events come after."""
    ingest = start_ingest(own_redis)
    tus = ingest.tus
    before = tus.create(1000)
    tus.patch(before, 0, b"x" * 300)
    wait_until(lambda: len(lifecycle(own_redis.url, before)) == 1, "it is published")
    with tus.begin_patch(before, 300, 700, b"x" * 100) as one:
        own_redis.kill()
        started = time.monotonic()
        one.send(b"x" * 600)
        assert one.read().status == 204
        during = tus.create(5)
        assert tus.patch(during, 0, b"hello").status == 204
        assert tus.head(during).status == 200
        deleted = tus.create(5)
        assert tus.delete(deleted).status == 204
        assert time.monotonic() - started < 4.5
    own_redis.start()
    for path in (before, during):
        completed_once(own_redis, path, repeats=True)
    no_file_is_left(ingest.data_dir, deleted)
    assert tracebacks(ingest.service) == []


def test_redis_hangs(start_ingest: Starter, own_redis: RedisServer) -> None:
    """A Redis that hangs slows no request down, and gets the events when it goes on."""
    ingest = start_ingest(own_redis)
    tus = ingest.tus
    path = tus.create(30 * 1000)
    own_redis.signal(signal.SIGSTOP)
    slowest = 0.0
    for offset in range(0, 30 * 1000, 1000):
        started = time.monotonic()
        assert tus.patch(path, offset, b"x" * 1000).status == 204
        slowest = max(slowest, time.monotonic() - started)
    assert slowest < 4.5  # redis-py would wait for five seconds
    own_redis.signal(signal.SIGCONT)
    completed_once(own_redis, path, repeats=True)
    assert tracebacks(ingest.service) == []


def test_stopped_while_redis_hangs(start_ingest: Starter, own_redis: RedisServer) -> None:
    """A Redis that hangs does not keep the process from ending in seconds, nor loses events."""
    ingest = start_ingest(own_redis)
    path = ingest.tus.create(5)
    wait_until(lambda: len(lifecycle(own_redis.url, path)) == 1, "it is published")
    own_redis.signal(signal.SIGSTOP)
    assert ingest.tus.patch(path, 0, b"hello").status == 204
    started = time.monotonic()
    assert ingest.service.terminate() == 0
    assert time.monotonic() - started < 10
    own_redis.signal(signal.SIGCONT)
    ingest.service.start()
    completed_once(own_redis, path, repeats=True)


def test_redis_forgets(start_ingest: Starter, own_redis: RedisServer) -> None:
    """After FLUSHALL the upload goes on, and the events of live and recent ones come back."""
    ingest = start_ingest(own_redis)
    tus = ingest.tus
    done, running_one = tus.create(0), tus.create(1000)
    completed_once(own_redis, done)
    with tus.begin_patch(running_one, 0, 1000, b"x" * 400) as one:
        wait_for_offset(tus, running_one, 400)
        client: Any = redis_client.Redis.from_url(own_redis.url)
        client.flushall()
        client.close()
        assert lifecycle(own_redis.url, done) == []
        one.send(b"x" * 600)
        assert one.read().status == 204
    for path in (done, running_one):
        completed_once(own_redis, path, repeats=True)


def test_a_resting_upload_is_told_again(own_redis: RedisServer, tmp_path: Path) -> None:
    """After a wipe those who watch paused uploads must not be shown that nothing has come."""
    ingest = prepare(own_redis, tmp_path / "data", tmp_path / "log")
    with started(ingest):
        path, forms = ingest.tus.create(1000), Forms(ingest.service.port)
        assert ingest.tus.patch(path, 0, b"x" * 400).status == 204
        session = forms.post(b"y" * 30, chunk_index=1, total_chunks=2).data["upload_id"]
        ingest.service.kill()  # so that nothing but the store knows how far they are
        client: Any = redis_client.Redis.from_url(own_redis.url)
        client.flushall()
        ingest.service.start()
        for one, offset, percent in ((id_of(path), 400, "40.0"), (session, 30, "50.0")):
            record = f"upload:{one}"
            wait_until(
                lambda record=record: client.hget(record, "offset") is not None, "it is told"
            )
            assert int(client.hget(record, "offset")) == offset
            assert client.hget(record, "progress").decode() == percent
            wait_until(
                lambda one=one, offset=offset: offset in positions_of(client, one),
                "its position is told",
            )
        client.close()


def positions_of(client: Any, upload_id: str) -> list[int]:
    """Return the offsets of an upload that are on the stream of positions."""
    stream = progress_stream(partition_of(upload_id, 16))
    entries = [
        position
        for _, fields in client.xrange(stream)
        for position in unpack_positions(read_ids(fields))
    ]
    return [one.offset for one in entries if one.upload_id == upload_id]


# Two processes.


def record(server: RedisServer, path: str) -> dict[str, str]:
    """Return the session record in Redis."""
    client: Any = redis_client.Redis.from_url(server.url, decode_responses=True)
    try:
        fields: dict[str, str] = client.hgetall(f"upload:{id_of(path)}")
        return fields
    finally:
        client.close()


def test_two_processes_in_turn(pair: tuple[Ingest, Ingest]) -> None:
    """An upload whose pieces go to two processes in turn is whole, and is recorded as such."""
    content = os.urandom(400_000)
    path = pair[0].tus.create(len(content))
    for number in range(40):
        at = number * 10_000
        answer = pair[number % 2].tus.patch(path, at, content[at : at + 10_000])
        assert answer.headers["Upload-Offset"] == str(at + 10_000)
        assert pair[(number + 1) % 2].tus.offset(path) == at + 10_000
    assert blob(pair[0].data_dir, path) == content
    completed_once(pair[0].redis, path)
    # Both processes know of it; the one that knows less must not have the last word.
    end = time.monotonic() + 3.5
    wait_until(
        lambda: record(pair[0].redis, path).get("status") == "completed", "it is recorded"
    )
    while time.monotonic() < end:
        assert record(pair[0].redis, path)["status"] == "completed"
        time.sleep(0.05)


def test_take_over_from_the_other_process(pair: tuple[Ingest, Ingest]) -> None:
    """While a request hangs in one process, the other one takes over at once."""
    here, there = (one.tus for one in pair)
    path = here.create(1_000_000)
    with here.begin_patch(path, 0, 1_000_000, b"x" * 300_000) as old:
        wait_for_offset(here, path, 300_000)
        started = time.monotonic()
        assert there.offset(path) == 300_000
        assert time.monotonic() - started < 5.0
        with suppress(ConnectionError):
            for _ in range(100):
                old.send(b"late" * 10_000)
        assert there.patch(path, 300_000, b"y" * 700_000).status == 204
    assert blob(pair[0].data_dir, path) == b"x" * 300_000 + b"y" * 700_000


def test_parallel_patches_in_two_processes(pair: tuple[Ingest, Ingest]) -> None:
    """Two PATCHes at one offset in two processes never mix their bytes."""
    size = 2_000_000
    for _ in range(3):
        path = pair[0].tus.create(size)
        with ThreadPoolExecutor(2) as pool:
            jobs = [
                pool.submit(one.tus.patch, path, 0, bytes([number]) * size)
                for number, one in enumerate(pair)
            ]
            statuses = [job.result().status for job in jobs]
        assert statuses.count(204) <= 1
        assert set(statuses) <= {204, 409, 423}, statuses
        content = blob(pair[0].data_dir, path)
        assert len(set(content)) == 1
        assert pair[1].tus.offset(path) == len(content)


def test_delete_in_the_other_process(pair: tuple[Ingest, Ingest]) -> None:
    """DELETE in one process ends a PATCH in the other; nothing of the upload stays."""
    here, there = (one.tus for one in pair)
    path = here.create(1000)
    with here.begin_patch(path, 0, 1000, b"x" * 400) as one:
        wait_for_offset(here, path, 400)
        assert there.delete(path).status == 204
        assert one.read().status == 423
    assert here.head(path).status == there.head(path).status == 404
    no_file_is_left(pair[0].data_dir, path)


def test_holder_that_is_killed(pair: tuple[Ingest, Ingest]) -> None:
    """When the process that holds an upload dies, the other one has it at once."""
    here, there = (one.tus for one in pair)
    path = here.create(1000)
    with here.begin_patch(path, 0, 1000, b"x" * 400):
        wait_for_offset(here, path, 400)
        pair[0].service.kill()
        started = time.monotonic()
        assert there.patch(path, 400, b"y" * 600).status == 204
        assert time.monotonic() - started < 5.0
    pair[0].service.start()


def test_holder_that_is_frozen(pair: tuple[Ingest, Ingest]) -> None:
    """A process that is stopped and woken up again writes nothing into what others have."""
    here, there = (one.tus for one in pair)
    path = here.create(1000)
    with here.begin_patch(path, 0, 1000, b"x" * 400) as one:
        wait_for_offset(here, path, 400)
        os.kill(pair[0].service.pid, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(there.offset, path)
            one.send(b"z" * 100)
            time.sleep(0.3)
            os.kill(pair[0].service.pid, signal.SIGCONT)
            offset = waiting.result()
    assert there.patch(path, offset, b"y" * (1000 - offset)).status == 204
    expected = (b"x" * 400 + b"z" * 100)[:offset] + b"y" * (1000 - offset)
    assert blob(pair[0].data_dir, path) == expected


# The disk.


def test_disk_full(start_ingest: Starter, small_disk: Path) -> None:
    """A full disk gives 507 and an honest offset; the upload goes on when there is room."""
    ingest = start_ingest(data_dir=small_disk / "data", UPLOAD_MIN_FREE_BYTES="0")
    tus, content = ingest.tus, os.urandom(30 * MEGABYTE)
    path, other = tus.create(len(content)), tus.create(100_000)
    assert tus.patch(other, 0, bytes(50_000)).status == 204
    assert tus.patch(path, 0, content).status == 507
    offset = tus.offset(path)
    assert 12 * MEGABYTE < offset < 16 * MEGABYTE
    assert blob(ingest.data_dir, path) == content[:offset]
    files = sum(len(names) for _, _, names in os.walk(small_disk))
    for _ in range(3):
        assert tus.post({"Upload-Length": "5"}).status == 507
        assert tus.patch(path, offset, content[offset:]).status == 507
    assert sum(len(names) for _, _, names in os.walk(small_disk)) == files
    assert tus.delete(other).status == 204  # a full disk can be cleared
    offset = tus.offset(path)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert tus.patch(path, offset, content[offset:]).status == 204
    assert digest(blob(ingest.data_dir, path)) == digest(content)
    completed_once(ingest.redis, path)
    assert "Traceback" not in ingest.service.log.read_text()


def test_disk_full_at_the_last_step(start_ingest: Starter, small_disk: Path) -> None:
    """When only the record of the completion finds no room, it is made up for later."""
    ingest = start_ingest(data_dir=small_disk / "data", UPLOAD_MIN_FREE_BYTES="0")
    tus = ingest.tus
    path = tus.create(1000)
    tus.patch(path, 0, b"x" * 999)
    filler = small_disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as out:
        while True:
            out.write(bytes(4096))
    assert tus.patch(path, 999, b"x").status == 507
    assert tus.head(path).status == 507
    filler.unlink()
    headers = tus.head(path).headers
    assert headers["Upload-Offset"] == headers["Upload-Length"] == "1000"
    completed_once(ingest.redis, path)


@pytest.mark.skipif(not shutil.which("strace"), reason="strace makes system calls fail")
def test_sync_fails(start_ingest: Starter) -> None:
    """When the disk cannot sync, nothing is acknowledged, and nothing unsafe is kept."""
    ingest = start_ingest()
    tus = ingest.tus
    path = tus.create(1000)
    assert tus.patch(path, 0, b"x" * 100).status == 204
    part = ingest.data_dir / "blobs" / id_of(path)[:2] / f"{id_of(path)}.part"
    with tus.begin_patch(path, 100, 300, b"y" * 200) as one:
        wait_for_offset(tus, path, 300)
        with injecting(ingest.service.pid, "fdatasync", part, "error=EIO"):
            one.send(b"y" * 100)
            assert one.read().status == 503
    assert tus.offset(path) == 100
    assert tus.patch(path, 100, b"z" * 900).status == 204
    assert blob(ingest.data_dir, path) == b"x" * 100 + b"z" * 900


# The network.


def test_twenty_cuts(ingest: Ingest) -> None:
    """An upload that is cut twenty times arrives whole, and what was kept is not sent again."""
    tus, rng = ingest.tus, random.Random(20)
    content = rng.randbytes(MEGABYTE) * 52
    path = tus.create(len(content))
    ways: list[Cut] = ["fin", "rst", "half-close"]
    for number in range(20):
        at = tus.offset(path)
        share = rng.randrange(1, 2 * len(content) // 21)
        with tus.begin_patch(path, at, len(content) - at) as one:
            one.send(content[at : at + share])
            one.cut(ways[number % 3])
            if ways[number % 3] == "fin":  # an orderly end loses nothing that is under way
                wait_for_offset(tus, path, at + share)
            kept = tus.offset(path)
        assert at <= kept <= at + share
    at = tus.offset(path)
    assert tus.patch(path, at, content[at:]).status == 204
    assert hashlib.sha256(blob(ingest.data_dir, path)).digest() == (
        hashlib.sha256(content).digest()
    )
    completed_once(ingest.redis, path)


def test_many_silent_clients(start_ingest: Starter) -> None:
    """Clients that fall silent are let go one and all, and leave no descriptor open."""
    ingest = start_ingest(UPLOAD_IDLE_TIMEOUT="0.5")
    tus = ingest.tus
    descriptors = Path(f"/proc/{ingest.service.pid}/fd")
    tus.offset(tus.create(10))
    before = len(list(descriptors.iterdir()))
    paths = [tus.create(1000) for _ in range(50)]
    clients = [tus.begin_patch(path, 0, 1000, b"x" * 10) for path in paths]
    try:
        assert {client.read().status for client in clients} == {408}
    finally:
        for client in clients:
            client.socket.close()
    assert {tus.offset(path) for path in paths} == {10}
    wait_until(lambda: len(list(descriptors.iterdir())) <= before + 2, "descriptors are closed")


def test_memory_stays_flat(start_ingest: Starter) -> None:
    """A PATCH of 300 MB takes no more memory than a small one, give or take its buffers."""
    ingest = start_ingest(UPLOAD_FSYNC="never", UPLOAD_MAX_FILE_SIZE="0")
    tus, piece, count = ingest.tus, os.urandom(MEGABYTE), 300
    tus.patch(tus.create(20 * MEGABYTE), 0, piece * 20)
    before = ingest.service.memory()
    path = tus.create(count * MEGABYTE)
    highest = 0
    with tus.begin_patch(path, 0, count * MEGABYTE) as one:
        for number in range(count):
            one.send(piece)
            if number % 10 == 0:
                highest = max(highest, ingest.service.memory())
        assert one.read().status == 204
    assert highest - before < 40 * MEGABYTE
    assert len(files_of(ingest.data_dir, path)) >= 2


def test_disconnected_before_the_answer(ingest: Ingest) -> None:
    """A client that leaves before it has its answer leaves no trace in the log, and no harm."""
    tus = ingest.tus
    for _ in range(20):
        path = tus.create(1000)
        with tus.begin_patch(path, 0, 1000, b"x" * 1000) as one:
            one.cut("rst")
        assert tus.head(path).status == 200
    assert Tus(tus.port).offset(tus.create(1)) == 0
    assert tracebacks(ingest.service) == []
