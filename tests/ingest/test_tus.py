"""The rules of tus 1.0.0, without a server: tables of what is taken and what is refused."""

from __future__ import annotations

import base64
import re
import string
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from services.ingest import tus
from services.ingest.creation import Creation
from services.ingest.errors import OffsetMismatch, UnsupportedMediaType, VersionUnsupported
from services.ingest.location import COLLECTION
from shared.errors import ApiError, InvalidRequest, PayloadTooLarge
from shared.sidecar import new_id

FINAL = f"final;{COLLECTION}/{new_id()}"
NO_NUMBER = [
    *("", " ", "-1", "-0", "+5", "1.5", "1.0", "1e9", "0x10", "abc", "0,0", "0, 0", "5_0"),
    *(
        " 5",
        "5 ",
        "5\t",
        "5;x=1",
        '"5"',
        "NaN",
        "inf",
        "\u0663",
        "\uff15",
        "²",
        "1" * 19,
        "9" * 4000,
    ),
    *("1" + "0" * 30, "\udcff", "0\x00"),
]
NUMBERS = {"0": 0, "1": 1, "10": 10, "007": 7, "000": 0, "9" * 18: 10**18 - 1}

BAD_METADATA = [
    *(",", "a,", ",a", "a,,b", " ,a"),  # an empty key
    *("a YQ==,a Yg==", "a,a", "a YQ==,b,a"),  # a doubled key
    *("ä YQ==", "a\tb YQ==", "\x01 YQ==", "\udcff YQ=="),  # no plain ASCII
    *(
        "a YQ",
        "a YQ=",
        "a ====",
        "a YQ==YQ==",
        "a YWJj=",
        "a YWJj====",
        "a =",
        "a Y Q==",
        "a  YQ==",
    ),  # no Base64
    *("a -_-_", "a YQ==;x", "a \x00", "a ä", "a YQ== YQ==", "a\tYQ=="),
    ",".join(f"key{n}" for n in range(33)),  # too many
    "a," * 10_000,
]


def creation(max_size: int = 0, **headers: str) -> Creation:
    """Return what a POST with these headers asks for; underscores stand for hyphens."""
    return tus.parse_creation(sent(**headers), max_size=max_size)


def sent(**headers: str) -> CIMultiDict[str]:
    """Return headers; underscores stand for hyphens."""
    return CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})


def room(
    provided: int = 0,
    offset: int = 0,
    size: int | None = None,
    length: int | None = None,
    max_size: int = 0,
) -> int | None:
    """Call ``room_for_chunk`` with defaults."""
    return tus.room_for_chunk(
        provided=provided, offset=offset, size=size, length=length, max_size=max_size
    )


def test_version_is_accepted() -> None:
    """Exactly the version that is spoken passes."""
    tus.check_version(sent(Tus_Resumable="1.0.0"))
    tus.check_version(sent(tus_resumable="1.0.0"))


@pytest.mark.parametrize(
    "version",
    [None, "", "1.0", "1.0.1", "0.2.2", "2.0.0", "1.0.0, 0.2.2", " 1.0.0", "\u0661.0.0"],
)
def test_version_is_refused(version: str | None) -> None:
    """Every other version, and none, is refused with the name of the right one."""
    headers = sent() if version is None else sent(Tus_Resumable=version)
    with pytest.raises(VersionUnsupported) as refused:
        tus.check_version(headers)
    assert refused.value.status == 412
    assert refused.value.headers == {"Tus-Version": "1.0.0"}


@pytest.mark.parametrize(
    "declared",
    [
        "application/offset+octet-stream",
        "Application/Offset+Octet-Stream",
        "application/offset+octet-stream; charset=x",
        " application/offset+octet-stream ",
    ],
)
@pytest.mark.parametrize("encoding", [None, "identity", "Identity", ""])
def test_chunk_type_is_accepted(declared: str, encoding: str | None) -> None:
    """The type counts whatever its case and parameters, as long as nothing is compressed."""
    headers = sent(Content_Type=declared)
    if encoding is not None:
        headers["Content-Encoding"] = encoding
    tus.check_chunk_type(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": ""},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/octet-stream"},
        {"Content-Type": "application/offset+octet-streams"},
        {"Content-Type": "application/offset octet-stream"},
        {"Content-Type": tus.CHUNK_TYPE, "Content-Encoding": "gzip"},
        {"Content-Type": tus.CHUNK_TYPE, "Content-Encoding": "identity, gzip"},
        {"Content-Type": tus.CHUNK_TYPE, "Content-Encoding": "\udcff"},
    ],
)
def test_chunk_type_is_refused(headers: dict[str, str]) -> None:
    """A body of another type, or in any content coding, is no piece of an upload."""
    with pytest.raises(UnsupportedMediaType):
        tus.check_chunk_type(CIMultiDict(headers))


@pytest.mark.parametrize(("text", "number"), NUMBERS.items())
def test_count_is_read(text: str, number: int) -> None:
    """Plain ASCII digits are a number of bytes."""
    assert tus.parse_count(sent(Upload_Offset=text), "Upload-Offset") == number


@pytest.mark.parametrize("text", NO_NUMBER)
def test_count_is_refused(text: str) -> None:
    """Whatever is not plain ASCII digits, or too many of them, is no number of bytes."""
    with pytest.raises(InvalidRequest, match="Upload-Offset"):
        tus.parse_count(sent(Upload_Offset=text), "Upload-Offset")


def test_count_is_needed() -> None:
    """A missing header is not zero."""
    with pytest.raises(InvalidRequest):
        tus.parse_count(sent(), "Upload-Offset")


@given(st.text(alphabet=string.digits + "+-_ .eE\u0663\uff15²\x00", max_size=25))
def test_count_is_never_guessed(text: str) -> None:
    """A text is either up to 18 ASCII digits, and means what they mean, or it is refused."""
    try:
        number = tus.parse_count(sent(Upload_Offset=text), "Upload-Offset")
    except InvalidRequest:
        assert not re.fullmatch(r"[0-9]{1,18}", text)
    else:
        assert re.fullmatch(r"[0-9]{1,18}", text)
        assert number == int(text)


@pytest.mark.parametrize(
    ("headers", "size"),
    [
        ({"Upload-Length": "0"}, 0),
        ({"Upload-Length": "100"}, 100),
        ({"Upload-Defer-Length": "1"}, None),
    ],
)
def test_creation_states_a_length(headers: dict[str, str], size: int | None) -> None:
    """The length is a number of bytes, or is deferred."""
    assert tus.parse_creation(CIMultiDict(headers), max_size=100).size == size


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Upload-Length": "5", "Upload-Defer-Length": "1"},
        {"Upload-Defer-Length": ""},
        *({"Upload-Defer-Length": value} for value in ("0", "2", "true", "1 ", "01", "\u0661")),
        {"Upload-Length": "5", "Upload-Defer-Length": "0"},
        {"Upload-Concat": "partial"},
        {"Upload-Length": "5", "Upload-Concat": "whole"},
        {"Upload-Concat": "final;/a /b"},
        {"Upload-Concat": FINAL, "Upload-Length": "5"},
        {"Upload-Concat": FINAL, "Upload-Defer-Length": "1"},
        *({"Upload-Length": value} for value in NO_NUMBER),
    ],
)
def test_creation_is_refused(headers: dict[str, str]) -> None:
    """Neither or both statements of length, a bad one, or a join is refused."""
    with pytest.raises(InvalidRequest):
        tus.parse_creation(CIMultiDict(headers), max_size=0)


def test_creation_is_limited() -> None:
    """The largest size passes; one byte more is refused, and the limit is told."""
    assert creation(100, Upload_Length="100").size == 100
    with pytest.raises(PayloadTooLarge) as refused:
        creation(100, Upload_Length="101")
    assert refused.value.headers == {"Tus-Max-Size": "100"}
    assert creation(0, Upload_Length="9" * 18).size == 10**18 - 1


@pytest.mark.parametrize(
    ("header", "pairs"),
    [
        ("", {}),
        ("   ", {}),
        ("a", {"a": ""}),
        ("a ", {"a": ""}),
        ("a YQ==", {"a": "a"}),
        ("a YQ==,b", {"a": "a", "b": ""}),
        ("a YQ==, b Yg==", {"a": "a", "b": "b"}),
        (" a YQ== , b ", {"a": "a", "b": ""}),
        ("b Yg==,a YQ==", {"b": "b", "a": "a"}),
        ("A YQ==,a YQ==", {"A": "a", "a": "a"}),
        ("name w6Q=", {"name": "ä"}),
        ("raw /w==,a YQ==", {"a": "a"}),  # no text: kept in the header only
        ("__proto__ YQ==", {"__proto__": "a"}),
        ("~!@#$%^&*()[]{};:'\"\\|/?<> YQ==", {"~!@#$%^&*()[]{};:'\"\\|/?<>": "a"}),
        ("x DQpTZXQtQ29va2llOiBh", {"x": "\r\nSet-Cookie: a"}),
        (",".join(f"key{n}" for n in range(32)), {f"key{n}": "" for n in range(32)}),
    ],
)
def test_metadata_is_read(header: str, pairs: dict[str, str]) -> None:
    """Pairs are read in their order, and the header is kept as it came."""
    read = creation(Upload_Length="1", Upload_Metadata=header)
    assert list(read.metadata.items()) == list(pairs.items())
    assert read.metadata_header == header


@pytest.mark.parametrize("header", BAD_METADATA)
def test_metadata_is_refused(header: str) -> None:
    """Bad keys, bad Base64 and too many pairs are refused, none is dropped silently."""
    with pytest.raises(InvalidRequest, match="Upload-Metadata"):
        tus.parse_metadata(header)


@given(
    st.dictionaries(
        st.text(
            alphabet=[c for c in map(chr, range(33, 127)) if c not in ", "],
            min_size=1,
            max_size=8,
        ),
        st.text(max_size=20),
        max_size=32,
    )
)
def test_metadata_round_trip(pairs: dict[str, str]) -> None:
    """Whatever a client encodes by the rules comes out as it went in."""
    header = ",".join(
        f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in pairs.items()
    )
    assert tus.parse_metadata(header) == pairs


@given(st.text(alphabet=string.printable + "äé\x00\u202e\udcff", max_size=60))
def test_metadata_is_read_or_refused(header: str) -> None:
    """No header whatever leads to anything but pairs of text, or a refusal."""
    try:
        pairs = tus.parse_metadata(header)
    except InvalidRequest:
        return
    assert all(key.isascii() and key and " " not in key for key in pairs)


@pytest.mark.parametrize(
    ("value", "known", "offset", "result"),
    [
        (None, None, 0, None),
        (None, 10, 5, 10),
        ("10", None, 0, 10),
        ("10", None, 10, 10),
        ("10", 10, 5, 10),
        ("0", None, 0, 0),
        ("100", None, 0, 100),
        ("9", None, 10, InvalidRequest),  # below what is there
        ("11", 10, 5, InvalidRequest),  # not the one that was set
        ("9", 10, 5, InvalidRequest),
        ("101", None, 0, PayloadTooLarge),
        *(("-1", known, 0, InvalidRequest) for known in (None, 10)),
        ("", None, 0, InvalidRequest),
    ],
)
def test_declared_length(
    value: str | None, known: int | None, offset: int, result: int | type[ApiError] | None
) -> None:
    """A length is set once, not below what is there, and within the limit."""
    headers = sent() if value is None else sent(Upload_Length=value)
    if isinstance(result, type):
        with pytest.raises(result):
            tus.declared_length(headers, known=known, offset=offset, max_size=100)
    else:
        size = tus.declared_length(headers, known=known, offset=offset, max_size=100)
        assert size == result


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        ({"size": 10}, 10),
        ({"size": 10, "offset": 4, "provided": 4}, 6),
        ({"size": 10, "offset": 10, "provided": 10}, 0),
        ({"size": 10, "length": 10}, 10),
        ({"size": 10, "length": 0}, 10),
        ({"size": 0}, 0),
        ({}, None),
        ({"length": 10**17}, None),
        ({"max_size": 20}, 20),
        ({"max_size": 20, "length": 20}, 20),
        ({"max_size": 20, "size": 10}, 10),
        ({"max_size": 20, "offset": 5, "provided": 5}, 15),
        ({"size": 10, "provided": 1}, OffsetMismatch),
        ({"size": 10, "offset": 5, "provided": 4}, OffsetMismatch),
        ({"size": 10, "offset": 5, "provided": 6}, OffsetMismatch),
        ({"size": 10, "offset": 5, "provided": 10}, OffsetMismatch),
        ({"size": 10, "offset": 5, "provided": 0, "length": 99}, OffsetMismatch),
        ({"size": 10, "length": 11}, PayloadTooLarge),
        ({"size": 10, "offset": 10, "provided": 10, "length": 1}, PayloadTooLarge),
        ({"max_size": 20, "length": 21}, PayloadTooLarge),
        ({"max_size": 20, "size": 10, "length": 11}, PayloadTooLarge),
    ],
)
def test_room_for_chunk(
    arguments: dict[str, int | None], result: int | type[ApiError] | None
) -> None:
    """A chunk starts where the upload ends, and ends within its length or the limit."""
    given_: dict[str, int | None] = {"length": None, **arguments}
    if isinstance(result, type):
        with pytest.raises(result):
            room(**given_)  # type: ignore[arg-type]
    else:
        assert room(**given_) == result  # type: ignore[arg-type]


counts = st.integers(0, 50)


@given(counts, counts, st.none() | counts, st.none() | counts, counts)
def test_room_never_passes_the_end(
    provided: int, offset: int, size: int | None, length: int | None, max_size: int
) -> None:
    """Granted room ends at the length, or at the limit while there is none, never beyond."""
    end = size if size is not None else (max_size or None)
    try:
        granted = room(provided, offset, size, length, max_size)
    except OffsetMismatch:
        assert provided != offset
    except PayloadTooLarge:
        assert length is not None
        assert end is not None
        assert offset + length > end
    else:
        assert provided == offset
        assert granted == (None if end is None else end - offset)
        assert length is None or granted is None or length <= granted


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (1403712000.999, "Wed, 25 Jun 2014 16:00:00 GMT"),
        (4102444800, "Fri, 01 Jan 2100 00:00:00 GMT"),
    ],
)
def test_http_date(at: float, text: str) -> None:
    """A time becomes an IMF-fixdate, rounded down to a second."""
    assert tus.http_date(at) == text


@given(st.floats(0, 2**35))
def test_http_date_round_trip(at: float) -> None:
    """Any time up to the year 3058 is written so that it reads back as the same second."""
    assert parsedate_to_datetime(tus.http_date(at)).timestamp() == int(at)


def test_extensions_are_those_that_work() -> None:
    """What is not implemented is not announced."""
    names = tus.EXTENSIONS.split(",")
    assert sorted(names) == [
        *("checksum", "concatenation", "concatenation-unfinished"),
        *("creation", "creation-defer-length", "creation-with-upload"),
        *("expiration", "termination"),
    ]
