"""Sends the bytes of a store that has no files, as fast as the client takes them.

The counterpart of ``sendfile``, with the same patience and the same ends. Holds two pieces of
the store at most: one that the socket takes, and the next one, which is fetched meanwhile.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, NamedTuple

import structlog
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from services.storage.sendfile import (
    LEAST_PROGRESS_BYTES,
    abort,
    duplicate,
    unacknowledged_bytes,
)
from shared.blobs.store import UploadNotFound

__all__ = ["Pieces", "opened"]

log = structlog.stdlib.get_logger(__name__)

_NEVER_FULL: Final = 1 << 30
"""More than a piece: a write does not wait. What the socket did not take is waited for by us,
with our patience."""


class Pieces:
    """The bytes of one answer, of which the first are there."""

    def __init__(self, first: bytes, rest: AsyncIterator[bytes]) -> None:
        self._next = first
        self._rest: Final = rest

    async def send(
        self,
        request: web.Request,
        response: web.StreamResponse,
        length: int,
        *,
        stall_timeout_s: float,
    ) -> int:
        """Send ``length`` bytes; return how many were handed to the socket.

        Call it as ``send_file``. Fewer bytes than asked for mean that the client has gone or
        has stalled, or that the store has failed, which is logged; the connection is already
        aborted then, so that the client cannot take what it has for the whole.
        """
        transport = request.transport
        if transport is None or transport.is_closing():
            return 0
        writer = await response.prepare(request)  # of a prepared response: its writer, no I/O
        if writer is None:
            raise AssertionError("send() after write_eof()")
        sent = 0
        low, high = transport.get_write_buffer_limits()
        transport.set_write_buffer_limits(high=_NEVER_FULL)
        with duplicate(transport) as sock:
            client = _Client(transport, writer, sock, stall_timeout_s)
            with suppress(ConnectionError):
                while sent < length and self._next:
                    piece = self._next
                    await response.write(piece)  # which does not wait
                    self._next = await self._following(client)
                    sent += len(piece)
            if sent < length:
                abort(transport, sock)
            elif not transport.is_closing():  # uvloop refuses the call on a closed transport
                transport.set_write_buffer_limits(high=high, low=low)
        return sent

    async def _following(self, client: _Client) -> bytes:
        """Return the next bytes once the socket has taken those that were written.

        A fast client's socket takes them at once: then neither needs a task.

        Raises:
            ConnectionError: As ``_Client.drain``.

        """
        if not client.transport.get_write_buffer_size():
            return await self._fetch()
        async with self._fetching() as following:
            await client.drain()
            return await following

    @asynccontextmanager
    async def _fetching(self) -> AsyncGenerator[asyncio.Future[bytes]]:
        """Fetch the next bytes meanwhile; nothing is being fetched any more at the end."""
        following = asyncio.ensure_future(self._fetch())
        try:
            yield following
        finally:
            following.cancel()  # without effect on what is there
            await asyncio.gather(following, return_exceptions=True)

    async def _fetch(self) -> bytes:
        """Return the next bytes; none at the end, or when the store fails."""
        try:
            return await anext(self._rest, b"")
        except (OSError, UploadNotFound) as exc:
            log.error("store_failed_in_a_download", error=repr(exc))
            return b""


@asynccontextmanager
async def opened(pieces: AsyncIterator[bytes]) -> AsyncGenerator[Pieces]:
    """Fetch the first bytes, so that a failure can still be answered; close it at the end.

    Raises:
        UploadNotFound, OSError: As ``BlobStore.read_range``.

    """
    try:
        yield Pieces(await anext(pieces, b""), pieces)
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()


class _Client(NamedTuple):
    transport: asyncio.Transport
    writer: AbstractStreamWriter
    sock: socket.socket
    stall_timeout_s: float

    async def drain(self) -> None:
        """Wait until the socket has taken what was written.

        Raises:
            ConnectionError: It has gone, or it took less than 4 KiB within the time and was
                cut. What it has acknowledged counts, where the system tells.

        """
        # With a limit of zero the protocol is paused, and drain() waits, until nothing is left.
        self.transport.set_write_buffer_limits(high=0)
        left = self._outstanding()
        # A task: aiohttp's wait for the socket does not survive being cancelled.
        draining = asyncio.ensure_future(self.writer.drain())
        try:
            while not (await asyncio.wait([draining], timeout=self.stall_timeout_s))[0]:
                before, left = left, self._outstanding()
                if before - left < LEAST_PROGRESS_BYTES:
                    break
        finally:
            if not draining.done():
                abort(self.transport, self.sock)  # which ends the wait
                with suppress(ConnectionError):
                    await draining
        draining.result()
        if self.transport.is_closing():  # the wait may end without an error then
            raise ConnectionResetError
        self.transport.set_write_buffer_limits(high=_NEVER_FULL)

    def _outstanding(self) -> int:
        """Return how many bytes wait, here and in the kernel, to be acknowledged."""
        return self.transport.get_write_buffer_size() + unacknowledged_bytes(self.sock)
