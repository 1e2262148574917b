"""Time as the contract writes it: milliseconds since the epoch inside, RFC 3339 outside."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, TypeAlias

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
    minutes, seconds = divmod(seconds, 60)
    whole = f"{_minute(minutes)}:{seconds:02d}"
    return f"{whole}.{fraction:03d}Z" if fraction else f"{whole}Z"


@lru_cache(maxsize=4096)
def _minute(minutes: int) -> str:
    """Return the text of a minute: times that are written are mostly near one another."""
    return datetime.fromtimestamp(60 * minutes, UTC).isoformat(timespec="minutes")[:-6]
