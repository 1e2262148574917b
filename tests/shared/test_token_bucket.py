"""The sums of the token bucket, without Redis."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.token_bucket import LIMIT_FORM, Bucket, Limit, limit_of, take


def test_a_burst_and_then_the_rate() -> None:
    """A rested caller may burst; after that one request passes for each token earned."""
    limit, bucket, passed = Limit(10.0, 5), None, []
    for tick in range(100):  # a request every 20 ms
        bucket, verdict = take(bucket, limit, tick / 50)
        passed.append(verdict.allowed)
    assert passed[:5] == [True] * 5
    assert 5 + 18 <= sum(passed) <= 5 + 20


@given(
    st.integers(1, 1000),
    st.integers(1, 1000),
    st.lists(st.floats(0, 10), min_size=1, max_size=200),
)
def test_never_more_than_the_limit(rate: int, burst: int, gaps: list[float]) -> None:
    """Whenever requests come, no more pass than the burst and what was earned since."""
    limit, bucket, now, passed = Limit(float(rate), burst), None, 1000.0, 0
    for gap in gaps:
        now += gap
        bucket, verdict = take(bucket, limit, now)
        passed += verdict.allowed
        assert 0 <= verdict.remaining < burst
        assert (verdict.wait_s == 0) is verdict.allowed
    assert passed <= burst + rate * (now - 1000.0) + 1e-6


@given(st.integers(1, 1000), st.integers(1, 1000), st.floats(0, 0.999))
def test_whoever_waits_as_told_passes(rate: int, burst: int, left: float) -> None:
    """The time to wait is enough, and not much longer than needed."""
    limit = Limit(float(rate), burst)
    bucket, verdict = take(Bucket(left, 5.0), limit, 5.0)
    assert not verdict.allowed
    assert take(bucket, limit, 5.0 + verdict.wait_s + 1e-9)[1].allowed
    assert not take(bucket, limit, 5.0 + verdict.wait_s * 0.9)[1].allowed


def test_a_clock_that_goes_back_gives_nothing() -> None:
    """Otherwise a corrected clock would give a burst away, or block for as long."""
    limit = Limit(1.0, 10)
    bucket, verdict = take(Bucket(0.5, 100.0), limit, 50.0)
    assert not verdict.allowed
    assert bucket.tokens == 0.5


@pytest.mark.parametrize(
    "text", ["0/s burst 5", "5/s burst 0", "5", "-1/s burst 1", "5/m burst 1"]
)
def test_what_is_no_limit(text: str) -> None:
    """A limit that lets nothing pass, or has another form, is refused at the start."""
    assert not re.match(LIMIT_FORM, text)


def test_how_a_limit_is_written() -> None:
    """The form in the settings is read as it says; the window is what it takes to refill."""
    assert re.match(LIMIT_FORM, "50/s burst 1000")
    assert limit_of("50/s burst 1000") == Limit(50.0, 1000)
    assert limit_of("3/s burst 10").window_s == 4
