"""The lifecycle events of an upload and where each stands on its stream: for resuming. No I/O.

Two places know them: the log beside the projection, which the consumer group writes, and what
a gateway has read in the last minutes, which may be ahead of it. An event may stand on its
stream more than once; the first copy is the one that readers have passed on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from services.gateway.folding import counter_of
from shared import events
from shared.events import LifecycleEvent, MalformedEvent, UnknownEvent
from shared.streams import entry_order

__all__ = ["LOG_LIMIT", "Logged", "UploadLog", "counter_name", "log_from", "merged_log"]

LOG_LIMIT: Final = 64
"""Events of one upload that are kept, the newest ones (contract/4). It has about ten in all."""


class Logged(msgspec.Struct, frozen=True):
    """An event and its place."""

    entry_id: bytes
    """Of the stream's entry, such as ``1735732800000-0``."""
    partition: int
    """Which stream of the family ``events`` that is."""
    event: LifecycleEvent


class UploadLog(msgspec.Struct, frozen=True):
    """What is known of the events of one upload."""

    entries: tuple[Logged, ...] = ()
    """In the order of their entries, none twice."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing, from the upload's first event to the newest one here.

        Both counters start from 1 without holes, so this can be seen. It is false as well
        where only the job is known: what came before has been forgotten.
        """
        counters = [counter_of(one.event) for one in self.entries]
        of_upload = sorted(seq for of_job, seq in counters if not of_job)
        of_job = sorted(seq for of_job, seq in counters if of_job)
        return bool(of_upload) and all(
            seqs == list(range(1, len(seqs) + 1)) for seqs in (of_upload, of_job)
        )


def counter_name(event: LifecycleEvent) -> str:
    """Return what an event goes by in its upload's log, such as ``upload:3`` or ``job:1``."""
    of_job, seq = counter_of(event)
    return f"{'job' if of_job else 'upload'}:{seq}"


def log_from(fields: Mapping[bytes, bytes]) -> UploadLog:
    """Return the log in a hash; what this build cannot read counts as missing.

    A value is the entry's id, the partition and the event as on the stream, with a space
    between.
    """
    return _ordered(one for value in fields.values() if (one := _logged(value)) is not None)


def _logged(value: bytes) -> Logged | None:
    try:
        entry_id, partition, payload = value.split(b" ", 2)
        entry_order(entry_id)
        return Logged(entry_id, int(partition), events.decode(payload))
    except (ValueError, MalformedEvent, UnknownEvent):
        return None


def merged_log(recorded: UploadLog, recent: Iterable[Logged]) -> UploadLog:
    """Return what either knows; of an event that both have, the first copy.

    Args:
        recorded: The log beside the projection.
        recent: What this process has read, in any order.

    """
    return _ordered((*recorded.entries, *recent))


def _ordered(entries: Iterable[Logged]) -> UploadLog:
    first: dict[tuple[bool, int], Logged] = {}
    for one in sorted(entries, key=_place):
        first.setdefault(counter_of(one.event), one)
    return UploadLog(tuple(first.values()))


def _place(one: Logged) -> tuple[tuple[int, int], tuple[bool, int]]:
    return entry_order(one.entry_id), counter_of(one.event)
