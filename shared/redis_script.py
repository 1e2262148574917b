"""Lua scripts that run in Redis, each called by its digest, alone or among other commands."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from shared.streams import Command, command, pipelined

__all__ = ["Call", "RedisScript", "run_mixed"]

Call: TypeAlias = tuple[Sequence[str], Sequence[Any]]
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

    def call(self, keys: Sequence[str], *arguments: str | bytes | float) -> Command:
        """Return the command that runs it, for ``run_mixed``."""
        return ("EVALSHA", self._digest, len(keys), *keys, *arguments)

    async def load(self, redis: Redis) -> None:
        """Have it known, on a cluster by every primary.

        Raises:
            RedisError, OSError: Redis is away.

        """
        await redis.script_load(self._text)

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
        return _good(replies)


async def run_mixed(
    redis: Redis, commands: Sequence[Command], *scripts: RedisScript
) -> list[Any]:
    """Send commands, some of them calls of these scripts, in one write; return raw replies.

    If a Redis has not seen a script, or has forgotten it, the scripts are loaded and all is
    sent once more, so that nothing is done before what it stands on. So all commands must be
    such that doing them twice in a row is as good as once. Of those that were done the first
    time, the first replies are returned.

    Raises:
        RedisError, OSError: Redis is away, or refuses one of them; others may be done.

    """
    replies = await pipelined(redis, commands, raise_on_error=False)
    if any(isinstance(reply, NoScriptError) for reply in replies):
        for one in scripts:
            await one.load(redis)
        again = await pipelined(redis, commands, raise_on_error=False)
        pairs = zip(replies, again, strict=True)
        replies = [new if isinstance(old, NoScriptError) else old for old, new in pairs]
    return _good(replies)


def _good(replies: list[Any]) -> list[Any]:
    """Return replies; raise the first one that is an error."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies
