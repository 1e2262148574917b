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
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Final, Literal

import aiohttp
import msgspec
import structlog
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.parsers import ResponseParserError

from shared.errors import StartupError

__all__ = [
    "CONNECTIONS",
    "FAILURES",
    "NoSuchObject",
    "NoSuchUpload",
    "Outdated",
    "S3Calls",
    "S3Failed",
    "S3Options",
    "error_of",
]

log = structlog.stdlib.get_logger(__name__)

CONNECTIONS: Final = 512
"""More than the streams of a process have parts in flight; a call that finds none waits."""
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 3.0
_CONNECT_S: Final = 5.0
_ANSWER_S: Final = 60.0
"""Longest silence of a server that works: completing an upload of 10,000 parts takes long."""
_MISSING: Final = {"404", "NoSuchKey", "NotFound"}
_OUTDATED: Final = {"412", "PreconditionFailed", "ConditionalRequestConflict"}
_BUSY: Final = {
    *("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling"),
    *("OperationAborted", "RequestLimitExceeded", "ThrottlingException", "TooManyRequests"),
}
FAILURES: Final = (
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


class S3Calls:
    """One bucket, over a pool of connections that all its users share."""

    def __init__(self, options: S3Options) -> None:
        self.options: Final = options
        self._stack: Final = AsyncExitStack()
        self._client: Any = None
        self.healthy = True
        """Whether the server answered the last call."""

    async def open(self) -> None:
        """Connect and look for the bucket.

        Raises:
            StartupError: It cannot be used; one line that says why.

        """
        given = self.options
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
        where = self.options.endpoint_url or "Amazon S3"
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
        deadline = time.monotonic() + self.options.patience_s
        method = getattr(self._client, operation)
        pause_s = _FIRST_PAUSE_S
        while True:
            if check is not None:
                check()
            try:
                answer: dict[str, Any] = await method(Bucket=self.options.bucket, **arguments)
            except FAILURES as exc:
                failure = exc
            else:
                self.healthy = True
                return answer
            wait_s = random.uniform(0, pause_s)  # noqa: S311 - full jitter
            if not _may_pass(failure) or time.monotonic() + wait_s > deadline:
                error = error_of(operation, failure)
                self.healthy = not _may_pass(failure)
                raise error from failure
            log.debug("s3_call_repeated", operation=operation, error=repr(failure))
            await asyncio.sleep(wait_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def sign(self, operation: str, /, lifetime_s: int, **arguments: Any) -> str:
        """Return a URL that stands for a call, for so many seconds; calls nobody.

        Raises:
            S3Failed: There are no keys to sign it with.

        """
        try:
            url: str = await self._client.generate_presigned_url(
                operation,
                Params={"Bucket": self.options.bucket, **arguments},
                ExpiresIn=lifetime_s,
            )
        except FAILURES as exc:
            raise error_of(operation, exc) from exc
        return url


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
        max_pool_connections=CONNECTIONS,
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


def error_of(operation: str, failure: Exception) -> OSError:
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
