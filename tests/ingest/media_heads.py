"""The beginnings of media files, made by hand from their specifications."""

from __future__ import annotations

import struct
from typing import Final

__all__ = ["FTYP", "HEADS", "box", "ebml", "ogg", "ogg_page"]


def box(kind: bytes, content: bytes = b"") -> bytes:
    """Return a box of ISO/IEC 14496-12 section 4.2."""
    return struct.pack(">I4s", 8 + len(content), kind) + content


def ebml(doctype: bytes, *, before: bytes = b"") -> bytes:
    """Return an EBML header (RFC 8794 section 11.2) with ``before`` ahead of its DocType."""
    body = b"\x42\x86\x81\x01\x42\xf7\x81\x01" + before
    body += b"\x42\x82" + bytes([0x80 | len(doctype)]) + doctype + b"\x42\x87\x81\x04"
    return b"\x1a\x45\xdf\xa3" + (0x4000 | len(body)).to_bytes(2, "big") + body


def ogg_page(packet: bytes, *, first: bool = True, serial: int = 1) -> bytes:
    """Return an Ogg page (RFC 3533 section 6) with one packet."""
    lacing = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
    flags = 2 if first else 0
    head = struct.pack("<5sBqIIIB", b"OggS\0", flags, 0, serial, 0, 0, len(lacing))
    return head + lacing + packet


def ogg(*packets: bytes) -> bytes:
    """Return the first pages of streams, and one more page of the first stream."""
    firsts = [ogg_page(one, serial=number) for number, one in enumerate(packets)]
    return b"".join(firsts) + ogg_page(b"\x81comment", first=False, serial=0)


FTYP: Final = box(b"ftyp", b"isom\0\0\x02\0isomiso2mp41")
THEORA: Final = b"\x80theora" + bytes(34)
VORBIS: Final = b"\x01vorbis" + bytes(23)
SKELETON: Final = b"fishead\0" + bytes(56)

HEADS: Final = {
    "mp4": FTYP + box(b"free") + box(b"mdat", b"\0" * 64),
    "m4v": box(b"ftyp", b"M4V \0\0\0\1M4V mp42"),
    "mov": box(b"ftyp", b"qt  \0\0\2\0qt  ") + box(b"wide"),
    "mov, moov first": box(b"moov", box(b"mvhd", bytes(100))),
    "mov, mdat first": box(b"mdat", bytes(100)),
    "mov, wide first": box(b"wide") + box(b"mdat", bytes(100)),
    "mov, free first": box(b"free", bytes(32)) + box(b"moov"),
    "mov, skip first": box(b"skip", bytes(32)) + box(b"moov"),
    "mov, 64-bit size": struct.pack(">I4sQ", 1, b"mdat", 2**33) + bytes(64),
    "webm": ebml(b"webm"),
    "mkv": ebml(b"matroska"),
    "mkv, padded DocType": ebml(b"matroska\0\0"),
    "mkv, with a void": ebml(b"matroska", before=b"\xec\x85" + bytes(5)),
    "avi": b"RIFF" + struct.pack("<I", 1000) + b"AVI LIST" + bytes(64),
    "ogv": ogg(THEORA),
    "ogv, sound first": ogg(VORBIS, THEORA),
    "ogv, with a skeleton": ogg(SKELETON, VORBIS, THEORA),
    "ogv, VP8": ogg(b"OVP80\x01\x01\0" + bytes(18)),
    "ogg": ogg(VORBIS),
    "wmv": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + bytes(64),
    "wav": b"RIFF" + struct.pack("<I", 1000) + b"WAVEfmt " + bytes(64),
    "webp": b"RIFF" + struct.pack("<I", 1000) + b"WEBPVP8 " + bytes(64),
    "avif": box(b"ftyp", b"avif\0\0\0\0avifmif1"),
    "heic": box(b"ftyp", b"heic\0\0\0\0mif1heic"),
    "m4a": box(b"ftyp", b"M4A \0\0\2\0M4A isom"),
    "ebml, unknown": ebml(b"other"),
    "zip": b"PK\x03\x04\x14\0\0\0\x08\0" + bytes(64),
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(64),
    "jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(64),
    "gif": b"GIF89a\x01\0\x01\0" + bytes(32),
    "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n",
    "elf": b"\x7fELF\x02\x01\x01" + bytes(64),
    "exe": b"MZ\x90\0\x03\0\0\0\x04\0\0\0\xff\xff" + bytes(64),
    "html": b"<!DOCTYPE html>\n<html><body>a,b</body></html>\n",
    "svg": b"  <svg xmlns='http://www.w3.org/2000/svg'/>\n",
    "gzip": b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + bytes(32),
    "mpeg-ts": (b"\x47\x40\0\x10" + bytes(184)) * 2,
}
