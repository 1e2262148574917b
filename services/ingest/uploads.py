"""What happens to an upload: opened, appended to, completed, ended.

Each change is durable in the sidecar, with its event, before it is answered; the event reaches
the stream after that (``shared.outbox``). Redis is not needed for any of it.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from msgspec.structs import replace
from prometheus_client import Counter, Gauge

from services.ingest.progress import ProgressReporter
from services.ingest.receive import Ended, receive
from services.ingest.request_body import RequestBody
from services.ingest.settings import Settings
from services.ingest.tus import Creation
from services.ingest.writers import Lease, Writers
from shared.blobs.filesystem import FilesystemStore
from shared.blobs.store import BlobWriter, Stored, UploadNotFound
from shared.errors import ApiError, Forbidden, NotFound, StorageFull, Unavailable
from shared.events import (
    FileDeleted,
    UploadCancelled,
    UploadCompleted,
    UploadCreated,
    UploadFacts,
)
from shared.identity import Principal
from shared.outbox import Outbox
from shared.sidecar import Sidecar, SidecarDamaged, new_id
from shared.times import now_ms

__all__ = ["Uploads", "refusing"]

log = structlog.stdlib.get_logger(__name__)

BYTES = Counter("ingest_bytes_total", "Bytes of uploads written to the store.")
ENDED = Counter("ingest_bodies_total", "Bodies received, by how they ended.", ["how"])
COMPLETED = Counter("ingest_completed_total", "Uploads completed.")
RECEIVING = Gauge("ingest_receiving", "Requests whose body is being received.")

_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def _disk_error(exc: OSError) -> StorageFull | Unavailable:
    """Return what to tell a client when the disk refuses; nothing acknowledged is lost."""
    log.error("disk_refused", error=repr(exc))
    if exc.errno in _NO_ROOM:
        return StorageFull("There is no room for more bytes. What was acknowledged is kept.")
    return Unavailable("The store failed. What was acknowledged is kept.")


@contextmanager
def refusing() -> Iterator[None]:
    """Turn what the store raises into what a client is told.

    Raises:
        ApiError: Instead of what the store raised.

    """
    try:
        yield
    except UploadNotFound:
        raise NotFound("There is no such upload.") from None
    except SidecarDamaged as exc:
        log.error("sidecar_damaged", error=str(exc))
        raise ApiError("The record of this upload is damaged.") from exc
    except ConnectionError:
        raise  # the client has gone
    except OSError as exc:
        raise _disk_error(exc) from exc


class Uploads:
    """The uploads that clients work on through this process.

    Args:
        store: Keeps bytes and sidecars.
        writers: Gives out the right to write.
        outbox: Publishes lifecycle events.
        progress: Publishes positions.
        settings: Limits and times.

    """

    def __init__(
        self,
        store: FilesystemStore,
        writers: Writers,
        outbox: Outbox,
        progress: ProgressReporter,
        settings: Settings,
    ) -> None:
        self.store: Final = store
        self.writers: Final = writers
        self._outbox: Final = outbox
        self._progress: Final = progress
        self._idle_s: Final = settings.upload_idle_timeout
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
        """Tell whether an upload was left unfinished for too long."""
        unfinished = stored.sidecar.status == "created" and not stored.visible
        return unfinished and time.time() > self.expires_at(stored.modified_at)

    async def create(self, creation: Creation, caller: Principal) -> Sidecar:
        """Open an upload; when this returns, it survives a crash.

        Raises:
            OSError: The store refused; nothing is left of it.

        """
        upload_id, now = new_id(), now_ms()
        metadata = creation.metadata
        facts = UploadFacts(
            user_id=caller.user_id,
            tenant=caller.tenant,
            created_at=now,
            job_id=new_id(),
            size=creation.size,
            filename=metadata.get("filename") or metadata.get("name") or "",
            content_type=metadata.get("filetype") or metadata.get("type") or "",
            metadata=metadata,
        )
        sidecar = Sidecar(
            upload_id=upload_id,
            status="created",
            facts=facts,
            username=caller.username,
            metadata_header=creation.metadata_header,
            outbox=(UploadCreated(upload_id=upload_id, seq=1, at=now, upload=facts),),
        )
        self._outbox.announce(sidecar, await self.store.create(sidecar))
        self._progress.changed(sidecar, 0)
        return sidecar

    async def append(self, lease: Lease, body: RequestBody, room: int | None) -> Ended:
        """Add a body to the upload; what came is on stable storage when this returns.

        Completes the upload when its last byte is there. Returns why receiving ended.

        Raises:
            OSError: The disk refused; the writer's offset says what is kept.

        """
        writer = lease.writer
        before = writer.offset
        if time.time() - writer.modified_at > self._forgotten_s:
            self._outbox.remind(writer.sidecar)
        self._progress.begin(writer.sidecar, before)
        try:
            with RECEIVING.track_inprogress():
                ended = await self._receive(lease, body, room)
            if writer.offset == writer.sidecar.size:
                await self.complete(writer)
        finally:
            BYTES.inc(max(writer.offset - before, 0))
            self._progress.pause(writer.sidecar, writer.offset)
        ENDED.labels(ended.name.lower()).inc()
        return ended

    async def _receive(self, lease: Lease, body: RequestBody, room: int | None) -> Ended:
        writer = lease.writer
        try:
            return await receive(
                body,
                lease,
                room=room,
                idle_s=self._idle_s,
                on_progress=lambda offset: self._progress.advance(writer.sidecar, offset),
            )
        finally:
            await writer.sync()

    async def declare_length(self, writer: BlobWriter, size: int) -> None:
        """Set the length of an upload that had deferred it, durably."""
        facts = replace(writer.sidecar.facts, size=size)
        await writer.record(replace(writer.sidecar, facts=facts))

    async def complete(self, writer: BlobWriter) -> None:
        """Finish an upload whose bytes are all there; does nothing if that has been done.

        Called for each request that finds the last byte in place, so that a finish that was
        interrupted is made up for before the client is told that it is done (item 173).
        """
        sidecar = writer.sidecar
        if sidecar.status != "created":
            return
        now = now_ms()
        event = UploadCompleted(
            upload_id=sidecar.upload_id,
            seq=sidecar.next_seq,
            at=now,
            upload=sidecar.facts,
            offset=writer.offset,
            redirect_url=f"/dashboard/videos/{sidecar.upload_id}/results",
        )
        done = sidecar.after("completed", event, completed_at=now)
        self._outbox.announce(done, await writer.finish(done))
        self._progress.changed(done, writer.offset)
        COMPLETED.inc()
        log.info("upload_completed", upload_id=sidecar.upload_id, size=writer.offset)

    async def terminate(self, writer: BlobWriter) -> None:
        """End an upload, finished or not, and remove its bytes (items 85 to 88)."""
        sidecar = writer.sidecar
        finished = sidecar.status == "completed"  # then it is a file that goes
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
        self._progress.changed(tombstone, writer.offset)
