"""Which streams this gateway has to read: those of partitions that somebody here watches.

Whoever follows all uploads of a user needs the lifecycle events of every partition, since a
new upload may be in any; positions only of partitions with an upload that is watched. What
nobody needs any more lingers, because the next one to need it is often near. No I/O.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Final

from shared.streams import event_stream, partition_of, progress_stream

__all__ = ["Interest"]

_LINGER_S: Final = 30.0


class Interest:
    """Counts who needs what.

    Args:
        partitions: ``EVENT_PARTITIONS``.
        linger_s: How long a stream is wanted after it was last needed.

    """

    def __init__(self, *, partitions: int = 1, linger_s: float | None = None) -> None:
        self.changed: Final = asyncio.Event()
        """Set when something is needed that may not be read yet."""
        self._linger_s: Final = _LINGER_S if linger_s is None else linger_s
        self._partitions: Final = partitions
        self._watched: Final[Counter[int]] = Counter()
        self._ids: Final[set[bytes]] = set()
        self._followers = 0
        self._wanted_until: Final[dict[str, float]] = {}

    @property
    def ids(self) -> Collection[bytes]:
        """The uploads that are watched, as their ids stand in entries."""
        return self._ids

    def is_in(self, ids: Iterable[bytes]) -> bool:
        """Tell whether any of the uploads is watched."""
        return not self._ids.isdisjoint(ids)

    def watch(self, upload_id: str) -> None:
        """Need what is told of an upload; once for each upload."""
        self._ids.add(upload_id.encode())
        self._watched[partition_of(upload_id, self._partitions)] += 1
        self.changed.set()

    def unwatch(self, upload_id: str) -> None:
        """Need it no more."""
        partition = partition_of(upload_id, self._partitions)
        self._ids.discard(upload_id.encode())
        self._watched[partition] -= 1
        if not self._watched[partition]:
            del self._watched[partition]

    def follow(self) -> None:
        """Need the lifecycle events of all uploads; once for each follower."""
        self._followers += 1
        self.changed.set()

    def unfollow(self) -> None:
        """Need them no more."""
        self._followers -= 1

    def of(self, upload_id: str) -> list[str]:
        """Return the streams that tell of an upload."""
        partition = partition_of(upload_id, self._partitions)
        return [event_stream(partition), progress_stream(partition)]

    def of_all(self) -> list[str]:
        """Return the streams that tell of new uploads."""
        return [event_stream(one) for one in range(self._partitions)]

    def linger(self, streams: Iterable[str], now: float) -> None:
        """Want streams for a while, whoever needs them."""
        for stream in streams:
            self._wanted_until[stream] = now + self._linger_s

    def wanted(self, now: float) -> set[str]:
        """Return the streams to be read.

        Args:
            now: The time in seconds, of a clock that never goes back.

        """
        needed = set(self.of_all()) if self._followers else set()
        for partition in self._watched:
            needed |= {event_stream(partition), progress_stream(partition)}
        self.linger(needed, now)
        for stream in [one for one, until in self._wanted_until.items() if until <= now]:
            del self._wanted_until[stream]
        return needed | set(self._wanted_until)
