"""Following streams on real servers: no entry missed, whatever happens to the connection."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from shared.stream_tail import StreamTail
from shared.streams import REDIS_FAILURES, Entry, command, pipelined
from tests.processes import RedisServer
from tests.shared.conftest import ConnectTo, StartRedis
from tests.shared.waiting import alongside, eventually

STREAMS = ("events:{p00}", "progress:{p00}")


class Reader:
    """A tail that notes what it is told."""

    def __init__(self, redis: Redis) -> None:
        self.seen: dict[str, list[bytes]] = {key: [] for key in STREAMS}
        self.gaps = 0
        self.tail = StreamTail(redis, STREAMS, on_entries=self._on_entries, on_gap=self._on_gap)

    def _on_entries(self, key: str, entries: list[Entry]) -> None:
        assert entries
        self.seen[key] += [entry_id for entry_id, _ in entries]

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
        await reader.tail.start()
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
    await reader.tail.start()
    assert reader.tail.connected
    async with alongside(reader.tail.run()):
        writer = Writer(any_redis)
        for key in STREAMS:
            await writer.add(key)
        await caught_up(reader, writer, dict.fromkeys(STREAMS, 0))


async def test_reading_begins_after_a_given_entry(reader: Reader, any_redis: Redis) -> None:
    """A reader that knows how far it was goes on from there; other streams start at the end."""
    writer = Writer(any_redis)
    for _ in range(5):
        for key in STREAMS:
            await writer.add(key)
    key, other = STREAMS
    await reader.tail.start({key: writer.added[key][1]})
    async with alongside(reader.tail.run()):
        await writer.add(other)
        await eventually(lambda: reader.seen[other], "the new entry is there")
    assert reader.seen == {key: writer.added[key][2:], other: writer.added[other][5:]}


async def test_a_long_backlog_is_read_to_its_end(reader: Reader, any_redis: Redis) -> None:
    """More entries than one read returns come in order, and in pieces."""
    await reader.tail.start()
    ids = await pipelined(any_redis, [("XADD", STREAMS[0], "*", "d", "x")] * 2345)
    async with alongside(reader.tail.run()):
        await eventually(lambda: len(reader.seen[STREAMS[0]]) >= 2345, "all are read")
    assert reader.seen[STREAMS[0]] == ids


async def test_a_killed_connection_loses_nothing(reader: Reader, any_redis: Redis) -> None:
    """The tail goes on where it was, and says that it was away."""
    writer = Writer(any_redis)
    await reader.tail.start()
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
    await reader.tail.start()
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
    await reader.tail.start()
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
    await reader.tail.start()
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
    assert reader.gaps == 0


FUTURE = b"99999999999999-0"


async def test_ids_that_go_backwards_are_noticed(reader: Reader, any_redis: Redis) -> None:
    """After a wipe new ids may be lower: the reader is told, and reading goes on.

    That happens when the clock of the Redis before was ahead, with no connection lost.
    """
    await reader.tail.start()
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
    await reader.tail.start()
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
    await reader.tail.start()
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
        await reader.tail.start()
    assert not reader.tail.connected
