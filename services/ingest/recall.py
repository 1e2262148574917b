"""Brings back what a Redis has lost of an upload beside its events.

Those are published again by the outbox. How far an unfinished upload is does not stand in its
record, so the store is asked: whoever watches one that rests would be shown 0 % until its
client comes back.
"""

from __future__ import annotations

from typing import Final

import structlog
from msgspec.structs import replace

from services.ingest.dedupe import Dedupe
from services.ingest.form import estimated_size, total_chunks_of
from services.ingest.progress import ProgressReporter
from shared.blobs.store import BlobStore, UploadNotFound
from shared.sidecar import Sidecar, SidecarDamaged

__all__ = ["Recall"]

log = structlog.stdlib.get_logger(__name__)


class Recall:
    """Writes the record of an upload, its position and its entry for deduplication again.

    Args:
        store: Knows how far uploads are.
        progress: Tells it.
        dedupe: Knows who has the same bytes.

    """

    def __init__(self, store: BlobStore, progress: ProgressReporter, dedupe: Dedupe) -> None:
        self._store: Final = store
        self._progress: Final = progress
        self._dedupe: Final = dedupe

    async def recall(self, sidecar: Sidecar) -> None:
        """Do it for one upload. What the store does not give must not keep others from it."""
        self._dedupe.remember(sidecar)
        if sidecar.status == "completed":
            self._progress.recall(sidecar, sidecar.size or 0)
        elif sidecar.status in {"created", "quarantined"}:
            try:
                await self._unfinished(sidecar.upload_id)
            except (UploadNotFound, SidecarDamaged, OSError) as exc:
                log.info("not_recalled", upload_id=sidecar.upload_id, error=repr(exc))

    async def _unfinished(self, upload_id: str) -> None:
        stored = await self._store.read(upload_id)
        sidecar, offset, total = stored.sidecar, stored.offset, total_chunks_of(stored.sidecar)
        chunks = await self._store.chunks(upload_id) if total and not offset else []
        if chunks:
            offset = sum(one.size for one in chunks)
            size = estimated_size(chunks, total)
            sidecar = replace(sidecar, facts=replace(sidecar.facts, size=size))
        self._progress.recall(sidecar, offset, chunks)
