"""From the streams to the watchers, on both servers: nothing is missed on the way."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from redis.asyncio import Redis

from services.gateway import canary as canary_module
from services.gateway import interest as interest_module
from services.gateway import relay as relay_module
from services.gateway.canary import Canary
from services.gateway.dialects import protocol
from services.gateway.projection import Projection
from services.gateway.reading import GROUP
from services.gateway.relay import Relay
from services.gateway.state import Change, ProgressState
from shared.errors import NotFound
from shared.sidecar import new_id
from shared.stream_group import StreamGroup
from shared.streams import (
    command,
    connect,
    event_stream,
    partition_of,
    progress_stream,
    stream_names,
)
from tests.gateway.audience import Audience, Plain, Sink
from tests.gateway.feed import PARTITIONS, Feed, entry
from tests.gateway.samples import ADA, EVE, START, Told, principal
from tests.processes import RedisServer, debian_redis, running
from tests.shared.waiting import alongside, eventually


class Gateway:
    """What a gateway has behind its sockets: group, relay, hub."""

    def __init__(self, url: str, *, folds: bool) -> None:
        self.clients: Final = [connect(url) for _ in range(3)]
        self.projection: Final = Projection(self.clients[0], prefix="upload_progress", ttl_s=60)
        self.canary: Final = Canary(self.clients[0], prefix="upload_progress")
        self.relay: Final = Relay(
            self.clients[1], self.projection, self.canary, partitions=PARTITIONS
        )
        self.tail: Final = self.relay.reading.tail
        self.group: Final = StreamGroup(
            self.clients[2],
            group=GROUP,
            streams=stream_names(PARTITIONS),
            handle=self.projection.handle,
        )
        self.folds: Final = folds
        self.audience: Final = Audience(self.relay.hub)


Start = Callable[..., Any]


async def started(stack: AsyncExitStack, url: str, *, folds: bool) -> Gateway:
    """Start a gateway that ends with the stack."""
    gateway = Gateway(url, folds=folds)
    for client in gateway.clients:
        stack.push_async_callback(client.aclose)
    if folds:
        await gateway.group.prepare()
        _ = await stack.enter_async_context(alongside(gateway.group.run()))
    await gateway.relay.reading.start()
    _ = await stack.enter_async_context(alongside(gateway.tail.run()))
    _ = await stack.enter_async_context(alongside(gateway.relay.reading.run()))
    _ = await stack.enter_async_context(alongside(gateway.relay.repair()))
    return gateway


@pytest.fixture
async def start(any_redis_server: RedisServer) -> AsyncIterator[Start]:
    """Start gateways; ``folds=False`` leaves the projection to others."""
    async with AsyncExitStack() as stack:

        async def start_one(*, folds: bool = True) -> Gateway:
            return await started(stack, any_redis_server.url, folds=folds)

        yield start_one


def seen(sink: Sink) -> list[tuple[str, int]]:
    """Return what has come, as pairs of change and seq."""
    return [(one["change"], one["seq"]) for one in sink.messages()]


def counters(sink: Sink) -> list[tuple[int, int]]:
    """Return how far upload and job were with each message."""
    return [(one["seq"], one["job_seq"]) for one in sink.messages()]


def _counted(sink: Sink, expected: list[tuple[int, int]]) -> bool:
    return counters(sink) == expected


async def test_from_stream_to_socket(start: Start, any_redis: Redis) -> None:
    """What producers write arrives at who watches, in order."""
    gateway, told, feed = await start(), Told(at=None), Feed(any_redis)
    await feed.tell(told.created())
    watcher, sink = gateway.audience.watcher()
    await gateway.relay.hub.subscribe(watcher, told.id)
    await feed.tell(told.position(5))
    await eventually(lambda: seen(sink)[-1:] == [("progress", 1)], "progress")
    await feed.tell(told.position(9), told.completed(), told.stored(), told.deleted())
    await eventually(lambda: seen(sink)[-1:] == [("deleted", 4)], "the end")
    lifecycle = [one for one in seen(sink) if one[0] != "progress"]
    assert lifecycle == [("snapshot", 1), ("completed", 2), ("stored", 3), ("deleted", 4)]


async def test_before_the_start_and_recorded(start: Start, any_redis: Redis) -> None:
    """A gateway that starts later knows what others have recorded."""
    first, told, feed = await start(), Told(), Feed(any_redis)
    await feed.tell(told.created(), told.completed())
    await eventually(lambda: first.projection.read(told.id), "it is recorded")
    late = await start(folds=False)
    assert (await late.relay.hub.find(told.id)).status == "completed"


async def test_before_the_start_and_read_by_nobody(start: Start, any_redis: Redis) -> None:
    """Events that no group has seen yet are read from their beginning."""
    told = Told()
    await Feed(any_redis).tell(told.created(), told.completed())
    gateway = await start(folds=False)
    watcher, sink = gateway.audience.watcher()
    await gateway.relay.hub.subscribe(watcher, told.id)
    await eventually(lambda: seen(sink) and _last_is(sink, 2), "the completion")


async def test_before_the_start_and_unacknowledged(start: Start, any_redis: Redis) -> None:
    """Events that a dead member of the group has taken, but not recorded, are not lost."""
    applied, pending, feed = Told(), Told(), Feed(any_redis)
    keys = stream_names(PARTITIONS)
    projection = Projection(any_redis, prefix="upload_progress", ttl_s=60)
    for key in keys:
        await command(any_redis, "XGROUP", "CREATE", key, GROUP, "0", "MKSTREAM")
    created = applied.created()
    ids = await feed.tell(created)
    await projection.handle([entry(created)])
    await feed.tell(pending.created(), pending.completed())
    streams = [event_stream(n) for n in range(PARTITIONS)]
    read = ("XREADGROUP", "GROUP", GROUP, "dead", "COUNT", 100, "STREAMS")
    await command(any_redis, *read, *streams, *([">"] * PARTITIONS))
    stream = event_stream(partition_of(applied.id, PARTITIONS))
    await command(any_redis, "XACK", stream, GROUP, *ids)
    gateway = await start(folds=False)
    assert await gateway.projection.read(pending.id) is None
    assert (await gateway.relay.hub.find(pending.id)).status == "completed"


async def test_a_snapshot_is_as_new_as_the_events(start: Start, any_redis: Redis) -> None:
    """While the group lags behind, a new watcher still gets all that has been passed on."""
    gateway, told, feed = await start(folds=False), Told(), Feed(any_redis)
    first, sink = gateway.audience.watcher()
    await gateway.projection.handle([entry(told.created())])
    await gateway.relay.hub.subscribe(first, told.id)
    await feed.tell(told.completed(), told.stored())
    await eventually(lambda: seen(sink)[-1:] == [("stored", 3)], "events")
    gateway.relay.hub.drop(first)
    state = await gateway.relay.hub.find(told.id)
    assert (state.seq, state.status) == (3, "completed")
    assert state.redirect_url is not None


async def test_sessions_of_a_caller(start: Start, any_redis: Redis) -> None:
    """They are the recorded ones with what has come since; of this tenant, and not deleted."""
    gateway, feed = await start(folds=False), Feed(any_redis)
    old, new, gone = Told(at=START), Told(at=START + 1), Told(at=START + 2)
    others = [Told(owner=EVE), Told(owner=principal("ada", "other"))]
    told = [old.created(), gone.created(), *(one.created() for one in others)]
    await gateway.projection.handle([entry(one) for one in told])
    await feed.tell(new.created(), old.completed(), gone.deleted(), others[1].completed())
    mark, sink = gateway.audience.watcher()
    await gateway.relay.hub.subscribe(mark, new.id)

    async def sessions() -> list[tuple[str, str]]:
        found = await gateway.relay.sessions_of(ADA)
        return [(one.session_id, one.status) for one in found]

    expected = [(new.id, "uploading"), (old.id, "completed")]
    await eventually(lambda: _equals(sessions(), expected), "the sessions")
    assert seen(sink) == [("snapshot", 1)]


async def _equals(found: Any, expected: object) -> bool:
    return bool(await found == expected)


async def test_followers_miss_nothing_at_the_seam(start: Start, any_redis: Redis) -> None:
    """Uploads created while sockets begin to follow reach every one of them, once."""
    gateway, feed = await start(), Feed(any_redis)
    uploads = [Told(at=None) for _ in range(60)]
    sinks: list[Sink] = []

    async def create() -> None:
        for one in uploads:
            await feed.tell(one.created())
            await feed.tell(one.position(1))

    async def follow() -> None:
        for _ in range(40):
            watcher, sink = gateway.audience.watcher()
            gateway.relay.hub.follow(watcher, await gateway.relay.sessions_of(ADA))
            sinks.append(sink)
            await asyncio.sleep(0.001)

    await asyncio.gather(create(), follow())
    await feed.tell(*(one.completed() for one in uploads))
    for sink in sinks:
        await eventually(partial(_all_complete, sink, uploads), "all completions")
        for one in uploads:
            of_one = [m["seq"] for m in sink.messages() if m["id"] == one.id]
            assert of_one[-1] == 2
            assert of_one.count(2) == 1
            assert of_one[0] == 1


def _all_complete(sink: Sink, uploads: list[Told]) -> bool:
    return {m["id"] for m in sink.messages() if m["seq"] == 2} == {one.id for one in uploads}


def _last_is(sink: Sink, seq: int) -> bool:
    return seen(sink)[-1][1] == seq


async def test_a_gap_is_repaired(
    start: Start, any_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When an entry of a producer is missing, what is watched is read again at once."""
    monkeypatch.setattr(relay_module, "_REPAIR_EVERY_S", 60)
    gateway, told, feed = await start(folds=False), Told(at=None), Feed(any_redis)
    other = Told(at=None)
    while partition_of(other.id, PARTITIONS) != partition_of(told.id, PARTITIONS):
        other = Told(at=None)
    await gateway.projection.handle([entry(told.created())])
    watcher, sink = gateway.audience.watcher()
    await gateway.relay.hub.subscribe(watcher, told.id)
    await feed.tell(told.position(5))
    await eventually(lambda: len(sink.messages()) == 2, "progress")
    await gateway.projection.handle([entry(told.position(77))])
    feed.lose(told.id)
    await feed.tell(other.position(1))
    await eventually(lambda: sink.messages()[-1]["bytes"] == 77, "repaired")
    assert seen(sink) == [("snapshot", 1), ("progress", 1), ("snapshot", 1)]


async def test_followers_are_told_after_a_gap(
    start: Start, any_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload whose first event was missed reaches its owner when a gap is noticed."""
    monkeypatch.setattr(relay_module, "_REPAIR_EVERY_S", 60)
    gateway, missed, other, feed = await start(folds=False), Told(), Told(), Feed(any_redis)
    declined = Told()
    watcher, sink = gateway.audience.watcher()
    await gateway.projection.handle([entry(declined.created())])
    gateway.relay.hub.follow(watcher, await gateway.relay.sessions_of(ADA))
    gateway.relay.hub.unsubscribe(watcher, declined.id)
    await gateway.projection.handle([entry(missed.created())])
    gateway.tail._on_gap()
    await eventually(lambda: len(sink.messages()) == 2, "the missed one")
    assert sink.messages()[1]["id"] == missed.id
    assert list(gateway.relay.hub.watched) == [missed.id]
    await feed.tell(other.created())
    await eventually(lambda: sink.messages()[-1]["id"] == other.id, "and the next one")


async def test_silent_uploads_are_read_again(
    start: Start, any_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What went missing without a trace is found when nothing has been heard for a while."""
    monkeypatch.setattr(relay_module, "_REPAIR_EVERY_S", 0.1)
    gateway, told = await start(folds=False), Told()
    await gateway.projection.handle([entry(told.created())])
    watcher, sink = gateway.audience.watcher()
    await gateway.relay.hub.subscribe(watcher, told.id)
    await gateway.projection.handle([entry(told.completed())])
    await eventually(lambda: len(sink.messages()) == 2, "repaired")
    assert seen(sink) == [("snapshot", 1), ("snapshot", 2)]


async def test_bad_entries_stop_nothing(start: Start, any_redis: Redis) -> None:
    """Whatever stands on the streams, the entries after it are read."""
    gateway, told, feed = await start(folds=False), Told(at=None), Feed(any_redis)
    await gateway.projection.handle([entry(told.created())])
    watcher, sink = gateway.audience.watcher()
    await gateway.relay.hub.subscribe(watcher, told.id)
    partition = partition_of(told.id, PARTITIONS)
    bad = [b"{", b"[]", b'{"type":"upload.sung"}', b'{"type":"upload.created"}', b"\xff"]
    bad += [b"[" * 100_000, b'{"type":"upload.created","seq":0}']
    for payload in bad:
        await command(any_redis, "XADD", event_stream(partition), "*", "d", payload)
        packed = ("p", "x", "n", "1", "i", told.id, "d", payload)
        await command(any_redis, "XADD", progress_stream(partition), "*", *packed)
    await command(any_redis, "XADD", event_stream(partition), "*", "x", "y")
    await command(any_redis, "XADD", progress_stream(partition), "*", "p", "x", "n", "y")
    absurd = Told(told.id, at=START * 1000)
    absurd.seq = 1
    await feed.tell(absurd.failed(), told.position(5, at=START * 1000))
    await feed.tell(told.position(5), told.completed())
    await eventually(lambda: seen(sink)[-1:] == [("completed", 2)], "the good ones")


class _Broken(Plain):
    """A dialect with a fault in it."""

    def encode(
        self, change: Change, state: ProgressState, told: protocol.Told | None = None
    ) -> bytes | None:
        if change in {Change.FAILED, Change.PROGRESS}:
            raise RuntimeError("a fault of ours")
        return super().encode(change, state, told)


async def test_a_fault_of_ours_stops_nothing(start: Start, any_redis: Redis) -> None:
    """An event that cannot be delivered is logged; those after it are delivered."""
    gateway, told, feed = await start(folds=False), Told(at=None), Feed(any_redis)
    await gateway.projection.handle([entry(told.created())])
    watcher, sink = gateway.audience.watcher(dialect=_Broken())
    await gateway.relay.hub.subscribe(watcher, told.id)
    await feed.tell(told.position(5))
    await feed.tell(told.failed(), told.deleted())
    await eventually(lambda: _last_is(sink, 3), "the last event")
    assert seen(sink) == [("snapshot", 1), ("deleted", 3)]


async def test_finished_uploads_are_let_go(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who follows for days does not hold on to all that was finished meanwhile."""
    monkeypatch.setattr(relay_module, "_REPAIR_EVERY_S", 0.1)
    gateway, old, fresh = await start(folds=False), Told(), Told(at=None)
    for one in (old, fresh):
        await gateway.projection.handle([entry(one.created()), entry(one.completed())])
    watcher, sink = gateway.audience.watcher()
    gateway.relay.hub.follow(watcher, await gateway.relay.sessions_of(ADA))
    assert set(gateway.relay.hub.watched) == {old.id, fresh.id}
    await eventually(lambda: list(gateway.relay.hub.watched) == [fresh.id], "it is let go")
    assert len(sink.messages()) == 2


async def test_wiped_while_running(start: Start, any_redis: Redis) -> None:
    """After FLUSHALL the group is made anew, and what is published again is recorded."""
    gateway, told, feed = await start(), Told(at=None), Feed(any_redis)
    created = told.created()
    await feed.tell(created)
    watcher, sink = gateway.audience.watcher()
    await gateway.relay.hub.subscribe(watcher, told.id)
    await any_redis.flushall()
    completed = told.completed()
    await feed.tell(created, completed)
    await eventually(lambda: seen(sink)[-1:] == [("completed", 2)], "the new event")
    assert [one[0] for one in seen(sink)] == ["snapshot", "completed"]

    async def recorded() -> bool:
        state = await gateway.projection.read(told.id)
        return state is not None and state.status == "completed"

    await eventually(recorded, "it is recorded again")


@pytest.mark.parametrize("kind", ["embedded", "redis-7.0"])
@pytest.mark.parametrize("aof", [True, False], ids=["with its data", "empty"])
async def test_redis_dies_and_comes_back(kind: str, aof: bool, tmp_path: Path) -> None:
    """A Redis that is killed and started again costs no lifecycle event, and no process."""
    binary = None if kind == "embedded" else debian_redis()
    if kind != "embedded" and binary is None:
        pytest.skip("no redis-server on PATH: make setup-system installs it")
    server = RedisServer(tmp_path / "redis", binary=binary, aof=aof)
    with running(server):
        async with AsyncExitStack() as stack:
            redis = connect(server.url)
            stack.push_async_callback(redis.aclose)
            gateway = await started(stack, server.url, folds=True)
            told, feed = Told(at=None), Feed(redis)
            story = [told.created(), told.completed(), told.stored(), told.queued()]
            await feed.tell(story[0])
            watcher, sink = gateway.audience.watcher()
            await gateway.relay.hub.subscribe(watcher, told.id)
            for count in (2, 3, 4):
                server.kill()
                await eventually(lambda: not gateway.tail.connected, "it is away")
                server.start()
                await redis.connection_pool.disconnect()
                # A producer's outbox brings back what Redis lacks, if need be all of it.
                await feed.tell(*story[:count])
                expected = [(1, 0), (2, 0), (3, 0), (3, 1)][:count]
                await eventually(
                    partial(_counted, sink, expected), "the event after the outage"
                )


async def test_only_what_is_watched_is_read(start: Start, any_redis: Redis) -> None:
    """A gateway without sockets reads its canary; a watcher adds its partition, no more."""
    gateway, told, feed = await start(folds=False), Told(at=None), Feed(any_redis)
    assert set(gateway.tail.streams) == {gateway.canary.stream}
    await feed.tell(told.created())
    watcher, _ = gateway.audience.watcher()
    await gateway.relay.hub.subscribe(watcher, told.id)
    partition = partition_of(told.id, PARTITIONS)
    own = {event_stream(partition), progress_stream(partition)}
    assert set(gateway.tail.streams) == {gateway.canary.stream, *own}
    gateway.relay.hub.follow(watcher, await gateway.relay.sessions_of(ADA))
    wanted = {gateway.canary.stream, *own, *(event_stream(n) for n in range(PARTITIONS))}
    assert set(gateway.tail.streams) == wanted
    gateway.relay.hub.drop(watcher)
    await gateway.relay.reading.follow_interest()
    assert set(gateway.tail.streams) == wanted  # they linger


async def test_joins_and_leaves_at_full_speed(
    start: Start, any_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watchers come and go while uploads live: each one sees every event from its snapshot on.

    Partitions are left at once, so that they are joined anew all the time, some of them while
    the group lags behind.
    """
    monkeypatch.setattr(interest_module, "_LINGER_S", 0.0)
    chance = random.Random(7)
    gateway, feed = await start(), Feed(any_redis)
    uploads = [Told(at=None) for _ in range(40)]
    one_connection = asyncio.Lock()  # forty at once could not all be made in time

    async def live(told: Told) -> None:
        for make in (told.created, told.completed, told.stored, told.deleted):
            async with one_connection:
                await feed.tell(make())
            await asyncio.sleep(chance.uniform(0, 0.04))

    async def watch(told: Told) -> list[tuple[str, int]]:
        await asyncio.sleep(chance.uniform(0, 0.1))
        watcher, sink = gateway.audience.watcher()
        try:
            await gateway.relay.hub.subscribe(watcher, told.id)
        except NotFound:
            return [("deleted", 4)]
        await eventually(lambda: seen(sink)[-1:] == [("deleted", 4)], "the last event")
        gateway.relay.hub.drop(watcher)
        await gateway.relay.reading.follow_interest()
        return seen(sink)

    jobs = [job for one in uploads for job in (live(one), watch(one), watch(one))]
    for told in await asyncio.gather(*jobs):
        if told is not None:
            first = told[0][1]
            assert [seq for _, seq in told] == list(range(first, 5))
    await gateway.relay.reading.follow_interest()
    assert set(gateway.tail.streams) == {gateway.canary.stream}


async def test_the_canary_comes_back(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats arrive; when they do not, it is told, and the tail connects anew."""
    monkeypatch.setattr(canary_module, "_EVERY_S", 0.05)
    monkeypatch.setattr(canary_module, "_LATE_S", 0.5)
    gateway = await start(folds=False)
    async with alongside(gateway.canary.run(gateway.tail)):
        await eventually(lambda: gateway.canary.age < 0.3, "it comes back")
        assert not gateway.canary.is_late
        gateway.tail.leave([gateway.canary.stream])  # as if what is written went elsewhere
        await eventually(lambda: gateway.canary.is_late, "its absence is noticed")
        gaps = relay_module.GAPS._value.get()
        await eventually(lambda: relay_module.GAPS._value.get() > gaps, "states are re-read")
        await gateway.relay.reading.start()
        await eventually(lambda: not gateway.canary.is_late, "it is back")


async def test_redis_restarts_under_load(tmp_path: Path) -> None:
    """Redis is killed and started while events come: all have caught up within 2 s."""
    server = RedisServer(tmp_path / "redis", aof=True)
    with running(server):
        async with AsyncExitStack() as stack:
            redis = connect(server.url)
            stack.push_async_callback(redis.aclose)
            gateway = await started(stack, server.url, folds=True)
            uploads, feed = [Told(at=None) for _ in range(50)], Feed(redis)
            await feed.tell(*(one.created() for one in uploads))
            sinks = []
            for one in uploads:
                watcher, sink = gateway.audience.watcher()
                await gateway.relay.hub.subscribe(watcher, one.id)
                sinks.append(sink)
            for step in range(20):
                await feed.tell(*(one.position(step + 1) for one in uploads))
            server.kill()
            await asyncio.sleep(1.5)  # retries have become as slow as they do
            await asyncio.to_thread(server.start)
            back_at = time.monotonic()
            await redis.connection_pool.disconnect()
            await feed.tell(*(one.completed() for one in uploads))
            for sink in sinks:
                await eventually(partial(_last_is, sink, 2), "the end of the upload")
            assert time.monotonic() - back_at < 5


async def test_job_from_stream_to_socket(start: Start, any_redis: Redis) -> None:
    """What workers write arrives at who watches the upload, and is recorded."""
    gateway, told, feed = await start(), Told(at=None), Feed(any_redis)
    await feed.tell(told.created(), told.completed(), told.queued())
    watcher, sink = gateway.audience.watcher()
    await gateway.relay.hub.subscribe(watcher, told.id)
    await eventually(lambda: counters(sink)[-1:] == [(2, 1)], "the state, or what led to it")
    await feed.tell(told.started())
    await eventually(lambda: counters(sink)[-2:] == [(2, 1), (2, 2)], "the start")
    await feed.tell(told.processing(40))
    await eventually(lambda: seen(sink)[-1][0] == "job_progress", "progress")
    await feed.tell(told.processed(result={"rows": 7}))
    await eventually(lambda: seen(sink)[-1][0] == "job_completed", "the end")

    async def recorded() -> bool:
        state = await gateway.projection.read(told.id)
        return state is not None and state.result == {"rows": 7}

    await eventually(recorded, "the result is recorded")


async def test_a_missed_end_of_a_job_is_repaired(start: Start, any_redis: Redis) -> None:
    """After a gap the processing of a finished upload is read again too."""
    gateway, told, feed = await start(folds=False), Told(at=None), Feed(any_redis)
    for one in (told.created(), told.completed()):
        await gateway.projection.handle([entry(one)])
    watcher, sink = gateway.audience.watcher()
    await gateway.relay.hub.subscribe(watcher, told.id)
    await feed.tell(told.position(5))
    for one in (told.queued(), told.started(), told.processed()):
        await gateway.projection.handle([entry(one)])  # and not heard by the tail
    feed.lose(told.id)
    await feed.tell(told.position(6))
    await eventually(partial(_counted, sink, [(2, 0), (2, 3)]), "the end")


async def test_upload_of_a_job(start: Start, any_redis: Redis) -> None:
    """A job is found before its upload is recorded, and one that comes is awaited."""
    gateway, told, later = await start(folds=False), Told(at=None), Told(at=None)
    feed = Feed(any_redis)
    await gateway.relay.reading.of_all()
    await feed.tell(told.created())
    assert await gateway.relay.upload_of_job(told.facts.job_id) == told.id
    asking = asyncio.ensure_future(gateway.relay.upload_of_job(later.facts.job_id))
    await gateway.projection.handle([entry(later.created())])
    assert await asking == later.id
    with pytest.raises(NotFound, match=r"^There is no such job\.$"):
        await gateway.relay.upload_of_job("unknown")
    with pytest.raises(NotFound):
        await gateway.relay.upload_of_job("not:an:id")


async def test_a_name_that_looks_like_an_id(start: Start, any_redis: Redis) -> None:
    """A session's name is waited for, by whoever at the same time, though it is a UUID too."""
    name = new_id()
    gateway, told, other = await start(), Told(session_id=name, at=None), Told(at=None)
    relay = gateway.relay
    searching = asyncio.ensure_future(relay.hub.find(name))
    asking = [asyncio.ensure_future(relay.upload_of(one, ADA)) for one in (name, other.id)]
    await asyncio.sleep(0.3)
    late = asyncio.ensure_future(relay.upload_of(name, ADA))
    await Feed(any_redis).tell(told.created(), other.created())
    assert await asyncio.gather(*asking, late) == [told.id, other.id, told.id]
    with pytest.raises(NotFound):
        await searching
    with pytest.raises(NotFound):
        await relay.upload_of(new_id(), ADA)
