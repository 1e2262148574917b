"""One object made of others, by the server itself where it can."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import msgspec

from shared.blobs.s3_calls import S3Failed
from shared.blobs.s3_client import S3Client
from shared.blobs.s3_parts import Part, Range, plan_join

__all__ = ["Source", "join"]

_COPIES: Final = 4
"""Copies, or parts in memory, at once."""


class Source(msgspec.Struct, frozen=True):
    """An object to take bytes from."""

    key: str
    size: int


async def join(
    client: S3Client,
    check: Callable[[], None],
    key: str,
    sources: Sequence[Source],
    *,
    least: int,
) -> int:
    """Make an object of the bytes of others, in order; return its size.

    It appears as a whole or not at all. Where the ranges are large enough the server copies
    them; what would be too small for a part is read and sent, at most ``_COPIES`` parts of
    ``least`` bytes at once.

    Args:
        client: Of the bucket.
        check: Called before each call that writes.
        key: Of the new object; one that is there is replaced.
        sources: One may be named several times.
        least: Least part size, in bytes.

    Raises:
        NoSuchObject: A source is not there.
        S3Failed: Something else failed; nothing has changed.

    """
    plan = plan_join([one.size for one in sources], least=least)
    joined = _Join(client, check, key, sources, least)
    return await joined.run(plan)


class _Join:
    def __init__(
        self,
        client: S3Client,
        check: Callable[[], None],
        key: str,
        sources: Sequence[Source],
        least: int,
    ) -> None:
        self._client: Final = client
        self._check: Final = check
        self._key: Final = key
        self._sources: Final = sources
        self._least: Final = least
        self._multipart_id = ""

    async def run(self, plan: Sequence[Sequence[Range]]) -> int:
        size = sum(one.size for one in self._sources)
        if not plan or (len(plan) == 1 and size < self._least):
            body = await self._read(plan[0] if plan else ())
            await self._client.put(self._key, body, check=self._check)
            return size
        answer = await self._client.call(
            "create_multipart_upload", check=self._check, Key=self._key
        )
        self._multipart_id = answer["UploadId"]
        try:
            parts = await self._client.each(
                [partial(self._part, number, ranges) for number, ranges in enumerate(plan, 1)],
                at_once=_COPIES,
            )
            await self._client.complete(
                self._key, self._multipart_id, parts, size, check=self._check
            )
        except BaseException:
            with suppress(S3Failed):
                await self._client.abort(self._key, self._multipart_id)
            raise
        return size

    async def _part(self, number: int, ranges: Sequence[Range]) -> Part:
        """Copy or send one part."""
        size = sum(one.length for one in ranges)
        arguments: dict[str, Any] = {
            "check": self._check,
            "Key": self._key,
            "UploadId": self._multipart_id,
            "PartNumber": number,
        }
        if len(ranges) > 1 or size < self._least:
            body = await self._read(ranges)
            answer = await self._client.call("upload_part", Body=body, **arguments)
            return Part(number, size, answer["ETag"])
        start = ranges[0].start
        answer = await self._client.call(
            "upload_part_copy",
            CopySource=self._client.copy_source(self._sources[ranges[0].source].key),
            CopySourceRange=f"bytes={start}-{start + size - 1}",
            **arguments,
        )
        return Part(number, size, answer["CopyPartResult"]["ETag"])

    async def _read(self, ranges: Sequence[Range]) -> bytes:
        pieces = []
        for one in ranges:
            stream = self._client.stream(self._sources[one.source].key, one.start, one.length)
            pieces += [piece async for piece in stream]
        body = b"".join(pieces)
        if len(body) != sum(one.length for one in ranges):
            raise S3Failed(errno.EIO, "a source is shorter than it was")
        return body
