"""Workers report over the internal listener: what is answered, and what others learn of it."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from services.gateway.canary import Canary
from services.gateway.projection import Projection
from services.gateway.relay import Relay
from shared import events
from shared.events import JobEvent
from shared.streams import command, connect, entries_of, event_stream, partition_of
from tests.gateway.audience import Audience, Sink
from tests.gateway.conftest import AUTHENTICATED, EVENT_PARTITIONS, StartGateway, faults
from tests.gateway.feed import Feed
from tests.gateway.samples import Told
from tests.processes import RedisServer, ServiceProcess, running
from tests.shared.waiting import alongside, eventually

JSON: Final = {"Content-Type": "application/json"}
OPEN: Final = {"AUTH_MODE": "open"}
LIFE: Final[list[dict[str, Any]]] = [
    {"type": "queued", "seq": 1},
    {"type": "started", "seq": 2, "stage": "validating"},
    {"type": "started", "seq": 3, "stage": "reading"},
    {"type": "completed", "seq": 4, "result": {"rows": 10}},
]
CHANGES: Final = ["job_queued", "job_started", "job_started", "job_completed"]


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


def address(service: ServiceProcess, told: Told) -> str:
    """Return where the worker of an upload's job reports."""
    return f"{service.internal_url}/internal/v1/jobs/{told.facts.job_id}/events"


async def report(
    http: aiohttp.ClientSession, service: ServiceProcess, told: Told, what: object
) -> tuple[int, Any]:
    """Send a report, or a list of them; return status and body."""
    async with http.post(address(service, told), json=what) as answer:
        return answer.status, await answer.json()


async def insist(
    http: aiohttp.ClientSession, service: ServiceProcess, told: Told, what: object
) -> Any:
    """Repeat a report, as a worker should, until it is accepted; return the answer."""
    while True:
        try:
            status, body = await report(http, service, told, what)
        except (aiohttp.ClientError, OSError):
            status, body = 503, None
        if status == 202:
            return body
        assert status == 503, body
        await asyncio.sleep(0.02)


@asynccontextmanager
async def watching(url: str, told: Told) -> AsyncIterator[Sink]:
    """Watch an upload as a gateway's socket does; yield what comes."""
    async with AsyncExitStack() as stack:
        clients = [connect(url) for _ in range(2)]
        for client in clients:
            stack.push_async_callback(client.aclose)
        projection = Projection(clients[0], prefix="upload_progress", ttl_s=3600)
        canary = Canary(clients[0], prefix="upload_progress")
        relay = Relay(clients[1], projection, canary, partitions=EVENT_PARTITIONS)
        await relay.reading.start()
        _ = await stack.enter_async_context(alongside(relay.reading.tail.run()))
        watcher, sink = Audience(relay.hub).watcher()
        await relay.hub.subscribe(watcher, told.id)
        yield sink


def heard(sink: Sink) -> list[str]:
    """Return what a socket was told of the job, without progress."""
    changes = [one["change"] for one in sink.messages()]
    return [one for one in changes if one.startswith("job_") and one != "job_progress"]


async def on_stream(url: str, told: Told) -> list[JobEvent]:
    """Return the events of the job that stand on the stream."""
    redis = connect(url)
    try:
        stream = event_stream(partition_of(told.id, EVENT_PARTITIONS))
        reply = await command(redis, "XREAD", "STREAMS", stream, "0-0")
        found = [
            events.decode(fields[b"d"])
            for _, entries in entries_of(reply)
            for _, fields in entries
            if fields[b"i"] == told.id.encode()
        ]
        return [one for one in found if isinstance(one, JobEvent)]
    finally:
        await redis.aclose()


async def completed(feed: Feed) -> Told:
    """Return an upload whose job may begin."""
    told = Told(at=None)
    await feed.tell(told.created(), told.completed())
    return told


async def test_a_life(
    bus: RedisServer, gateway: ServiceProcess, http: aiohttp.ClientSession, feed: Feed
) -> None:
    """What a worker reports reaches the sockets in order, with all facts of the upload."""
    told = await completed(feed)
    async with watching(bus.url, told) as sink:
        for one in LIFE[:2]:
            assert (await report(http, gateway, told, one))[0] == 202
        progress = {"type": "progress", "seq": 2, "progress": 40, "message": "rows"}
        named = {"job_id": told.facts.job_id, "upload_id": told.id}
        answer = await report(http, gateway, told, progress)
        assert answer == (
            202,
            {**named, "accepted": 1, "known": 0, "seq": 2},
        )
        await eventually(lambda: sink.messages()[-1]["change"] == "job_progress", "progress")
        status, body = await report(http, gateway, told, LIFE[1:])
        assert (status, body["accepted"], body["known"], body["seq"]) == (202, 2, 1, 4)
        await eventually(lambda: heard(sink) == CHANGES, "the end")
    written = await on_stream(bus.url, told)
    assert [one.seq for one in written] == [1, 2, 3, 4]
    assert {one.job_id for one in written} == {told.facts.job_id}
    assert all(one.upload == told.facts for one in written)


async def test_repeats(
    bus: RedisServer, gateway: ServiceProcess, http: aiohttp.ClientSession, feed: Feed
) -> None:
    """Whatever is sent again, at once or at the end, is accepted and told once."""
    told = await completed(feed)
    async with watching(bus.url, told) as sink:
        for one in LIFE:
            twice = (report(http, gateway, told, one) for _ in range(5))
            answers = await asyncio.gather(*twice)
            assert {status for status, _ in answers} == {202}
            assert sorted(body["accepted"] for _, body in answers) == [0, 0, 0, 0, 1]
        assert (await report(http, gateway, told, LIFE))[1]["known"] == 4
        stale = {"type": "progress", "seq": 1, "progress": 5}
        assert (await report(http, gateway, told, stale))[1]["known"] == 1
        await eventually(lambda: heard(sink) == CHANGES, "the end")
    assert len(await on_stream(bus.url, told)) == 4


async def test_overtaking(
    bus: RedisServer, gateway: ServiceProcess, http: aiohttp.ClientSession, feed: Feed
) -> None:
    """Reports that come in the wrong order wait for each other and are told in order."""
    told = await completed(feed)
    async with watching(bus.url, told) as sink:
        sending = []
        for one in reversed(LIFE):
            sending.append(asyncio.ensure_future(report(http, gateway, told, one)))
            await asyncio.sleep(0.05)  # so that they come in this order
        assert [status for status, _ in await asyncio.gather(*sending)] == [202] * 4
        await eventually(lambda: heard(sink) == CHANGES, "the end")


async def test_a_hole(
    bus: RedisServer, gateway: ServiceProcess, http: aiohttp.ClientSession, feed: Feed
) -> None:
    """A report whose predecessor never comes is refused with the number that is due."""
    told = await completed(feed)
    status, body = await report(http, gateway, told, LIFE[1])
    assert (status, body["error_code"], body["details"]["expected"]) == (409, "SEQUENCE_GAP", 1)
    assert await on_stream(bus.url, told) == []
    assert (await report(http, gateway, told, LIFE))[0] == 202


async def test_after_the_end(
    bus: RedisServer, gateway: ServiceProcess, http: aiohttp.ClientSession, feed: Feed
) -> None:
    """Nothing follows the end of a job, not even within one request."""
    told = await completed(feed)
    beyond = {"type": "failed", "seq": 5, "error_code": "LATE"}
    status, body = await report(http, gateway, told, [*LIFE, beyond])
    assert (status, body["error_code"]) == (409, "JOB_ENDED")
    assert await on_stream(bus.url, told) == []
    assert (await report(http, gateway, told, LIFE))[0] == 202
    for one in (beyond, {"type": "progress", "seq": 4, "progress": 5}):
        status, body = await report(http, gateway, told, one)
        assert (status, body["error_code"]) == (409, "JOB_ENDED")
    assert len(await on_stream(bus.url, told)) == 4


def body_of(value: object) -> bytes:
    """Return a value as JSON."""
    return json.dumps(value).encode()


GOOD: Final = body_of(LIFE[0])
LARGE: Final = body_of({**LIFE[3], "seq": 1, "result": {"x": "y" * (257 * 1024)}})


async def _chunked(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 65_536):
        yield body[at : at + 65_536]


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{", JSON, 400, "INVALID_REQUEST"),
        (b"", JSON, 400, "INVALID_REQUEST"),
        (b"[]", JSON, 422, "INVALID_REPORT"),
        (b'{"type":"sung","seq":1}', JSON, 422, "INVALID_REPORT"),
        (body_of({**LIFE[3], "seq": 1, "result": {"n": 10**400}}), JSON, 422, "INVALID_REPORT"),
        (GOOD, {"Content-Type": "text/plain"}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        (GOOD, {}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        (
            gzip.compress(GOOD, mtime=0),
            {**JSON, "Content-Encoding": "gzip"},
            *(415, "UNSUPPORTED_MEDIA_TYPE"),
        ),
        (LARGE, JSON, 413, "PAYLOAD_TOO_LARGE"),
        (partial(_chunked, LARGE), JSON, 413, "PAYLOAD_TOO_LARGE"),
    ],
)
async def test_bad_requests(
    gateway: ServiceProcess,
    bus: RedisServer,
    http: aiohttp.ClientSession,
    feed: Feed,
    body: bytes | Callable[[], AsyncIterator[bytes]],
    headers: dict[str, str],
    status: int,
    code: str,
) -> None:
    """Each fault has its status, a problem as body, and changes nothing."""
    told = await completed(feed)
    data = body if isinstance(body, bytes) else body()
    skip = () if "Content-Type" in headers else ("Content-Type",)
    async with http.post(
        address(gateway, told), data=data, headers=headers, skip_auto_headers=skip
    ) as answer:
        assert (answer.status, answer.content_type) == (status, "application/problem+json")
        assert (await answer.json())["error_code"] == code
    assert await on_stream(bus.url, told) == []


@pytest.mark.parametrize("job_id", ["unknown", "no%3Ajob", "x" * 200])
async def test_unknown_jobs(
    gateway: ServiceProcess, http: aiohttp.ClientSession, job_id: str
) -> None:
    """A job that nobody knows is 404."""
    url = f"{gateway.internal_url}/internal/v1/jobs/{job_id}/events"
    async with http.post(url, json=LIFE[0]) as answer:
        assert answer.status == 404
        assert (await answer.json())["detail"] == "There is no such job."


async def test_a_job_that_is_just_being_made(
    gateway: ServiceProcess, http: aiohttp.ClientSession, feed: Feed
) -> None:
    """A worker may be faster than the events of its upload."""
    told = Told(at=None)
    early = asyncio.ensure_future(report(http, gateway, told, LIFE[0]))
    await asyncio.sleep(0.3)  # a wait, which the report has to bear
    await feed.tell(told.created(), told.completed())
    assert (await early)[0] == 202


async def test_other_methods_and_paths(
    gateway: ServiceProcess, http: aiohttp.ClientSession, feed: Feed
) -> None:
    """What is not served is refused in the usual form; the public side has none of it."""
    told = await completed(feed)
    for url, status in (
        (address(gateway, told), 405),
        (f"{gateway.internal_url}/internal/v1/other", 404),
        (address(gateway, told).replace(gateway.internal_url, gateway.url), 401),
    ):
        async with http.get(url) as answer:
            assert answer.status == status
            assert answer.content_type == "application/problem+json"
    foreign = {"Host": "evil.example"}
    async with http.post(address(gateway, told), json=LIFE[0], headers=foreign) as answer:
        assert answer.status == 403  # a page elsewhere, whose name leads here


async def test_many_reporters(
    bus: RedisServer, gateway: ServiceProcess, http: aiohttp.ClientSession, feed: Feed
) -> None:
    """200 workers that report at once, each step twice, all get through, each event once."""
    uploads = [Told(at=None) for _ in range(200)]
    await feed.tell(*(one.created() for one in uploads), *(one.completed() for one in uploads))

    async def work(told: Told) -> None:
        for one in LIFE:
            twice = (insist(http, gateway, told, one) for _ in range(2))
            answers = await asyncio.gather(*twice)
            assert sum(body["accepted"] for body in answers) == 1
            if one["seq"] == 2:
                progress = {"type": "progress", "seq": 2, "progress": 50}
                await insist(http, gateway, told, progress)

    async with watching(bus.url, uploads[0]) as sink:
        await asyncio.gather(*map(work, uploads))
        await eventually(lambda: heard(sink) == CHANGES, "the end")
    for told in uploads[::20]:
        assert [one.seq for one in await on_stream(bus.url, told)] == [1, 2, 3, 4]


async def test_through_two_gateways(
    bus: RedisServer,
    gateway: ServiceProcess,
    start_gateway: StartGateway,
    http: aiohttp.ClientSession,
    feed: Feed,
) -> None:
    """A worker whose reports go through one gateway and another is understood by both."""
    told, other = await completed(feed), start_gateway(**AUTHENTICATED)
    async with watching(bus.url, told) as sink:
        for one, service in zip(LIFE, (gateway, other, gateway, other), strict=True):
            assert (await report(http, service, told, one))[0] == 202
        assert (await report(http, gateway, told, LIFE))[1]["known"] == 4
        await eventually(lambda: heard(sink) == CHANGES, "the end")


async def test_killed_gateways(
    bus: RedisServer, start_gateway: StartGateway, http: aiohttp.ClientSession, feed: Feed
) -> None:
    """A worker that repeats what a killed gateway left open: each event told once, in order."""
    told, service = await completed(feed), start_gateway(**OPEN)
    last, over, kills = 80, asyncio.Event(), 0

    async def work() -> None:
        for seq in range(1, last + 1):
            end = seq == last
            await insist(
                http,
                service,
                told,
                {"type": "completed" if end else "started", "seq": seq, "stage": str(seq)},
            )
        over.set()

    async with watching(bus.url, told) as sink:
        working = asyncio.ensure_future(work())
        while not over.is_set():
            await asyncio.sleep(0.15)
            service.kill()
            kills += 1
            await asyncio.to_thread(service.start)
        await working
        assert kills > 1
        await eventually(lambda: heard(sink)[-1] == "job_completed", "the end")
        counted = [one["job_seq"] for one in sink.messages() if one["job_seq"]]
        assert counted == list(range(1, last + 1))


async def test_redis_is_away_and_back(tmp_path: Path, http: aiohttp.ClientSession) -> None:
    """Without Redis a report is refused with 503, at once; its repeat is taken."""
    server = RedisServer(tmp_path / "redis", aof=True)
    service = ServiceProcess("gateway", {**OPEN, "REDIS_URL": server.url}, tmp_path / "log")
    with running(server, service):
        redis = connect(server.url)
        told = await completed(Feed(redis, partitions=EVENT_PARTITIONS))
        await insist(http, service, told, LIFE[0])
        await asyncio.sleep(1.1)  # the append-only file is synced once a second
        server.kill()
        for _ in range(3):
            async with http.post(address(service, told), json=LIFE[1]) as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
                assert (await answer.json())["error_code"] == "SERVICE_UNAVAILABLE"
        server.start()
        for one in LIFE[1:]:
            await insist(http, service, told, one)
        assert [one.seq for one in await on_stream(server.url, told)] == [1, 2, 3, 4]
        await redis.aclose()
    assert faults(service) == []


async def test_a_redis_that_does_not_answer(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    """A Redis that hangs costs a report its answer, not its effect."""
    server = RedisServer(tmp_path / "redis")
    service = ServiceProcess("gateway", {**OPEN, "REDIS_URL": server.url}, tmp_path / "log")
    with running(server, service):
        redis = connect(server.url)
        told = await completed(Feed(redis, partitions=EVENT_PARTITIONS))
        await insist(http, service, told, LIFE[0])
        server.signal(signal.SIGSTOP)
        began = time.monotonic()
        assert (await report(http, service, told, LIFE[1]))[0] == 503
        assert time.monotonic() - began < 8
        server.signal(signal.SIGCONT)
        for one in LIFE[1:]:
            await insist(http, service, told, one)
        counters = {one.seq for one in await on_stream(server.url, told)}
        assert counters == {1, 2, 3, 4}
        await redis.aclose()
    assert faults(service) == []


async def test_a_worker_in_another_language(
    gateway: ServiceProcess, bus: RedisServer, feed: Feed
) -> None:
    """Two lines of shell are a worker."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl on PATH")
    told = await completed(feed)
    for one in LIFE:
        done = await asyncio.to_thread(
            subprocess.run,
            [
                *(curl, "-sS", "--fail", "-H", "Content-Type: application/json"),
                *("-d", json.dumps(one), address(gateway, told)),
            ],
            capture_output=True,
            check=True,
            env={"PATH": os.environ["PATH"]},
        )
        assert json.loads(done.stdout)["seq"] == one["seq"]
    assert len(await on_stream(bus.url, told)) == 4
