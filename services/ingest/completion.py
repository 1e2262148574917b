"""How an upload ends well, or fails: what happens once its last byte is there."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from msgspec.structs import replace
from prometheus_client import Counter

from services.ingest.arrival import first_bytes
from services.ingest.dedupe import Dedupe, cached_result
from services.ingest.errors import ContentMismatch, HashMismatch
from services.ingest.hashing import SMALL, Hashing
from services.ingest.progress import ProgressReporter
from services.ingest.quotas import Quotas
from services.ingest.signatures import HEAD
from services.ingest.validation import Inspection
from shared.blobs.store import BlobStore, BlobWriter, UploadBusy, UploadNotFound
from shared.events import UploadCompleted, UploadDuplicate, UploadFailed
from shared.outbox import Outbox
from shared.sidecar import Sidecar
from shared.times import now_ms

__all__ = ["Completion"]

log = structlog.stdlib.get_logger(__name__)

COMPLETED = Counter("ingest_completed_total", "Uploads completed.")
DUPLICATES = Counter("ingest_duplicates_total", "Uploads completed without their bytes.")
FAILED = Counter("ingest_failed_total", "Uploads that failed for good.", ["code"])


class Completion:
    """Finishes uploads.

    Args:
        store: Where their bytes are.
        outbox: Publishes lifecycle events.
        progress: Publishes positions.
        quotas: Counts what users keep.
        inspection: Judges content.
        hashing: Computes digests.
        dedupe: Knows who has the same bytes.
        quarantine: Takes the ids of uploads to be scanned; ``None``: nothing is scanned.
        unhashed: Takes the ids of files whose digest is to be computed later.

    """

    def __init__(
        self,
        store: BlobStore,
        outbox: Outbox,
        progress: ProgressReporter,
        *,
        quotas: Quotas,
        inspection: Inspection,
        hashing: Hashing,
        dedupe: Dedupe,
        quarantine: asyncio.Queue[str] | None,
        unhashed: asyncio.Queue[str],
    ) -> None:
        self._store: Final = store
        self._outbox: Final = outbox
        self._progress: Final = progress
        self._quotas: Final = quotas
        self._inspection: Final = inspection
        self._hashing: Final = hashing
        self._dedupe: Final = dedupe
        self._quarantine: Final = quarantine
        self._unhashed: Final = unhashed

    async def complete(self, writer: BlobWriter) -> None:
        """Finish an upload whose bytes are all there; does nothing if that has been done.

        Called for each request that finds the last byte in place, so that a finish that was
        interrupted is made up for before the client is told that it is done (item 173).
        Waits for the digest only if one was declared or asked for, or is nearly computed. With
        a scan due the upload is set aside, and ``release`` finishes it.

        Raises:
            HashMismatch: The upload has failed: it does not have the declared digest.
            ContentMismatch: It has failed: it is not what it claims to be.
            OSError: The store failed; call it again.

        """
        if writer.sidecar.status != "created":
            return
        if writer.sidecar.is_partial:
            await self._finish(writer, writer.sidecar)
            return
        checked = await self._verified(writer)
        await self._inspect(writer, complete=True)
        if self._quarantine is not None:
            await self._set_aside(writer, checked, self._quarantine)
        else:
            await self._finish(writer, checked)

    async def release(self, writer: BlobWriter) -> None:
        """Finish an upload that the scan has cleared."""
        if writer.sidecar.status == "quarantined":
            await self._finish(writer, writer.sidecar)

    async def _verified(self, writer: BlobWriter) -> Sidecar:
        """Return the record with the digests, as far as they are waited for."""
        sidecar, size = writer.sidecar, writer.offset
        awaited = sidecar.expected or sidecar.wants_digest
        if not awaited and self._hashing.left(sidecar, size) > SMALL:
            return sidecar
        digests = await self._hashing.digests(sidecar, size)
        for algorithm, value in sidecar.expected.items():
            if digests.get(algorithm) != value:
                message = f"The content does not have the declared {algorithm}."
                await self.fail(writer, HashMismatch.error_code, message)
                raise HashMismatch(message)
        return hashed(sidecar, digests)

    async def judge_start(self, writer: BlobWriter, before: int) -> None:
        """Look at first bytes that came in one piece, and were not looked at on their way.

        Args:
            writer: The right to the upload.
            before: Its offset before they came.

        Raises:
            ContentMismatch: It has failed: it is not what it claims to be.

        """
        if before < HEAD and writer.offset not in {before, writer.sidecar.size}:
            await self._inspect(writer, complete=False)

    async def _inspect(self, writer: BlobWriter, *, complete: bool) -> None:
        sidecar = writer.sidecar
        if not self._inspection.claims(sidecar):
            return
        head = await first_bytes(self._store, sidecar.upload_id, min(writer.offset, HEAD))
        try:
            self._inspection.check_start(sidecar, head, complete=complete)
        except ContentMismatch as exc:
            await self.fail(writer, exc.error_code, exc.message)
            raise

    async def _set_aside(
        self, writer: BlobWriter, checked: Sidecar, quarantine: asyncio.Queue[str]
    ) -> None:
        """Hide the upload until it is scanned. No event: for others it is still on its way."""
        await writer.sync()
        await writer.record(replace(checked, status="quarantined"))
        self._progress.changed(writer.sidecar, writer.offset)
        await self._quotas.settle(writer.sidecar, writer.offset)  # no more bytes will come
        quarantine.put_nowait(checked.upload_id)
        log.info("upload_quarantined", upload_id=checked.upload_id, size=writer.offset)

    async def _finish(self, writer: BlobWriter, checked: Sidecar) -> None:
        now, original = now_ms(), await self._original(checked, writer.offset)
        event = UploadCompleted(
            upload_id=checked.upload_id,
            seq=checked.next_seq,
            at=now,
            # The length may never have been told.
            upload=replace(checked.facts, size=writer.offset),
            offset=writer.offset,
            redirect_url=_results_of(checked),
        )
        done = checked.after("completed", event, completed_at=now, original_id=original)
        self._outbox.announce(done, await writer.finish(done))
        self._progress.changed(done, writer.offset)
        await self._quotas.settle(done, writer.offset)
        COMPLETED.inc()
        log.info("upload_completed", upload_id=done.upload_id, size=writer.offset)
        if original:
            await self._share(writer, original)
        if "sha256" in done.digests:
            self._dedupe.remember(done)
        elif self._hashing.algorithms(done):
            self._unhashed.put_nowait(done.upload_id)

    async def _original(self, sidecar: Sidecar, size: int) -> str:
        """Return the file whose bytes are to serve for this one too; empty if there is none."""
        sha256 = sidecar.digests.get("sha256")
        if sha256 is None or not self._store.shares:
            return ""
        found = await self._dedupe.find(sidecar.facts.tenant, sha256, size)
        return found.upload_id if found is not None else ""

    async def _share(self, writer: BlobWriter, original_id: str) -> None:
        """Keep the bytes once, now that the upload is safe: until then they are its own.

        What keeps it from that costs room, nothing else.
        """
        try:
            await writer.share(original_id)
        except (UploadNotFound, UploadBusy, OSError) as exc:
            log.info("bytes_not_shared", upload_id=writer.sidecar.upload_id, error=repr(exc))

    async def original_of(self, sidecar: Sidecar) -> Sidecar | None:
        """Return the file that a new upload says it is a copy of, if its tenant has it."""
        sha256, size = sidecar.expected.get("sha256"), sidecar.size
        if sha256 is None or sidecar.is_partial or sidecar.is_final:
            return None
        if size is None and sidecar.protocol != "form":  # a form never tells a size
            return None
        tenant = sidecar.facts.tenant
        original = await self._dedupe.find(tenant, sha256, size, fresh=False)
        if original is None or not sidecar.expected.items() <= original.digests.items():
            return None  # what else is declared must be verified
        if not self._inspection.claims(sidecar) <= self._inspection.claims(original):
            try:
                head = await first_bytes(self._store, original.upload_id, HEAD)
            except UploadNotFound:
                await self._dedupe.forget(original)
                return None
            self._inspection.check_start(sidecar, head, complete=True)
        return original

    async def duplicate(self, new: Sidecar, original: Sidecar) -> Sidecar | None:
        """Open an upload that is complete at once, with the bytes of a file of its tenant.

        Args:
            new: The record of the upload as if it were to be received.
            original: The file.

        Returns:
            The record of the upload; ``None``: the file is gone, and nothing has changed.

        """
        now, sha256, size = now_ms(), original.digests["sha256"], original.size or 0
        known = hashed(new, {"sha256": sha256})
        event = UploadDuplicate(
            upload_id=known.upload_id,
            seq=known.next_seq,
            at=now,
            upload=replace(known.facts, size=size),  # it may never have been told
            offset=size,
            original_id=original.upload_id,
            cached_result=await cached_result(self._store, known.facts.tenant, sha256),
            redirect_url=_results_of(known),
        )
        done = known.after("completed", event, completed_at=now, original_id=original.upload_id)
        try:
            due = await self._store.create_shared(done, original.upload_id)
        except UploadNotFound:
            await self._dedupe.forget(original)
            return None
        self._outbox.announce(done, due)
        self._progress.changed(done, size)
        await self._quotas.settle(done, size)
        DUPLICATES.inc()
        log.info("upload_duplicate", upload_id=done.upload_id, original=original.upload_id)
        return done

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
        self._hashing.forget(sidecar.upload_id)
        self._progress.changed(failed, 0)
        await self._quotas.settle(failed, 0)
        FAILED.labels(code).inc()
        log.info("upload_failed", upload_id=sidecar.upload_id, code=code)


def _results_of(sidecar: Sidecar) -> str:
    """Return where the client's page goes next; a part of a file leads nowhere."""
    return "" if sidecar.is_partial else f"/dashboard/videos/{sidecar.upload_id}/results"


def hashed(sidecar: Sidecar, digests: dict[str, str]) -> Sidecar:
    """Return the record of an upload whose digests are known."""
    sha256 = digests.get("sha256", sidecar.facts.file_hash)
    facts = replace(sidecar.facts, file_hash=sha256)
    return replace(sidecar, digests={**sidecar.digests, **digests}, facts=facts)
