"""Decisions of RFC 9110 for GET and HEAD, in tables and against Python's slices."""

from __future__ import annotations

from email.utils import formatdate
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from services.storage.conditions import Validators
from services.storage.ranges import MOST_RANGES, Selection, Span, content_range, select

ETAG = '"v1"'
MODIFIED_S = 784111777  # Sun, 06 Nov 1994 08:49:37 GMT
MODIFIED = "Sun, 06 Nov 1994 08:49:37 GMT"
EARLIER = "Sun, 06 Nov 1994 08:49:36 GMT"
LATER = "Sun, 06 Nov 1994 08:49:38 GMT"
SIZE = 1000
WHOLE = Selection(200, (Span(0, SIZE),))
FIRST_TEN = Selection(206, (Span(0, 10),))


def ask(
    method: str = "GET", size: int = SIZE, etag: str = ETAG, former: str = "", **fields: str
) -> Selection:
    """Select with fields named like ``if_none_match``."""
    headers = {name.title().replace("_", "-"): value for name, value in fields.items()}
    own = Validators(etag, MODIFIED_S, former)
    return select(headers=headers, method=method, size=size, validators=own)


def part(*spans: tuple[int, int]) -> Selection:
    """Return the answer with these parts, each an offset and a length."""
    return Selection(206, tuple(Span(*span) for span in spans))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-9", (0, 10)),
        ("bytes=10-19", (10, 10)),
        ("bytes=999-999", (999, 1)),
        ("bytes=0-999", (0, 1000)),
        ("bytes=0-1000", (0, 1000)),
        ("bytes=990-9223372036854775807", (990, 10)),
        ("bytes=0-", (0, 1000)),
        ("bytes=999-", (999, 1)),
        ("bytes=-1", (999, 1)),
        ("bytes=-1000", (0, 1000)),
        ("bytes=-1001", (0, 1000)),
        ("bytes=-9223372036854775808", (0, 1000)),
        ("bytes=00-009", (0, 10)),
        ("BYTES=0-9", (0, 10)),
        ("bytes= 0-9\t", (0, 10)),
        ("bytes=,0-9 , ,", (0, 10)),
    ],
)
def test_satisfiable_range(value: str, expected: tuple[int, int]) -> None:
    """One satisfiable range is answered with its bytes, cut at the end of the file."""
    assert ask(range=value) == part(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes=0-9,20-29", [(0, 10), (20, 10)]),
        ("bytes=20-29,0-9", [(20, 10), (0, 10)]),
        ("bytes=0-9,-10", [(0, 10), (990, 10)]),
        ("bytes=-10,0-9", [(990, 10), (0, 10)]),
        ("bytes=500-,0-0", [(500, 500), (0, 1)]),
        ("bytes=0-9,10-19", [(0, 20)]),
        ("bytes=10-19,0-9", [(0, 20)]),
        ("bytes=0-9,5-14", [(0, 15)]),
        ("bytes=0-99,5-14", [(0, 100)]),
        ("bytes=0-9,0-9", [(0, 10)]),
        ("bytes=50-59,0-9,55-64", [(50, 15), (0, 10)]),
        ("bytes=0-9,50-59,8-12", [(0, 13), (50, 10)]),
        ("bytes=90-99,0-9,20-29,10-19", [(90, 10), (0, 30)]),
        ("bytes=0-9,5000-", [(0, 10)]),
        ("bytes=5000-,-0,0-9,2000-3000", [(0, 10)]),
        ("bytes=0-,-500,1-2", [(0, 1000)]),
    ],
)
def test_set_of_ranges(value: str, expected: list[tuple[int, int]]) -> None:
    """Ranges that overlap or touch become one, and those without a byte are left out."""
    assert ask(range=value) == part(*expected)


@pytest.mark.parametrize("value", ["bytes=1000-,2000-2001", "bytes=-0,-0", "bytes=5000-,-0"])
def test_unsatisfiable_set(value: str) -> None:
    """A set without a single byte of the file gets 416."""
    assert ask(range=value) == Selection(416)


def test_many_ranges() -> None:
    """As many ranges as are allowed are each answered."""
    value = ",".join(f"{n}-{n}" for n in range(0, 2 * MOST_RANGES, 2))
    assert ask(range=f"bytes={value}") == part(*((2 * n, 1) for n in range(MOST_RANGES)))


def test_a_former_tag_stays_good() -> None:
    """Who has the tag that was sent before the hash was known goes on with it."""
    known = partial(ask, etag='"hash"', former=ETAG)
    assert known(range="bytes=0-9", if_range=ETAG) == FIRST_TEN
    assert known(range="bytes=0-9", if_range='"hash"') == FIRST_TEN
    assert known(if_none_match=f"W/{ETAG}").status == 304
    assert known(if_match=ETAG) == WHOLE
    assert known(if_match='""').status == 412
    assert ask(if_match='""').status == 412


@pytest.mark.parametrize("value", ["bytes=1000-", "bytes=1000-1001", "bytes=-0", "bytes=-00"])
def test_unsatisfiable_range(value: str) -> None:
    """A range that begins after the end, or has no bytes, gets 416."""
    assert ask(range=value) == Selection(416)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=--1",
        "bytes=a-b",
        "bytes=0x0-9",
        "bytes=+0-9",
        "bytes=0-+9",
        "bytes=0 - 9",
        "bytes=0-9-",
        "bytes=1_0-19",
        "bytes=1e0-9",
        "bytes=0.0-9",
        "bytes=9-0",
        "bytes=1001-1000",
        "bytes=0-9;",
        "bytes=0-9\n",
        "bytes=0-9=",
        "bytes =0-9",
        "bytes:0-9",
        " bytes=0-9",
        "items=0-9",
        "seconds=0-9",
        "=0-9",
        "0-9",
        "bytes=0-9, a-b",
        "bytes=0-9,30-20",
        "bytes=2000-,30-20",
        "bytes=0-9;20-29",
        "bytes=" + ",".join(f"{n}-{n}" for n in range(0, 2 * (MOST_RANGES + 1), 2)),
        "bytes=\u0660-\u0669",
        "bytes=\uff10-\uff19",
        "bytes=\u00b2-",
        "bytes=0-\u00b9",
        "bytes=" + "0" * 19 + "1-",
        "bytes=-" + "9" * 20,
        "bytes=0-" + "9" * 5000,
    ],
)
def test_malformed_range_is_ignored(value: str) -> None:
    """Another unit, too many ranges, and anything that is no ASCII range get the whole file."""
    assert ask(range=value) == WHOLE


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, Selection(200, (Span(0, 0),))),
        ("bytes=0-", Selection(416)),
        ("bytes=0-0", Selection(416)),
        ("bytes=-0", Selection(416)),
        ("bytes=-1", Selection(200, (Span(0, 0),))),
    ],
)
def test_empty_file(value: str | None, expected: Selection) -> None:
    """No range of an empty file gets a 206, for no Content-Range could describe it."""
    fields = {} if value is None else {"range": value}
    assert ask(size=0, **fields) == expected


@pytest.mark.parametrize("value", ["bytes=0-9", "bytes=2000-"])
def test_range_counts_only_for_get(value: str) -> None:
    """A HEAD is answered as if it had no Range, satisfiable or not."""
    assert ask("HEAD", range=value) == WHOLE
    assert ask("HEAD", range=value, if_range='"other"') == WHOLE


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (ETAG, True),
        ('"other"', False),
        (f"W/{ETAG}", False),
        ("v1", False),
        ("*", False),
        ("", False),
        (f'{ETAG}, "other"', False),
        (MODIFIED, True),
        (EARLIER, False),
        (LATER, False),
        ("Sunday, 06-Nov-94 08:49:37 GMT", True),
        ("Sun Nov  6 08:49:37 1994", True),
        ("yesterday", False),
    ],
)
def test_if_range(condition: str, holds: bool) -> None:
    """The Range counts only if If-Range is the strong tag or exactly the Last-Modified."""
    assert ask(range="bytes=0-9", if_range=condition) == (FIRST_TEN if holds else WHOLE)
    unsatisfiable = Selection(416) if holds else WHOLE
    assert ask(range="bytes=5000-", if_range=condition) == unsatisfiable


def test_if_range_of_a_weak_tag_never_holds() -> None:
    """A file whose own tag is weak is never sent in part on the word of that tag."""
    assert ask(etag='W/"v1"', range="bytes=0-9", if_range='W/"v1"') == WHOLE


def test_if_range_without_range() -> None:
    """If-Range alone changes nothing."""
    assert ask(if_range='"other"') == WHOLE
    assert ask(if_range=ETAG) == WHOLE


@pytest.mark.parametrize(
    ("tags", "weak", "strong"),
    [
        (ETAG, True, True),
        (f"W/{ETAG}", True, False),
        ("*", True, True),
        (" * ", True, True),
        ('"other"', False, False),
        (f'"other", {ETAG}', True, True),
        (f'"other",{ETAG},"third"', True, True),
        (f",, {ETAG}\t,", True, True),
        (f'W/"other", W/{ETAG}', True, False),
        ('"v1,", "v"', False, False),
        ('"a,b", "v1"', True, True),
        ("v1", False, False),
        ("", False, False),
        ('"v1', False, False),
        ('w/"v1"', False, False),
        (f"{ETAG} {ETAG}", False, False),
        (f"{ETAG}, junk", False, False),
        (f"*, {ETAG}", False, False),
        ('"v 1"', False, False),
        ('"V1"', False, False),
    ],
)
def test_entity_tag_lists(tags: str, weak: bool, strong: bool) -> None:
    """If-None-Match compares weakly, If-Match strongly; a malformed list matches nothing."""
    assert ask(if_none_match=tags).status == (304 if weak else 200)
    assert ask("HEAD", if_none_match=tags).status == (304 if weak else 200)
    assert ask(if_match=tags).status == (200 if strong else 412)


def test_a_tag_may_hold_a_comma() -> None:
    """A comma inside quotes does not end a tag."""
    assert ask(etag='"a,b"', if_none_match='"x", "a,b"').status == 304


@pytest.mark.parametrize(
    ("value", "reached"),
    [
        (MODIFIED, True),
        (LATER, True),
        (EARLIER, False),
        ("Sunday, 06-Nov-94 08:49:37 GMT", True),
        ("Sunday, 06-Nov-94 08:49:36 GMT", False),
        ("Wednesday, 01-Jan-69 00:00:00 GMT", True),
        ("Thursday, 01-Jan-70 00:00:00 GMT", False),
        ("Sun Nov  6 08:49:37 1994", True),
        ("Sun Nov 16 08:49:37 1994", True),
        ("Sun Nov  6 08:49:36 1994", False),
        ("Sun, 06 Nov 1994 08:49:60 GMT", True),
    ],
)
def test_dates(value: str, reached: bool) -> None:
    """All three forms of an HTTP-date are compared with Last-Modified by the second."""
    assert ask(if_modified_since=value).status == (304 if reached else 200)
    assert ask("HEAD", if_modified_since=value).status == (304 if reached else 200)
    assert ask(if_unmodified_since=value).status == (200 if reached else 412)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "0",
        "tomorrow",
        "2026-01-01T00:00:00Z",
        "Sun, 06 Nov 2094 08:49:37",
        "Sun, 06 Nov 2094 08:49:37 UTC",
        "Sun, 06 Nov 2094 08:49:37 +0000",
        "Sun, 6 Nov 2094 08:49:37 GMT",
        "Sun, 06 nov 2094 08:49:37 GMT",
        "Sun, 06 Nov 2094 24:00:00 GMT",
        "Sun, 06 Nov 2094 08:60:00 GMT",
        "Sun, 06 Nov 2094 08:49:61 GMT",
        "Wed, 30 Feb 2094 08:49:37 GMT",
        "Wed, 00 Jan 2094 08:49:37 GMT",
        "Wed, 01 Jan 0000 08:49:37 GMT",
        "Wed Jan 00 08:49:37 2094",
        "Sun, 06 Nov 2094 08:49:37 GMT\n",
        "Sun, 06 Nov \u0662\u0660\u0669\u0664 08:49:37 GMT",
        f"{LATER}, {LATER}",
    ],
)
def test_a_malformed_date_is_ignored(value: str) -> None:
    """A condition without a valid date is as if absent."""
    assert ask(if_modified_since=value) == WHOLE
    assert ask(if_unmodified_since=value) == WHOLE


# True: the condition holds; False: it fails; None: the field is absent.
_STATES = (None, True, False)


@pytest.mark.parametrize("if_match", _STATES)
@pytest.mark.parametrize("if_unmodified_since", _STATES)
@pytest.mark.parametrize("if_none_match", _STATES)
@pytest.mark.parametrize("if_modified_since", _STATES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_precedence(
    if_match: bool | None,
    if_unmodified_since: bool | None,
    if_none_match: bool | None,
    if_modified_since: bool | None,
    method: str,
) -> None:
    """Every combination of preconditions ends as the steps of section 13.2.2 say."""
    headers = {"Range": "bytes=0-9"}
    for name, state, holding, failing in (
        ("If-Match", if_match, ETAG, '"other"'),
        ("If-Unmodified-Since", if_unmodified_since, MODIFIED, EARLIER),
        ("If-None-Match", if_none_match, '"other"', ETAG),
        ("If-Modified-Since", if_modified_since, EARLIER, MODIFIED),
    ):
        if state is not None:
            headers[name] = holding if state else failing
    reads = method in ("GET", "HEAD")
    if if_match is False or (if_match is None and if_unmodified_since is False):
        expected = Selection(412)
    elif if_none_match is False:
        expected = Selection(304 if reads else 412)
    elif reads and if_none_match is None and if_modified_since is False:
        expected = Selection(304)
    else:
        expected = FIRST_TEN if method == "GET" else WHOLE
    assert expected == select(
        headers=headers, method=method, size=SIZE, validators=Validators(ETAG, MODIFIED_S)
    )


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([("if-none-match", '"other"'), ("IF-NONE-MATCH", ETAG)], Selection(304)),
        ([("If-Match", '"other"'), ("If-Match", ETAG)], WHOLE),
        ([("range", "bytes=0-9")], FIRST_TEN),
        ([("Range", "bytes=0-9"), ("Range", "bytes=20-29")], WHOLE),
        ([("Range", "bytes=0-9"), ("Range", "bytes=0-9")], WHOLE),
        ([("Range", "bytes=0-9"), ("If-Range", ETAG), ("If-Range", ETAG)], WHOLE),
        ([("If-Modified-Since", LATER), ("If-Modified-Since", LATER)], WHOLE),
    ],
)
def test_repeated_fields(lines: list[tuple[str, str]], expected: Selection) -> None:
    """Lines of one field are one list, which a field with a single value can't be."""
    headers: CIMultiDict[str] = CIMultiDict(lines)
    assert expected == select(
        headers=headers, method="GET", size=SIZE, validators=Validators(ETAG, MODIFIED_S)
    )


def test_content_range() -> None:
    """The last byte is counted in, and the size follows."""
    assert content_range(Span(10, 10), SIZE) == "bytes 10-19/1000"
    assert content_range(Span(999, 1), SIZE) == "bytes 999-999/1000"


positions = st.one_of(st.integers(0, 40), st.integers(0, 2**63 - 1))


specs = st.tuples(positions, st.none() | positions) | st.tuples(st.none(), positions)


def slice_of(spec: tuple[int | None, int | None], size: int) -> range:
    """Return the positions that Python's slices give for a spec; ``(None, n)`` is a suffix."""
    first, last = spec
    everything = range(size)
    if first is None:
        return everything[-last:] if last else range(0)
    return everything[first:] if last is None else everything[first : last + 1]


@given(
    size=st.integers(1, 50),
    wanted=st.lists(specs, min_size=1, max_size=8),
    space=st.sampled_from(["", " ", "\t", " , "]),
)
def test_sets_equal_slices(
    size: int, wanted: list[tuple[int | None, int | None]], space: str
) -> None:
    """Each byte of the slices is sent once and no other, those that were named first first."""
    text = f",{space}".join("-".join("" if n is None else str(n) for n in s) for s in wanted)
    got = ask(size=size, range=f"bytes={text}")
    if any(None not in spec and spec[1] < spec[0] for spec in wanted):  # type: ignore[operator]
        assert got == Selection(200, (Span(0, size),))
        return
    slices = [found for spec in wanted if (found := slice_of(spec, size))]
    assert got.status == (206 if slices else 416)
    sent = [range(span.start, span.end) for span in got.spans]
    assert sorted(n for one in sent for n in one) == sorted({n for one in slices for n in one})
    assert all(one.stop != other.start for one in sent for other in sent)
    owners = [next(i for i, s in enumerate(sent) if one[0] in s) for one in slices]
    assert list(dict.fromkeys(owners)) == list(range(len(sent)))


@given(
    size=st.integers(0, 50),
    value=st.text(st.sampled_from("bytes=0123456789-, \t*\u0663x"), max_size=20)
    | st.text(max_size=20)
    | st.builds("bytes={}".format, st.text(st.sampled_from("0123456789-,"), max_size=12)),
)
def test_any_range_header(size: int, value: str) -> None:
    """Whatever the header says, the answer is within the file."""
    got = ask(size=size, range=value)
    if got.status == 200:
        assert got.spans == (Span(0, size),)
    elif got.status == 416:
        assert got.spans == ()
    else:
        assert got.status == 206
        assert got.spans
        assert all(0 <= span.start < span.end <= size for span in got.spans)


@given(
    name=st.sampled_from(
        ["If-Match", "If-None-Match", "If-Range", "If-Modified-Since", "If-Unmodified-Since"]
    ),
    value=st.text(max_size=30) | st.text(st.sampled_from('W/"*, \tv1'), max_size=30),
)
def test_any_condition(name: str, value: str) -> None:
    """No condition, however malformed, raises or leads to a status outside the five."""
    got = select(
        headers={name: value, "Range": "bytes=0-9"},
        method="GET",
        size=SIZE,
        validators=Validators(ETAG, MODIFIED_S),
    )
    assert got in (FIRST_TEN, WHOLE, Selection(304), Selection(412))


@given(seconds=st.integers(0, 4_000_000_000), offset=st.integers(-2, 2))
def test_dates_as_python_writes_them(seconds: int, offset: int) -> None:
    """A date written by the standard library is read back to the same second."""
    got = select(
        headers={"If-Modified-Since": formatdate(seconds, usegmt=True)},
        method="GET",
        size=SIZE,
        validators=Validators(ETAG, seconds + offset),
    )
    assert got.status == (304 if offset <= 0 else 200)
