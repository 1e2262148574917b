"""What a browser is told about a stored file: the name to save it under, and its type.

Pure functions from what the uploader claimed, which is never trusted (security items 3 to 5),
to values that are safe in a header. Knows nothing of HTTP libraries or storage.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final
from urllib.parse import quote

__all__ = ["OPAQUE", "clean_filename", "content_disposition", "safe_content_type"]

_FALLBACK_NAME: Final = "download"
# NAME_MAX of the common filesystems.
_NAME_MAX_BYTES: Final = 255
# A longer suffix is hardly an extension that a program is chosen by: cut like the rest.
_EXTENSION_MAX_BYTES: Final = 16

# Zero-width (non-)joiner: format characters that Persian, Indic scripts and emoji need.
_KEPT_FORMAT_CHARACTERS: Final = frozenset("\u200c\u200d")
# Control, format (with the bidi controls), lone surrogates, line and paragraph separators.
_DROPPED_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_SPACES: Final = " \u00a0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_BLANK: Final = _SPACES + "".join(_KEPT_FORMAT_CHARACTERS)
# Dots: hidden files. Dashes: names that a command line takes for an option.
_LEADING: Final = _BLANK + ".-"
# Windows drops these at the end, so that two names would become one.
_TRAILING: Final = _BLANK + "."
# Names that Windows opens as a device, with any extension and in any case.
_WINDOWS_DEVICE: Final = re.compile(
    r"(?:CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|CLOCK\$|(?:COM|LPT)[0-9¹²³])\s*(?:[.:].*)?",
    re.IGNORECASE | re.DOTALL,
)

# RFC 8187, section 3.2.1: attr-char beyond letters and digits.
_ATTR_CHARS: Final = "!#$&+-.^_`|~"
# RFC 6266, appendix D: a raw "%" is decoded by some browsers; "\" and '"' need escapes that
# others read differently.
_UNQUOTABLE: Final = re.compile(r'["\\%]')

# RFC 6838, section 4.2, with parameters that are only looked at to see that they are text.
_RESTRICTED_NAME: Final = "[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_MEDIA_TYPE: Final = re.compile(rf"({_RESTRICTED_NAME}/{_RESTRICTED_NAME})[ \t]*(?:;[\t -~]*)?")
OPAQUE: Final = "application/octet-stream"
"""The type of bytes of no kind that is known."""
# Types that a browser shows without running anything in them: no HTML, SVG, XML or PDF.
_INERT_TYPES: Final = frozenset(
    {
        "text/csv",
        "image/avif",
        "image/bmp",
        "image/gif",
        "image/jpeg",
        "image/png",
        "image/webp",
        "audio/aac",
        "audio/flac",
        "audio/mp4",
        "audio/mpeg",
        "audio/ogg",
        "audio/wav",
        "audio/webm",
        "audio/x-wav",
        "application/ogg",
        "video/mp4",
        "video/mpeg",
        "video/ogg",
        "video/quicktime",
        "video/webm",
        "video/x-matroska",
        "video/x-msvideo",
    }
)


def content_disposition(filename: str, *, inline: bool = False) -> str:
    """Return a Content-Disposition value (RFC 6266) that proposes ``filename`` once cleaned.

    It has the name twice: folded to ASCII for old clients, and exact in ``filename*``
    (RFC 8187). The value is printable ASCII without line breaks, whatever comes in.

    Args:
        filename: As the uploader gave it.
        inline: Let the browser show the file instead of saving it.

    """
    name = clean_filename(filename)
    exact = quote(name, safe=_ATTR_CHARS)
    kind = "inline" if inline else "attachment"
    return f"{kind}; filename=\"{_ascii_name(name)}\"; filename*=UTF-8''{exact}"


def clean_filename(filename: str) -> str:
    """Return the name a file may be saved under anywhere: never empty, at most 255 bytes.

    It is the last path component in NFC, without control, bidi or other invisible characters
    and without leading dots, dashes and spaces; a Windows device name gets an underscore in
    front. A name that is too long keeps its extension. Cleaning twice changes nothing.
    """
    visible = "".join(character for character in filename if _is_kept(character))
    # After the removal, because that can bring a letter and its accent together.
    component = re.split(r"[/\\]", unicodedata.normalize("NFC", visible))[-1]
    name = _cut(component.lstrip(_LEADING).rstrip(_TRAILING))
    if _WINDOWS_DEVICE.fullmatch(name):
        name = _cut(f"_{name}")
    return name or _FALLBACK_NAME


def safe_content_type(declared: str | None) -> str:
    """Return the type to serve a file with: an inert one, else ``application/octet-stream``.

    Parameters of the declared type are dropped. Plain text is labelled UTF-8 whatever was
    declared, so that no browser guesses an encoding in which its bytes read as markup.
    """
    found = _MEDIA_TYPE.fullmatch(declared or "")
    media_type = found[1].lower() if found else OPAQUE
    if media_type == "text/plain":
        return "text/plain; charset=utf-8"
    return media_type if media_type in _INERT_TYPES else OPAQUE


def _is_kept(character: str) -> bool:
    return (
        unicodedata.category(character) not in _DROPPED_CATEGORIES
        or character in _KEPT_FORMAT_CHARACTERS
    )


def _cut(name: str) -> str:
    """Shorten a name to the limit between two characters, at the cost of its stem."""
    if len(name.encode()) <= _NAME_MAX_BYTES:
        return name
    stem, dot, suffix = name.rpartition(".")
    extension = dot + suffix
    if not stem or len(extension.encode()) > _EXTENSION_MAX_BYTES:
        stem, extension = name, ""
    room = _NAME_MAX_BYTES - len(extension.encode())
    kept = stem.encode()[:room].decode(errors="ignore")
    return kept.rstrip(_TRAILING) + extension


def _ascii_name(name: str) -> str:
    """Fold a cleaned name to ASCII: accents are dropped, other characters become ``_``."""
    letters = (
        character
        for character in unicodedata.normalize("NFD", name)
        if not unicodedata.combining(character)
    )
    folded = "".join(letter if letter.isascii() else "_" for letter in letters)
    # Cleaned again: an accent may have hidden a leading dot or a device name.
    return clean_filename(_UNQUOTABLE.sub("_", folded))
