"""Sends part of a file as response body with sendfile(2), on any event loop.

The bytes go from the page cache to the socket inside the kernel; Python sees only counts. Knows
nothing of ranges, headers or where files live. The socket must be a bare one: TLS ends in front
of the process, at the ingress. Linux and macOS. Offsets and lengths are bytes.

``loop.sendfile()`` is not used: uvloop has none, and the standard loop's gives no other
connection a turn while the client keeps up (over 100 ms at a time, measured on loopback).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import struct
import sys
import termios
from contextlib import suppress
from typing import Final

from aiohttp import web

__all__ = [
    "LEAST_PROGRESS_BYTES",
    "abort",
    "duplicate",
    "send_file",
    "tells_what_is_cached",
    "unacknowledged_bytes",
]

# The loop serves others after each piece, which takes 0.3 ms at the 3 GB/s of loopback. No
# size from 256 KiB to 4 MiB was measurably faster.
_PIECE_BYTES: Final = 1 << 20
# What a client must take within each stall timeout. A window that opens by single bytes would
# otherwise hold the connection, and its kernel buffer, for as long as its owner likes.
LEAST_PROGRESS_BYTES: Final = 4096
# Errors of a vanished client that Python has no ConnectionError for.
_UNREACHABLE: Final = frozenset(
    {
        errno.ENOTCONN,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
    }
)
_scratch: Final = [bytearray(1)]


async def send_file(
    request: web.Request,
    response: web.StreamResponse,
    fd: int,
    start: int,
    length: int,
    *,
    stall_timeout_s: float,
) -> int:
    """Send ``length`` bytes of the file from offset ``start``; return how many were sent.

    The response has a Content-Length and no compression; it is prepared if it is not yet.
    Call it before ``response.write_eof()``, which then leaves the connection usable for the
    next request. It may be called repeatedly, with ``response.write()`` in between. aiohttp
    doesn't count these bytes (``response.body_length``): the result does.

    Fewer bytes than asked for mean that the client has gone or has stalled, and that the
    connection is already aborted: nothing is left to do but return the response. A client
    stalls if it takes less than 4 KiB within ``stall_timeout_s``; it is given up after that
    time at the earliest and twice that at the latest. One that stops sending (a half-closed
    connection) counts as gone, as everywhere in aiohttp.

    sendfile blocks while the disk reads what the page cache lacks. So each piece is first
    looked up in the cache: one that is there is sent from the loop at once, one that is not
    (or where the system can't tell: macOS, some network filesystems) from a thread of the
    default executor. A slow disk delays only those who read from it, and a slow client never
    holds a thread, because the socket itself doesn't block. On cancellation the function waits
    for such a thread to finish its piece, since it uses both descriptors.

    Args:
        request: The request being answered.
        response: Its response.
        fd: Descriptor of a regular file. It stays the caller's, and stays open until the
            function has returned or raised; its file position is not used.
        start: Offset of the first byte.
        length: Number of bytes; the file must have them.
        stall_timeout_s: Seconds.

    Raises:
        OSError: The file can't be read or ends too early; the connection is aborted.

    """
    transport = request.transport
    if transport is None or transport.is_closing():
        return 0
    if transport.get_extra_info("sslcontext") is not None:
        raise AssertionError("sendfile would write plain bytes into a TLS connection")
    sent = 0
    if length <= _PIECE_BYTES and _is_cached(fd, start, length):
        await response.prepare(request)  # nothing if it has been
        sent = _send_at_once(transport, fd, start, length)
    if sent == length:
        return sent
    with duplicate(transport) as sock:
        sending = _Sending(transport, sock, fd, start, length)
        sending.sent = sent
        try:
            await _flush(request, response, transport, stall_timeout_s)
            await sending.run(stall_timeout_s)
        except OSError as error:  # a TimeoutError is one, too
            abort(transport, sock)
            if not _is_clients_end(error):
                raise
        else:
            if sending.sent < length:
                abort(transport, sock)
    return sending.sent


def _send_at_once(transport: asyncio.Transport, fd: int, start: int, length: int) -> int:
    """Send what the socket takes of a body of one piece without anybody waiting; maybe 0.

    The random reads of players and archives are mostly that: nothing to duplicate or watch.
    """
    if transport.get_write_buffer_size() or transport.is_closing():
        return 0
    try:
        return _sendfile(transport.get_extra_info("socket").fileno(), fd, start, length)
    except OSError:
        return 0  # it happens again when there is somebody to deal with it


def duplicate(transport: asyncio.Transport) -> socket.socket:
    """Return a second descriptor of the transport's socket.

    Loops refuse ``add_writer()`` for the transport's own descriptor, and this one stays valid
    when the transport closes its own in the middle of a piece.
    """
    own = transport.get_extra_info("socket")
    return socket.fromfd(own.fileno(), own.family, own.type)


async def _flush(
    request: web.Request,
    response: web.StreamResponse,
    transport: asyncio.Transport,
    stall_timeout_s: float,
) -> None:
    """Wait until what aiohttp has written, the headers at least, has left for the socket.

    sendfile bypasses the transport's buffer and would overtake what lies in it.
    """
    writer = await response.prepare(request)  # of a prepared response: its writer, no I/O
    if writer is None:
        raise AssertionError("send_file() after write_eof()")
    low, high = transport.get_write_buffer_limits()
    # With a limit of zero no loop keeps bytes back that the socket would take; and the
    # protocol is paused, and drain() waits, until nothing is left.
    transport.set_write_buffer_limits(high=0)
    try:
        writer.send_headers()
        async with asyncio.timeout(stall_timeout_s):
            await writer.drain()
    finally:
        if not transport.is_closing():  # uvloop refuses the call on a closed transport
            transport.set_write_buffer_limits(high=high, low=low)


class _Sending:
    """A part of a file on its way to a socket, and how far it has come.

    Whenever the socket is writable, the loop itself calls what sends a piece: a task would be
    woken a turn later each time, in which a fast client empties the socket.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        sock: socket.socket,
        fd: int,
        start: int,
        length: int,
    ) -> None:
        self._transport: Final = transport
        self._sock: Final = sock
        self._fd: Final = fd
        self._start: Final = start
        self._length: Final = length
        self.sent = 0
        self._paused: asyncio.Future[None] | None = None

    async def run(self, stall_timeout_s: float) -> None:
        """Send it to its end, or until the client closes.

        Raises:
            TimeoutError: The client stalls.
            OSError: The file can't be read, or the client has gone.

        """
        while self._is_unfinished():
            await self._send_cached(stall_timeout_s)
            if self._is_unfinished():
                offset, count = self._piece()
                self.sent += await _send_from_thread(self._sock, self._fd, offset, count)

    def _is_unfinished(self) -> bool:
        return self.sent < self._length and not self._transport.is_closing()

    def _piece(self) -> tuple[int, int]:
        """Return offset and length of what is to be sent next."""
        return self._start + self.sent, min(_PIECE_BYTES, self._length - self.sent)

    async def _send_cached(self, stall_timeout_s: float) -> None:
        """Send until all is sent, or the socket is writable and the cache lacks the next piece.

        Raises:
            TimeoutError: The client stalls. A full socket becomes writable only once about a
                third of its buffer is free, which takes a slow client long: what it has
                acknowledged meanwhile counts, where the system tells.
            OSError: As ``run``.

        """
        loop = asyncio.get_running_loop()
        paused = self._paused = loop.create_future()
        loop.add_writer(self._sock.fileno(), self._send_piece)
        try:
            taken = self._taken()
            while not paused.done():
                await asyncio.wait([paused], timeout=stall_timeout_s)
                before, taken = taken, self._taken()
                if not paused.done() and taken - before < LEAST_PROGRESS_BYTES:
                    raise TimeoutError("the client takes no bytes")
            paused.result()
        finally:
            # Before the descriptor is closed: epoll goes on reporting a closed duplicate.
            loop.remove_writer(self._sock.fileno())
            if paused.done():
                paused.exception()  # or the loop complains, if we were cancelled just now

    def _taken(self) -> int:
        """Return a count of bytes that grows with what the client acknowledges."""
        return self.sent - unacknowledged_bytes(self._sock)

    def _send_piece(self) -> None:
        """Send the next piece. Called at every turn of the loop with the socket writable."""
        paused = self._paused
        if paused is None or paused.done():  # until the writer is removed
            return
        offset, count = self._piece()
        try:
            if self._transport.is_closing() or not _is_cached(self._fd, offset, count):
                paused.set_result(None)
                return
            self.sent += _sendfile(self._sock.fileno(), self._fd, offset, count)
        except OSError as error:
            paused.set_exception(error)
        else:
            if self.sent == self._length:
                paused.set_result(None)


async def _send_from_thread(sock: socket.socket, fd: int, offset: int, count: int) -> int:
    """Send up to ``count`` bytes; return how many the socket took, 0 if it is full."""
    loop = asyncio.get_running_loop()
    sending = loop.run_in_executor(None, _sendfile, sock.fileno(), fd, offset, count)
    try:
        return await asyncio.shield(sending)
    finally:
        # If a descriptor were closed while the thread runs, its number could by then belong to
        # another file or another client.
        while not sending.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([sending])


def _sendfile(out: int, fd: int, offset: int, count: int) -> int:
    try:
        sent = os.sendfile(out, fd, offset, count)
    except BlockingIOError:
        return 0
    if sent == 0:
        raise OSError(errno.EIO, "the file ends before the announced length")
    return sent


def _is_cached(fd: int, offset: int, count: int) -> bool:
    """Tell whether sendfile can probably read these bytes without waiting for a disk.

    Only the first and the last byte are tried: files are read and cached in order. A hole
    between them costs one wait of the loop, no more.
    """
    if sys.platform != "linux":
        return False
    try:
        os.preadv(fd, _scratch, offset, os.RWF_NOWAIT)
        os.preadv(fd, _scratch, offset + count - 1, os.RWF_NOWAIT)
    except OSError:  # it is not there (EAGAIN), or the filesystem can't tell (EOPNOTSUPP)
        return False
    return True


def tells_what_is_cached(fd: int) -> bool:
    """Tell whether a file is where ``RWF_NOWAIT`` works: on a local disk of Linux."""
    if sys.platform != "linux":
        return False
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def unacknowledged_bytes(sock: socket.socket) -> int:
    """Return how many bytes the kernel holds for the client; 0 where it can't tell (macOS)."""
    try:
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    return int.from_bytes(answer, sys.byteorder)


def _is_clients_end(error: OSError) -> bool:
    return isinstance(error, ConnectionError | TimeoutError) or error.errno in _UNREACHABLE


def abort(transport: asyncio.Transport, sock: socket.socket) -> None:
    """Reset the connection, so that the kernel drops at once what it still holds to send."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
