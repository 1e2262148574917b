"""How an upload ends well, or fails: what happens once its last byte is there."""

from __future__ import annotations

from typing import Final

import structlog
from msgspec.structs import replace
from prometheus_client import Counter

from services.ingest.progress import ProgressReporter
from services.ingest.quotas import Quotas
from shared.blobs.store import BlobWriter
from shared.events import UploadCompleted, UploadFailed
from shared.outbox import Outbox
from shared.sidecar import Sidecar
from shared.times import now_ms

__all__ = ["Completion"]

log = structlog.stdlib.get_logger(__name__)

COMPLETED = Counter("ingest_completed_total", "Uploads completed.")
FAILED = Counter("ingest_failed_total", "Uploads that failed for good.", ["code"])


class Completion:
    """Finishes uploads.

    Args:
        outbox: Publishes lifecycle events.
        progress: Publishes positions.
        quotas: Counts what users keep.

    """

    def __init__(self, outbox: Outbox, progress: ProgressReporter, quotas: Quotas) -> None:
        self._outbox: Final = outbox
        self._progress: Final = progress
        self._quotas: Final = quotas

    async def complete(self, writer: BlobWriter) -> None:
        """Finish an upload whose bytes are all there; does nothing if that has been done.

        Called for each request that finds the last byte in place, so that a finish that was
        interrupted is made up for before the client is told that it is done (item 173).
        """
        sidecar = writer.sidecar
        if sidecar.status != "created":
            return
        now = now_ms()
        facts = replace(sidecar.facts, size=writer.offset)  # it may never have been told
        event = UploadCompleted(
            upload_id=sidecar.upload_id,
            seq=sidecar.next_seq,
            at=now,
            upload=facts,
            offset=writer.offset,
            redirect_url=_results_of(sidecar),
        )
        done = sidecar.after("completed", event, completed_at=now)
        self._outbox.announce(done, await writer.finish(done))
        self._progress.changed(done, writer.offset)
        await self._quotas.settle(done, writer.offset)
        COMPLETED.inc()
        log.info("upload_completed", upload_id=sidecar.upload_id, size=writer.offset)

    async def fail(self, writer: BlobWriter, code: str, message: str) -> None:
        """End an upload that cannot become a file: its bytes go, its record stays.

        Args:
            writer: The right to the upload.
            code: ``error_code`` of the event, such as ``HASH_MISMATCH``.
            message: For people: no path, key or cause that helps an attacker.

        """
        sidecar = writer.sidecar
        event = UploadFailed(
            upload_id=sidecar.upload_id,
            seq=sidecar.next_seq,
            at=now_ms(),
            upload=sidecar.facts,
            offset=writer.offset,
            error_code=code,
            error_message=message,
        )
        failed = sidecar.after("failed", event)
        self._outbox.announce(failed, await writer.bury(failed))
        self._progress.changed(failed, 0)
        await self._quotas.settle(failed, 0)
        FAILED.labels(code).inc()
        log.info("upload_failed", upload_id=sidecar.upload_id, code=code)


def _results_of(sidecar: Sidecar) -> str:
    """Return where the client's page goes next; a part of a file leads nowhere."""
    return "" if sidecar.is_partial else f"/dashboard/videos/{sidecar.upload_id}/results"
