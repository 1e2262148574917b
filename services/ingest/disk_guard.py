"""Keeps the disk from filling up: refuses what would not fit before its bytes are sent.

A full disk costs no acknowledged byte, but everybody's uploads stop. Therefore some room stays
free: uploads that would pass it are not begun, and bodies not taken. What several bodies bring
at the same time may still pass it; then the disk itself refuses.
"""

from __future__ import annotations

import asyncio
import math
import os
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import Gauge

from shared.errors import StorageFull

__all__ = ["DiskGuard"]

log = structlog.stdlib.get_logger(__name__)

FREE = Gauge("ingest_disk_free_bytes", "Room that is left on the disk of the uploads.")

_LOOK_S: Final = 1.0


class DiskGuard:
    """Knows how much room there is, as of a moment ago.

    Args:
        root: A folder on the disk; ``None``: the store has no disk, and everything fits.
        least_free: Bytes that must stay free; 0 asks for none, and looks at no length either.
        most_percent: How full the disk may become, in percent of what this user can have;
            100 is no limit.

    """

    def __init__(self, root: Path | None, *, least_free: int, most_percent: float) -> None:
        self._root: Final = root
        self._least_free: Final = least_free
        self._most_percent: Final = most_percent
        self._room: float | None = None
        """Bytes that may still come; ``None`` while it is not known."""

    @property
    def is_full(self) -> bool:
        """Whether nothing more is taken."""
        return self._room is not None and self._room < 0

    def admit(self, count: int) -> None:
        """Return if so many bytes fit.

        Raises:
            StorageFull: They do not.

        """
        if self._room is not None and count > self._room:
            log.warning("disk_guarded", wanted=count, room=self._room)
            raise StorageFull("There is no room for so many bytes. Try again later.")

    async def watch(self) -> None:
        """Look at the disk now and then, forever."""
        while True:
            if self._root is not None:
                try:
                    # In a thread: a network file system may hang.
                    look = await asyncio.to_thread(os.statvfs, self._root)
                except OSError as exc:
                    self._room = None
                    log.error("disk_not_seen", error=repr(exc))
                else:
                    self._note(look)
            await asyncio.sleep(_LOOK_S)

    def _note(self, look: os.statvfs_result) -> None:
        free = look.f_bavail * look.f_frsize
        used = (look.f_blocks - look.f_bfree) * look.f_frsize
        allowed = (used + free) * self._most_percent / 100
        was_full = self.is_full
        by_bytes = free - self._least_free if self._least_free else math.inf
        by_percent = allowed - used if self._most_percent < 100 else math.inf
        self._room = min(by_bytes, by_percent)
        FREE.set(free)
        if self.is_full and not was_full:
            log.warning("disk_is_full", free=free)
