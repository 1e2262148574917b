"""Feeds the gateway positions of one upload through Redis, as ingest's publisher writes them.

The entries are made with ``shared.streams``; only the pace is not ingest's, whose publisher
lets an upload have one position per ``PROGRESS_UPDATE_INTERVAL``: far too few to find out what
the gateway can do. Knows nothing of sockets but how many frames arrived on them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from redis.asyncio import Redis

from bench.processes import PARTITIONS
from shared.events import UploadProgress
from shared.streams import pack_positions, partition_of, pipelined, progress_stream

__all__ = ["SIZE", "Feed"]

SIZE: Final = 10 << 30
"""Declared length of the upload that is fed, in bytes; nothing of it is ever sent."""

_STEP: Final = 1 << 14
_FLOOD_PERIOD_S: Final = 0.0025
"""400 events a second: to 1,000 sockets more than the bound itself can send."""

_POLL_S: Final = 0.0002
_LOST_AFTER_S: Final = 2.0


class Feed:
    """Writes one upload's positions, each one new."""

    def __init__(self, redis: Redis, upload_id: str) -> None:
        self._redis: Final = redis
        self._upload_id: Final = upload_id
        self._stream: Final = progress_stream(partition_of(upload_id, PARTITIONS))
        self.events = 0
        """Events written so far."""
        self.ended = False
        """Set it to end the feed; a cancelled call to Redis may well go on regardless."""

    async def add(self) -> None:
        """Put the next position on the stream."""
        self.events += 1
        position = UploadProgress(
            upload_id=self._upload_id,
            seq=1,
            at=int(time.time() * 1000),
            offset=min(self.events * _STEP, SIZE - 1),
            size=SIZE,
            speed=1e6,
        )
        fields = pack_positions("bench", self.events, [position])
        await pipelined(
            self._redis, [("XADD", self._stream, "MAXLEN", "~", 10000, "*", *fields)]
        )

    async def flood(self) -> None:
        """Write without looking at what arrives; the gateway thins what it cannot send."""
        due = time.monotonic()
        while not self.ended:
            await self.add()
            due += _FLOOD_PERIOD_S
            await asyncio.sleep(max(due - time.monotonic(), 0))

    async def lockstep(self, sockets: int, arrived: Callable[[], int]) -> None:
        """Write the next event once the last one is on every socket: none can be thinned.

        Raises:
            SystemExit: An event has not reached every socket after two seconds.

        """
        expected = arrived()
        while not self.ended:
            expected += sockets
            await self.add()
            deadline = time.monotonic() + _LOST_AFTER_S
            while (count := arrived()) < expected and not self.ended:
                if time.monotonic() > deadline:
                    raise SystemExit(f"{expected - count} frames of one event never arrived")
                await asyncio.sleep(_POLL_S)
