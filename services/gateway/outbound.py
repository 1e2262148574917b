"""What one socket is still owed, and when it is written.

A socket is written to only while its transport has nothing queued, and all that is due to it
in one turn of the loop goes out in one write. For a socket that does not drain, of progress
and of first states only what they are about is kept; lifecycle frames queue, in order, up to a
bound. So a slow reader costs a bounded amount of memory and slows nobody down.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Final

from prometheus_client import Counter

from services.gateway.dialects.protocol import Dialect
from services.gateway.flusher import SLOW_CHECK_S, Flusher
from services.gateway.kernel_queue import keep_kernel_queue_short
from services.gateway.owed import Owed, Source, all_due, due

__all__ = ["Outbound"]

_MAX_QUEUED_FRAMES: Final = 1024
_MAX_QUEUED_BYTES: Final = 192 * 1024
_FRAME_COST: Final = 128
"""Bytes that a queued frame takes besides its own, so that small ones are not for nothing."""

SLOW = Counter("gateway_slow_total", "Sockets given up as too slow, by bound.", ["bound"])

_numbers = itertools.count()


class Outbound:
    """The frames that wait for one socket.

    Args:
        transport: Of the socket, after its handshake is out.
        flusher: Shared by all sockets of the loop.
        on_slow: Called once, when the bound is passed or nothing drained for too long.
        dialect: What is spoken; makes one write of several frames.
        send: Writes to the socket, unless something is queued there: then it returns False.
            ``None``: by the transport.

    """

    __slots__ = (
        *("_dialect", "_dirty", "_finished", "_flusher", "_frame", "_frames", "_key"),
        *("_on_slow", "_queued_bytes", "_queued_frames", "_send", "_slow", "_transport"),
        *("is_cut", "stalled_at", "written_at"),
    )

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        flusher: Flusher,
        on_slow: Callable[[], None],
        dialect: Dialect,
        send: Callable[[bytes], bool] | None = None,
    ) -> None:
        self._transport: Final = transport
        self._flusher: Final = flusher
        self._on_slow: Final = on_slow
        self._dialect: Final = dialect
        self._send: Final = send if send is not None else self._send_by_transport
        self._frame: bytes | None = None
        """The only one that is owed, as it mostly is; several stand in ``_frames``."""
        self._key: object = None
        """Of ``_frame``, if it is progress."""
        self._frames: Owed | None = None
        self._queued_bytes = self._queued_frames = 0
        """Of what must arrive, put while it has not drained."""
        self.is_cut = False
        """Whether a part of what was owed in one turn is still to be written."""
        self._dirty = False
        self._finished = False
        self._slow = False
        self.stalled_at: float | None = None
        self.written_at = flusher.now()
        """When messages last went out; the loop's clock, seconds."""
        keep_kernel_queue_short(transport)

    def put(self, frame: bytes, *, supersedes: object = None) -> None:
        """Owe a frame that must arrive, after all before it; drop a progress it supersedes."""
        if self._finished:
            return
        if not self._dirty:
            self._dirty = True
            self._frame = frame
            self._flusher.add(self)
            self._queue(frame)
            return
        frames = self._several()
        if supersedes is not None:
            frames.pop(supersedes, None)
        frames[next(_numbers)] = frame
        self._queue(frame)

    def _queue(self, frame: bytes) -> None:
        """Count a frame that must arrive; give up who takes too few of them."""
        if self.stalled_at is None:  # it may go out in this turn
            return
        self._queued_frames += 1
        self._queued_bytes += len(frame) + _FRAME_COST
        too_many = self._queued_frames > _MAX_QUEUED_FRAMES
        if too_many or self._queued_bytes > _MAX_QUEUED_BYTES:
            self.give_up("queue")

    def put_state(self, source: Source, *, gap: bool = False) -> None:
        """Owe the state of a source as it is when it leaves, with all progress until then.

        An event of the source that comes before must be announced: see ``settle``.
        """
        if self._finished:
            return
        alone = not self._dirty and self.stalled_at is None
        if alone or source in self._several():  # an older one is told as it was
            if frame := source.shown(self._dialect, gap=gap):
                self.put(frame)
            return
        self._several()[source] = gap
        if not self._dirty:
            self._dirty = True
            self._flusher.add(self)

    def owes_gap(self, source: Source) -> bool:
        """Have the state of a source, if it is still owed, told as of after a gap."""
        frames = self._frames
        if frames is None or not isinstance(frames.get(source), bool):
            return False
        frames[source] = True
        return True

    def settle(self, source: Source, before: Callable[[bool], bytes]) -> None:
        """Fix the state of a source that is still owed: what changes now comes after it.

        Args:
            source: What ``put_state`` was told.
            before: Returns the frame that it has, told whether that is because of a gap.

        """
        frames = self._frames
        if frames is not None and isinstance(gap := frames.get(source), bool):
            frames[source] = frame = before(gap)
            self._queue(frame)

    def let_go(self, source: Source, kinds: Sequence[object]) -> None:
        """Owe nothing of a source that comes from now on, nor progress of these kinds."""
        frames = self._frames
        if frames is None:
            return
        for kind in kinds:
            if isinstance(frames.get(kind), Source):
                del frames[kind]
        self.settle(source, lambda gap: source.shown(self._dialect, gap=gap))

    def put_latest(self, key: object, frame: bytes, source: Source | None = None) -> None:
        """Owe the newest progress under ``key``; one that still waits is replaced.

        Of a ``source`` that is known, a socket that has stalled is owed the progress that will
        be newest when it has drained, and none besides a state that is still owed.
        """
        if self._finished:
            return
        if not self._dirty:
            self._dirty = True
            self._key = key
            self._frame = frame
            self._flusher.add(self)
            return
        frames = self._several()
        if source is not None and isinstance(frames.get(source), bool):
            self._flusher.conflated += 1
            return
        if key in frames:
            self._flusher.conflated += 1
        frames[key] = frame if source is None or self.stalled_at is None else source

    @property
    def queued(self) -> int:
        """How many frames wait."""
        return len(self._frames or ()) + (self._frame is not None)

    def _several(self) -> Owed:
        """Return what is owed, with room for more."""
        frames = self._frames
        if frames is None:
            frames = self._frames = {}
        if self._frame is not None:
            frames[next(_numbers) if self._key is None else self._key] = self._frame
            self._frame = self._key = None
        return frames

    def flush(self) -> int:
        """Write what is owed, if nothing is queued below.

        Returns how many frames that were; less than none: it has not drained, and waits.
        """
        if self.stalled_at is not None and self._transport.get_write_buffer_size():
            return -1
        frame = self._frame
        if frame is None:
            return self._flush_several()
        if not self._write(frame):
            return -1
        self._frame = self._key = None
        self._dirty = False
        if self.stalled_at is not None:
            self.stalled_at = None
            self._forgive()
        return 1

    def _flush_several(self) -> int:
        owed = self._frames or {}
        keys, frames = due(owed, self._dialect)
        if frames and not self._write(self._joined(frames)):
            return -1
        self.stalled_at = None
        self.is_cut = len(keys) < len(owed)
        if self.is_cut:
            self._keep_rest(keys)
        else:
            self._forgive()
            self._dirty = False
        return len(frames)

    def _write(self, data: bytes) -> bool:
        if not self._send(data):
            return False
        self.written_at = self._flusher.turn_at
        self._flusher.bytes += len(data)
        return True

    def _keep_rest(self, written: Sequence[object]) -> None:
        """Owe the rest in the next turn; until it is drained, newer progress replaces it."""
        frames = self._several()
        for key in written:
            frame = frames.pop(key)
            if isinstance(frame, bytes) and isinstance(key, int | Source):
                self._queued_frames = max(self._queued_frames - 1, 0)
                self._queued_bytes = max(self._queued_bytes - len(frame) - _FRAME_COST, 0)
        self._flusher.add(self)

    def _joined(self, frames: Sequence[bytes]) -> bytes:
        return frames[0] if len(frames) == 1 else self._dialect.join(frames)

    async def drained(self) -> None:
        """Return when the other end has taken what it was owed, or never will."""
        while not (self._finished or self._transport.is_closing()):
            owed = self._frame is not None or self._frames
            if not owed and not self._transport.get_write_buffer_size():
                return
            if not self._dirty:
                self._flusher.expect_drain(self)
            await asyncio.sleep(SLOW_CHECK_S)

    def finish(self) -> None:
        """Write what is owed, even behind what is not drained, and owe nothing any more.

        What follows it on the transport is the end of the socket.
        """
        if not self._transport.is_closing():
            frames = all_due(self._several(), self._dialect)
            if frames:
                self._transport.write(self._joined(frames))
                self._flusher.count(len(frames))
        self._forgive()
        self._finished = True

    def give_up(self, bound: str) -> None:
        """Drop what is owed and report the socket as too slow: which ``bound`` is passed."""
        self._forgive()
        if not self._slow:
            self._slow = True
            SLOW.labels(bound).inc()
            self._on_slow()

    def _send_by_transport(self, data: bytes) -> bool:
        if self._transport.is_closing():
            return True
        if self._transport.get_write_buffer_size():
            return False
        self._transport.write(data)
        return True

    def _forgive(self) -> None:
        self._frame = self._key = self._frames = None
        self._queued_bytes = self._queued_frames = 0
