"""A lock in Redis for work that two processes may do at once, but at a price.

It saves work and guards nothing: it runs out, and who had it is not told. What must not happen
twice needs a lease (``shared.redis_leases``).
"""

from __future__ import annotations

import time
import uuid
from typing import Final

from redis.asyncio import Redis

from shared.streams import command

__all__ = ["RedisLock"]

_TAKE: Final = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

_RENEWALS_PER_TTL: Final = 4

_DROP: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 0
"""


class RedisLock:
    """One process's view of a lock.

    Every method raises what Redis raises when it is away (``REDIS_FAILURES``). Whoever had the
    lock then can take it again at once.

    Args:
        redis: Client made by ``shared.streams.connect``.
        key: Of the lock.
        ttl_s: How long it outlives its owner.

    """

    def __init__(self, redis: Redis, key: str, *, ttl_s: float) -> None:
        self._redis: Final = redis
        self._key: Final = key
        self._ttl_ms: Final = int(ttl_s * 1000)
        self._renew_after_s: Final = ttl_s / _RENEWALS_PER_TTL
        self._taken_at = 0.0
        self._owner: Final = uuid.uuid4().hex

    async def take(self) -> bool:
        """Take the lock, or keep it for longer; return whether it is ours now."""
        self._taken_at = time.monotonic()  # before its time begins in Redis
        return bool(
            await command(self._redis, "EVAL", _TAKE, 1, self._key, self._owner, self._ttl_ms)
        )

    async def keep(self) -> None:
        """Take the lock again if it was taken a while ago; for each step of long work.

        So ``ttl_s`` may be short: others wait for it when the owner is killed.
        """
        if time.monotonic() - self._taken_at >= self._renew_after_s:
            await self.take()

    async def drop(self) -> None:
        """Let others have the lock; one that is theirs already stays theirs."""
        await command(self._redis, "EVAL", _DROP, 1, self._key, self._owner)
