"""The lifecycle events of the last minutes, for as long as a projection may lag behind them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple

from services.gateway.folding import counter_of, fold
from services.gateway.state import ProgressState
from shared.events import JobEvent, LifecycleEvent

__all__ = ["Recent"]

_KEEP_S: Final = 120.0
_LIMIT: Final = 50_000
_LIMIT_OF_ONE: Final = 16
"""Events of one upload; the newest are kept. It has about ten in its life."""


class _Remembered(NamedTuple):
    at: float
    owner: tuple[str, str]
    events: list[LifecycleEvent]


class Recent:
    """Events by upload. All of an upload's recent ones, since each may tell what no other does.

    Args:
        keep_s: How long after its last event an upload is remembered.
        limit: Events of all uploads together; the longest silent ones go first.

    """

    def __init__(self, *, keep_s: float = _KEEP_S, limit: int = _LIMIT) -> None:
        self._keep_s: Final = keep_s
        self._limit: Final = limit
        self._count = 0
        self._uploads: Final[OrderedDict[str, _Remembered]] = OrderedDict()
        self._by_owner: Final[dict[tuple[str, str], set[str]]] = {}

    def __len__(self) -> int:
        """Return how many events are remembered."""
        return self._count

    def remember(self, event: LifecycleEvent) -> None:
        """Keep an event unless it is known; forget those that are too old or too many."""
        now = time.monotonic()
        owner = (event.upload.tenant, event.upload.user_id)
        known = self._forget(event.upload_id)
        told = known.events if known is not None else []
        if all(counter_of(one) != counter_of(event) for one in told):
            told = sorted([*told, event], key=counter_of)[-_LIMIT_OF_ONE:]
        self._uploads[event.upload_id] = _Remembered(now, owner, told)
        self._by_owner.setdefault(owner, set()).add(event.upload_id)
        self._count += len(told)
        while self._uploads:
            oldest = next(iter(self._uploads))
            if self._count <= self._limit and now - self._uploads[oldest].at <= self._keep_s:
                break
            self._forget(oldest)

    def _forget(self, upload_id: str) -> _Remembered | None:
        known = self._uploads.pop(upload_id, None)
        if known is not None:
            self._count -= len(known.events)
            of_owner = self._by_owner[known.owner]
            of_owner.discard(upload_id)
            if not of_owner:
                del self._by_owner[known.owner]
        return known

    def of(self, *, tenant: str, user_id: str) -> Iterable[str]:
        """Return the uploads of a user that are remembered."""
        return tuple(self._by_owner.get((tenant, user_id), ()))

    def is_ahead_of(self, upload_id: str, seq: int) -> bool:
        """Whether the upload itself has an event that comes after ``seq``."""
        known = self._uploads.get(upload_id)
        told = known.events if known is not None else ()
        return any(one.seq > seq and not isinstance(one, JobEvent) for one in told)

    def newer(self, upload_id: str, recorded: ProgressState | None) -> ProgressState | None:
        """Return what is recorded with what is remembered and newer folded in."""
        known = self._uploads.get(upload_id)
        state = recorded
        for event in known.events if known is not None else ():
            state = fold(state, event) or state
        return state
