"""What happens to an upload: opened, appended to, completed, ended.

Each change is durable in the sidecar, with its event, before it is answered; the event reaches
the stream after that (``shared.outbox``). Redis is not needed for any of it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog
from msgspec.structs import replace
from prometheus_client import Counter, Gauge

from services.ingest.abandoned import is_abandoned
from services.ingest.arrival import Arrival, first_bytes
from services.ingest.arrivals import Arrivals
from services.ingest.checksums import Check
from services.ingest.completion import Completion
from services.ingest.creation import Creation
from services.ingest.dedupe import Dedupe
from services.ingest.disk_guard import DiskGuard
from services.ingest.errors import ContentMismatch
from services.ingest.hashing import Hashing, check_declared
from services.ingest.progress import ProgressReporter
from services.ingest.quotas import Quotas
from services.ingest.receive import Ended, receive
from services.ingest.refusals import refusing
from services.ingest.request_body import WatchedBody
from services.ingest.settings import Settings
from services.ingest.signatures import HEAD
from services.ingest.staging import StagedBody
from services.ingest.validation import Inspection
from services.ingest.writers import Lease, Writers
from shared.blobs.store import BlobStore, BlobWriter, Stored
from shared.errors import Forbidden
from shared.events import FileDeleted, UploadCancelled, UploadCreated, UploadFacts
from shared.identity import Principal
from shared.outbox import Outbox
from shared.sidecar import Sidecar, new_id
from shared.times import now_ms

__all__ = ["Uploads"]

log = structlog.stdlib.get_logger(__name__)

BYTES = Counter("ingest_bytes_total", "Bytes of uploads written to the store.")
ENDED = Counter("ingest_bodies_total", "Bodies received, by how they ended.", ["how"])
RECEIVING = Gauge("ingest_receiving", "Requests whose body is being received.")


class Uploads:
    """The uploads that clients work on through this process.

    Args:
        store: Keeps bytes and sidecars.
        writers: Gives out the right to write.
        outbox: Publishes lifecycle events.
        progress: Publishes positions.
        completion: Finishes what is complete.
        arrivals: Told of parts that are complete.
        inspection: Judges names and content.
        hashing: Computes digests.
        dedupe: Knows who has the same bytes.
        quotas: Counts what users keep.
        disk: Keeps the disk from filling up.
        settings: Limits and times.

    """

    def __init__(
        self,
        *,
        store: BlobStore,
        writers: Writers,
        outbox: Outbox,
        progress: ProgressReporter,
        completion: Completion,
        arrivals: Arrivals,
        inspection: Inspection,
        hashing: Hashing,
        dedupe: Dedupe,
        quotas: Quotas,
        disk: DiskGuard,
        settings: Settings,
    ) -> None:
        self.store: Final = store
        self.writers: Final = writers
        self._outbox: Final = outbox
        self._progress: Final = progress
        self._completion: Final = completion
        self._arrivals: Final = arrivals
        self._inspection: Final = inspection
        self._hashing: Final = hashing
        self._dedupe: Final = dedupe
        self.quotas: Final = quotas
        self.disk: Final = disk
        self._idle_s: Final = settings.upload_idle_timeout
        self._least_rate: Final = settings.upload_min_rate
        self._window_s: Final = settings.upload_min_rate_window
        self._forgotten_s: Final = settings.progress_ttl_seconds / 2
        self._lifetime_s: Final = settings.upload_session_timeout_hours * 3600

    async def find(self, upload_id: str, caller: Principal) -> Stored:
        """Return the caller's upload, without disturbing whoever writes to it.

        Raises:
            NotFound: There is none.
            Forbidden: It is somebody else's. Checked before anything is touched.
            ApiError: Its record is damaged, or the disk refuses.

        """
        with refusing():
            stored = await self.store.read(upload_id)
        facts = stored.sidecar.facts
        if not caller.owns(user_id=facts.user_id, tenant=facts.tenant):
            raise Forbidden("This upload belongs to somebody else.")
        return stored

    def expires_at(self, modified_at: float) -> float:
        """Return when an unfinished upload ends if no byte comes; UTC, seconds."""
        return modified_at + self._lifetime_s

    def is_expired(self, stored: Stored) -> bool:
        """Tell whether an upload was left for too long without becoming a file."""
        return is_abandoned(stored, self._lifetime_s, time.time())

    async def create(
        self, creation: Creation, caller: Principal, *, coming: int = 0
    ) -> Sidecar:
        """Open an upload; when this returns, it survives a crash.

        It is complete at once if the caller's tenant has the declared bytes already. Look at
        the status of what is returned: there is nothing to receive then.

        Args:
            creation: What the client wants.
            caller: Whose it will be.
            coming: Bytes that are there for it already, though its size is not known.

        Raises:
            InvalidRequest: A declared digest is none.
            UnsupportedMediaType: Files of that name are not accepted, or the declared bytes
                are not what they are said to be.
            QuotaExceeded, RateLimited, Unavailable: As ``Quotas.reserve``.
            StorageFull: The disk has no room for it.
            OSError: The store refused; nothing is left of it.

        """
        check_declared(creation.expected)
        self._inspection.check_name(creation)
        upload_id, now = creation.upload_id, now_ms()
        facts = UploadFacts(
            user_id=caller.user_id,
            tenant=caller.tenant,
            created_at=now,
            job_id=new_id(),
            size=creation.size,
            filename=creation.filename,
            content_type=creation.content_type,
            metadata=creation.metadata,
            kind=creation.kind,
            options=creation.options,
            priority=creation.priority,
            partial=creation.is_partial,
            session_id=creation.form.session_id if creation.form is not None else "",
        )
        sidecar = Sidecar(
            status="created",
            facts=facts,
            outbox=(UploadCreated(upload_id=upload_id, seq=1, at=now, upload=facts),),
            **creation.opened_by(username=caller.username),
        )
        original = await self._completion.original_of(sidecar)
        self.disk.admit(0 if original is not None else creation.size or 0)
        async with self.quotas.reserved(sidecar, creation.size or coming):
            if original is not None:
                copy = await self._completion.duplicate(sidecar, original)
                if copy is not None:
                    return copy
                self.disk.admit(creation.size or 0)
            due = await self.store.create(sidecar)
        self._outbox.announce(sidecar, due)
        self._progress.changed(sidecar, 0)
        return sidecar

    def judge(
        self, subject: Creation | Sidecar, head: bytes, *, complete: bool = False
    ) -> bool:
        """Look at bytes before their upload takes them; see ``Inspection.judge``."""
        return self._inspection.judge(subject, head, complete=complete)

    def remind(self, sidecar: Sidecar, modified_at: float) -> None:
        """Tell readers of an upload that goes on after so long that they may have forgotten it.

        Args:
            sidecar: Its record.
            modified_at: When bytes last arrived; UTC, seconds since the epoch.

        """
        if time.time() - modified_at > self._forgotten_s:
            self._outbox.remind(sidecar)

    async def append(
        self,
        lease: Lease,
        body: WatchedBody,
        room: int | None,
        *,
        checks: Sequence[Check] = (),
        length: int | None = None,
        on_safe: Callable[[int], Awaitable[None]] | None = None,
    ) -> Ended:
        """Add a body to the upload; what came is on stable storage when this returns.

        Completes the upload when its last byte is there and its protocol goes by that.
        Returns why receiving ended.

        Args:
            lease: The right to write.
            body: Of the request.
            room: Most bytes to take; ``None`` is no limit.
            checks: What the body must prove to be. If there are any, then all of the body
                becomes part of the upload, or nothing of it and no trace.
            length: The upload's, if the request declares one that had been deferred.
            on_safe: As for ``receive``; not called while there is something to prove.

        Raises:
            ChecksumMismatch: The body is not what it should be; the upload is unchanged.
            ContentMismatch: The upload has failed: it is not what it claims to be. Raised as
                soon as the bytes show it, before the rest is sent.
            HashMismatch: As ``complete``.
            QuotaExceeded: There is no room for more bytes of an upload without a length.
            Unavailable: As ``Quotas.reserve``, before the first byte of such an upload.
            OSError: The disk refused; the writer's offset says what is kept.

        """
        writer = lease.writer
        before = writer.offset
        self.remind(writer.sidecar, writer.modified_at)
        self._progress.begin(writer.sidecar, before)
        self._hashing.begin(writer.sidecar, before)
        try:
            with RECEIVING.track_inprogress():
                await self._reserve(writer, length)
                async with self.quotas.growing(
                    lease, body.length, known=length is not None
                ) as grow:
                    if checks:
                        ended = await self._receive_whole(lease, body, room, checks, length)
                        await self._completion.judge_start(writer, before)
                    else:
                        await self.declare_length(writer, length)
                        ended = await self._receive(lease, body, room, on_safe, grow)
            self._hashing.settle(lease.upload_id, writer.offset)
            await self.settle(writer)
        except OSError:
            self._hashing.forget(lease.upload_id)  # bytes may have been taken back
            raise
        finally:
            if length not in {None, writer.sidecar.size}:  # the body was not taken, nor it
                await self.quotas.settle(writer.sidecar, writer.offset)
            BYTES.inc(max(writer.offset - before, 0))
            self._progress.pause(writer.sidecar, writer.offset)
        ENDED.labels(ended.name.lower()).inc()
        return ended

    async def _receive(
        self,
        lease: Lease,
        body: WatchedBody,
        room: int | None,
        on_safe: Callable[[int], Awaitable[None]] | None,
        grow: Callable[[int], None],
    ) -> Ended:
        writer = lease.writer

        def tell(offset: int) -> None:
            self._progress.advance(writer.sidecar, offset)
            self._hashing.advance(writer.sidecar, offset)
            grow(offset)

        try:
            await self._watch(writer, body)
            return await receive(
                body,
                lease,
                room=room,
                idle_s=self._idle_s,
                least_rate=self._least_rate,
                window_s=self._window_s,
                on_progress=tell,
                on_safe=on_safe,
            )
        except ContentMismatch as exc:
            await self._completion.fail(writer, exc.error_code, exc.message)
            raise
        finally:
            await writer.sync()

    async def _watch(self, writer: BlobWriter, body: WatchedBody) -> None:
        """Have the bytes looked at as they come; the first ones may have come before."""
        sidecar, offset = writer.sidecar, writer.offset
        head = b""
        if 0 < offset < HEAD and self._inspection.claims(sidecar):
            head = await first_bytes(self.store, sidecar.upload_id, offset)
        arrival = Arrival(
            sidecar, offset, head=head, inspection=self._inspection, hashing=self._hashing
        )
        body.watch(arrival.see)

    async def _receive_whole(
        self,
        lease: Lease,
        body: WatchedBody,
        room: int | None,
        checks: Sequence[Check],
        length: int | None,
    ) -> Ended:
        """Receive a body beside the upload, and take it once it is found good (item 82)."""
        staged = StagedBody(self.store, lease.upload_id, checks)
        try:
            ended = await receive(
                body,
                lease,
                into=staged,
                room=room,
                idle_s=self._idle_s,
                least_rate=self._least_rate,
                window_s=self._window_s,
                on_progress=lambda _: None,  # the upload is where it was
            )
            if ended is Ended.COMPLETE:
                staged.verify()
                await self.declare_length(lease.writer, length)
                await staged.append_to(lease.writer)
        finally:
            await staged.discard()
            await lease.writer.sync()
        return ended

    async def _reserve(self, writer: BlobWriter, length: int | None) -> None:
        """Count an upload for the length that is declared for it at last."""
        if length is not None and length != writer.sidecar.size:
            await self.quotas.reserve(writer.sidecar.upload_id, writer.sidecar.facts, length)

    async def declare_length(self, writer: BlobWriter, length: int | None) -> None:
        """Set the length of an upload that had deferred it, durably."""
        if length is not None and length != writer.sidecar.size:
            facts = replace(writer.sidecar.facts, size=length)
            await writer.record(replace(writer.sidecar, facts=facts))

    async def settle(self, writer: BlobWriter) -> None:
        """Complete an upload that is whole, or was being completed when something broke.

        In the IETF protocol all bytes may be there and the client still has to say that it
        was all (item 113). A final upload may have the length of a join that was cut.
        """
        sidecar = writer.sidecar
        decides = sidecar.protocol != "ietf" and not sidecar.is_final
        whole = decides and writer.offset == sidecar.size
        if whole or writer.visible:
            await self.complete(writer)

    async def fail(self, writer: BlobWriter, code: str, message: str) -> None:
        """End an upload that cannot become a file; see ``Completion.fail``."""
        await self._completion.fail(writer, code, message)

    async def complete(self, writer: BlobWriter) -> None:
        """Finish an upload whose bytes are all there; see ``Completion.complete``."""
        await self._completion.complete(writer)
        if writer.sidecar.is_partial:
            self._arrivals.tell(writer.sidecar.upload_id)

    async def terminate(self, writer: BlobWriter) -> None:
        """End an upload, finished or not, and remove its bytes (items 85 to 88)."""
        sidecar = writer.sidecar
        # Then it is a file that goes.
        finished = sidecar.status == "completed" and not sidecar.is_partial
        kind = FileDeleted if finished else UploadCancelled
        event = kind(
            upload_id=sidecar.upload_id,
            seq=sidecar.next_seq,
            at=now_ms(),
            upload=sidecar.facts,
            offset=writer.offset,
        )
        tombstone = sidecar.after("deleted" if finished else "cancelled", event)
        self._outbox.announce(tombstone, await writer.bury(tombstone))
        self._hashing.forget(sidecar.upload_id)
        self._progress.changed(tombstone, writer.offset)
        await self.quotas.settle(tombstone, 0)
