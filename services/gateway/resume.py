"""What a client that comes back has missed, and whether that can be known. No I/O.

Events of an upload stand on one stream, so their places there order them, and the id of an
event is its place. What a client has not got is what stands after its last one. That none is
missing in between is seen from the counters of the upload and of its job, which have no holes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple, TypeAlias

from services.gateway.folding import counter_of, fold
from services.gateway.log import Logged, UploadLog, merged_log
from services.gateway.state import ProgressState
from shared.streams import entry_order

__all__ = [
    "ALL",
    "EventId",
    "Place",
    "Since",
    "event_id",
    "in_order",
    "is_of_lost_history",
    "just_before",
    "last_events",
    "missed",
    "parse_event_id",
    "place_of",
]

Place: TypeAlias = tuple[int, int]
"""Of an entry on its stream, as ``entry_order`` has it; sorts as Redis sorts ids."""

ALL: Final = ""
"""Stands for all that is the caller's; no upload has this name."""
_AHEAD_MS: Final = 60_000
"""The clocks of Redis and of this process may differ by so much."""
_LAST: Final = 10**19 - 1
"""The number of no entry, and beyond those that entries of one millisecond have."""
_FORM: Final = re.compile(r"(\d{1,15})-(\d{1,19})-(\d{1,4})", re.ASCII)


class EventId(NamedTuple):
    """The place of an event among those of all streams. They sort as they were told."""

    at: int
    """When the entry was written, ms, by the clock of Redis."""
    number: int
    partition: int

    def place_on(self, partition: int) -> Place:
        """Return up to where who has this event has a stream.

        All of its own stream that stands before it. Of another stream everything older; what
        is of the same millisecond may be told again, since nothing orders the two.
        """
        return (self.at, self.number if partition == self.partition else -1)


def event_id(entry_id: bytes, partition: int) -> str:
    """Return the id that clients know an event by."""
    return f"{entry_id.decode()}-{partition}"


def just_before(event_id: str) -> str:
    """Return the id to go on from for who has all of a stream before an event."""
    at, number, partition = parse_event_id(event_id)
    return f"{at}-{number - 1}-{partition}" if number else f"{at - 1}-{_LAST}-{partition}"


def parse_event_id(text: str) -> EventId:
    """Return what an id tells.

    Raises:
        ValueError: It is none.

    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError("since must be the id of an event.")
    return EventId(*map(int, match.groups()))


Since: TypeAlias = Mapping[str, EventId | None]
"""The last events that a client has."""


def last_events(
    names: Iterable[str], since: str | Mapping[str, str] | None
) -> dict[str, EventId | None]:
    """Return the last event that a client has of each upload; ``None``: it has none.

    Args:
        names: What the client calls the uploads.
        since: An id for all of them, or one by each name, as the client gave it.

    Raises:
        ValueError: An id is none. Says so.

    """
    last = {}
    for name in names:
        text = since.get(name) if isinstance(since, Mapping) else since
        last[name] = parse_event_id(text) if text else None
    return last


def is_of_lost_history(since: EventId, partition: int, *, read_to: Place, now: int) -> bool:
    """Tell whether an id stands behind all that there is: a Redis that is gone has told it.

    Nothing can be told again then. It is no mistake of the client's, nor is a clock that goes
    wrong: who had to be refused for one would never get to know anything.

    Args:
        since: The last event that a client has.
        partition: That of the upload.
        read_to: Where reading stands there.
        now: The time here, ms.

    """
    return since.at > now + _AHEAD_MS or (
        partition == since.partition and since.place_on(partition) > read_to
    )


def place_of(one: Logged) -> Place:
    """Return where an event stands on its stream."""
    return entry_order(one.entry_id)


def in_order(events: Iterable[Logged]) -> list[Logged]:
    """Return events of any uploads in the order in which they are told."""
    return sorted(events, key=lambda one: (*place_of(one), one.partition))


def missed(
    recorded: UploadLog,
    recent: Iterable[Logged],
    state: ProgressState,
    *,
    after: Place,
    read_to: Place,
) -> list[Logged] | None:
    """Return what was told of an upload after a place; ``None`` if that cannot be known.

    Args:
        recorded: The log of the upload. It is cut at its old end.
        recent: What has been read of it here.
        state: The upload as those see it who have been told everything up to ``read_to``.
        after: Where the client's last event stands.
        read_to: Where reading stands. What comes later will be told by itself.

    """
    log = merged_log(recorded, recent)
    known = [one for one in log.entries if place_of(one) <= read_to]
    if not _reaches(recorded, log, known, state, after):
        return None
    if not known or place_of(known[-1]) <= after:
        return []
    return [one for one in _told(known) if place_of(one) > after]


def _told(entries: Iterable[Logged]) -> Iterator[Logged]:
    """Yield what readers have passed on: not what a later event had overtaken."""
    state: ProgressState | None = None
    for one in entries:
        folded = fold(state, one.event)
        if folded is not None:
            state = folded
            yield one


def _reaches(
    recorded: UploadLog,
    log: UploadLog,
    known: list[Logged],
    state: ProgressState,
    after: Place,
) -> bool:
    """Whether no event after a place is missing, of the upload or of its job."""
    # What the recorded log has lost is older than all that is left of it.
    is_cut_before = bool(recorded.entries) and place_of(recorded.entries[0]) <= after
    for of_job, newest in ((False, state.seq), (True, state.job_seq)):
        places = _places(known, of_job=of_job)
        has = max((seq for seq, place in places.items() if place <= after), default=0)
        if is_cut_before:
            left = _places(recorded.entries, of_job=of_job)
            if left or not _places(log.entries, of_job=of_job):
                has = max(has, min(left, default=newest + 1) - 1)
        if any(seq not in places for seq in range(has + 1, newest + 1)):
            return False
    return True


def _places(entries: Iterable[Logged], *, of_job: bool) -> dict[int, Place]:
    """Return where the events of the upload, or of its job, stand, by their numbers."""
    counters = ((counter_of(one.event), one) for one in entries)
    return {seq: place_of(one) for (half, seq), one in counters if half == of_job}
