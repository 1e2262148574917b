"""The type that a file is served with, from its first bytes (security items 3, 5 and 7).

What the client said of it only chooses among the types that the bytes can be. Without I/O.
Sources: the registrations of the types, the RIFF specification, ISO/IEC 14496-12 section 4,
RFC 3533, RFC 8794 and RFC 9639.
"""

from __future__ import annotations

import codecs
from typing import Final

from services.storage.disposition import OPAQUE, safe_content_type

__all__ = ["HEAD_BYTES", "served_type"]

HEAD_BYTES: Final = 512
"""Bytes from the start that are looked at. Each of the formats shows itself in fewer."""

_TEXT: Final = ("text/plain; charset=utf-8", "text/csv")
_MAGIC: Final = (
    (b"\x89PNG\r\n\x1a\n", ("image/png",)),
    (b"\xff\xd8\xff", ("image/jpeg",)),
    (b"GIF87a", ("image/gif",)),
    (b"GIF89a", ("image/gif",)),
    (b"fLaC", ("audio/flac",)),
    (b"ID3", ("audio/mpeg", "audio/aac")),
    (b"OggS", ("application/ogg", "audio/ogg", "video/ogg")),
    (b"\x00\x00\x01\xba", ("video/mpeg",)),
)
"""What files begin with, and the types they can have: the first unless another is declared."""
_RIFF: Final = {
    b"WEBP": ("image/webp",),
    b"WAVE": ("audio/wav", "audio/x-wav"),
    b"AVI ": ("video/x-msvideo",),
}
_BRANDS: Final = {
    b"avif": ("image/avif",),
    b"avis": ("image/avif",),
    b"M4A ": ("audio/mp4",),
    b"M4B ": ("audio/mp4",),
    b"qt  ": ("video/quicktime",),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"mif1", b"M4P "), ()),
}
"""Brands of ISO media files that are no plain video."""
_CONTROLS: Final = bytes(set(range(32)) - set(b"\t\n\f\r\x1b"))


def served_type(declared: str, kind: str, head: bytes) -> str:
    """Return the type to serve a file with: an inert one, else ``application/octet-stream``.

    Args:
        declared: By the client.
        kind: What it was checked to be when it was received: ``csv``, ``video`` or ``file``.
        head: Its first ``HEAD_BYTES``.

    """
    claim = safe_content_type(declared)
    possible = _possible(head)
    if possible:
        return claim if claim in possible else possible[0]
    if claim in _WITHOUT_MAGIC:
        return claim if _begins_frame(head, _WITHOUT_MAGIC[claim]) else OPAQUE
    if kind == "csv" and _is_text(head):
        return "text/csv"
    return claim if claim in _TEXT and _is_text(head) else OPAQUE


def _possible(head: bytes) -> tuple[str, ...]:
    """Return the types that a file with such a signature can have; none if it has none."""
    for magic, types in _MAGIC:
        if head.startswith(magic):
            return types
    if head.startswith(b"RIFF"):
        return _RIFF.get(head[8:12], ())
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], ("video/mp4", "audio/mp4", "video/quicktime"))
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return _matroska(head)
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return ("image/bmp",)
    return ()


def _matroska(head: bytes) -> tuple[str, ...]:
    """Return the types of what begins as EBML; its DocType (0x4282) tells."""
    doctype = head[:64].partition(b"\x42\x82")[2][1:9]
    if doctype.startswith(b"webm"):
        return ("video/webm", "audio/webm")
    return ("video/x-matroska",) if doctype.startswith(b"matroska") else ()


_WITHOUT_MAGIC: Final = {"audio/mpeg": 0xE0, "audio/aac": 0xF6}
"""Types whose files may begin with any frame: the bits of its second byte that must be right.

11 set bits begin one of MPEG audio; one of ADTS has a twelfth, and no layer.
"""


def _begins_frame(head: bytes, mask: int) -> bool:
    return head[:1] == b"\xff" and len(head) > 1 and head[1] & mask == mask & 0xF0


def _is_text(head: bytes) -> bool:
    """Tell whether bytes are the beginning of a text in UTF-8."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return not head.translate(None, bytes(set(range(256)) - set(_CONTROLS)))
