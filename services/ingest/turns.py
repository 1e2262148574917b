"""Jobs that one process does at a time, whichever gets to it first.

A lease in Redis that runs out unless it is kept, so it dies with its process. It only saves
work: what is done under it must be safe even if two do it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from redis.asyncio import Redis

from shared.streams import REDIS_FAILURES, command

__all__ = ["Turn", "TurnLost", "turn_at"]

_IF_MINE: Final = (
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call({}) end return 0"
)
_KEEP: Final = _IF_MINE.format("'PEXPIRE', KEYS[1], ARGV[2]")
_GIVE_BACK: Final = _IF_MINE.format("'DEL', KEYS[1]")


class TurnLost(Exception):
    """Another process may be at it by now."""


class Turn:
    """The right to do a job."""

    def __init__(self, redis: Redis, key: str, ttl_s: float) -> None:
        self._redis: Final = redis
        self._key: Final = key
        self._ttl_s: Final = ttl_s
        self._word: Final = secrets.token_hex(8)
        self._kept_at = time.monotonic()

    async def take(self) -> bool:
        """Take it, unless another process has it. Raises: RedisError, OSError."""
        self._kept_at = time.monotonic()
        ttl_ms = int(self._ttl_s * 1000)
        return bool(await self._redis.set(self._key, self._word, nx=True, px=ttl_ms))

    async def keep(self) -> None:
        """Make it last; to be called often, and cheap.

        Raises:
            TurnLost: It has run out and went to somebody else.
            RedisError, OSError: Redis is away.

        """
        if time.monotonic() - self._kept_at < self._ttl_s / 4:
            return
        self._kept_at = time.monotonic()
        ttl_ms = int(self._ttl_s * 1000)
        if not await command(self._redis, "EVAL", _KEEP, 1, self._key, self._word, ttl_ms):
            raise TurnLost(self._key)

    async def give_back(self) -> None:
        """Let the next one have it; never fails, since it runs out anyway."""
        with suppress(*REDIS_FAILURES):
            await command(self._redis, "EVAL", _GIVE_BACK, 1, self._key, self._word)


@asynccontextmanager
async def turn_at(redis: Redis, key: str, *, ttl_s: float) -> AsyncIterator[Turn | None]:
    """Have the turn at a job for as long as the context lasts; ``None``: another has it.

    Raises:
        RedisError, OSError: Redis is away.

    """
    turn = Turn(redis, key, ttl_s)
    if not await turn.take():
        yield None
        return
    try:
        yield turn
    finally:
        await turn.give_back()
