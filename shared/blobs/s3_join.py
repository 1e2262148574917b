"""One object made of others, by the server itself where it can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import msgspec

from shared.blobs.s3_client import NoSuchUpload, S3Client, S3Failed
from shared.blobs.s3_parts import Range, plan_join

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
    size = sum(one.size for one in sources)
    if not plan or (len(plan) == 1 and size < least):
        body = await _read(client, sources, plan[0] if plan else ())
        await client.put(key, body, check=check)
        return size
    answer = await client.call("create_multipart_upload", check=check, Key=key)
    target = {"Key": key, "UploadId": answer["UploadId"]}
    try:
        parts = await client.each(
            [
                partial(_part, client, check, target, number, sources, ranges, least)
                for number, ranges in enumerate(plan, 1)
            ],
            at_once=_COPIES,
        )
        await _complete(client, check, target, parts, size)
    except BaseException:
        with suppress(S3Failed):
            await client.abort(key, target["UploadId"])
        raise
    return size


async def _part(
    client: S3Client,
    check: Callable[[], None],
    target: dict[str, str],
    number: int,
    sources: Sequence[Source],
    ranges: Sequence[Range],
    least: int,
) -> dict[str, Any]:
    """Copy or send one part; return what completing needs to know of it."""
    first = ranges[0]
    arguments: dict[str, Any] = {"check": check, "PartNumber": number, **target}
    if len(ranges) == 1 and first.length >= least:
        answer = await client.call(
            "upload_part_copy",
            CopySource=client.copy_source(sources[first.source].key),
            CopySourceRange=f"bytes={first.start}-{first.start + first.length - 1}",
            **arguments,
        )
        return {"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]}
    body = await _read(client, sources, ranges)
    answer = await client.call("upload_part", Body=body, **arguments)
    return {"PartNumber": number, "ETag": answer["ETag"]}


async def _read(client: S3Client, sources: Sequence[Source], ranges: Sequence[Range]) -> bytes:
    pieces = []
    for one in ranges:
        stream = client.stream(sources[one.source].key, one.start, one.length)
        pieces += [piece async for piece in stream]
    return b"".join(pieces)


async def _complete(
    client: S3Client,
    check: Callable[[], None],
    target: dict[str, str],
    parts: Sequence[dict[str, Any]],
    size: int,
) -> None:
    try:
        await client.call(
            "complete_multipart_upload",
            check=check,
            MultipartUpload={"Parts": list(parts)},
            **target,
        )
    except NoSuchUpload:  # a try whose answer was lost has done it
        if await client.size_of(target["Key"]) != size:
            raise
