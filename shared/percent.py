"""How much of an upload is there, as every answer, record and message tells it."""

from __future__ import annotations

__all__ = ["percent_of"]


def percent_of(offset: int, size: int | None, *, complete: bool) -> float:
    """Return percent, two decimals; exactly 100.0 when the upload is complete, never before.

    Args:
        offset: Bytes that are there.
        size: Declared length in bytes; ``None`` while it is deferred.
        complete: All bytes are safe and the upload is finished.

    """
    if complete:
        return 100.0
    return min(round(100.0 * offset / size, 2), 99.99) if size else 0.0
