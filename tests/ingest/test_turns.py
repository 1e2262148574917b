"""Turns: one process at a time, none for ever."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from services.ingest.turns import Turn, TurnLost, turn_at


async def test_one_has_it_until_it_is_given_back(any_redis: Redis) -> None:
    """Whoever comes second gets none, and the next one gets it at once."""
    async with turn_at(any_redis, "job", ttl_s=60) as first:
        assert first is not None
        async with turn_at(any_redis, "job", ttl_s=60) as second:
            assert second is None
        assert await any_redis.exists("job"), "who had no turn gave one back"
    async with turn_at(any_redis, "job", ttl_s=60) as third:
        assert third is not None


async def test_it_ends_with_its_process(any_redis: Redis) -> None:
    """A turn that nobody keeps runs out; who had it learns so, and takes nobody's away."""
    dead, alive = Turn(any_redis, "job", 0.1), Turn(any_redis, "job", 60)
    assert await dead.take()
    await asyncio.sleep(0.2)
    assert await alive.take()
    with pytest.raises(TurnLost):
        await dead.keep()
    await dead.give_back()
    assert not await Turn(any_redis, "job", 60).take()


async def test_it_lasts_while_it_is_kept(any_redis: Redis) -> None:
    """Work that takes longer than the time to live keeps its turn."""
    turn = Turn(any_redis, "job", 0.4)
    assert await turn.take()
    for _ in range(20):
        await asyncio.sleep(0.05)
        await turn.keep()
    assert await any_redis.pttl("job") > 200


async def test_a_wiped_redis_ends_it(any_redis: Redis) -> None:
    """After FLUSHALL somebody else may be at it."""
    turn = Turn(any_redis, "job", 0.2)
    assert await turn.take()
    await any_redis.flushall()
    await asyncio.sleep(0.1)
    with pytest.raises(TurnLost):
        await turn.keep()
