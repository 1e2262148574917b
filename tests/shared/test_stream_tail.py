"""Following streams on real servers: no entry missed, whatever happens to the connection."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from shared.stream_order import TailEntry
from shared.stream_tail import Begin, StreamTail
from shared.streams import REDIS_FAILURES, command, pipelined
from tests.processes import RedisServer
from tests.shared.conftest import ConnectTo, StartRedis
from tests.shared.waiting import alongside, eventually

STREAMS = ("events:{p00}", "progress:{p00}")


class Reader:
    """A tail that notes what it is told."""

    def __init__(self, redis: Redis, begin: Begin | None = None) -> None:
        self.seen: dict[str, list[bytes]] = {key: [] for key in STREAMS}
        self.gaps = 0
        self.waits = False
        """Whether somebody waits for what is read."""
        self.tail = StreamTail(
            redis, on_entries=self._on_entries, on_gap=self._on_gap, begin=begin
        )

    def _on_entries(self, entries: list[TailEntry]) -> bool:
        assert entries
        for entry in entries:
            self.seen[entry.stream].append(entry.id)
        return self.waits

    def _on_gap(self) -> None:
        self.gaps += 1


class Writer:
    """Adds entries, one by one or all the time."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.added: dict[str, list[bytes]] = {key: [] for key in STREAMS}

    async def add(self, key: str) -> bytes:
        """Add one entry, however often it takes; the last try's id counts."""
        while True:
            try:
                entry_id: bytes = await command(self._redis, "XADD", key, "*", "d", "x")
            except REDIS_FAILURES:
                await asyncio.sleep(0.01)
            else:
                self.added[key].append(entry_id)
                return entry_id

    @asynccontextmanager
    async def at_work(self, *keys: str, pause_s: float = 0.0005) -> AsyncIterator[None]:
        """Add to the streams in turn; at the end the last addition is waited for."""
        ends = False

        async def run() -> None:
            while not ends:
                for key in keys or STREAMS:
                    await self.add(key)
                await asyncio.sleep(pause_s)

        task = asyncio.create_task(run())
        try:
            yield
        finally:
            ends = True
            await task

    @property
    def count(self) -> int:
        """Entries added so far."""
        return sum(map(len, self.added.values()))


def is_subsequence(part: list[bytes], whole: list[bytes]) -> bool:
    """Tell whether ``part`` stands in ``whole`` in the same order."""
    rest = iter(whole)
    return all(one in rest for one in part)


async def caught_up(reader: Reader, writer: Writer, since: Mapping[str, int]) -> None:
    """Check that all entries from an index on are seen, once and in order."""
    for key in STREAMS:
        wanted = writer.added[key][since[key] :]
        await eventually(
            lambda key=key: reader.seen[key][-1:] == writer.added[key][-1:],  # type: ignore[misc]
            f"{key} is read to its end",
        )
        seen = reader.seen[key]
        assert len(seen) == len(set(seen))
        assert is_subsequence(wanted, seen)


@pytest.fixture
def reader(any_redis_server: RedisServer, connect_to: ConnectTo) -> Reader:
    """A tail with a client of its own on each kind of server."""
    return Reader(connect_to(any_redis_server.url))


async def test_no_entry_is_missed_while_the_tail_starts(
    reader: Reader, any_redis: Redis
) -> None:
    """What is added after ``start`` is read, also between two reads and before the first."""
    writer = Writer(any_redis)
    async with writer.at_work():
        await eventually(lambda: writer.count > 20, "there is an older history")
        await reader.tail.join(STREAMS)
        since = {key: len(writer.added[key]) for key in STREAMS}
        await eventually(lambda: writer.count > 120, "entries come before the first read")
        async with alongside(reader.tail.run()):
            await eventually(lambda: writer.count > 300, "entries come between reads")
    async with alongside(reader.tail.run()):
        await caught_up(reader, writer, since)
    for key in STREAMS:  # nothing old is read, and what is read has no hole
        assert reader.seen[key] == writer.added[key][-len(reader.seen[key]) :]
        assert len(reader.seen[key]) <= len(writer.added[key]) - since[key] + 1
    assert reader.gaps == 0


async def test_streams_need_not_exist(reader: Reader, any_redis: Redis) -> None:
    """The first entry of a stream is read like any other."""
    await reader.tail.join(STREAMS)
    assert reader.tail.connected
    assert set(reader.tail.streams) == set(STREAMS)
    async with alongside(reader.tail.run()):
        writer = Writer(any_redis)
        for key in STREAMS:
            await writer.add(key)
        await caught_up(reader, writer, dict.fromkeys(STREAMS, 0))


async def test_reading_begins_after_a_given_entry(
    connect_to: ConnectTo, any_redis: Redis, any_redis_server: RedisServer
) -> None:
    """Who knows where each stream is complete has it read from there."""
    writer = Writer(any_redis)
    for _ in range(5):
        for key in STREAMS:
            await writer.add(key)

    async def begin(streams: Collection[str]) -> dict[str, bytes]:
        return {key: writer.added[key][1] for key in streams}

    reader = Reader(connect_to(any_redis_server.url), begin)
    await reader.tail.join(STREAMS)
    async with alongside(reader.tail.run()):
        await caught_up(reader, writer, dict.fromkeys(STREAMS, 2))
    assert reader.seen == {key: writer.added[key][2:] for key in STREAMS}


async def test_a_long_backlog_is_read_to_its_end(reader: Reader, any_redis: Redis) -> None:
    """More entries than one read returns come in order, and in pieces."""
    await reader.tail.join(STREAMS)
    ids = await pipelined(any_redis, [("XADD", STREAMS[0], "*", "d", "x")] * 2345)
    async with alongside(reader.tail.run()):
        await eventually(lambda: len(reader.seen[STREAMS[0]]) >= 2345, "all are read")
    assert reader.seen[STREAMS[0]] == ids


async def test_what_takes_long_is_read_in_smaller_pieces(
    any_redis: Redis, connect_to: ConnectTo, any_redis_server: RedisServer
) -> None:
    """A flood of large entries does not keep the loop from its other work."""
    sizes: list[int] = []

    def handle(entries: list[TailEntry]) -> bool:
        sizes.append(len(entries))
        time.sleep(0.001 * len(entries))  # as decoding does
        return True

    tail = StreamTail(connect_to(any_redis_server.url), on_entries=handle, on_gap=lambda: None)
    await tail.join(STREAMS)
    await pipelined(any_redis, [("XADD", STREAMS[0], "*", "d", "x")] * 800)
    async with alongside(tail.run()):
        await eventually(lambda: sum(sizes) == 800, "all are read")
    assert sizes[0] > 50
    assert max(sizes[1:]) <= 50


async def test_a_killed_connection_loses_nothing(reader: Reader, any_redis: Redis) -> None:
    """The tail goes on where it was, and says that it was away."""
    writer = Writer(any_redis)
    await reader.tail.join(STREAMS)
    async with writer.at_work(), alongside(reader.tail.run()):
        while reader.gaps < 3:  # a kill between two reads is made up for without a word
            count = writer.count
            await eventually(lambda count=count: writer.count > count + 30, "it reads")  # type: ignore[misc]
            await command(any_redis, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    async with alongside(reader.tail.run()):
        await caught_up(reader, writer, dict.fromkeys(STREAMS, 0))


async def test_a_restarted_server_loses_nothing(
    start_redis: StartRedis, connect_to: ConnectTo
) -> None:
    """Redis dies and comes back with its data: all is read, and the gap is told."""
    server = start_redis(aof=True)
    reader, writer = Reader(connect_to(server.url)), Writer(connect_to(server.url))
    await reader.tail.join(STREAMS)
    async with alongside(reader.tail.run()):
        async with writer.at_work():
            await eventually(lambda: writer.count > 50, "it works before")
            await asyncio.to_thread(server.kill)
            await eventually(lambda: not reader.tail.connected, "the outage is noticed")
            assert reader.gaps == 0
            await asyncio.to_thread(server.start)
            await eventually(lambda: reader.tail.connected, "the end of it is noticed")
            count = writer.count
            await eventually(lambda: writer.count > count + 50, "it works after")
        assert reader.gaps >= 1
        await caught_up(reader, writer, dict.fromkeys(STREAMS, 0))


async def test_a_hung_server_is_noticed(start_redis: StartRedis, connect_to: ConnectTo) -> None:
    """A Redis that is stopped counts as away after the socket timeout; then reading goes on."""
    server = start_redis(aof=False)
    reader = Reader(connect_to(f"{server.url}?socket_timeout=1.2"))
    writer = Writer(connect_to(server.url))
    await reader.tail.join(STREAMS)
    async with alongside(reader.tail.run()):
        await writer.add(STREAMS[0])
        await eventually(lambda: reader.seen[STREAMS[0]], "it works before")
        server.signal(signal.SIGSTOP)
        await eventually(lambda: not reader.tail.connected, "the hang is noticed")
        server.signal(signal.SIGCONT)
        for key in STREAMS:
            await writer.add(key)
        await caught_up(reader, writer, dict.fromkeys(STREAMS, 0))
    assert reader.gaps >= 1


async def test_a_wiped_stream_is_read_when_it_is_filled_again(
    reader: Reader, any_redis: Redis
) -> None:
    """What is published again after a wipe is read from its first entry on."""
    writer = Writer(any_redis)
    await reader.tail.join(STREAMS)
    began = time.monotonic()
    async with alongside(reader.tail.run()):
        for round_ in range(3):
            await writer.add(STREAMS[0])
            await writer.add(STREAMS[1])
            await caught_up(reader, writer, dict.fromkeys(STREAMS, 0))
            await any_redis.flushall()
            # Once so quiet that the tail looks where it stands; else just so long that an id
            # is not given twice.
            await asyncio.sleep(1.1 if round_ == 1 else 0.002)
    assert reader.seen == writer.added
    # Who reads more than a second late cannot tell that nothing was trimmed meanwhile.
    assert reader.gaps == 0 or time.monotonic() - began > 2


FUTURE = b"99999999999999-0"


async def test_ids_that_go_backwards_are_noticed(reader: Reader, any_redis: Redis) -> None:
    """After a wipe new ids may be lower: the reader is told, and reading goes on.

    That happens when the clock of the Redis before was ahead, with no connection lost.
    """
    await reader.tail.join(STREAMS)
    busy, key = STREAMS
    writer = Writer(any_redis)
    async with alongside(reader.tail.run()), writer.at_work(busy, pause_s=0.02):
        await command(any_redis, "XADD", key, FUTURE, "d", "x")
        await eventually(lambda: reader.seen[key] == [FUTURE], "it works before")
        await any_redis.delete(key)
        await command(any_redis, "XADD", key, "*", "d", "x")
        await eventually(lambda: reader.gaps == 1, "the reader is told")
        entry_id = await writer.add(key)
        await eventually(lambda: reader.seen[key][-1] == entry_id, "reading goes on")
    assert is_subsequence(reader.seen[busy], writer.added[busy])


async def test_a_server_that_lost_its_memory_is_followed(
    start_redis: StartRedis, connect_to: ConnectTo
) -> None:
    """After a restart without data the ids may go backwards: told, and read on."""
    server = start_redis(aof=False)
    reader, writer = Reader(connect_to(server.url)), Writer(connect_to(server.url))
    key = STREAMS[0]
    await reader.tail.join(STREAMS)
    async with alongside(reader.tail.run()):
        await command(connect_to(server.url), "XADD", key, FUTURE, "d", "x")
        await eventually(lambda: reader.seen[key] == [FUTURE], "it works before")
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        await writer.add(key)
        await eventually(lambda: reader.gaps >= 1, "the reader is told")
        entry_id = await writer.add(key)
        await eventually(lambda: reader.seen[key][-1] == entry_id, "reading goes on")


async def test_a_key_of_another_type_does_not_stop_the_tail(
    reader: Reader, any_redis: Redis
) -> None:
    """A refused read is tried again until the key is a stream."""
    await reader.tail.join(STREAMS)
    await any_redis.set(STREAMS[0], "a string")
    async with alongside(reader.tail.run()):
        await eventually(lambda: not reader.tail.connected, "the refusal is noticed")
        await any_redis.delete(STREAMS[0])
        writer = Writer(any_redis)
        for key in STREAMS:
            await writer.add(key)
        await caught_up(reader, writer, dict.fromkeys(STREAMS, 0))


async def test_starting_without_redis_says_so(
    start_redis: StartRedis, connect_to: ConnectTo
) -> None:
    """A tail that cannot know where to begin does not begin."""
    server = start_redis(aof=False)
    server.kill()
    reader = Reader(connect_to(server.url))
    with pytest.raises(REDIS_FAILURES):
        await reader.tail.join(STREAMS)
    assert not reader.tail.connected


async def test_a_join_does_not_wait_for_a_blocked_read(
    reader: Reader, any_redis: Redis
) -> None:
    """While a read waits in Redis a stream is joined, and its next entry comes at once."""
    quiet, key = STREAMS
    await reader.tail.join([quiet])
    writer = Writer(any_redis)
    took = []
    async with alongside(reader.tail.run()):
        for _ in range(5):
            await asyncio.sleep(0.1)  # the read waits in Redis
            started = time.monotonic()
            await reader.tail.join([key])
            entry_id = await writer.add(key)
            while entry_id not in reader.seen[key]:
                await asyncio.sleep(0.005)
            took.append(time.monotonic() - started)
            reader.tail.leave([key])
            assert list(reader.tail.streams) == [quiet]
    assert sorted(took)[2] < 0.3  # a read waits for a second
    assert reader.seen[key] == writer.added[key]
    assert reader.gaps == 0


async def test_joins_at_full_speed(reader: Reader, any_redis: Redis) -> None:
    """Joined and left at random while producers write, each stay misses and doubles nothing.

    A stay begins with the position that the join has fixed, whatever it interrupts.
    """
    chance = random.Random(4)
    always, key = STREAMS
    writer = Writer(any_redis)
    await reader.tail.join([always])
    async with writer.at_work(pause_s=0.0002), alongside(reader.tail.run()):
        for _ in range(40):
            await asyncio.sleep(chance.uniform(0, 0.004))
            before = len(reader.seen[key])
            await reader.tail.join([key])
            since = len(writer.added[key])
            await eventually(
                lambda since=since: (
                    writer.added[key][since : since + 1]  # type: ignore[misc]
                    and writer.added[key][since] in reader.seen[key]
                ),
                "what follows the join is read",
            )
            await asyncio.sleep(chance.uniform(0, 0.004))
            reader.tail.leave([key])
            stay = reader.seen[key][before:]
            first = writer.added[key].index(stay[0])
            assert first <= since
            assert stay == writer.added[key][first : first + len(stay)]
    async with alongside(reader.tail.run()):
        await eventually(
            lambda: reader.seen[always][-1:] == writer.added[always][-1:], "all is read"
        )
    seen = reader.seen[always]
    assert seen == writer.added[always][-len(seen) :]
    assert reader.gaps == 0


async def test_an_interrupted_connection_is_not_used_again(any_redis: Redis) -> None:
    """A reply that comes after the interruption reaches nobody, whenever that strikes."""
    chance = random.Random(11)
    await any_redis.delete("answers")

    async def wait() -> None:
        async with asyncio.timeout(chance.uniform(0.0002, 0.003)):
            await command(any_redis, "XREAD", "BLOCK", 5, "STREAMS", "answers", "0")

    for number in range(300):
        with contextlib.suppress(TimeoutError):
            await wait()
        assert await command(any_redis, "ECHO", str(number)) == str(number).encode()


async def test_a_reader_that_is_overtaken_by_trimming_is_told(
    reader: Reader, any_redis: Redis
) -> None:
    """Redis says nothing when it has trimmed past a position: the reader finds out."""
    key = STREAMS[0]
    await command(any_redis, "XADD", key, "1000-0", "d", "x")
    await reader.tail.join([key])
    for number in range(5000, 5010):
        await command(any_redis, "XADD", key, f"{number}-0", "d", "x")
    await command(any_redis, "XTRIM", key, "MINID", "5005-0")
    async with alongside(reader.tail.run()):
        await eventually(lambda: reader.seen[key][-1:] == [b"5009-0"], "the rest is read")
    assert reader.gaps == 1


@pytest.mark.parametrize(("waits", "most_per_s"), [(False, 20), (True, 100)])
async def test_reads_are_paced_under_load(
    reader: Reader,
    any_redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
    waits: bool,
    most_per_s: int,
) -> None:
    """However fast entries come, there are few reads a second, fewest if nobody waits."""
    calls: list[int] = []
    told, reader.waits = reader._on_entries, waits

    def on_entries(entries: list[TailEntry]) -> bool:
        calls.append(len(entries))
        return told(entries)

    monkeypatch.setattr(reader.tail, "_on_entries", on_entries)
    writer = Writer(any_redis)
    await reader.tail.join(STREAMS)
    async with alongside(reader.tail.run()):
        started = time.monotonic()
        async with writer.at_work(pause_s=0):
            await eventually(lambda: time.monotonic() - started > 2.5, "a while of load")
        took = time.monotonic() - started
        await caught_up(reader, writer, dict.fromkeys(STREAMS, 0))
    assert len(calls) <= 20 + most_per_s * (took + 1)
    assert waits or max(calls) > 10
