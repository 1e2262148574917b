"""Names and types that go into headers, whatever an uploader claimed."""

from __future__ import annotations

import unicodedata
from email.message import EmailMessage
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.storage.disposition import (
    clean_filename,
    content_disposition,
    safe_content_type,
)

BIDI_CONTROLS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
# Lone surrogates are part of what a header or a JSON body can decode to.
any_name = st.text(max_size=60) | st.text(
    st.sampled_from(
        "./\\-_ \"%';:\r\n\t\x00\x7f\u202e\u200d\u0301\u00a0\udc80\ud83daCON1é文😀"
    ),
    max_size=300,
)


@pytest.mark.parametrize(
    ("given_name", "clean"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\cv.doc", "cv.doc"),
        ("a/b\\c", "c"),
        ("folder/", "download"),
        ("", "download"),
        (".", "download"),
        ("..", "download"),
        ("...", "download"),
        (" - . ", "download"),
        ("\u200d", "download"),
        (".htaccess", "htaccess"),
        ("-rf", "rf"),
        (" \u00a0\u3000name", "name"),
        ("name. . ", "name"),
        ("a\x00b\r\nc\x7fd\x85e", "abcde"),
        ("photo\u202egpj.exe", "photogpj.exe"),
        (f"a{BIDI_CONTROLS}b", "ab"),
        ("\ufeffa\u200bb\u2028c", "abc"),
        ("\ud83da\udc80", "a"),
        ("e\u0301", "\u00e9"),
        ("e\u200b\u0301", "\u00e9"),
        ("می\u200cکنم.txt", "می\u200cکنم.txt"),
        ("👩\u200d💻.png", "👩\u200d💻.png"),
        ("CON", "_CON"),
        ("con.txt", "_con.txt"),
        ("Aux .tar.gz", "_Aux .tar.gz"),
        ("LPT9", "_LPT9"),
        ("com¹.txt", "_com¹.txt"),
        ("NUL:stream", "_NUL:stream"),
        ("CONIN$", "_CONIN$"),
        ("CON" + " " * 300 + "x", "_CON"),
        ("CONSOLE.txt", "CONSOLE.txt"),
        ("COM10", "COM10"),
        ("my con.txt", "my con.txt"),
        ("a" * 300, "a" * 255),
        ("a" * 300 + ".pdf", "a" * 251 + ".pdf"),
        ("é" * 200 + ".mp4", "é" * 125 + ".mp4"),
        ("a" + "😀" * 100, "a" + "😀" * 63),
        ("a." + "b" * 300, "a." + "b" * 253),
    ],
)
def test_clean_filename(given_name: str, clean: str) -> None:
    """The name is the visible last path component, safe to save anywhere and cut to size."""
    assert clean_filename(given_name) == clean


@given(any_name)
def test_a_cleaned_name_is_safe(filename: str) -> None:
    """No cleaned name is empty, long, hidden, an option, a path or holds control characters."""
    name = clean_filename(filename)
    assert 1 <= len(name.encode()) <= 255
    assert name[0] not in ".- "
    assert name[-1] not in ". "
    assert not set(name) & set(f"/\\{BIDI_CONTROLS}")
    assert all(unicodedata.category(character) not in ("Cc", "Cs") for character in name)
    assert unicodedata.is_normalized("NFC", name)
    assert name.partition(".")[0].rstrip().upper() not in ("CON", "PRN", "AUX", "NUL", "COM1")


@given(any_name)
def test_cleaning_twice_changes_nothing(filename: str) -> None:
    """A cleaned name is already clean."""
    name = clean_filename(filename)
    assert clean_filename(name) == name


def test_cleaning_takes_linear_time() -> None:
    """A name of a million spaces or dots is no way to occupy the process."""
    for filler in ' .-/\u200d"':
        assert clean_filename("a" + filler * 1_000_000 + "b")[0] in "ab"


@pytest.mark.parametrize(
    ("filename", "value"),
    [
        ("report.pdf", "filename=\"report.pdf\"; filename*=UTF-8''report.pdf"),
        ("résumé.pdf", "filename=\"resume.pdf\"; filename*=UTF-8''r%C3%A9sum%C3%A9.pdf"),
        ("文件.pdf", "filename=\"__.pdf\"; filename*=UTF-8''%E6%96%87%E4%BB%B6.pdf"),
        ('a"b.txt', "filename=\"a_b.txt\"; filename*=UTF-8''a%22b.txt"),
        ("100%.txt", "filename=\"100_.txt\"; filename*=UTF-8''100%25.txt"),
        ("a%22b", "filename=\"a_22b\"; filename*=UTF-8''a%2522b"),
        (
            "it's (1)*.txt",
            "filename=\"it's (1)*.txt\"; filename*=UTF-8''it%27s%20%281%29%2A.txt",
        ),
        (
            "a\r\nSet-Cookie: b",
            "filename=\"aSet-Cookie: b\"; filename*=UTF-8''aSet-Cookie%3A%20b",
        ),
        ("", "filename=\"download\"; filename*=UTF-8''download"),
        ("\u0301.htaccess", "filename=\"htaccess\"; filename*=UTF-8''%CC%81.htaccess"),
        ("CÓN", "filename=\"_CON\"; filename*=UTF-8''C%C3%93N"),
    ],
)
def test_content_disposition(filename: str, value: str) -> None:
    """The header has an ASCII name for old clients and the exact one for the others."""
    assert content_disposition(filename) == f"attachment; {value}"
    assert content_disposition(filename, inline=True) == f"inline; {value}"


@given(any_name)
def test_the_header_value_is_inert(filename: str) -> None:
    """The value is printable ASCII, its fallback needs no escapes, its exact name decodes."""
    value = content_disposition(filename)
    assert value.isascii()
    assert value.isprintable()
    head, quote, rest = value.partition('"')
    fallback, separator, exact = rest.partition("\"; filename*=UTF-8''")
    assert (head, quote) == ("attachment; filename=", '"')
    assert separator
    assert fallback
    assert not set(fallback) & set('"\\%/')
    assert clean_filename(fallback) == fallback
    assert not set(exact) & set("'\"*;, \\/()<>@:?=[]{}")
    assert unquote(exact, errors="strict") == clean_filename(filename)


@given(any_name.filter(lambda name: '"' not in name))  # that parser strips quotes from names
def test_another_parser_reads_the_same_name(filename: str) -> None:
    """The standard library's header parser finds the exact name."""
    message = EmailMessage()
    message["Content-Disposition"] = (
        content_disposition(filename).split("filename=")[0]
        + (content_disposition(filename).split("; ")[-1])
    )
    assert message.get_filename() == clean_filename(filename)


@pytest.mark.parametrize(
    ("declared", "served"),
    [
        ("text/plain", "text/plain; charset=utf-8"),
        ("TEXT/Plain; charset=utf-7", "text/plain; charset=utf-8"),
        ("text/csv", "text/csv"),
        ("text/csv ; header=present", "text/csv"),
        ("image/png", "image/png"),
        ("Image/JPEG", "image/jpeg"),
        ("image/gif", "image/gif"),
        ("image/bmp", "image/bmp"),
        ("image/webp", "image/webp"),
        ("audio/wav", "audio/wav"),
        ("audio/mpeg", "audio/mpeg"),
        ("audio/ogg", "audio/ogg"),
        ("video/ogg", "video/ogg"),
        ("video/mp4", "video/mp4"),
        ('video/mp4; codecs="avc1.42E01E, mp4a.40.2"', "video/mp4"),
        ("video/webm", "video/webm"),
        ("video/quicktime", "video/quicktime"),
        ("video/x-matroska", "video/x-matroska"),
    ],
)
def test_inert_types_are_kept(declared: str, served: str) -> None:
    """A type that runs nothing in a browser is served as declared, without parameters."""
    assert safe_content_type(declared) == served


@pytest.mark.parametrize(
    "declared",
    [
        None,
        "",
        "text/html",
        "text/html; charset=utf-8",
        "image/svg+xml",
        "application/pdf",
        "application/xml",
        "text/xml",
        "application/xhtml+xml",
        "text/javascript",
        "multipart/x-mixed-replace",
        "message/rfc822",
        "image/png\r\nX-Injected: 1",
        "image/png\n",
        "image/png; a=\r\nb",
        "image/png\x00",
        " image/png",
        "image/png, text/html",
        "image/png text/html",
        "image//png",
        "image/png/x",
        "image",
        "/png",
        "image/",
        "*/*",
        "image/*",
        "\u0131mage/png",
        "image/pnğ",
        "image/png; é",
        "a" * 5000 + "/b",
    ],
)
def test_other_types_are_opaque(declared: str | None) -> None:
    """Active, malformed and unknown types are served as bytes of no kind."""
    assert safe_content_type(declared) == "application/octet-stream"


@given(st.text(max_size=40) | st.from_regex(r"[a-z]+/[a-z+.]+(; ?[a-z]+=.*)?"))
def test_the_type_is_inert(declared: str) -> None:
    """Whatever was declared, the value is a plain type without line breaks."""
    served = safe_content_type(declared)
    assert served.isascii()
    assert served.isprintable()
    assert "html" not in served
    assert "xml" not in served
