"""The lifecycle streams are trimmed by age, and never past what a group still needs."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from services.ingest.trimming import trim_stream
from shared.streams import command

STREAM = "events:{p00}"
HOUR_MS = 3_600_000


@pytest.fixture(autouse=True)
async def exact_trimming(any_redis: Redis) -> AsyncIterator[None]:
    """Have Redis trim entry by entry, not block by block."""
    name = "stream-node-max-entries"
    _, before = await command(any_redis, "CONFIG", "GET", name)
    await command(any_redis, "CONFIG", "SET", name, "1")
    yield
    await command(any_redis, "CONFIG", "SET", name, before)


async def fill(redis: Redis, *, old: int, new: int) -> list[bytes]:
    """Add entries of two hours ago and of now; return the ids of the old ones."""
    now = int(time.time() * 1000)
    ids = [f"{now - 2 * HOUR_MS + number}-0" for number in range(old)]
    ids += [f"{now + number}-0" for number in range(new)]
    for one in ids:
        await command(redis, "XADD", STREAM, one, "d", "x")
    return [one.encode() for one in ids[:old]]


async def left(redis: Redis) -> int:
    """Return how many entries there are."""
    return int(await command(redis, "XLEN", STREAM))


async def read(redis: Redis, group: str, count: int) -> None:
    """Have a group read some entries."""
    await command(
        redis, *("XREADGROUP", "GROUP", group, "c", "COUNT", count, "STREAMS", STREAM, ">")
    )


async def test_no_stream(any_redis: Redis) -> None:
    """Where there is nothing, nothing is trimmed."""
    assert await trim_stream(any_redis, STREAM, kept_s=3600) == 0


async def test_old_entries_go(any_redis: Redis) -> None:
    """Without groups, entries older than the limit go, and the others stay."""
    await fill(any_redis, old=20, new=10)
    assert await trim_stream(any_redis, STREAM, kept_s=3600) == 20
    assert await left(any_redis) == 10


async def test_unread_entries_stay(any_redis: Redis) -> None:
    """What a group has not read yet stays, however old it is."""
    await fill(any_redis, old=20, new=10)
    await command(any_redis, "XGROUP", "CREATE", STREAM, "slow", "0")
    assert await trim_stream(any_redis, STREAM, kept_s=3600) == 0
    await read(any_redis, "slow", 5)
    assert await trim_stream(any_redis, STREAM, kept_s=3600) == 0


async def test_unacknowledged_entries_stay(any_redis: Redis) -> None:
    """What a group has read but not acknowledged stays, and so does all that follows it."""
    old = await fill(any_redis, old=20, new=10)
    for group in ("fast", "slow"):
        await command(any_redis, "XGROUP", "CREATE", STREAM, group, "0")
        await read(any_redis, group, 30)
    await command(any_redis, "XACK", STREAM, "fast", *old)
    await command(any_redis, "XACK", STREAM, "slow", *old[:8], *old[9:])
    assert await trim_stream(any_redis, STREAM, kept_s=3600) == 8
    await command(any_redis, "XACK", STREAM, "slow", old[8])
    assert await trim_stream(any_redis, STREAM, kept_s=3600) == 12
    assert await left(any_redis) == 10
