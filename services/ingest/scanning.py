"""Has complete uploads scanned for malware before anybody gets them.

Between its last byte and the verdict an upload is ``quarantined``: the client has its answer,
but the bytes have no final name yet. Nothing clears them but the daemon's word. While it is
away they wait; what waits is found again after a crash.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from prometheus_client import Counter, Gauge

from services.ingest.clamd import Clamd, ClamdFailed, StreamTooLong
from services.ingest.completion import Completion
from services.ingest.writers import Lease, Writers
from shared.blobs.store import BlobStore, LeaseUnavailable, UploadBusy, UploadNotFound
from shared.sidecar import SidecarDamaged

__all__ = ["Scanning"]

log = structlog.stdlib.get_logger(__name__)

SCANS = Counter("ingest_scans_total", "Scans of uploads, by how they ended.", ["how"])
WAITING = Gauge("ingest_quarantined", "Uploads that this process knows to wait for a scan.")

_AT_A_TIME: Final = 2
"""The daemon unpacks archives: a few scans keep a machine busy."""

_LOOK_S: Final = 300.0
"""How often uploads are looked for that another process has left in quarantine."""

_LONGEST_PAUSE_S: Final = 15.0


class Scanning:
    """Works off the quarantine, in the background of one process.

    Args:
        clamd: Gives the verdict.
        store: Where the bytes are.
        writers: Gives out the right to write.
        completion: Finishes what is clean, and fails what is not.
        quarantine: Gives the ids of uploads that were just set aside.

    """

    def __init__(
        self,
        clamd: Clamd,
        store: BlobStore,
        writers: Writers,
        completion: Completion,
        quarantine: asyncio.Queue[str],
    ) -> None:
        self._clamd: Final = clamd
        self._store: Final = store
        self._writers: Final = writers
        self._completion: Final = completion
        self._quarantine: Final = quarantine
        self._under_way: Final[set[str]] = set()

    async def run(self) -> None:
        """Scan what is there and what comes, forever."""
        await asyncio.gather(self._look(), *(self._work() for _ in range(_AT_A_TIME)))

    async def _look(self) -> None:
        while True:
            try:
                async for stored in self._store.walk(unfinished=True):
                    if stored.sidecar.status == "quarantined":
                        self._quarantine.put_nowait(stored.sidecar.upload_id)
            except OSError as exc:
                log.warning("quarantine_not_looked_through", error=repr(exc))
            await asyncio.sleep(_LOOK_S)

    async def _work(self) -> None:
        while True:
            upload_id = await self._quarantine.get()
            if upload_id in self._under_way:  # it was found a second time
                continue
            self._under_way.add(upload_id)
            WAITING.set(len(self._under_way) + self._quarantine.qsize())
            try:
                await self._clear(upload_id)
            finally:
                self._under_way.discard(upload_id)
                WAITING.set(len(self._under_way) + self._quarantine.qsize())

    async def _clear(self, upload_id: str) -> None:
        """Scan one upload until there is a verdict; the pauses grow while there is none."""
        pause_s = 0.25
        while True:
            try:
                if await self._scan(upload_id):
                    return
            except (UploadNotFound, SidecarDamaged):
                return
            except UploadBusy:
                pass  # another process scans it, or its client deletes it
            except (ClamdFailed, LeaseUnavailable, OSError) as exc:
                SCANS.labels("failed").inc()
                log.warning("scan_failed", upload_id=upload_id, error=repr(exc))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _scan(self, upload_id: str) -> bool:
        """Scan one upload; return whether nothing is left to do."""
        async with self._writers.holding(upload_id) as lease:
            writer = lease.writer
            if writer.sidecar.status != "quarantined":
                return True
            try:
                found = await self._verdict(lease)
            except StreamTooLong:
                SCANS.labels("too long").inc()
                message = "The file is larger than what is scanned for malware."
                await self._completion.fail(writer, "SCAN_LIMIT", message)
                return True
            if found is None:
                return False
            SCANS.labels("infected" if found else "clean").inc()
            if found:
                log.warning("malware_found", upload_id=upload_id, name=found)
                message = "The file holds malware."
                await self._completion.fail(writer, "MALWARE_FOUND", message)
            else:
                await self._completion.release(writer)
            return True

    async def _verdict(self, lease: Lease) -> str | None:
        """Return what was found, empty if nothing; ``None``: somebody wants the upload."""
        content = self._store.read_range(lease.upload_id, 0, lease.writer.offset)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as deadline:
                lease.when_asked(lambda: deadline.reschedule(loop.time()))
                return await self._clamd.scan(content)
        except TimeoutError:
            return None
        finally:
            lease.when_asked(None)
