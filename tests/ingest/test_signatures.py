"""Tests of what is told from the first bytes, exhaustively where that is possible."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.csv_head import read_head
from services.ingest.signatures import FAMILIES, HEAD, Verdict, judge
from tests.ingest.media_heads import FTYP, HEADS, box, ebml, ogg_page

ISO = {name for name in HEADS if name.startswith(("mov", "mp4", "m4v"))}
EXPECTED = {
    "iso-media": ISO,
    "matroska": {"webm", "mkv", "mkv, padded DocType", "mkv, with a void"},
    "avi": {"avi"},
    "ogg": {name for name in HEADS if name.startswith("og")},
    "ogg-video": {name for name in HEADS if name.startswith("ogv")},
    "asf": {"wmv"},
    "csv": set(),
}
WHOLE = {"complete": True}


def one(family: str) -> frozenset[str]:
    """Return a claim of one family."""
    return frozenset({family})


def test_every_family_is_tested() -> None:
    """A family without an expectation here would be told by nobody knows what."""
    assert EXPECTED.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", EXPECTED)
@pytest.mark.parametrize("name", HEADS)
def test_table(family: str, name: str) -> None:
    """Each head is of its own family and of no other."""
    expected = Verdict.MATCH if name in EXPECTED[family] else Verdict.MISMATCH
    assert judge(one(family), HEADS[name], complete=True) is expected


@pytest.mark.parametrize("family", EXPECTED)
@pytest.mark.parametrize("name", HEADS)
def test_a_verdict_is_never_taken_back(family: str, name: str) -> None:
    """However few bytes come first, what is decided by them is what all bytes decide."""
    head, decided = HEADS[name], None
    for size in range(len(head) + 1):
        verdict = judge(one(family), head[:size], complete=False)
        if decided is not None:
            assert verdict is decided
        elif verdict is not Verdict.MORE:
            decided = verdict
    final = judge(one(family), head, complete=True)
    assert decided in {None, final}


@pytest.mark.parametrize(
    ("family", "name", "size"),
    [
        ("iso-media", "mp4", 12),
        ("iso-media", "mov, moov first", 8),
        ("matroska", "webm", 4 + 2 + 8 + 3 + 4),
        ("avi", "avi", 12),
        ("ogg-video", "ogv", 27 + 1 + 7),
        ("asf", "wmv", 16),
    ],
)
def test_matches_early(family: str, name: str, size: int) -> None:
    """A file is known by the first byte that settles it, not one later."""
    head = HEADS[name]
    assert judge(one(family), head[: size - 1], complete=False) is Verdict.MORE
    assert judge(one(family), head[:size], complete=False) is Verdict.MATCH


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("avi", b"X"),
        ("avi", b"RIFF\0\0\0\0W"),
        ("matroska", b"\x1b"),
        ("ogg-video", b"P"),
        ("asf", b"M"),
        ("iso-media", b"\0\0\0\x02"),
        ("iso-media", b"\0\0\0\x20g"),
        ("csv", b"\0"),
        ("csv", b"a,b\n1,\x01"),
        ("csv", b"<!"),
        ("csv", b"%PDF-"),
    ],
)
def test_refuses_early(family: str, head: bytes) -> None:
    """The first byte that rules a family out is enough to refuse."""
    assert judge(one(family), head[:-1], complete=False) is Verdict.MORE
    assert judge(one(family), head, complete=False) is Verdict.MISMATCH


def test_nothing_is_no_file_of_any_family() -> None:
    """Of an empty file nothing can be told, so it is none of them."""
    for family in FAMILIES:
        assert judge(one(family), b"", complete=True) is Verdict.MISMATCH
        assert judge(one(family), b"", complete=False) is Verdict.MORE


def test_one_of_several() -> None:
    """A claim of several families is borne out by any of them, and refused by all."""
    both = frozenset({"iso-media", "avi"})
    assert judge(both, FTYP, complete=False) is Verdict.MATCH
    assert judge(both, b"\0\0\0\x20", complete=False) is Verdict.MORE
    assert judge(both, b"<html>", complete=False) is Verdict.MISMATCH


def test_a_document_type_beyond_the_head() -> None:
    """A header that hides its DocType behind padding is refused, not waited for."""
    padded = ebml(b"webm", before=b"\xec\x50\x00" + bytes(2 * HEAD))
    assert judge(one("matroska"), padded[:HEAD], complete=False) is Verdict.MISMATCH


def test_ogg_whose_video_comes_after_other_pages() -> None:
    """Streams begin before anything else, so what follows another page does not count."""
    late = ogg_page(b"\x01vorbis") + ogg_page(b"x", first=False) + ogg_page(b"\x80theora")
    assert judge(one("ogg-video"), late, complete=True) is Verdict.MISMATCH


@given(st.binary(max_size=200), st.sampled_from(sorted(FAMILIES)), st.booleans())
def test_never_raises(head: bytes, family: str, complete: bool) -> None:
    """Whatever the bytes, there is a verdict, and a final one once they are complete."""
    verdict = judge(one(family), head, complete=complete)
    assert not complete or verdict is not Verdict.MORE


@given(st.sampled_from(sorted(HEADS)), st.binary(max_size=40), st.integers(0, 200))
def test_never_raises_on_damaged_files(name: str, noise: bytes, at: int) -> None:
    """Lengths inside a file may say anything."""
    head = HEADS[name][:at] + noise + HEADS[name][at + len(noise) :]
    for family in FAMILIES:
        assert judge(one(family), head, complete=True) is not Verdict.MORE


@given(st.binary(min_size=HEAD, max_size=HEAD + 10), st.sampled_from(sorted(FAMILIES)))
def test_a_full_head_decides(head: bytes, family: str) -> None:
    """After so many bytes nobody is kept waiting for more."""
    assert judge(one(family), head, complete=False) is not Verdict.MORE


# CSV.

TABLES = {
    "comma": (b"a,b,c\n1,2,3\n4,5,6\n", "utf-8", ","),
    "semicolon": ("Größe;Preis\n1,5;2,5\n2,5;3\n".encode(), "utf-8", ";"),
    "tab": (b"a\tb\r\n1\t2\r\n", "utf-8", "\t"),
    "pipe": (b"a|b\n1|2\n", "utf-8", "|"),
    "one column": (b"id\n1\n2\n3\n", "utf-8", ""),
    "no newline at the end": (b"a,b\n1,2", "utf-8", ","),
    "only a header": (b"a,b,c\n", "utf-8", ","),
    "one cell": (b"x", "utf-8", ""),
    "quoted": (b'a,b\n"x\ny","1,2"\n"z",3\n', "utf-8", ","),
    "title above": (b"Report of May\na,b\n1,2\n3,4\n5,6\n", "utf-8", ","),
    "with BOM": ("a,b\n1,2\n".encode("utf-8-sig"), "utf-8-sig", ","),
    "UTF-16": ("a,b\nä,2\n".encode("utf-16"), "utf-16", ","),
    "UTF-16 BE": (b"\xfe\xff" + "a;b\n1;2\n".encode("utf-16-be"), "utf-16", ";"),
    "Latin-1": ("Stadt;Größe\nKöln;1\n".encode("latin-1"), "latin-1", ";"),
    "old Mac": (b"a,b\r1,2\r3,4\r", "utf-8", ","),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(name: str) -> None:
    """Tables as people save them are read in their encoding, with their delimiter."""
    content, encoding, delimiter = TABLES[name]
    found = read_head(content, complete=True)
    assert (found.is_csv, found.encoding, found.delimiter) == (True, encoding, delimiter)
    for size in range(len(content)):  # no beginning of one is refused
        assert judge(one("csv"), content[:size], complete=False) is Verdict.MORE


NO_TABLES = {
    "random": os.urandom(512) + b"\0",
    "UTF-16 without BOM": "a,b\n1,2\n".encode("utf-16-le"),
    "blank": b" \n\n \t \n",
    "html": b"\n <HTML><body>1,2</body></HTML>\n",
    "xml": b"<?xml version='1.0'?><a/>",
    "rtf": b"{\\rtf1\\ansi a,b}",
    "script": b"#!/bin/sh\nrm -rf /\n",
    "no agreement": b"a,b\nx;y;z\np|q|r\nu\tv\n1,2,3\n;\n|\n",
}


@pytest.mark.parametrize("name", NO_TABLES)
def test_no_tables(name: str) -> None:
    """What is binary, another format, or no table is refused."""
    assert not read_head(NO_TABLES[name], complete=True).is_csv


def test_head_of_a_long_table() -> None:
    """A table is known by its head, even if that ends in a character or a quoted field."""
    row = 'ä,"b\nc",d\n'.encode()
    content = row * (HEAD // len(row) + 1)
    for size in range(HEAD - len(row), HEAD + 1):
        assert read_head(content[:size], complete=True).delimiter == ","
    assert judge(one("csv"), content[:HEAD], complete=False) is Verdict.MATCH


def test_boxes_of_impossible_size() -> None:
    """A box is at least as long as its own header."""
    for size in (2, 7):
        head = size.to_bytes(4, "big") + box(b"ftyp", b"isom")[4:]
        assert judge(one("iso-media"), head, **WHOLE) is Verdict.MISMATCH
