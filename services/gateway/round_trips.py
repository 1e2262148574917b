"""Reads of many callers in one round trip: what is asked while the last one is under way.

When a gateway has gone, thousands of sockets come to another one within a second, and each
reads a little, many of them the same: that is asked once. Redis answers in the order of asking;
who asks what is refused gets the error, and nobody else. While Redis is away all who ask get
its failure, as if each had asked alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from redis.asyncio import Redis

from shared.lifecycle import TaskSet
from shared.streams import REDIS_FAILURES, Command, pipelined

__all__ = ["RoundTrips"]

_Asked = tuple[Sequence[Command], "asyncio.Future[list[Any]]"]


class RoundTrips:
    """Asks one Redis.

    Args:
        redis: Client made by ``shared.streams.connect``.

    """

    def __init__(self, redis: Redis) -> None:
        self._redis: Final = redis
        self._tasks: Final = TaskSet("round trips")
        self._asked: list[_Asked] = []
        self._under_way = False

    async def ask(self, *commands: Command) -> list[Any]:
        """Return the raw replies, in order. Others may get the same ones: nobody changes them.

        Raises:
            RedisError, OSError: As ``shared.streams.pipelined``.

        """
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._asked.append((commands, answer))
        if not self._under_way:
            self._under_way = True
            self._tasks.start(self._go())
        return await answer

    async def _go(self) -> None:
        try:
            while self._asked:
                await self._trip()
        finally:
            self._under_way = False

    async def _trip(self) -> None:
        asked, self._asked = self._asked, []
        commands = list(dict.fromkeys(one for each, _ in asked for one in each))
        try:
            replies = await pipelined(self._redis, commands, raise_on_error=False)
        except REDIS_FAILURES as exc:
            # Whoever has asked meanwhile has waited long enough for a Redis that is away.
            for _, answer in (*asked, *self._asked):
                if not answer.done():  # who asked may have gone
                    answer.set_exception(exc)
            self._asked = []
            return
        except BaseException:  # the process ends, or the fault is ours
            for _, answer in (*asked, *self._asked):
                answer.cancel()
            self._asked = []
            raise
        _share_out(asked, dict(zip(commands, replies, strict=True)))


def _share_out(asked: Sequence[_Asked], replies: Mapping[Command, Any]) -> None:
    for each, answer in asked:
        if answer.done():
            continue
        own = [replies[one] for one in each]
        refused = next((one for one in own if isinstance(one, Exception)), None)
        if refused is not None:
            answer.set_exception(refused)
        else:
            answer.set_result(own)
