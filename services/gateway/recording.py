"""This process's part in recording: each entry is folded into the projections by one gateway.

Lifecycle events are recorded at once. Positions are taken up twice a second: there are many,
and of those that come together only the last one of each upload is worth writing. An entry is
acknowledged when its positions are written, so what a killed gateway had in hand is recorded
by another one, and nothing that came after it is taken back.
"""

from __future__ import annotations

from typing import Final

import structlog
from redis.asyncio import Redis

from services.gateway.projection import Projection
from services.gateway.reading import GROUP
from shared.settings import MOST_PARTITIONS
from shared.stream_group import StreamGroup
from shared.streams import event_stream, pipelined, progress_stream

__all__ = ["RecordingGroup"]

log = structlog.stdlib.get_logger(__name__)

_POSITIONS_EVERY_S: Final = 0.5


class RecordingGroup:
    """One member of the group that records.

    Args:
        redis: A client of its own, made by ``shared.streams.connect``.
        projection: Where states are recorded.
        partitions: ``EVENT_PARTITIONS``.
        min_idle_s: After so long without an answer an entry is claimed from its member.

    """

    def __init__(
        self,
        redis: Redis,
        projection: Projection,
        *,
        partitions: int,
        min_idle_s: float = 30.0,
    ) -> None:
        numbers = range(partitions)
        self._redis: Final = redis
        self._partitions: Final = partitions
        self.unread: list[str] = []
        """Streams of events beyond those. Somebody counts more partitions, or did: what is told
        there is not heard here."""
        self.lifecycle: Final = StreamGroup(
            redis,
            group=GROUP,
            streams=map(event_stream, numbers),
            handle=projection.handle,
            min_idle_s=min_idle_s,
        )
        self.positions: Final = StreamGroup(
            redis,
            group=GROUP,
            streams=map(progress_stream, numbers),
            handle=projection.handle,
            min_idle_s=min_idle_s,
            pace_s=_POSITIONS_EVERY_S,
        )

    async def prepare(self) -> None:
        """Make the group on each stream that lacks it; look for streams that nobody reads.

        Raises:
            RedisError, OSError: Redis is away.

        """
        await self.lifecycle.prepare()
        await self.positions.prepare()
        self.unread = await self._streams_beyond()
        if self.unread:
            log.warning("streams_beyond_event_partitions", streams=self.unread)

    async def _streams_beyond(self) -> list[str]:
        keys = [event_stream(one) for one in range(self._partitions, MOST_PARTITIONS)]
        found = await pipelined(self._redis, [("EXISTS", key) for key in keys])
        return [key for key, is_there in zip(keys, found, strict=True) if is_there]
