"""What part of a stored file a GET or HEAD is answered with (RFC 9110, sections 13 and 14).

Pure decisions on header values: knows nothing of HTTP libraries, files or Redis. A stored file
never changes under its id, so its ETag and its Last-Modified are both strong validators.
Offsets and sizes are bytes, times are whole seconds since the epoch, UTC.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Final

__all__ = ["Selection", "content_range", "select"]

# 2**63 - 1 has 19 digits: more can't be a position in a file, and int() of a very long string
# of digits is slow.
_POSITION: Final = "[0-9]{1,19}"
_SPAN: Final = re.compile(f"({_POSITION})-({_POSITION})?")
_SUFFIX: Final = re.compile(f"-({_POSITION})")

# Section 8.8.3: etagc is "!", "#" to "~", and the bytes above ASCII.
_ENTITY_TAG: Final = re.compile(r'(?:W/)?"[!#-~\x80-\U0010ffff]*"')
_BETWEEN_TAGS: Final = re.compile(r"[ \t]*(?:,[ \t]*)+")

_MONTHS: Final = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_MONTH: Final = f"(?P<month>{_MONTHS})"
_TIME: Final = "(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DAY: Final = "(?P<day>[0-9]{2})"
_YEAR: Final = "(?P<year>[0-9]{4})"
# Section 5.6.7: "A recipient that parses a timestamp value in an HTTP field MUST accept all
# three HTTP-date formats": IMF-fixdate, RFC 850 and asctime. The weekday is not checked.
_DATES: Final = (
    re.compile(f"[A-Z][a-z]{{2}}, {_DAY} {_MONTH} {_YEAR} {_TIME} GMT"),
    re.compile(f"[A-Z][a-z]{{5,8}}, {_DAY}-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT"),
    re.compile(f"[A-Z][a-z]{{2}} {_MONTH} (?P<day>[ 0-9][0-9]) {_TIME} {_YEAR}"),
)


@dataclass(frozen=True, slots=True)
class Selection:
    """The answer to a conditional or ranged request.

    ``start`` and ``length`` say which bytes belong in the body of a 200 or 206; a HEAD gets
    the same headers and no body. Both are 0 for the other statuses, which have no such body.
    """

    status: int
    """200, 206, 304, 412 or 416."""
    start: int = 0
    """Offset of the first byte to send."""
    length: int = 0
    """Number of bytes to send."""


def select(
    *, headers: Mapping[str, str], method: str, size: int, etag: str, modified_s: int
) -> Selection:
    """Decide the status and the bytes of the answer, in the order of RFC 9110, section 13.2.2.

    A header that can't be understood never makes the answer an error of the client: a bad
    ``Range`` gets the whole file, a bad date is as if absent, a bad list of tags matches
    nothing. Several ranges in one header get the whole file too (section 14.2 allows it).

    Args:
        headers: Request fields; looked up by their usual spelling. Where the mapping has
            ``getall`` (a multidict), repeated fields count as one list.
        method: Range and If-Range count only for GET, the 304 only for GET and HEAD. Another
            method with a failed condition gets 412; its 200 means "go on".
        size: Length of the file.
        etag: Its entity tag as it is sent, with quotes.
        modified_s: Its Last-Modified.

    """
    refusal = _refusal(headers, method=method, etag=etag, modified_s=modified_s)
    if refusal is not None:
        return Selection(refusal)
    wanted = _field(headers, "Range")
    # Section 14.2: "A server MUST ignore a Range header field received with a request method
    # [...] for which range handling is not defined", and it is defined for GET only.
    if method == "GET" and wanted is not None:
        condition = _field(headers, "If-Range")
        if condition is None or _same(condition, etag=etag, modified_s=modified_s):
            return _ranged(wanted, size)
    return Selection(200, 0, size)


def content_range(selection: Selection, size: int) -> str | None:
    """Return the Content-Range value of a 206 or 416 (section 14.4), None for the others."""
    if selection.status == 206:
        last = selection.start + selection.length - 1
        return f"bytes {selection.start}-{last}/{size}"
    return f"bytes */{size}" if selection.status == 416 else None


def _refusal(
    headers: Mapping[str, str], *, method: str, etag: str, modified_s: int
) -> int | None:
    """Return 304 or 412 if a precondition says so, None if the request may go on.

    The steps are those of section 13.2.2: a header with tags makes its companion with a date
    count for nothing, because a tag is the finer validator.
    """
    reads = method in {"GET", "HEAD"}
    if (tags := _field(headers, "If-Match")) is not None:
        if not _matches(tags, etag, weak=False):
            return 412
    elif (until := _date(headers, "If-Unmodified-Since")) is not None and modified_s > until:
        return 412
    if (tags := _field(headers, "If-None-Match")) is not None:
        if _matches(tags, etag, weak=True):
            return 304 if reads else 412
    elif reads and (since := _date(headers, "If-Modified-Since")) is not None:
        return 304 if modified_s <= since else None
    return None


def _ranged(value: str, size: int) -> Selection:
    """Answer a Range whose If-Range, if any, holds."""
    unit, equals, specs = value.partition("=")
    wanted = [spec for part in specs.split(",") if (spec := part.strip(" \t"))]
    whole = Selection(200, 0, size)
    # Section 14.1: "Range unit names are case-insensitive".
    if not equals or unit.lower() != "bytes" or len(wanted) != 1:
        return whole
    if found := _SUFFIX.fullmatch(wanted[0]):
        return _tail(int(found[1]), size)
    found = _SPAN.fullmatch(wanted[0])
    if found is None:
        return whole
    first = int(found[1])
    last = size - 1 if found[2] is None else int(found[2])
    if found[2] is not None and last < first:  # section 14.1.1: such a range is invalid
        return whole
    if first >= size:
        return Selection(416)
    return Selection(206, first, min(last, size - 1) - first + 1)


def _tail(length: int, size: int) -> Selection:
    """Answer a range of the last ``length`` bytes."""
    if length == 0:
        return Selection(416)
    if size == 0:
        # Satisfiable by section 14.1.2, but no Content-Range can name zero bytes.
        return Selection(200)
    length = min(length, size)
    return Selection(206, size - length, length)


def _same(condition: str, *, etag: str, modified_s: int) -> bool:
    """Tell whether an If-Range names exactly this representation (section 13.1.5)."""
    if _ENTITY_TAG.fullmatch(condition):
        return _strongly_equal(condition, etag)
    return _parse_http_date(condition) == modified_s


def _matches(tags: str, etag: str, *, weak: bool) -> bool:
    """Tell whether a list of entity tags, or ``*``, has ``etag`` (section 8.8.3.2)."""
    if tags.strip(" \t") == "*":
        return True
    listed = _parse_tags(tags)
    if weak:
        return etag.removeprefix("W/") in {tag.removeprefix("W/") for tag in listed}
    return any(_strongly_equal(tag, etag) for tag in listed)


def _strongly_equal(tag: str, etag: str) -> bool:
    return tag == etag and not tag.startswith("W/")


def _parse_tags(value: str) -> list[str]:
    """Return the tags of a list as they are written; empty if any of it is malformed.

    Not split at commas: a tag may contain one.
    """
    tags: list[str] = []
    value = value.strip(" \t,")
    position = 0
    while position < len(value):
        tag = _ENTITY_TAG.match(value, position)
        if tag is None:
            return []
        tags.append(tag[0])
        position = tag.end()
        if position < len(value):
            between = _BETWEEN_TAGS.match(value, position)
            if between is None:
                return []
            position = between.end()
    return tags


def _date(headers: Mapping[str, str], name: str) -> int | None:
    value = _field(headers, name)
    return None if value is None else _parse_http_date(value)


def _parse_http_date(value: str) -> int | None:
    """Return the seconds of an HTTP-date (section 5.6.7), None if it is not one."""
    for pattern in _DATES:
        if found := pattern.fullmatch(value):
            break
    else:
        return None
    year, day = int(found["year"]), int(found["day"])
    if len(found["year"]) == 2:
        # The sliding window of section 5.6.7 without a clock: years 70-99 are past ones.
        year += 1900 if year >= 70 else 2000
    month = _MONTHS.index(found["month"]) // 4 + 1
    hour, minute, second = int(found["hour"]), int(found["minute"]), int(found["second"])
    if hour > 23 or minute > 59 or second > 60:  # 60 is a leap second
        return None
    try:
        date(year, month, day)
    except ValueError:
        return None
    return calendar.timegm((year, month, day, hour, minute, second))


def _field(headers: Mapping[str, str], name: str) -> str | None:
    """Return a field's value, its lines joined (section 5.3), None if it is absent.

    A field that must stand alone becomes malformed by the join, and so is ignored.
    """
    getall = getattr(headers, "getall", None)
    if getall is None:
        return headers.get(name)
    lines: list[str] = getall(name, [])
    return ", ".join(lines) if lines else None
