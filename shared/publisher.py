"""Puts events on the streams, through outages, without ever blocking its callers.

Lifecycle events wait in a bounded queue and are retried until they are written; each one also
stands in a sidecar's outbox, so what the queue has no room for, or what a crash wipes out, is
found there again (``shared.outbox``). Positions conflate: only the newest of an upload waits,
and at most one an interval and upload is sent, many to an entry.

Order: the events of one upload are written in the order in which they were handed over.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

import structlog
from prometheus_client import Counter, Gauge
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from shared import events
from shared.events import JobEvent, JobProgress, LifecycleEvent, UploadProgress
from shared.streams import (
    REDIS_FAILURES,
    Command,
    event_entry,
    pack_positions,
    partition_of,
    pipelined,
    progress_stream,
    retry_delay,
)

__all__ = ["Publisher"]

log = structlog.stdlib.get_logger(__name__)

_BATCH: Final = 500
_TICK_S: Final = 0.05
"""Positions that come due within one tick share an entry."""
_PROGRESS_KEPT_MS: Final = 90_000
_PROGRESS_KEY_TTL_S: Final = 300
_LONGEST_RETRY_S: Final = 0.5
"""So that readers have what waited soon after Redis is back."""

PUBLISHED = Counter("bus_published_total", "Events written to the streams.", ["family"])
REFUSED = Counter("bus_queue_full_total", "Lifecycle events left to the outbox sweep.")
FAILURES = Counter("bus_publish_failures_total", "Writes to Redis that failed and are retried.")
WAITING = Gauge("bus_lifecycle_waiting", "Lifecycle events not yet written.")


_Key: TypeAlias = tuple[bool, str]
"""Whether a position is that of the job, and the upload's id."""


def _key_of(position: UploadProgress | JobProgress) -> _Key:
    return isinstance(position, JobProgress), position.upload_id


class _Waiting(NamedTuple):
    event: LifecycleEvent
    published: Callable[[], None]


class Publisher:
    """One producer of events.

    Args:
        redis: Client made by ``shared.streams.connect``.
        partitions: ``EVENT_PARTITIONS``; the same everywhere.
        interval_s: Least time between two positions of one upload; the first is sent at once.
        queue_limit: Lifecycle events that may wait in memory.

    """

    def __init__(
        self, redis: Redis, *, partitions: int, interval_s: float, queue_limit: int = 10_000
    ) -> None:
        self._redis: Final = redis
        self._partitions: Final = partitions
        self._interval_s: Final = interval_s
        self._queue_limit: Final = queue_limit
        self._producer: Final = secrets.token_hex(6)
        self._numbers: Final = [0] * partitions
        self._queue: Final[deque[_Waiting]] = deque()
        self._positions: Final[dict[_Key, UploadProgress | JobProgress]] = {}
        self._next_at: Final[dict[_Key, float]] = {}
        self._forget_at = 0.0
        self._wake: Final = asyncio.Event()
        self.degraded = False
        """Whether the last write failed: Redis is away, or refuses to write."""

    def lifecycle(self, event: LifecycleEvent, published: Callable[[], None]) -> bool:
        """Queue a lifecycle event; ``published`` is called once it is on the stream.

        Returns False when the queue is full: the event stays in its outbox and the sweep will
        bring it back.
        """
        if len(self._queue) >= self._queue_limit:
            REFUSED.inc()
            return False
        if not isinstance(event, events.UploadCreated):
            key = (isinstance(event, JobEvent), event.upload_id)
            self._positions.pop(key, None)  # the event says more than they do
            self._next_at.pop(key, None)
        self._queue.append(_Waiting(event, published))
        self._wake.set()
        return True

    def progress(self, position: UploadProgress | JobProgress) -> None:
        """Offer a position; it replaces one of the same upload, or job, that still waits."""
        is_alone = not self._positions  # then the writer sleeps without a tick
        key = _key_of(position)
        if is_alone or key not in self._next_at:
            self._wake.set()
        self._positions[key] = position

    async def run(self) -> None:
        """Write what is queued, forever. Cancel it to stop; then call ``drain``."""
        failures = 0
        while True:
            await self._wait_for_work()
            try:
                await self._flush()
            except REDIS_FAILURES as exc:
                FAILURES.inc()
                self.degraded = True
                delay = retry_delay(failures, longest_s=_LONGEST_RETRY_S)
                if failures == 0:
                    log.warning("bus_write_failed", error=repr(exc), queued=len(self._queue))
                failures += 1
                await asyncio.sleep(delay)
            else:
                if failures:
                    log.info("bus_write_recovered", failures=failures)
                failures = 0
                self.degraded = False

    async def drain(self, timeout_s: float) -> None:
        """Try to write what still waits, due or not; events that fail stay in the outboxes."""
        self._next_at.clear()
        try:
            async with asyncio.timeout(timeout_s):
                while self._queue or self._positions:
                    await self._flush()
        except (TimeoutError, *REDIS_FAILURES) as exc:
            log.warning("bus_not_drained", left=len(self._queue), error=repr(exc))

    async def _wait_for_work(self) -> None:
        """Return at once for a lifecycle event or a first position, else after a tick."""
        self._forget_quiet_uploads()
        if self._queue:
            return
        try:
            async with asyncio.timeout(_TICK_S if self._positions else None):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    def _forget_quiet_uploads(self) -> None:
        """Drop what is kept of uploads that pause: not all of them end with an event."""
        now = time.monotonic()
        if now >= self._forget_at:
            self._forget_at = now + self._interval_s
            for one in [one for one, at in self._next_at.items() if at < now]:
                del self._next_at[one]

    async def _flush(self) -> None:
        batch = list(itertools.islice(self._queue, _BATCH))
        positions = self._take_due_positions()
        WAITING.set(len(self._queue))
        if not batch and not positions:
            return
        try:
            replies = await self._write([one.event for one in batch], positions)
        except BaseException:
            for one in positions:
                self._positions.setdefault(_key_of(one), one)
            raise
        self._settle(batch, replies)
        refusal = next((one for one in replies if isinstance(one, ResponseError)), None)
        if refusal is not None:
            # Redis answered, but refuses (out of memory, read only). Positions are worth
            # nothing later, so they are not what a crowded Redis is asked to take again.
            raise refusal
        PUBLISHED.labels("progress").inc(len(positions))

    def _settle(self, batch: list[_Waiting], replies: list[Any]) -> None:
        """Let go of the events that were written; those refused keep their place.

        So does what follows a refused event of the same upload, even if it was written: it
        is written again, after the one that it must not overtake.
        """
        for _ in batch:
            self._queue.popleft()
        refused: dict[str, list[_Waiting]] = {}
        for waiting, reply in zip(batch, replies, strict=False):  # positions come after them
            upload_id = waiting.event.upload_id
            if isinstance(reply, ResponseError) or upload_id in refused:
                refused.setdefault(upload_id, []).append(waiting)
            else:
                waiting.published()
        kept = [waiting for of_upload in refused.values() for waiting in of_upload]
        self._queue.extendleft(reversed(kept))
        WAITING.set(len(self._queue))
        PUBLISHED.labels("events").inc(len(batch) - len(kept))

    def _take_due_positions(self) -> list[UploadProgress | JobProgress]:
        now = time.monotonic()
        soon = now + _TICK_S
        due = [one for one in self._positions if self._next_at.get(one, now) <= soon]
        for one in due:
            self._next_at[one] = now + self._interval_s
        return [self._positions.pop(one) for one in due]

    async def _write(
        self, lifecycle: list[LifecycleEvent], positions: list[UploadProgress | JobProgress]
    ) -> list[Any]:
        """Return Redis's replies, those to the events first; a refusal is among them."""
        commands: list[Command] = [event_entry(event, self._partitions) for event in lifecycle]
        by_partition: dict[int, list[UploadProgress | JobProgress]] = {}
        for position in positions:
            number = partition_of(position.upload_id, self._partitions)
            by_partition.setdefault(number, []).append(position)
        for partition, chosen in by_partition.items():
            self._numbers[partition] += 1
            stream = progress_stream(partition)
            horizon = int(time.time() * 1000) - _PROGRESS_KEPT_MS
            fields = pack_positions(self._producer, self._numbers[partition], chosen)
            commands.append(("XADD", stream, "MINID", "~", horizon, "*", *fields))
            commands.append(("EXPIRE", stream, _PROGRESS_KEY_TTL_S))
        return await pipelined(self._redis, commands, raise_on_error=False)
