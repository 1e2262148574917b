"""Writes the newest positions into the projections: a hundred uploads in one call of a script.

Only what a position changes is written, unread: the script compares it with what is there. How
long a record is kept is not counted anew each time; the script tells which are due.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
from redis.asyncio import Redis

from services.gateway.keys import Keys
from services.gateway.positions import Newest
from shared.redis_cluster import is_cluster
from shared.redis_script import Call, RedisScript

__all__ = ["PositionWriter"]

_BATCH: Final = 100
"""Uploads at once: a millisecond of Redis's time."""
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

    async def write(self, newest: Newest) -> list[str]:
        """Write positions; return the uploads whose records are due to be kept longer.

        Raises:
            RedisError, OSError, EOFError: Redis is away, or refuses; some may be written.

        """
        due = await self._write("upload", newest.of_uploads())
        return due + await self._write("job", newest.of_jobs())

    async def _write(self, kind: str, rows: Mapping[bytes, tuple[str, ...]]) -> list[str]:
        due: list[str] = []
        for batch in _pieces(rows.items(), _BATCH):
            # The projections of a cluster are in as many slots.
            calls = _pieces(batch, 1) if is_cluster(self._redis) else [batch]
            named = [[(one.decode(), row) for one, row in call] for call in calls]
            replies = await self._script.run_all(
                self._redis, [self._call(kind, call) for call in named]
            )
            for call, numbers in zip(named, replies, strict=True):
                due += [call[number - 1][0] for number in numbers]
        return due

    def _call(self, kind: str, rows: list[tuple[str, tuple[str, ...]]]) -> Call:
        keys = [self._keys.upload(one) for one, _ in rows]
        return keys, (kind, self._least_ms, _pack([row for _, row in rows]))


_Row = tuple[bytes, tuple[str, ...]]


def _pieces(rows: Iterable[_Row], size: int) -> Iterator[list[_Row]]:
    rest = iter(rows)
    while piece := list(itertools.islice(rest, size)):
        yield piece
