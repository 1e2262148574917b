"""A lock that saves work: taken by one, dropped by nobody else."""

from __future__ import annotations

import time

from redis.asyncio import Redis

from shared.redis_lock import RedisLock
from tests.shared.waiting import eventually


async def test_one_at_a_time(any_redis: Redis) -> None:
    """Whoever has the lock may take it again; another one may when it is dropped."""
    one, other = (RedisLock(any_redis, "lock", ttl_s=60) for _ in range(2))

    assert await one.take()
    assert await one.take()
    assert not await other.take()
    await one.drop()
    assert await other.take()


async def test_another_ones_lock_is_not_dropped(any_redis: Redis) -> None:
    """One that comes too late to drop its lock leaves the next owner's alone."""
    late = RedisLock(any_redis, "lock", ttl_s=0.05)
    owner, third = (RedisLock(any_redis, "lock", ttl_s=60) for _ in range(2))
    assert await late.take()
    await eventually(owner.take, "the lock has run out", 5)

    await late.drop()

    assert not await third.take()


async def test_taking_again_makes_it_last(any_redis: Redis) -> None:
    """Its time counts from when it was taken last."""
    one = RedisLock(any_redis, "lock", ttl_s=1)
    assert await one.take()
    await any_redis.pexpire("lock", 10)

    assert await one.take()

    assert await any_redis.pttl("lock") > 500


async def test_kept_at_each_step_of_long_work(any_redis: Redis) -> None:
    """Work that takes longer than the lock lasts would be begun by others meanwhile."""
    one, other = (RedisLock(any_redis, "lock", ttl_s=2) for _ in range(2))
    began = time.monotonic()
    assert await one.take()
    await any_redis.persist("lock")  # so that it is seen when its time begins anew

    async def is_renewed() -> bool:
        await one.keep()
        return bool(await any_redis.pttl("lock") != -1)

    await eventually(is_renewed, "its time begins anew", 5)

    assert time.monotonic() - began >= 0.5  # to ask Redis at each step would be dear
    assert not await other.take()
    await eventually(other.take, "the lock has run out", 5)
