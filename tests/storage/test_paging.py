"""What parameters ask for, and pages of lists as Redis compares them, on plain data."""

from __future__ import annotations

import bisect
import string
from typing import Final
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from services.storage.paging import (
    Query,
    cursor_of,
    matches,
    position_of,
    query_of,
    span,
)
from services.storage.record import (
    SORTS,
    FileRecord,
    Owner,
    Sort,
    fields_of,
    folded,
    id_in,
    list_key,
    members_of,
    record_from,
)
from shared.errors import InvalidRequest

IDS: Final = st.uuids(version=4).map(str)
NAMES: Final = st.text(alphabet="aAbBäÄß\0 1\U0001f600", max_size=6) | st.text(max_size=20)
RECORDS: Final = st.builds(
    FileRecord,
    file_id=IDS,
    seq=st.integers(1, 9),
    tenant=st.sampled_from(("acme", "a/b", "{x}")),
    user_id=st.sampled_from(("alice", "b{o}b", "é:/")),
    filename=NAMES,
    content_type=st.sampled_from(("image/png", "IMAGE/JPEG; q=1", "video/mp4", "", "image")),
    size=st.integers(0, 20) | st.integers(0, 2**63 - 1),
    sha256=st.sampled_from(("", "ab" * 32)),
    created_at=st.integers(0, 20) | st.integers(0, 250_000_000_000_000),
    completed_at=st.integers(0, 250_000_000_000_000),
)


def member_of(record: FileRecord, sort: Sort) -> bytes:
    """Return what stands for a record in a list."""
    return members_of(
        record.file_id,
        created_at=record.created_at,
        filename=record.filename,
        size=record.size,
    )[sort]


def cut(members: list[bytes], query: Query) -> list[bytes]:
    """Return what ZRANGE BYLEX does with a span of a sorted list of members."""
    first, last = reversed(span(query)) if query.descending else span(query)
    if first == b"-":
        low = 0
    else:
        find = bisect.bisect_left if first[:1] == b"[" else bisect.bisect_right
        low = find(members, first[1:])
    high = len(members) if last == b"+" else bisect.bisect_left(members, last[1:])
    found = members[low : max(low, high)]
    return found[::-1] if query.descending else found


QUERIES: Final = st.builds(
    Query,
    limit=st.integers(1, 5),
    sort=st.sampled_from(SORTS),
    descending=st.booleans(),
    type=st.sampled_from(("", "image", "image/png", "video/mp4")),
    name=st.sampled_from(("", "a", "ä", "ss")),
    created_after=st.none() | st.integers(0, 20),
    created_before=st.none() | st.integers(0, 20),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(RECORDS, max_size=12, unique_by=lambda one: one.file_id), QUERIES)
def test_pages_cover_what_is_asked_for(records: list[FileRecord], query: Query) -> None:
    """Turning the pages to their end shows each wanted file once, in order, and no other."""
    by_id = {one.file_id: one for one in records}
    members = sorted(member_of(one, query.sort) for one in records)
    seen: list[FileRecord] = []
    rest = query
    while True:
        there = [by_id[id_in(one)] for one in cut(members, rest)]
        page = [one for one in there if matches(query, one)][: query.limit]
        seen += page
        if len(page) < query.limit:
            break
        cursor = cursor_of(
            member_of(page[-1], query.sort), query.sort, descending=query.descending
        )
        after = position_of(cursor, query.sort, descending=query.descending)
        rest = replace(query, after=after)

    assert {one.file_id for one in seen} == {
        one.file_id for one in records if matches(query, one)
    }
    assert len(seen) == len({one.file_id for one in seen})
    keys = {"created_at": "created_at", "size": "size", "name": "filename"}
    values = [getattr(one, keys[query.sort]) for one in seen]
    if query.sort == "name":
        names = (folded(one[:200]).replace("\0", "\1") for one in values)
        values = [one.encode(errors="replace") for one in names]
    assert values == sorted(values, reverse=query.descending)


@given(RECORDS)
def test_a_record_survives_its_hash(record: FileRecord) -> None:
    """What is written to Redis is what is read there; whatever is damaged is no record."""
    flat = [part.encode("utf-8", "replace") for part in fields_of(record)]
    values = flat[1::2]

    assert record_from(record.file_id, values) == record
    assert record_from(record.file_id, [None, *values[1:]]) is None
    assert record_from(record.file_id, [b"-1", *values[1:]]) is None


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_owners_have_lists_of_their_own(a: str, b: str, c: str, d: str) -> None:
    """No two owners share a list, whatever their ids hold; all of one are in one slot."""
    one, other = Owner(a, b), Owner(c, d)

    assert (list_key(one, "name") == list_key(other, "name")) == (one == other)
    tags = {list_key(one, sort).partition("{")[2].partition("}")[0] for sort in SORTS}
    assert len(tags) == 1
    assert tags != {""}


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode), st.sampled_from(SORTS))
def test_no_cursor_of_others_is_taken(junk: bytes, sort: Sort) -> None:
    """A cursor that we did not make is refused, and nothing worse happens."""
    text = junk.decode(errors="replace")
    try:
        member = position_of(text, sort, descending=True)
    except InvalidRequest:
        return
    assert str(UUID(id_in(member))) == id_in(member)


def test_a_cursor_is_good_for_its_order_only() -> None:
    """A place in another list would skip files, or show them twice."""
    member = b"%012x" % 5 + b"0f0e1d2c-3b4a-4958-8776-655443322110"
    cursor = cursor_of(member, "created_at", descending=True)

    assert query_of({"cursor": cursor}).after == member
    for params in ({"sort": "size"}, {"order": "asc"}, {"sort": "name", "order": "desc"}):
        with pytest.raises(InvalidRequest, match="same order"):
            query_of({"cursor": cursor, **params})


def test_what_is_asked_for_by_default() -> None:
    """Without a word the newest come first; names begin at A, sizes at the largest."""
    assert query_of({}) == Query(limit=50, sort="created_at", descending=True)
    assert not query_of({"sort": "name"}).descending
    assert query_of({"sort": "size"}).descending
    assert query_of({"unknown": "x", "type": "IMAGE/*"}).type == "image"
    asked = query_of({"created_after": "1970-01-01t01:00:00.5+01:00"})
    assert asked.created_after == 500


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("limit", one) for one in ("0", "201", "-1", "1e2", "٣", "", " 5", "99999")),
        *(("sort", one) for one in ("", "date", "NAME", "-name")),
        *(("order", one) for one in ("", "up", "DESC")),
        *(("type", one) for one in ("image/", "/png", "a/b/c", "a b", "*/*", "ä", "x" * 300)),
        *(
            ("created_after", one)
            for one in ("", "now", "2026-01-01", "2026-13-01T00:00:00Z", "0", "1700000000")
        ),
        ("created_before", "2026-01-01T00:00:00"),
        ("created_before", "2026-01-01T00:00:00 01:00"),
        ("created_before", "٢٠٢٦-01-01T00:00:00Z"),
        ("name", "x" * 257),
        *(("cursor", one) for one in ("", "x", "K25hbWUg", "=" * 9, "ä", "A" * 5000)),
    ],
)
def test_bad_parameters(name: str, value: str) -> None:
    """What is not as documented is refused by name, and not taken for something else."""
    with pytest.raises(InvalidRequest, match=name):
        query_of({name: value})


def test_filters() -> None:
    """Types are compared as media types are, names without case, times to the millisecond."""
    record = FileRecord(
        file_id="0f0e1d2c-3b4a-4958-8776-655443322110",
        seq=2,
        tenant="acme",
        user_id="alice",
        filename="Straße.MP4",
        content_type="Video/MP4; codecs=avc1",
        size=1,
        sha256="",
        created_at=1000,
        completed_at=1000,
    )

    assert matches(query_of({"type": "video"}), record)
    assert matches(query_of({"type": "video/mp4", "name": "STRASSE.mp"}), record)
    assert not matches(query_of({"type": "vid"}), record)
    assert matches(Query(created_after=1000, created_before=1001), record)
    assert not matches(Query(created_before=1000), record)
    assert not matches(Query(created_after=1001), record)
    assert not matches(query_of({"name": string.ascii_letters}), record)
