"""Time as the contract writes it: milliseconds since the epoch inside, RFC 3339 outside."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Final, TypeAlias

import msgspec

__all__ = ["Timestamp", "now_ms", "rfc3339"]

Timestamp: TypeAlias = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
"""A time as ``rfc3339`` writes it."""


def now_ms() -> int:
    """Return the wall clock, UTC, in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def rfc3339(at_ms: float) -> str:
    """Return e.g. ``2026-01-01T12:00:00.250Z``; whole seconds have no fraction."""
    seconds, fraction = divmod(int(at_ms), 1000)
    return _second(seconds) + _ENDS[fraction]


_ENDS: Final = ("Z", *(f".{fraction:03d}Z" for fraction in range(1, 1000)))


@lru_cache(maxsize=8192)
def _second(seconds: int) -> str:
    """Return the text of a second: times that are written are mostly near one another."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")[:-6]
