"""The producer's side of the bus, with a Redis that is slow, full, hung or dead."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from shared import events
from shared.events import LifecycleEvent, UploadProgress
from shared.publisher import Publisher
from shared.sidecar import new_id
from shared.streams import (
    ProgressEntry,
    command,
    entry_of,
    event_stream,
    pipelined,
    progress_stream,
    read_ids,
)
from tests.processes import RedisServer
from tests.shared.conftest import ConnectTo, StartRedis
from tests.shared.samples import completed, created, ids_of_partition, position
from tests.shared.unpacking import unpack_positions
from tests.shared.waiting import alongside, eventually, stop

PARTITIONS = 4


def publisher_on(
    redis: Redis, *, interval_s: float = 0.2, queue_limit: int = 10_000
) -> Publisher:
    """Return a producer for the tests' partitions."""
    return Publisher(
        redis, partitions=PARTITIONS, interval_s=interval_s, queue_limit=queue_limit
    )


async def lifecycle_on(redis: Redis) -> list[LifecycleEvent]:
    """Return all lifecycle events on the streams, those of each stream in order."""
    keys = [event_stream(n) for n in range(PARTITIONS)]
    found = await pipelined(redis, [("XRANGE", key, "-", "+") for key in keys])
    return [events.decode(entry_of(raw)[1][b"d"]) for reply in found for raw in reply]


async def progress_on(redis: Redis) -> list[list[ProgressEntry]]:
    """Return the entries of each progress stream, in order."""
    keys = [progress_stream(n) for n in range(PARTITIONS)]
    found = await pipelined(redis, [("XRANGE", key, "-", "+") for key in keys])
    return [[read_ids(entry_of(raw)[1]) for raw in reply] for reply in found]


async def positions_on(redis: Redis) -> list[UploadProgress]:
    """Return all positions on the streams, those of each stream in order."""
    streams = await progress_on(redis)
    return [one for stream in streams for entry in stream for one in unpack_positions(entry)]


def seqs_by_upload(found: list[LifecycleEvent]) -> dict[str, list[int]]:
    """Return the numbers of each upload's events in the order of the stream."""
    by_upload: dict[str, list[int]] = {}
    for event in found:
        by_upload.setdefault(event.upload_id, []).append(event.seq)
    return by_upload


def first_times(seqs: list[int]) -> list[int]:
    """Return what a reader sees that drops what it has."""
    return list(dict.fromkeys(seqs))


def metric(name: str) -> float:
    """Return the value of one of our counters."""
    return REGISTRY.get_sample_value(name) or 0.0


class Producer:
    """Hands over created and completed events of ever new uploads."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self.handed_over: list[LifecycleEvent] = []
        self.published: list[LifecycleEvent] = []
        self.calls_s: list[float] = []

    def hand_over(self, event: LifecycleEvent) -> None:
        """Hand one event over and note how long the caller was held up."""
        started = time.perf_counter()
        assert self._publisher.lifecycle(event, lambda: self.published.append(event))
        self.calls_s.append(time.perf_counter() - started)
        self.handed_over.append(event)

    async def run(self) -> None:
        """Hand over two events every 5 ms."""
        while True:
            upload_id = new_id()
            self.hand_over(created(upload_id))
            self._publisher.progress(position(upload_id, 500))
            self.hand_over(completed(upload_id))
            await asyncio.sleep(0.005)

    def check_nobody_waited(self) -> None:
        """Few calls took long, as any may on a busy machine; in an outage many would."""
        assert sorted(self.calls_s)[len(self.calls_s) * 9 // 10] < 0.05

    async def check_nothing_lost(self, redis: Redis) -> None:
        """Wait until all is published; then each event is there, and in order."""
        await eventually(
            lambda: len(self.published) == len(self.handed_over), "all are published"
        )
        assert self.published == self.handed_over
        found = seqs_by_upload(await lifecycle_on(redis))
        assert found.keys() == {event.upload_id for event in self.handed_over}
        assert all(first_times(seqs) == [1, 2] for seqs in found.values())


@pytest.fixture
async def publisher(any_redis: Redis) -> AsyncIterator[Publisher]:
    """A producer at work on each kind of server."""
    one = publisher_on(any_redis)
    async with alongside(one.run()):
        yield one


async def test_events_of_an_upload_stand_in_order(
    publisher: Publisher, any_redis: Redis
) -> None:
    """What was handed over first is written first, and each is confirmed once."""
    producer = Producer(publisher)
    ids = [new_id() for _ in range(700)]  # more than one batch
    for upload_id in ids:
        producer.hand_over(created(upload_id))
    for upload_id in ids:
        producer.hand_over(completed(upload_id))
    await producer.check_nothing_lost(any_redis)
    assert set(map(tuple, seqs_by_upload(await lifecycle_on(any_redis)).values())) == {(1, 2)}


async def test_an_entry_names_its_upload_in_clear(
    publisher: Publisher, any_redis: Redis
) -> None:
    """A reader can tell whose event it is before it decodes it."""
    (upload_id,) = ids_of_partition(2, 1, PARTITIONS)
    event = created(upload_id)
    publisher.lifecycle(event, lambda: None)
    await eventually(lambda: any_redis.exists(event_stream(2)), "the event is there")
    (raw,) = await command(any_redis, "XRANGE", event_stream(2), "-", "+")
    assert entry_of(raw)[1] == {b"i": upload_id.encode(), b"d": events.encode(event)}
    assert await any_redis.ttl(event_stream(2)) == -1


async def test_nothing_is_lost_while_redis_is_killed(
    start_redis: StartRedis, connect_to: ConnectTo
) -> None:
    """Redis dies and comes back: every event gets there, in order, and callers never wait."""
    server = start_redis(aof=True)
    redis = connect_to(server.url)
    publisher = publisher_on(redis)
    producer = Producer(publisher)
    async with alongside(publisher.run()):
        async with alongside(producer.run()):
            await eventually(lambda: len(producer.published) > 20, "it works before")
            await asyncio.to_thread(server.kill)
            await eventually(lambda: publisher.degraded, "the outage is noticed")
            count = len(producer.handed_over)
            await eventually(lambda: len(producer.handed_over) > count + 50, "it goes on")
            await asyncio.to_thread(server.start)
            await eventually(lambda: not publisher.degraded, "the end of it is noticed")
        await producer.check_nothing_lost(redis)
    producer.check_nobody_waited()


async def test_nothing_is_lost_while_redis_hangs(
    start_redis: StartRedis, connect_to: ConnectTo
) -> None:
    """A Redis that is stopped counts as away after the socket timeout."""
    server = start_redis(aof=False)
    redis = connect_to(f"{server.url}?socket_timeout=0.2")
    publisher = publisher_on(redis)
    producer = Producer(publisher)
    async with alongside(publisher.run()), alongside(producer.run()):
        await eventually(lambda: len(producer.published) > 20, "it works before")
        server.signal(signal.SIGSTOP)
        await eventually(lambda: publisher.degraded, "the hang is noticed")
        server.signal(signal.SIGCONT)
        await eventually(lambda: not publisher.degraded, "the end of it is noticed")
    async with alongside(publisher.run()):
        await producer.check_nothing_lost(redis)
    producer.check_nobody_waited()


async def test_a_full_queue_refuses_without_an_error(
    start_redis: StartRedis, connect_to: ConnectTo
) -> None:
    """What there is no room for is left to the outbox; the rest is still delivered."""
    server = start_redis(aof=False)
    server.kill()
    redis = connect_to(server.url)
    publisher = publisher_on(redis, queue_limit=3)
    refused = metric("bus_queue_full_total")
    published: list[int] = []
    upload_id = new_id()
    async with alongside(publisher.run()):
        answers = [
            publisher.lifecycle(created(upload_id, seq), lambda seq=seq: published.append(seq))  # type: ignore[misc]
            for seq in range(1, 6)
        ]
        assert answers == [True, True, True, False, False]
        assert metric("bus_queue_full_total") == refused + 2
        await asyncio.to_thread(server.start)
        await eventually(lambda: len(published) == 3, "those in the queue are delivered")
        assert publisher.lifecycle(created(upload_id, 9), lambda: published.append(9))
        await eventually(lambda: len(published) == 4, "there is room again")
    assert published == [1, 2, 3, 9]


async def test_the_first_position_goes_at_once(any_redis: Redis) -> None:
    """However long the interval, the first sign of an upload is not held back."""
    publisher = publisher_on(any_redis, interval_s=60)
    async with alongside(publisher.run()):
        for count in (1, 2, 3):
            started = time.monotonic()
            publisher.progress(position(new_id(), 10))
            await eventually(
                lambda count=count: _has_positions(any_redis, count),  # type: ignore[misc]
                "the first position is there",
            )
            assert time.monotonic() - started < 10


async def _has_positions(redis: Redis, count: int) -> bool:
    return len(await positions_on(redis)) >= count


async def test_positions_of_one_upload_are_thinned_and_the_last_arrives(
    publisher: Publisher, any_redis: Redis
) -> None:
    """One position an interval is sent at most, and in the end the newest."""
    upload_id = new_id()
    started = time.monotonic()
    for offset in range(60):
        publisher.progress(position(upload_id, offset))
        await asyncio.sleep(0.01)

    async def newest_is_there() -> bool:
        return any(one.offset == 59 for one in await positions_on(any_redis))

    await eventually(newest_is_there, "the newest position is there")
    elapsed = time.monotonic() - started
    offsets = [one.offset for one in await positions_on(any_redis)]
    assert offsets == sorted(set(offsets))
    assert 2 <= len(offsets) <= 2 + elapsed / (0.2 - 0.05)


async def test_a_lone_position_within_the_interval_arrives(
    publisher: Publisher, any_redis: Redis
) -> None:
    """A position that comes soon after another one is held back, not forgotten."""
    upload_id = new_id()
    publisher.progress(position(upload_id, 1))
    await eventually(lambda: _has_positions(any_redis, 1), "the first is there")
    publisher.progress(position(upload_id, 2))
    await eventually(lambda: _has_positions(any_redis, 2), "the second is there")


async def test_positions_conflate_while_redis_is_away(
    start_redis: StartRedis, connect_to: ConnectTo
) -> None:
    """After an outage each upload has one position, the newest."""
    server = start_redis(aof=False)
    server.kill()
    redis = connect_to(server.url)
    publisher = publisher_on(redis, interval_s=0.05)
    ids = [new_id() for _ in range(5)]
    async with alongside(publisher.run()):
        for offset in range(50):
            for upload_id in ids:
                publisher.progress(position(upload_id, offset))
            await asyncio.sleep(0.005)
        await asyncio.to_thread(server.start)
        await eventually(lambda: _has_positions(redis, 5), "the newest are there")
        await asyncio.sleep(0.2)  # more would have come by now
    found = {one.upload_id: one.offset for one in await positions_on(redis)}
    assert found == dict.fromkeys(ids, 49)
    assert len(await positions_on(redis)) == 5


async def test_one_entry_holds_the_positions_of_a_tick(
    publisher: Publisher, any_redis: Redis
) -> None:
    """There is one entry per partition and tick, however many uploads are under way."""
    ids = [one for n in range(PARTITIONS) for one in ids_of_partition(n, 25, PARTITIONS)]
    for upload_id in ids:
        publisher.progress(position(upload_id, 7))
    await eventually(lambda: _has_positions(any_redis, 100), "all positions are there")
    assert [[len(e.ids) for e in stream] for stream in await progress_on(any_redis)] == [
        [25]
    ] * PARTITIONS


async def test_running_numbers_have_no_holes(any_redis: Redis) -> None:
    """A reader can tell that it missed nothing of a producer and partition."""
    publishers = [publisher_on(any_redis, interval_s=0.01) for _ in range(2)]
    ids = [new_id() for _ in range(10)]
    async with alongside(publishers[0].run()), alongside(publishers[1].run()):
        for offset in range(40):
            for index, upload_id in enumerate(ids):
                publishers[index % 2].progress(position(upload_id, offset))
            await asyncio.sleep(0.01)
        for publisher in publishers:
            await publisher.drain(1)
    by_source: dict[tuple[int, bytes], list[int]] = {}
    for partition, stream in enumerate(await progress_on(any_redis)):
        for entry in stream:
            by_source.setdefault((partition, entry.producer), []).append(entry.number)
    assert len({producer for _, producer in by_source}) == 2
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in by_source.values())
    assert max(map(len, by_source.values())) > 3


async def test_positions_are_not_kept_for_long(publisher: Publisher, any_redis: Redis) -> None:
    """A position stream loses entries after 90 s, and itself when nobody writes to it."""
    (upload_id,) = ids_of_partition(1, 1, PARTITIONS)
    key, now = progress_stream(1), int(time.time() * 1000)
    await pipelined(
        any_redis, [("XADD", key, f"{now - 95_000 - n}-0", "a", "b") for n in range(300, 0, -1)]
    )
    await pipelined(any_redis, [("XADD", key, f"{now - 60_000}-0", "a", "b")])
    publisher.progress(position(upload_id, 1))

    async def trimmed() -> bool:
        return bool(await any_redis.xlen(key) < 200 and await any_redis.ttl(key) > 0)

    await eventually(trimmed, "old entries are gone")
    assert 200 < await any_redis.ttl(key) <= 300
    assert await command(any_redis, "XRANGE", key, f"{now - 60_000}-0", f"{now - 60_000}-0")


async def test_a_later_event_overtakes_the_position_before_it(any_redis: Redis) -> None:
    """A position that still waits when its upload completes is never sent."""
    publisher = publisher_on(any_redis, interval_s=0.3)
    upload_id, other = new_id(), new_id()
    async with alongside(publisher.run()):
        publisher.progress(position(upload_id, 1))
        await eventually(lambda: _has_positions(any_redis, 1), "the first position is there")
        publisher.progress(position(upload_id, 2))
        publisher.lifecycle(completed(upload_id), lambda: None)
        await asyncio.sleep(0.4)  # the position would have come due
        publisher.progress(position(other, 3))
        await eventually(lambda: _has_positions(any_redis, 2), "others go on")
    assert {one.offset for one in await positions_on(any_redis)} == {1, 3}


async def test_a_full_redis_loses_positions_and_keeps_events(
    start_redis: StartRedis, connect_to: ConnectTo
) -> None:
    """Out of memory, positions go first; events wait until there is room."""
    server = start_redis(aof=False)
    redis = connect_to(server.url)
    publisher = publisher_on(redis)
    upload_id, later = new_id(), new_id()
    published: list[int] = []
    await command(redis, "CONFIG", "SET", "maxmemory", "1")
    async with alongside(publisher.run()):
        publisher.lifecycle(created(upload_id), lambda: published.append(1))
        publisher.progress(position(new_id(), 5))
        await eventually(lambda: publisher.degraded, "the refusal is noticed")
        publisher.lifecycle(completed(upload_id), lambda: published.append(2))
        await asyncio.sleep(0.1)
        assert published == []
        await command(redis, "CONFIG", "SET", "maxmemory", "0")
        await eventually(lambda: published == [1, 2], "the events are there")
        publisher.progress(position(later, 6))
        await eventually(lambda: _has_positions(redis, 1), "new positions are there")
    assert seqs_by_upload(await lifecycle_on(redis)) == {upload_id: [1, 2]}
    assert [one.offset for one in await positions_on(redis)] == [6]


async def test_a_refused_stream_holds_up_no_other(
    publisher: Publisher, any_redis: Redis
) -> None:
    """What Redis took is not sent again because it refused something else."""
    (stuck,), (fine,) = (ids_of_partition(n, 1, PARTITIONS) for n in (0, 1))
    published: list[str] = []
    await any_redis.set(event_stream(0), "a string")
    for seq in (1, 2):
        for one in (stuck, fine):
            publisher.lifecycle(created(one, seq), lambda one=one: published.append(one))  # type: ignore[misc]
    await eventually(lambda: published == [fine, fine], "the other partition goes on")
    await asyncio.sleep(0.2)  # time for repeats
    await any_redis.delete(event_stream(0))
    await eventually(lambda: len(published) == 4, "the events that were refused follow")
    assert seqs_by_upload(await lifecycle_on(any_redis)) == {stuck: [1, 2], fine: [1, 2]}


async def test_a_refused_position_repeats_no_event(
    publisher: Publisher, any_redis: Redis
) -> None:
    """A stream of positions that cannot be written costs only positions."""
    one, other = ids_of_partition(0, 1, PARTITIONS)[0], new_id()
    await any_redis.set(progress_stream(0), "a string")
    published: list[str] = []
    for seq in range(1, 4):
        publisher.progress(position(one, seq))
        publisher.lifecycle(created(other, seq), lambda: published.append(other))
        await asyncio.sleep(0.05)
    await eventually(lambda: len(published) == 3, "the events are there")
    assert seqs_by_upload(await lifecycle_on(any_redis)) == {other: [1, 2, 3]}


async def test_stopping_writes_what_waits(any_redis: Redis) -> None:
    """A process that stops leaves neither events nor last positions behind."""
    publisher = publisher_on(any_redis, interval_s=60)
    upload_id, running = new_id(), new_id()
    task = asyncio.create_task(publisher.run())
    publisher.progress(position(running, 1))
    await eventually(lambda: _has_positions(any_redis, 1), "the first position is there")
    await stop(task)
    publisher.progress(position(running, 2))
    publisher.lifecycle(created(upload_id), lambda: None)
    await publisher.drain(timeout_s=5)
    assert seqs_by_upload(await lifecycle_on(any_redis)) == {upload_id: [1]}
    assert [one.offset for one in await positions_on(any_redis)] == [1, 2]


async def test_stopping_in_the_middle_of_a_write_loses_nothing(any_redis: Redis) -> None:
    """A write that is broken off is made up for by the drain."""
    for wait_s in (0.0, 0.001, 0.002, 0.004):
        await any_redis.flushall()
        publisher = publisher_on(any_redis)
        producer = Producer(publisher)
        task = asyncio.create_task(publisher.run())
        await asyncio.sleep(0)
        for _ in range(400):
            upload_id = new_id()
            producer.hand_over(created(upload_id))
            producer.hand_over(completed(upload_id))
        await asyncio.sleep(wait_s)
        await stop(task)
        await publisher.drain(timeout_s=5)
        await producer.check_nothing_lost(any_redis)


async def test_stopping_without_redis_takes_no_longer_than_told(
    start_redis: StartRedis, connect_to: ConnectTo
) -> None:
    """The drain gives up in time, raises nothing, and leaves the rest to the outbox."""
    server: RedisServer = start_redis(aof=False)
    redis = connect_to(server.url)
    publisher = publisher_on(redis)
    await command(redis, "PING")
    server.signal(signal.SIGSTOP)
    publisher.lifecycle(created(new_id()), lambda: pytest.fail("it cannot be published"))
    started = time.monotonic()
    await publisher.drain(timeout_s=0.2)
    assert time.monotonic() - started < 4
    server.kill()
    await publisher.drain(timeout_s=0.2)
