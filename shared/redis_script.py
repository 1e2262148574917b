"""Lua scripts that run in Redis, each called by its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from shared.streams import Command, command, pipelined

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

    async def run_all(
        self, redis: Redis, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]
    ) -> list[Any]:
        """Run it for each pair of keys and arguments, in one write; return the raw replies.

        Raises:
            RedisError, OSError: Redis is away, or refuses one of them.

        """
        tails = [(len(keys), *keys, *arguments) for keys, arguments in calls]
        first: list[Command] = [("EVALSHA", self._digest, *tail) for tail in tails]
        replies = await pipelined(redis, first, raise_on_error=False)
        unseen = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        again: list[Command] = [("EVAL", self._text, *tails[n]) for n in unseen]
        for n, reply in zip(unseen, await pipelined(redis, again), strict=True):
            replies[n] = reply
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies
