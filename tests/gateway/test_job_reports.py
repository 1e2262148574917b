"""Reports of workers: what is read of them, what counts, and what they become. No I/O."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.errors import JobEnded, SequenceGap, Unprocessable
from services.gateway.folding import fold, move
from services.gateway.job_reports import (
    Completed,
    Failed,
    JobReport,
    Plan,
    Processed,
    Progress,
    Queued,
    Started,
    event_of,
    planned,
    position_of,
    read_reports,
)
from shared.errors import InvalidRequest
from tests.gateway.samples import START, Told

KINDS: Any = {"queued": Queued, "started": Started, "completed": Completed, "failed": Failed}
STORY: list[Processed] = [Queued(seq=1), Started(seq=2), Started(seq=3), Completed(seq=4)]


def body_of(value: object) -> bytes:
    """Return a value as JSON."""
    return json.dumps(value).encode()


def nested(levels: int) -> Any:
    """Return an object with so many more below it."""
    return {"a": nested(levels - 1)} if levels else {}


def test_every_kind_is_read() -> None:
    """Each type has the members that it needs, alone or in a list."""
    sent: list[dict[str, Any]] = [
        {"type": "queued", "seq": 1, "at": "2025-01-01T12:00:00Z", "message": "in line"},
        {"type": "started", "seq": 2, "stage": "validating", "host": "ignored"},
        {"type": "progress", "seq": 2, "progress": 40, "current": 4, "total": 10},
        {"type": "completed", "seq": 3, "result": {"rows": [1, None, "x"]}},
        {"type": "failed", "seq": 3, "error_code": "BAD_CSV", "message": "line 7"},
    ]
    read = read_reports(body_of(sent))
    assert [type(one) for one in read] == [Queued, Started, Progress, Completed, Failed]
    assert [read_reports(body_of(one)) for one in sent] == [[one] for one in read]
    assert read[1] == Started(seq=2, stage="validating")
    assert read[3] == Completed(seq=3, result={"rows": [1, None, "x"]})


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"type":"queued","seq":1}}', b"["])
def test_no_json(body: bytes) -> None:
    """What is no JSON at all is told apart from what is no report."""
    with pytest.raises(InvalidRequest):
        read_reports(body)


@pytest.mark.parametrize(
    "value",
    [
        *(None, 7, "queued", {}, [], [[]], {"type": "sung", "seq": 1}, {"type": "queued"}),
        {"type": "queued", "seq": 0},
        {"type": "queued", "seq": "1"},
        {"type": "queued", "seq": 2**53},
        {"type": "queued", "seq": 1, "at": "yesterday"},
        {"type": "queued", "seq": 1, "at": "2025-01-01T12:00:00"},
        {"type": "queued", "seq": 1, "stage": "x" * 101},
        {"type": "queued", "seq": 1, "message": "x" * 2001},
        {"type": "progress", "seq": 1},
        {"type": "progress", "seq": 1, "progress": 100.1},
        {"type": "progress", "seq": 1, "progress": -1},
        {"type": "progress", "seq": 1, "progress": None},
        {"type": "progress", "seq": 1, "progress": 5, "current": -1},
        {"type": "completed", "seq": 1, "result": [1]},
        {"type": "failed", "seq": 1, "error_code": 5},
        {"type": "completed", "seq": 1, "result": {"n": [2**63]}},
        {"type": "completed", "seq": 1, "result": {"n": -(2**63) - 1}},
        {"type": "completed", "seq": 1, "result": nested(32)},
        [{"type": "queued", "seq": 1}, {"type": "queued"}],
        [{"type": "queued", "seq": 1}] * 101,
    ],
    ids=lambda value: str(value)[:40],
)
def test_no_report(value: object) -> None:
    """What is not as the description says is refused, with where it is wrong."""
    with pytest.raises(Unprocessable, match=r"Expected|Invalid|missing|The result") as refused:
        read_reports(body_of(value))
    assert len(refused.value.message) < 310


def test_the_largest_result() -> None:
    """What every reader can take in is taken."""
    result = {"n": [2**63 - 1, -(2**63), 1.5, True, None], "deep": nested(29)}
    sent = {"type": "completed", "seq": 1, "result": result}
    assert read_reports(body_of(sent)) == [Completed(seq=1, result=result)]


@pytest.mark.parametrize("result", [b"9" * 5000 + b"}}", b"[" * 50_000, b'{"a":' * 50_000])
def test_without_end(result: bytes) -> None:
    """Endless numbers and nesting beyond any parser are refused as all bad bodies are."""
    with pytest.raises((InvalidRequest, Unprocessable)):
        read_reports(b'{"type":"completed","seq":1,"result":{"a":' + result)


@given(st.binary(max_size=60), st.booleans())
def test_garbage(garbage: bytes, inside: bool) -> None:
    """Whatever bytes come, they are read or refused, and nothing else happens."""
    body = b'{"type":"queued","seq":1,"stage":"%b"}' % garbage if inside else garbage
    with contextlib.suppress(InvalidRequest, Unprocessable):
        assert read_reports(body)


def test_a_life_in_order() -> None:
    """Each report that is due counts, one by one or together."""
    for seq, one in enumerate(STORY):
        assert planned(seq, [one], is_over=False) == Plan([one], None, 1, 0, seq + 1)
    assert planned(0, STORY, is_over=False) == Plan(STORY, None, 4, 0, 4)


def test_of_progress_the_newest_counts() -> None:
    """Positions before the next event, and of an earlier one, are not written."""
    ten, twenty = Progress(seq=1, progress=10), Progress(seq=1, progress=20)
    assert planned(1, [ten, twenty], is_over=False) == Plan([], twenty, 2, 0, 1)
    assert planned(1, [ten, STORY[1]], is_over=False) == Plan([STORY[1]], None, 2, 0, 2)
    assert planned(2, [ten], is_over=False) == Plan([], None, 0, 1, 2)
    after = Progress(seq=2, progress=5)
    assert planned(1, [STORY[1], after], is_over=False) == Plan([STORY[1]], after, 2, 0, 2)


@pytest.mark.parametrize(
    ("seq", "reports", "expected"),
    [
        (0, [Started(seq=2)], 1),
        (1, [Started(seq=3)], 2),
        (1, [Started(seq=2), Completed(seq=4)], 3),
        (0, [Progress(seq=1, progress=5)], 1),
        (2, [Progress(seq=3, progress=5)], 3),
    ],
)
def test_holes(seq: int, reports: list[JobReport], expected: int) -> None:
    """What would leave a hole is refused with the number that is due."""
    with pytest.raises(SequenceGap) as refused:
        planned(seq, reports, is_over=False)
    assert refused.value.details == {"expected": expected}


@pytest.mark.parametrize(
    "one", [Started(seq=5), Failed(seq=7), Progress(seq=4, progress=5), Queued(seq=5)]
)
def test_after_the_end(one: JobReport) -> None:
    """Nothing follows the end of a job, in the same request or later."""
    with pytest.raises(JobEnded):
        planned(4, [one], is_over=True)
    with pytest.raises(JobEnded):
        planned(0, [*STORY, one], is_over=False)


def test_the_end_may_be_repeated() -> None:
    """Who has not got the answer to the last report sends it again, or all of them."""
    assert planned(4, STORY[3:], is_over=True) == Plan([], None, 0, 1, 4)
    assert planned(4, STORY, is_over=True) == Plan([], None, 0, 4, 4)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=12))
def test_retries_in_any_order(batches: list[list[int]]) -> None:
    """However requests overtake and repeat each other, what is written is 1, 2, 3, …"""
    written: list[Processed] = []
    for batch in batches:
        before = len(written)
        over = before == len(STORY)
        try:
            plan = planned(before, [STORY[one] for one in batch], is_over=over)
        except (SequenceGap, JobEnded):
            continue
        written += plan.lifecycle
        assert plan.seq == len(written)
        assert plan.accepted + plan.known == len(batch)
    assert written == STORY[: len(written)]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_a_report_becomes(kind: str) -> None:
    """An event has what the worker says and the facts of its upload, and folds."""
    told = Told()
    more: dict[str, Any] = {}
    if kind == "completed":
        more = {"result": {"rows": 3}}
    elif kind == "failed":
        more = {"error_code": "BAD_CSV"}
    sent = {"type": kind, "seq": 1, "stage": "reading", "message": "so far", **more}
    (report,) = read_reports(body_of(sent))
    assert not isinstance(report, Progress)
    about: Any = {"upload_id": told.id, "facts": told.facts, "offset": 5, "now": START}
    event = event_of(report, **about)
    state = fold(None, event)
    assert state is not None
    assert (event.upload, event.offset, event.at) == (told.facts, 5, START)
    assert (state.job_seq, state.stage, state.message) == (1, "reading", "so far")
    assert state.job_id == told.facts.job_id
    assert (state.result or {}) == more.get("result", {})
    assert state.job_error_code == more.get("error_code")


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2025-01-01T11:59:59.5Z", START - 500),
        ("2025-01-01T13:59:59+02:00", START - 1000),
        ("2125-01-01T12:00:00Z", START),
        ("1900-01-01T12:00:00Z", 0),
    ],
)
def test_times(at: str, expected: int) -> None:
    """A time with any offset is understood; none is in the future, or before 1970."""
    (report,) = read_reports(body_of({"type": "queued", "seq": 1, "at": at}))
    assert not isinstance(report, Progress)
    told = Told()
    about: Any = {"upload_id": told.id, "facts": told.facts, "offset": 5, "now": START}
    assert event_of(report, **about).at == expected


def test_what_progress_becomes() -> None:
    """A position follows the event that it names."""
    told = Told()
    state = fold(None, told.queued())
    assert state is not None
    sent = {"type": "progress", "seq": 1, "progress": 40, "current": 4, "total": 10}
    (report,) = read_reports(body_of({**sent, "stage": "reading", "message": "rows"}))
    assert isinstance(report, Progress)
    at = state.last_updated + 1
    moved = move(state, position_of(report, upload_id=told.id, job_id="job", at=at))
    assert moved is not None
    assert (moved.job_progress, moved.current, moved.total) == (40, 4, 10)
    assert (moved.stage, moved.message, moved.job_updated) == ("reading", "rows", at)
