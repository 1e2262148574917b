"""The parts of ingest, put together from its settings: for serving, and for its commands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Final

from services.ingest.arrivals import Arrivals
from services.ingest.clamd import Clamd
from services.ingest.content import Content
from services.ingest.disk_guard import DiskGuard
from services.ingest.joining import Joins
from services.ingest.progress import ProgressReporter
from services.ingest.quotas import Quotas, quota_limits
from services.ingest.reaper import Reaper
from services.ingest.recall import Recall
from services.ingest.records import GROUP, SessionRecords
from services.ingest.recount import Recount
from services.ingest.sessions import SessionNames
from services.ingest.settings import Settings
from services.ingest.trimming import trim_events
from services.ingest.uploads import Uploads
from services.ingest.writers import Writers
from shared.blobs.filesystem import FilesystemStore
from shared.blobs.opening import make_leases, make_store
from shared.lifecycle import background
from shared.outbox import Outbox
from shared.publisher import Publisher
from shared.stream_group import GroupEntry, StreamGroup
from shared.streams import connect, event_stream

__all__ = ["Assembly", "Foundation"]


class Foundation:
    """What the settings may not allow to be built, so it is built before anything is opened.

    Raises:
        StartupError: The store cannot be used, or a setting is wrong.

    """

    def __init__(self, settings: Settings) -> None:
        self.settings: Final = settings
        self.leases: Final = make_leases(settings)
        self.store: Final = make_store(
            settings, fsync=settings.upload_fsync, leases=self.leases
        )
        self.writers: Final = Writers(self.store, self.leases)
        self.disk: Final = DiskGuard(
            self.store.root if isinstance(self.store, FilesystemStore) else None,
            least_free=settings.upload_min_free_bytes,
            most_percent=settings.upload_max_disk_percent,
        )
        self.clamd: Final = (
            Clamd(settings.clamd_url, timeout_s=settings.clamd_timeout)
            if settings.clamd_url
            else None
        )


class Assembly:
    """Everything else, in a running loop. The store must be open."""

    def __init__(self, foundation: Foundation) -> None:
        settings, store = foundation.settings, foundation.store
        lifetime_s = settings.upload_session_timeout_hours * 3600
        self._foundation: Final = foundation
        self.redis: Final = connect(settings.redis_url or "")
        self.publisher: Final = Publisher(
            self.redis,
            partitions=settings.event_partitions,
            interval_s=settings.progress_update_interval,
        )
        self.names: Final = SessionNames(store, self.redis, ttl_s=lifetime_s)
        self.records: Final = SessionRecords(self.redis, ttl_s=lifetime_s)
        self.content: Final = Content(settings, store, self.redis, foundation.clamd)
        self.progress: Final = ProgressReporter(self.publisher, self.records)
        self.outbox: Final = Outbox(
            store,
            self.publisher,
            self.redis,
            recent_s=float(settings.progress_ttl_seconds),
            on_republish=Recall(store, self.progress, self.content.dedupe).recall,
        )
        self.quotas: Final = Quotas(self.redis, quota_limits(settings))
        self.completion: Final = self.content.completion(
            self.outbox, self.progress, self.quotas
        )
        arrivals = Arrivals()
        self.uploads: Final = Uploads(
            store=store,
            writers=foundation.writers,
            outbox=self.outbox,
            progress=self.progress,
            completion=self.completion,
            arrivals=arrivals,
            inspection=self.content.inspection,
            hashing=self.content.hashing,
            dedupe=self.content.dedupe,
            quotas=self.quotas,
            disk=foundation.disk,
            settings=settings,
        )
        self.joins: Final = Joins(
            uploads=self.uploads,
            completion=self.completion,
            arrivals=arrivals,
            max_size=settings.upload_max_file_size,
        )
        self.reaper: Final = Reaper(
            store=store,
            redis=self.redis,
            outbox=self.outbox,
            progress=self.progress,
            completion=self.completion,
            hashing=self.content.hashing,
            quotas=self.quotas,
            lifetime_s=lifetime_s,
        )

    async def _handle(self, batch: Sequence[GroupEntry]) -> None:
        await self.records.handle(batch)
        await self.names.handle(batch)
        await self.content.dedupe.handle(batch)
        await self.quotas.handle(batch)

    @asynccontextmanager
    async def publishing(self, *, drain_s: float) -> AsyncIterator[None]:
        """Publish what happens in the context, and what is left of it at its end.

        Args:
            drain_s: Longest wait at the end for events, and again for records, in seconds.
                What does not get out then is published by the next process.

        """
        leases = self._foundation.leases
        try:
            async with (
                leases.running() if leases else nullcontext(),
                background("publisher", self.publisher.run()),
            ):
                yield
            await self.publisher.drain(timeout_s=drain_s)
            with suppress(TimeoutError):  # records are written again with the next change
                async with asyncio.timeout(drain_s):
                    await self.records.write()
            await self.outbox.close()
        finally:
            await self.redis.aclose()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Do what no client waits for, until the context exits."""
        foundation = self._foundation
        settings, partitions = foundation.settings, foundation.settings.event_partitions
        grouping = connect(settings.redis_url or "")
        streams = [event_stream(partition) for partition in range(partitions)]
        group = StreamGroup(grouping, group=GROUP, streams=streams, handle=self._handle)
        lifetime_s = settings.upload_session_timeout_hours * 3600
        recount = Recount(self.redis, foundation.store, self.quotas, lifetime_s=lifetime_s)
        async with (
            background("outbox", self.outbox.watch()),
            background("handover", foundation.writers.listen()),
            background("records", self.records.run()),
            background("deletions", group.run()),
            background("joins", self.joins.run()),
            background("recount", recount.watch()),
            background("disk", foundation.disk.watch()),
            background("reaper", self.reaper.watch(settings.reaper_interval)),
            background("trimming", trim_events(self.redis, partitions)),
            self.content.at_work(foundation.writers, self.completion),
        ):
            yield
            await self.joins.close()
        await grouping.aclose()
