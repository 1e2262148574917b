"""How long a body may keep a request waiting: rules about seconds and bytes, no I/O.

A silent client is let go after a while, and so is one that drips: bytes that come too slowly
hold a connection and the right to write just as silence does (security item 16). Slow but
honest links, bursts and pauses must survive. Therefore patience is a leaky bucket: time uses it
up, bytes earn it back, and it is never more than a window.
"""

from __future__ import annotations

import math

__all__ = ["Patience"]


class Patience:
    """What is left of it for one body.

    A body that brings the least rate on average never ends it, and neither does one that is
    faster and pauses for less than the window.

    Args:
        idle_s: Longest silence, in seconds.
        least_rate: Bytes per second that a body must bring on average; 0 asks for none.
        window_s: Seconds for which a body may bring nothing on account of the rate.
        now: The time, in seconds, on a clock that only goes forward.

    """

    def __init__(
        self, *, idle_s: float, least_rate: float, window_s: float, now: float
    ) -> None:
        self._idle_s = idle_s
        self._least_rate = least_rate
        self._window_s = window_s if least_rate else math.inf
        self._credit_s = self._window_s
        self._received = 0
        self._looked_at = self._heard_at = now

    def is_over(self, received: int, now: float) -> bool:
        """Tell whether the body has used it up. Call it now and then, in order of time.

        Args:
            received: Bytes of the body so far. When some came since the last call, they count
                as if they came now: a little more is forgiven, never less.
            now: The time.

        """
        came = received - self._received
        if came:
            self._received, self._heard_at = received, now
        if self._least_rate:
            spent = self._credit_s - (now - self._looked_at)
            self._credit_s = min(spent + came / self._least_rate, self._window_s)
        self._looked_at = now
        return self._credit_s < 0 or now - self._heard_at > self._idle_s
