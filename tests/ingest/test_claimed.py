"""What clients say of their files: names and types that are harmless to keep."""

from __future__ import annotations

import unicodedata
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from services.ingest import ietf, tus
from services.ingest.claimed import clean_filename, clean_type
from services.ingest.errors import UnsupportedMediaType
from services.ingest.validation import Inspection


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("video.mp4", "video.mp4"),
        ("C:\\Users\\me\\video.mp4", "video.mp4"),
        ("../../etc/passwd", "passwd"),
        ("..", ""),
        ("/", ""),
        ("  .hidden.csv ", "hidden.csv"),
        ("a\r\nSet-Cookie: x=1.mp4", "aSet-Cookie: x=1.mp4"),
        ("photo\u202egpj.exe", "photogpj.exe"),
        ("u\u0308ber.csv", "über.csv"),
        ("\ud800.mp4", "?.mp4"),
        ("x" * 300 + ".mp4", "x" * 251 + ".mp4"),
        ("ü" * 200 + ".mp4", "ü" * 125 + ".mp4"),
        ("x" * 300, "x" * 255),
    ],
)
def test_file_names_are_only_names(given: str, kept: str) -> None:
    """Security item 3: a name could be a path, break a log line, or turn the text around."""
    assert clean_filename(given) == kept


@given(st.text())
def test_any_text_becomes_a_harmless_name(text: str) -> None:
    """Whatever a client calls its file, the name fits, and cleaning it again changes none."""
    name = clean_filename(text)
    assert len(name.encode()) <= 255
    assert not set(name) & set("/\\\r\n\0")
    assert all(unicodedata.category(one) != "Cc" for one in name)
    assert clean_filename(name) == name


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("video/mp4", "video/mp4"),
        (" text/csv; charset=utf-8 ", "text/csv; charset=utf-8"),
        ("image/svg+xml", "image/svg+xml"),
        ("", ""),
        ("video", ""),
        ("a/b/c", ""),
        ("a/b\r\nSet-Cookie: x", ""),
        ("a/b; x=\x00", ""),
        ("a/\udcff", ""),
        ("a/b; x=ü", ""),
        ("a/" + "b" * 128, ""),
        ("a/b; x=" + "y" * 250, ""),
    ],
)
def test_media_types_are_only_types(given: str, kept: str) -> None:
    """Security item 5: a type could bring a header along, or break what writes it down."""
    assert clean_type(given) == kept


HIDDEN = "evil.exe\u200b"
"""It ends in a space of no width, which nobody sees and every download drops."""


def test_hidden_extension() -> None:
    """An extension that is not accepted must not be hidden by what is cleaned away later."""
    pair = f"filename {b64encode(HIDDEN.encode()).decode()}"
    headers = CIMultiDict({"Upload-Length": "1", "Upload-Metadata": pair})
    disposed = {"Content-Disposition": "inline; filename*=UTF-8''evil.exe%E2%80%8B"}
    for creation in (
        tus.parse_creation(headers, max_size=0),
        ietf.creation_of(headers, 1),
        ietf.creation_of(CIMultiDict(disposed), 1),
    ):
        assert creation.filename == "evil.exe"
        with pytest.raises(UnsupportedMediaType):
            Inspection(denied=["exe"]).check_name(creation)
