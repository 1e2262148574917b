"""What the store asks of a bucket: objects, listings, and multipart uploads."""

from __future__ import annotations

import asyncio
import errno
import functools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar, cast

import structlog

from shared.blobs.s3_body import Body
from shared.blobs.s3_calls import (
    CONNECTIONS,
    FAILURES,
    NoSuchObject,
    NoSuchUpload,
    Outdated,
    S3Calls,
    S3Failed,
    S3Options,
    error_of,
)
from shared.blobs.s3_keys import Listed
from shared.blobs.s3_parts import Part

__all__ = ["S3Client"]

T = TypeVar("T")

log = structlog.stdlib.get_logger(__name__)

_PAUSE_S: Final = 0.1
_STREAMS: Final = CONNECTIONS * 7 // 8
"""Connections that streams may have: the others are for calls that nobody can slow down."""
_AT_ONCE: Final = 16
"""Small calls that run side by side for one caller."""


class S3Client(S3Calls):
    """One bucket. Only ``open`` and ``close`` are not for concurrent use."""

    def __init__(self, options: S3Options) -> None:
        super().__init__(options)
        self.conditional = True
        """Whether the server writes under conditions, and decides them atomically."""
        self._slots: Final = asyncio.Semaphore(_STREAMS)

    async def get(self, key: str) -> tuple[bytes, str]:
        """Return a small object and its ETag.

        Raises:
            NoSuchObject: It is not there.

        """
        chunks = []
        etag = ""
        pieces = self._pieces(key, 0, None, slots=None)
        async for chunk, etag in pieces:  # noqa: B007 - the last one's
            chunks.append(chunk)
        return b"".join(chunks), etag

    async def stream(
        self, key: str, start: int, length: int, *, etag: str = ""
    ) -> AsyncGenerator[bytes, None]:
        """Yield bytes of an object in pieces of at most 1 MiB, as fast as they are taken.

        Yields fewer if there are fewer. A connection that breaks is made up for. So is one that
        was let go of, with what had come, because nobody took a piece for some seconds: readers
        that rest, however many, keep no connection from others.

        Args:
            key: Of the object.
            start: Offset of the first byte.
            length: How many.
            etag: Of the object that is meant; empty: the one that is there.

        Raises:
            Outdated: It is another one.

        """
        source = self._pieces(key, start, length, etag, slots=self._slots)
        async with aclosing(source) as pieces:
            async for chunk, _ in pieces:
                yield chunk

    async def _pieces(
        self,
        key: str,
        start: int,
        length: int | None,
        etag: str = "",
        *,
        slots: asyncio.Semaphore | None,
    ) -> AsyncGenerator[tuple[bytes, str], None]:
        deadline = time.monotonic() + self.options.patience_s
        while length is None or length > 0:
            last = "" if length is None else start + length - 1
            ranged: dict[str, Any] = {}
            if start or length is not None:
                ranged["Range"] = f"bytes={start}-{last}"
            if etag:  # go on with the very object that was begun
                ranged["IfMatch"] = etag
            body = Body(slots)
            try:
                get = functools.partial(self.call, "get_object", Key=key, **ranged)
                answer = await body.begin(get)
                etag = answer["ETag"]
                while chunk := await body.read():
                    start += len(chunk)
                    length = None if length is None else length - len(chunk)
                    with body.at_rest():
                        yield chunk, etag
                    deadline = time.monotonic() + self.options.patience_s
                    if body.closed:
                        break
                else:
                    return
            except S3Failed as exc:
                if exc.errno == errno.ERANGE:
                    return
                raise
            except FAILURES as exc:
                if time.monotonic() > deadline:
                    raise error_of("get_object", exc) from exc
                await asyncio.sleep(_PAUSE_S)
            finally:
                body.close()

    async def put(
        self, key: str, body: bytes, *, check: Callable[[], None] | None = None
    ) -> str:
        """Replace an object at once; return its ETag."""
        etag: str = (await self.call("put_object", check=check, Key=key, Body=body))["ETag"]
        return etag

    async def try_conditions(self, key: str) -> None:
        """Find out whether the server can write under conditions; leaves nothing.

        Swift does not know ``If-Match``, and takes ``If-None-Match`` of several writers that
        come together. Other servers may not look at conditions at all.
        """
        try:
            await self.call("put_object", Key=key, Body=b"", IfMatch='"none"')
        except (Outdated, NoSuchObject):
            return
        except S3Failed as exc:
            if exc.errno != errno.ENOSYS:
                raise
        else:
            await self.remove([key])
        self.conditional = False
        log.warning("s3_conditions_unknown", effect="leases alone decide who writes")

    async def put_if(
        self, key: str, body: bytes, etag: str, *, check: Callable[[], None] | None = None
    ) -> str:
        """Replace an object if it is the one with this ETag; empty: if there is none.

        A server that does not know ``If-Match`` is asked without.

        Raises:
            Outdated: It is another one.

        """
        condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
        if not self.conditional and etag:
            condition = {}
        try:
            answer = await self.call("put_object", check=check, Key=key, Body=body, **condition)
        except Outdated:
            # A try whose answer was lost may have done it.
            there, etag = await self.get(key)
            if there != body:
                raise
            return etag
        return str(answer["ETag"])

    async def url_of(
        self, key: str, *, disposition: str, content_type: str, lifetime_s: int
    ) -> str:
        """Return a URL at which anybody gets an object for so many seconds; calls nobody.

        Raises:
            S3Failed: There are no keys to sign it with.

        """
        return await self.sign(
            "get_object",
            lifetime_s,
            Key=key,
            ResponseContentDisposition=disposition,
            ResponseContentType=content_type,
            ResponseCacheControl="private, no-store",
        )

    def copy_source(self, key: str) -> dict[str, str]:
        """Return how a copy names the object that it takes."""
        return {"Bucket": self.options.bucket, "Key": key}

    async def size_of(self, key: str) -> int | None:
        """Return the size of an object; ``None`` if it is not there."""
        try:
            return int((await self.call("head_object", Key=key))["ContentLength"])
        except NoSuchObject:
            return None

    async def remove(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are not there do not matter."""
        await self.each(
            [functools.partial(self.call, "delete_object", Key=key) for key in keys]
        )

    async def each(
        self, calls: Sequence[Callable[[], Awaitable[T]]], *, at_once: int = _AT_ONCE
    ) -> list[T]:
        """Run calls side by side, a few at once; return their results in order.

        Raises:
            OSError: One failed. Nothing runs any more by then.

        """
        slots = asyncio.Semaphore(at_once)
        failed = False

        async def run(one: Callable[[], Awaitable[T]]) -> T | None:
            nonlocal failed
            async with slots:
                if failed:
                    return None
                try:
                    return await one()
                except BaseException:
                    failed = True
                    raise

        results = await asyncio.gather(*map(run, calls), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return cast("list[T]", results)

    async def listing(self, prefix: str, *, deep: bool = True) -> AsyncIterator[list[Listed]]:
        """Yield the objects whose keys begin so, a page at a time.

        Args:
            prefix: What the keys begin with.
            deep: Also those with a slash behind the prefix.

        """
        more: dict[str, Any] = {} if deep else {"Delimiter": "/"}
        while True:
            answer = await self.call("list_objects_v2", Prefix=prefix, **more)
            yield [
                Listed(
                    one["Key"],
                    one["Size"],
                    one["LastModified"].timestamp(),
                    one.get("ETag", "").strip('"'),
                )
                for one in answer.get("Contents", ())
            ]
            if not answer.get("IsTruncated"):
                return
            more["ContinuationToken"] = answer["NextContinuationToken"]

    async def list_all(self, prefix: str, *, deep: bool = True) -> list[Listed]:
        """Return the objects whose keys begin so, by key."""
        return [one async for page in self.listing(prefix, deep=deep) for one in page]

    async def parts(self, key: str, multipart_id: str) -> tuple[dict[int, Part], float]:
        """Return the parts of a multipart upload by number, and when the last one came.

        Raises:
            NoSuchUpload: It has been completed or aborted.

        """
        found: dict[int, Part] = {}
        newest = 0.0
        marker = 0
        while True:
            answer = await self.call(
                "list_parts", Key=key, UploadId=multipart_id, PartNumberMarker=marker
            )
            for one in answer.get("Parts", ()):
                found[one["PartNumber"]] = Part(one["PartNumber"], one["Size"], one["ETag"])
                newest = max(newest, one["LastModified"].timestamp())
            if not answer.get("IsTruncated"):
                return found, newest
            marker = int(answer["NextPartNumberMarker"])

    async def uploads(self, prefix: str) -> list[tuple[str, str, float]]:
        """Return key, id and begin (UTC, seconds) of the unfinished multipart uploads."""
        found = []
        more: dict[str, Any] = {}
        while True:
            answer = await self.call("list_multipart_uploads", Prefix=prefix, **more)
            found += [
                (one["Key"], one["UploadId"], one["Initiated"].timestamp())
                for one in answer.get("Uploads", ())
            ]
            if not answer.get("IsTruncated"):
                return found
            more = {
                "KeyMarker": answer["NextKeyMarker"],
                "UploadIdMarker": answer["NextUploadIdMarker"],
            }

    async def complete(
        self,
        key: str,
        multipart_id: str,
        parts: Sequence[Part],
        size: int,
        *,
        check: Callable[[], None] | None = None,
    ) -> None:
        """Make an object of parts, in this order.

        Raises:
            S3Failed: It may have been made all the same; then it may be repeated.

        """
        listed = [{"PartNumber": one.number, "ETag": one.etag} for one in parts]
        try:
            await self.call(
                "complete_multipart_upload",
                check=check,
                Key=key,
                UploadId=multipart_id,
                MultipartUpload={"Parts": listed},
            )
        except NoSuchUpload:  # a try whose answer was lost has done it
            if await self.size_of(key) != size:
                raise

    async def abort(self, key: str, multipart_id: str) -> None:
        """End a multipart upload without an object; one that is not there does not matter."""
        try:
            await self.call("abort_multipart_upload", Key=key, UploadId=multipart_id)
        except NoSuchUpload:
            return

    async def now(self) -> float:
        """Return the server's time: ages of objects are measured by its clock, not ours.

        It is the second that begins next, as some servers round times of objects up.
        """
        answer = await self.call("list_objects_v2", Prefix="\x7f", MaxKeys=1)
        date = answer["ResponseMetadata"]["HTTPHeaders"]["date"]
        return parsedate_to_datetime(date).timestamp() + 1
