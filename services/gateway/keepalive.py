"""Finds sockets whose other end has gone: protocol pings, and a limit for the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from services.gateway.frames import PING

__all__ = ["Alive", "Keepalive"]


class Alive(Protocol):
    """A socket that can be pinged."""

    heard_at: float
    """When anything last came from the other end; the loop's clock, seconds."""
    asked_at: float | None
    """When a ping went out that is not answered yet."""

    def ping(self, frame: bytes) -> bool:
        """Write a ping and return True, unless what was written before is not drained yet."""


class Keepalive:
    """One timer for all sockets of a process.

    Args:
        interval_s: After so long without a sign of life a socket is pinged.
        timeout_s: After so long without an answer it is given up.
        on_dead: Called with a socket that is given up.

    """

    def __init__(
        self, *, interval_s: float, timeout_s: float, on_dead: Callable[[Alive], None]
    ) -> None:
        self._interval_s: Final = interval_s
        self._timeout_s: Final = timeout_s
        self._on_dead: Final = on_dead
        self._sockets: Final[set[Alive]] = set()

    def add(self, one: Alive) -> None:
        """Watch a socket."""
        self._sockets.add(one)

    def remove(self, one: Alive) -> None:
        """Watch it no more."""
        self._sockets.discard(one)

    async def run(self) -> None:
        """Look at all sockets now and then, forever."""
        loop = asyncio.get_running_loop()
        pause_s = min(self._interval_s, self._timeout_s) / 10
        while True:
            await asyncio.sleep(min(pause_s, 1.0))
            self.look(loop.time())

    def look(self, now: float) -> None:
        """Ping who has been silent, give up who has not answered."""
        for one in list(self._sockets):
            if one.asked_at is not None and one.heard_at >= one.asked_at:
                one.asked_at = None
            if one.asked_at is None:
                # A busy socket owes us to read; how long it may take is not decided here.
                if now - one.heard_at >= self._interval_s and one.ping(PING):
                    one.asked_at = now
            elif now - one.asked_at >= self._timeout_s:
                self._sockets.discard(one)
                self._on_dead(one)
