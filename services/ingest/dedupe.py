"""Which file of a tenant has certain bytes: the index behind deduplication.

Keys ``dedupe:{tenant}:{sha256}`` (the tenant percent-encoded) hold the id of an upload. An
entry is made only of bytes that were received from that tenant, and hashed here. So who knows
a hash without having had the bytes finds nothing, and for another tenant's file exactly what
he finds for a file that is nowhere (security item 30).

The index is a hint: its answer is checked against the sidecar. While Redis is away nothing is
found, and uploads go on as if they were new. An emptied index is filled again with recent
uploads when the outboxes are published again, and with older ones as their bytes come once
more.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import quote

import msgspec
import structlog
from redis.asyncio import Redis

from shared import events
from shared.blobs.store import BlobStore, UploadNotFound
from shared.sidecar import Sidecar, SidecarDamaged
from shared.stream_group import GroupEntry
from shared.streams import REDIS_FAILURES, Command, command, pipelined

__all__ = ["Dedupe", "cached_result"]

log = structlog.stdlib.get_logger(__name__)

_PATIENCE_S: Final = 0.25
"""How long an answer waits for Redis, and after that how long nobody asks it again, times 8."""
_TICK_S: Final = 0.1
_BATCH: Final = 500
_PENDING_LIMIT: Final = 50_000
_KNOWN: Final = 2_000

_FORGET: Final = (
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end "
    "return 0"
)


def _key(tenant: str, sha256: str) -> str:
    return f"dedupe:{quote(tenant, safe='')}:{sha256}"


def _has(sidecar: Sidecar, tenant: str, sha256: str, size: int | None) -> bool:
    return (
        sidecar.status == "completed"
        and size in {None, sidecar.size}
        and sidecar.facts.tenant == tenant
        and sidecar.digests.get("sha256") == sha256
    )


async def cached_result(store: BlobStore, tenant: str, sha256: str) -> dict[str, Any] | None:
    """Return the finished analysis of a tenant's bytes, if there is one.

    It is kept beside the blobs as the note ``results/{tenant}.{sha256}``, a JSON object; the
    tenant stands there as its SHA-256, since it may hold any character. Whoever analyses a
    file writes it.
    """
    owner = hashlib.sha256(tenant.encode()).hexdigest()
    try:
        return msgspec.json.decode(
            await store.note(f"results/{owner}.{sha256}") or "null", type=dict[str, Any] | None
        )
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as exc:
        log.warning("result_not_read", error=repr(exc))
        return None


class Dedupe:
    """Finds and remembers files by their bytes.

    Args:
        redis: Client made by ``shared.streams.connect``.
        store: Where the files are.
        enabled: Whether there is deduplication at all.

    """

    def __init__(self, redis: Redis, store: BlobStore, *, enabled: bool) -> None:
        self.enabled: Final = enabled
        self._redis: Final = redis
        self._store: Final = store
        self._pending: Final[dict[str, Sidecar]] = {}
        self._quiet_until = 0.0
        self._known: Final[OrderedDict[str, Sidecar]] = OrderedDict()
        """Files by id, as they were: who has what does not change, only whether it is there."""

    async def find(
        self, tenant: str, sha256: str, size: int | None, *, fresh: bool = True
    ) -> Sidecar | None:
        """Return a file of the tenant that has these bytes; ``None`` if none is known.

        What declares no size has the digest alone to go by.

        Takes one question to Redis, found or not, and never fails.

        Args:
            tenant: Of the caller.
            sha256: Of the bytes, hex.
            size: How many they are, if that was told.
            fresh: Look whether the file is still there and whole; else the caller does that.

        """
        if not self.enabled or time.monotonic() < self._quiet_until:
            return None
        key = _key(tenant, sha256)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                reply = await command(self._redis, "GET", key)
        except REDIS_FAILURES as exc:
            self._quiet_until = time.monotonic() + 8 * _PATIENCE_S
            log.debug("dedupe_not_asked", error=repr(exc))
            return None
        if reply is None:
            return None
        upload_id = reply.decode("latin-1")
        known = None if fresh else self._known.get(upload_id)
        if known is not None and _has(known, tenant, sha256, size):
            return known
        found = await self._read(upload_id, tenant, sha256, size)
        if found is None:
            await self._forget(key, reply)
        return found

    async def _read(
        self, upload_id: str, tenant: str, sha256: str, size: int | None
    ) -> Sidecar | None:
        """Return the upload if it is a file of that tenant with these bytes."""
        try:
            stored = await self._store.read(upload_id)
        except (UploadNotFound, SidecarDamaged, OSError):
            return None
        is_whole = stored.visible and stored.offset == stored.sidecar.size
        if not is_whole or not _has(stored.sidecar, tenant, sha256, size):
            return None
        self._note(stored.sidecar)
        return stored.sidecar

    def _note(self, sidecar: Sidecar) -> None:
        self._known[sidecar.upload_id] = sidecar
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)

    async def forget(self, sidecar: Sidecar) -> None:
        """Drop the entry of a file that turned out to be gone; never fails."""
        self._known.pop(sidecar.upload_id, None)
        key = _key(sidecar.facts.tenant, sidecar.digests["sha256"])
        await self._forget(key, sidecar.upload_id.encode())

    async def _forget(self, key: str, entry: bytes) -> None:
        try:
            await command(self._redis, "EVAL", _FORGET, 1, key, entry)
        except REDIS_FAILURES as exc:
            log.debug("dedupe_not_forgotten", error=repr(exc))  # it is checked at each use

    def remember(self, sidecar: Sidecar) -> None:
        """Have a file entered soon, if its bytes were hashed; returns at once."""
        hashed = "sha256" in sidecar.digests and sidecar.status == "completed"
        if self.enabled and hashed and len(self._pending) < _PENDING_LIMIT:
            self._pending[sidecar.upload_id] = sidecar
            self._note(sidecar)

    async def run(self, on_duplicate: Callable[[str], None]) -> None:
        """Enter what is pending, now and then, forever.

        Args:
            on_duplicate: Called with the id of a file that another one turned out to have
                been entered before with the same bytes.

        """
        while True:
            await asyncio.sleep(_TICK_S)
            while self._pending:
                batch = [self._pending[one] for one in list(self._pending)[:_BATCH]]
                try:
                    await self._enter(batch, on_duplicate)
                except REDIS_FAILURES as exc:
                    log.debug("dedupe_not_entered", count=len(batch), error=repr(exc))
                    break
                for one in batch:
                    if self._pending.get(one.upload_id) is one:
                        del self._pending[one.upload_id]

    async def _enter(
        self, batch: Sequence[Sidecar], on_duplicate: Callable[[str], None]
    ) -> None:
        keys = [_key(one.facts.tenant, one.digests["sha256"]) for one in batch]
        commands: list[Command] = []
        for key, one in zip(keys, batch, strict=True):
            commands += [("SET", key, one.upload_id, "NX"), ("GET", key)]
        replies = await pipelined(self._redis, commands)
        for key, one, reply in zip(keys, batch, replies[1::2], strict=True):
            other = (reply or b"").decode("latin-1")
            if other in {"", one.upload_id, one.original_id}:
                continue
            facts, sha256 = one.facts, one.digests["sha256"]
            if await self._read(other, facts.tenant, sha256, facts.size or 0) is None:
                await pipelined(self._redis, [("SET", key, one.upload_id)])
            else:
                on_duplicate(one.upload_id)

    async def handle(self, batch: Sequence[GroupEntry]) -> None:
        """Drop the entries of files that were deleted.

        Raises:
            MalformedEvent, UnknownEvent: An entry is not as the contract says.

        """
        for entry in batch:
            event = events.decode(entry.fields.get(b"d", b""))
            if isinstance(event, events.FileDeleted) and event.upload.file_hash:
                key = _key(event.upload.tenant, event.upload.file_hash)
                await command(self._redis, "EVAL", _FORGET, 1, key, event.upload_id)
