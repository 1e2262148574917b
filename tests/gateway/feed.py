"""Puts events on the streams as producers do, or hands them over as a group's entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from redis.asyncio import Redis

from shared import events
from shared.events import JobEvent, JobProgress, LifecycleEvent, UploadProgress
from shared.stream_group import GroupEntry
from shared.streams import (
    Command,
    event_stream,
    flat_dict,
    pack_positions,
    partition_of,
    pipelined,
    progress_stream,
)
from tests.shared.waiting import eventually

__all__ = ["PARTITIONS", "Feed", "entry"]

PARTITIONS: Final = 2

Position = UploadProgress | JobProgress
Told = LifecycleEvent | Position


def entry(*told: Told, entry_id: bytes = b"1-0") -> GroupEntry:
    """Return one entry: of one lifecycle event, or of positions."""
    first = told[0]
    partition = partition_of(first.upload_id, PARTITIONS)
    if not isinstance(first, Position):
        fields = {b"i": first.upload_id.encode(), b"d": events.encode(first)}
        return GroupEntry(event_stream(partition), entry_id, fields)
    positions = [one for one in told if isinstance(one, Position)]
    packed = pack_positions("test", 1, positions)
    flat = [part if isinstance(part, bytes) else str(part).encode() for part in packed]
    return GroupEntry(progress_stream(partition), entry_id, flat_dict(flat))


class Feed:
    """One producer."""

    def __init__(self, redis: Redis, *, partitions: int = PARTITIONS) -> None:
        self._redis: Final = redis
        self._partitions: Final = partitions
        self._numbers: Final = [0] * partitions

    async def tell(self, *told: Told) -> list[bytes]:
        """Add an entry for each, in one go; return their ids."""
        found: list[bytes] = await pipelined(self._redis, map(self._command, told))
        return found

    async def record(self, *told: LifecycleEvent, prefix: str = "upload_progress") -> None:
        """Tell, and return when a gateway has recorded all of it: who asks then finds it."""
        await self.tell(*told)
        wanted: dict[tuple[str, str], int] = {}
        for one in told:
            counter = "job_seq" if isinstance(one, JobEvent) else "seq"
            key = (f"{prefix}:{one.upload_id}", counter)
            wanted[key] = max(wanted.get(key, 0), one.seq)

        async def recorded() -> bool:
            found = await pipelined(self._redis, [("HGET", *key) for key in wanted])
            return all(
                int(seq or 0) >= least
                for seq, least in zip(found, wanted.values(), strict=True)
            )

        await eventually(recorded, "all is recorded")

    async def tell_together(self, *positions: Position) -> None:
        """Add one entry with all positions, which are of one partition."""
        await pipelined(self._redis, [self._entry(positions)])

    def _command(self, told: Told) -> Command:
        if isinstance(told, Position):
            return self._entry([told])
        stream = event_stream(partition_of(told.upload_id, self._partitions))
        return ("XADD", stream, "*", "i", told.upload_id, "d", events.encode(told))

    def _entry(self, positions: Sequence[Position]) -> Command:
        partition = partition_of(positions[0].upload_id, self._partitions)
        self._numbers[partition] += 1
        fields = pack_positions("test", self._numbers[partition], positions)
        return ("XADD", progress_stream(partition), "*", *fields)

    def lose(self, upload_id: str) -> None:
        """Count an entry that never arrives."""
        self._numbers[partition_of(upload_id, self._partitions)] += 1
