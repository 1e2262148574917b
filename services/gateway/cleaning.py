"""Removes the progress of finished sessions, and what is left of those that Redis has dropped.

Done when an admin asks for it, for one tenant; and by itself every now and then, for all, by
one gateway at a time: the one that has the lock keeps it from round to round. Two that clean up
at once, for whatever reason, only share the work.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final, NoReturn

import msgspec
import structlog
from prometheus_client import Counter

from services.gateway.dismissal import Dismissals
from services.gateway.keys import LISTED
from services.gateway.projection import Projection
from services.gateway.sessions_index import Listed, SessionsIndex
from shared.redis_lock import RedisLock
from shared.streams import REDIS_FAILURES

__all__ = ["Cleaned", "Cleaner", "lock_s"]

log = structlog.stdlib.get_logger(__name__)

_KEPT_AWAY_S: Final = 60
"""How long no late event brings a removed session back; as after a deletion of the file."""
_ROUNDS_PER_LOCK: Final = 2.5
"""So many rounds may be missed before another gateway takes over."""
_MOST_AT_ONCE: Final = 10_000
"""Sessions of a tenant in one round; the next tenant has its turn after them."""

CLEANED = Counter("gateway_progress_cleaned_total", "Sessions cleaned up, by kind.", ["kind"])


class Cleaned(msgspec.Struct, frozen=True):
    """What cleaning up has come to."""

    removed: int = 0
    """Finished sessions whose progress was there."""
    stale: int = 0
    """Sessions of which there was no progress any more."""
    remaining: int = 0
    """Sessions that another call will look at."""


class Cleaner:
    """Cleans up.

    Args:
        index: Knows what there is.
        projection: Where it is recorded.
        dismissals: Removes it.
        ttl_s: ``PROGRESS_TTL_SECONDS``.
        batch: ``PROGRESS_BATCH_SIZE``: sessions that are removed in one go.

    """

    def __init__(
        self,
        index: SessionsIndex,
        projection: Projection,
        dismissals: Dismissals,
        *,
        ttl_s: int,
        batch: int,
    ) -> None:
        self._index: Final = index
        self._projection: Final = projection
        self._dismissals: Final = dismissals
        self._ttl_s: Final = ttl_s
        self._batch: Final = batch

    async def clean(
        self, tenant: str, *, older_than_s: float, limit: int = _MOST_AT_ONCE
    ) -> Cleaned:
        """Remove a tenant's finished sessions of which nothing was heard for so long.

        Raises:
            RedisError, OSError, EOFError: Redis is away. What was done stays done.

        """
        silence = dict.fromkeys(LISTED, min(older_than_s, self._ttl_s))
        silence["uploading"] = self._ttl_s
        removed = stale = looked_at = 0
        for status, for_s in silence.items():
            while looked_at < limit:
                size = min(self._batch, limit - looked_at)
                batch = await self._index.silent(tenant, status, for_s=for_s, limit=size)
                if not batch:
                    break
                looked_at += len(batch)
                done = await self._clean_batch(tenant, status, batch)
                removed, stale = removed + done.removed, stale + done.stale
        CLEANED.labels("removed").inc(removed)
        CLEANED.labels("stale").inc(stale)
        left = await self._index.silent_count(tenant, for_s=silence)
        return Cleaned(removed, stale, left)

    async def _clean_batch(self, tenant: str, status: str, batch: list[Listed]) -> Cleaned:
        """Remove what is over, forget what is gone; what is neither is not looked at again."""
        states = await self._projection.read_all(session for _, session in batch)
        over = [one for one in states.values() if one.is_over and one.status != "deleted"]
        alive = [one for one in batch if one[1] in states and not states[one[1]].is_over]
        known = {one.session_id for one in over} | {session for _, session in alive}
        gone = [one for one in batch if one[1] not in known]
        removed = await self._dismissals.dismiss(over, for_s=_KEPT_AWAY_S)
        await self._index.heard(tenant, status, alive)
        return Cleaned(sum(removed), await self._index.forget(tenant, status, gone))

    async def run(self, lock: RedisLock, *, every_s: float) -> NoReturn:
        """Clean up what Redis has dropped, of all tenants, for as long as the process lives.

        While Redis is away nothing is cleaned up; nothing is lost by that but time.
        """
        try:
            while True:
                await asyncio.sleep(every_s * random.uniform(0.9, 1.1))  # noqa: S311
                try:
                    if await lock.take():
                        await self._clean_all(lock)
                except REDIS_FAILURES as exc:
                    log.debug("cleaning_failed", error=repr(exc))
        finally:
            await _let_others(lock)

    async def _clean_all(self, lock: RedisLock) -> None:
        for tenant in await self._index.tenants():
            await lock.keep()
            done = await self.clean(tenant, older_than_s=self._ttl_s)
            if done.removed or done.stale:
                log.info("progress_cleaned", removed=done.removed, stale=done.stale)


def lock_s(every_s: float) -> float:
    """Return how long the lock of a killed gateway is waited for, in seconds."""
    return every_s * _ROUNDS_PER_LOCK


async def _let_others(lock: RedisLock) -> None:
    try:
        await lock.drop()
    except REDIS_FAILURES as exc:
        log.debug("cleaner_not_released", error=repr(exc))
