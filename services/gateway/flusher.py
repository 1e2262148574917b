"""When sockets are written to: once a turn, and again when those drain that have stalled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog
from prometheus_client import Counter

if TYPE_CHECKING:
    from services.gateway.outbound import Outbound

__all__ = ["SLOW_CHECK_S", "Flusher"]

log = structlog.stdlib.get_logger(__name__)

SLOW_CHECK_S: Final = 0.05
"""Sockets that have stalled are looked at so often."""
_AT_ONCE: Final = 500
"""Sockets that are written to before anything else gets its turn of the loop."""
_SOON_S: Final = 0.002
"""After it, and again after twice as long, a socket is looked at that is owed the rest of a
turn: one that reads has taken the first part by then."""

FLUSHED = Counter("gateway_writes_total", "Writes to sockets.")
BYTES = Counter("gateway_bytes_total", "Bytes of frames handed to sockets.")
FRAMES = Counter("gateway_frames_total", "Frames handed to sockets.")
CONFLATED = Counter("gateway_conflated_total", "Progress frames replaced by newer ones.")


class Flusher:
    """Writes, once a turn of the loop, to all sockets that are owed something.

    Args:
        loop: That of the sockets.
        stall_limit_s: A socket that has not drained for so long is given up.
        on_flushed: Called when all that was due is written.

    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        stall_limit_s: float,
        on_flushed: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop: Final = loop
        self._stall_limit_s: Final = stall_limit_s
        self._on_flushed: Final = on_flushed
        self._dirty: list[Outbound] = []
        self._stalled: set[Outbound] = set()
        self._timer: asyncio.TimerHandle | None = None
        # Counted here and told once a turn: a metric takes a lock, and there are many sockets.
        self.bytes = 0
        self.conflated = 0
        self.turn_at = loop.time()
        """When the last turn in which anything was written began; the loop's clock."""

    def now(self) -> float:
        """Return the time by the loop's clock, seconds."""
        return self._loop.time()

    @property
    def stalled(self) -> int:
        """Sockets that wait for their reader."""
        return len(self._stalled)

    def queued(self) -> list[int]:
        """Return how many frames wait for each of them."""
        return [one.queued for one in self._stalled]

    def add(self, outbound: Outbound) -> None:
        """Have a socket flushed at the end of this turn."""
        if not self._dirty:
            self._loop.call_soon(self._flush)
        self._dirty.append(outbound)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty[:_AT_ONCE], self._dirty[_AT_ONCE:]
        if self._dirty:  # a broadcast to thousands must not keep all others waiting
            self._loop.call_soon(self._flush)
        self.turn_at = self._loop.time()
        frames = writes = 0
        for outbound in dirty:
            written = _flushed(outbound)
            if written > 0:
                frames += written
                writes += 1
            elif written < 0:
                self._stall(outbound)
        self.count(frames, writes)
        if not self._dirty:
            self._on_flushed()

    def count(self, frames: int, writes: int = 1) -> None:
        """Count what was written; of many sockets at once, for a metric takes a lock."""
        FRAMES.inc(frames)
        FLUSHED.inc(writes)
        BYTES.inc(self.bytes)
        CONFLATED.inc(self.conflated)
        self.bytes = self.conflated = 0

    def expect_drain(self, outbound: Outbound) -> None:
        """Watch a socket that is owed nothing more, but has not drained."""
        if outbound.stalled_at is None:
            self._stall(outbound)

    def _stall(self, outbound: Outbound) -> None:
        """Look again soon: asyncio tells the protocol when a buffer drains, and only it."""
        outbound.stalled_at = self._loop.time()
        self._stalled.add(outbound)
        if self._timer is None:
            self._timer = self._loop.call_later(SLOW_CHECK_S, self._check_stalled)
        if outbound.is_cut:
            self._loop.call_later(_SOON_S, self._look_again, outbound, _SOON_S)

    def _look_again(self, outbound: Outbound, waited_s: float) -> None:
        if outbound not in self._stalled:
            return
        self.turn_at = self._loop.time()
        written = _flushed(outbound)
        if written >= 0:
            self._stalled.discard(outbound)
            self.count(written, 1 if written else 0)
        elif 2 * waited_s < SLOW_CHECK_S:
            self._loop.call_later(2 * waited_s, self._look_again, outbound, 2 * waited_s)

    def _check_stalled(self) -> None:
        self._timer = None
        now = self.turn_at = self._loop.time()
        frames = writes = 0
        for outbound in list(self._stalled):
            written = _flushed(outbound)
            if written >= 0:
                self._stalled.discard(outbound)
                frames += written
                writes += written > 0
            elif now - (outbound.stalled_at or now) > self._stall_limit_s:
                self._stalled.discard(outbound)
                outbound.give_up("time")
        self.count(frames, writes)
        self._on_flushed()
        if self._stalled:
            self._timer = self._loop.call_later(SLOW_CHECK_S, self._check_stalled)

    def forget(self, outbound: Outbound) -> None:
        """Stop watching a socket that has gone."""
        self._stalled.discard(outbound)


def _flushed(outbound: Outbound) -> int:
    """Flush a socket; one that is owed what cannot be encoded is given up, and no other."""
    try:
        return outbound.flush()
    except Exception:
        log.exception("not_encoded")
        outbound.give_up("fault")
        return 0
