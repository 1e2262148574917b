"""Lets those who wait for an upload know that its last byte is there, within this process."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

__all__ = ["Arrivals"]


class Arrivals:
    """Who waits for what. What completes in another process is not told here: look now and
    then.
    """

    def __init__(self) -> None:
        self._waiting: Final[dict[str, set[asyncio.Event]]] = {}

    def tell(self, upload_id: str) -> None:
        """Wake those who wait for an upload."""
        for one in self._waiting.get(upload_id, ()):
            one.set()

    def tell_all(self) -> None:
        """Wake everybody."""
        for upload_id in self._waiting:
            self.tell(upload_id)

    async def wait(self, upload_id: str, *, at_most_s: float) -> None:
        """Return when the upload is there, or the time is over."""
        arrived = asyncio.Event()
        self._waiting.setdefault(upload_id, set()).add(arrived)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(at_most_s):
                    await arrived.wait()
        finally:
            self._waiting[upload_id].discard(arrived)
            if not self._waiting[upload_id]:
                del self._waiting[upload_id]
