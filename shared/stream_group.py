"""Reads streams as a consumer group: each entry is handled once, by one of the members.

At least once, to be exact: an entry is acknowledged after it was handled, and what a dead
member left behind is claimed by another one. An entry that fails again and again, or cannot
be read at all, goes to the dead-letter stream ``dead:<group>`` with the reason.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import structlog
from prometheus_client import Counter
from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from shared.events import MalformedEvent, UnknownEvent
from shared.redis_cluster import by_slot, is_cluster
from shared.streams import (
    BLOCK_MS,
    REDIS_FAILURES,
    Command,
    command,
    entries_of,
    entry_of,
    flat_dict,
    pipelined,
    retry_delay,
)

__all__ = ["GroupEntry", "StreamGroup"]

log = structlog.stdlib.get_logger(__name__)

_BATCH: Final = 200
_DEAD_LETTERS: Final = 10_000
_FORGET_CONSUMER_MS: Final = 3_600_000
_LONGEST_RETRY_S: Final = 0.5
"""So that all is handled soon after Redis is back."""
_CLUSTER_TICK_S: Final = 0.05
_NEW, _OWN = ">", "0"

_NOT_THE_ENTRY: Final = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.OutOfMemoryError,
    redis_errors.ReadOnlyError,
    redis_errors.ClusterError,
    redis_errors.RedisClusterException,
)
"""What a handler raises when Redis cannot work at all: no entry is to blame for it."""

HANDLED = Counter("group_entries_total", "Entries handled.", ["group"])
DEAD = Counter("group_dead_letters_total", "Entries given up.", ["group"])
LOST = Counter("group_trimmed_total", "Pending entries that were trimmed away.", ["group"])


class GroupEntry(NamedTuple):
    """One entry to handle."""

    stream: str
    id: bytes
    fields: dict[bytes, bytes]


Handle = Callable[[Sequence[GroupEntry]], Awaitable[None]]


class StreamGroup:
    """One member of a consumer group.

    Args:
        redis: A client of its own, made by ``shared.streams.connect``.
        group: Name of the group; it is made, from the first entry on, where it is missing.
        streams: Keys to read.
        handle: Handles a batch, or raises. It must be idempotent. When it raises for a batch,
            the entries are handed over one by one, so that one bad entry spoils no other.
            ``MalformedEvent`` gives an entry up at once; ``UnknownEvent`` skips it. While
            Redis is away or full, the batch is tried until it is back.
        min_idle_s: After so long without an answer an entry is claimed from its member.
            Longer than the slowest handling, or it is done twice.
        max_deliveries: Tries before an entry is given up.
        pace_s: Least time from one read to the next, unless there is more than one read brings:
            what comes meanwhile is handled together, and when nothing has come, nothing is
            handed over as well. 0: an entry is handled at once.

    """

    def __init__(
        self,
        redis: Redis,
        *,
        group: str,
        streams: Iterable[str],
        handle: Handle,
        min_idle_s: float = 30.0,
        max_deliveries: int = 5,
        pace_s: float = 0.0,
    ) -> None:
        self._redis: Final = redis
        self._group: Final = group
        self._streams: Final = list(streams)
        self._handle: Final = handle
        self._min_idle_ms: Final = int(min_idle_s * 1000)
        self._max_deliveries: Final = max_deliveries
        self._pace_s: Final = pace_s
        self._consumer: Final = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self._next_claim = 0.0
        self._owes = False
        """Whether entries may have been taken by a reply that never came."""
        self._in_hand: Sequence[GroupEntry] = ()
        """Taken from the streams, but not done with: Redis went away meanwhile."""

    async def run(self) -> None:
        """Read and handle forever. Cancel it to stop; what is pending is claimed by others."""
        failures = 0
        prepared = False
        while True:
            try:
                if not prepared:
                    await self.prepare()
                    prepared = True
                await self._process(self._in_hand)
                await self._claim_when_due()
                if self._owes:
                    await self._read(_OWN)
                    self._owes = False
                await self._read(_NEW)
                failures = 0
            except ResponseError as exc:
                # NOGROUP, UNBLOCKED: the streams were deleted under us (a wiped Redis), or one
                # of progress has run out, with its group, as it does when all is quiet.
                if failures == 0:
                    is_usual = str(exc).startswith(("NOGROUP", "UNBLOCKED the stream key"))
                    tell = log.info if is_usual else log.warning
                    tell("group_read_refused", group=self._group, error=str(exc))
                prepared = False
                await self._pause(failures)
                failures += 1
            except REDIS_FAILURES as exc:
                if failures == 0:
                    log.warning("group_read_failed", group=self._group, error=repr(exc))
                prepared = False  # who knows which Redis answers next
                self._owes = True
                await self._pause(failures)
                failures += 1

    async def prepare(self) -> None:
        """Make the group on each stream that lacks it."""
        commands: list[Command] = [
            ("XGROUP", "CREATE", key, self._group, "0", "MKSTREAM") for key in self._streams
        ]
        for reply in await pipelined(self._redis, commands, raise_on_error=False):
            # A full Redis makes no group, but lets those be read that are there. That must go
            # on: what is not acknowledged cannot be trimmed.
            if isinstance(reply, redis_errors.OutOfMemoryError):
                continue
            if isinstance(reply, Exception) and "BUSYGROUP" not in str(reply):
                raise reply

    async def _pause(self, failures: int) -> None:
        await asyncio.sleep(retry_delay(failures, longest_s=_LONGEST_RETRY_S))

    async def _read(self, after: str) -> None:
        """Handle what is new, or what is pending with this member."""
        polled, began = is_cluster(self._redis) or self._pace_s > 0, time.monotonic()
        replies = await (self._poll(after) if polled else self._wait(after))
        refusal = next((one for one in replies if isinstance(one, Exception)), None)
        found = [
            one
            for reply in replies
            if not isinstance(reply, Exception)
            for one in entries_of(reply)
        ]
        await self._process(
            [
                GroupEntry(key, entry_id, fields)
                for key, entries in found
                for entry_id, fields in entries
                if fields  # else it was trimmed; the claim counts it
            ]
        )
        if refusal is not None:
            raise refusal
        if polled and after == _NEW:
            if self._pace_s and not found:
                await self._handle([])
            if not any(len(entries) == _BATCH for _, entries in found):
                rest_s = self._pace_s - (time.monotonic() - began)
                await asyncio.sleep(max(rest_s, 0 if found else _CLUSTER_TICK_S))

    async def _wait(self, after: str) -> list[Any]:
        until_claim_ms = int((self._next_claim - time.monotonic()) * 1000)
        block_ms = min(max(until_claim_ms, 1), BLOCK_MS)  # 0 would be forever
        return [await command(self._redis, *self._reading(self._streams, after, block_ms))]

    async def _poll(self, after: str) -> list[Any]:
        """Ask without waiting; a cluster slot by slot: no command may name more than one."""
        groups = by_slot(self._streams) if is_cluster(self._redis) else [self._streams]
        commands = [self._reading(keys, after) for keys in groups]
        return await pipelined(self._redis, commands, raise_on_error=False)

    def _reading(self, keys: Sequence[str], after: str, block_ms: int = 0) -> Command:
        block = ("BLOCK", block_ms) if block_ms else ()
        return (
            *("XREADGROUP", "GROUP", self._group, self._consumer, "COUNT", _BATCH, *block),
            *("STREAMS", *keys, *([after] * len(keys))),
        )

    async def _process(self, batch: Sequence[GroupEntry]) -> None:
        """Handle and acknowledge; when Redis goes away, the rest is kept for its return."""
        self._in_hand = batch
        if batch:
            await self._handle_together(batch)
        self._in_hand = ()

    async def _handle_together(self, batch: Sequence[GroupEntry]) -> None:
        try:
            await self._handle(batch)
        except _NOT_THE_ENTRY:
            raise
        except Exception as exc:
            if len(batch) == 1:
                await self._failed(batch[0], exc)
            else:
                for entry in batch:
                    await self._handle_together([entry])
            return
        await self._acknowledge(batch)

    async def _acknowledge(self, entries: Sequence[GroupEntry]) -> None:
        ids: dict[str, list[bytes | str]] = {}
        for one in entries:
            ids.setdefault(one.stream, []).append(one.id)
        commands: list[Command] = [
            ("XACK", key, self._group, *known) for key, known in ids.items()
        ]
        await pipelined(self._redis, commands)
        HANDLED.labels(self._group).inc(len(entries))

    async def _failed(self, entry: GroupEntry, exc: Exception) -> None:
        if isinstance(exc, UnknownEvent):
            log.debug("event_skipped", group=self._group, entry=entry.id, tag=str(exc))
            await self._acknowledge([entry])
        elif isinstance(exc, MalformedEvent):
            await self._give_up(entry, str(exc))
        elif await self._deliveries(entry) >= self._max_deliveries:
            await self._give_up(entry, repr(exc))
        else:
            log.warning("event_failed", group=self._group, entry=entry.id, exc_info=exc)

    async def _deliveries(self, entry: GroupEntry) -> int:
        reply = await command(
            self._redis, "XPENDING", entry.stream, self._group, entry.id, entry.id, 1
        )
        return int(reply[0][3]) if reply else 1

    async def _give_up(self, entry: GroupEntry, reason: str) -> None:
        log.error("event_given_up", group=self._group, entry=entry.id, reason=reason[:500])
        fields = [part for pair in entry.fields.items() for part in pair]
        where = ("stream", entry.stream, "id", entry.id, "reason", reason[:500])
        key = f"dead:{self._group}"
        await command(
            self._redis, "XADD", key, "MAXLEN", "~", _DEAD_LETTERS, "*", *where, *fields
        )  # first and alone: a full Redis would refuse it, but not the acknowledgement
        await command(self._redis, "XACK", entry.stream, self._group, entry.id)
        DEAD.labels(self._group).inc()

    async def _claim_when_due(self) -> None:
        """Take over what members left behind that do not answer any more."""
        if time.monotonic() < self._next_claim:
            return
        for key in self._streams:
            cursor = b"0-0"
            while True:
                reply = await command(
                    self._redis,
                    *("XAUTOCLAIM", key, self._group, self._consumer),
                    *(self._min_idle_ms, cursor, "COUNT", _BATCH),
                )
                cursor = reply[0]
                await self._retry(key, reply[1], len(reply[2]))
                if cursor == b"0-0":
                    break
        await self._forget_dead_consumers()
        self._next_claim = time.monotonic() + max(self._min_idle_ms / 2000, 0.05)

    async def _retry(self, key: str, entries: Sequence[Any], deleted: int) -> None:
        if deleted:
            LOST.labels(self._group).inc(deleted)
            log.error("pending_entries_trimmed", group=self._group, stream=key, count=deleted)
        for raw in entries:
            entry = GroupEntry(key, *entry_of(raw))
            if await self._deliveries(entry) > self._max_deliveries:
                await self._give_up(entry, "no member that had it came back with an answer")
            else:
                await self._process([entry])

    async def _forget_dead_consumers(self) -> None:
        """Remove members that have been silent for an hour and owe nothing."""
        replies = await pipelined(
            self._redis, [("XINFO", "CONSUMERS", key, self._group) for key in self._streams]
        )
        gone: list[Command] = []
        for key, consumers in zip(self._streams, replies, strict=True):
            for flat in consumers:
                one = flat_dict(flat)
                if one[b"pending"] == 0 and one[b"idle"] > _FORGET_CONSUMER_MS:
                    gone.append(("XGROUP", "DELCONSUMER", key, self._group, one[b"name"]))
        if gone:
            await pipelined(self._redis, gone)
