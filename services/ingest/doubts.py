"""Reservations of which nobody knows whether Redis has made them.

A question that was not answered in time may still be on its way: Redis reads it when it goes
on, or the network delivers it when it can. The creation has failed by then, so what it reserved
is given back, again and again for as long as a late question may come. What is forgotten with
the process is found by the next recount.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from shared.events import UploadFacts

__all__ = ["Doubts"]

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 64.0
"""Together two minutes: that is how long a broken connection may hold bytes back."""
_LIMIT: Final = 10_000


class _Doubt(NamedTuple):
    facts: UploadFacts
    pause_s: float
    due_at: float


class Doubts:
    """Gives back what failed creations may have reserved.

    Args:
        give_back: Has an upload count nothing. Raises what it likes while it cannot.

    """

    def __init__(self, give_back: Callable[[str, UploadFacts], Awaitable[object]]) -> None:
        self._give_back: Final = give_back
        self._doubts: Final[dict[str, _Doubt]] = {}

    def __len__(self) -> int:
        return len(self._doubts)

    def add(self, upload_id: str, facts: UploadFacts) -> None:
        """Note that an upload, which there is none of, may count; returns at once."""
        if len(self._doubts) < _LIMIT:
            self._doubts[upload_id] = _Doubt(facts, _FIRST_PAUSE_S, 0.0)

    async def settle(self) -> None:
        """Give back what is due. Call it now and then; raises what ``give_back`` raises."""
        now = time.monotonic()
        due = [(one, what) for one, what in self._doubts.items() if what.due_at <= now]
        for upload_id, (facts, pause_s, _) in due:
            await self._give_back(upload_id, facts)
            if pause_s > _LONGEST_PAUSE_S:
                del self._doubts[upload_id]
            else:
                self._doubts[upload_id] = _Doubt(facts, 2 * pause_s, now + pause_s)
