"""How much a user, and a tenant, may keep here: bytes, and uploads that are open.

Each upload is counted from its creation with the length that it declares, so that however many
are opened at once, they cannot pass a limit together; without a length it is counted as its
bytes come. Bytes count until the upload is gone or has failed, a complete file's until it is
deleted; parts that were joined count as the whole, not beside it. One script does it in one
step (``quotas.lua``), and sets what an upload counts for rather than adding to it, so repeating
it is harmless. What is made of a file, its artifacts, counts for nobody: workers decide what
that is, not users.

The counts are in Redis and derived from the store. What could not be written there comes with
the upload's events, and a Redis that has forgotten them gets them counted anew; until then, and
while Redis is away, nothing new is admitted, and what runs goes on. Without limits there are no
counts, and Redis is not asked.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
import structlog
from prometheus_client import Counter
from redis.asyncio import Redis

from services.ingest import usage
from services.ingest.doubts import Doubts
from services.ingest.errors import QuotaExceeded
from services.ingest.settings import Settings
from services.ingest.usage import Usage
from services.ingest.writers import Lease
from shared import events
from shared.errors import RateLimited, Unavailable
from shared.events import UploadFacts
from shared.lifecycle import TaskSet
from shared.redis_script import RedisScript
from shared.sidecar import Sidecar
from shared.stream_group import GroupEntry
from shared.streams import REDIS_FAILURES

__all__ = ["COUNTED", "TENANTS", "QuotaLimits", "Quotas", "quota_limits", "tenant_key"]

log = structlog.stdlib.get_logger(__name__)

REFUSED = Counter("ingest_over_quota_total", "Refused for a quota.", ["what"])

TENANTS: Final = "ingest:{quota}:t:*"
"""What the keys of all tenants look like."""

COUNTED: Final = "ingest:{quota}:counted"
"""There once all uploads have been counted in this Redis. The braces keep all keys of quotas in
one slot, since one script touches several."""

_SCRIPT: Final = RedisScript(Path(__file__).with_suffix(".lua"))
_PATIENCE_S: Final = 2.0
_STEP: Final = 64 * 1024 * 1024
"""Bytes that are counted ahead while nobody knows how many will come."""
_LEAST_STEP: Final = 256 * 1024
"""Near the limit the steps are smaller, down to this one. An upload may pass the limit by what
comes in the time of such a step."""
_OPEN_RETRY_S: Final = 60


class QuotaLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits; 0 is none."""

    user_bytes: int = 0
    tenant_bytes: int = 0
    user_open: int = 0
    tenant_open: int = 0

    def __bool__(self) -> bool:
        return any(msgspec.structs.astuple(self))


def quota_limits(settings: Settings) -> QuotaLimits:
    """Return the limits that are set."""
    return QuotaLimits(
        user_bytes=settings.quota_bytes_per_user,
        tenant_bytes=settings.quota_bytes_per_tenant,
        user_open=settings.quota_open_uploads_per_user,
        tenant_open=settings.quota_open_uploads_per_tenant,
    )


def _digest(name: str) -> str:
    """Return a form of a user's or tenant's id without spaces, braces and surprises."""
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


def tenant_key(tenant: str) -> str:
    """Return the key of all counts of a tenant."""
    return TENANTS.replace("*", _digest(tenant))


class Quotas:
    """Counts uploads against the limits.

    Args:
        redis: Client made by ``shared.streams.connect``.
        limits: Of each user and each tenant.

    """

    def __init__(self, redis: Redis, limits: QuotaLimits) -> None:
        self._redis: Final = redis
        self._limits: Final = limits
        self._tasks: Final = TaskSet("quotas")
        self.doubts: Final = Doubts(self._give_back)
        """What may count though nobody wants it."""

    @property
    def enabled(self) -> bool:
        """Whether there is any limit."""
        return bool(self._limits)

    async def set(
        self,
        mode: str,
        upload_id: str,
        facts: UploadFacts,
        what: Usage,
        parts: Sequence[str] = (),
    ) -> str:
        """Run the script; see there for the modes, what it returns, and why it has the parts.

        Raises:
            TimeoutError, RedisError, OSError: Redis is away.

        """
        user = _digest(facts.user_id)
        return await self._run(tenant_key(facts.tenant), mode, upload_id, user, what, *parts)

    async def forget(self, key: str, upload_id: str) -> None:
        """Count an upload of the tenant with this key no more.

        Raises:
            TimeoutError, RedisError, OSError: Redis is away.

        """
        await self._run(key, "settle", upload_id, "", usage.NOTHING)

    async def _run(
        self, key: str, mode: str, upload_id: str, user: str, what: Usage, *parts: str
    ) -> str:
        limits = self._limits
        async with asyncio.timeout(_PATIENCE_S):
            reply: bytes = await _SCRIPT.run(
                self._redis,
                [key, COUNTED],
                *(mode, upload_id, user, what.bytes, what.open),
                *(limits.user_bytes, limits.user_open),
                *(limits.tenant_bytes, limits.tenant_open),
                *dict.fromkeys(parts),
            )
        return reply.decode()

    async def reserve(
        self,
        upload_id: str,
        facts: UploadFacts,
        count: int,
        *,
        parts: Sequence[str] = (),
        is_new: bool = False,
    ) -> None:
        """Count an open upload for so many bytes, if there is room for them.

        Args:
            upload_id: The upload.
            facts: Whose it is.
            count: All its bytes, those too that are there.
            parts: The uploads that it joins; what they count for makes room for it.
            is_new: It is created only if this succeeds, and counts nothing otherwise.

        Raises:
            QuotaExceeded: It would be too many bytes.
            RateLimited: Too many uploads are open.
            Unavailable: Redis is away, or does not know all uploads yet.

        """
        if not self.enabled:
            return
        try:
            said = await self.set("reserve", upload_id, facts, Usage(count, 1), parts)
        except (TimeoutError, *REDIS_FAILURES) as exc:
            log.warning("quota_not_reserved", error=repr(exc))
            if is_new:  # Redis may have done it all the same, or may do it yet
                self.doubts.add(upload_id, facts)
            raise Unavailable("Quotas cannot be checked just now. Try again.") from exc
        if said == "uncounted":
            raise Unavailable("What is stored is being counted. Try again.", retry_after=2)
        if said != "ok":
            REFUSED.labels(said).inc()
            log.info("over_quota", upload_id=upload_id, what=said)
        if said == "bytes":
            raise QuotaExceeded("There is no room for so many bytes. Delete some files first.")
        if said == "open":
            raise RateLimited(
                "Too many uploads are open. Finish or cancel some of them first.",
                retry_after=_OPEN_RETRY_S,
                error_code="TOO_MANY_OPEN_UPLOADS",
            )

    @asynccontextmanager
    async def reserved(self, sidecar: Sidecar, count: int) -> AsyncIterator[None]:
        """Count a new upload for so many bytes; undo it if its creation fails.

        Raises:
            QuotaExceeded, RateLimited, Unavailable: As ``reserve``.

        """
        upload_id, facts = sidecar.upload_id, sidecar.facts
        await self.reserve(upload_id, facts, count, parts=sidecar.parts, is_new=True)
        try:
            yield
        except BaseException:
            if not await self._note(upload_id, facts, usage.NOTHING):
                self.doubts.add(upload_id, facts)
            raise

    async def _give_back(self, upload_id: str, facts: UploadFacts) -> None:
        await self.set("settle", upload_id, facts, usage.NOTHING)

    async def settle(self, sidecar: Sidecar, offset: int) -> None:
        """Count an upload as it is now; never fails, since its events say it again."""
        what = usage.of(sidecar, offset)
        await self._note(sidecar.upload_id, sidecar.facts, what, sidecar.parts)

    async def _note(
        self, upload_id: str, facts: UploadFacts, what: Usage, parts: Sequence[str] = ()
    ) -> bool:
        """Set what an upload counts for; return whether Redis has it."""
        if not self.enabled:
            return True
        try:
            await self.set("settle", upload_id, facts, what, parts)
        except (TimeoutError, *REDIS_FAILURES) as exc:
            log.debug("quota_not_settled", upload_id=upload_id, error=repr(exc))
            return False
        return True

    @asynccontextmanager
    async def growing(
        self, lease: Lease, length: int | None, *, known: bool
    ) -> AsyncIterator[Callable[[int], None]]:
        """Count the bytes of a body ahead, while an upload has no length; else do nothing.

        Yields what is to be told each offset. The count is corrected at the end.

        Args:
            lease: The right to write; it is asked to let go when there is no room for more.
            length: Bytes of the body, if they are known.
            known: Whether the upload's length comes with the request.

        Raises:
            QuotaExceeded: There is no room. What came before is kept.
            Unavailable: As ``reserve``; only before the first byte.

        """
        writer = lease.writer
        if not self.enabled or known or writer.sidecar.size is not None:
            yield lambda _: None
            return
        growth = _Growth(self, lease, self._tasks)
        await growth.begin(length)
        try:
            yield growth.advance
        finally:
            await self._tasks.join()
            await self.settle(writer.sidecar, writer.offset)
        if growth.refused is not None:
            raise growth.refused

    async def handle(self, batch: Sequence[GroupEntry]) -> None:
        """Settle what events tell of: storage deletes files, and other processes end uploads.

        Raises:
            MalformedEvent, UnknownEvent: An entry is not as the contract says.
            TimeoutError, RedisError, OSError: Redis is away; the entries come again.

        """
        if not self.enabled:
            return
        for entry in batch:
            event = events.decode(entry.fields.get(b"d", b""))
            what = usage.after(event)
            if what is not None:
                await self.set("settle", event.upload_id, event.upload, what)


class _Growth:
    """Reserves ahead of one body, behind its back."""

    def __init__(self, quotas: Quotas, lease: Lease, tasks: TaskSet) -> None:
        self._quotas: Final = quotas
        self._lease: Final = lease
        self._tasks: Final = tasks
        self._reserved = 0
        self._step = _STEP
        self._asking = False
        self.refused: QuotaExceeded | None = None

    async def begin(self, length: int | None) -> None:
        """Reserve what is known to come, or else a first step."""
        start = self._lease.writer.offset
        if length is None:
            await self._reserve_step(start)
        else:
            self._step = 0
            await self._reserve(start + length)

    def advance(self, offset: int) -> None:
        """Reserve the next step once half of the last one is used."""
        if self._step and not self._asking and offset > self._reserved - self._step // 2:
            self._asking = True
            self._tasks.start(self._go_on(offset))

    async def _go_on(self, offset: int) -> None:
        try:
            await self._reserve_step(offset)
        except QuotaExceeded as exc:
            self.refused = exc
            self._lease.ask("quota")
        except Unavailable:
            pass  # what runs goes on; it is counted when it ends, or by a recount
        finally:
            self._asking = False

    async def _reserve_step(self, offset: int) -> None:
        while True:
            try:
                return await self._reserve(offset + self._step)
            except QuotaExceeded:
                if self._step <= _LEAST_STEP:
                    raise
                self._step //= 4

    async def _reserve(self, count: int) -> None:
        sidecar = self._lease.writer.sidecar
        await self._quotas.reserve(sidecar.upload_id, sidecar.facts, count)
        self._reserved = count
