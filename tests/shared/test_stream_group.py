"""Consumer groups on real servers: members that die, entries that cannot be handled."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from shared.events import MalformedEvent, UnknownEvent
from shared.stream_group import GroupEntry, StreamGroup
from shared.streams import Entry, command, entry_of, pipelined
from tests.processes import RedisServer
from tests.shared.conftest import ConnectTo, StartRedis
from tests.shared.waiting import alongside, eventually, stop

STREAMS = ("events:{p00}", "events:{p01}")
GROUP = "progress"
MIN_IDLE_S = 0.1


class Member:
    """Handles entries by noting them; ``bad`` entries raise what they are told to."""

    def __init__(self, redis: Redis, **options: Any) -> None:
        self.handled: list[bytes] = []
        self.tries: Counter[bytes] = Counter()
        self.bad: dict[bytes, Exception] = {}
        self.group = StreamGroup(
            redis,
            group=GROUP,
            streams=STREAMS,
            handle=self.handle,
            **{"min_idle_s": MIN_IDLE_S, "max_deliveries": 3, **options},
        )

    async def handle(self, batch: Sequence[GroupEntry]) -> None:
        """Note the values of a batch, or fail."""
        for entry in batch:
            value = entry.fields[b"d"]
            self.tries[value] += len(batch) == 1
            if value in self.bad:
                raise self.bad[value]
        self.handled += [entry.fields[b"d"] for entry in batch]


StartMember = Callable[..., Any]


@pytest.fixture
async def start_member(
    any_redis_server: RedisServer, connect_to: ConnectTo
) -> AsyncIterator[StartMember]:
    """Start members with a client of their own."""
    async with AsyncExitStack() as stack:

        async def start(bad: dict[bytes, Exception] | None = None, **options: Any) -> Member:
            member = Member(connect_to(any_redis_server.url), **options)
            member.bad = bad or {}
            _ = await stack.enter_async_context(alongside(member.group.run()))
            return member

        yield start


async def add(redis: Redis, *values: bytes, stream: str = STREAMS[0]) -> list[bytes]:
    """Add entries; return their ids."""
    return await pipelined(redis, [("XADD", stream, "*", "d", value) for value in values])


async def pending(redis: Redis) -> int:
    """Return how many entries were delivered, but not acknowledged."""
    replies = await pipelined(redis, [("XPENDING", key, GROUP) for key in STREAMS])
    return sum(reply[0] for reply in replies)


async def dead_letters(redis: Redis) -> list[dict[bytes, bytes]]:
    """Return the fields of the dead letters."""
    reply = await command(redis, "XRANGE", f"dead:{GROUP}", "-", "+")
    return [entry_of(raw)[1] for raw in reply]


async def take_and_die(redis: Redis, count: int) -> list[Entry]:
    """Read entries as a member that is killed before it can acknowledge them."""
    command_ = ("XGROUP", "CREATE", STREAMS[0], GROUP, "0", "MKSTREAM")
    await pipelined(redis, [command_], raise_on_error=False)
    reply = await command(
        redis, "XREADGROUP", "GROUP", GROUP, "dead", "COUNT", count, "STREAMS", STREAMS[0], ">"
    )
    return [entry_of(raw) for raw in reply[0][1]]


def metric(name: str) -> float:
    """Return the value of one of the group's counters."""
    return REGISTRY.get_sample_value(name, {"group": GROUP}) or 0.0


async def test_each_entry_is_handled_once_by_one_of_two(
    start_member: StartMember, any_redis: Redis
) -> None:
    """Members share the work; nothing is done twice, nothing is left."""
    values = [b"%d" % number for number in range(400)]
    await add(any_redis, *values[:100])  # before there is a group
    first = await start_member(min_idle_s=30)
    second = await start_member(min_idle_s=30)
    for start in range(100, 400, 20):
        await add(any_redis, *values[start : start + 20], stream=STREAMS[start // 20 % 2])
        await asyncio.sleep(0.005)

    def all_handled() -> bool:
        return len(first.handled) + len(second.handled) >= 400

    await eventually(all_handled, "all are handled")
    assert Counter(first.handled + second.handled) == Counter(values)
    await eventually(lambda: _no_pending(any_redis), "all are acknowledged")


async def _no_pending(redis: Redis) -> bool:
    return await pending(redis) == 0


async def test_entries_of_a_stream_are_handled_in_order(
    start_member: StartMember, any_redis: Redis
) -> None:
    """One member sees a stream as it was written."""
    member = await start_member()
    values = [b"%d" % number for number in range(500)]
    await add(any_redis, *values)
    await eventually(lambda: len(member.handled) >= 500, "all are handled")
    assert member.handled == values


async def test_what_a_killed_member_left_is_claimed(
    start_member: StartMember, any_redis: Redis
) -> None:
    """Entries that were delivered and never acknowledged go to another member."""
    await add(any_redis, b"a", b"b", b"c")
    assert len(await take_and_die(any_redis, 2)) == 2
    member = await start_member()
    await eventually(lambda: len(member.handled) == 3, "all are handled")
    assert sorted(member.handled) == [b"a", b"b", b"c"]
    await eventually(lambda: _no_pending(any_redis), "all are acknowledged")


async def test_what_a_slow_member_has_is_not_claimed_early(
    start_member: StartMember, any_redis: Redis
) -> None:
    """An entry is left to its member for as long as was said."""
    await add(any_redis, b"a")
    await take_and_die(any_redis, 1)
    member = await start_member(min_idle_s=30)
    await add(any_redis, b"b")
    await eventually(lambda: member.handled == [b"b"], "the new one is handled")
    assert await pending(any_redis) == 1


FAILURES = [
    ValueError("a fault of ours"),
    OSError("a full disk"),
    ResponseError("WRONGTYPE of this entry's key"),
    TimeoutError("it took too long"),
]


async def test_a_poison_entry_is_given_up_after_some_tries(
    start_member: StartMember, any_redis: Redis
) -> None:
    """It goes to the dead letters with the reason, and the stream has moved on long before."""
    dead = metric("group_dead_letters_total")
    poison = {b"poison-%d" % number: failure for number, failure in enumerate(FAILURES)}
    ids = dict(zip(poison, await add(any_redis, *poison), strict=True))
    await add(any_redis, b"a", b"b")
    member = await start_member(poison)
    await eventually(lambda: member.handled == [b"a", b"b"], "the stream moves on")
    await add(any_redis, b"c", stream=STREAMS[1])
    await eventually(lambda: _no_pending(any_redis), "nothing is left pending")
    letters = {letter[b"d"]: letter for letter in await dead_letters(any_redis)}
    assert letters.keys() == poison.keys()
    for value, failure in poison.items():
        assert member.tries[value] == 3
        assert letters[value] == {
            b"stream": STREAMS[0].encode(),
            b"id": ids[value],
            b"reason": repr(failure).encode(),
            b"d": value,
        }
    assert member.handled == [b"a", b"b", b"c"]
    assert metric("group_dead_letters_total") == dead + len(FAILURES)


async def test_two_poison_entries_do_not_hide_what_follows(
    start_member: StartMember, any_redis: Redis
) -> None:
    """What a dead member left behind poison is claimed too."""
    await add(any_redis, b"poison-1", b"poison-2", b"a")
    await take_and_die(any_redis, 3)
    failures = {b"poison-1": ResponseError("WRONGTYPE"), b"poison-2": OSError("no")}
    member = await start_member(failures)
    await eventually(lambda: member.handled == [b"a"], "the good one is handled")


async def test_a_malformed_entry_is_given_up_at_once(
    start_member: StartMember, any_redis: Redis
) -> None:
    """What cannot be read will not be readable later; it spoils no other of its batch."""
    await add(any_redis, b"a", b"broken", b"b")
    member = await start_member({b"broken": MalformedEvent("no JSON")})
    await eventually(lambda: dead_letters(any_redis), "it is given up")
    await eventually(lambda: _no_pending(any_redis), "nothing is left pending")
    assert member.handled == [b"a", b"b"]
    assert member.tries[b"broken"] == 1
    assert [letter[b"reason"] for letter in await dead_letters(any_redis)] == [b"no JSON"]


async def test_an_unknown_event_is_skipped(start_member: StartMember, any_redis: Redis) -> None:
    """An event of a newer build is acknowledged and no dead letter."""
    await add(any_redis, b"a", b"later", b"b")
    member = await start_member({b"later": UnknownEvent("upload.paused")})
    await eventually(lambda: member.handled == [b"a", b"b"], "the others are handled")
    await eventually(lambda: _no_pending(any_redis), "nothing is left pending")
    assert await dead_letters(any_redis) == []


async def test_an_entry_that_kills_its_members_is_given_up(
    start_member: StartMember, any_redis: Redis
) -> None:
    """A member that dies of an entry cannot say so; the count of deliveries does."""
    await add(any_redis, b"deadly", b"a")
    entries = await take_and_die(any_redis, 1)
    where = (STREAMS[0], GROUP, "dead", 0, entries[0][0])
    await command(any_redis, "XCLAIM", *where, "RETRYCOUNT", 3)
    member = await start_member()
    await eventually(lambda: dead_letters(any_redis), "it is given up")
    await eventually(lambda: _no_pending(any_redis), "nothing is left pending")
    assert member.handled == [b"a"]


async def test_a_wiped_redis_gets_its_group_back(
    start_member: StartMember, any_redis: Redis
) -> None:
    """After a wipe, whatever is published again is handled, from the first entry on."""
    member = await start_member()
    await add(any_redis, b"before")
    await eventually(lambda: member.handled == [b"before"], "it works before")
    for round_ in range(3):
        await any_redis.flushall()
        await add(any_redis, b"after-%d" % round_)
        await eventually(
            lambda round_=round_: member.handled[-1] == b"after-%d" % round_,  # type: ignore[misc]
            "it works after",
        )
    assert len(member.handled) == 4


async def test_a_deleted_stream_gets_its_group_back(
    start_member: StartMember, any_redis: Redis
) -> None:
    """One stream that runs out does not stop the others, comes back, and alarms nobody."""
    with capture_logs() as logged:
        member = await start_member()
        await add(any_redis, b"a")
        await eventually(lambda: member.handled == [b"a"], "it works before")
        await any_redis.delete(STREAMS[0])
        await add(any_redis, b"b", stream=STREAMS[1])
        await add(any_redis, b"c")
        everything = [b"a", b"b", b"c"]
        await eventually(lambda: sorted(member.handled) == everything, "it works after")
    assert {one["log_level"] for one in logged} <= {"info"}, logged


async def test_trimmed_entries_that_were_pending_are_counted(
    start_member: StartMember, any_redis: Redis
) -> None:
    """An entry that was trimmed before it was handled is a loss, and told as one."""
    lost = metric("group_trimmed_total")
    ids = await add(any_redis, b"a", b"b", b"c", b"d")
    await take_and_die(any_redis, 3)
    await command(any_redis, "XDEL", STREAMS[0], ids[0], ids[1])
    member = await start_member()
    await eventually(lambda: sorted(member.handled) == [b"c", b"d"], "the rest is handled")
    await eventually(lambda: _no_pending(any_redis), "nothing is left pending")
    assert metric("group_trimmed_total") == lost + 2


async def test_a_cancelled_member_leaves_its_entry_to_others(
    start_member: StartMember,
    any_redis: Redis,
    any_redis_server: RedisServer,
    connect_to: ConnectTo,
) -> None:
    """A member that stops in the middle has neither acknowledged nor given up anything."""
    redis = connect_to(any_redis_server.url)
    started = asyncio.Event()

    async def hang(_: Sequence[GroupEntry]) -> None:
        started.set()
        await asyncio.sleep(60)

    group = StreamGroup(redis, group=GROUP, streams=STREAMS, handle=hang)
    task = asyncio.create_task(group.run())
    await add(any_redis, b"a", b"b")
    await started.wait()
    await stop(task)
    assert await pending(any_redis) == 2
    assert await dead_letters(any_redis) == []
    member = await start_member()
    await eventually(lambda: member.handled == [b"a", b"b"], "another one handles it")
    await eventually(lambda: _no_pending(any_redis), "all is acknowledged")


async def test_what_was_in_hand_when_redis_died_is_handled_soon(
    start_redis: StartRedis, connect_to: ConnectTo
) -> None:
    """Nobody waits for a claim: the member that has the entries goes on with them."""
    server = start_redis(aof=True)
    redis, writer = connect_to(server.url), connect_to(server.url)
    member = Member(redis, min_idle_s=60)
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def handle(batch: Sequence[GroupEntry]) -> None:
        entered.set()
        await go_on.wait()
        await pipelined(redis, [("INCR", entry.fields[b"d"]) for entry in batch])
        member.handled += [entry.fields[b"d"] for entry in batch]

    group = StreamGroup(redis, group=GROUP, streams=STREAMS, handle=handle, min_idle_s=60)
    async with alongside(group.run()):
        await add(writer, b"a", b"b")
        await entered.wait()
        await asyncio.to_thread(server.kill)
        go_on.set()
        await asyncio.to_thread(server.start)
        await add(writer, b"c")
        await eventually(lambda: b"c" in member.handled, "it goes on", 8)
        await eventually(lambda: _no_pending(writer), "all is acknowledged", 8)
    assert set(member.handled) == {b"a", b"b", b"c"}


async def test_a_full_redis_gives_no_entry_up(
    start_redis: StartRedis, connect_to: ConnectTo
) -> None:
    """An entry is not acknowledged before its dead letter is written."""
    server = start_redis(aof=False)
    redis, writer = connect_to(server.url), connect_to(server.url)
    member = Member(redis)
    member.bad = {b"broken": MalformedEvent("no JSON")}
    await add(writer, b"broken", b"a")
    await pipelined(writer, [("XGROUP", "CREATE", s, GROUP, 0, "MKSTREAM") for s in STREAMS])
    await command(writer, "CONFIG", "SET", "maxmemory", 1)
    async with alongside(member.group.run()):
        await eventually(lambda: member.tries[b"broken"], "it is tried")
        await asyncio.sleep(0.1)
        assert await pending(writer) == 2
        await command(writer, "CONFIG", "SET", "maxmemory", 0)
        await eventually(lambda: dead_letters(writer), "it is given up with its reason")
        await eventually(lambda: _no_pending(writer), "nothing is left pending")
    assert member.handled[-1] == b"a"


async def test_a_lost_connection_loses_no_entry(
    start_member: StartMember, any_redis: Redis
) -> None:
    """A connection that is killed under a member costs nothing."""
    member = await start_member()
    values = [b"%d" % number for number in range(60)]
    for start in range(0, 60, 20):
        await add(any_redis, *values[start : start + 20])
        await command(any_redis, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await asyncio.sleep(0.05)
    await eventually(lambda: set(member.handled) >= set(values), "all are handled")
    await eventually(lambda: _no_pending(any_redis), "all are acknowledged")


async def test_silent_members_that_owe_nothing_are_forgotten(
    start_member: StartMember, any_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of members does not grow with each restart, and no entry is lost with one."""
    monkeypatch.setattr("shared.stream_group._FORGET_CONSUMER_MS", 100)
    await add(any_redis, b"a")
    await take_and_die(any_redis, 1)
    await command(any_redis, "XGROUP", "CREATECONSUMER", STREAMS[0], GROUP, "silent")
    member = await start_member(min_idle_s=0.4)

    async def names() -> set[bytes]:
        reply = await command(any_redis, "XINFO", "CONSUMERS", STREAMS[0], GROUP)
        return {flat[1] for flat in reply}

    async def silent_is_gone() -> bool:
        return b"silent" not in await names()

    await eventually(silent_is_gone, "the silent one is forgotten")
    assert member.handled or b"dead" in await names()
    await eventually(lambda: member.handled == [b"a"], "what the dead one owed is handled")
