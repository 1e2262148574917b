"""Follows streams so that every reader sees every entry: what fan-out needs.

Plain XREAD with the cursors in memory. Work to be done once belongs to
``shared.stream_group``. Knows nothing of what an entry means.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis

from shared.streams import (
    BLOCK_MS,
    REDIS_FAILURES,
    Entry,
    command,
    entries_of,
    entry_order,
    pipelined,
    retry_delay,
)

__all__ = ["StreamTail"]

log = structlog.stdlib.get_logger(__name__)

_BATCH: Final = 500
_LOOK_S: Final = 1.0
_BEGINNING: Final = b"0-0"
READ = Counter("tail_entries_total", "Stream entries read for fan-out.")


class StreamTail:
    """Reads entries added after a fixed position, in the order of each stream.

    Args:
        redis: A client of its own, made by ``shared.streams.connect``: a blocking read must
            not hold a connection that others wait for.
        streams: Keys to follow; they need not exist.
        on_entries: Called with a key and its new entries. Must not raise.
        on_gap: Called after an outage, when entries may be missing, and when a wipe or a
            failover has taken a stream back. The positions are right again by then; states
            must be re-read.

    """

    def __init__(
        self,
        redis: Redis,
        streams: Iterable[str],
        *,
        on_entries: Callable[[str, list[Entry]], None],
        on_gap: Callable[[], None],
    ) -> None:
        self._redis: Final = redis
        self._streams: Final = list(streams)
        self._on_entries: Final = on_entries
        self._on_gap: Final = on_gap
        self._cursors: dict[str, bytes] = {}
        self._next_look = 0.0
        self.connected = False
        """Whether the last read worked."""

    async def start(self, after: Mapping[str, bytes] | None = None) -> None:
        """Fix where reading begins: after the given ids, else after each newest entry.

        A concrete id, never ``$``: Redis resolves ``$`` again at every read, so entries added
        between two reads would be skipped.

        Raises:
            RedisError, OSError: Redis is away (``REDIS_FAILURES``).

        """
        newest = await self._newest()
        self._cursors = {key: (after or {}).get(key, newest[key]) for key in self._streams}
        self.connected = True

    async def run(self) -> None:
        """Read forever; ``start`` must have been called. Cancel it to stop."""
        failures = 0
        while True:
            try:
                # Not only after an outage: a wipe breaks no connection.
                is_due = failures or time.monotonic() >= self._next_look
                if is_due and (await self._look_back() or failures):
                    self._on_gap()
                await self._read()
            except REDIS_FAILURES as exc:
                self.connected = False
                if failures == 0:
                    log.warning("tail_read_failed", error=repr(exc))
                delay = retry_delay(failures)
                failures += 1
                await asyncio.sleep(delay)
            else:
                if failures:
                    log.info("tail_read_recovered", failures=failures)
                    failures = 0

    async def _read(self) -> None:
        keys = list(self._cursors)
        cursors = [self._cursors[key] for key in keys]
        reply = await command(
            self._redis, "XREAD", "COUNT", _BATCH, "BLOCK", BLOCK_MS, "STREAMS", *keys, *cursors
        )
        self.connected = True
        for key, entries in entries_of(reply):
            self._cursors[key] = entries[-1][0]
            READ.inc(len(entries))
            self._on_entries(key, entries)
        # What came in one read is written in one turn; then the sockets have theirs.
        await asyncio.sleep(0)

    async def _look_back(self) -> bool:
        """Correct positions that are ahead of their stream; return whether one was.

        Then it is another history: after a wipe, or a failover to a server that is behind.
        """
        newest = await self._newest()
        went_back = False
        for key, cursor in self._cursors.items():
            if entry_order(newest[key]) < entry_order(cursor):
                self._cursors[key] = newest[key]
                if newest[key] != _BEGINNING:  # else it is empty, and read from its start
                    log.warning("tail_went_back", stream=key, cursor=cursor)
                    went_back = True
        self._next_look = time.monotonic() + _LOOK_S
        return went_back

    async def _newest(self) -> dict[str, bytes]:
        replies = await pipelined(
            self._redis, [("XREVRANGE", key, "+", "-", "COUNT", 1) for key in self._streams]
        )
        return {
            key: reply[0][0] if reply else _BEGINNING
            for key, reply in zip(self._streams, replies, strict=True)
        }
