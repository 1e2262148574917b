"""Messages that say only that a connection lives, in the dialects that have such.

One timer for all sockets: a socket costs a look now and then, and nothing of its own.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from services.gateway.dialects.protocol import Dialect

__all__ = ["Heartbeat", "Listening"]


class Listening(Protocol):
    """A socket whose client may expect heartbeats."""

    @property
    def dialect(self) -> Dialect:
        """What is spoken there."""

    @property
    def written_at(self) -> float:
        """When the last message went out to it; the loop's clock, seconds."""

    def beat(self, framed: bytes) -> None:
        """Write a heartbeat, unless older messages still wait."""


class Heartbeat:
    """The heartbeats of one process.

    Args:
        interval_s: A socket to which nothing went for so long gets one.

    """

    def __init__(self, *, interval_s: float) -> None:
        self._interval_s: Final = interval_s
        self._sockets: Final[dict[Dialect, set[Listening]]] = {}

    def add(self, one: Listening) -> None:
        """Watch a socket, if its dialect has heartbeats."""
        if one.dialect.heartbeat() is not None:
            self._sockets.setdefault(one.dialect, set()).add(one)

    def remove(self, one: Listening) -> None:
        """Watch it no more."""
        self._sockets.get(one.dialect, set()).discard(one)

    async def run(self) -> None:
        """Look at all sockets now and then, forever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(self._interval_s / 10, 1.0))
            self.look(loop.time())

    def look(self, now: float) -> None:
        """Let those hear something that have heard nothing for long."""
        latest = now - self._interval_s
        for dialect, sockets in self._sockets.items():
            silent = [one for one in sockets if one.written_at <= latest]
            message = dialect.heartbeat() if silent else None
            if message is not None:
                framed = dialect.framed(message)
                for one in silent:
                    one.beat(framed)
