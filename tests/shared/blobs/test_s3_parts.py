"""Which bytes count, and into which parts the next ones go."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.blobs.s3_parts import (
    LEAST_PART,
    MAX_OBJECT,
    MAX_PART,
    MAX_PARTS,
    Layout,
    Part,
    Piece,
    Span,
    Turn,
    count,
    open_span,
    plan_join,
)

MIB = 1024 * 1024
GIB = 1024 * MIB


def begin(
    layout: Layout | None = None,
    *,
    total: int | None,
    start: int = 0,
    fence: int = 1,
    listed: tuple[int, ...] = (),
    least: int = LEAST_PART,
) -> Layout:
    """Open a span where another one ended."""
    return open_span(
        layout or Layout(multipart_id="m"),
        listed,
        turn=Turn(fence),
        start=start,
        cut=start,
        total=total,
        least=least,
        parallel=4,
    )


@given(total=st.integers(0, MAX_OBJECT), least=st.integers(LEAST_PART, 512 * MIB))
def test_any_file_fits(total: int, least: int) -> None:
    """Up to 5 TiB, in at most 9,000 parts, none too small or too large for the server."""
    span = begin(total=total, least=least).spans[-1]
    assert least <= span.part_size(1) <= MAX_PART
    assert -(-total // span.part_size(1)) <= MAX_PARTS - MAX_PARTS // 10


def test_a_file_of_unknown_length_fits() -> None:
    """The parts grow, so that 5 TiB fit and small files still have small parts."""
    span = begin(total=None).spans[-1]
    sizes = [span.part_size(number) for number in range(1, MAX_PARTS + 1)]
    assert sizes[0] == sizes[899] == LEAST_PART
    assert max(sizes) <= MAX_PART
    fitting = [end for end in itertools.accumulate(sizes) if end <= MAX_OBJECT]
    assert len(fitting) < MAX_PARTS - 500  # what is left may be skipped


@given(
    total=st.integers(GIB, MAX_OBJECT),
    crashes=st.lists(st.integers(1, 30), min_size=1, max_size=100),
)
def test_a_hundred_crashes_leave_room(total: int, crashes: list[int]) -> None:
    """Each one costs a few part numbers, and the size of the next parts makes up for it."""
    layout = Layout(multipart_id="m")
    end = 0
    for fence, parts in enumerate(crashes, 1):
        listed = tuple(range(1, (layout.spans[-1].first if layout.spans else 0)))
        layout = begin(layout, total=total, start=end, fence=fence, listed=listed)
        end = min(end + parts * layout.spans[-1].size, total)
    span = layout.spans[-1]
    assert span.first + -(-(total - end) // span.size) + crashes[-1] <= MAX_PARTS


@pytest.mark.parametrize(
    ("layout", "total"),
    [
        (Layout(multipart_id="m"), MAX_OBJECT + 1),
        (
            Layout(
                multipart_id="m",
                spans=(Span(turn=Turn(1), first=1, start=0, cut=0, size=5),),
                next_number=MAX_PARTS + 1,
            ),
            100,
        ),
    ],
    ids=["too-large", "no-number-left"],
)
def test_what_does_not_fit_is_refused(layout: Layout, total: int) -> None:
    """With an error that says so, before a byte is sent."""
    with pytest.raises(OSError, match="does not fit"):
        begin(layout, total=total)


def test_numbers_that_may_be_in_flight_are_skipped() -> None:
    """Only a holder that has closed its turn leaves the very next number to the next one."""
    layout = begin(total=100 * LEAST_PART)
    assert layout.spans[-1].first == 1
    after_crash = begin(layout, total=None, start=3 * LEAST_PART, listed=(1, 2, 3))
    assert after_crash.spans[-1].first == 3 + 4 + 1
    nothing_came = begin(layout, total=None, start=0)
    assert nothing_came.spans[-1].first == 4 + 1
    closed = Layout(multipart_id="m", spans=layout.spans, next_number=4)
    assert begin(closed, total=None, start=3 * LEAST_PART).spans[-1].first == 4


def parts(*numbers: int, size: int = 10) -> dict[int, Part]:
    """Return parts of one size by number."""
    return {number: Part(number, size, "etag") for number in numbers}


SPAN = Span(turn=Turn(1), first=1, start=0, cut=0, size=10)
HEIR = Span(turn=Turn(2), first=8, start=20, cut=23, size=10)


@pytest.mark.parametrize(
    ("spans", "there", "pieces", "total", "end"),
    [
        pytest.param([], {}, [], None, 0, id="nothing"),
        pytest.param([SPAN], parts(1, 2, 3), [], None, 30, id="parts"),
        pytest.param([SPAN], parts(1, 3, 4), [], None, 10, id="missing-middle"),
        pytest.param([SPAN], parts(2, 3), [], None, 0, id="missing-first"),
        pytest.param([SPAN], parts(1) | parts(2, size=9), [], None, 10, id="short"),
        pytest.param([SPAN], parts(1) | parts(2, size=9), [], 19, 19, id="short-last"),
        pytest.param([SPAN], parts(1) | parts(2, size=11), [], 21, 10, id="long"),
        pytest.param([SPAN], parts(1), [Piece(Turn(1), 10, 4)], None, 14, id="piece"),
        pytest.param([SPAN], parts(1), [Piece(Turn(1), 11, 4)], None, 10, id="gap"),
        pytest.param([SPAN], parts(1, 2), [Piece(Turn(1), 10, 4)], None, 20, id="old-piece"),
        pytest.param(
            [], {}, [Piece(Turn(1), 0, 4), Piece(Turn(2), 4, 3)], None, 7, id="pieces"
        ),
        pytest.param(
            [], {}, [Piece(Turn(1), 0, 9), Piece(Turn(2), 4, 3)], None, 7, id="newer-cuts"
        ),
        pytest.param(
            [], {}, [Piece(Turn(1), 0, 9), Piece(Turn(2), 0, 3)], None, 3, id="newer-replaces"
        ),
        pytest.param(
            [SPAN], parts(1, 2), [Piece(Turn(2), 10, 3)], None, 13, id="late-part-is-cut"
        ),
        pytest.param([SPAN, HEIR], parts(1, 2, 3, 8), [], None, 30, id="zombie-part"),
        pytest.param([SPAN, HEIR], parts(1, 2, 3), [], None, 20, id="zombie-part-alone"),
        pytest.param([SPAN, HEIR], parts(1, 8), [], None, 10, id="lost-part-of-before"),
        pytest.param(
            [SPAN, HEIR], parts(1, 2), [Piece(Turn(1), 20, 3)], None, 23, id="heirs-first-part"
        ),
        pytest.param(
            [SPAN, HEIR], parts(1, 2), [Piece(Turn(1), 20, 9)], None, 23, id="zombie-piece"
        ),
    ],
)
def test_what_counts(
    spans: list[Span],
    there: dict[int, Part],
    pieces: list[Piece],
    total: int | None,
    end: int,
) -> None:
    """Only what follows without a gap, and of an older turn only what the newer one saw."""
    counted = count(spans, there, pieces, total)
    assert counted.end == end
    assert counted.parts_end == sum(one.size for one in counted.parts)
    assert counted.end - counted.parts_end == sum(one.length for one in counted.ranges)


@given(
    sizes=st.lists(st.one_of(st.integers(0, 30), st.integers(0, 5000)), max_size=40),
    least=st.integers(1, 500),
)
def test_a_join_takes_every_byte_once(sizes: list[int], least: int) -> None:
    """In order; no part but the last is too small, and what is read is bounded."""
    plan = plan_join(sizes, least=least)
    lengths = [sum(one.length for one in part) for part in plan]
    least = max(least, -(-sum(sizes) // 9000))
    assert all(length >= least for length in lengths[:-1])
    assert len(plan) <= MAX_PARTS
    taken = dict.fromkeys(range(len(sizes)), 0)
    last = 0
    for one in itertools.chain.from_iterable(plan):
        assert one.source >= last
        assert one.start == taken[one.source]
        taken[one.source] += one.length
        last = one.source
    assert taken == dict(enumerate(sizes))
    read = [sum(one.length for one in part) for part in plan if len(part) > 1]
    assert all(length <= 2 * least for length in read)


@pytest.mark.parametrize("size", [1, LEAST_PART, GIB, 300 * GIB, MAX_OBJECT])
def test_a_copy_is_made_of_few_large_parts(size: int) -> None:
    """None is over the server's limit, and none takes longer than an answer may."""
    plan = plan_join([size], least=LEAST_PART)
    assert sum(one.length for part in plan for one in part) == size
    assert all(len(part) == 1 and part[0].length <= 2 * GIB for part in plan)
    assert len(plan) <= MAX_PARTS


def test_what_is_too_large_is_not_joined() -> None:
    """No object can be over 5 TiB; the server would say so only at the end."""
    with pytest.raises(OSError, match="too large"):
        plan_join([MAX_OBJECT, 1], least=LEAST_PART)
