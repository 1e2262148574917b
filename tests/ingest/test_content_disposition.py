"""The name that a request offers for its file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.content_disposition import offered_name


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ('inline; filename="file name.jpg"', "file name.jpg"),
        ("attachment; filename=plain.txt", "plain.txt"),
        ('inline;filename="a.txt"', "a.txt"),
        ('INLINE; FileName="a.txt"', "a.txt"),
        ('inline ; filename = "a.txt" ; size=3', "a.txt"),
        ("inline; filename=\"old.jpg\"; filename*=UTF-8''na%C3%AFve.jpg", "naïve.jpg"),
        ("inline; filename*=utf-8'en'a%20b; filename=\"old\"", "a b"),
        (r'inline; filename="a\"b\\c"', 'a"b\\c'),
        ('inline; filename="ü.txt"', "ü.txt"),
        ('inline; filename="a;b=c.txt"', "a;b=c.txt"),
        ("inline", ""),
        ("", ""),
        ("inline; name=field", ""),
        # Another character set, or one that lies, leaves the plain name.
        ("inline; filename=\"a\"; filename*=ISO-8859-1''%e4", "a"),
        ("inline; filename=\"a\"; filename*=UTF-8''%zz", "a"),
        ("inline; filename*=UTF-8''a%FFb", "ab"),
        # Control characters and lone surrogates (bytes that are no UTF-8) are dropped.
        ("inline; filename*=UTF-8''a%0D%0ASet-Cookie%3A%20x%00.txt", "aSet-Cookie: x.txt"),
        ('inline; filename="a\udcffb.txt"', "ab.txt"),
        ("inline; filename*=UTF-8''%E2%80%AEgpj.exe", "gpj.exe"),
        # Broken grammar offers no name.
        ('inline; filename="open', ""),
        ('inline; filename="a"; filename="b"', ""),
        ("inline filename=a", ""),
        ("inline; filename=a b", ""),
        ('; filename="a"', ""),
    ],
)
def test_offered_name(header: str, name: str) -> None:
    """The better of the two names is taken; what cannot be read offers none."""
    assert offered_name(header) == name


@given(st.text())
def test_any_header(header: str) -> None:
    """Whatever comes, the name can be written as UTF-8, on one line."""
    name = offered_name("inline; filename=" + header) + offered_name(header)
    name.encode()
    assert name.isprintable()
