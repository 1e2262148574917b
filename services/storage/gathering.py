"""Reads ranges that lie near each other at once, from a store that answers slowly.

A request to S3 costs some tens of milliseconds, for one byte as for many. So ranges that are
sent one behind the other, and in the file follow each other closely, are one read whose gaps
are dropped. Nothing is held but the piece at hand.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, cast

from services.storage.claiming import Read
from services.storage.ranges import Span

__all__ = ["WIDEST_GAP", "gathered", "runs"]

WIDEST_GAP: Final = 128 * 1024
"""Bytes that are read in vain rather than begin anew: they come in about the time that a new
request takes. So an answer of 50 parts costs at most 6 MiB more than it has."""


def runs(spans: Sequence[Span]) -> list[Span]:
    """Return what is read at once to send these spans in their order."""
    found: list[Span] = []
    for span in spans:
        if found and 0 <= span.start - found[-1].end <= WIDEST_GAP:
            found[-1] = Span(found[-1].start, span.end - found[-1].start)
        else:
            found.append(span)
    return found


@asynccontextmanager
async def gathered(read: Read, spans: Sequence[Span]) -> AsyncGenerator[Read]:
    """Return what reads these spans, one after another in this order, as ``read`` would."""
    reader = _Reader(read, runs(spans))
    try:
        yield reader.read
    finally:
        await reader.close()


class _Reader:
    def __init__(self, read: Read, wanted: Sequence[Span]) -> None:
        self._read: Final = read
        self._runs: Final = {run.start: run for run in wanted}
        self._source: AsyncGenerator[bytes] | None = None
        self._at = 0
        """Offset of what comes next: of the piece at hand, then of the source."""
        self._piece = b""

    async def read(self, start: int, length: int) -> AsyncIterator[bytes]:
        """Yield the bytes of the next span.

        Raises:
            UploadNotFound, OSError: As the store does.

        """
        if run := self._runs.pop(start, None):
            await self.close()
            self._source = cast("AsyncGenerator[bytes]", self._read(*run))
            self._at, self._piece = start, b""
        if self._source is None:
            raise AssertionError("a span that was not announced")
        while length:
            piece = self._piece or await anext(self._source, b"")
            if not piece:
                return  # the store has fewer bytes than it said
            skipped = min(start - self._at, len(piece))
            wanted = piece[skipped : skipped + length]
            used = skipped + len(wanted)
            self._at, self._piece = self._at + used, piece[used:]
            start, length = start + len(wanted), length - len(wanted)
            if wanted:
                yield wanted

    async def close(self) -> None:
        """End the read that is under way."""
        source, self._source = self._source, None
        if source is not None:
            await source.aclose()
