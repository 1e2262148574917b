"""Digests of files that were complete before they were hashed.

A client that declared no digest does not wait for one: the file is there at once, and its
digest is recorded when it is known. If it shows that the tenant had the same bytes before,
they are then stored only once. What a crash kept from that is made up for at the next start.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from msgspec.structs import replace

from services.ingest.completion import hashed
from services.ingest.dedupe import Dedupe
from services.ingest.hashing import Hashing
from services.ingest.writers import Writers
from shared.blobs.store import (
    BlobStore,
    BlobWriter,
    LeaseUnavailable,
    UploadBusy,
    UploadNotFound,
)
from shared.sidecar import Sidecar, SidecarDamaged
from shared.streams import retry_delay

__all__ = ["LateDigests"]

log = structlog.stdlib.get_logger(__name__)

_AT_A_TIME: Final = 4
"""Files that are worked on at once, so that a huge one does not keep the others waiting."""

_RECENT_S: Final = 86_400.0
"""How far back files without a digest are looked for at start."""

_TRIES: Final = 20
_GONE: Final = (UploadNotFound, SidecarDamaged)


class LateDigests:
    """Works in the background of one process.

    Args:
        store: Where the files are.
        writers: Gives out the right to write.
        hashing: Computes digests.
        dedupe: Knows who has the same bytes.
        unhashed: Gives the ids of the files.

    """

    def __init__(
        self,
        store: BlobStore,
        writers: Writers,
        hashing: Hashing,
        dedupe: Dedupe,
        unhashed: asyncio.Queue[str],
    ) -> None:
        self._store: Final = store
        self._writers: Final = writers
        self._hashing: Final = hashing
        self._dedupe: Final = dedupe
        self._unhashed: Final = unhashed

    async def run(self) -> None:
        """Work on what is there and what comes, forever."""
        await asyncio.gather(self._look_back(), *(self._work() for _ in range(_AT_A_TIME)))

    async def _look_back(self) -> None:
        try:
            async for sidecar in self._store.survey(recent_s=_RECENT_S):
                if self._is_wanted(sidecar):
                    self._unhashed.put_nowait(sidecar.upload_id)
        except OSError as exc:
            log.warning("unhashed_not_looked_for", error=repr(exc))

    def _is_wanted(self, sidecar: Sidecar) -> bool:
        missing = self._hashing.algorithms(sidecar) - sidecar.digests.keys()
        return sidecar.status == "completed" and bool(missing)

    async def _work(self) -> None:
        while True:
            upload_id = await self._unhashed.get()
            try:
                await self._settle(upload_id)
            except _GONE:
                continue
            except (UploadBusy, LeaseUnavailable, OSError) as exc:
                log.warning("digest_not_recorded", upload_id=upload_id, error=repr(exc))

    async def _settle(self, upload_id: str) -> None:
        """See to it that a file has its digest, and its bytes are stored once."""
        sidecar = await self._store.load(upload_id)
        if sidecar.status != "completed":
            return
        if self._is_wanted(sidecar):
            size = sidecar.size or 0
            digests = await self._hashing.digests(sidecar, size, awaited=False)
            sidecar = hashed(sidecar, digests)
        found = await self._dedupe.find(
            sidecar.facts.tenant, sidecar.facts.file_hash, sidecar.size or 0
        )
        original_id = found.upload_id if found is not None and self._store.shares else ""
        done = await self._record(sidecar, "" if original_id == upload_id else original_id)
        if done is not None:
            self._dedupe.remember(done)

    async def _record(self, known: Sidecar, original_id: str) -> Sidecar | None:
        """Write down what is known of a file, for a moment as its writer."""
        for attempt in range(_TRIES):
            try:
                async with self._writers.holding(known.upload_id) as lease:
                    writer = lease.writer
                    if writer.sidecar.status != "completed":
                        return None
                    done = hashed(writer.sidecar, known.digests)
                    if original_id and await _shared(writer, original_id):
                        done = replace(done, original_id=original_id)
                    if done != writer.sidecar:
                        await writer.record(done)
                    return done
            except (UploadBusy, LeaseUnavailable):
                await asyncio.sleep(retry_delay(attempt))
        raise UploadBusy(known.upload_id)


async def _shared(writer: BlobWriter, original_id: str) -> bool:
    """Share the bytes of another file, if that is possible; return whether so."""
    try:
        await writer.share(original_id)
    except UploadNotFound:
        return False
    return True
