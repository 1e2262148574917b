"""Lets sockets live no longer than they may, so that new processes get their share of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final, Protocol

__all__ = ["Lifetimes", "Mortal"]

_JITTER: Final = 0.1
"""Sockets that were opened together must not all come back together."""
_LOOKS: Final = 100
"""How often all are looked at within one lifetime."""


class Mortal(Protocol):
    """A socket that can be told to reconnect."""

    def close(self, code: int, reason: str) -> None:
        """Begin to close it; returns at once."""


class Lifetimes:
    """One timer for all sockets of a process.

    Args:
        most_s: Seconds that a socket may live, give or take a tenth; 0: forever.
        on_old: Called once with a socket that has lived long enough.

    """

    def __init__(self, *, most_s: float, on_old: Callable[[Mortal], None]) -> None:
        self._most_s: Final = most_s
        self._on_old: Final = on_old
        self._ends: Final[dict[Mortal, float]] = {}

    def add(self, one: Mortal, now: float) -> None:
        """Begin a lifetime at ``now``; the loop's clock, seconds."""
        if self._most_s:
            spread = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - no secret
            self._ends[one] = now + self._most_s * spread

    def remove(self, one: Mortal) -> None:
        """Forget a socket."""
        self._ends.pop(one, None)

    async def run(self) -> None:
        """Look at all sockets now and then, forever."""
        loop = asyncio.get_running_loop()
        pause_s = min(max(self._most_s / _LOOKS, 0.01), 1.0) if self._most_s else 3600.0
        while True:
            await asyncio.sleep(pause_s)
            self.look(loop.time())

    def look(self, now: float) -> None:
        """End those whose time has come."""
        for one in [one for one, end in self._ends.items() if end <= now]:
            del self._ends[one]
            self._on_old(one)
