"""Registers files as their uploads complete, and tells the others that it has.

The events say all that a record needs; it is written before they are acknowledged. That it was
written is told by ``file.stored``, which like every lifecycle event goes into the sidecar
first, under the right to write: so it has a ``seq`` of its own, and a delete one behind it.

That may have to wait, for ingest or for a store that is away, and nobody waits for it. So it is
done behind the reading of events; what a crash kept from being done is made up for at the next
start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

import structlog
from prometheus_client import Counter

from services.storage.record import (
    FileRecord,
    etag_of,
    is_file,
    is_registered,
    record_of_event,
    record_of_sidecar,
)
from services.storage.records import Records
from shared import events
from shared.blobs.store import BlobStore, LeaseUnavailable, UploadBusy, UploadNotFound
from shared.events import FileStored, LifecycleEvent
from shared.outbox import Outbox
from shared.sidecar import SidecarDamaged
from shared.stream_group import GroupEntry
from shared.streams import REDIS_FAILURES, retry_delay
from shared.times import now_ms

__all__ = ["GROUP", "Registrar"]

log = structlog.stdlib.get_logger(__name__)

GROUP: Final = "storage"

_GONE: Final = (events.FileDeleted, events.UploadCancelled, events.UploadExpired)
_AT_A_TIME: Final = 4
_WAITING_LIMIT: Final = 50_000
_RECENT_S: Final = 86_400.0
"""How far back files that nobody was told of are looked for at start."""

REGISTERED = Counter("storage_registered_total", "Files that the others were told of.")


class _Due(NamedTuple):
    file_id: str
    seq: int
    """The last event of the upload that is known to be on its stream; 0: none."""


class Registrar:
    """Keeps the records in step with the events, for one process.

    Args:
        records: Where they are.
        store: Has the sidecars.
        outbox: Publishes what is told.

    """

    def __init__(self, records: Records, store: BlobStore, outbox: Outbox) -> None:
        self._records: Final = records
        self._store: Final = store
        self._outbox: Final = outbox
        self._due: Final[asyncio.Queue[_Due]] = asyncio.Queue()

    async def handle(self, batch: Sequence[GroupEntry]) -> None:
        """Record files that are new, and drop those that are gone.

        Raises:
            MalformedEvent, UnknownEvent: An entry is not as the contract says.
            RedisError, OSError: Redis is away; the entries come again.

        """
        told = [events.decode(entry.fields.get(b"d", b"")) for entry in batch]
        new: dict[str, FileRecord] = {}
        gone: dict[str, LifecycleEvent] = {}
        for event in told:
            if isinstance(event, _GONE):
                gone[event.upload_id] = event
            elif record := record_of_event(event):
                new[event.upload_id] = record
        await self._records.register([one for one in new.values() if one.file_id not in gone])
        for event in gone.values():
            await self._records.drop(event.upload_id, event.upload)
        for record in new.values():
            if record.file_id not in gone:
                self._note(_Due(record.file_id, record.seq))

    def _note(self, due: _Due) -> None:
        if self._due.qsize() < _WAITING_LIMIT:  # the rest is found at the next start
            self._due.put_nowait(due)

    async def run(self) -> None:
        """Tell of what is registered, forever."""
        await asyncio.gather(self._look_back(), *(self._work() for _ in range(_AT_A_TIME)))

    async def _look_back(self) -> None:
        try:
            async for sidecar in self._store.survey(recent_s=_RECENT_S):
                if is_file(sidecar) and not is_registered(sidecar):
                    self._note(_Due(sidecar.upload_id, 0))
        except OSError as exc:
            log.warning("unregistered_not_looked_for", error=repr(exc))

    async def _work(self) -> None:
        failures = 0
        while True:
            due = await self._due.get()
            try:
                await self._tell(due)
                failures = 0
            except UploadNotFound:
                continue
            except SidecarDamaged as exc:
                log.error("file_not_registered", upload_id=due.file_id, error=str(exc))
            except (UploadBusy, LeaseUnavailable, *REDIS_FAILURES) as exc:  # or of the store
                log.debug("file_not_registered_yet", upload_id=due.file_id, error=repr(exc))
                await asyncio.sleep(retry_delay(failures))
                failures += 1
                self._note(due)

    async def _tell(self, due: _Due) -> None:
        """Put ``file.stored`` into the sidecar of a file, and then on the stream."""
        sidecar = await self._store.load(due.file_id)
        if not is_file(sidecar):
            return
        fresh = record_of_sidecar(sidecar)
        if not due.seq or fresh.sha256:  # else the event said all that is known
            await self._records.register([fresh])
        if is_registered(sidecar):
            return
        writer = await self._store.acquire(due.file_id)
        try:
            current = writer.sidecar
            if not is_file(current) or is_registered(current):
                return  # it was deleted, or another process was quicker
            event = FileStored(
                upload_id=due.file_id,
                seq=current.next_seq,
                at=now_ms(),
                upload=current.facts,
                offset=writer.offset,
                etag=etag_of(current),
            )
            stored = current.after("completed", event)
            unpublished = await writer.record(stored)
        finally:
            await writer.close()
        # What was read from the stream need not be put there again by us.
        self._outbox.announce(stored, [one for one in unpublished if one.seq > due.seq])
        REGISTERED.inc()
        log.info("file_stored", upload_id=due.file_id, size=event.offset)
