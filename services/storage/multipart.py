"""The body of an answer with several ranges: ``multipart/byteranges`` (RFC 9110, section 14.6).

Lays it out before a byte is sent, so that its exact length is known. Without I/O.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import NamedTuple

from services.storage.ranges import Span, content_range

__all__ = ["Layout", "Part", "several", "single"]


class Part(NamedTuple):
    """Text that the server writes, and the bytes of the file that follow it."""

    head: bytes
    span: Span


class Layout(NamedTuple):
    """A body, in the order in which it is sent."""

    content_type: str
    parts: tuple[Part, ...]
    end: bytes
    """What follows the last part."""

    @property
    def length(self) -> int:
        """Bytes of the whole body."""
        parts = sum(len(part.head) + part.span.length for part in self.parts)
        return parts + len(self.end)


def single(span: Span, content_type: str) -> Layout:
    """Return a body of nothing but bytes of the file."""
    return Layout(content_type, (Part(b"", span),), b"")


def several(spans: Sequence[Span], size: int, content_type: str) -> Layout:
    """Return a body of several spans of a file.

    The boundary is 128 random bits, so that no file can be made to contain it.

    Args:
        spans: What is sent.
        size: Of the file.
        content_type: Of the file; safe in a header.

    """
    boundary = secrets.token_hex(16)
    heads = (
        f"\r\n--{boundary}\r\n"
        f"Content-Type: {content_type}\r\n"
        f"Content-Range: {content_range(span, size)}\r\n\r\n"
        for span in spans
    )
    parts = [Part(head.encode("ascii"), span) for head, span in zip(heads, spans, strict=True)]
    # The first boundary begins the body.
    parts[0] = parts[0]._replace(head=parts[0].head.removeprefix(b"\r\n"))
    end = f"\r\n--{boundary}--\r\n".encode("ascii")
    return Layout(f"multipart/byteranges; boundary={boundary}", tuple(parts), end)
