"""Keeps the lifecycle streams short: by age, and never past what a group still needs."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog
from redis.asyncio import Redis

from shared.streams import REDIS_FAILURES, command, entry_order, event_stream, flat_dict

__all__ = ["trim_events", "trim_stream"]

log = structlog.stdlib.get_logger(__name__)

_EVERY_S: Final = 60.0
_KEPT_S: Final = 86_400.0
"""A day: longer than any reader is away without reading states anew."""


async def trim_events(redis: Redis, partitions: int) -> None:
    """Trim all lifecycle streams, forever."""
    while True:
        await asyncio.sleep(_EVERY_S)
        try:
            for partition in range(partitions):
                await trim_stream(redis, event_stream(partition), kept_s=_KEPT_S)
        except REDIS_FAILURES as exc:
            log.debug("trimming_failed", error=repr(exc))


async def trim_stream(redis: Redis, stream: str, *, kept_s: float) -> int:
    """Remove entries older than ``kept_s`` that every group has acknowledged.

    Returns how many went; Redis removes whole blocks, so some may stay longer.
    """
    if not await command(redis, "EXISTS", stream):
        return 0
    horizon = (int((time.time() - kept_s) * 1000), 0)
    for flat in await command(redis, "XINFO", "GROUPS", stream):
        group = flat_dict(flat)
        oldest = (await command(redis, "XPENDING", stream, group[b"name"]))[1]
        horizon = min(horizon, entry_order(oldest or group[b"last-delivered-id"]))
    removed: int = await command(
        redis, "XTRIM", stream, "MINID", "~", f"{horizon[0]}-{horizon[1]}"
    )
    return removed
