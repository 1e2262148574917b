"""Feeds the gateway positions of uploads through Redis, as ingest's publisher writes them.

The entries are made with ``shared.streams``; only the pace is not ingest's, whose publisher
lets an upload have one position per ``PROGRESS_UPDATE_INTERVAL``: far too few to find out what
the gateway can do. Knows nothing of sockets but how many frames arrived on them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from redis.asyncio import Redis

from bench.processes import PARTITIONS
from shared.events import UploadProgress
from shared.streams import Command, pack_positions, partition_of, pipelined, progress_stream

__all__ = ["SIZE", "Feed"]

SIZE: Final = 10 << 30
"""Declared length of each upload that is fed, in bytes; nothing of it is ever sent."""

_STEP: Final = 1 << 14
_FLOOD_EVENTS_PER_S: Final = 400
"""To 1,000 sockets more than the bound itself can send."""

_POLL_S: Final = 0.0002
_LOST_AFTER_S: Final = 2.0


class Feed:
    """Writes positions of uploads that progress together, each one new."""

    def __init__(self, redis: Redis, upload_ids: Sequence[str]) -> None:
        self._redis: Final = redis
        self._upload_ids: Final = upload_ids
        self._rounds = 0
        self._partitions: Final[dict[int, list[str]]] = {}
        for one in upload_ids:
            self._partitions.setdefault(partition_of(one, PARTITIONS), []).append(one)
        self.ended = False
        """Set it to end the feed; a cancelled call to Redis may well go on regardless."""

    async def add(self) -> None:
        """Put the next position of each upload on the streams: an entry a partition."""
        self._rounds += 1
        commands: list[Command] = []
        for partition, upload_ids in self._partitions.items():
            positions = [self._position(one) for one in upload_ids]
            fields = pack_positions("bench", self._rounds, positions)
            stream = progress_stream(partition)
            commands.append(("XADD", stream, "MAXLEN", "~", 10000, "*", *fields))
        await pipelined(self._redis, commands)

    def _position(self, upload_id: str) -> UploadProgress:
        return UploadProgress(
            upload_id=upload_id,
            seq=1,
            at=int(time.time() * 1000),
            offset=min(self._rounds * _STEP, SIZE - 1),
            size=SIZE,
            speed=1e6,
        )

    async def flood(self) -> None:
        """Write without looking at what arrives; the gateway thins what it cannot send."""
        due = time.monotonic()
        while not self.ended:
            await self.add()
            due += len(self._upload_ids) / _FLOOD_EVENTS_PER_S
            await asyncio.sleep(max(due - time.monotonic(), 0))

    async def lockstep(self, sockets: int, arrived: Callable[[], int]) -> None:
        """Write the next events once the last are on every socket: none can be thinned.

        Raises:
            SystemExit: An event has not reached every socket after two seconds.

        """
        expected = arrived()
        while not self.ended:
            expected += sockets * len(self._upload_ids)
            await self.add()
            deadline = time.monotonic() + _LOST_AFTER_S
            while (count := arrived()) < expected and not self.ended:
                if time.monotonic() > deadline:
                    raise SystemExit(f"{expected - count} frames of one event never arrived")
                await asyncio.sleep(_POLL_S)
