"""Sends the bytes of a store that has no files, as fast as the client takes them.

The counterpart of ``sendfile``, with the same patience and the same ends. Holds one piece of
the store at a time; the next one is fetched when the socket has taken all of the last one.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
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
        transport, writer = request.transport, await response.prepare(request)
        if transport is None or writer is None or transport.is_closing():
            return 0
        sent = 0
        low, high = transport.get_write_buffer_limits()
        # With a limit of zero a write waits until the socket has taken all of it.
        transport.set_write_buffer_limits(high=0)
        with duplicate(transport) as sock:
            client = _Client(transport, sock, writer, stall_timeout_s)
            with suppress(ConnectionError, _Stalled):
                while sent < length and self._next:
                    await client.take(response, self._next)
                    sent += len(self._next)
                    self._next = await self._fetch()
            if sent < length:
                abort(transport, sock)
            elif not transport.is_closing():  # uvloop refuses the call on a closed transport
                transport.set_write_buffer_limits(high=high, low=low)
        return sent

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


class _Stalled(Exception):
    """The client takes no bytes."""


class _Client(NamedTuple):
    transport: asyncio.Transport
    sock: socket.socket
    writer: AbstractStreamWriter
    stall_timeout_s: float

    async def take(self, response: web.StreamResponse, piece: bytes) -> None:
        """Write a piece and wait until the socket has taken it.

        Raises:
            _Stalled: The client took less than 4 KiB within the time. What it has
                acknowledged counts, where the system tells.
            ConnectionError: It has gone.

        """
        left = self._outstanding() + len(piece)
        waiting: Awaitable[None] = response.write(piece)  # handed over at once, then waits
        while True:
            try:
                async with asyncio.timeout(self.stall_timeout_s):
                    return await waiting
            except TimeoutError:
                before, left = left, self._outstanding()
                if before - left < LEAST_PROGRESS_BYTES:
                    raise _Stalled from None
                waiting = self.writer.drain()

    def _outstanding(self) -> int:
        """Return how many bytes wait, here and in the kernel, to be acknowledged."""
        return self.transport.get_write_buffer_size() + unacknowledged_bytes(self.sock)
