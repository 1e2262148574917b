"""What a file is, by its first bytes; without I/O.

Each family of formats is one function from the bytes that are there so far to a verdict, given
as early as they allow: a format that starts with ``RIFF`` is ruled out by the first byte that
differs. Only the head counts, so a file that is two things at once is what it begins as.

Sources: ISO/IEC 14496-12 section 4 (boxes) and the QuickTime File Format (files that begin with
another box than ``ftyp``); RFC 8794 section 11.2 (EBML); the RIFF specification; RFC 3533 and
RFC 5334 (Ogg); Microsoft's ASF specification, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final

from services.ingest.csv_head import read_head

__all__ = ["FAMILIES", "HEAD", "Verdict", "judge"]

HEAD: Final = 4096
"""Bytes from the start that are looked at. Each of the formats shows itself in fewer."""


class Verdict(Enum):
    """Whether the bytes begin a file of a family."""

    MATCH = "they do"
    MISMATCH = "they do not, whatever follows"
    MORE = "it depends on what follows"


def judge(families: frozenset[str], head: bytes, *, complete: bool) -> Verdict:
    """Tell whether a file is of one of the families.

    Args:
        families: Keys of ``FAMILIES``.
        head: Its bytes so far, from the first one on.
        complete: There are no more bytes.

    """
    is_all = complete or len(head) >= HEAD
    verdicts = {FAMILIES[one](head[:HEAD], is_all) for one in families}
    if Verdict.MATCH in verdicts:
        return Verdict.MATCH
    return Verdict.MORE if Verdict.MORE in verdicts and not is_all else Verdict.MISMATCH


def _begins(head: bytes, magic: bytes) -> Verdict:
    if head.startswith(magic):
        return Verdict.MATCH
    return Verdict.MORE if magic.startswith(head) else Verdict.MISMATCH


_NO_VIDEO_BRANDS: Final = frozenset(
    (b"M4A ", b"M4B ", b"M4P ", b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"mif1")
)
_FIRST_BOXES: Final = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
"""What files of QuickTime begin with that were written before there was ``ftyp``."""


def _iso_media(head: bytes, _: bool) -> Verdict:
    """MP4, MOV and their kin."""
    size, kind, brand = head[:4], head[4:8], head[8:12]
    if len(size) == 4 and 1 < int.from_bytes(size, "big") < 8:
        return Verdict.MISMATCH  # 1: a 64-bit size follows; 0: to the end of the file
    if len(kind) < 4:
        starts = (b"ftyp", *_FIRST_BOXES)
        possible = any(one.startswith(kind) for one in starts)
        return Verdict.MORE if possible else Verdict.MISMATCH
    if kind == b"ftyp":
        if len(brand) < 4:
            return Verdict.MORE
        return Verdict.MISMATCH if brand in _NO_VIDEO_BRANDS else Verdict.MATCH
    return Verdict.MATCH if kind in _FIRST_BOXES else Verdict.MISMATCH


_EBML: Final = b"\x1a\x45\xdf\xa3"
_DOCTYPE: Final = b"\x42\x82"


def _matroska(head: bytes, is_all: bool) -> Verdict:
    """Matroska and WebM, which is a subset of it."""
    begins = _begins(head, _EBML)
    if begins is not Verdict.MATCH:
        return begins
    length, at = _ebml_number(head, len(_EBML))
    end = min(at + length, HEAD)
    while at < min(end, len(head)):
        name = head[at : at + (1 if head[at] & 0x80 else 2)]
        size, value = _ebml_number(head, at + len(name))
        if name == _DOCTYPE:
            doctype = head[value : value + size].rstrip(b"\0")
            if len(head) < min(value + size, HEAD):
                return Verdict.MORE
            return Verdict.MATCH if doctype in {b"matroska", b"webm"} else Verdict.MISMATCH
        at = value + size
    return Verdict.MISMATCH if is_all or len(head) >= end else Verdict.MORE


def _ebml_number(head: bytes, at: int) -> tuple[int, int]:
    """Return a variable-length size (RFC 8794 section 4) and the place after it.

    One that is cut off, or invalid, is larger than the head.
    """
    first = head[at] if at < len(head) else 0
    width = 9 - first.bit_length() if first else 0
    if not width or at + width > len(head):
        return HEAD, at + max(width, 1)
    rest = int.from_bytes(head[at : at + width], "big")
    return rest & ((1 << (7 * width)) - 1), at + width


def _avi(head: bytes, _: bool) -> Verdict:
    """AVI, but no WAV or WebP, which are RIFF too."""
    riff = _begins(head, b"RIFF")
    return riff if riff is not Verdict.MATCH else _begins(head[8:12], b"AVI ")


_OGG_VIDEO: Final = (b"\x80theora", b"OVP80\x01", b"BBCD\0", b"\x80daala", b"\x01video\0\0\0")


def _ogg(head: bytes, _: bool) -> Verdict:
    """Ogg with whatever in it."""
    return _begins(head, b"OggS\0")


def _ogg_video(head: bytes, is_all: bool) -> Verdict:
    """Ogg with a video stream: the first page of each stream comes before any other page."""
    ogg = _ogg(head, is_all)
    if ogg is not Verdict.MATCH:
        return ogg
    at = 0
    while len(head) >= at + 27:
        page = head[at : at + 27]
        if page[:5] != b"OggS\0" or not page[5] & 2:
            return Verdict.MISMATCH  # all streams have begun, and none is video
        lacing = head[at + 27 : at + 27 + page[26]]
        packet = head[at + 27 + page[26] :][:16]
        if len(lacing) == page[26] and packet.startswith(_OGG_VIDEO):
            return Verdict.MATCH
        at += 27 + page[26] + sum(lacing)
    return Verdict.MORE


def _asf(head: bytes, _: bool) -> Verdict:
    """ASF, which WMV is."""
    return _begins(head, bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"))


def _csv(head: bytes, is_all: bool) -> Verdict:
    """Text in records, see ``csv_head``."""
    found = read_head(head, complete=is_all)
    if not found.is_csv:
        return Verdict.MISMATCH
    return Verdict.MATCH if is_all else Verdict.MORE


FAMILIES: Final[Mapping[str, Callable[[bytes, bool], Verdict]]] = {
    "iso-media": _iso_media,
    "matroska": _matroska,
    "avi": _avi,
    "ogg": _ogg,
    "ogg-video": _ogg_video,
    "asf": _asf,
    "csv": _csv,
}
"""The families that can be told. A judge gets the head and whether that is all it will get."""
