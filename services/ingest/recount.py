"""Counts what is stored against quotas, for a Redis that does not know it.

After a wipe, when another Redis is plugged in, when a limit is set for the first time, and
after each restart of Redis or once a day, since some counts may have been lost. One process
does it at a time, slowly.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Final

import structlog
from redis.asyncio import Redis

from services.ingest import usage
from services.ingest.form import total_chunks_of
from services.ingest.quotas import COUNTED, TENANTS, Quotas, tenant_key
from services.ingest.turns import Turn, TurnLost, turn_at
from services.ingest.usage import Usage
from shared.blobs.store import BlobStore, Stored, UploadNotFound
from shared.sidecar import SidecarDamaged
from shared.streams import REDIS_FAILURES, pipelined, server_runs

__all__ = ["Recount"]

log = structlog.stdlib.get_logger(__name__)

_FRESH: Final = "ingest:{quota}:fresh"
_LOCK: Final = "ingest:{quota}:lock"
_LOCK_S: Final = 60.0
_LOOK_S: Final = 1.0
_DAY_S: Final = 86_400
_BATCH: Final = 200
_PAUSE_S: Final = 0.02
"""Between two batches: counting must not be what the store is busy with."""
_BEING_CREATED_S: Final = 600
"""So long a count without an upload is left alone: the upload may be on its way."""
_FAILURES: Final = (TimeoutError, *REDIS_FAILURES, TurnLost)


class Recount:
    """Looks whether Redis knows all uploads, and counts them if not.

    Args:
        redis: Client made by ``shared.streams.connect``.
        store: Where the uploads are.
        quotas: Sets the counts.
        lifetime_s: Seconds that parts stay which were joined.

    """

    def __init__(
        self, redis: Redis, store: BlobStore, quotas: Quotas, *, lifetime_s: float
    ) -> None:
        self._redis: Final = redis
        self._store: Final = store
        self._quotas: Final = quotas
        self._lifetime_s: Final = lifetime_s

    async def watch(self) -> None:
        """Count whenever it is needed, forever; without limits it never is."""
        while True:
            if self._quotas.enabled:
                try:
                    await self._quotas.doubts.settle()
                    await self.run_if_needed()
                except _FAILURES as exc:
                    log.debug("not_counted", error=repr(exc))
            await asyncio.sleep(_LOOK_S)

    async def run_if_needed(self) -> bool:
        """Count if this Redis was not counted in lately; return whether it was done.

        Raises:
            RedisError, OSError: Redis is away, or the store.
            TurnLost: Another process does it.

        """
        if await self._is_fresh():
            return False
        async with turn_at(self._redis, _LOCK, ttl_s=_LOCK_S) as turn:
            if turn is None or await self._is_fresh():
                return False
            server = await self._server()
            count = await self._count(turn)
            await pipelined(
                self._redis, [("SET", COUNTED, 1), ("SET", _FRESH, server, "EX", _DAY_S)]
            )
            log.info("quotas_counted", uploads=count)
            return True

    async def _is_fresh(self) -> bool:
        """Tell whether this run of this Redis has been counted in, not long ago."""
        counted, fresh = await pipelined(self._redis, [("GET", COUNTED), ("GET", _FRESH)])
        return counted is not None and fresh == (await self._server()).encode()

    async def _server(self) -> str:
        return await server_runs(self._redis)

    async def _count(self, turn: Turn) -> int:
        batch: list[Stored] = []
        finals: list[str] = []
        recent = time.time() - self._lifetime_s
        known: Counter[str] = Counter()
        async for stored in self._store.walk():
            if usage.of(stored.sidecar, stored.offset) != usage.NOTHING:
                known[tenant_key(stored.sidecar.facts.tenant)] += 1
                batch.append(stored)
                if stored.sidecar.is_final and stored.modified_at > recent:
                    finals.append(stored.sidecar.upload_id)
            if len(batch) == _BATCH:
                await self._correct(batch)
                batch.clear()
                await turn.keep()
                await asyncio.sleep(_PAUSE_S)
        await self._correct(batch)
        for final_id in finals:  # their parts, which count by now, count as them
            await self._count_one(final_id)
            await turn.keep()
        async for key in self._redis.scan_iter(match=TENANTS):
            await self._drop_unknown(key.decode(), known[key.decode()])
            await turn.keep()
        return known.total()

    async def _correct(self, batch: Sequence[Stored]) -> None:
        replies = await pipelined(
            self._redis,
            [
                ("HGET", tenant_key(one.sidecar.facts.tenant), f"r:{one.sidecar.upload_id}")
                for one in batch
            ],
        )
        for stored, reply in zip(batch, replies, strict=True):
            if not _agrees(stored, reply):
                await self._count_one(stored.sidecar.upload_id)

    async def _count_one(self, upload_id: str) -> None:
        """Count an upload as it is now: it has changed since, or was not counted.

        Looking again afterwards keeps an upload that ends meanwhile from being counted for
        ever: what settles its end may have come before.
        """
        with contextlib.suppress(UploadNotFound, SidecarDamaged):
            stored = await self._store.read(upload_id)
            sidecar = stored.sidecar
            offset = stored.offset
            if sidecar.status == "created" and total_chunks_of(sidecar):
                offset += sum(one.size for one in await self._store.chunks(upload_id))
            what = usage.of(sidecar, offset)
            await self._quotas.set("count", upload_id, sidecar.facts, what, sidecar.parts)
            try:
                await self._store.read(upload_id)
            except UploadNotFound:
                await self._quotas.set("settle", upload_id, sidecar.facts, usage.NOTHING)

    async def _drop_unknown(self, key: str, known: int) -> None:
        """Remove counts without an upload, if there are more counts than uploads."""
        records = [one async for one in self._records(key)]
        if len(records) <= known:
            return
        before = time.time() - _BEING_CREATED_S
        for upload_id in (one for one, counted_at in records if counted_at < before):
            try:
                stored = await self._store.read(upload_id)
            except UploadNotFound:
                await self._quotas.forget(key, upload_id)
            else:
                if usage.of(stored.sidecar, stored.offset) == usage.NOTHING:
                    await self._quotas.forget(key, upload_id)

    async def _records(self, key: str) -> AsyncIterator[tuple[str, int]]:
        """Yield the uploads that count in a tenant, or as another; and since when."""
        for kind in ("r:", "p:"):
            async for field, value in self._redis.hscan_iter(key, match=f"{kind}*", count=1000):
                yield field.decode().removeprefix(kind), int(value.split()[3])


def _agrees(stored: Stored, reply: bytes | None) -> bool:
    """Tell whether a count is right; without a length it may run ahead of the bytes."""
    if reply is None:
        return False
    counted = Usage(*map(int, reply.split()[:2]))
    wanted = usage.of(stored.sidecar, stored.offset)
    grows = wanted.open and stored.sidecar.size is None
    return counted == wanted or bool(grows and counted.open and counted.bytes >= wanted.bytes)
