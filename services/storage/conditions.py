"""Whether the conditions of a request hold (RFC 9110, section 13): entity tags and dates.

Pure decisions on header values: knows nothing of HTTP libraries, files or Redis. Times are
whole seconds since the epoch, UTC.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Mapping
from datetime import date
from typing import Final, NamedTuple

__all__ = ["Validators", "field", "names_exactly", "refusal"]

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


_CONDITIONS: Final = (
    "If-Match",
    "If-None-Match",
    "If-Modified-Since",
    "If-Unmodified-Since",
)


class Validators(NamedTuple):
    """What tells stored bytes from others."""

    etag: str
    """As it is sent, with quotes."""
    modified_s: int
    """Its Last-Modified."""
    former: str = ""
    """A tag that was sent before a better one was known. Who has it has the same bytes."""
    replaceable: bool = False
    """Other bytes may come in the place of these within the same second. Then the date is a
    weak validator (section 8.8.2.2); of bytes that never change it is a strong one."""

    def has(self, tag: str, *, weak: bool = False) -> bool:
        """Tell whether a tag of a request is one of its own (section 8.8.3.2)."""
        own = {self.etag, self.former} - {""}
        if weak:
            return tag.removeprefix("W/") in {one.removeprefix("W/") for one in own}
        return tag in own and not tag.startswith("W/")


def refusal(headers: Mapping[str, str], method: str, own: Validators) -> int | None:
    """Return 304 or 412 if a precondition says so, None if the request may go on.

    The steps are those of section 13.2.2: a header with tags makes its companion with a date
    count for nothing, because a tag is the finer validator. A bad date is as if absent, a bad
    list of tags matches nothing.

    Args:
        headers: Request fields; see ``field``.
        method: The 304 is for GET and HEAD only; another one with a failed condition gets 412.
        own: Of the file.

    """
    for name in _CONDITIONS:
        if name in headers:
            break
    else:  # as most requests
        return None
    reads = method in {"GET", "HEAD"}
    if (tags := field(headers, "If-Match")) is not None:
        if not _matches(tags, own, weak=False):
            return 412
    elif _is_after(own.modified_s, _date(headers, "If-Unmodified-Since")):
        return 412
    if (tags := field(headers, "If-None-Match")) is not None:
        if _matches(tags, own, weak=True):
            return 304 if reads else 412
    elif reads and (since := _date(headers, "If-Modified-Since")) is not None:
        return 304 if own.modified_s <= since else None
    return None


def names_exactly(condition: str, own: Validators) -> bool:
    """Tell whether an If-Range names exactly this representation (section 13.1.5).

    A weak validator never does, be it a tag or a date.
    """
    if _ENTITY_TAG.fullmatch(condition):
        return own.has(condition)
    return not own.replaceable and _parse_http_date(condition) == own.modified_s


def field(headers: Mapping[str, str], name: str) -> str | None:
    """Return a field's value, its lines joined (section 5.3), None if it is absent.

    A field that must stand alone becomes malformed by the join, and so is ignored.

    Args:
        headers: Looked up by their usual spelling. Where the mapping has ``getall`` (a
            multidict), repeated fields count as one list.
        name: Of the field.

    """
    first = headers.get(name)
    if first is None:  # as most are of most requests
        return None
    getall = getattr(headers, "getall", None)
    return first if getall is None else ", ".join(getall(name))


def _matches(tags: str, own: Validators, *, weak: bool) -> bool:
    """Tell whether a list of entity tags, or ``*``, has one of the file's."""
    if tags.strip(" \t") == "*":
        return True
    return any(own.has(tag, weak=weak) for tag in _parse_tags(tags))


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


def _is_after(modified_s: int, limit_s: int | None) -> bool:
    return limit_s is not None and modified_s > limit_s


def _date(headers: Mapping[str, str], name: str) -> int | None:
    value = field(headers, name)
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
