"""Calls to an S3 server: tried again while that helps, and failing as ``OSError``.

The only module that knows aiobotocore. Nothing it raises is a ``ConnectionError`` or a
``TimeoutError``: those would be taken for the client's connection, or a waiter's own limit.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal, TypeVar, cast

import aiohttp
import msgspec
import structlog
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.parsers import ResponseParserError

from shared.blobs.s3_keys import Listed
from shared.blobs.s3_parts import Part
from shared.errors import StartupError

__all__ = ["NoSuchObject", "NoSuchUpload", "Outdated", "S3Client", "S3Failed", "S3Options"]

T = TypeVar("T")

log = structlog.stdlib.get_logger(__name__)

_PIECE: Final = 1024 * 1024
_CONNECTIONS: Final = 256
"""More than the streams of a process have parts in flight; a call that finds none waits."""
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 3.0
_CONNECT_S: Final = 5.0
_ANSWER_S: Final = 60.0
"""Longest silence of a server that works: completing an upload of 10,000 parts takes long."""
_AT_ONCE: Final = 16
"""Small calls that run side by side for one caller."""

_MISSING: Final = {"404", "NoSuchKey", "NotFound"}
_OUTDATED: Final = {"412", "PreconditionFailed", "ConditionalRequestConflict"}
_BUSY: Final = {
    *("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling"),
    *("OperationAborted", "RequestLimitExceeded", "ThrottlingException", "TooManyRequests"),
}
_FAILURES: Final = (
    ClientError,
    BotoCoreError,
    ResponseParserError,
    aiohttp.ClientError,
    OSError,
)
_FULL: Final = {"QuotaExceeded", "EntityTooLarge", "InsufficientStorage", "XMinioStorageFull"}


class S3Failed(OSError):
    """The server refused, or did not answer in time."""


class NoSuchObject(S3Failed):
    """The object is not there."""


class NoSuchUpload(S3Failed):
    """The multipart upload is not there (any more): completed, aborted, or never begun."""


class Outdated(S3Failed):
    """Somebody else has changed the object since it was looked at."""


class S3Options(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bucket is and how to talk to it."""

    bucket: str
    endpoint_url: str = ""
    """Empty: Amazon's."""
    region: str = ""
    access_key_id: str = ""
    secret_access_key: str = ""
    """Empty, as the id: what botocore finds in its environment."""
    checksums: Literal["when_supported", "when_required"] = "when_supported"
    patience_s: float = 20.0
    """How long a call is tried again, in seconds."""


class S3Client:
    """One bucket, over a pool of connections that all its users share."""

    def __init__(self, options: S3Options) -> None:
        self._options: Final = options
        self._stack: Final = AsyncExitStack()
        self._client: Any = None
        self.healthy = True
        """Whether the server answered the last call."""
        self._conditional = True

    async def open(self) -> None:
        """Connect and look for the bucket.

        Raises:
            StartupError: It cannot be used; one line that says why.

        """
        given = self._options
        try:
            self._client = await self._stack.enter_async_context(
                _session().create_client(
                    "s3",
                    endpoint_url=given.endpoint_url or None,
                    region_name=given.region or "us-east-1",
                    aws_access_key_id=given.access_key_id or None,
                    aws_secret_access_key=given.secret_access_key or None,
                    config=_configuration(given),
                )
            )
            await self.call("head_bucket")
        except (OSError, ValueError, BotoCoreError) as exc:
            await self.close()
            raise StartupError(f"BLOB_STORE=s3://{given.bucket}: {self._reason(exc)}") from exc

    def _reason(self, exc: Exception) -> str:
        where = self._options.endpoint_url or "Amazon S3"
        if isinstance(exc, NoSuchObject):
            return f"there is no such bucket at {where}: create it"
        if isinstance(exc, S3Failed) and exc.errno == errno.EACCES:
            return f"{where} refuses these keys: look at S3_ACCESS_KEY_ID and its secret"
        return f"{where} cannot be used ({' '.join(str(exc).split())})"

    async def close(self) -> None:
        """Close the connections."""
        await self._stack.aclose()

    async def call(
        self, operation: str, /, *, check: Callable[[], None] | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """Call the server, again and again until it answers or patience ends.

        Args:
            operation: Name of the method of botocore's client.
            check: Called before each try; may raise, such as ``Lease.check``.
            arguments: Of the operation, but for the bucket.

        Raises:
            S3Failed: It was refused, or all tries failed.

        """
        deadline = time.monotonic() + self._options.patience_s
        method = getattr(self._client, operation)
        pause_s = _FIRST_PAUSE_S
        while True:
            if check is not None:
                check()
            try:
                answer: dict[str, Any] = await method(Bucket=self._options.bucket, **arguments)
            except _FAILURES as exc:
                failure = exc
            else:
                self.healthy = True
                return answer
            wait_s = random.uniform(0, pause_s)  # noqa: S311 - full jitter
            if not _may_pass(failure) or time.monotonic() + wait_s > deadline:
                error = _error_of(operation, failure)
                self.healthy = not _may_pass(failure)
                raise error from failure
            log.debug("s3_call_repeated", operation=operation, error=repr(failure))
            await asyncio.sleep(wait_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def get(self, key: str) -> tuple[bytes, str]:
        """Return a small object and its ETag.

        Raises:
            NoSuchObject: It is not there.

        """
        chunks = []
        etag = ""
        async for chunk, etag in self._pieces(key, 0, None):  # noqa: B007 - the last one's
            chunks.append(chunk)
        return b"".join(chunks), etag

    async def stream(self, key: str, start: int, length: int) -> AsyncGenerator[bytes, None]:
        """Yield bytes of an object in pieces of at most 1 MiB, as fast as they are taken.

        Yields fewer if there are fewer. A connection that breaks is made up for.
        """
        async with aclosing(self._pieces(key, start, length)) as pieces:
            async for chunk, _ in pieces:
                yield chunk

    async def _pieces(
        self, key: str, start: int, length: int | None
    ) -> AsyncGenerator[tuple[bytes, str], None]:
        deadline = time.monotonic() + self._options.patience_s
        etag = ""
        while length is None or length > 0:
            last = "" if length is None else start + length - 1
            ranged: dict[str, Any] = {}
            if start or length is not None:
                ranged["Range"] = f"bytes={start}-{last}"
            if etag:  # go on with the very object that was begun
                ranged["IfMatch"] = etag
            try:
                answer = await self.call("get_object", Key=key, **ranged)
            except S3Failed as exc:
                if exc.errno == errno.ERANGE:
                    return
                raise
            etag = answer["ETag"]
            try:
                async with answer["Body"] as body:
                    while chunk := await body.read(_PIECE):
                        start += len(chunk)
                        length = None if length is None else length - len(chunk)
                        deadline = time.monotonic() + self._options.patience_s
                        yield chunk, etag
            except _FAILURES as exc:
                if time.monotonic() > deadline:
                    raise _error_of("get_object", exc) from exc
            else:
                return
            await asyncio.sleep(_FIRST_PAUSE_S)

    async def put(
        self, key: str, body: bytes, *, check: Callable[[], None] | None = None
    ) -> str:
        """Replace an object at once; return its ETag."""
        etag: str = (await self.call("put_object", check=check, Key=key, Body=body))["ETag"]
        return etag

    async def put_if(
        self, key: str, body: bytes, etag: str, *, check: Callable[[], None] | None = None
    ) -> str:
        """Replace an object if it is the one with this ETag; empty: if there is none.

        A server that knows no conditions (Swift, for ``If-Match``) is asked without.

        Raises:
            Outdated: It is another one.

        """
        condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
        if not self._conditional and etag:
            condition = {}
        try:
            answer = await self.call("put_object", check=check, Key=key, Body=body, **condition)
        except Outdated:
            # A try whose answer was lost may have done it.
            there, etag = await self.get(key)
            if there != body:
                raise
            return etag
        except S3Failed as exc:
            if exc.errno != errno.ENOSYS or not condition:
                raise
            if self._conditional:
                log.warning("s3_conditions_unknown", effect="records are replaced unchecked")
                self._conditional = False
            return await self.put(key, body, check=check)
        return str(answer["ETag"])

    def copy_source(self, key: str) -> dict[str, str]:
        """Return how a copy names the object that it takes."""
        return {"Bucket": self._options.bucket, "Key": key}

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
                Listed(one["Key"], one["Size"], one["LastModified"].timestamp())
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


@functools.cache
def _session() -> Any:
    """Return what has read botocore's data files; reading them again takes half a second."""
    return get_session()


def _configuration(given: S3Options) -> AioConfig:
    return AioConfig(
        signature_version="s3v4",
        s3={"addressing_style": "path" if given.endpoint_url else "auto"},
        request_checksum_calculation=given.checksums,
        response_checksum_validation=given.checksums,
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=_CONNECT_S,
        read_timeout=_ANSWER_S,
        max_pool_connections=_CONNECTIONS,
    )


def _code_and_status(failure: ClientError) -> tuple[str, int]:
    code = str(failure.response.get("Error", {}).get("Code", ""))
    return code, int(failure.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _may_pass(failure: Exception) -> bool:
    """Tell whether the same call may succeed a little later."""
    if isinstance(failure, ClientError):
        code, status = _code_and_status(failure)
        return code in _BUSY or status == 429 or (status >= 500 and status not in {501, 507})
    return isinstance(failure, HTTPClientError) or not isinstance(failure, BotoCoreError)


def _error_of(operation: str, failure: Exception) -> OSError:
    if not isinstance(failure, ClientError):
        return S3Failed(errno.EIO, f"{operation}: {failure!r}")
    code, status = _code_and_status(failure)
    text = f"{operation}: {status} {code} {failure.response['Error'].get('Message', '')}"
    if code == "NoSuchUpload":
        return NoSuchUpload(errno.ENOENT, text)
    if code in _MISSING or (status == 404 and code != "NoSuchBucket"):
        return NoSuchObject(errno.ENOENT, text)
    if code in _OUTDATED or status == 412:
        return Outdated(errno.EEXIST, text)
    if code in _FULL or status == 507:
        return S3Failed(errno.EDQUOT, text)
    number = {403: errno.EACCES, 401: errno.EACCES, 416: errno.ERANGE, 501: errno.ENOSYS}
    return S3Failed(number.get(status, errno.EIO), text)
