"""The order in which entries of several streams are handed on. No I/O.

Redis orders the entries of one stream. Over the partitions lifecycle entries go by their ids,
milliseconds first, so that whoever has seen one has seen all before it, and can name it as the
place to resume from. On a cluster that holds as far as the clocks of its nodes agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shared.streams import Entry, entry_order, is_event_stream

__all__ = ["Batch", "TailEntry", "in_order"]


class TailEntry(NamedTuple):
    """One entry of a stream."""

    stream: str
    id: bytes
    fields: dict[bytes, bytes]


class Batch(NamedTuple):
    """What one read has brought."""

    entries: list[TailEntry]
    """Lifecycle entries first, in their order over all streams; then positions."""
    cursors: dict[str, bytes]
    """The last entry of each stream that is among them."""
    is_cut: bool
    """Whether there is more to be read at once."""


def in_order(reads: Sequence[tuple[str, Sequence[Entry]]], count: int) -> Batch:
    """Return what of a read may be handed on.

    A stream that has brought ``count`` entries was cut there. What others have beyond that
    must wait for what is still to come from it, so their cursors stay before it.

    Args:
        reads: Streams with their new entries, none empty.
        count: Most entries of a stream in one read.

    """
    cut = {key: entry_order(each[-1][0]) for key, each in reads if len(each) >= count}
    horizon = min((last for key, last in cut.items() if is_event_stream(key)), default=None)
    lifecycle: list[tuple[tuple[int, int], int, TailEntry]] = []
    positions: list[TailEntry] = []
    cursors: dict[str, bytes] = {}
    for key, entries in reads:
        if not is_event_stream(key):
            positions += [TailEntry(key, *entry) for entry in entries]
            cursors[key] = entries[-1][0]
            continue
        for entry in entries:
            order = entry_order(entry[0])
            if horizon is not None and order > horizon:
                break
            lifecycle.append((order, len(key), TailEntry(key, *entry)))
            cursors[key] = entry[0]
    lifecycle.sort(key=lambda one: (one[0], one[1], one[2].stream))
    return Batch([*(one[2] for one in lifecycle), *positions], cursors, bool(cut))
