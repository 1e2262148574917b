"""The order over partitions, for reads of any shape."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.stream_order import TailEntry, in_order
from shared.streams import Entry, entry_order, event_stream, progress_stream

COUNT = 4
IDS = st.lists(
    st.tuples(st.integers(1, 12), st.integers(0, 2)),
    min_size=1,
    max_size=COUNT * 3,
    unique=True,
)
STREAMS = st.dictionaries(
    st.sampled_from([*(event_stream(n) for n in (0, 2, 100)), progress_stream(0)]), IDS
)


def entries(ids: list[tuple[int, int]]) -> list[Entry]:
    """Return a stream's entries as Redis has them: in order."""
    return [(b"%d-%d" % one, {b"d": b"x"}) for one in sorted(ids)]


@given(STREAMS)
def test_reading_to_the_end_is_one_order(shape: dict[str, list[tuple[int, int]]]) -> None:
    """Read in pieces, lifecycle entries come once each and never before an earlier one."""
    streams = {key: entries(ids) for key, ids in shape.items()}
    cursors: dict[str, bytes] = dict.fromkeys(streams, b"0-0")
    told: list[TailEntry] = []
    while True:
        reads = [
            (key, [one for one in all_ if entry_order(one[0]) > entry_order(cursors[key])])
            for key, all_ in streams.items()
        ]
        batch = in_order([(key, new[:COUNT]) for key, new in reads if new], COUNT)
        cursors.update(batch.cursors)
        told += batch.entries
        if not batch.entries:
            break
    lifecycle = [one for one in told if one.stream.startswith("events:")]
    wanted = sorted(
        (*entry_order(entry_id), int(key[9:-1]), key)
        for key, all_ in streams.items()
        for entry_id, _ in all_
        if key.startswith("events:")
    )
    assert [(*entry_order(one.id), one.stream) for one in lifecycle] == [
        (ms, number, key) for ms, number, _, key in wanted
    ]
    for key, all_ in streams.items():
        assert [one.id for one in told if one.stream == key] == [one[0] for one in all_]


def test_what_is_beyond_a_cut_waits() -> None:
    """A stream that was cut holds back what is newer in others; positions wait for nothing."""
    slow = entries([(n, 0) for n in range(1, COUNT + 1)])
    fast = entries([(3, 0), (9, 0)])
    batch = in_order(
        [(event_stream(1), slow), (event_stream(0), fast), (progress_stream(0), fast)], COUNT
    )
    assert [(one.stream[-4:-1], one.id) for one in batch.entries[:-2]] == [
        *(("p01", b"1-0"), ("p01", b"2-0"), ("p00", b"3-0"), ("p01", b"3-0"), ("p01", b"4-0"))
    ]
    assert batch.cursors == {
        event_stream(1): b"4-0",
        event_stream(0): b"3-0",
        progress_stream(0): b"9-0",
    }
    assert batch.is_cut


def test_a_stream_that_is_all_beyond_the_cut_keeps_its_cursor() -> None:
    """What is handed on later is read again, from where it was."""
    slow = entries([(n, 0) for n in range(1, COUNT + 1)])
    batch = in_order([(event_stream(0), slow), (event_stream(1), entries([(7, 0)]))], COUNT)
    assert event_stream(1) not in batch.cursors
