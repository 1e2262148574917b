"""Pages of sessions: what is on them, and what a client can bring back. No I/O."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.listing import Brief, Position, cursor_of, page_of, position_of
from shared.errors import InvalidRequest

IDS = st.from_regex(r"\A[A-Za-z0-9._-]{1,128}\Z")
POSITIONS = st.builds(Position, st.integers(0, 250_000_000_000_000), IDS)
CLOSE = st.builds(Position, st.integers(0, 3), st.sampled_from("abcdef"))
"""So close to each other that many are of the same time."""


@given(POSITIONS)
def test_a_cursor_comes_back(position: Position) -> None:
    """What a page ended with is what the next one begins after, whatever the id."""
    assert position_of(cursor_of(position)) == position


@given(
    st.text(max_size=300) | st.binary(max_size=100).map(lambda b: base64.b64encode(b).decode())
)
def test_other_texts_are_no_cursors(text: str) -> None:
    """A text that we have not made is refused, and never a crash."""
    try:
        position = position_of(text)
    except InvalidRequest:
        return
    assert position_of(cursor_of(position)) == position


@pytest.mark.parametrize(
    "text", ["5", "5.", ".a", "-5.a", "5.a:b", "5.a b", "²5.a", "5.a\n", ""]
)
def test_cursors_of_another_form(text: str) -> None:
    """Base64 alone makes no cursor: with a colon it would name a key of another kind."""
    cursor = base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()
    with pytest.raises(InvalidRequest):
        position_of(cursor)


@given(st.sets(CLOSE), st.sets(CLOSE), st.sets(CLOSE), st.integers(1, 5))
def test_each_session_once(
    there: set[Position], coming: set[Position], going: set[Position], limit: int
) -> None:
    """While sessions come and go between pages, those that stay are each seen exactly once."""
    coming -= there
    going &= there
    seen: list[Position] = []
    now, after = set(there), None
    while True:
        page, after = page_of((Brief(one, "") for one in now), limit=limit, after=after)
        seen += page
        assert len(page) <= limit
        if after is None:
            break
        now = (now | coming) - going
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == len(set(seen))
    assert there - going <= set(seen) <= there | coming
