"""Writes the newest positions into the projections: a hundred uploads in one call of a script.

Only what a position changes is written, unread: the script compares it with what is there. How
long a record is kept is not counted anew each time; the script tells which are due.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from redis.asyncio import Redis

from services.gateway.keys import Keys
from services.gateway.positions import Newest, Row, Rows, further
from shared.redis_cluster import is_cluster
from shared.redis_script import Call, RedisScript

__all__ = ["PositionWriter"]

_BATCH: Final = 100
"""Uploads at once: a millisecond of Redis's time."""
_ROUNDS: Final = 3
"""So often a position is tried again whose upload is not recorded yet."""
_OLDEST_MS: Final = 60_000
_OLDEST_SHARE: Final = 8
_pack: Final = msgspec.msgpack.Encoder().encode


class PositionWriter:
    """Writes positions; what is recorded and newer stays.

    Args:
        redis: Client made by ``shared.streams.connect``.
        keys: Where the projections are.
        ttl_s: ``PROGRESS_TTL_SECONDS``.

    """

    def __init__(self, redis: Redis, keys: Keys, *, ttl_s: int) -> None:
        self._redis: Final = redis
        self._keys: Final = keys
        self._script: Final = RedisScript(Path(__file__).with_name("positions.lua"))
        ttl_ms = 1000 * ttl_s
        self._least_ms: Final = ttl_ms - min(ttl_ms // _OLDEST_SHARE, _OLDEST_MS)
        """A record that has less left is due to be kept longer."""
        self._early: Final[dict[str, dict[str, _Early]]] = {"upload": {}, "job": {}}

    async def write(self, newest: Newest) -> list[str]:
        """Write positions; return the uploads whose records are due to be kept longer.

        Those of uploads that are not recorded yet are written with the next ones, or with
        those after them: another stream tells that an upload was created. One call at a time.

        Raises:
            RedisError, OSError, EOFError: Redis is away, or refuses; some may be written.

        """
        due = await self._write("upload", newest.of_uploads())
        return due + await self._write("job", newest.of_jobs())

    async def _write(self, kind: str, told: Rows) -> list[str]:
        early, due = self._early[kind], []
        waiting: dict[str, _Early] = {}
        rounds = {one: known.rounds for one, known in early.items()}
        # An entry that another gateway left behind may tell less than what waits.
        rows = further({one: known.row for one, known in early.items()}, told)
        for batch in _pieces(rows.items(), _BATCH):
            # The projections of a cluster are in as many slots.
            calls = list(_pieces(batch, 1)) if is_cluster(self._redis) else [batch]
            replies = await self._script.run_all(
                self._redis, [self._call(kind, call) for call in calls]
            )
            for call, (aged, unknown) in zip(calls, replies, strict=True):
                due += [call[number - 1][0] for number in aged]
                for upload_id, row in (call[number - 1] for number in unknown):
                    left = rounds.get(upload_id, _ROUNDS)
                    if left:
                        waiting[upload_id] = _Early(row, left - 1)
        self._early[kind] = waiting
        return due

    def _call(self, kind: str, rows: list[tuple[str, Row]]) -> Call:
        keys = [self._keys.upload(one) for one, _ in rows]
        return keys, (kind, self._least_ms, _pack([row.texts for _, row in rows]))


class _Early(NamedTuple):
    """A position of an upload that was not recorded."""

    row: Row
    rounds: int
    """How often it is tried again."""


def _pieces(rows: Iterable[tuple[str, Row]], size: int) -> Iterator[list[tuple[str, Row]]]:
    rest = iter(rows)
    while piece := list(itertools.islice(rest, size)):
        yield piece
