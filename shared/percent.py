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
    if not size:
        return 0.0
    hundredths = (20_000 * offset + size) // (2 * size)  # a third of what round() takes
    return hundredths / 100 if hundredths < 10_000 else 99.99
