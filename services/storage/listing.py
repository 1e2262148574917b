"""Reads the files of an owner in pages.

A page costs as much as it has files, however many there are; with a filter that a list is not
sorted by, as much as is looked through. That is bounded, and then a page may be short: the
next one goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from services.storage.paging import Query, cursor_of, matches, span
from services.storage.record import FileRecord, Owner, id_in
from services.storage.records import Records

__all__ = ["Listing", "Page"]

_BATCH: Final = 500
_MOST_LOOKED_AT: Final = 10_000
"""Files looked through for one page: about a quarter of a second."""


class Page(msgspec.Struct, frozen=True):
    """Some files, and where the next ones are."""

    files: Sequence[FileRecord]
    next_cursor: str | None
    total: int
    """Files that the owner has, whatever was asked for."""
    complete: bool
    """Whether all older files have been recorded; else they are being looked for."""


class Listing:
    """Lists what is recorded. Raises what Redis raises while it is away.

    Args:
        records: Has the lists.

    """

    def __init__(self, records: Records) -> None:
        self._records: Final = records

    async def page(self, owner: Owner, query: Query) -> Page:
        """Return the files that are asked for, from the place on that is asked for."""
        files, end = await self._look(owner, query)
        return Page(
            files,
            None if end is None else cursor_of(end, query.sort, descending=query.descending),
            await self._records.count(owner),
            await self._records.is_complete(),
        )

    async def _look(self, owner: Owner, query: Query) -> tuple[list[FileRecord], bytes | None]:
        """Return the files of a page, and the member behind which there may be more."""
        found: list[FileRecord] = []
        looked_at, end = 0, query.after
        while True:
            count = _BATCH if query.is_filtered else query.limit + 1 - len(found)
            rest = msgspec.structs.replace(query, after=end)
            members = await self._records.members(
                owner, query.sort, span(rest), backwards=query.descending, count=count
            )
            records = await self._records.find_all([id_in(one) for one in members])
            for member, record in zip(members, records, strict=True):
                if record is not None and record.owner == owner and matches(query, record):
                    if len(found) == query.limit:
                        return found, end
                    found.append(record)
                end = member
            looked_at += len(members)
            if len(members) < count:
                return found, None
            if looked_at >= _MOST_LOOKED_AT:
                return found, end
