"""Which sessions a tenant has, by status: for statistics and cleaning up, without a scan.

One sorted set a tenant and status, scored by when the gateway recorded something last. That,
not the time of the event, is what the TTL of a projection counts from, so the score tells
which projections Redis has dropped by itself. The sets follow the projections by one pipeline;
what a crash leaves between the two is put right by the next event or by cleaning up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from redis.asyncio import Redis

from services.gateway.keys import LISTED, Keys, member_of, user_and_session
from services.gateway.state import ProgressState
from shared.redis_script import RedisScript
from shared.streams import Command, command, pipelined
from shared.times import now_ms

__all__ = ["NOTING", "Listed", "SessionsIndex"]

NOTING: Final = RedisScript(Path(__file__).with_name("sessions_index.lua"))
"""What ``SessionsIndex.noting`` calls."""
_NUMBERS: Final = {status: number for number, status in enumerate(LISTED, start=1)}

Listed = tuple[str, str]
"""A session as the sets name it: its user and its id."""


class SessionsIndex:
    """The sets of all tenants.

    Every method raises what Redis raises when it is away (``REDIS_FAILURES``).

    Args:
        redis: Client made by ``shared.streams.connect``.
        keys: Where they are.
        ttl_s: ``PROGRESS_TTL_SECONDS``.

    """

    def __init__(self, redis: Redis, keys: Keys, *, ttl_s: int) -> None:
        self._redis: Final = redis
        self._keys: Final = keys
        self._ttl_s: Final = ttl_s

    def noting(self, states: Iterable[ProgressState]) -> list[Command]:
        """Return what notes recorded states, deletions too, for ``run_mixed``."""
        pairs: dict[str, list[str | int]] = {}
        for one in states:
            of_tenant = pairs.setdefault(one.tenant, [])
            of_tenant += (
                member_of(one.user_id, one.session_id),
                _NUMBERS.get(one.status, 0),
            )
        return [part for tenant in pairs for part in self._noting(tenant, pairs[tenant])]

    def _noting(self, tenant: str, pairs: Sequence[str | int]) -> list[Command]:
        now, keys = now_ms(), self._all(tenant)
        return [
            NOTING.call(keys, now, self._ttl_s, *pairs),
            ("ZADD", self._keys.tenants, "GT", now, tenant),
            ("EXPIRE", self._keys.tenants, self._ttl_s),
        ]

    def _all(self, tenant: str) -> list[str]:
        return [self._keys.listed(tenant, status) for status in LISTED]

    async def counts(self, tenant: str) -> Mapping[str, int]:
        """Return how many sessions of each status there are."""
        found = await pipelined(
            self._redis,
            [("ZCOUNT", key, f"({self._gone()}", "+inf") for key in self._all(tenant)],
        )
        return dict(zip(LISTED, found, strict=True))

    async def newest(self, tenant: str, status: str, limit: int) -> list[Listed]:
        """Return the sessions of a status of which something was heard last."""
        key = self._keys.listed(tenant, status)
        found = await command(
            self._redis,
            *("ZRANGE", key, "+inf", f"({self._gone()}", "BYSCORE", "REV"),
            *("LIMIT", 0, limit),
        )
        return [user_and_session(one) for one in found]

    async def silent(
        self, tenant: str, status: str, *, for_s: float, limit: int
    ) -> list[Listed]:
        """Return the sessions of a status of which nothing was heard for so long."""
        key = self._keys.listed(tenant, status)
        until = now_ms() - int(for_s * 1000)
        found = await command(
            self._redis, "ZRANGE", key, "-inf", until, "BYSCORE", "LIMIT", 0, limit
        )
        return [user_and_session(one) for one in found]

    async def silent_count(self, tenant: str, *, for_s: Mapping[str, float]) -> int:
        """Return how many there are, each status with its own time of silence."""
        now = now_ms()
        found = await pipelined(
            self._redis,
            [
                ("ZCOUNT", self._keys.listed(tenant, status), "-inf", now - int(1000 * one))
                for status, one in for_s.items()
            ],
        )
        return sum(found)

    async def heard(self, tenant: str, status: str, sessions: Iterable[Listed]) -> None:
        """Count the silence of sessions anew from now."""
        now, key = now_ms(), self._keys.listed(tenant, status)
        pairs = [part for one in sessions for part in (now, member_of(*one))]
        if pairs:
            await command(self._redis, "ZADD", key, "XX", "GT", *pairs)

    async def forget(self, tenant: str, status: str, sessions: Iterable[Listed]) -> int:
        """Take sessions of which nothing is left out of their set, and out of their user's.

        Returns how many there were in the set.
        """
        chosen = list(sessions)
        if not chosen:
            return 0
        members = [member_of(*one) for one in chosen]
        removing: Command = ("ZREM", self._keys.listed(tenant, status), *members)
        users = [("SREM", self._keys.user(user), session) for user, session in chosen]
        return int((await pipelined(self._redis, [removing, *users]))[0])

    async def tenants(self) -> list[str]:
        """Return the tenants that may have sessions; drop those that surely have none."""
        gone: Command = ("ZREMRANGEBYSCORE", self._keys.tenants, "-inf", self._gone(2))
        every: Command = ("ZRANGE", self._keys.tenants, 0, -1)
        found = (await pipelined(self._redis, [gone, every]))[1]
        return [one.decode(errors="replace") for one in found]

    def _gone(self, times: int = 1) -> int:
        """Return since when a session must have been silent for Redis to have dropped it."""
        return now_ms() - times * self._ttl_s * 1000
