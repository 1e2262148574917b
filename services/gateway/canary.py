"""An entry of our own, now and then, that must come back the way all entries come.

A Redis may answer every question while what is written does not reach this reader: a master
that was left behind by its failover, a connection that is dead on one side. Each gateway adds
heartbeats to one short stream that all of them read, and knows its own. When they stay away
the tail is told to connect anew, and the process calls itself degraded.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Final

import structlog
from prometheus_client import Gauge
from redis.asyncio import Redis

from services.gateway.keys import Keys
from shared.stream_order import TailEntry
from shared.stream_tail import StreamTail
from shared.streams import REDIS_FAILURES, pipelined

__all__ = ["Canary"]

log = structlog.stdlib.get_logger(__name__)

_EVERY_S: Final = 2.0
_LATE_S: Final = 8.0
_KEPT: Final = 100
_TTL_S: Final = 60

AGE = Gauge("gateway_canary_age_seconds", "Since the last heartbeat that came back was sent.")


class Canary:
    """Sends heartbeats and waits for them.

    Args:
        redis: Client made by ``shared.streams.connect``, not the tail's: one that fails must
            not hide that the other does.
        prefix: ``PROGRESS_PREFIX``.

    """

    def __init__(self, redis: Redis, *, prefix: str) -> None:
        self._redis: Final = redis
        self.stream: Final = Keys(prefix).canary
        self._name: Final = secrets.token_hex(8)
        self._seen_at = time.monotonic()
        self._unheard_since: float | None = None
        """When the first heartbeat was sent of those that have not come back."""
        AGE.set_function(lambda: self.age)

    @property
    def age(self) -> float:
        """Seconds since the last heartbeat that came back was sent."""
        return time.monotonic() - self._seen_at

    @property
    def is_late(self) -> bool:
        """Whether heartbeats have stayed away."""
        return self.age > _LATE_S

    def hear(self, entry: TailEntry) -> None:
        """Take note of a heartbeat, if it is one of ours."""
        if entry.fields.get(b"g") == self._name.encode():
            self._seen_at = max(self._seen_at, float(entry.fields[b"t"]))
            self._unheard_since = None

    async def run(self, tail: StreamTail) -> None:
        """Send, forever; have the tail connect anew when nothing comes back."""
        while True:
            try:
                await self._send()
                if self._stays_away():
                    log.warning("canary_stays_away", age_s=round(self.age, 1))
                    self._unheard_since = None
                    tail.reconnect()
            except REDIS_FAILURES as exc:
                log.debug("canary_not_sent", error=repr(exc))
            await asyncio.sleep(_EVERY_S)

    def _stays_away(self) -> bool:
        """Tell whether what Redis has taken for a while does not come back."""
        now = time.monotonic()
        if self._unheard_since is None:
            self._unheard_since = now
        return now - self._unheard_since > _LATE_S

    async def _send(self) -> None:
        said = ("g", self._name, "t", time.monotonic())
        await pipelined(
            self._redis,
            [
                ("XADD", self.stream, "MAXLEN", "~", _KEPT, "*", *said),
                ("EXPIRE", self.stream, _TTL_S),
            ],
        )
