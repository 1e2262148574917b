"""Trimming of the lifecycle streams: by age, and never past what a group still needs."""

from __future__ import annotations

import time

from redis.asyncio import Redis

from services.ingest.trimming import trim_stream
from shared.streams import command, event_stream, pipelined

STREAM = event_stream(3)
KEPT_S = 3600.0


async def fill(redis: Redis, count: int, *, age_s: float = 7200.0) -> list[str]:
    """Add entries of an age, a millisecond apart; return their ids, oldest first.

    Redis removes whole nodes; with one entry a node it removes exactly what it may.
    """
    await command(redis, "CONFIG", "SET", "stream-node-max-entries", 1)
    start = int((time.time() - age_s) * 1000)
    ids = [f"{start + number}-0" for number in range(count)]
    await pipelined(redis, [("XADD", STREAM, one, "d", "x") for one in ids])
    await command(redis, "CONFIG", "SET", "stream-node-max-entries", 100)
    return ids


async def left(redis: Redis) -> list[str]:
    """Return the ids in the stream."""
    return [raw[0].decode() for raw in await command(redis, "XRANGE", STREAM, "-", "+")]


async def make_group(redis: Redis, group: str, *, read: int = 0, acknowledge: int = 0) -> None:
    """Make a group that has read some entries and acknowledged the first of them."""
    await command(redis, "XGROUP", "CREATE", STREAM, group, "0")
    if read:
        reply = await command(
            redis, "XREADGROUP", "GROUP", group, "c", "COUNT", read, "STREAMS", STREAM, ">"
        )
        ids = [raw[0] for raw in reply[0][1]]
        await pipelined(redis, [("XACK", STREAM, group, one) for one in ids[:acknowledge]])


async def test_old_entries_go_and_young_ones_stay(any_redis: Redis) -> None:
    """Without groups age alone decides."""
    await fill(any_redis, 20)
    young = await fill(any_redis, 20, age_s=60)
    assert await trim_stream(any_redis, STREAM, kept_s=KEPT_S) == 20
    assert await left(any_redis) == young
    assert await trim_stream(any_redis, STREAM, kept_s=KEPT_S) == 0


async def test_a_stream_that_is_not_there_is_not_made(any_redis: Redis) -> None:
    """Trimming nothing leaves nothing behind."""
    assert await trim_stream(any_redis, STREAM, kept_s=KEPT_S) == 0
    assert not await any_redis.exists(STREAM)


async def test_a_pending_entry_and_what_follows_it_stay(any_redis: Redis) -> None:
    """What a group was given and has not acknowledged is not taken from it."""
    ids = await fill(any_redis, 50)
    await make_group(any_redis, "progress", read=30, acknowledge=12)
    assert await trim_stream(any_redis, STREAM, kept_s=KEPT_S) == 12
    assert await left(any_redis) == ids[12:]
    pending = await command(any_redis, "XPENDING", STREAM, "progress", "-", "+", 100)
    claimed = await command(
        any_redis, "XCLAIM", STREAM, "progress", "other", 0, *(one[0] for one in pending)
    )
    assert [raw[0].decode() for raw in claimed] == ids[12:30]


async def test_what_a_group_has_not_read_stays(any_redis: Redis) -> None:
    """All that was read is acknowledged: the last one read is the border."""
    ids = await fill(any_redis, 50)
    await make_group(any_redis, "progress", read=30, acknowledge=30)
    await trim_stream(any_redis, STREAM, kept_s=KEPT_S)
    assert await left(any_redis) == ids[29:]


async def test_the_slowest_group_decides(any_redis: Redis) -> None:
    """Every group gets every entry."""
    ids = await fill(any_redis, 50)
    await make_group(any_redis, "storage", read=50, acknowledge=50)
    await make_group(any_redis, "progress", read=40, acknowledge=10)
    await trim_stream(any_redis, STREAM, kept_s=KEPT_S)
    assert await left(any_redis) == ids[10:]
    await make_group(any_redis, "worker")
    assert await trim_stream(any_redis, STREAM, kept_s=KEPT_S) == 0


async def test_young_entries_stay_whatever_the_groups_say(any_redis: Redis) -> None:
    """Gateways that tail a stream need entries that all groups have done with."""
    ids = await fill(any_redis, 30, age_s=60)
    await make_group(any_redis, "progress", read=30, acknowledge=30)
    assert await trim_stream(any_redis, STREAM, kept_s=KEPT_S) == 0
    assert await left(any_redis) == ids


async def test_a_stream_of_whole_nodes_loses_no_entry_that_is_needed(any_redis: Redis) -> None:
    """With nodes of the usual size less is removed than may be, never more."""
    start = int((time.time() - 7200) * 1000)
    ids = [f"{start + number}-0" for number in range(1000)]
    await pipelined(any_redis, [("XADD", STREAM, one, "d", "x") for one in ids])
    await make_group(any_redis, "progress", read=650, acknowledge=550)
    removed = await trim_stream(any_redis, STREAM, kept_s=KEPT_S)
    assert 400 <= removed <= 550
    assert await left(any_redis) == ids[removed:]
