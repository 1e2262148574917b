"""Brings the lifecycle events that stand in sidecars onto the streams, whatever happens.

A state change writes its event into the sidecar, with a marker that it is due. ``announce``
publishes it and takes the marker away. A crash, a full queue or an outage leaves the marker,
and ``watch`` finds it. When Redis may have lost what it had (wiped, restarted, failed over,
swapped for another one), ``watch`` notices that its epoch has changed and publishes the
outboxes of all live and recent uploads again. Readers drop what they have by ``seq``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Final

import structlog
from redis.asyncio import Redis

from shared.blobs.store import BlobStore, Due, UploadNotFound
from shared.events import FileDeleted, LifecycleEvent, UploadCancelled, UploadExpired
from shared.lifecycle import TaskSet
from shared.publisher import Publisher
from shared.redis_lock import RedisLock
from shared.sidecar import Sidecar, SidecarDamaged
from shared.streams import REDIS_FAILURES, command, server_runs

__all__ = ["Outbox"]

log = structlog.stdlib.get_logger(__name__)

_EPOCH_KEY: Final = "ingest:epoch"
_EPOCH_NOTE: Final = "epoch"
_REPUBLISH_LOCK: Final = "ingest:epoch:lock"
_REPUBLISH_LOCK_S: Final = 10.0
"""How long others wait for one that was killed at it."""
_EPOCH_CHECK_S: Final = 1.0
_PUBLISHING_S: Final = 0.05
_SWEEP_S: Final = 15.0
_LAST_EVENTS: Final = (UploadCancelled, UploadExpired, FileDeleted)
"""After these nothing is left of an upload but its tombstone, kept until they are published."""


class Outbox:
    """The way from sidecars to streams, for one process.

    Args:
        store: Where the sidecars are.
        publisher: Writes to the streams.
        redis: For the epoch; may be shared with others.
        recent_s: How long after its last change an upload is published again when Redis has
            lost its memory: as long as anybody may still ask for its progress.
        on_republish: Called with each such upload, for other records that are lost with it.

    """

    def __init__(
        self,
        store: BlobStore,
        publisher: Publisher,
        redis: Redis,
        *,
        recent_s: float,
        on_republish: Callable[[Sidecar], Awaitable[None]] | None = None,
    ) -> None:
        self._store: Final = store
        self._publisher: Final = publisher
        self._redis: Final = redis
        self._recent_s: Final = recent_s
        self._on_republish: Final = on_republish
        self._queued: Final[Counter[Due]] = Counter()
        """Handed over, and its marker not removed yet. An outage must not fill the queue with
        repeats, nor a quick upload have each event published twice."""
        self._tasks: Final = TaskSet("outbox")
        self._checking: Final = asyncio.Lock()
        self._lock: Final = RedisLock(redis, _REPUBLISH_LOCK, ttl_s=_REPUBLISH_LOCK_S)

    def announce(self, sidecar: Sidecar, due: Iterable[Due]) -> None:
        """Publish the events of ``sidecar`` that are due, oldest first; returns at once.

        Those that wait for the publisher already are not handed over again.
        """
        wanted = set(due) - self._queued.keys()
        for event in sidecar.outbox:
            if Due(event.upload_id, event.seq) in wanted and not self._publish(event):
                return  # a later one must not overtake it; the sweep brings all of them

    def remind(self, sidecar: Sidecar) -> None:
        """Publish the newest event once more: projections of idle uploads run out."""
        self._publish(sidecar.outbox[-1])

    def _publish(self, event: LifecycleEvent) -> bool:
        """Hand an event over; return whether there was room for it."""
        if not self._publisher.lifecycle(event, partial(self._published, event)):
            return False
        self._queued[Due(event.upload_id, event.seq)] += 1
        return True

    def _published(self, event: LifecycleEvent) -> None:
        last = isinstance(event, _LAST_EVENTS)
        self._tasks.start(self._mark(Due(event.upload_id, event.seq), last=last))

    async def _mark(self, due: Due, *, last: bool) -> None:
        try:
            await self._store.mark_published(due, last=last)
        except OSError as exc:  # it will be published once more: harmless
            log.warning("marker_not_removed", upload_id=due.upload_id, error=repr(exc))
        finally:
            self._queued[due] -= 1
            if not self._queued[due]:
                del self._queued[due]

    async def watch(self) -> None:
        """Sweep what is due and look for a Redis that forgot, forever."""
        next_sweep = 0.0
        while True:
            try:
                if time.monotonic() >= next_sweep:
                    if not next_sweep:
                        await self._restore()
                    # At start every marker counts: those who made them may have died.
                    await self.sweep(older_than_s=_SWEEP_S if next_sweep else 0.0)
                    next_sweep = time.monotonic() + _SWEEP_S
                await self.check_epoch()
            except (*REDIS_FAILURES, OSError) as exc:
                log.debug("outbox_watch_failed", error=repr(exc))
            await asyncio.sleep(_EPOCH_CHECK_S)

    async def _restore(self) -> None:
        try:
            await self._store.restore_due()
        except OSError as exc:  # the markers that there are must be swept all the same
            log.error("markers_not_restored", error=repr(exc))

    async def close(self) -> None:
        """Finish the markers under way."""
        await self._tasks.join()

    async def sweep(self, *, older_than_s: float) -> int:
        """Publish what has been due for so many seconds; return how many uploads that were."""
        by_upload: dict[str, list[Due]] = {}
        for one in await self._store.due(older_than_s=older_than_s):
            by_upload.setdefault(one.upload_id, []).append(one)
        for upload_id, due in by_upload.items():
            try:
                await self._make_up_for(upload_id, due)
            except (SidecarDamaged, OSError) as exc:  # the others are still to be published
                log.error("outbox_not_swept", upload_id=upload_id, error=repr(exc))
        return len(by_upload)

    async def _make_up_for(self, upload_id: str, due: Sequence[Due]) -> None:
        try:
            sidecar = await self._store.load(upload_id)
        except UploadNotFound:
            await self._store.remove_unborn(upload_id, due)
            return
        if sidecar.is_gone:
            await self._store.remove_bytes(upload_id)  # a crash may have left them
        self.announce(sidecar, due)

    async def check_epoch(self) -> bool:
        """Publish everything again if Redis is not the one that has it; return whether so.

        The epoch is a random word in Redis with the id of the server's process, and the last
        one that was served stands beside the blobs. It differs after a wipe, when another
        Redis is plugged in, and after a restart or a failover: they may have lost the last
        events that were acknowledged.
        """
        epoch = await self._epoch()
        if epoch == await self._store.note(_EPOCH_NOTE):
            return False
        async with self._checking:
            if not await self._lock.take():  # another process is at it; or died just now
                return False
            try:
                return await self._serve_epoch(epoch)
            finally:
                # If Redis is away now, it is we who can take the lock when it is back.
                with contextlib.suppress(*REDIS_FAILURES):
                    await self._lock.drop()

    async def _serve_epoch(self, epoch: str) -> bool:
        # Whoever had the lock before may have done it since we looked.
        if epoch == await self._store.note(_EPOCH_NOTE):
            return False
        count = await self._publish_again()
        await self._store.write_note(_EPOCH_NOTE, epoch)
        log.info("outboxes_published_again", uploads=count, epoch=epoch)
        return True

    async def _publish_again(self) -> int:
        """Publish the outboxes of live and recent uploads; return when all is written.

        Not before: there are no markers for what had been published, so a crash that empties
        the queue must leave the epoch as it was.
        """
        count, handed_over = 0, set[Due]()
        async for sidecar in self._store.survey(recent_s=self._recent_s):
            for event in sidecar.outbox:
                while not self._publish(event):
                    await self._wait_for_publisher()
                handed_over.add(Due(event.upload_id, event.seq))
            if self._on_republish is not None:
                await self._on_republish(sidecar)
            count += 1
            await self._lock.keep()
        while handed_over & self._queued.keys():
            await self._wait_for_publisher()
        return count

    async def _wait_for_publisher(self) -> None:
        await asyncio.sleep(_PUBLISHING_S)
        await self._lock.keep()

    async def _epoch(self) -> str:
        await self._redis.set(_EPOCH_KEY, uuid.uuid4().hex, nx=True)
        word: bytes | None = await command(self._redis, "GET", _EPOCH_KEY)
        return f"{word.decode() if word else ''}.{await server_runs(self._redis)}"
