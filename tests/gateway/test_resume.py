"""What a client that comes back has missed: told exactly, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.folding import counter_of, fold
from services.gateway.log import Logged, UploadLog, merged_log
from services.gateway.resume import (
    EventId,
    Place,
    event_id,
    in_order,
    is_of_lost_history,
    last_events,
    missed,
    parse_event_id,
    place_of,
)
from services.gateway.state import ProgressState
from shared.events import LifecycleEvent
from tests.gateway.samples import Told

PARTITION: Final = 3
NOW: Final = 1_750_000_000_000


class History(NamedTuple):
    """What stands on the stream of one upload, and what readers make of it."""

    entries: list[Logged]
    told: list[Logged]
    """Those that are passed on: the others are repeats, or were overtaken."""
    states: list[ProgressState | None]
    """After each entry."""


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Return a history in which events may be repeated, and overtake one another."""
    told = Told("u")
    made: list[LifecycleEvent] = [told.created()]
    steps = draw(st.lists(st.sampled_from(["upload", "job", "repeat", "swap"]), max_size=24))
    for step in steps:
        match step:
            case "upload":
                made.append(told.stored())
            case "job":
                made.append(told.started())
            case "repeat":
                made.append(draw(st.sampled_from(made)))
            case "swap" if len(made) > 2:
                made[-1], made[-2] = made[-2], made[-1]
    if draw(st.booleans()):
        made.append(told.processed())
    at, number, state = NOW, 0, None
    entries: list[Logged] = []
    passed: list[Logged] = []
    states: list[ProgressState | None] = []
    for event in made:
        wait = draw(st.integers(0, 2))
        at, number = (at + wait, 0) if wait else (at, number + 1)
        entries.append(Logged(f"{at}-{number}".encode(), PARTITION, event))
        folded = fold(state, event)
        if folded is not None:
            passed.append(entries[-1])
            state = folded
        states.append(state)
    return History(entries, passed, states)


def log_of(entries: list[Logged]) -> UploadLog:
    """Return what a log has of entries."""
    return merged_log(UploadLog(), entries)


class Case(NamedTuple):
    """A client that left after one entry and is back when another is read."""

    history: History
    left: int
    read: int

    @property
    def after(self) -> Place:
        """Where its last event stands, or the beginning."""
        return place_of(self.history.entries[self.left - 1]) if self.left else (0, 0)

    @property
    def read_to(self) -> Place:
        """Where reading stands."""
        return place_of(self.history.entries[self.read - 1])

    @property
    def expected(self) -> list[Logged]:
        """What it has missed."""
        return [one for one in self.history.told if self.after < place_of(one) <= self.read_to]

    def found(self, recorded: UploadLog, recent: Sequence[Logged] = ()) -> list[Logged] | None:
        """Return what is said that it has missed."""
        state = self.history.states[self.read - 1]
        assert state is not None
        return missed(recorded, recent, state, after=self.after, read_to=self.read_to)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Return a client that comes back to some history."""
    history = draw(histories())
    read = draw(st.integers(1, len(history.entries)))
    return Case(history, draw(st.integers(0, read)), read)


def is_plain(case: Case) -> bool:
    """Whether no event was overtaken that is still to come at this point of the history."""
    counters = {counter_of(one.event) for one in case.history.entries[: case.read]}
    halves = [{seq for of_job, seq in counters if of_job == half} for half in (False, True)]
    return all(seqs == set(range(1, len(seqs) + 1)) for seqs in halves)


@given(cases(), st.data())
def test_with_a_whole_log(case: Case, data: st.DataObject) -> None:
    """What has been recorded, with what was read here since, tells everything, exactly."""
    entries = case.history.entries
    recorded = data.draw(st.integers(0, len(entries)), "recorded to")
    begun = data.draw(st.integers(0, min(recorded, case.read)), "read here from")
    found = case.found(log_of(entries[:recorded]), entries[begun : case.read])
    if is_plain(case):
        assert found == case.expected
    else:
        assert found is None or found == case.expected


@given(cases(), st.data())
def test_with_a_log_cut_off(case: Case, data: st.DataObject) -> None:
    """A log that has lost its old end tells everything or nothing; what it must, it tells."""
    whole = log_of(case.history.entries).entries
    cut = whole[data.draw(st.integers(0, len(whole)), "lost to") :]
    found = case.found(UploadLog(cut))
    assert found is None or found == case.expected
    if cut and place_of(cut[0]) <= case.after and is_plain(case):
        assert found == case.expected


@given(cases(), st.data())
def test_with_little_of_what_was_read(case: Case, data: st.DataObject) -> None:
    """What is read is kept here for a while, and so many of upload and job: never is a hole
    between it and a log that lags behind taken for nothing.
    """
    entries = case.history.entries
    recorded = log_of(entries[: data.draw(st.integers(0, case.read), "recorded to")]).entries
    cut = recorded[data.draw(st.integers(0, len(recorded)), "lost to") :]
    most = data.draw(st.integers(1, 4), "kept of each")
    read = log_of(entries[: case.read]).entries
    kept = [
        one
        for half in (False, True)
        for one in [o for o in read if counter_of(o.event)[0] == half][-most:]
    ]
    found = case.found(UploadLog(cut), kept)
    assert found is None or found == case.expected


@given(cases())
def test_without_a_log(case: Case) -> None:
    """Nothing is said to be missed nowhere, if nothing is known."""
    assert case.found(UploadLog()) is None


@given(cases())
def test_state_that_is_ahead(case: Case) -> None:
    """A state that tells of more than has been read is not taken for what was told."""
    state = case.history.states[-1]
    assert state is not None
    found = missed(
        log_of(case.history.entries), (), state, after=case.after, read_to=case.read_to
    )
    behind = case.history.states[case.read - 1]
    assert behind is not None
    if (state.seq, state.job_seq) != (behind.seq, behind.job_seq):
        assert found is None


def test_ids() -> None:
    """An id tells where its entry stands."""
    told = event_id(b"1735732800000-7", 12)
    assert told == "1735732800000-7-12"
    assert parse_event_id(told) == EventId(1_735_732_800_000, 7, 12)


@pytest.mark.parametrize(
    "text",
    ["", "1", "1-2", "1-2-3-4", "a-b-c", "1-2-", " 1-2-3", "1-2-3\n", "-1-2-3", "\u0661-2-3"],
)
def test_no_ids(text: str) -> None:
    """What is no id is refused, whatever ``int`` would make of it."""
    with pytest.raises(ValueError, match="since must be the id of an event"):
        parse_event_id(text)


def test_place_on_other_streams() -> None:
    """Of its own stream an event tells all, of others only what is older by the clock."""
    one = EventId(500, 3, 7)
    assert one.place_on(7) == (500, 3)
    assert one.place_on(8) == (500, -1)
    assert (500, 0) > one.place_on(8) > (499, 99)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))))
def test_order(places: list[tuple[int, int, int]]) -> None:
    """Events of several streams are told in the order of their ids."""
    event = Told("u").created()
    told = in_order(Logged(f"{at}-{n}".encode(), p, event) for at, n, p in places)
    found = [parse_event_id(event_id(one.entry_id, one.partition)) for one in told]
    assert found == sorted(EventId(*one) for one in places)


def test_since() -> None:
    """One id is meant for all, several each for its own; an empty one for nothing."""
    one = EventId(5, 0, 1)
    assert last_events(["a", "b"], "5-0-1") == {"a": one, "b": one}
    assert last_events(["a", "b"], {"b": "5-0-1"}) == {"a": None, "b": one}
    assert last_events(["a"], None) == {"a": None}
    assert last_events(["a"], "") == {"a": None}


@pytest.mark.parametrize(
    ("since", "is_lost"),
    [
        pytest.param(EventId(500, 3, 7), False, id="the newest"),
        pytest.param(EventId(500, 4, 7), True, id="behind the newest of its stream"),
        pytest.param(EventId(900, 0, 8), False, id="later than a stream that is quiet"),
        pytest.param(EventId(NOW + 59_000, 0, 8), False, id="by a clock that goes wrong"),
        pytest.param(EventId(NOW + 61_000, 0, 8), True, id="in no present"),
    ],
)
def test_lost_history(since: EventId, is_lost: bool) -> None:
    """Catches ids of a Redis that is gone which count as if nothing had been missed since."""
    assert is_of_lost_history(since, 7, read_to=(500, 3), now=NOW) is is_lost
