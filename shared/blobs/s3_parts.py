"""Which bytes of an upload on S3 count, and into which parts the next ones go. Pure.

An unfinished upload is a multipart upload plus *pieces*: small objects with the bytes behind
its last full part. Everything that is written belongs to a *turn*: one stretch of writing by
one holder of the lease. The holder of a lease that ran out may not know it, and what it has
sent may land late. Therefore the newest turn decides:

- A turn that uploads parts opens a *span* first: the part numbers from ``first`` on hold the
  bytes from ``start`` on. The numbers that the turn before may still have in flight are
  skipped, and what lands there later is in nobody's span.
- The key of a piece carries its turn. What an older turn wrote counts only up to where a newer
  one begins.

Within a span the offset of each part follows from its number, so a part that is missing in the
middle ends what counts and moves nothing.
"""

from __future__ import annotations

import errno
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import msgspec

__all__ = [
    "LEAST_PART",
    "MAX_OBJECT",
    "MAX_PART",
    "MAX_PARTS",
    "Counted",
    "Layout",
    "Part",
    "Piece",
    "Range",
    "Span",
    "Turn",
    "count",
    "open_span",
    "plan_copy",
    "plan_join",
]

MAX_PARTS: Final = 10_000
LEAST_PART: Final = 5 * 1024**2
"""Bytes of the smallest part that S3 accepts, but for the last one."""
MAX_PART: Final = 5 * 1024**3
MAX_OBJECT: Final = 5 * 1024**4

_SLACK: Final = 10
"""One part number in so many is kept for those that are skipped."""
_GROW_EVERY: Final = 900
"""While the length is unknown the size doubles after so many parts: 5 MiB at first make
8.8 TiB in 10,000 parts, and no part is over 5 GiB."""
_COPY: Final = 256 * 1024**2
"""Bytes to copy with one call where there is a choice: more would be bound by one of the
server's disks, and may take longer than a client waits for an answer."""


class Turn(msgspec.Struct, frozen=True, order=True, array_like=True):
    """One stretch of writing: by one lease, up to a failure. A later one is greater."""

    fence: int
    """Of the lease."""
    attempt: int = 0
    """Failures of this holder before: what had failed may land later."""


class Span(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The parts of one turn."""

    turn: Turn
    first: int
    """Its first part number, from 1."""
    start: int
    """Offset of its first part."""
    cut: int
    """Where its turn began to write: from here on no older piece counts."""
    size: int
    """Bytes of each of its parts."""
    grows: bool = False
    """The size doubles every so many numbers, because the length was unknown."""
    parallel: int = 1
    """Parts that its writer may have in flight."""

    def part_size(self, number: int) -> int:
        """Return the bytes of a part that is not the last one of the upload."""
        doublings = (number - 1) // _GROW_EVERY if self.grows else 0
        return min(self.size << doublings, MAX_PART)


class Layout(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the store must know to find an upload's bytes again."""

    multipart_id: str
    spans: tuple[Span, ...] = ()
    """Oldest first."""
    next_number: int = 0
    """The first part number that nobody uses; 0 while a writer may be at work, or has died."""


class Part(msgspec.Struct, frozen=True):
    """A part as the server lists it."""

    number: int
    size: int
    etag: str


class Piece(msgspec.Struct, frozen=True):
    """An object with bytes behind the last full part."""

    turn: Turn
    start: int
    size: int

    @property
    def end(self) -> int:
        """Offset behind its last byte."""
        return self.start + self.size


class Range(msgspec.Struct, frozen=True):
    """Bytes of one source."""

    source: int
    """Index of an object, or of a piece in ``Counted``."""
    start: int
    """Offset in the source."""
    length: int


class Counted(msgspec.Struct, frozen=True):
    """The bytes that are safe."""

    parts: tuple[Part, ...] = ()
    """In order, without a gap."""
    parts_end: int = 0
    pieces: tuple[Piece, ...] = ()
    """Those with bytes behind the parts, in order."""
    ranges: tuple[Range, ...] = ()
    """What of each of the pieces counts."""
    end: int = 0


def count(
    spans: Sequence[Span],
    parts: Mapping[int, Part],
    pieces: Sequence[Piece],
    total: int | None,
) -> Counted:
    """Return what is safe of an upload.

    Args:
        spans: Of its newest layout.
        parts: As listed by the server, by number.
        pieces: All that are there.
        total: Declared length of the upload; only the part that reaches it may be short.

    """
    counted: list[Part] = []
    end = 0
    for span, after in itertools.zip_longest(spans, spans[1:]):
        limit = min(
            after.start if after else MAX_OBJECT,
            *(one.start for one in pieces if one.turn > span.turn),
            MAX_OBJECT,
        )
        if span.start != end:
            break
        for number in itertools.count(span.first):
            part = parts.get(number)
            expected = span.part_size(number)
            if part is None or end + part.size > limit:
                break
            if part.size != expected and not (
                part.size < expected and end + part.size == total
            ):
                break
            counted.append(part)
            end += part.size
    return _with_pieces(tuple(counted), end, spans, pieces)


def _with_pieces(
    parts: tuple[Part, ...], parts_end: int, spans: Sequence[Span], pieces: Sequence[Piece]
) -> Counted:
    limits = {
        turn: min(
            *(one.start for one in pieces if one.turn > turn),
            *(span.cut for span in spans if span.turn > turn),
            MAX_OBJECT,
            MAX_OBJECT,
        )
        for turn in {one.turn for one in pieces}
    }
    used: list[Piece] = []
    ranges: list[Range] = []
    end = parts_end
    while True:
        reach = [(min(one.end, limits[one.turn]), one.turn, one) for one in pieces]
        fitting = [one for one in reach if one[2].start <= end < one[0]]
        if not fitting:
            return Counted(parts, parts_end, tuple(used), tuple(ranges), end)
        upto, _, piece = max(fitting, key=lambda one: one[:2])
        ranges.append(Range(len(used), end - piece.start, upto - end))
        used.append(piece)
        end = upto


def open_span(
    layout: Layout,
    listed: Collection[int],
    *,
    turn: Turn,
    start: int,
    cut: int,
    total: int | None,
    least: int,
    parallel: int,
) -> Layout:
    """Return the layout with a span for a turn that begins.

    The part size is the least one with which the rest still fits into the part numbers that
    are left, with slack for those that later turns skip.

    Args:
        layout: As it is.
        listed: The part numbers that the server knows.
        turn: Of the writer.
        start: Offset behind the last full part.
        cut: Offset at which the writer began.
        total: Declared length of the upload, if any.
        least: Least part size, in bytes.
        parallel: Parts that the writer may have in flight.

    Raises:
        OSError: The part numbers do not suffice (``EFBIG``).

    """
    first = _first_free(layout, listed)
    left = MAX_PARTS + 1 - first
    rest = (total or start) - start
    size = max(least, math.ceil(rest / max(left - left // _SLACK, 1)))
    if left <= 0 or size > MAX_PART or (total or 0) > MAX_OBJECT:
        raise OSError(errno.EFBIG, "the upload does not fit into the parts that are left")
    span = Span(
        turn=turn,
        first=first,
        start=start,
        cut=cut,
        size=size,
        grows=total is None,
        parallel=parallel,
    )
    return Layout(multipart_id=layout.multipart_id, spans=(*layout.spans, span))


def _first_free(layout: Layout, listed: Collection[int]) -> int:
    """Return the first number that neither is in use nor may still arrive.

    The lease is looked at before each call. So a holder that lost it has no more calls to come
    than were on their way: a part each for the places that it sends in parallel.
    """
    if not layout.spans:
        return 1
    if layout.next_number:
        return layout.next_number
    last = layout.spans[-1]
    return max(*listed, last.first - 1, 0) + last.parallel + 1


def plan_join(sizes: Sequence[int], *, least: int) -> list[tuple[Range, ...]]:
    """Return the parts that make one object of several, in order.

    A part of one range of at least ``least`` bytes can be copied by the server; others are
    read and sent. Only as much is read as keeps every part but the last from being too small.

    Args:
        sizes: Bytes of the sources, in order.
        least: Least part size, in bytes.

    Raises:
        OSError: The whole is too large for one object (``EFBIG``).

    """
    total = sum(sizes)
    if total > MAX_OBJECT:
        raise OSError(errno.EFBIG, "the parts together are too large for one object")
    usable = MAX_PARTS - MAX_PARTS // _SLACK
    least = max(least, math.ceil(total / usable))
    plan: list[tuple[Range, ...]] = []
    pending: list[Range] = []
    for source, size in enumerate(sizes):
        taken = 0
        if pending:
            missing = least - sum(one.length for one in pending)
            taken = min(missing, size)
            pending.append(Range(source, 0, taken))
            if taken < missing:
                continue
            plan.append(tuple(pending))
            pending = []
        for one in plan_copy(size - taken, least=least):
            whole = Range(source, taken + one.start, one.length)
            if whole.length < least:
                pending.append(whole)
            else:
                plan.append((whole,))
    return [*plan, tuple(pending)] if pending else plan


def plan_copy(size: int, *, least: int) -> Iterator[Range]:
    """Yield the ranges in which one object is copied; only a sole one is below ``least``."""
    step = max(_COPY, least)
    start = 0
    while start < size:
        rest = size - start
        length = rest if rest < step + least else step
        yield Range(0, start, length)
        start += length
