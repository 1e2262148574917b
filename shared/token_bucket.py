"""A token bucket: so many requests a second, and a reserve for bursts. No I/O.

``shared/rate_limit.lua`` does the same sums in Redis.
"""

from __future__ import annotations

import math
import re
from typing import Final

import msgspec

__all__ = ["LIMIT_FORM", "Bucket", "Limit", "Verdict", "limit_of", "take"]

LIMIT_FORM: Final = r"^[1-9][0-9]{0,6}/s burst [1-9][0-9]{0,6}$"
"""How a limit is written in a setting."""


class Limit(msgspec.Struct, frozen=True):
    """How often something may happen."""

    rate: float
    """Per second, on average."""
    burst: int
    """At once, after a rest."""

    @property
    def window_s(self) -> int:
        """Seconds in which an empty bucket is full again, rounded up."""
        return math.ceil(self.burst / self.rate)


class Bucket(msgspec.Struct, frozen=True):
    """What one caller has left."""

    tokens: float
    at: float
    """When that was, in seconds."""


class Verdict(msgspec.Struct, frozen=True):
    """Whether a request may pass."""

    allowed: bool
    remaining: int
    """Requests that could follow at once."""
    wait_s: float
    """Seconds until the next one may; 0 when it is allowed."""


def limit_of(text: str) -> Limit:
    """Return the limit that a setting of the form ``LIMIT_FORM`` names."""
    rate, burst = re.findall("[0-9]+", text)
    return Limit(float(rate), int(burst))


def take(bucket: Bucket | None, limit: Limit, now: float) -> tuple[Bucket, Verdict]:
    """Take one token out of a bucket, if there is one.

    Args:
        bucket: As it was left; ``None`` is a full one.
        limit: Its size, and how fast it fills.
        now: The time, in seconds; one that goes back fills nothing.

    """
    tokens = float(limit.burst)
    if bucket is not None:
        tokens = min(tokens, bucket.tokens + max(now - bucket.at, 0.0) * limit.rate)
    if tokens < 1:
        return Bucket(tokens, now), Verdict(False, 0, (1 - tokens) / limit.rate)
    return Bucket(tokens - 1, now), Verdict(True, int(tokens - 1), 0.0)
