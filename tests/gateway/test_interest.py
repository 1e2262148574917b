"""Which streams are read: pure counting, and what a gateway makes of it."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.interest import Interest
from shared.sidecar import new_id
from shared.streams import event_stream, partition_of, progress_stream

PARTITIONS = 4
IDS = [new_id() for _ in range(6)]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["watch", "unwatch", "follow", "unfollow", "wait"]),
        st.sampled_from(IDS),
    ),
    max_size=40,
)


@given(STEPS)
def test_what_is_needed_is_wanted_and_nothing_for_ever(steps: list[tuple[str, str]]) -> None:
    """Whatever comes and goes, streams are wanted while needed, and no longer than a linger."""
    interest, now = Interest(partitions=PARTITIONS, linger_s=10), 0.0
    watched: set[str] = set()
    followers = 0
    last: Counter[str] = Counter()
    for step, upload_id in steps:
        if step == "watch" and upload_id not in watched:
            watched.add(upload_id)
            interest.watch(upload_id)
        elif step == "unwatch" and upload_id in watched:
            watched.discard(upload_id)
            interest.unwatch(upload_id)
        elif step == "follow":
            followers += 1
            interest.follow()
        elif step == "unfollow" and followers:
            followers -= 1
            interest.unfollow()
        elif step == "wait":
            now += 6
        needed = {stream for one in watched for stream in interest.of(one)}
        needed |= {event_stream(n) for n in range(PARTITIONS)} if followers else set()
        for stream in needed:
            last[stream] = int(now) + 1
        wanted = interest.wanted(now)
        assert needed <= wanted
        assert wanted == {stream for stream, at in last.items() if now - (at - 1) < 10}
        assert set(interest.ids) == {one.encode() for one in watched}
    assert interest.is_in([b"x", *(one.encode() for one in watched)]) == bool(watched)


def test_followers_need_no_positions_of_others() -> None:
    """Who follows everything needs new uploads from everywhere, and positions of its own."""
    interest = Interest(partitions=PARTITIONS)
    interest.follow()
    interest.watch(IDS[0])
    assert interest.changed.is_set()
    own = progress_stream(partition_of(IDS[0], PARTITIONS))
    assert interest.wanted(0.0) == {own, *(event_stream(n) for n in range(PARTITIONS))}


def test_a_short_need_lingers() -> None:
    """What was asked for between two looks is read for a while."""
    interest = Interest(partitions=PARTITIONS, linger_s=30)
    interest.linger(interest.of(IDS[0]), 0.0)
    assert interest.wanted(29.9) == set(interest.of(IDS[0]))
    assert interest.wanted(30.0) == set()
