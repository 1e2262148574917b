"""Makes the records of files anew from the blob store.

It happens by itself when Redis turns out to know nothing of older files: it was wiped, or
another one was plugged in. An operator may have it done at any time, and then what nobody owns
any more goes, too. Services may run meanwhile: what is written is never older than what is
there, and whatever seems gone is looked for once more before it is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, TypeVar

import msgspec
import structlog
from msgspec.structs import replace
from redis.asyncio import Redis

from services.storage.record import FileRecord, id_in, is_file, record_of_sidecar
from services.storage.records import Records
from shared.blobs.store import BlobStore, UploadNotFound
from shared.redis_lock import RedisLock
from shared.sidecar import SidecarDamaged, is_upload_id
from shared.streams import REDIS_FAILURES

__all__ = ["Rebuilding", "Rebuilt", "fraction_at", "rebuild_when_lost"]

T = TypeVar("T")

log = structlog.stdlib.get_logger(__name__)

_LOCK: Final = "files:rebuilding"
_LOCK_S: Final = 10.0
"""How long others wait for one that was killed at it."""
_BATCH: Final = 200
_PAUSE_S: Final = 0.02
"""Between two batches: this must not be what Redis and the store are busy with."""
_READ_AT_ONCE: Final = 32
"""Files that are looked up together: a store may be far away."""
_LOOK_S: Final = 2.0
"""How soon a Redis that knows nothing is noticed."""


class Rebuilt(msgspec.Struct):
    """What was found, so far."""

    files: int = 0
    written: int = 0
    """Files that had no record, or another one."""
    dropped: int = 0
    """Records of files that are gone."""


async def _batches(source: AsyncIterator[T]) -> AsyncIterator[list[T]]:
    batch: list[T] = []
    async for one in source:
        batch.append(one)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


async def _go_on(_: float) -> None:
    """Do nothing between two batches."""


def fraction_at(upload_id: str) -> float:
    """Return how much of a store comes before an upload: ids are random, so they say it."""
    return int(upload_id[:2], 16) / 256


class Rebuilding:
    """One pass over a store.

    Args:
        store: Has the files.
        records: Where they are to be recorded.
        dry_run: Only look.
        on_batch: Awaited now and then, and told how much is done, from 0 to 1.

    """

    def __init__(
        self,
        store: BlobStore,
        records: Records,
        *,
        dry_run: bool = False,
        on_batch: Callable[[float], Awaitable[None]] = _go_on,
    ) -> None:
        self._store: Final = store
        self._records: Final = records
        self._dry_run: Final = dry_run
        self._on_batch: Final = on_batch
        self.found: Final = Rebuilt()

    async def record_all(self) -> None:
        """Record every file of the store.

        Raises:
            RedisError, OSError: Redis is away, or the store.

        """
        async for batch in _batches(self._files()):
            await self._record(batch)
            await self._on_batch(fraction_at(batch[-1].file_id))
            await asyncio.sleep(_PAUSE_S)

    async def _files(self) -> AsyncIterator[FileRecord]:
        async for stored in self._store.walk():
            if is_file(stored.sidecar) and stored.visible:
                yield record_of_sidecar(stored.sidecar)

    async def _record(self, batch: Sequence[FileRecord]) -> None:
        known = await self._records.find_all([one.file_id for one in batch])
        self.found.files += len(batch)
        self.found.written += sum(
            there is None or replace(there, seq=one.seq) != one
            for one, there in zip(batch, known, strict=True)
        )
        if not self._dry_run:  # all of them: one may be recorded, but not listed
            await self._records.register(batch)

    async def drop_strays(self) -> None:
        """Drop the records whose file is gone, and what is listed without a record.

        Raises:
            RedisError, OSError: Redis is away, or the store.

        """
        async for file_ids in _batches(self._records.all_ids()):
            await self._drop_gone(file_ids)
        async for key in self._records.list_keys():
            async for members in _batches(self._records.scan_list(key)):
                known = await self._records.find_all([id_in(one) for one in members])
                strays = [m for m, there in zip(members, known, strict=True) if there is None]
                if not self._dry_run:
                    await self._records.unlist(key, strays)

    async def _drop_gone(self, file_ids: Sequence[str]) -> None:
        found = await self._records.find_all(file_ids)
        recorded = [one for one in found if one is not None]
        for start in range(0, len(recorded), _READ_AT_ONCE):
            batch = recorded[start : start + _READ_AT_ONCE]
            there = await asyncio.gather(*(self._is_there(one.file_id) for one in batch))
            gone = [one for one, is_there in zip(batch, there, strict=True) if not is_there]
            self.found.dropped += len(gone)
            if not self._dry_run:
                for one in gone:
                    await self._records.forget(one)

    async def _is_there(self, file_id: str) -> bool:
        if not is_upload_id(file_id):
            return False
        try:
            return is_file(await self._store.load(file_id))
        except UploadNotFound:
            return False
        except SidecarDamaged:
            return True
        except OSError as exc:
            if not self._store.is_writable():
                raise
            # What is wrong with one file must not keep the others from being looked at.
            log.error("record_not_read", upload_id=file_id, error=repr(exc))
            return True


async def rebuild_when_lost(redis: Redis, store: BlobStore, records: Records) -> None:
    """Record all files whenever this Redis does not have them, forever.

    One process does it at a time; two would only do it twice.
    """
    lock = RedisLock(redis, _LOCK, ttl_s=_LOCK_S)

    async def keep(_: float) -> None:
        await lock.keep()

    while True:
        try:
            if not await records.is_complete() and await lock.take():
                rebuilding = Rebuilding(store, records, on_batch=keep)
                await rebuilding.record_all()
                await records.mark_complete()
                log.info("records_rebuilt", files=rebuilding.found.files)
                await lock.drop()
        except REDIS_FAILURES as exc:  # OSError: of the store, too
            log.debug("records_not_rebuilt", error=repr(exc))
        await asyncio.sleep(_LOOK_S)
