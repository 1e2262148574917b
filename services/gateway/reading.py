"""Keeps the tail on the streams that are needed, from where nothing is missed.

A snapshot is what the consumer group has recorded. So a stream is joined after the last entry
that the group has surely handled: what comes before is in the snapshot, the rest is read, and
what is in both changes nothing. The position is fixed before the snapshot is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import structlog
from redis.asyncio import Redis

from services.gateway.interest import Interest
from shared.stream_order import TailEntry
from shared.stream_tail import BEGINNING, StreamTail, newest
from shared.streams import (
    REDIS_FAILURES,
    Command,
    entry_order,
    flat_dict,
    is_event_stream,
    pipelined,
)

__all__ = ["GROUP", "Reading"]

log = structlog.stdlib.get_logger(__name__)

GROUP: Final = "progress"
_SWEEP_S: Final = 5.0
_RETRY_S: Final = 0.2


class Reading:
    """What is read from the streams, and from where.

    Args:
        redis: A client of its own for the tail, made by ``shared.streams.connect``.
        interest: Which streams are needed.
        on_entries: Called with what is read; see ``StreamTail``.
        on_gap: Called when entries may be missing.
        on_join: Called with streams before they are joined.
        always: Streams that are read whoever needs them.

    """

    def __init__(
        self,
        redis: Redis,
        interest: Interest,
        *,
        on_entries: Callable[[list[TailEntry]], bool],
        on_gap: Callable[[], None],
        on_join: Callable[[Collection[str]], None],
        always: Collection[str] = (),
    ) -> None:
        self._redis: Final = redis
        self._interest: Final = interest
        self._on_join: Final = on_join
        self._always: Final = frozenset(always)
        self.tail: Final = StreamTail(
            redis, on_entries=on_entries, on_gap=on_gap, begin=self._begin
        )

    async def of(self, *upload_ids: str) -> None:
        """Read what is told of uploads from now on, and what is not recorded yet.

        Raises:
            RedisError, OSError: Redis is away, and the streams were not read before.

        """
        await self._need({one for each in upload_ids for one in self._interest.of(each)})

    async def of_all(self) -> None:
        """Read what is told of all uploads; otherwise as ``of``."""
        await self._need(self._interest.of_all())

    async def _need(self, streams: Collection[str]) -> None:
        self._interest.linger(streams, time.monotonic())
        await self._join(streams)

    async def _join(self, streams: Collection[str]) -> None:
        # Of those that join a stream at the same time the first one to fix its position wins.
        missing = [one for one in streams if one not in self.tail.streams]
        if missing:
            self._on_join(missing)
            await self.tail.join(missing)

    async def start(self) -> None:
        """Begin with what is always read.

        Raises:
            RedisError, OSError: Redis is away.

        """
        await self._join(self._always)

    async def run(self) -> None:
        """Join what is needed and leave what has not been for a while, forever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SWEEP_S):
                    await self._interest.changed.wait()
            self._interest.changed.clear()
            try:
                await self.follow_interest()
            except REDIS_FAILURES as exc:
                log.debug("streams_not_joined", error=repr(exc))
                self._interest.changed.set()
                await asyncio.sleep(_RETRY_S)

    async def follow_interest(self) -> None:
        """Read exactly what is wanted now.

        Raises:
            RedisError, OSError: Redis is away.

        """
        wanted = self._interest.wanted(time.monotonic()) | self._always
        self.tail.leave([one for one in self.tail.streams if one not in wanted])
        await self._join(wanted)

    async def _begin(self, streams: Collection[str]) -> dict[str, bytes]:
        """Return the ids up to which the group has surely handled the streams.

        Without a group nothing is recorded: lifecycle events are then read from the first one
        on. Positions are not, nor are streams that no group reads.
        """
        keys = list(streams)
        commands: list[Command] = [("XINFO", "GROUPS", key) for key in keys]
        # After the groups: what is delivered between the two is pending by then.
        groups = await pipelined(self._redis, commands, raise_on_error=False)
        commands = [("XPENDING", key, GROUP) for key in keys]
        pending = await pipelined(self._redis, commands, raise_on_error=False)
        handled = {
            key: _handled(told, open_)
            for key, told, open_ in zip(keys, groups, pending, strict=True)
        }
        last = await newest(self._redis, [key for key in keys if handled[key] is None])
        unread = {key: BEGINNING if is_event_stream(key) else last[key] for key in last}
        return {key: handled[key] or unread[key] for key in keys}


def _handled(groups: Any, pending: Any) -> bytes | None:
    """Return the id up to which the group has handled all, ``None`` if there is no group.

    Args:
        groups: Reply to XINFO GROUPS, or its error.
        pending: Reply to XPENDING, asked for after it, or its error.

    """
    if isinstance(groups, Exception) or isinstance(pending, Exception):
        return None
    for flat in groups:
        group = flat_dict(flat)
        if group[b"name"] == GROUP.encode():
            return _before(pending, bytes(group[b"last-delivered-id"]))
    return None


def _before(pending: Sequence[Any], delivered: bytes) -> bytes:
    oldest = pending[1]
    if oldest is None or entry_order(oldest) > entry_order(delivered):
        return delivered
    millis, _ = entry_order(oldest)
    return b"%d-0" % max(millis - 1, 0)
