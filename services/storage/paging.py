"""What a caller asks of the list of files, and which part of it a page is. No I/O.

A cursor is where the page before ended, in the order that it was in. It holds nothing that
decides what a caller may see.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

import msgspec

from services.storage.record import (
    SORTS,
    FileRecord,
    Sort,
    folded,
    id_in,
    prefix_of,
)
from shared.errors import InvalidRequest
from shared.sidecar import is_upload_id

__all__ = ["LIMIT", "MOST", "Query", "cursor_of", "matches", "position_of", "query_of", "span"]

LIMIT: Final = 50
MOST: Final = 200
"""Files on a page: if nothing else is asked for, and at most."""

_LONGEST_CURSOR: Final = 4096
_LONGEST_FILTER: Final = 256
_TYPE: Final = re.compile(r"[a-z0-9!#$&^_.+-]{1,127}(/[a-z0-9!#$&^_.+-]{1,127})?", re.ASCII)
_TIME: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for."""

    limit: int = LIMIT
    sort: Sort = "created_at"
    descending: bool = True
    after: bytes | None = None
    """The member of the list behind which the page begins."""
    type: str = ""
    """``image/png``, or ``image`` for all images; lower case."""
    name: str = ""
    """Part of the name, folded."""
    created_after: int | None = None
    """This moment and later ones; UTC, milliseconds since the epoch."""
    created_before: int | None = None
    """Moments before this one."""

    @property
    def is_filtered(self) -> bool:
        """Whether files in the span may be left out."""
        times = (self.created_after, self.created_before)
        by_time = self.sort != "created_at" and any(one is not None for one in times)
        return bool(self.type or self.name or by_time)


def query_of(given: Mapping[str, str]) -> Query:
    """Return what the parameters of a request ask for; names that are not known say nothing.

    Raises:
        InvalidRequest: One of them is not as documented.

    """
    sort = _sort(given.get("sort", "created_at"))
    descending = _descending(given.get("order"), sort)
    cursor = given.get("cursor")
    return Query(
        limit=_limit(given.get("limit")),
        sort=sort,
        descending=descending,
        after=None if cursor is None else position_of(cursor, sort, descending=descending),
        type=_type(given.get("type", "")),
        name=_name(given.get("name", "")),
        created_after=_time("created_after", given.get("created_after")),
        created_before=_time("created_before", given.get("created_before")),
    )


def _limit(text: str | None) -> int:
    if text is None:
        return LIMIT
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= MOST:
        raise InvalidRequest(f"limit must be a number from 1 to {MOST}.")
    return int(text)


def _sort(text: str) -> Sort:
    for sort in SORTS:
        if text == sort:
            return sort
    raise InvalidRequest(f"sort must be one of {', '.join(SORTS)}.")


def _descending(text: str | None, sort: Sort) -> bool:
    if text is None:
        return sort != "name"  # newest and largest first, but names from A on
    if text not in {"asc", "desc"}:
        raise InvalidRequest("order must be asc or desc.")
    return text == "desc"


def _type(text: str) -> str:
    wanted = text.lower().removesuffix("/*")
    if wanted and not _TYPE.fullmatch(wanted):
        raise InvalidRequest("type must be a media type, such as image/png, or image.")
    return wanted


def _name(text: str) -> str:
    if len(text) > _LONGEST_FILTER:
        raise InvalidRequest(f"name may have {_LONGEST_FILTER} characters.")
    return folded(text)


def _time(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        if not _TIME.fullmatch(text):
            raise ValueError
        moment = datetime.fromisoformat(text.upper())
        return max(int(moment.timestamp() * 1000), 0)
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"{name} must be a time as in RFC 3339, such as 2026-01-31T12:00:00Z."
        ) from None


def cursor_of(member: bytes, sort: Sort, *, descending: bool) -> str:
    """Return a place in a list as clients bring it back; opaque to them."""
    text = f"{'-' if descending else '+'}{sort} ".encode() + member
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def position_of(cursor: str, sort: Sort, *, descending: bool) -> bytes:
    """Return the member of a list that a cursor stands for.

    Raises:
        InvalidRequest: We did not make it, or not for this order.

    """
    try:
        if len(cursor) > _LONGEST_CURSOR:
            raise ValueError
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        text = base64.b64decode(padded, altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        text = b""
    order, _, member = text.partition(b" ")
    if order != f"{'-' if descending else '+'}{sort}".encode() or not is_upload_id(
        id_in(member)
    ):
        raise InvalidRequest("cursor must be the next_cursor of a page in the same order.")
    return member


def span(query: Query) -> tuple[bytes, bytes]:
    """Return where the rest of the list begins and where it ends, as ZRANGE BYLEX takes it."""
    first, last = b"-", b"+"
    if query.sort == "created_at":
        if query.created_after is not None:
            first = b"[" + prefix_of(query.created_after)
        if query.created_before is not None:
            last = b"(" + prefix_of(query.created_before)
    if query.after is not None:
        # A cursor of a page with other filters may lie outside: the narrower bound counts.
        if query.descending and (last == b"+" or query.after < last[1:]):
            last = b"(" + query.after
        elif not query.descending and (first == b"-" or query.after >= first[1:]):
            first = b"(" + query.after
    return (last, first) if query.descending else (first, last)


def matches(query: Query, record: FileRecord) -> bool:
    """Tell whether a file is one of those that are asked for."""
    if query.created_after is not None and record.created_at < query.created_after:
        return False
    if query.created_before is not None and record.created_at >= query.created_before:
        return False
    if query.type:
        kind = record.content_type.partition(";")[0].strip().lower()
        if query.type not in {kind, kind.partition("/")[0]}:
            return False
    return query.name in folded(record.filename)
