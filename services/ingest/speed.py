"""How fast an upload comes in, smoothed so that a person can read it."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["SpeedMeter"]

_MEMORY_S: Final = 3.0
"""After so long an old rate weighs a third: calm to the eye, yet seconds behind a change."""

_LEAST_S: Final = 0.1
"""A rate over less says more about buffers than about the network."""


class SpeedMeter:
    """An exponentially weighted rate.

    Args:
        offset: Bytes there when the measurement begins.
        at: The time then, in seconds of a monotonic clock.

    """

    def __init__(self, offset: int, at: float) -> None:
        self._offset = offset
        self._at = at
        self._rate: float | None = None

    def advance(self, offset: int, at: float) -> float:
        """Return bytes per second, now that ``offset`` bytes are there; never negative."""
        elapsed = at - self._at
        if elapsed < _LEAST_S:
            return self._rate or 0.0
        rate = max(offset - self._offset, 0) / elapsed
        if self._rate is None:
            self._rate = rate
        else:
            weight = 1.0 - math.exp(-elapsed / _MEMORY_S)
            self._rate += weight * (rate - self._rate)
        self._offset, self._at = offset, at
        return self._rate
