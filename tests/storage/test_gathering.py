"""Reads of several ranges: each byte as asked, and as few requests as the gaps allow."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.storage.gathering import WIDEST_GAP, gathered, runs
from services.storage.ranges import Span

SIZE: Final = 6 * WIDEST_GAP
CONTENT: Final = random.Random(1).randbytes(SIZE)


class Source:
    """A store that counts what it is asked for, and gives it in pieces of any size."""

    def __init__(self, seed: int, *, ends_at: int = SIZE) -> None:
        self.asked: Final[list[Span]] = []
        self.open = 0
        self._sizes: Final = random.Random(seed)
        self._content: Final = CONTENT[:ends_at]

    async def read(self, start: int, length: int) -> AsyncIterator[bytes]:
        """Yield the bytes, fewer if there are fewer."""
        self.asked.append(Span(start, length))
        self.open += 1
        try:
            wanted = self._content[start : start + length]
            while wanted:
                size = self._sizes.choice([1, 7, 5000, SIZE])
                yield wanted[:size]
                wanted = wanted[size:]
        finally:
            self.open -= 1


_spans: Final = (
    st.lists(st.integers(0, SIZE), min_size=2, max_size=12, unique=True)
    .map(sorted)
    .map(lambda cuts: [Span(a, b - a) for a, b in zip(cuts[::2], cuts[1::2], strict=False)])
    .flatmap(st.permutations)
)


@given(spans=_spans, seed=st.integers(0, 100))
async def test_each_span_has_its_bytes(spans: Sequence[Span], seed: int) -> None:
    """Whatever lies between, and however the store cuts its pieces, no byte is another's."""
    source = Source(seed)
    async with gathered(source.read, spans) as read:
        for span in spans:
            got = b"".join([piece async for piece in read(*span)])
            assert got == CONTENT[span.start : span.end]
            assert source.open <= 1
    assert source.open == 0
    assert source.asked == runs(spans)


@pytest.mark.parametrize(
    ("spans", "reads"),
    [
        ([Span(1000 * n, 1) for n in range(50)], 1),
        ([Span(1000 * n, 1) for n in reversed(range(50))], 50),
        ([Span(0, 10), Span(10 + WIDEST_GAP, 1)], 1),
        ([Span(0, 10), Span(11 + WIDEST_GAP, 1)], 2),
        ([Span(5, 5), Span(100, 5), Span(0, 1), Span(20, 1)], 2),
    ],
)
def test_how_many_reads(spans: Sequence[Span], reads: int) -> None:
    """Neighbours are one read; wide gaps are not read in vain, and the order stays."""
    assert len(runs(spans)) == reads


async def test_a_store_that_ends_too_early() -> None:
    """Whoever reads is told by the bytes that are missing, and does not wait for ever."""
    spans = [Span(0, 5), Span(100, 5), Span(200, 5)]
    async with gathered(Source(1, ends_at=102).read, spans) as read:
        got = [b"".join([piece async for piece in read(*span)]) for span in spans]
    assert got == [CONTENT[:5], CONTENT[100:102], b""]
