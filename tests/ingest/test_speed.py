"""How a rate is smoothed, on a clock that the test turns."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.speed import SpeedMeter


def test_first_rate_is_taken_as_it_is() -> None:
    """The first measurement is the rate, without waiting for the smoothing."""
    assert SpeedMeter(0, 0.0).advance(1000, 1.0) == 1000.0


def test_begins_at_the_offset() -> None:
    """Bytes that were there before the request do not count."""
    assert SpeedMeter(5000, 10.0).advance(6000, 12.0) == 500.0


def test_nothing_is_known_at_once() -> None:
    """Until a tenth of a second has passed, the rate is the one before, at first none."""
    meter = SpeedMeter(0, 0.0)
    assert meter.advance(10**9, 0.05) == 0.0
    assert meter.advance(1000, 1.0) == 1000.0
    assert meter.advance(10**9, 1.05) == 1000.0


def test_change_shows_after_seconds() -> None:
    """After three seconds a new rate weighs two thirds."""
    meter = SpeedMeter(0, 0.0)
    meter.advance(1000, 1.0)
    assert meter.advance(1000, 4.0) == pytest.approx(1000 * math.exp(-1))


def test_steps_do_not_matter() -> None:
    """Measured often or seldom, a constant rate gives itself."""
    often, seldom = SpeedMeter(0, 0.0), SpeedMeter(0, 0.0)
    rates = [often.advance(tick * 100, tick / 10) for tick in range(1, 101)]
    assert rates == pytest.approx([1000] * 100)
    assert seldom.advance(10_000, 10.0) == pytest.approx(1000)


def test_never_negative() -> None:
    """An offset that was cut back after a failed sync is no negative speed."""
    meter = SpeedMeter(1000, 0.0)
    assert meter.advance(0, 1.0) == 0.0
    assert meter.advance(500, 2.0) > 0.0


@given(
    st.lists(st.tuples(st.integers(0, 2**40), st.floats(-1, 1e6, allow_nan=False)), max_size=30)
)
def test_stays_within_what_was_seen(steps: list[tuple[int, float]]) -> None:
    """Whatever offsets and clocks do, the rate is between 0 and the fastest one seen."""
    meter, offset, at, fastest = SpeedMeter(0, 0.0), 0, 0.0, 0.0
    for new_offset, elapsed in steps:
        new_at = at + elapsed
        rate = meter.advance(new_offset, new_at)
        if new_at - at >= 0.1:
            fastest = max(fastest, (new_offset - offset) / (new_at - at))
            offset, at = new_offset, new_at
        assert 0.0 <= rate <= fastest * (1 + 1e-9)
