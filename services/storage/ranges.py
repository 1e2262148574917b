"""Which bytes of a stored file a GET or HEAD is answered with (RFC 9110, section 14).

Pure decisions on header values: knows nothing of HTTP libraries, files or Redis. Offsets and
sizes are bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from services.storage.conditions import Validators, field, names_exactly, refusal

__all__ = ["MOST_RANGES", "Selection", "Span", "content_range", "select"]

MOST_RANGES: Final = 50
"""A header with more of them is ignored: more parts than any viewer of a document asks for."""

# 2**63 - 1 has 19 digits: more can't be a position in a file, and int() of a very long string
# of digits is slow.
_POSITION: Final = "[0-9]{1,19}"
_ALONE: Final = re.compile(f"bytes=({_POSITION})-({_POSITION})")
_SPEC: Final = re.compile(f"({_POSITION})-({_POSITION})?|-({_POSITION})")


class Span(NamedTuple):
    """Consecutive bytes of the file."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """Offset of the first byte after it."""
        return self.start + self.length


class Selection(msgspec.Struct, frozen=True):
    """The answer to a conditional or ranged request."""

    status: int
    """200, 206, 304, 412 or 416."""
    spans: tuple[Span, ...] = ()
    """What belongs in the body of a 200 (one, maybe of no bytes) or of a 206 (at least one,
    none of them empty, none touching another). A HEAD gets the same headers and no body. The
    other statuses have none."""


def select(
    *, headers: Mapping[str, str], method: str, size: int, validators: Validators
) -> Selection:
    """Decide the status and the bytes of the answer, in the order of RFC 9110, section 13.2.2.

    A header that can't be understood never makes the answer an error of the client: a bad
    ``Range`` gets the whole file (section 14.2 allows it), as does one with too many ranges.
    Ranges that overlap or touch are sent as one, so that no set makes the answer much longer
    than the file (section 17.15); it stands where the first of them stood.

    Args:
        headers: Request fields; see ``conditions.field``.
        method: Range and If-Range count only for GET. The 200 of a method that neither reads
            nor fails its conditions means "go on".
        size: Length of the file.
        validators: Of the file.

    """
    refused = refusal(headers, method, validators)
    if refused is not None:
        return Selection(refused)
    # Section 14.2: "A server MUST ignore a Range header field received with a request method
    # [...] for which range handling is not defined", and it is defined for GET only.
    if method == "GET" and (wanted := field(headers, "Range")) is not None:
        condition = field(headers, "If-Range")
        if condition is None or names_exactly(condition, validators):
            return _ranged(wanted, size)
    return _whole(size)


def content_range(span: Span, size: int) -> str:
    """Return the Content-Range of bytes that are sent (section 14.4)."""
    return f"bytes {span.start}-{span.end - 1}/{size}"


def _whole(size: int) -> Selection:
    return Selection(200, (Span(0, size),))


def _ranged(value: str, size: int) -> Selection:
    """Answer a Range whose If-Range, if any, holds."""
    alone = _ALONE.fullmatch(value)
    if alone is not None:  # what most ask for, many times over
        first, last = int(alone[1]), int(alone[2])
        if first <= last < size:
            return Selection(206, (Span(first, last + 1 - first),))
    unit, equals, specs = value.partition("=")
    wanted = [spec for part in specs.split(",") if (spec := part.strip(" \t"))]
    # Section 14.1: "Range unit names are case-insensitive".
    if not equals or unit.lower() != "bytes" or not 0 < len(wanted) <= MOST_RANGES:
        return _whole(size)
    found = [_SPEC.fullmatch(spec) for spec in wanted]
    spans = [_span(spec, size) for spec in found if spec is not None]
    if len(spans) < len(wanted) or None in spans:
        return _whole(size)
    satisfiable = [span for span in spans if span is not None and span.start < size]
    if any(span.length for span in satisfiable):
        return Selection(206, _coalesced([span for span in satisfiable if span.length]))
    if size == 0 and any(spec is not None and int(spec[3] or 0) for spec in found):
        # Satisfiable by section 14.1.2, but no Content-Range can name zero bytes.
        return _whole(size)
    return Selection(416)


def _span(spec: re.Match[str], size: int) -> Span | None:
    """Return what a spec selects, maybe beyond the end; None if it is invalid (14.1.1)."""
    if spec[3] is not None:
        length = min(int(spec[3]), size)
        return Span(size - length, length)
    first = int(spec[1])
    if spec[2] is None:
        return Span(first, max(size - first, 0))
    last = int(spec[2])
    return None if last < first else Span(first, max(min(last + 1, size) - first, 0))


def _coalesced(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Join spans that overlap or touch; each stands where the first of its own stood."""
    if len(spans) == 1:
        return (spans[0],)
    joined: list[tuple[int, Span]] = []
    for place, span in sorted(enumerate(spans), key=lambda one: one[1]):
        if joined and span.start <= joined[-1][1].end:
            first, last = joined[-1]
            end = max(last.end, span.end)
            joined[-1] = min(first, place), Span(last.start, end - last.start)
        else:
            joined.append((place, span))
    return tuple(span for _, span in sorted(joined))
