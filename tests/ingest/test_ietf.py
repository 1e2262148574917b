"""The rules of the IETF's resumable uploads, on plain data, item by item."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from services.ingest import ietf
from services.ingest.errors import (
    InconsistentLength,
    OffsetMismatch,
    OverLength,
    UnsupportedMediaType,
)
from services.ingest.structured_fields import parse_dictionary
from shared.errors import InvalidRequest, PayloadTooLarge

NO_COUNTS = ["abc", "-1", "1.0", '"5"', "?1", "", "5,6", "0x5", "+5", "1" * 16, ":NQ==:", "5;"]
NO_BOOLEANS = [
    "true",
    "1",
    "0",
    "?2",
    '"?1"',
    "?1,?1",
    "?1 ?0",
    "yes",
    "",
    "?",
    ":MQ==:",
    "?1;",
]


def said(**fields: str) -> ietf.Request:
    """Return what header fields say; ``_`` stands for a dash in their names."""
    pairs = ((f"Upload-{name.replace('_', '-')}", value) for name, value in fields.items())
    return ietf.read_request(CIMultiDict(pairs))


@pytest.mark.parametrize("value", NO_COUNTS)
def test_item_105_other_offsets_are_ignored(value: str) -> None:
    """An Upload-Offset of another type is as if it were not there."""
    assert said(Offset=value).offset is None


def test_item_105_offsets() -> None:
    """A non-negative integer of up to 15 digits is an offset."""
    assert [said(Offset=one).offset for one in ("0", "007", "9" * 15)] == [0, 7, 10**15 - 1]


@pytest.mark.parametrize("value", NO_BOOLEANS)
def test_item_106_other_completeness_is_ignored(value: str) -> None:
    """An Upload-Complete that is no Boolean says nothing."""
    assert said(Complete=value).complete is None


@pytest.mark.parametrize("value", NO_COUNTS)
def test_item_107_other_lengths_are_ignored(value: str) -> None:
    """An Upload-Length of another type is as if it were not there."""
    assert said(Length=value).length is None


def test_item_108_limits() -> None:
    """Limits are a Dictionary of Integers; there is always one, as `min-size=0` says none."""
    limits = ietf.limits(8, max_size=1000, lifetime_s=59.9)
    assert limits == {"Upload-Limit": "max-size=1000, max-age=59"}
    assert parse_dictionary(limits["Upload-Limit"]) == {"max-size": 1000, "max-age": 59}
    assert ietf.limits(8, max_size=0, lifetime_s=None) == {"Upload-Limit": "min-size=0"}
    assert ietf.limits(8, max_size=0, lifetime_s=-5) == {"Upload-Limit": "max-age=0"}
    largest = ietf.limits(8, max_size=10**18 - 1, lifetime_s=None)["Upload-Limit"]
    assert parse_dictionary(largest) == {"max-size": 10**15 - 1}  # more is no Integer


def test_item_108_limits_by_draft() -> None:
    """Drafts before -04 know no limits, and those before -06 call the age differently."""
    assert ietf.limits(3, max_size=9, lifetime_s=1) == {}
    assert ietf.limits(5, max_size=9, lifetime_s=1) == {}
    assert ietf.limits(6, max_size=9, lifetime_s=1)["Upload-Limit"] == "max-size=9, expires=1"


def test_item_109_parameters_are_dropped() -> None:
    """Parameters behind a value do not spoil it."""
    request = said(Offset="5;x=1", Complete="?1; y", Length='7;z="a"')
    assert (request.offset, request.complete, request.length) == (5, True, 7)


def test_fields_that_come_twice_are_ignored() -> None:
    """Two lines are a list, which is no item; a proxy may believe the other one."""
    lines = [("Upload-Offset", "5"), ("Upload-Offset", "5"), ("Upload-Complete", "?1")]
    request = ietf.read_request(CIMultiDict(lines))
    assert (request.offset, request.complete) == (None, True)


@pytest.mark.parametrize(
    ("value", "interop", "version"),
    [
        *(("3", 3, 3), ("5", 5, 5), ("6", 6, 6), ("8", 8, 8), ("8;x", 8, 8)),
        *(("2", None, 8), ("4", None, 8), ("9", None, 8), ("-8", None, 8), ("?1", None, 8)),
        *(("8.0", None, 8), ("x", None, 8), ("", None, 8), ("8,8", None, 8), ("1000", None, 8)),
    ],
)
def test_item_165_interop_versions(value: str, interop: int | None, version: int) -> None:
    """Known drafts are spoken; who names another one, or none, is answered in the newest."""
    request = said(Draft_Interop_Version=value)
    assert (request.interop, request.version) == (interop, version)


@pytest.mark.parametrize(
    ("fields", "complete"),
    [
        ({"Draft_Interop_Version": "3", "Incomplete": "?1"}, False),
        ({"Draft_Interop_Version": "3", "Incomplete": "?0"}, True),
        ({"Draft_Interop_Version": "3", "Complete": "?1"}, None),
        ({"Draft_Interop_Version": "5", "Incomplete": "?0"}, None),
        ({"Incomplete": "?0"}, None),
        ({"Draft_Interop_Version": "3", "Incomplete": "0"}, None),
    ],
)
def test_interop_3_turns_completeness_around(
    fields: dict[str, str], complete: bool | None
) -> None:
    """Draft -01 tells incompleteness; neither field counts in the other's drafts."""
    assert said(**fields).complete is complete


def test_item_114_completeness_in_the_words_of_the_draft() -> None:
    """Who answers is told in the client's words; what does not say it is the machinery."""
    assert ietf.told_in(8, {"Upload-Complete": "?1"}) == {"Upload-Complete": "?1"}
    assert ietf.told_in(8, {}) == {"Upload-Complete": "?0"}
    assert ietf.told_in(3, {"Upload-Complete": "?1"}) == {"Upload-Incomplete": "?0"}
    assert ietf.told_in(3, {}) == {"Upload-Incomplete": "?1"}


def length(
    *, known: int | None, offset: int, body: int | None, complete: bool, told: int | None
) -> int | None:
    """Return the length after a request."""
    request = ietf.Request(complete=complete, length=told)
    return ietf.length_after(request, known=known, offset=offset, content_length=body)


@pytest.mark.parametrize(
    ("known", "offset", "body", "complete", "told", "after"),
    [
        (None, 0, 5, True, None, 5),
        (None, 3, 5, True, None, 8),
        (None, 3, 5, False, None, None),
        (None, 3, None, True, None, None),
        (None, 3, None, True, 9, 9),
        (None, 3, 5, False, 9, 9),
        (8, 3, 5, True, 8, 8),
        (8, 3, 5, False, 8, 8),
        (8, 8, 0, True, None, 8),
        (0, 0, 0, True, 0, 0),
    ],
)
def test_item_116_length_is_found(
    known: int | None,
    offset: int,
    body: int | None,
    complete: bool,
    told: int | None,
    after: int | None,
) -> None:
    """The length comes from Upload-Length, or from a last body whose own length is known."""
    args = {"known": known, "offset": offset, "body": body, "complete": complete}
    assert length(**args, told=told) == after  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("known", "offset", "body", "complete", "told"),
    [
        (8, 3, 5, True, 9),  # another one than before
        (8, 3, 1, False, 9),
        (None, 3, 5, True, 9),  # the body ends before what the same request says
        (8, 3, 2, True, None),
        (None, 3, 1, False, 2),  # below what is there
    ],
)
def test_item_115_lengths_agree(
    known: int | None, offset: int, body: int | None, complete: bool, told: int | None
) -> None:
    """Lengths that contradict each other are refused, and the upload can still go on."""
    with pytest.raises(InconsistentLength) as refused:
        length(known=known, offset=offset, body=body, complete=complete, told=told)
    assert not isinstance(refused.value, OverLength)
    assert refused.value.status == 400
    assert refused.value.problem_type.endswith("#inconsistent-upload-length")


@pytest.mark.parametrize("complete", [True, False])
def test_item_117_body_that_passes_the_end(complete: bool) -> None:
    """A body that would pass the end that was told is refused before it is read."""
    with pytest.raises(OverLength):
        length(known=8, offset=3, body=6, complete=complete, told=None)


@given(
    known=st.none() | st.integers(0, 20),
    offset=st.integers(0, 20),
    body=st.none() | st.integers(0, 20),
    complete=st.booleans(),
    told=st.none() | st.integers(0, 20),
)
def test_item_115_no_length_contradicts_what_is_known(
    known: int | None, offset: int, body: int | None, complete: bool, told: int | None
) -> None:
    """Whatever is said: a length, once known, stays, and a body never passes it."""
    try:
        after = length(known=known, offset=offset, body=body, complete=complete, told=told)
    except InconsistentLength:
        return
    assert known is None or after == known
    assert told is None or after == told
    if after is not None:
        assert offset <= after
        assert body is None or offset + body <= after
        assert not complete or body is None or offset + body == after


def test_item_123_room() -> None:
    """What is larger than allowed is refused where its size is known, and bounded else."""

    def room(offset: int, length: int | None, body: int | None, limit: int) -> int | None:
        return ietf.room_for(offset=offset, length=length, content_length=body, max_size=limit)

    assert room(3, None, None, 0) is None
    assert room(3, 9, None, 0) == 6
    assert room(3, None, None, 10) == 7
    assert room(3, 9, 6, 10) == 6
    assert room(0, 10, 10, 10) == 10
    for offset, length, body in ((0, 11, None), (3, None, 8), (0, None, 11), (0, 11, 0)):
        with pytest.raises(PayloadTooLarge):
            room(offset, length, body, 10)


def test_item_144_offsets_that_differ() -> None:
    """A body for another place is refused, with what it takes to do better."""
    ietf.check_offset(5, 5)
    with pytest.raises(OffsetMismatch) as refused:
        ietf.check_offset(7, 5)
    assert refused.value.headers == {"Upload-Offset": "5"}
    assert refused.value.members == {"expected-offset": 5, "provided-offset": 7}


@pytest.mark.parametrize("version", [3, 5])
def test_item_143_no_media_type_before_draft_04(version: int) -> None:
    """Older drafts define no type, so any will do."""
    name = "Incomplete" if version == 3 else "Complete"
    headers = CIMultiDict(
        {
            "Upload-Draft-Interop-Version": str(version),
            "Upload-Offset": "5",
            f"Upload-{name}": "?1" if version == 5 else "?0",
        }
    )
    for kind in (None, "text/plain", "application/partial-upload"):
        if kind is not None:
            headers["Content-Type"] = kind
        assert ietf.check_append(headers, ietf.read_request(headers)) == (5, True)


@pytest.mark.parametrize("kind", ["", "text/plain", "application/offset+octet-stream"])
def test_item_143_media_type(kind: str) -> None:
    """A body that is not declared as a part of an upload is refused from draft -04 on."""
    headers = CIMultiDict({"Upload-Offset": "5", "Upload-Complete": "?1", "Content-Type": kind})
    for version in ({"Upload-Draft-Interop-Version": "6"}, {}):
        one = CIMultiDict({**headers, **version})
        with pytest.raises(UnsupportedMediaType):
            ietf.check_append(one, ietf.read_request(one))
    headers["Content-Type"] = "Application/Partial-Upload; charset=x"
    assert ietf.check_append(headers, ietf.read_request(headers)) == (5, True)


def test_item_143_fields_of_an_append() -> None:
    """Offset and completeness are both needed."""
    for given_one in ({"Upload-Offset": "5"}, {"Upload-Complete": "?0"}):
        headers = CIMultiDict({"Content-Type": ietf.PARTIAL_TYPE, **given_one})
        with pytest.raises(InvalidRequest):
            ietf.check_append(headers, ietf.read_request(headers))


CHUNK = {"Content-Type": "application/offset+octet-stream"}
PART = {"Content-Type": "application/partial-upload"}
BODY = {"Content-Length": "5"}


@pytest.mark.parametrize(
    ("method", "headers", "protocol"),
    [
        ("POST", {"Tus-Resumable": "1.0.0", "Upload-Complete": "?1"}, "tus"),
        ("POST", {"Tus-Resumable": ""}, "tus"),
        ("POST", {"Upload-Complete": "?1"}, "ietf"),
        ("POST", {"Upload-Complete": "?0", "Upload-Length": "5"}, "ietf"),
        ("POST", {"Upload-Incomplete": "?0", "Upload-Draft-Interop-Version": "3"}, "ietf"),
        ("POST", {"Upload-Incomplete": "?0", **BODY}, "plain"),
        ("POST", {"Upload-Complete": "true", **BODY}, "plain"),
        ("POST", {"Upload-Complete": "1"}, "plain"),
        ("POST", {"Upload-Draft-Interop-Version": "8"}, "plain"),
        ("POST", BODY, "plain"),
        ("POST", {"Transfer-Encoding": "chunked"}, "plain"),
        ("POST", {"Content-Type": "text/csv", "Content-Length": "0"}, "plain"),
        ("POST", {}, "tus"),
        ("POST", {"Content-Length": "0"}, "tus"),
        ("POST", {"Upload-Length": "5", **BODY}, "tus"),
        ("POST", {"Upload-Metadata": "a", **BODY}, "tus"),
        ("POST", {"Upload-Defer-Length": "1", **BODY}, "tus"),
        ("POST", {**CHUNK, **BODY}, "tus"),
        ("OPTIONS", {"Upload-Draft-Interop-Version": "8"}, "tus"),
        ("PUT", {"Upload-Complete": "?1"}, "ietf"),
        ("PUT", {}, "tus"),
    ],
)
def test_item_169_protocol_of_a_creation(
    method: str, headers: dict[str, str], protocol: str
) -> None:
    """What opens an upload is told apart by its headers."""
    assert ietf.detect(method, CIMultiDict(headers), creates=True) == protocol


@pytest.mark.parametrize(
    ("method", "headers", "protocol"),
    [
        ("PATCH", {"Tus-Resumable": "1.0.0", **PART}, "tus"),
        ("PATCH", {"Upload-Complete": "?1", **CHUNK}, "ietf"),
        ("PATCH", {"Upload-Complete": "x"}, "ietf"),
        ("PATCH", PART, "ietf"),
        ("PATCH", {"Content-Type": "APPLICATION/partial-upload ; q=1"}, "ietf"),
        ("PATCH", {"Upload-Incomplete": "?0", "Upload-Draft-Interop-Version": "3"}, "ietf"),
        ("PATCH", CHUNK, "tus"),
        ("PATCH", {}, "tus"),
        ("PATCH", {"Upload-Offset": "5"}, "tus"),
        ("HEAD", {}, "ietf"),
        ("HEAD", {"Tus-Resumable": "9"}, "tus"),
        ("DELETE", {}, "ietf"),
        ("DELETE", {"Tus-Resumable": "1.0.0"}, "tus"),
        ("GET", {}, "tus"),
        ("GET", {"Upload-Draft-Interop-Version": "8"}, "ietf"),
        ("OPTIONS", {"Upload-Complete": "?1"}, "tus"),
    ],
)
def test_item_170_protocol_of_a_request_for_an_upload(
    method: str, headers: dict[str, str], protocol: str
) -> None:
    """What concerns an upload is told apart by its headers too."""
    assert ietf.detect(method, CIMultiDict(headers), creates=False) == protocol


names = st.sampled_from(
    [
        *("Tus-Resumable", "Upload-Complete", "Upload-Incomplete", "Upload-Offset"),
        *("Upload-Length", "Upload-Draft-Interop-Version", "Content-Type", "Content-Length"),
        *("Upload-Metadata", "Content-Disposition", "Repr-Digest", "Want-Repr-Digest"),
    ]
)
some = st.sampled_from(["?1", "?0", "5", "8", "3", "application/partial-upload", "a=:AA==:"])


@given(st.lists(st.tuples(names, some | st.text(max_size=20)), max_size=8), st.booleans())
def test_any_headers(lines: list[tuple[str, str]], creates: bool) -> None:
    """Whatever headers come, they are read or refused; nothing breaks."""
    headers = CIMultiDict(lines)
    for method in ("POST", "PATCH", "HEAD", "GET", "DELETE"):
        assert ietf.detect(method, headers, creates=creates) in {"tus", "ietf", "plain"}
    request = ietf.read_request(headers)
    assert request.offset is None or 0 <= request.offset < 10**15
    for check in (
        lambda: ietf.check_append(headers, request),
        lambda: ietf.creation_of(headers, None),
        lambda: ietf.check_representation(headers),
        lambda: ietf.check_carries_nothing(headers),
    ):
        try:
            check()
        except (InvalidRequest, UnsupportedMediaType):
            continue


@pytest.mark.parametrize("said", ["application/x-www-form-urlencoded", ietf.PARTIAL_TYPE, "x"])
def test_types_that_say_nothing_of_a_file(said: str) -> None:
    """A file would be offered for download as what curl or a draft calls any body."""
    headers = CIMultiDict({"Content-Type": said, "Upload-Complete": "?1"})
    assert ietf.creation_of(headers, None).content_type == ""
