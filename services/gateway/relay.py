"""From the streams to the hub, with what must be known to miss nothing on the way.

The projection that a new watcher's snapshot comes from is written by a consumer group, which
may lag behind what this process has already read and passed on. So the newest lifecycle event
of each upload is remembered for a while, and a snapshot is the newer of the two. After a gap,
and now and then for uploads that have fallen silent, states are read again.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import Final

import structlog
from prometheus_client import Counter, Histogram
from redis.asyncio import Redis

from services.gateway.hub import Hub
from services.gateway.projection import Projection
from services.gateway.state import ProgressState, fold
from shared import events
from shared.events import LifecycleEvent, MalformedEvent, UnknownEvent
from shared.stream_tail import StreamTail
from shared.streams import (
    REDIS_FAILURES,
    Entry,
    command,
    event_stream,
    flat_dict,
    read_ids,
    stream_names,
    unpack_positions,
)
from shared.times import now_ms

__all__ = ["GROUP", "Recent", "Relay"]

log = structlog.stdlib.get_logger(__name__)

GROUP: Final = "progress"
_RECENT_S: Final = 120.0
_RECENT_LIMIT: Final = 50_000
_REPAIR_EVERY_S: Final = 5.0
_SILENT_MS: Final = 10_000

SEEN = Counter("gateway_events_total", "Events read from the streams.", ["family"])
GAPS = Counter("gateway_gaps_total", "Times when events may have been missed.")
AGE = Histogram(
    "gateway_event_age_seconds",
    "From the making of a lifecycle event to its delivery.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
)


class Recent:
    """The newest lifecycle event of each upload, for as long as a projection may lag."""

    def __init__(self, *, keep_s: float = _RECENT_S, limit: int = _RECENT_LIMIT) -> None:
        self._keep_s: Final = keep_s
        self._limit: Final = limit
        self._events: Final[OrderedDict[str, tuple[float, LifecycleEvent]]] = OrderedDict()

    def remember(self, event: LifecycleEvent) -> None:
        """Keep an event if it is the upload's newest; forget those that are too old."""
        now = time.monotonic()
        known = self._events.pop(event.upload_id, None)
        newest = known[1] if known is not None and known[1].seq >= event.seq else event
        self._events[event.upload_id] = (now, newest)
        while self._events:
            upload_id, (at, _) = next(iter(self._events.items()))
            if len(self._events) <= self._limit and now - at <= self._keep_s:
                break
            del self._events[upload_id]

    def newer(self, upload_id: str, recorded: ProgressState | None) -> ProgressState | None:
        """Return the newer of what is recorded and what is remembered."""
        known = self._events.get(upload_id)
        folded = fold(recorded, known[1]) if known is not None else None
        return folded or recorded


class Relay:
    """Feeds a hub.

    Args:
        redis: A client of its own for the tail, made by ``shared.streams.connect``.
        projection: Where states are recorded.
        partitions: ``EVENT_PARTITIONS``.

    """

    def __init__(self, redis: Redis, projection: Projection, *, partitions: int) -> None:
        self._redis: Final = redis
        self._projection: Final = projection
        self._partitions: Final = partitions
        self._recent: Final = Recent()
        self._numbers: Final[dict[tuple[str, bytes], int]] = {}
        self._gap: Final = asyncio.Event()
        self.hub: Final = Hub(self.load)
        self.tail: Final = StreamTail(
            redis,
            stream_names(partitions),
            on_entries=self._on_entries,
            on_gap=self._gap.set,
        )

    async def load(self, upload_id: str) -> ProgressState | None:
        """Return the newest that is known of an upload."""
        return self._recent.newer(upload_id, await self._projection.read(upload_id))

    async def start(self) -> None:
        """Fix where reading begins: where the projection is complete, so nothing is between."""
        after = {}
        for partition in range(self._partitions):
            stream = event_stream(partition)
            applied = await self._applied(stream)
            if applied is not None:
                after[stream] = applied
        await self.tail.start(after)

    async def _applied(self, stream: str) -> bytes | None:
        """Return the id up to which the group has surely handled a stream."""
        if not await command(self._redis, "EXISTS", stream):
            return None
        for flat in await command(self._redis, "XINFO", "GROUPS", stream):
            group = flat_dict(flat)
            if group[b"name"] == GROUP.encode():
                oldest = (await command(self._redis, "XPENDING", stream, GROUP))[1]
                if oldest is None:
                    return bytes(group[b"last-delivered-id"])
                millis, _, _ = oldest.partition(b"-")
                return b"%d-0" % (int(millis) - 1)
        return b"0-0"

    def _on_entries(self, stream: str, entries: list[Entry]) -> None:
        lifecycle = stream.startswith("events:")
        for entry_id, fields in entries:
            try:
                if lifecycle:
                    self._on_event(events.decode(fields.get(b"d", b"")))
                else:
                    self._on_positions(stream, fields)
            except UnknownEvent as exc:
                log.debug("event_skipped", entry=entry_id, tag=str(exc))
            except MalformedEvent as exc:  # the group parks it
                log.error("event_malformed", entry=entry_id, error=str(exc))

    def _on_event(self, event: LifecycleEvent) -> None:
        SEEN.labels("events").inc()
        AGE.observe(max(now_ms() - event.at, 0) / 1000)
        self._recent.remember(event)
        self.hub.publish(event)

    def _on_positions(self, stream: str, fields: dict[bytes, bytes]) -> None:
        entry = read_ids(fields)
        SEEN.labels("progress").inc(len(entry.ids))
        source = (stream, entry.producer)
        expected = self._numbers.get(source)
        if expected is not None and entry.number > expected:
            self._gap.set()
        self._numbers[source] = entry.number + 1
        for position in unpack_positions(entry, self.hub.watched):
            self.hub.advance(position)

    async def repair(self) -> None:
        """Read states again after a gap, and of silent uploads; forever."""
        while True:
            try:
                async with asyncio.timeout(_REPAIR_EVERY_S):
                    await self._gap.wait()
                GAPS.inc()
                before = None
            except TimeoutError:
                before = now_ms() - _SILENT_MS
            self._gap.clear()
            try:
                recorded = await self._projection.read_all(self.hub.unfinished(before=before))
            except REDIS_FAILURES as exc:
                log.debug("repair_failed", error=repr(exc))
                self._gap.set()
                await asyncio.sleep(0.5)
                continue
            for state in recorded.values():
                self.hub.correct(state)
