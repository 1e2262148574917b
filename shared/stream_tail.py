"""Follows streams so that every reader sees every entry: what fan-out needs.

Plain XREAD with the cursors in memory; streams are joined and left while it runs. Work to be
done once belongs to ``shared.stream_group``. Knows nothing of what an entry means.

While it is quiet a read waits in Redis, and an entry is handed on at once. Under load reads
are paced, so that each brings many entries: most of all those that bring what nobody waits
for, since a read costs Redis, too, for each reader and stream. A cluster is asked slot by
slot, all at once, in short ticks: no command may wait in more than one slot.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, Final

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis

from shared.redis_cluster import by_slot, is_cluster
from shared.stream_order import TailEntry, in_order
from shared.streams import (
    BLOCK_MS,
    REDIS_FAILURES,
    Command,
    command,
    entries_of,
    entry_order,
    pipelined,
    retry_delay,
)

__all__ = ["BEGINNING", "Begin", "StreamTail", "newest"]

log = structlog.stdlib.get_logger(__name__)

BEGINNING: Final = b"0-0"
_BATCH: Final = 500
_LEAST: Final = 4
_LONG_S: Final = 0.05
"""As long as handling what was read may keep others from their turn of the loop."""
_LOOK_S: Final = 1.0
_BEHIND_MS: Final = 1_000
_LONGEST_RETRY_S: Final = 0.5
"""So that all have caught up soon after Redis is back."""
_WANTED_S: Final = 0.01
"""From a read that brought what somebody waits for to the next one, under load. If handling it
takes longer, there is no rest, and what comes meanwhile is read together: a core that has time
reads often, a busy one reads much at once."""
_UNWANTED_S: Final = 0.05
"""From a read that brought nothing of that kind."""
_CREDIT_S: Final = 0.2
"""Rests that may be left out after a silence."""
_CLUSTER_TICK_S: Final = 0.01
_SENT_S: Final = 0.002
"""Before Python 3.12 a cancellation that meets the end of a sending is swallowed. Joins that
come together also share one interruption."""

READ = Counter("tail_entries_total", "Stream entries read for fan-out.")
TRIMMED = Counter("tail_trimmed_total", "Times when entries were trimmed unread.")

Begin = Callable[[Collection[str]], Awaitable[Mapping[str, bytes]]]


async def newest(redis: Redis, streams: Collection[str]) -> dict[str, bytes]:
    """Return the id of each stream's newest entry."""
    replies = await pipelined(
        redis, [("XREVRANGE", key, "+", "-", "COUNT", 1) for key in streams]
    )
    return {
        key: reply[0][0] if reply else BEGINNING
        for key, reply in zip(streams, replies, strict=True)
    }


class StreamTail:
    """Reads entries added after fixed positions.

    Args:
        redis: A client of its own, made by ``shared.streams.connect``: a blocking read must
            not hold a connection that others wait for.
        on_entries: Called with all entries of a read (``shared.stream_order``); returns
            whether somebody waits for such. Must not raise.
        on_gap: Called after an outage, when entries may be missing, and when a wipe, a
            failover or trimming has taken some away. The positions are right again by then;
            states must be re-read.
        begin: Returns the ids after which streams are read, when they are joined, and when
            their history has become another one. The newest ids unless it is given.

    """

    def __init__(
        self,
        redis: Redis,
        *,
        on_entries: Callable[[list[TailEntry]], bool],
        on_gap: Callable[[], None],
        begin: Begin | None = None,
    ) -> None:
        self._redis: Final = redis
        self._on_entries: Final = on_entries
        self._on_gap: Final = on_gap
        self._begin: Final = begin or partial(newest, redis)
        self._cursors: Final[dict[str, bytes]] = {}
        self._joined: Final = asyncio.Event()
        self._waiting: asyncio.Timeout | None = None
        """Around a read that waits in Redis."""
        self._due = 0.0
        """When, by the pace, the next read is due; may be long past."""
        self._next_look = 0.0
        self._failures = 0
        self._count = _BATCH
        """Entries of a stream that are read at once."""
        self.connected = False
        """Whether the last read worked."""

    @property
    def streams(self) -> Collection[str]:
        """Those that are followed."""
        return self._cursors.keys()

    def position(self, stream: str) -> bytes:
        """Return the id up to which entries of a stream have been handed over."""
        return self._cursors.get(stream, BEGINNING)

    async def join(self, streams: Iterable[str]) -> None:
        """Follow more streams; what is added to them after this returns is surely read.

        A concrete position, never ``$``: Redis resolves ``$`` again at every read, so entries
        added between two reads would be skipped. The streams need not exist.

        Raises:
            RedisError, OSError: Redis is away (``REDIS_FAILURES``).

        """
        missing = [key for key in streams if key not in self._cursors]
        if not missing:
            return
        for key, position in (await self._begin(missing)).items():
            self._cursors.setdefault(key, position)
        self.connected = self.connected or not self._failures
        self._joined.set()
        self._interrupt()

    def leave(self, streams: Iterable[str]) -> None:
        """Follow streams no more."""
        for key in streams:
            self._cursors.pop(key, None)

    def reconnect(self) -> None:
        """Give up the connection that a read waits on, and count what it may have missed."""
        self._next_look = 0.0
        self._interrupt()
        self._on_gap()

    def _interrupt(self) -> None:
        """Begin the read that waits anew; redis-py drops the connection that it waits on."""
        if self._waiting is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(_SENT_S, self._end_waiting, self._waiting)

    def _end_waiting(self, waiting: asyncio.Timeout) -> None:
        if waiting is self._waiting:
            self._waiting = None
            waiting.reschedule(asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Read forever, what is joined before or meanwhile. Cancel it to stop."""
        while True:
            try:
                # Not only after an outage: a wipe breaks no connection.
                is_due = self._failures or time.monotonic() >= self._next_look
                if is_due and (await self._look_back() or self._failures):
                    self._on_gap()
                await self._read()
            except REDIS_FAILURES as exc:
                self.connected = False
                if self._failures == 0:
                    log.warning("tail_read_failed", error=repr(exc))
                delay = retry_delay(self._failures, longest_s=_LONGEST_RETRY_S)
                self._failures += 1
                await asyncio.sleep(delay)
            else:
                if self._failures:
                    log.info("tail_read_recovered", failures=self._failures)
                    self._failures = 0

    async def _read(self) -> None:
        cursors = dict(self._cursors)
        if not cursors:
            self._joined.clear()
            await self._joined.wait()
            return
        reply = await (self._poll(cursors) if is_cluster(self._redis) else self._wait(cursors))
        self.connected = True
        # What was left meanwhile, and perhaps joined again from elsewhere, is read no more.
        told = [
            (key, entries)
            for key, entries in entries_of(reply)
            if self._cursors.get(key) == cursors[key]
        ]
        batch, is_wanted = in_order(told, self._count), False
        self._cursors.update(batch.cursors)
        if batch.entries:
            READ.inc(len(batch.entries))
            began = time.monotonic()
            is_wanted = self._on_entries(batch.entries)
            self._fit(time.monotonic() - began, is_full=batch.is_cut)
        # What came in one read is written in one turn; then the sockets have theirs.
        await asyncio.sleep(0)
        if batch.entries and not batch.is_cut:
            await self._pace(_WANTED_S if is_wanted else _UNWANTED_S)

    def _fit(self, took_s: float, *, is_full: bool) -> None:
        """Read less at once when handling holds up the loop, and more while there is time.

        An entry may hold one position or a thousand, so their number alone is no bound.
        """
        if took_s > _LONG_S:
            self._count = max(int(self._count * _LONG_S / took_s / 2), _LEAST)
        elif is_full and took_s < _LONG_S / 4:
            self._count = min(self._count * 2, _BATCH)

    async def _wait(self, cursors: Mapping[str, bytes]) -> Any:
        """Return what is new, or nothing after a while or an interruption."""
        waiting = self._waiting = asyncio.timeout(None)
        try:
            async with waiting:
                return await command(
                    self._redis,
                    *("XREAD", "COUNT", self._count, "BLOCK", BLOCK_MS),
                    *("STREAMS", *cursors, *cursors.values()),
                )
        except TimeoutError:
            if not waiting.expired():
                raise
            return None
        finally:
            self._waiting = None

    async def _poll(self, cursors: Mapping[str, bytes]) -> Any:
        """Return what is new on a cluster, or nothing after a tick."""
        commands: list[Command] = [
            ("XREAD", "COUNT", self._count, "STREAMS", *keys, *(cursors[key] for key in keys))
            for keys in by_slot(cursors)
        ]
        reply = [one for part in await pipelined(self._redis, commands) for one in part or ()]
        if not reply:
            await asyncio.sleep(_CLUSTER_TICK_S)
        return reply

    async def _pace(self, rest_s: float) -> None:
        now = time.monotonic()
        self._due = max(self._due, now - _CREDIT_S) + rest_s
        if self._due > now:  # once: a timer that is early by a millisecond does no harm
            await asyncio.sleep(self._due - now)

    async def _look_back(self) -> bool:
        """Correct positions that are ahead of their stream; return whether entries are missing.

        A stream that is behind has another history: after a wipe, or a failover to a server
        that was behind. One that begins after the position was trimmed past it.
        """
        cursors = dict(self._cursors)
        last = await newest(self._redis, cursors)
        lag = {key: _lag(cursors[key], last[key]) for key in cursors}
        gone_back = [key for key in cursors if lag[key] < (0, 0)]
        behind = [key for key in cursors if lag[key] > (_BEHIND_MS, 0)]
        is_missing = bool(behind) and await self._is_trimmed(cursors, behind)
        # An empty stream will be read from its start.
        refilled = [key for key in gone_back if last[key] != BEGINNING]
        begin = await self._begin(refilled) if refilled else {}
        for key in gone_back:
            if self._cursors.get(key) == cursors[key]:
                self._cursors[key] = begin.get(key, BEGINNING)
        if refilled:
            log.warning("tail_went_back", streams=refilled)
        self._next_look = time.monotonic() + _LOOK_S
        return is_missing or bool(refilled)

    async def _is_trimmed(self, cursors: Mapping[str, bytes], behind: list[str]) -> bool:
        """Tell whether the first entry of a stream that is read late comes after its position.

        That may be no loss, if what was trimmed had been read; nothing tells, so it counts.
        """
        replies = await pipelined(
            self._redis, [("XRANGE", key, "-", "+", "COUNT", 1) for key in behind]
        )
        trimmed = [
            key
            for key, reply in zip(behind, replies, strict=True)
            if reply and cursors[key] != BEGINNING
            if entry_order(reply[0][0]) > entry_order(cursors[key])
        ]
        if trimmed:
            TRIMMED.inc()
            log.warning("tail_was_overtaken", streams=trimmed)
        return bool(trimmed)


def _lag(cursor: bytes, last: bytes) -> tuple[int, int]:
    """Return how far ``last`` is ahead, in milliseconds and numbers; negative if behind."""
    (at, number), (last_at, last_number) = entry_order(cursor), entry_order(last)
    return last_at - at, last_number - number
