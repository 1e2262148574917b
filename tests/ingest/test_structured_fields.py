"""Structured fields are read as RFC 9651 says, and nothing else is."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.structured_fields import (
    BareItem,
    NotStructured,
    parse_dictionary,
    parse_item,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("42", 42),
        ("007", 7),
        ("-0", 0),
        ("-17", -17),
        ("999999999999999", 999_999_999_999_999),
        ("  5  ", 5),
        ("5;x", 5),
        ("5;x=1;y=?0; z=tok ", 5),
        ('5;x="a\\"b";y=:YQ==:', 5),
        ("5;a=1.5;b=-2", 5),
        ('5;d=@1659578233;e=%"f%c3%bc"', 5),
        ("1.5", 1.5),
        ("-0.125", -0.125),
        ("?1", True),
        ("?0", False),
        ("?0;why=late", False),
        ('"text"', "text"),
        ('"a\\"b\\\\c"', 'a"b\\c'),
        ("token", "token"),
        ("*a/b:c", "*a/b:c"),
        (":aGVsbG8=:", b"hello"),
        (":aGVsbG8:", b"hello"),
        ("::", b""),
    ],
)
def test_items(text: str, value: BareItem) -> None:
    """A value that the grammar allows is read, and its parameters are dropped."""
    found = parse_item(text)
    assert found == value
    assert type(found) is type(value)


NO_ITEMS = [
    *("", " ", "\t5", "5\t", "5,6", "5 6", "5;", "5;X=1", "5 ;x", "5;x=", "5;=1", "5;x;;y"),
    *("+5", "0x10", "1e3", "5.", ".5", "1.2345", "1234567890123.5", "--5", "-", "5_0"),
    *("1000000000000000", "9" * 5000, "\u0665", "\xb2", "(5)", "5;x=(1)"),
    *("?", "?2", "?true", "??1", "?1 ?0", "?10", "true;", "a b", "a,b"),
    *('"open', '"\x7f"', '"\xfc"', '"a\\b"', '"\t"', "'a'", "@", "@1.5", "@x"),
    *(":aGVsbG8", ":a-_b:", ":a:", ":aGVs bG8=:", ":=:a", '%"', '%"%zz"', '%"%C3"'),
    *("@1659578233", '%"text"', '%"%ff"', "\x00", "5\x00", "[5]", "{", "="),
]


@pytest.mark.parametrize("text", NO_ITEMS)
def test_no_items(text: str) -> None:
    """What breaks the grammar, or is of a type without a meaning here, has no value."""
    with pytest.raises(NotStructured):
        parse_item(text)


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("", {}),
        ("a=1", {"a": 1}),
        ("a=1, b=2", {"a": 1, "b": 2}),
        ("a=1,b=2", {"a": 1, "b": 2}),
        ("a=1 \t,\t b=2", {"a": 1, "b": 2}),
        ("a", {"a": True}),
        ("a;x=1, b", {"a": True, "b": True}),
        ("a=1, b=2, a=3", {"b": 2, "a": 3}),
        ("sha-256=:aGVsbG8=:, *k.1_2=tok", {"sha-256": b"hello", "*k.1_2": "tok"}),
        ('a=(1 "b" c;d=1  );x=2, b=()', {"a": None, "b": None}),
        ('a=@1, b=%"x"', {"a": None, "b": None}),
    ],
)
def test_dictionaries(text: str, members: Mapping[str, BareItem | None]) -> None:
    """Members are read in order; the last of a doubled key counts."""
    found = parse_dictionary(text)
    assert dict(found) == members
    assert list(found) == list(members)


@pytest.mark.parametrize(
    "text",
    [
        *("a=1,", ",a=1", "a=1,,b=2", "a=1 b=2", "A=1", "=1", "a=", "a= 1", "a =1", "1=a"),
        *(
            "a=(1",
            "a=(1,2)",
            "a=1)",
            "a=(1)2",
            'a=("x"y)',
            "a=1;",
            "a=1, b=?2",
            "-a=1",
            "\xe4=1",
        ),
    ],
)
def test_no_dictionaries(text: str) -> None:
    """One fault anywhere spoils the whole field: half of it must not be believed."""
    with pytest.raises(NotStructured):
        parse_dictionary(text)


@given(st.text())
def test_any_text(text: str) -> None:
    """Whatever a client writes, the answer is a value or that there is none."""
    for parse in (parse_item, parse_dictionary):
        with suppress(NotStructured):
            parse(text)


@given(st.text(alphabet='0123456789.-?:;=,"\\()@%abA *\t', max_size=24))
def test_near_the_grammar(text: str) -> None:
    """Text made of the grammar's own characters ends in no other way either."""
    for parse in (parse_item, parse_dictionary):
        with suppress(NotStructured):
            parse(text)


keys = st.from_regex(r"[a-z*][a-z0-9_.*-]{0,8}", fullmatch=True)
ascii_text = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=12)
values = st.one_of(
    st.integers(-(10**15) + 1, 10**15 - 1), st.booleans(), ascii_text, st.binary(max_size=12)
)


def written(value: BareItem) -> str:
    """Return a value as section 4.1 of the RFC serializes it."""
    if isinstance(value, bool):
        return f"?{int(value)}"
    if isinstance(value, bytes):
        return f":{base64.b64encode(value).decode()}:"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return str(value)


@given(value=values, parameters=st.dictionaries(keys, values, max_size=3))
def test_what_is_written_is_read(value: BareItem, parameters: dict[str, BareItem]) -> None:
    """Every value comes back, with its type, whatever parameters stand behind it."""
    tail = "".join(f";{key}={written(one)}" for key, one in parameters.items())
    found = parse_item(written(value) + tail)
    assert found == value
    assert type(found) is type(value)


@given(st.dictionaries(keys, values, max_size=5))
def test_dictionaries_that_are_written_are_read(members: dict[str, BareItem]) -> None:
    """Every dictionary comes back."""
    text = ", ".join(f"{key}={written(one)}" for key, one in members.items())
    assert dict(parse_dictionary(text)) == members
