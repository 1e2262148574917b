"""Several ingest processes on one store: hand-over, a Redis that dies, replicas that die."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import redis as redis_client

from shared.sidecar import new_id
from tests.ingest.conftest import Ingest, prepare
from tests.ingest.evidence import blob, completed_once, tracebacks
from tests.ingest.ietf_client import Ietf
from tests.ingest.tus_client import CHUNK, Tus, id_of, wait_for_offset
from tests.ingest.uploaders import Uploader, kill_at_random
from tests.processes import RedisServer, ServiceProcess, running, wait_until
from tests.system.parts import download

LEASED: Final = {"UPLOAD_LEASE": "redis"}
TTL_S: Final = 5.0
CLIENTS: Final = 8
"""Uploads that run at the same time, while replicas are killed."""

StartReplicas = Callable[..., list[Ingest]]


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    server = RedisServer(tmp_path / "redis", aof=True)
    with running(server):
        yield server


@pytest.fixture
def start_replicas(own_redis: RedisServer, tmp_path: Path) -> Iterator[StartReplicas]:
    """Start ingest processes on one store; they end with the test."""
    with ExitStack() as stack:

        def start(count: int = 2, **env: str) -> list[Ingest]:
            logs = [tmp_path / f"log{number}" for number in range(count)]
            replicas = [prepare(own_redis, tmp_path / "data", log, **env) for log in logs]
            stack.enter_context(running(*(one.service for one in replicas)))
            return replicas

        yield start


@pytest.fixture(scope="module")
def leased(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ingest, Ingest]]:
    """Two replicas that need leases, on a Redis of their own; tests restore what they break."""
    folder = tmp_path_factory.mktemp("leased")
    redis = RedisServer(folder / "redis", aof=True)
    one, other = (
        prepare(redis, folder / "data", folder / f"log{number}", **LEASED)
        for number in range(2)
    )
    with running(redis, one.service, other.service):
        grant_at_once(redis)
        assert one.tus.offset(one.tus.create(1)) == 0
        yield one, other
    assert [tracebacks(one.service), tracebacks(other.service)] == [[], []]


def grant_at_once(redis: RedisServer) -> None:
    """Have Redis think that it has served for long, so that it has forgotten no lease."""
    client: Any = redis_client.Redis.from_url(redis.url)
    try:
        wait_until(lambda: client.exists("lease:{writers}:memory"), "a process has pulsed")
        for field in ("born", "since"):
            client.hincrby("lease:{writers}:memory", field, -60_000)
    finally:
        client.close()


def last_pulse(redis: RedisServer, path: str) -> float:
    """Return when the holder of an upload's lease pulsed last; UTC, seconds."""
    client: Any = redis_client.Redis.from_url(redis.url)
    try:
        lease = client.hget("lease:{writers}:held", id_of(path))
        process, _, _ = lease.partition(b":")
        return int(client.hget("lease:{writers}:pulses", process)) / 1000
    finally:
        client.close()


def is_away(ingest: Ingest) -> bool:
    """Tell whether a replica knows that no leases are granted."""
    answer = Tus(ingest.service.internal_port).ask("GET", "/readyz", {})
    assert answer.status == 200, "away is no reason to send clients elsewhere"
    return b"ingest.leases" in answer.body


# Hand-over.


def test_take_over_between_replicas(leased: tuple[Ingest, Ingest]) -> None:
    """HEAD at one replica ends a PATCH that hangs in the other one well within a second."""
    here, there = (one.tus for one in leased)
    waits = []
    for _ in range(3):
        path = here.create(1_000_000)
        with here.begin_patch(path, 0, 1_000_000, b"x" * 300_000) as old:
            wait_for_offset(here, path, 300_000)
            started = time.monotonic()
            assert there.offset(path) == 300_000
            waits.append(time.monotonic() - started)
            assert old.read().status == 423
        assert there.patch(path, 300_000, b"y" * 700_000).status == 204
        assert blob(leased[0].data_dir, path) == b"x" * 300_000 + b"y" * 700_000
    assert min(waits) < 0.5  # the others may have waited for the machine


def test_pieces_in_turn(leased: tuple[Ingest, Ingest]) -> None:
    """Pieces that go to the replicas in turn need no waiting for each other's leases."""
    content = os.urandom(400_000)
    path = leased[0].tus.create(len(content))
    started = time.monotonic()
    for number in range(40):
        at = number * 10_000
        answer = leased[number % 2].tus.patch(path, at, content[at : at + 10_000])
        assert answer.headers["Upload-Offset"] == str(at + 10_000)
    assert time.monotonic() - started < 10
    assert blob(leased[0].data_dir, path) == content
    completed_once(leased[0].redis, path)


def test_replica_that_dies(leased: tuple[Ingest, Ingest]) -> None:
    """An upload of a replica that was killed waits for its lease to run out.

    No longer: who waits is refused after twice that time.
    """
    here, there = (one.tus for one in leased)
    path = here.create(1000)
    with here.begin_patch(path, 0, 1000, b"x" * 400):
        wait_for_offset(here, path, 400)
        leased[0].service.kill()
    try:
        pulsed_at = last_pulse(leased[0].redis, path)
        assert there.offset(path) == 400
        assert time.time() >= pulsed_at + TTL_S
        assert there.patch(path, 400, b"y" * 600).status == 204
    finally:
        leased[0].service.start()


@pytest.mark.slow
def test_replica_that_freezes(leased: tuple[Ingest, Ingest]) -> None:
    """A replica that wakes up after its upload went to another one writes nothing into it."""
    here, there = (one.tus for one in leased)
    path = here.create(1000)
    with here.begin_patch(path, 0, 1000, b"x" * 400) as one:
        wait_for_offset(here, path, 400)
        os.kill(leased[0].service.pid, signal.SIGSTOP)
        try:
            one.send(b"z" * 100)
            # Its lease runs out, but not the lock that the kernel keeps for it.
            assert there.head(path).status == 423
        finally:
            os.kill(leased[0].service.pid, signal.SIGCONT)
        assert one.read().status == 423
    offset = there.offset(path)
    assert offset in {400, 500}
    assert there.patch(path, offset, b"y" * (1000 - offset)).status == 204


# Redis is away.


def test_redis_dies_during_a_patch(leased: tuple[Ingest, Ingest]) -> None:
    """What runs goes on to its end; what is new is told to come back, and then goes on."""
    here, there = (one.tus for one in leased)
    redis = leased[0].redis
    running_one, idle, done = here.create(1000), here.create(1000), here.create(3)
    assert here.patch(idle, 0, b"x" * 100).status == 204
    assert here.patch(done, 0, b"abc").status == 204
    with here.begin_patch(running_one, 0, 1000, b"x" * 400) as one:
        wait_for_offset(here, running_one, 400)
        with dead(redis):
            wait_until(lambda: is_away(leased[0]) and is_away(leased[1]), "they notice")
            fresh = [check_without_leases(tus, idle, running_one) for tus in (here, there)]
            assert here.offset(done) == there.offset(done) == 3
            for _ in range(100):  # for longer than any lease
                one.send(b"y" * 5)
                time.sleep((TTL_S + 2) / 100)
            one.send(b"z" * 100)
            assert one.read().status == 204
    wait_until(lambda: not is_away(leased[0]) and not is_away(leased[1]), "they notice")
    assert there.offset(idle) == 100
    assert there.patch(idle, 100, b"x" * 900).status == 204
    assert [here.patch(path, 0, b"hello").status for path in fresh] == [204, 204]
    content = b"x" * 400 + b"y" * 500 + b"z" * 100
    assert blob(leased[0].data_dir, running_one) == content
    for path in (running_one, idle, done, *fresh):
        completed_once(redis, path, repeats=True)


def wait_for_lease(redis: RedisServer, path: str) -> None:
    """Wait until a request holds an upload."""
    client: Any = redis_client.Redis.from_url(redis.url)
    try:
        held = "lease:{writers}:held"
        wait_until(lambda: client.hexists(held, id_of(path)), "a request holds it")
    finally:
        client.close()


@contextmanager
def dead(redis: RedisServer) -> Iterator[None]:
    """Kill Redis -9, and start it again at the end."""
    redis.kill()
    try:
        yield
    finally:
        redis.start()


@contextmanager
def hung(redis: RedisServer) -> Iterator[None]:
    """Stop Redis, and let it go on at the end."""
    redis.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        redis.signal(signal.SIGCONT)


def check_without_leases(tus: Tus, idle: str, held: str) -> str:
    """Check what a replica answers while no leases are granted; return a new upload's path.

    Args:
        tus: Client of the replica.
        idle: An upload of 100 bytes that nobody holds.
        held: An upload that a request works on, in whatever replica.

    """
    ietf, started = Ietf(tus.port), time.monotonic()
    refused = tus.patch(idle, 100, b"x" * 900)
    assert refused.status == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert tus.post({**CHUNK, "Upload-Length": "3"}, b"abc").status == 503
    assert tus.post({"Upload-Length": "0"}).status == 503
    assert ietf.post(b"abc", complete=True).status == 503
    assert tus.delete(idle).status == 503
    for path in (idle, held):
        answer = tus.head(path)
        assert answer.status == 423
        assert int(answer.headers["Retry-After"]) >= 1
    assert ietf.ask("HEAD", idle).status == 423
    assert tus.ask("GET", idle, {}).headers["Upload-Offset"] == "100"
    fresh = tus.create(5)
    assert time.monotonic() - started < 8
    return fresh


def test_redis_comes_back_empty_during_a_patch(leased: tuple[Ingest, Ingest]) -> None:
    """The holder keeps its upload over a wipe of Redis, and the next one gets it in order."""
    here, there = (one.tus for one in leased)
    path = here.create(1000)
    with here.begin_patch(path, 0, 1000, b"x" * 400) as one:
        wait_for_offset(here, path, 400)
        client: Any = redis_client.Redis.from_url(leased[0].redis.url)
        client.flushall()
        client.close()
        one.send(b"x" * 100)
        assert there.offset(path) == 500
        assert one.read().status == 423
    assert there.patch(path, 500, b"y" * 500).status == 204
    completed_once(leased[0].redis, path, repeats=True)


@pytest.mark.slow
def test_redis_hangs_during_a_patch(leased: tuple[Ingest, Ingest]) -> None:
    """Where locks may not reach, a long silence of Redis ends a request; nothing is lost."""
    here, there = (one.tus for one in leased)
    redis = leased[0].redis
    path = here.create(1000)
    with here.begin_patch(path, 0, 1000, b"x" * 400) as one:
        wait_for_offset(here, path, 400)
        with hung(redis):
            time.sleep(TTL_S)
            one.send(b"z" * 600)
            assert one.read().status == 423
            assert there.head(path).status == 423
    wait_until(lambda: there.head(path).status == 200, "leases are granted again")
    assert there.offset(path) == 400
    assert there.patch(path, 400, b"y" * 600).status == 204
    assert blob(leased[0].data_dir, path) == b"x" * 400 + b"y" * 600


@pytest.mark.slow
@pytest.mark.parametrize("store_env", ["s3"], indirect=True)
@pytest.mark.parametrize("how", ["dead", "hung"])
def test_redis_is_away_on_s3(
    start_replicas: StartReplicas,
    own_redis: RedisServer,
    store_env: Mapping[str, str],
    how: str,
) -> None:
    """Where fences keep zombies out a request outlasts a Redis that is dead or only silent."""
    replicas = start_replicas(**store_env)
    here, there = (one.tus for one in replicas)
    path = here.create(1000)
    assert here.patch(path, 0, b"x" * 100).status == 204
    with here.begin_patch(path, 100, 400, b"x" * 100) as one:
        wait_for_lease(own_redis, path)
        with {"dead": dead, "hung": hung}[how](own_redis):
            for _ in range(50):  # for longer than any lease
                one.send(b"y")
                time.sleep((TTL_S + 2) / 50)
            assert there.head(path).status == 423
            one.send(b"z" * 250)
            assert one.read().status == 204
    wait_until(lambda: there.head(path).status == 200, "leases are granted again")
    with here.begin_patch(path, 500, 500, b"v" * 100) as one:
        wait_for_lease(own_redis, path)
        started = time.monotonic()
        offset = there.offset(path)
        assert time.monotonic() - started < 5.0
        assert one.read().status == 423
    assert offset in {500, 600}
    assert there.patch(path, offset, b"w" * (1000 - offset)).status == 204
    completed_once(own_redis, path, repeats=True)
    assert [tracebacks(one.service) for one in replicas] == [[], []]


# Replicas die at random.


@pytest.fixture
def store_env(request: pytest.FixtureRequest) -> Mapping[str, str]:
    """The settings that choose a kind of store."""
    if request.param != "s3":
        return {"flock": {}, "lease": LEASED}[request.param]
    server: Any = request.getfixturevalue("moto_server")
    return {
        "BLOB_STORE": f"s3://uploads/{new_id()}",
        "S3_ENDPOINT_URL": server.url,
        "S3_REGION": "us-east-1",
        "S3_ACCESS_KEY_ID": server.access_key_id,
        "S3_SECRET_ACCESS_KEY": server.secret_access_key,
    }


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("store_env", "count"),
    [
        pytest.param("flock", 30, id="flock-30"),
        pytest.param("flock", 100, id="flock-100", marks=pytest.mark.slow),
        pytest.param("lease", 100, id="lease-100", marks=pytest.mark.slow),
        pytest.param("s3", 100, id="s3-100", marks=pytest.mark.slow),
    ],
    indirect=["store_env"],
)
def test_replicas_killed_at_random(
    start_replicas: StartReplicas,
    own_redis: RedisServer,
    tmp_path: Path,
    store_env: Mapping[str, str],
    count: int,
) -> None:
    """Whatever was acknowledged is there, all hashes are right, each upload completes once."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    rng = random.Random(seed)
    replicas = start_replicas(**store_env)
    services = [one.service for one in replicas]
    uploaders = [Uploader(services, rng.randrange(2**32)) for _ in range(count)]
    done = threading.Event()
    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        killing = pool.submit(kill_at_random, services, random.Random(seed), done)
        try:
            for uploading in [pool.submit(one.run) for one in uploaders]:
                uploading.result()
        finally:
            done.set()
        killed = killing.result()
    resumptions = sum(one.resumptions for one in uploaders)
    print(f"{killed} kills, {resumptions} resumptions")  # noqa: T201
    assert killed >= count // 15  # else they did not come in the middle of uploads
    assert resumptions > killed
    env = {"REDIS_URL": own_redis.url, "DATA_DIR": str(tmp_path / "data"), **store_env}
    storage = ServiceProcess("storage", env, tmp_path / "storage.log")
    with running(storage):
        for one in uploaders:
            url = f"{storage.url}/api/v1/storage/{id_of(one.path)}"
            assert download(url) == (len(one.content), one.digest), one.path
            completed_once(own_redis, one.path, repeats=True)
