"""Lua scripts that run in Redis, each called by its digest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from shared.streams import command

__all__ = ["RedisScript"]


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
