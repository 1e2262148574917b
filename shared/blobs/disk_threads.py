"""Threads for system calls that wait for a disk."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

__all__ = ["DiskThreads"]

T = TypeVar("T")


class DiskThreads:
    """A pool of so many threads."""

    def __init__(self, count: int) -> None:
        self._pool: Final = ThreadPoolExecutor(count, thread_name_prefix="disk")

    async def run(
        self, job: Callable[..., T], *args: object, undo: Callable[[T], object] | None = None
    ) -> T:
        """Run a blocking call in a thread, to its end even if the caller is cancelled.

        A cancelled caller must not close a file descriptor that a thread still writes to.
        What the call returned is then given to ``undo``, because nobody else gets it.
        """
        future = asyncio.get_running_loop().run_in_executor(self._pool, job, *args)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                with contextlib.suppress(asyncio.CancelledError):  # cancelled once more
                    await asyncio.wait([future])
            if future.exception() is None and undo is not None:
                undo(future.result())
            raise

    def close(self) -> None:
        """End the threads once their work is done. Blocks that long."""
        self._pool.shutdown(wait=True)
