"""Final uploads: made of partial ones, whenever the last of those is complete.

A join copies as many bytes as there are, so it goes on behind the answers: a client sees it
done when HEAD tells an offset (item 98). It needs nobody who remembers it: the process that
opened a final upload follows its parts, and after a crash the next start, a sweep or a HEAD
takes it up again. Joins are repeated from their beginning, and only one process at a time has
the right to write. Redis is not needed for any of it, unless the store's leases are there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog
from msgspec.structs import replace

from services.ingest.arrivals import Arrivals
from services.ingest.completion import Completion
from services.ingest.concatenation import total_size
from services.ingest.creation import Creation
from services.ingest.errors import Gone, QuotaExceeded
from services.ingest.uploads import Uploads
from shared.blobs.store import (
    BlobWriter,
    LeaseUnavailable,
    Stored,
    UploadBusy,
    UploadNotFound,
)
from shared.errors import (
    ApiError,
    InvalidRequest,
    PayloadTooLarge,
    StorageFull,
    Unavailable,
)
from shared.identity import Principal
from shared.leases import LeaseLost
from shared.lifecycle import TaskSet
from shared.sidecar import Sidecar, SidecarDamaged

__all__ = ["Joins"]

log = structlog.stdlib.get_logger(__name__)

_PATIENCE_S: Final = 5.0
"""How long a client waits for its join; a longer one goes on after the answer."""
_LOOK_S: Final = (0.5, 8.0)
"""How often a part is looked at that may complete in another process: at first, and later."""
_SWEEP_S: Final = 300.0
"""How soon another process takes up what one has left that does not come back."""
_NOT_NOW: Final = (UploadBusy, LeaseUnavailable, LeaseLost, StorageFull, Unavailable)
_READ_AT_ONCE: Final = 32
"""Parts that are looked up together: a store may be far away."""


class Joins:
    """Follows final uploads until they are joined.

    Args:
        uploads: Finds the parts, opens the final ones.
        completion: Finishes what is joined.
        arrivals: Tells of parts that are complete.
        max_size: Largest upload in bytes; 0 is no limit.

    """

    def __init__(
        self, *, uploads: Uploads, completion: Completion, arrivals: Arrivals, max_size: int
    ) -> None:
        self._uploads: Final = uploads
        self._completion: Final = completion
        self._arrivals: Final = arrivals
        self._max_size: Final = max_size
        self._followed: Final[set[str]] = set()
        self._tasks: Final = TaskSet("joins")
        self._closing = False

    async def open(self, creation: Creation, caller: Principal) -> Sidecar:
        """Open a final upload, and join it if its parts are there and it is quickly done.

        Raises:
            InvalidRequest: What it names is no partial upload.
            NotFound, Forbidden, Gone: One of them is not there, or not the caller's.
            PayloadTooLarge: Together they are larger than an upload may be.
            HashMismatch, ContentMismatch: They are not what the whole is declared to be.
            OSError: The store refused; nothing is left of it.

        """
        parts = await self._find_parts(creation.parts, caller)
        sizes = (parts[one].sidecar.size for one in creation.parts)
        size = total_size(sizes, max_size=self._max_size)
        sidecar = await self._uploads.create(replace(creation, size=size), caller)
        if all(_is_there(part) for part in parts.values()):
            await self._join_now(sidecar.upload_id)
        else:
            self.follow(sidecar.upload_id)
        return sidecar

    async def _find_parts(self, ids: Sequence[str], caller: Principal) -> dict[str, Stored]:
        wanted, found = list(dict.fromkeys(ids)), list[Stored]()
        for start in range(0, len(wanted), _READ_AT_ONCE):
            batch = wanted[start : start + _READ_AT_ONCE]
            found += await asyncio.gather(*(self._uploads.find(one, caller) for one in batch))
        for part in found:
            if not part.sidecar.is_partial:
                raise InvalidRequest("Only partial uploads can be joined.")
            if part.sidecar.status not in {"created", "completed"}:
                raise InvalidRequest("One of the uploads has failed.")
            if self._uploads.is_expired(part):
                raise Gone("One of the uploads was not continued in time.")
        return dict(zip(wanted, found, strict=True))

    async def _join_now(self, final_id: str) -> None:
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.follow(final_id, first)
        await asyncio.wait([first], timeout=_PATIENCE_S)
        if first.cancel():
            return  # it takes longer
        refused = first.exception()
        if refused is None:
            return
        if not isinstance(refused, ApiError):
            async with self._uploads.writers.writing(final_id) as lease:
                await self._uploads.terminate(lease.writer)
        raise refused

    def follow(self, final_id: str, first: asyncio.Future[None] | None = None) -> None:
        """See to it that an upload is joined; returns at once.

        Args:
            final_id: The upload. Does nothing if it is followed already.
            first: Told how the first attempt ends, if somebody still waits for that. Once
                told that the store failed, that one must see to the upload.

        """
        if final_id not in self._followed and not self._closing:
            self._followed.add(final_id)
            self._tasks.start(self._follow(final_id, first))

    async def _follow(self, final_id: str, first: asyncio.Future[None] | None) -> None:
        pause_s, longest_s = _LOOK_S
        try:
            while not self._closing:
                awaited: str | None = final_id
                try:
                    awaited = await self._attempt(final_id)
                except _NOT_NOW:
                    pass
                except OSError as exc:
                    log.error("join_failed", upload_id=final_id, error=repr(exc))
                    if first is not None and not first.done():
                        first.set_exception(exc)
                        return
                if awaited is None:
                    return
                await self._arrivals.wait(awaited, at_most_s=pause_s)
                pause_s = min(2 * pause_s, longest_s)
        except ApiError as exc:  # the upload has failed, for what it turned out to be
            log.info("join_refused", upload_id=final_id, code=exc.error_code)
            if first is not None and not first.done():
                first.set_exception(exc)
        except SidecarDamaged as exc:
            log.error("join_impossible", upload_id=final_id, error=str(exc))
        finally:
            self._followed.discard(final_id)
            if first is not None and not first.done():
                first.set_result(None)

    async def _attempt(self, final_id: str) -> str | None:
        """Join an upload if it can be; return the part to wait for, if there is one."""
        store = self._uploads.store
        try:
            final = await store.read(final_id)
            if final.sidecar.status != "created" or self._uploads.is_expired(final):
                return None
            sizes: dict[str, int] = {}
            for part_id in dict.fromkeys(final.sidecar.parts):
                try:
                    part = await store.read(part_id)
                except UploadNotFound:
                    break  # the join fails
                if part.sidecar.status == "created":
                    return part_id
                sizes[part_id] = part.offset
            writer = await store.acquire(final_id)
        except UploadNotFound:
            return None
        try:
            size = sum(sizes.get(one, 0) for one in final.sidecar.parts)
            if await self._has_room(writer, size):
                await self._join(writer)
        finally:
            await writer.close()
        return None

    async def _has_room(self, writer: BlobWriter, size: int) -> bool:
        """Fail an upload that was opened before its length was known, if it cannot be kept.

        One part may be named ten thousand times: what is too large must not be copied first.

        Raises:
            StorageFull, Unavailable: There is no room on the disk just now, or Redis is away.

        """
        sidecar = writer.sidecar
        if sidecar.status != "created" or sidecar.size is not None or writer.visible:
            return True
        try:
            total_size([size], max_size=self._max_size)
            self._uploads.disk.admit(size)
            await self._uploads.quotas.reserve(
                sidecar.upload_id, sidecar.facts, size, parts=sidecar.parts
            )
        except (PayloadTooLarge, QuotaExceeded) as exc:
            await self._completion.fail(writer, exc.error_code, exc.message)
            return False
        return True

    async def _join(self, writer: BlobWriter) -> None:
        sidecar = writer.sidecar
        if sidecar.status != "created":
            return  # another process was quicker
        if not writer.visible:
            try:
                await writer.join_uploads(sidecar.parts)
            except UploadNotFound:
                await self._completion.fail(
                    writer, "PART_MISSING", "An upload that was to be joined is gone."
                )
                return
        if self._max_size and writer.offset > self._max_size:
            await self._completion.fail(
                writer, "PAYLOAD_TOO_LARGE", "The parts are larger than an upload may be."
            )
            return
        if sidecar.size != writer.offset:
            facts = replace(sidecar.facts, size=writer.offset)
            await writer.record(replace(sidecar, facts=facts))
        await self._completion.complete(writer)

    async def run(self) -> None:
        """Take up what others have left, at start and now and then, forever."""
        while True:
            try:
                async for stored in self._uploads.store.walk(unfinished=True):
                    if stored.sidecar.is_final and stored.sidecar.status == "created":
                        self.follow(stored.sidecar.upload_id)
            except OSError as exc:
                log.warning("joins_not_swept", error=repr(exc))
            await asyncio.sleep(_SWEEP_S)

    async def close(self) -> None:
        """Finish the joins under way; those that wait are taken up at the next start."""
        self._closing = True
        self._arrivals.tell_all()
        await self._tasks.join()


def _is_there(part: Stored) -> bool:
    return part.sidecar.status == "completed" and part.visible
