"""Decisions of RFC 9110 for GET and HEAD, in tables and against Python's slices."""

from __future__ import annotations

import re
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from services.storage.ranges import Selection, content_range, select

ETAG = '"v1"'
MODIFIED_S = 784111777  # Sun, 06 Nov 1994 08:49:37 GMT
MODIFIED = "Sun, 06 Nov 1994 08:49:37 GMT"
EARLIER = "Sun, 06 Nov 1994 08:49:36 GMT"
LATER = "Sun, 06 Nov 1994 08:49:38 GMT"
SIZE = 1000
WHOLE = Selection(200, 0, SIZE)
FIRST_TEN = Selection(206, 0, 10)


def ask(method: str = "GET", size: int = SIZE, etag: str = ETAG, **fields: str) -> Selection:
    """Select with fields named like ``if_none_match``."""
    headers = {name.title().replace("_", "-"): value for name, value in fields.items()}
    return select(headers=headers, method=method, size=size, etag=etag, modified_s=MODIFIED_S)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes=0-0", (206, 0, 1)),
        ("bytes=0-9", (206, 0, 10)),
        ("bytes=10-19", (206, 10, 10)),
        ("bytes=999-999", (206, 999, 1)),
        ("bytes=0-999", (206, 0, 1000)),
        ("bytes=0-1000", (206, 0, 1000)),
        ("bytes=990-9223372036854775807", (206, 990, 10)),
        ("bytes=0-", (206, 0, 1000)),
        ("bytes=999-", (206, 999, 1)),
        ("bytes=-1", (206, 999, 1)),
        ("bytes=-1000", (206, 0, 1000)),
        ("bytes=-1001", (206, 0, 1000)),
        ("bytes=-9223372036854775808", (206, 0, 1000)),
        ("bytes=00-009", (206, 0, 10)),
        ("BYTES=0-9", (206, 0, 10)),
        ("bytes= 0-9\t", (206, 0, 10)),
        ("bytes=,0-9 , ,", (206, 0, 10)),
    ],
)
def test_satisfiable_range(value: str, expected: tuple[int, int, int]) -> None:
    """One satisfiable range is answered with its bytes, cut at the end of the file."""
    assert ask(range=value) == Selection(*expected)


@pytest.mark.parametrize("value", ["bytes=1000-", "bytes=1000-1001", "bytes=-0", "bytes=-00"])
def test_unsatisfiable_range(value: str) -> None:
    """A range that begins after the end, or has no bytes, gets 416."""
    assert ask(range=value) == Selection(416, 0, 0)


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
        "bytes=0-9,20-29",
        "bytes=0-9, a-b",
        "bytes=-5,0-0",
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
    """Another unit, several ranges, and anything that is no ASCII range get the whole file."""
    assert ask(range=value) == WHOLE


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, Selection(200, 0, 0)),
        ("bytes=0-", Selection(416)),
        ("bytes=0-0", Selection(416)),
        ("bytes=-0", Selection(416)),
        ("bytes=-1", Selection(200, 0, 0)),
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
        headers=headers, method=method, size=SIZE, etag=ETAG, modified_s=MODIFIED_S
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
        headers=headers, method="GET", size=SIZE, etag=ETAG, modified_s=MODIFIED_S
    )


def test_content_range() -> None:
    """Only 206 and 416 have a Content-Range, the latter with the size alone."""
    assert content_range(Selection(206, 10, 10), SIZE) == "bytes 10-19/1000"
    assert content_range(Selection(206, 999, 1), SIZE) == "bytes 999-999/1000"
    assert content_range(Selection(416), SIZE) == "bytes */1000"
    for status in (200, 304, 412):
        assert content_range(Selection(status), SIZE) is None


positions = st.one_of(st.integers(0, 40), st.integers(0, 2**63 - 1))


@given(data=st.binary(max_size=32), first=positions, last=st.none() | positions)
def test_span_equals_slice(data: bytes, first: int, last: int | None) -> None:
    """``a-b`` selects the bytes of ``data[a:b + 1]``, and ``a-`` those of ``data[a:]``."""
    text = f"bytes={first}-{'' if last is None else last}"
    got = ask(size=len(data), range=text)
    if last is not None and last < first:
        assert got == Selection(200, 0, len(data))
        return
    expected = data[first:] if last is None else data[first : last + 1]
    assert data[got.start : got.start + got.length] == expected
    assert got.length == len(expected)
    assert got.status == (206 if expected else 416)


@given(data=st.binary(min_size=1, max_size=32), length=positions)
def test_suffix_equals_slice(data: bytes, length: int) -> None:
    """``-n`` selects the bytes of ``data[-n:]``, and nothing where n is 0."""
    got = ask(size=len(data), range=f"bytes=-{length}")
    expected = data[-length:] if length else b""
    assert data[got.start : got.start + got.length] == expected
    assert got.status == (206 if expected else 416)


@given(
    size=st.integers(0, 50),
    value=st.text(st.sampled_from("bytes=0123456789-, \t*\u0663x"), max_size=20)
    | st.text(max_size=20)
    | st.builds("bytes={}".format, st.text(st.sampled_from("0123456789-,"), max_size=8)),
)
def test_any_range_header(size: int, value: str) -> None:
    """Whatever the header says, the answer is within the file and fits its Content-Range."""
    got = ask(size=size, range=value)
    field = content_range(got, size)
    if got.status == 200:
        assert (got.start, got.length, field) == (0, size, None)
    elif got.status == 416:
        assert (got.start, got.length, field) == (0, 0, f"bytes */{size}")
    else:
        assert got.status == 206
        numbers = re.fullmatch(r"bytes ([0-9]+)-([0-9]+)/([0-9]+)", field or "")
        assert numbers is not None
        first, last, total = map(int, numbers.groups())
        assert 0 <= first <= last < total == size
        assert (got.start, got.length) == (first, last - first + 1)


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
        etag=ETAG,
        modified_s=MODIFIED_S,
    )
    assert got in (FIRST_TEN, WHOLE, Selection(304), Selection(412))


@given(seconds=st.integers(0, 4_000_000_000), offset=st.integers(-2, 2))
def test_dates_as_python_writes_them(seconds: int, offset: int) -> None:
    """A date written by the standard library is read back to the same second."""
    got = select(
        headers={"If-Modified-Since": formatdate(seconds, usegmt=True)},
        method="GET",
        size=SIZE,
        etag=ETAG,
        modified_s=seconds + offset,
    )
    assert got.status == (304 if offset <= 0 else 200)
