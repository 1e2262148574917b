"""Parts of one multipart upload on their way to the server, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from shared.blobs.s3_client import S3Client
from shared.blobs.s3_parts import Part
from shared.lifecycle import TaskSet

__all__ = ["PartSender"]

_IN_FLIGHT: Final = 64 * 1024 * 1024
"""Bytes that one stream may have in flight, unless a single part is larger."""


class PartSender:
    """Sends in the background and holds whoever is too fast.

    Args:
        client: Of the bucket.
        key: Of the object that the parts will make.
        check: Called before each try to send; raises when the right to write is lost.
        parallel: Most parts in flight.

    """

    def __init__(
        self, client: S3Client, key: str, check: Callable[[], None], parallel: int
    ) -> None:
        self._client: Final = client
        self._key: Final = key
        self._check: Final = check
        self._parallel: Final = parallel
        self._tasks: Final = TaskSet("s3-part")
        self._flying: Final[dict[int, int]] = {}
        self._landed: Final = asyncio.Event()
        self._done: dict[int, Part] = {}
        self.failure: OSError | None = None
        """The first one since ``settle``. Nothing more is worth sending."""

    async def wait_for_room(self, size: int) -> None:
        """Return when a part of so many bytes may be sent."""
        while self._flying and (
            len(self._flying) >= self._parallel
            or sum(self._flying.values()) + size > _IN_FLIGHT
        ):
            await self._wait()

    def send(self, multipart_id: str, number: int, body: bytes) -> None:
        """Send a part; returns at once. Wait for room first."""
        self._flying[number] = len(body)
        self._tasks.start(self._send(multipart_id, number, body))

    async def _send(self, multipart_id: str, number: int, body: bytes) -> None:
        try:
            answer = await self._client.call(
                "upload_part",
                check=self._check,
                Key=self._key,
                UploadId=multipart_id,
                PartNumber=number,
                Body=body,
            )
            self._done[number] = Part(number, len(body), answer["ETag"])
        except OSError as exc:
            self.failure = self.failure or exc
        finally:
            del self._flying[number]
            self._landed.set()

    async def _wait(self) -> None:
        self._landed.clear()
        await self._landed.wait()

    async def settle(self) -> tuple[dict[int, Part], OSError | None]:
        """Wait until nothing is in flight; return what has arrived since the last time."""
        while self._flying:
            await self._wait()
        done, self._done = self._done, {}
        failure, self.failure = self.failure, None
        return done, failure
