"""Tests of ``shared.percent``."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.percent import percent_of

sizes = st.integers(min_value=1, max_value=2**50)


@given(size=sizes, data=st.data())
def test_only_a_complete_upload_is_at_100(size: int, data: st.DataObject) -> None:
    """All bytes received is not yet all bytes safe."""
    offset = data.draw(st.integers(min_value=0, max_value=size))
    assert 0.0 <= percent_of(offset, size, complete=False) < 100.0
    assert percent_of(offset, size, complete=True) == 100.0


@given(size=sizes, data=st.data())
def test_more_bytes_are_never_less_percent(size: int, data: st.DataObject) -> None:
    """A progress bar does not go back."""
    first = data.draw(st.integers(min_value=0, max_value=size))
    second = data.draw(st.integers(min_value=first, max_value=size))
    assert percent_of(first, size, complete=False) <= percent_of(second, size, complete=False)


def test_an_unknown_or_empty_length_has_no_percentage() -> None:
    """Nothing is divided by a length that is deferred or zero."""
    assert percent_of(5, None, complete=False) == 0.0
    assert percent_of(0, 0, complete=False) == 0.0
