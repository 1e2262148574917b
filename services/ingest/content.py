"""Puts together what is done about the content of uploads: judged, hashed, scanned, shared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from redis.asyncio import Redis

from services.ingest.clamd import Clamd
from services.ingest.completion import Completion
from services.ingest.dedupe import Dedupe
from services.ingest.hashing import Hashing
from services.ingest.late_digests import LateDigests
from services.ingest.progress import ProgressReporter
from services.ingest.quotas import Quotas
from services.ingest.scanning import Scanning
from services.ingest.settings import Settings
from services.ingest.validation import Inspection
from services.ingest.writers import Writers
from shared.blobs.store import BlobStore
from shared.lifecycle import background
from shared.outbox import Outbox

__all__ = ["Content"]


class Content:
    """The parts, for one process.

    Args:
        settings: What is wanted.
        store: Keeps bytes and sidecars.
        redis: For the index of what is there; may be shared with others.
        clamd: Scans for malware; ``None``: nothing is scanned.

    """

    def __init__(
        self, settings: Settings, store: BlobStore, redis: Redis, clamd: Clamd | None
    ) -> None:
        self._store: Final = store
        self._clamd: Final = clamd
        self._quarantine: Final = asyncio.Queue[str]()
        self._unhashed: Final = asyncio.Queue[str]()
        self.inspection: Final = Inspection(
            settings.upload_allowed_extensions, settings.upload_denied_extensions
        )
        self.hashing: Final = Hashing(store, every=settings.enable_deduplication)
        self.dedupe: Final = Dedupe(redis, store, enabled=settings.enable_deduplication)

    def completion(
        self, outbox: Outbox, progress: ProgressReporter, quotas: Quotas
    ) -> Completion:
        """Return what finishes uploads."""
        return Completion(
            self._store,
            outbox,
            progress,
            quotas=quotas,
            inspection=self.inspection,
            hashing=self.hashing,
            dedupe=self.dedupe,
            quarantine=None if self._clamd is None else self._quarantine,
            unhashed=self._unhashed,
        )

    @asynccontextmanager
    async def at_work(self, writers: Writers, completion: Completion) -> AsyncIterator[None]:
        """Do what no client waits for, until the context exits."""
        store, dedupe = self._store, self.dedupe
        late = LateDigests(store, writers, self.hashing, dedupe, self._unhashed)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.hashing.close)
            jobs = {"dedupe": dedupe.run(self._unhashed.put_nowait), "digests": late.run()}
            if self._clamd is not None:
                scanning = Scanning(self._clamd, store, writers, completion, self._quarantine)
                jobs["scanning"] = scanning.run()
            for name, job in jobs.items():
                await stack.enter_async_context(background(name, job))
            yield
