"""Bytes that a disk thread takes where they come from, without the event loop in between.

One thread receives a piece and writes it at once, while it is in the processor's cache, through
a buffer that belongs to the thread: a stream costs no memory, and no page is touched for the
first time twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, Protocol, runtime_checkable

__all__ = ["Drawing", "Source", "piece_buffer"]

_PIECE: Final = 512 * 1024
"""Bytes of a buffer: half of the second-level cache of a usual core, so both copies find it
there, and what one write takes at most (``durable``)."""

Source = Callable[[memoryview], int]
"""Fills the beginning of a buffer, without waiting; returns how many bytes it were, 0 for none
now. Called in a disk thread. Must not raise: its errors would be taken for the disk's."""

_local: Final = threading.local()


@runtime_checkable
class Drawing(Protocol):
    """What writers have besides ``BlobWriter`` if their store is a disk of this machine."""

    async def draw(self, source: Source, most: int) -> None:
        """Append bytes of a source until it has none, and at most so many.

        If the caller is cancelled this raises only when nothing is under way any more;
        ``offset`` tells in any case how many bytes are there.

        Raises:
            OSError: As ``BlobWriter.write``. Bytes that the source had given are lost.

        """


def piece_buffer() -> memoryview:
    """Return the calling thread's own buffer."""
    if not hasattr(_local, "buffer"):
        _local.buffer = memoryview(bytearray(_PIECE))
    buffer: memoryview = _local.buffer
    return buffer
