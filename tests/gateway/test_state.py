"""Folding: whatever order events come in, and however often, a state only goes forward."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.gateway.dialects import ALL
from services.gateway.folding import fold, move, require_writable
from services.gateway.record import JOB_FIELDS, from_fields, to_fields
from services.gateway.state import AFTER_ALL, Change, ProgressState
from shared.events import (
    JobEvent,
    JobProgress,
    LifecycleEvent,
    MalformedEvent,
    UploadProgress,
)
from tests.gateway.dialects.harness import said
from tests.gateway.feed import Position
from tests.gateway.samples import SIZE, START, Told

SIZES = st.one_of(st.none(), st.integers(0, 10), st.integers(0, 2**50))
LATEST_MS = 250_000_000_000_000
Step: TypeAlias = LifecycleEvent | Position


@st.composite
def lives(draw: st.DrawFn) -> list[Step]:
    """Return all that is told of one upload, in order."""
    size = draw(SIZES)
    told = Told("one", size=size)
    offsets = draw(st.lists(st.integers(0, size or 2**50), max_size=6))
    told_of: list[Any] = [told.created()]
    told_of += [told.position(one) for one in sorted(offsets)]
    safe = max(offsets, default=0)
    ends: dict[str, Callable[[], list[Any]]] = {
        "none": list,
        "failed": lambda: [told.failed(offset=safe // 2)],
        "cancelled": lambda: [told.cancelled(offset=safe)],
        "expired": lambda: [told.expired()],
        "duplicate": lambda: [told.duplicate(), told.stored()],
        "completed": lambda: [told.completed(), told.stored(), *processing_of(draw, told)],
        "processed": lambda: [told.completed(), *processing_of(draw, told), told.stored()],
        "deleted": lambda: [told.completed(), told.stored(), told.deleted()],
    }
    return told_of + ends[draw(st.sampled_from(sorted(ends)))]()


def processing_of(draw: st.DrawFn, told: Told) -> list[Any]:
    """Return what is told of a job, from nothing to its end."""
    steps = draw(st.lists(st.integers(0, 100), max_size=4))
    told_of: list[Any] = [told.queued()]
    told_of += [told.started(stage="reading"), *map(told.processing, sorted(steps))]
    told_of += [draw(st.sampled_from([told.processed, told.broken]))()]
    return told_of[: draw(st.integers(0, len(told_of)))]


def applied(state: ProgressState | None, told: Step) -> ProgressState | None:
    """Return what fold or move makes of a state."""
    if not isinstance(told, Position):
        return fold(state, told) or state
    return state if state is None else move(state, told) or state


@given(lives(), st.data())
def test_never_goes_backwards(life: list[Step], data: st.DataObject) -> None:
    """In any order, with repeats, neither counter nor bytes nor percentage ever decrease."""
    shuffled = data.draw(st.permutations(life + life))
    state: ProgressState | None = None
    for told in shuffled:
        after = applied(state, told)
        if state is not None:
            assert after is not None
            assert after.seq >= state.seq
            assert after.bytes_uploaded >= state.bytes_uploaded
            assert after.percentage >= state.percentage
            assert after.job_version >= state.job_version
            assert not state.job_is_over or after.job_status == state.job_status
        state = after


@given(lives(), st.data())
def test_end_is_the_same_in_any_order(life: list[Step], data: st.DataObject) -> None:
    """Once all lifecycle events have been seen, their order has made no difference."""
    shuffled = data.draw(st.permutations(life + life))
    in_order = out_of_order = None
    for told in life:
        in_order = applied(in_order, told)
    for told in shuffled:
        out_of_order = applied(out_of_order, told)
    assert in_order is not None
    assert out_of_order is not None
    assert out_of_order.seq == in_order.seq
    assert out_of_order.status == in_order.status
    assert out_of_order.video_id == in_order.video_id
    assert out_of_order.error_message == in_order.error_message
    assert out_of_order.job_seq == in_order.job_seq
    assert out_of_order.job_status == in_order.job_status
    assert out_of_order.result == in_order.result


def test_a_position_before_the_first_event_of_its_job() -> None:
    """The two families have no common order: what the upload tells does not undo a position."""
    told = Told()
    state = None
    for one in (told.created(), told.processing(30), told.duplicate(cached_result={"rows": 1})):
        state = applied(state, one)
    assert state is not None
    assert (state.job_seq, state.job_progress, state.result) == (0, 30.0, {"rows": 1})


@given(lives(), st.data())
def test_the_halves_do_not_touch(life: list[Step], data: st.DataObject) -> None:
    """However the events of job and upload interleave, each half is as without the other."""
    of_job = [one for one in life if isinstance(one, JobEvent | JobProgress)]
    of_upload = [one for one in life if one not in of_job]
    turns = data.draw(st.permutations([True] * len(of_job) + [False] * len(of_upload)))
    jobs, uploads = iter(of_job), iter(of_upload)
    # The first event makes the state; without one a job's event would, from its facts.
    mixed = upload_alone = both_alone = applied(None, next(uploads))
    turns.remove(False)
    for turn in turns:
        mixed = applied(mixed, next(jobs if turn else uploads))
    for told in life[1:]:
        upload_alone = upload_alone if told in of_job else applied(upload_alone, told)
        both_alone = applied(both_alone, told)
    assert mixed is not None
    assert upload_alone is not None
    assert both_alone is not None
    for name, text in to_fields(mixed).items():
        expected = both_alone if name in JOB_FIELDS else upload_alone
        assert text == to_fields(expected)[name]


@given(lives(), st.integers(0, 2**50), st.integers(0, LATEST_MS))
def test_a_position_never_follows_the_end(life: list[Step], offset: int, at: int) -> None:
    """Once an upload is over, no position, however far or late, changes anything."""
    state: ProgressState | None = None
    for told in life:
        state = applied(state, told)
    assert state is not None
    late = UploadProgress(upload_id="one", seq=1, at=at, offset=offset, size=None)
    assert not state.is_over or move(state, late) is None


@given(lives())
def test_whole_percentage_means_complete(
    life: list[Step],
) -> None:
    """100.0 is reached exactly with completion, even when all bytes are there before it."""
    state: ProgressState | None = None
    for told in life:
        state = applied(state, told)
        assert state is not None
        assert (state.percentage == 100.0) == (state.completed_at is not None)
        assert 0.0 <= state.percentage <= 100.0


def test_all_bytes_without_completion_are_not_whole() -> None:
    """An upload whose last byte has arrived, but is not safe yet, shows 99.99."""
    told = Told()
    state = fold(None, told.created())
    assert state is not None
    state = move(state, told.position(SIZE))
    assert state is not None
    assert state.percentage == 99.99


def test_a_length_once_known_is_kept() -> None:
    """An event that was made before the deferred length was known does not take it away."""
    told = Told(size=None)
    state = fold(None, told.created())
    assert state is not None
    state = move(state, told.position(500, size=1000))
    assert state is not None
    state = fold(state, told.failed())
    assert state is not None
    assert (state.total_bytes, state.percentage) == (1000, 50.0)


def test_a_failure_keeps_its_reason() -> None:
    """What is told of the processing after a failure does not wipe the reason out."""
    told = Told()
    state = fold(fold(None, told.failed("Too big")), told.queued())
    assert state is not None
    assert (state.status, state.error_message) == ("error", "Too big")
    assert state.error_code == "CHECKSUM_MISMATCH"


def test_duplicate_leads_on_as_a_completion_does() -> None:
    """A page that waits for its upload goes to the results of the copy, too."""
    told = Told()
    created, url = told.created(), f"/dashboard/videos/{told.id}/results"
    state = fold(fold(None, created), told.duplicate(redirect_url=url))
    assert state is not None
    assert (state.status, state.redirect_url) == ("completed", url)


def test_what_only_the_completion_tells_is_kept() -> None:
    """Where to go next, and when it was complete, outlive the events that follow."""
    told = Told()
    state = None
    for event in (told.created(), told.completed(), told.stored(), told.deleted()):
        state = fold(state, event)
    assert state is not None
    assert state.redirect_url == f"/dashboard/videos/{told.id}/results"
    assert state.completed_at == START + 1000


def test_a_position_at_the_same_byte_tells_that_the_upload_rests() -> None:
    """The speed falls to 0 when nothing arrives; an older position does not bring it back."""
    told = Told()
    state = fold(None, told.created())
    assert state is not None
    fast = told.position(1000, at=START + 10, speed=5000.0)
    moving = move(state, fast)
    assert moving is not None
    resting = move(moving, told.position(1000, at=START + 20))
    assert resting is not None
    assert resting.upload_speed == 0.0
    assert move(resting, fast) is None


@given(
    lives(),
    st.lists(
        st.tuples(
            st.integers(0, 2**62),
            st.floats(allow_nan=True, allow_infinity=True),
            st.integers(0, 2**63),
            SIZES,
        ),
        max_size=5,
    ),
)
def test_speed_and_estimate_are_always_finite(
    life: list[Step],
    positions: list[tuple[int, float, int, int | None]],
) -> None:
    """Whatever a producer claims, clients get a finite speed and an estimate or none."""
    state: ProgressState | None = None
    for told in life[:1] + [
        UploadProgress(upload_id="one", seq=1, at=at, offset=offset, size=size, speed=speed)
        for offset, speed, at, size in positions
    ]:
        state = applied(state, told)
        assert state is not None
        assert math.isfinite(state.upload_speed)
        assert state.upload_speed >= 0
        assert state.estimated_completion is None or state.estimated_completion.endswith("Z")
        assert "NaN" not in json.dumps(to_fields(state))


def test_estimate() -> None:
    """It is the last news' time plus what is left at this speed; unknown while resting."""
    told = Told()
    state = fold(None, told.created())
    assert state is not None
    assert state.estimated_completion is None
    moving = move(state, told.position(250_000, at=START, speed=100_000.0))
    assert moving is not None
    assert moving.estimated_completion == "2025-01-01T12:00:20Z"
    crawling = move(moving, told.position(250_001, at=START, speed=0.5))
    assert crawling is not None
    assert crawling.estimated_completion is None


def as_stored(fields: dict[str, str]) -> dict[bytes, bytes]:
    """Return fields as Redis gives them back."""
    return {name.encode(): text.encode() for name, text in fields.items()}


@given(lives())
def test_round_trip(life: list[Step]) -> None:
    """A state survives its way through the hash in Redis."""
    state: ProgressState | None = None
    for told in life:
        state = applied(state, told)
        assert state is not None
        assert from_fields(as_stored(to_fields(state))) == state


@given(st.text(max_size=20), st.text(max_size=20), st.dictionaries(st.text(), st.text()))
def test_round_trip_of_any_text(filename: str, content_type: str, more: dict[str, str]) -> None:
    """Names and metadata come back as they were, whatever characters they have."""
    state = fold(None, Told().created())
    assert state is not None
    odd = msgspec.structs.replace(
        state, filename=filename, content_type=content_type, metadata=more
    )
    assert from_fields(as_stored(to_fields(odd))) == odd


def test_fields_of_the_contract() -> None:
    """The hash has the fields that document 000 lists (lines 213 to 231), written so."""
    told = Told("abc", at=START)
    state = None
    for event in (told.created(), told.completed()):
        state = fold(state, event)
    assert state is not None
    fields = to_fields(state)
    listed = {
        "session_id": "abc",
        "user_id": "ada",
        "percentage": "100.0",
        "bytes_uploaded": "2250000",
        "total_bytes": "2250000",
        "upload_speed": "0.0",
        "estimated_completion": "",
        "status": "completed",
        "filename": "test_video.mp4",
        "content_type": "video/mp4",
        "video_id": "abc",
        "analysis_id": "job-of-abc",
        "redirect_url": "/dashboard/videos/abc/results",
        "error_message": "",
        "error_code": "",
        "started_at": "2025-01-01T12:00:00Z",
        "last_updated": "2025-01-01T12:00:01Z",
        "completed_at": "2025-01-01T12:00:01Z",
        "metadata": '{"filename":"test_video.mp4"}',
    }
    assert {name: fields[name] for name in listed} == listed


FRESH = fold(None, Told("abc").created())
assert FRESH is not None
SOUND = as_stored(to_fields(FRESH))


@given(
    st.dictionaries(
        st.sampled_from(sorted(SOUND)),
        st.one_of(
            st.binary(max_size=8),
            st.sampled_from([b"nan", b"-1", b"1e308", b"9" * 400, b"[]", b"{", b"null"]),
        ),
        max_size=4,
    )
)
@example({b"metadata": b"{"})
@example({b"filename": b"\xff"})
@example({b"last_updated_ms": b"9" * 30})
@example({b"upload_speed": b"nan"})
@example({b"total_bytes": b"9" * 400, b"upload_speed": b"2"})
def test_a_damaged_hash_hurts_nobody(damage: dict[bytes, bytes]) -> None:
    """A hash that is not one of ours is no state, or one that can be told to clients."""
    state = from_fields({**SOUND, **damage})
    if state is not None:
        to_fields(state)
        for dialect in ALL:
            said(dialect, Change.SNAPSHOT, state)


def test_no_hash_is_no_state() -> None:
    """An upload without a projection has no state."""
    assert from_fields({}) is None


@pytest.mark.parametrize("field", ["at", "created_at"])
def test_a_time_that_cannot_be_written_is_refused(field: str) -> None:
    """Microseconds taken for milliseconds would be a year that RFC 3339 has no digits for."""
    told = Told(at=START * 1000) if field == "created_at" else Told()
    event = told.created(at=START * 1000 if field == "at" else START)
    with pytest.raises(MalformedEvent):
        require_writable(event)
    require_writable(Told(at=LATEST_MS).created())


@pytest.mark.parametrize(
    "told",
    [
        pytest.param(Told("user:ada"), id="the key of another kind"),
        pytest.param(Told("x" * 129), id="too long"),
        pytest.param(Told("a\nb"), id="two lines"),
    ],
)
def test_an_id_that_is_none_is_refused(told: Told) -> None:
    """Catches an event that is recorded over a user's list, which nobody could read then."""
    with pytest.raises(MalformedEvent):
        require_writable(told.created())


def test_a_failure_without_a_code_has_none() -> None:
    """Catches a code of no characters, where clients look whether there is one."""
    told = Told()
    state = fold(fold(None, told.created()), told.failed(error_code=""))
    assert state is not None
    assert state.error_code is None
    state = fold(state, told.broken(error_code=""))
    assert state is not None
    assert state.job_error_code is None


def test_a_number_after_all_others_is_refused() -> None:
    """Catches an event after which nothing that is told of an upload counts any more."""
    told = Told()
    with pytest.raises(MalformedEvent):
        require_writable(told.created(seq=AFTER_ALL))
    require_writable(told.created(seq=AFTER_ALL - 1))


@pytest.mark.parametrize("values", [{"size": 2**63}, {"offset": 10**400}])
def test_an_absurd_size_is_refused(values: dict[str, int]) -> None:
    """Sizes that no store holds, and no float, are refused, and as positions ignored."""
    told = Told(size=values.get("size"))
    with pytest.raises(MalformedEvent):
        require_writable(told.created(offset=values.get("offset", 0)))
    assert FRESH is not None
    assert move(FRESH, told.position(values.get("offset", 0))) is None


def test_a_position_from_nowhen_is_no_news() -> None:
    """A position whose time cannot be written changes nothing."""
    told = Told()
    state = fold(None, told.created())
    assert state is not None
    assert move(state, told.position(1000, at=START * 1000)) is None
