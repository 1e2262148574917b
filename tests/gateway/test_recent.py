"""What is remembered of the last minutes, for how long, and how it completes a record."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.folding import fold
from services.gateway.log import LOG_LIMIT, Logged
from services.gateway.recent import Recent
from tests.gateway.samples import EVE, Told


def test_a_record_that_lags_is_completed() -> None:
    """All that came after the recorded state is folded in, not only the newest event."""
    told, recent = Told(), Recent()
    created, completed, stored = told.created(), told.completed(), told.stored()
    for event in (created, completed, stored):
        recent.remember(event)
    state = recent.newer(told.id, fold(None, created))
    assert state is not None
    assert (state.seq, state.status) == (3, "completed")
    assert state.redirect_url == f"/dashboard/videos/{told.id}/results"
    assert state.completed_at == completed.at


def test_a_record_that_is_ahead_stays() -> None:
    """Nothing older than what is recorded changes it; and nothing is made of nothing."""
    told, recent = Told(), Recent()
    recent.remember(told.created())
    ahead = fold(None, told.completed())
    assert recent.newer(told.id, ahead) == ahead
    assert recent.newer("unknown", None) is None
    assert recent.newer("unknown", ahead) == ahead


@given(st.permutations(range(5)), st.lists(st.integers(0, 4), max_size=5))
def test_order_and_repeats_make_no_difference(order: list[int], again: list[int]) -> None:
    """Events are folded in their own order, whatever order they came in."""
    told, recent = Told(), Recent()
    story = [told.created(), told.completed(), told.stored(), told.queued(), told.deleted()]
    for index in (*order, *again):
        recent.remember(story[index])
    state = None
    for event in story:
        state = fold(state, event)
    assert recent.newer(told.id, None) == state
    assert len(recent) == 5


def test_old_events_are_forgotten() -> None:
    """An upload that nothing was heard of for the time is gone at the next event."""
    old, new, recent = Told(), Told(), Recent(keep_s=0.05)
    recent.remember(old.created())
    time.sleep(0.06)
    recent.remember(new.created())
    assert recent.newer(old.id, None) is None
    assert recent.newer(new.id, None) is not None
    assert len(recent) == 1


def test_events_are_bounded() -> None:
    """Over the limit the uploads that have been silent longest go first."""
    uploads, recent = [Told() for _ in range(6)], Recent(limit=5)
    for one in uploads[:5]:
        recent.remember(one.created())
    recent.remember(uploads[0].completed())
    assert len(recent) == 5
    kept = [one.id for one in uploads if recent.newer(one.id, None)]
    assert kept == [one.id for one in (uploads[0], *uploads[2:5])]


def test_bytes_are_bounded() -> None:
    """Few events with much in them are too many as well; the newest one is kept, or none."""
    uploads, recent = [Told() for _ in range(20)], Recent(limit_bytes=200_000)
    for one in uploads:
        recent.remember(one.created())
    assert len(recent) == 20
    large = {"note": "x" * 10_000}
    for one in uploads[:10]:
        recent.remember(one.processed(result=large))
        recent.remember(one.processed(result=large))
    kept = [one.id for one in uploads if recent.newer(one.id, None)]
    assert kept == [one.id for one in uploads[7:10]]
    recent.remember(uploads[0].processed(result={"note": "x" * 100_000}))
    assert len(recent) == 0
    for one in uploads:
        recent.remember(one.created())
    assert len(recent) == 20


def test_one_upload_cannot_take_all_the_room() -> None:
    """Of an upload with endless events the newest are kept."""
    told, recent = Told(), Recent()
    recent.remember(told.created())
    for _ in range(100):
        recent.remember(told.queued())
    assert len(recent) == 1 + LOG_LIMIT
    for _ in range(100):
        recent.remember(told.stored())
    assert len(recent) == 2 * LOG_LIMIT
    state = recent.newer(told.id, None)
    assert state is not None
    assert (state.seq, state.job_seq) == (101, 100)


def test_uploads_of_an_owner() -> None:
    """The uploads of each owner can be listed, and forgotten ones are not listed."""
    own, other, recent = Told(), Told(owner=EVE), Recent(limit=2)
    recent.remember(own.created())
    recent.remember(other.created())
    assert recent.of(tenant="acme", user_id="ada") == (own.id,)
    assert recent.of(tenant="other", user_id="ada") == ()
    recent.remember(other.completed())
    assert recent.of(tenant="acme", user_id="ada") == ()
    assert recent.of(tenant="acme", user_id="eve") == (other.id,)


def test_upload_of_a_job() -> None:
    """A job leads to its upload for as long as that is remembered."""
    one, other, recent = Told(), Told(), Recent(limit=2)
    recent.remember(one.created())
    recent.remember(one.completed())
    assert recent.of_job(one.facts.job_id) == one.id
    recent.remember(other.queued())
    assert recent.of_job(one.facts.job_id) is None
    assert recent.of_job(other.facts.job_id) == other.id


def test_places_of_events() -> None:
    """Each event stands where its first copy was read; one that was not read has no place."""
    told, recent = Told(), Recent()
    created, queued = told.created(), told.queued()
    recent.remember(created, b"5-1", 3)
    recent.remember(created, b"9-0", 3)
    recent.remember(queued)
    assert recent.logged(told.id) == [Logged(b"5-1", 3, created)]
    recent.remember(queued, b"6-0", 3)
    assert recent.logged(told.id) == [Logged(b"5-1", 3, created), Logged(b"6-0", 3, queued)]
    assert recent.logged("unknown") == []
