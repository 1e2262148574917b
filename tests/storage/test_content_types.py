"""Types by content: what was declared chooses only among what the bytes can be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.storage.content_types import HEAD_BYTES, served_type
from services.storage.disposition import OPAQUE, safe_content_type

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
WAV = b"RIFF\x24\x00\x00\x00WAVEfmt "
MP4 = b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00"
WEBM = b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\x82\x84webm"


@pytest.mark.parametrize(
    ("declared", "head", "served"),
    [
        ("image/png", PNG, "image/png"),
        ("text/html", PNG, "image/png"),
        ("", PNG, "image/png"),
        ("image/png", b"\xff\xd8\xff\xe0", "image/jpeg"),
        ("", b"GIF89a\x01\x00", "image/gif"),
        ("", b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        ("", b"BM\x36\x00\x00\x00\x00\x00\x00\x00\x36", "image/bmp"),
        ("audio/x-wav", WAV, "audio/x-wav"),
        ("audio/mpeg", WAV, "audio/wav"),
        ("", MP4, "video/mp4"),
        ("audio/mp4", MP4, "audio/mp4"),
        ("", b"\x00\x00\x00\x20ftypM4A ", "audio/mp4"),
        ("", b"\x00\x00\x00\x20ftypqt  ", "video/quicktime"),
        ("", b"\x00\x00\x00\x20ftypavif", "image/avif"),
        ("", WEBM, "video/webm"),
        ("audio/webm", WEBM, "audio/webm"),
        ("video/webm", WEBM.replace(b"\x84webm", b"\x88matroska"), "video/x-matroska"),
        ("video/ogg", b"OggS\x00\x02", "video/ogg"),
        ("", b"OggS\x00\x02", "application/ogg"),
        ("", b"fLaC\x00", "audio/flac"),
        ("", b"ID3\x04", "audio/mpeg"),
        ("audio/mpeg", b"\xff\xfb\x90\x64", "audio/mpeg"),
        ("audio/aac", b"\xff\xf1\x50\x80", "audio/aac"),
        ("text/plain", b"hello", "text/plain; charset=utf-8"),
        ("text/plain", "é".encode()[:1], "text/plain; charset=utf-8"),
        ("text/plain", b"", "text/plain; charset=utf-8"),
        ("text/csv", b"a,b\r\n1,2\r\n", "text/csv"),
    ],
)
def test_what_the_bytes_can_be(declared: str, head: bytes, served: str) -> None:
    """A signature decides; among the types that share it the declared one does."""
    assert served_type(declared, "file", head) == served


@pytest.mark.parametrize(
    ("declared", "head"),
    [
        ("image/png", b"<svg onload=alert(1)>"),
        ("image/png", b""),
        ("video/mp4", b"<html>"),
        ("video/mp4", b"\x00\x00\x00\x20ftypheic"),
        ("image/bmp", b"BM<script>alert(1)</script>"),
        ("audio/mpeg", b"<html>"),
        ("audio/mpeg", b"\xff\x00"),
        ("audio/aac", b"\xff\xfb\x90\x64"),
        ("audio/mpeg", b"\xff"),
        ("text/plain", b"a\x00b"),
        ("text/plain", b"\xff\xfe<\x00"),
        ("text/csv", b"PK\x03\x04\x00"),
        ("application/pdf", b"%PDF-1.7"),
        ("text/html", b"<html>"),
        ("", b"hello"),
    ],
)
def test_what_they_cannot_be(declared: str, head: bytes) -> None:
    """What does not look like its claim, or is not harmless, is bytes of no kind."""
    assert served_type(declared, "file", head) == OPAQUE


def test_a_checked_table() -> None:
    """What was checked to be CSV needs no type from the client."""
    assert served_type("", "csv", b"a;b\n") == "text/csv"
    assert served_type("application/vnd.ms-excel", "csv", b"a;b\n") == "text/csv"


@given(
    declared=st.text(max_size=20)
    | st.sampled_from(["text/html", "image/svg+xml", "text/plain"]),
    kind=st.sampled_from(["file", "csv", "video"]),
    head=st.binary(max_size=HEAD_BYTES) | st.sampled_from([PNG, WAV, MP4, WEBM]),
)
def test_any_bytes(declared: str, kind: str, head: bytes) -> None:
    """Whatever comes, the type is one that runs nothing in a browser."""
    served = served_type(declared, kind, head)
    assert served == safe_content_type(served)
