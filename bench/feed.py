"""Feeds what is measured with events, at a pace.

Positions are written as ingest's publisher writes them, made with ``shared.streams``; only the
pace is not ingest's, whose publisher lets an upload have one position per
``PROGRESS_UPDATE_INTERVAL``: far too few to find out what the gateway can do. Knows nothing of
sockets but how many frames arrived on them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from redis.asyncio import Redis

from bench.processes import PARTITIONS
from bench.uploads import SIZE, Upload, entry, started
from shared.events import UploadProgress
from shared.streams import (
    Command,
    command,
    pack_positions,
    partition_of,
    pipelined,
    progress_stream,
)

__all__ = ["STEP", "Milestones", "Pace", "Positions"]

STEP: Final = 1 << 14
"""Bytes from one position of an upload to its next."""

_POLL_S: Final = 0.0002
_SILENT_S: Final = 5.0
_WAKE_S: Final = 2.0
_WAKES: Final = 5


class Positions:
    """Writes positions of uploads that progress together, each one new."""

    def __init__(
        self, redis: Redis, upload_ids: Sequence[str], producer: str = "bench"
    ) -> None:
        self._redis: Final = redis
        self._producer: Final = producer
        self.rounds = 0
        self._partitions: Final[dict[int, list[str]]] = {}
        for one in upload_ids:
            self._partitions.setdefault(partition_of(one, PARTITIONS), []).append(one)

    async def add(self) -> None:
        """Put the next position of each upload on the streams: an entry a partition."""
        await pipelined(self._redis, self.commands())

    def commands(self) -> list[Command]:
        """Return what writes the next position of each upload."""
        self.rounds += 1
        commands: list[Command] = []
        for partition, upload_ids in self._partitions.items():
            positions = [self._position(one) for one in upload_ids]
            fields = pack_positions(self._producer, self.rounds, positions)
            stream = progress_stream(partition)
            commands.append(("XADD", stream, "MAXLEN", "~", 10000, "*", *fields))
        return commands

    def _position(self, upload_id: str) -> UploadProgress:
        return UploadProgress(
            upload_id=upload_id,
            seq=1,
            at=int(time.time() * 1000),
            offset=min(self.rounds * STEP, SIZE - 1),
            size=SIZE,
            speed=1e6,
        )


class Milestones:
    """Writes lifecycle events of one upload's job: a worker has begun it, again and again."""

    def __init__(self, redis: Redis, upload: Upload) -> None:
        self._redis: Final = redis
        self._upload: Final = upload
        self._written = 0

    async def add(self) -> None:
        """Write the next event."""
        self._written += 1
        await command(self._redis, *entry(started(self._upload, self._written)))


class Pace:
    """Decides when the next events are written.

    Args:
        add: Writes them.
        frames: How many frames they make at the receivers, if none is thinned.
        arrived: Returns the frames that have arrived so far.

    """

    def __init__(
        self, add: Callable[[], Awaitable[None]], frames: int, arrived: Callable[[], int]
    ) -> None:
        self._add: Final = add
        self._frames: Final = frames
        self._arrived: Final = arrived
        self.lost = 0
        """Frames that never arrived though nothing may be thinned."""
        self.ended = False
        """Set it to end the feed; a cancelled call to Redis may well go on regardless."""

    async def steadily(self, per_s: float) -> None:
        """Write so many times a second, without looking at what arrives."""
        due = time.monotonic()
        while not self.ended:
            await self._add()
            due += 1 / per_s
            await asyncio.sleep(max(due - time.monotonic(), 0))

    async def wake(self) -> None:
        """Write until something arrives: a reader that starts at ``$`` misses the first."""
        before = self._arrived()
        for _ in range(_WAKES):
            await self._add()
            deadline = time.monotonic() + _WAKE_S
            while time.monotonic() < deadline:
                if self._arrived() > before:
                    await self._until_silent()
                    return
                await asyncio.sleep(0.05)

    async def _until_silent(self) -> None:
        count = -1
        while count != (count := self._arrived()):
            await asyncio.sleep(0.3)

    async def lockstep(self, ahead: int = 1) -> None:
        """Write the next events once those ``ahead`` of them are on every socket.

        With 1 nothing can be thinned; more keeps a server busy that thins nothing.
        """
        base, rounds = self._arrived(), 0
        while not self.ended:
            await self._add()
            rounds += 1
            wanted = base + (rounds + 1 - ahead) * self._frames
            missing = await self._wait_for(wanted)
            base -= missing
            self.lost += missing

    async def _wait_for(self, wanted: int) -> int:
        """Return how many frames are missing once none has come for long."""
        seen, deadline = self._arrived(), time.monotonic() + _SILENT_S
        while seen < wanted and not self.ended:
            if (count := self._arrived()) > seen:
                seen, deadline = count, time.monotonic() + _SILENT_S
            if time.monotonic() > deadline:
                return wanted - seen
            await asyncio.sleep(_POLL_S)
        return 0
