"""Lua scripts that run in Redis, each called by its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from shared.streams import Command, command, pipelined

__all__ = ["Call", "RedisScript"]

Call: TypeAlias = tuple[Sequence[str], Sequence[str | bytes | int]]
"""Keys and arguments."""


class RedisScript:
    """One script: atomic, one round trip.

    Args:
        file: Where its text is.

    """

    def __init__(self, file: Path) -> None:
        self._text: Final = file.read_text()
        self._digest: Final = hashlib.sha1(
            self._text.encode(), usedforsecurity=False
        ).hexdigest()

    async def run(self, redis: Redis, keys: list[str], *arguments: object) -> Any:
        """Run it and return its raw reply.

        Raises:
            RedisError, OSError: Redis is away, or refuses.

        """
        call = (len(keys), *keys, *arguments)
        try:
            return await command(redis, "EVALSHA", self._digest, *call)
        except NoScriptError:  # a Redis that has not seen it, or has forgotten it
            return await command(redis, "EVAL", self._text, *call)

    async def run_all(self, redis: Redis, calls: Sequence[Call]) -> list[Any]:
        """Run it for each pair of keys and arguments, in one go; return the raw replies.

        It must be idempotent: where Redis has forgotten it, all that was sent is sent again.

        Raises:
            RedisError, OSError: Redis is away, or refuses.

        """
        try:
            return await pipelined(redis, _calling("EVALSHA", self._digest, calls))
        except NoScriptError:
            return await pipelined(redis, _calling("EVAL", self._text, calls))


def _calling(name: str, script: str, calls: Sequence[Call]) -> list[Command]:
    return [(name, script, len(keys), *keys, *rest) for keys, rest in calls]
