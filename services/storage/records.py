"""The records of files in Redis, ``file:{id}``, and the lists of each owner's files.

Copies, not the truth: the sidecar decides what is a file. A record is written first and then
listed, and taken back in the same order, each step as often as anybody likes; so wherever
somebody dies, doing it again ends well. A member of a list without a record is no file.

A file that is gone leaves a word in its record for a day, so that neither an event that was
read before nor one that comes again brings it back. Ids are never used twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

from redis.asyncio import Redis

from services.storage.record import (
    FIELDS,
    SORTS,
    FileRecord,
    Owner,
    Sort,
    fields_of,
    list_key,
    members_of,
    record_from,
    record_key,
)
from shared.events import UploadFacts
from shared.redis_script import RedisScript
from shared.sidecar import is_upload_id
from shared.streams import Command, command, pipelined

__all__ = ["Records"]

_GONE_S: Final = 86_400
"""Longer than an event waits to be handled again."""
_LISTS: Final = "files:{*"
_COMPLETE: Final = "files:complete"

_WRITE: Final = RedisScript(Path(__file__).with_name("record_write.lua"))
_DROP: Final = RedisScript(Path(__file__).with_name("record_drop.lua"))


class Records:
    """All records. Every method raises what Redis raises while it is away.

    Args:
        redis: Client made by ``shared.streams.connect``.

    """

    def __init__(self, redis: Redis) -> None:
        self._redis: Final = redis

    async def register(self, records: Sequence[FileRecord]) -> None:
        """Record and list files; what is known better already stays as it is."""
        calls = [
            ([record_key(one.file_id)], (one.seq, one.sha256, *fields_of(one)))
            for one in records
        ]
        replies = await _WRITE.run_all(self._redis, calls)
        listing: list[Command] = []
        for one, is_there in zip(records, replies, strict=True):
            if is_there:
                listing += [("ZADD", key, 0, member) for key, member in _places(one)]
        await pipelined(self._redis, listing)

    async def drop(self, file_id: str, facts: UploadFacts) -> None:
        """Forget a file that is gone for good, whether it was recorded or not.

        Args:
            file_id: Of the file.
            facts: As its last event or its sidecar has them.

        """
        await _DROP.run(self._redis, [record_key(file_id)], _GONE_S)
        members = members_of(
            file_id,
            created_at=facts.created_at,
            filename=facts.filename,
            size=facts.size or 0,
        )
        owner = Owner(facts.tenant, facts.user_id)
        places = [(list_key(owner, sort), one) for sort, one in members.items()]
        await pipelined(self._redis, [("ZREM", *place) for place in places])

    async def forget(self, record: FileRecord) -> None:
        """Remove a record that has no file. If there is one after all, it can come back."""
        await command(self._redis, "DEL", record_key(record.file_id))
        await pipelined(self._redis, [("ZREM", *place) for place in _places(record)])

    async def find(self, file_id: str) -> FileRecord | None:
        """Return the record of a file; ``None`` if there is none (any more)."""
        return (await self.find_all([file_id]))[0]

    async def find_all(self, file_ids: Sequence[str]) -> list[FileRecord | None]:
        """Return the records of files, in the order of their ids."""
        reading: list[Command] = [("HMGET", record_key(one), *FIELDS) for one in file_ids]
        replies = await pipelined(self._redis, reading)
        return [record_from(one, reply) for one, reply in zip(file_ids, replies, strict=True)]

    async def members(
        self, owner: Owner, sort: Sort, span: Sequence[bytes], *, backwards: bool, count: int
    ) -> list[bytes]:
        """Return members of a list in order.

        Args:
            owner: Whose list.
            sort: Which of them.
            span: Where to begin and where to end, as ``ZRANGE … BYLEX`` takes it.
            backwards: From the last one on.
            count: At most so many.

        """
        order = ("REV",) if backwards else ()
        found: list[bytes] = await command(
            self._redis,
            *("ZRANGE", list_key(owner, sort), *span),
            *("BYLEX", *order, "LIMIT", 0, count),
        )
        return found

    async def count(self, owner: Owner) -> int:
        """Return how many files an owner has."""
        return int(await command(self._redis, "ZCARD", list_key(owner, "created_at")))

    async def is_complete(self) -> bool:
        """Tell whether all older files have been recorded in this Redis."""
        return bool(await command(self._redis, "EXISTS", _COMPLETE))

    async def mark_complete(self) -> None:
        """Note that they have. It goes with everything else when Redis is wiped."""
        await command(self._redis, "SET", _COMPLETE, 1)

    async def all_ids(self) -> AsyncIterator[str]:
        """Yield the ids that there are records of, some of them twice perhaps."""
        async for key in self._redis.scan_iter(match=record_key("*"), count=1000):
            file_id = key.decode(errors="replace").partition(":")[2]
            if is_upload_id(file_id):  # links that were used stand beside them
                yield file_id

    async def list_keys(self) -> AsyncIterator[str]:
        """Yield the keys of all lists, some of them twice perhaps."""
        async for key in self._redis.scan_iter(match=_LISTS, count=1000):
            if key.endswith(tuple(f":{sort}".encode() for sort in SORTS)):
                yield key.decode(errors="replace")

    async def scan_list(self, key: str) -> AsyncIterator[bytes]:
        """Yield the members of a list, some of them twice perhaps."""
        async for member, _ in self._redis.zscan_iter(key, count=500):
            yield member

    async def unlist(self, key: str, members: Sequence[bytes]) -> None:
        """Take members out of a list."""
        if members:
            await command(self._redis, "ZREM", key, *members)


def _places(record: FileRecord) -> list[tuple[str, bytes]]:
    members = members_of(
        record.file_id,
        created_at=record.created_at,
        filename=record.filename,
        size=record.size,
    )
    return [(list_key(record.owner, sort), one) for sort, one in members.items()]
