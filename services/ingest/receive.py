"""From the socket to the disk, as fast as both allow, in bounded memory.

While one batch is being written by a disk thread, the next one fills from the socket; write-out
is started batch by batch, so that the sync at the end finds little left to do. What comes fast
and goes to a disk of this machine is received by the thread that writes it. Why this and not
another way: ``docs/adr/0003-receiving-bytes.md``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from enum import Enum
from typing import Final, Protocol

from services.ingest.direct_body import GATHER_S, DirectBody
from services.ingest.patience import Patience
from services.ingest.request_body import Body, BodyCut, RequestBody
from services.ingest.writers import Lease
from shared.blobs.drawing import Drawing

__all__ = ["Ended", "Sink", "receive"]

_BATCH: Final = 4 * 1024 * 1024
"""Bytes to a write: smaller ones pay for thread switches, larger ones gain nothing."""

_FAST: Final = 512 * 1024
"""Bytes that, come within ``_FAST_S``, show that more will come as fast."""

_FAST_S: Final = 0.1
"""A link of 5 MB/s or more: slower ones cost little, and less if their bytes gather here."""

_LINGER_S: Final = 0.1
"""How long bytes of a slow client wait for company before they are written."""

_GRAIN_S: Final = 1.0
"""How often a body is looked at: doing it at every read would cost too much."""

_TELL_S: Final = 1.0
"""How often a client that wants to know is told what is safe."""

_TELL_SHARE: Final = 10
"""Telling may take one part in so many of the time, however slow the disk syncs."""


class Ended(Enum):
    """Why receiving ended. What had arrived was written in each case."""

    COMPLETE = "the body was complete"
    OVERLONG = "there was no room for more"
    CUT = "the connection ended"
    STALLED = "no byte came for too long, or too few did"
    ASKED = "somebody else wants to write"


class Sink(Protocol):
    """Where the bytes go: the upload itself, or a place beside it."""

    @property
    def offset(self) -> int:
        """Bytes that are there."""

    async def write(self, pieces: Sequence[bytes]) -> None:
        """Append the pieces in order.

        Raises:
            OSError: Not all were written; nothing may follow.

        """


async def receive(
    body: Body,
    lease: Lease | None,
    *,
    into: Sink | None = None,
    room: int | None,
    idle_s: float,
    on_progress: Callable[[int], None],
    least_rate: float = 0,
    window_s: float = 60.0,
    on_safe: Callable[[int], Awaitable[None]] | None = None,
) -> Ended:
    """Append a body to an upload; return why it ended.

    The bytes are written, but not synced, when this returns.

    Args:
        body: Where the bytes come from.
        lease: The right to write, held by the caller; ``None`` if ``into`` needs none.
        into: Where the bytes go instead of the end of the upload.
        room: Most bytes to take; ``None`` is no limit.
        idle_s: Longest silence, in seconds; a little more is forgiven, never less.
        on_progress: Called with the offset of where they go after each write.
        least_rate: Bytes per second that must come on average; 0 asks for none.
        window_s: Seconds for which the rate forgives that nothing comes.
        on_safe: Called about each second, while bytes come, with an offset that is on stable
            storage, which costs a sync; nothing is read until it returns.

    Raises:
        OSError: The disk refused. The offset there says what was written.

    """
    sink = lease.writer if lease is not None and into is None else into
    if sink is None:
        raise TypeError("neither a lease nor a place to receive into")
    pump = _Pump(body, lease, sink, room=room, on_progress=on_progress, on_safe=on_safe)
    loop = asyncio.get_running_loop()
    patience = Patience(
        idle_s=idle_s + GATHER_S, least_rate=least_rate, window_s=window_s, now=loop.time()
    )
    watch = _Watch(pump, body, patience, min(_GRAIN_S, idle_s / 4, window_s / 4))
    try:
        async with asyncio.timeout(None) as deadline:
            if lease is not None:
                lease.when_asked(lambda: _expire(deadline, loop.time()))
            with watch.ending(deadline):
                return await pump.run()
    except TimeoutError:
        pump.keep_arrived()
        return Ended.ASKED if lease is not None and lease.asked else watch.verdict
    finally:
        if lease is not None:
            lease.when_asked(None)
        await pump.end()


def _expire(deadline: asyncio.Timeout, now: float) -> None:
    with contextlib.suppress(RuntimeError):  # it is expiring already
        deadline.reschedule(now)


class _Watch:
    """Looks at a body every so often, whether bytes come or not."""

    def __init__(self, pump: _Pump, body: Body, patience: Patience, every_s: float) -> None:
        self._pump: Final = pump
        self._body: Final = body
        self._patience: Final = patience
        self._every_s: Final = every_s
        self.verdict = Ended.STALLED
        """Why it has ended the body, if it has."""

    @contextlib.contextmanager
    def ending(self, deadline: asyncio.Timeout) -> Iterator[None]:
        """Have the deadline expire once the body is broken or too slow."""
        self._look_soon(deadline)
        try:
            yield
        finally:
            self._timer.cancel()

    def _look_soon(self, deadline: asyncio.Timeout) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._every_s, self._look, deadline)

    def _look(self, deadline: asyncio.Timeout) -> None:
        now = asyncio.get_running_loop().time()
        is_broken = self._body.is_broken()
        if is_broken or self._patience.is_over(self._pump.received, now):
            self.verdict = Ended.CUT if is_broken else Ended.STALLED
            _expire(deadline, now)
        else:
            self._look_soon(deadline)


class _Pump:
    """What one ``receive`` keeps between two reads."""

    def __init__(
        self,
        body: Body,
        lease: Lease | None,
        sink: Sink,
        *,
        room: int | None,
        on_progress: Callable[[int], None],
        on_safe: Callable[[int], Awaitable[None]] | None,
    ) -> None:
        self._body: Final = body
        self._lease: Final = lease
        self._sink: Final = sink
        self._room = room
        self._on_progress: Final = on_progress
        self.received = 0
        """Bytes of the body so far."""
        self._on_safe: Final = on_safe
        self._tell_at = asyncio.get_running_loop().time() + _TELL_S
        self._pieces: list[bytes] = []
        self._size = 0
        self._began = 0.0
        """When the first of the pieces was read."""
        self._drawing: Final = sink if isinstance(sink, Drawing) else None
        self._direct: DirectBody | None = None
        self._writing: asyncio.Future[None] | None = None
        self._end = sink.offset
        """Where the sink ends once all that was given to the disk is there."""

    async def run(self) -> Ended:
        """Read to the end."""
        while True:
            try:
                chunk = await self._next()
            except BodyCut:
                return Ended.CUT
            if not chunk:
                return Ended.COMPLETE
            if self._room is not None:
                if len(chunk) > self._room:
                    self._keep(chunk[: self._room])
                    return Ended.OVERLONG
                self._room -= len(chunk)
            self._keep(chunk)
            direct = self._left()
            if direct is not None:
                return await self._draw(direct)
            if self._size >= _BATCH:
                await self._start_write()
            if self._on_safe is not None:
                await self._tell_safe()

    def _left(self) -> DirectBody | None:
        """Return the rest of the body, if it can be taken directly and comes fast."""
        if self._size < _FAST or self._drawing is None:
            return None
        took = asyncio.get_running_loop().time() - self._began
        if took * _FAST > _FAST_S * self._size or not isinstance(self._body, RequestBody):
            return None
        self._direct = self._body.leave(self._keep, self._room)
        return self._direct

    async def _draw(self, direct: DirectBody) -> Ended:
        """Have the disk take the rest of the body by itself, a batch at a time."""
        await self._start_write()
        await self._written()
        while True:
            before = self.received
            await self._draw_batch(direct)
            if not direct.left:
                return Ended.COMPLETE
            if direct.cut:
                return Ended.CUT
            await self._tell_safe()
            if self.received - before < _BATCH:
                await direct.more()

    async def _draw_batch(self, direct: DirectBody) -> None:
        """Draw what is there; nothing behind a write that has failed (see ``_start_write``)."""
        if self._drawing is None or self._sink.offset != self._end:
            return
        left = direct.left
        try:
            await self._drawing.draw(direct.fill, _BATCH)
        finally:
            self.received += left - direct.left
            self._end += left - direct.left
        if left != direct.left:
            self._on_progress(self._sink.offset)

    async def _next(self) -> bytes:
        """Return the next bytes; write what is gathered when they are slow to come."""
        if not self._pieces:
            return await self._body.read()
        try:
            async with asyncio.timeout(_LINGER_S):
                return await self._body.read()
        except TimeoutError:
            await self._start_write()
            await self._written()
            await self._tell_safe()
        return await self._body.read()

    async def _tell_safe(self) -> None:
        """Tell what is on stable storage, if that is wanted and due."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        if self._on_safe is None or self._lease is None or began < self._tell_at:
            return
        if self._pieces:
            await self._start_write()
        await self._written()
        await self._lease.writer.sync()
        await self._on_safe(self._lease.writer.offset)
        now = loop.time()
        self._tell_at = now + max(_TELL_S, (now - began) * _TELL_SHARE)

    def keep_arrived(self) -> None:
        """Take along what has arrived but was not read yet, so that nobody sends it again."""
        if self._direct is None:
            self._keep(self._body.buffered()[: self._room])

    def _keep(self, chunk: bytes) -> None:
        if chunk:
            if not self._pieces:
                self._began = asyncio.get_running_loop().time()
            self._pieces.append(chunk)
            self._size += len(chunk)
            self.received += len(chunk)

    async def _start_write(self) -> None:
        """Hand the batch to the disk, once it is done with the one before.

        After a write that failed nothing may follow. Its error does not show when the wait
        for it was cancelled, but its offset does.
        """
        await self._written()
        if self._sink.offset != self._end:
            self._pieces, self._size = [], 0
            return
        self._end += self._size
        pieces, self._pieces, self._size = self._pieces, [], 0
        self._writing = asyncio.ensure_future(self._sink.write(pieces))

    async def _written(self) -> None:
        """Wait for the write under way, if there is one."""
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing
            self._on_progress(self._sink.offset)

    async def end(self) -> None:
        """Return when all that was read is written, and what has arrived of a direct body."""
        direct = self._direct
        try:
            if self._pieces:
                await self._start_write()
            await self._written()
            if direct is not None and direct.left and not direct.cut:
                await self._draw_batch(direct)
        finally:
            if direct is not None:
                direct.give_back()
