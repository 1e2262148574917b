"""Cleans up what nobody comes back for: expired uploads, and what crashes left behind.

One process does it at a time, in the background of one that serves or on its own
(``python -m services.ingest reap``), at a pace that the store hardly notices. It takes the
right to write to an upload before it ends it, and looks again: a client that comes back in that
moment either has it, and goes on, or is told that the upload is gone (fault 37).

While Redis is away nothing is cleaned up, since nobody knows who is at it; what has expired is
refused all the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis

from services.ingest.abandoned import Remains, remains_of
from services.ingest.completion import Completion
from services.ingest.hashing import Hashing
from services.ingest.progress import ProgressReporter
from services.ingest.quotas import Quotas
from services.ingest.turns import Turn, TurnLost, turn_at
from shared.blobs.store import (
    BlobStore,
    BlobWriter,
    Due,
    LeaseUnavailable,
    Stored,
    UploadBusy,
    UploadNotFound,
)
from shared.errors import ApiError
from shared.events import UploadExpired
from shared.outbox import Outbox
from shared.sidecar import Sidecar, SidecarDamaged
from shared.streams import REDIS_FAILURES
from shared.times import now_ms

__all__ = ["Reaped", "Reaper", "preview"]

log = structlog.stdlib.get_logger(__name__)

REAPED = Counter("ingest_reaped_total", "What was cleaned up.", ["what"])

_TURN: Final = "ingest:reaper"
_WALKED: Final = "ingest:reaper:walked"
_LONGEST_TURN_S: Final = 60.0
_PACE: Final = 100
_PAUSE_S: Final = 0.05
"""After so many uploads it rests so long."""

_NOT_NOW: Final = (UploadBusy, UploadNotFound, LeaseUnavailable, SidecarDamaged)
"""Somebody works on the upload, or it has just gone; the next round sees."""


class Reaped(NamedTuple):
    """One thing that was cleaned up, or would be."""

    what: Remains | str
    name: str

    def __str__(self) -> str:
        return f"{self.what} {self.name}"


async def preview(store: BlobStore, lifetime_s: float) -> AsyncIterator[Reaped]:
    """Yield what would be cleaned up now; changes nothing, and needs no Redis."""
    async for stored in store.walk():
        what = remains_of(stored, lifetime_s, time.time())
        if what is not None:
            yield Reaped(what, stored.sidecar.upload_id)
    for name in await store.sweep_leftovers(older_than_s=lifetime_s, dry_run=True):
        yield Reaped("leftover", name)


class Reaper:
    """Finds and ends what is abandoned.

    Args:
        store: Where the uploads are.
        redis: Client made by ``shared.streams.connect``.
        outbox: Publishes what it does.
        progress: Keeps the records in Redis.
        completion: Finishes what only lacks its record.
        hashing: Drops what it has of an upload that ends.
        quotas: Counts what users keep.
        lifetime_s: Seconds without a byte after which an upload ends; records of failed ones
            are kept as long.

    """

    def __init__(
        self,
        *,
        store: BlobStore,
        redis: Redis,
        outbox: Outbox,
        progress: ProgressReporter,
        completion: Completion,
        hashing: Hashing,
        quotas: Quotas,
        lifetime_s: float,
    ) -> None:
        self._store: Final = store
        self._redis: Final = redis
        self._outbox: Final = outbox
        self._progress: Final = progress
        self._completion: Final = completion
        self._hashing: Final = hashing
        self._quotas: Final = quotas
        self._lifetime_s: Final = lifetime_s

    async def watch(self, interval_s: float) -> None:
        """Clean up every so often, forever; with an interval of 0 never."""
        while True:
            await asyncio.sleep(interval_s or 3600)
            if interval_s:
                try:
                    await self._round(interval_s)
                except (*REDIS_FAILURES, TurnLost) as exc:  # OSError: of the store, too
                    log.warning("not_reaped", error=repr(exc))

    async def _round(self, interval_s: float) -> None:
        ttl_s = min(_LONGEST_TURN_S, 2 * interval_s)
        async with turn_at(self._redis, _TURN, ttl_s=ttl_s) as turn:
            if turn is not None:
                # All records, complete files' too, are read now and then only.
                rarely_ms = max(int(self._lifetime_s * 250), 1)
                is_due = await self._redis.set(_WALKED, 1, nx=True, px=rarely_ms)
                count = 0
                async for _ in self._reap(turn, everything=bool(is_due)):
                    count += 1
                log.info("reaped", count=count)

    async def run(self) -> AsyncIterator[Reaped]:
        """Clean up everything now, in this process's turn; yield each thing that went.

        Raises:
            TurnLost: Another process is at it.
            RedisError, OSError: Redis is away, or the store.

        """
        async with turn_at(self._redis, _TURN, ttl_s=_LONGEST_TURN_S) as turn:
            if turn is None:
                raise TurnLost("another process is cleaning up")
            async for one in self._reap(turn, everything=True):
                yield one

    async def _reap(self, turn: Turn, *, everything: bool) -> AsyncIterator[Reaped]:
        seen = 0
        async for stored in self._store.walk(unfinished=not everything):
            what = remains_of(stored, self._lifetime_s, time.time())
            if what is not None and await self._end(stored, what):
                REAPED.labels(what).inc()
                log.info("upload_reaped", upload_id=stored.sidecar.upload_id, what=what)
                yield Reaped(what, stored.sidecar.upload_id)
            await turn.keep()
            seen += 1
            if seen % _PACE == 0:
                await asyncio.sleep(_PAUSE_S)
        for name in await self._store.sweep_leftovers(
            older_than_s=self._lifetime_s, dry_run=False
        ):
            REAPED.labels("leftover").inc()
            log.info("leftover_reaped", name=name)
            yield Reaped("leftover", name)

    async def _end(self, stored: Stored, what: Remains) -> bool:
        """End one upload, if that is still right; return whether so."""
        try:
            if what == "record":
                return await self._forget(stored.sidecar)
            writer = await self._store.acquire(stored.sidecar.upload_id)
            try:
                if remains_of(writer, self._lifetime_s, time.time()) != what:
                    return False  # somebody came back
                if what == "unrecorded":
                    await self._completion.complete(writer)
                else:
                    await self._expire(writer)
            finally:
                await writer.close()
        except _NOT_NOW as exc:
            log.debug("not_reaped_now", error=repr(exc), upload_id=stored.sidecar.upload_id)
            return False
        except ApiError as exc:  # its content is not what it claims to be, so it has failed
            log.info("reaped_as_failed", upload_id=stored.sidecar.upload_id, error=str(exc))
        except OSError as exc:  # the others are still to be ended
            log.error("not_reaped", upload_id=stored.sidecar.upload_id, error=repr(exc))
            return False
        return True

    async def _expire(self, writer: BlobWriter) -> None:
        sidecar = writer.sidecar
        event = UploadExpired(
            upload_id=sidecar.upload_id,
            seq=sidecar.next_seq,
            at=now_ms(),
            upload=sidecar.facts,
            offset=writer.offset,
        )
        tombstone = sidecar.after("expired", event)
        self._outbox.announce(tombstone, await writer.bury(tombstone))
        self._hashing.forget(sidecar.upload_id)
        self._progress.changed(tombstone, 0)
        await self._quotas.settle(tombstone, 0)

    async def _forget(self, sidecar: Sidecar) -> bool:
        """Remove the record of a failed upload, once everybody has been told of it."""
        upload_id = sidecar.upload_id
        if any(one.upload_id == upload_id for one in await self._store.due(older_than_s=0)):
            return False
        await self._store.mark_published(Due(upload_id, sidecar.outbox[-1].seq), last=True)
        return True
