"""Takes the rest of a body straight from its socket, past the event loop and aiohttp.

Through aiohttp each byte is copied three times before it is written (by the loop, the parser,
the reader), each time into memory that was never touched before: more than half of all that
receiving costs. Here a disk thread receives what it writes, and the loop only hears of
megabytes. aiohttp has the connection until the handler has begun to read the body, and again
from its last byte on.

This is the one place where ingest relies on more than aiohttp's public interface to have the
connection go on; ``why_not`` tries at start whether all of that is there, and
``RequestBody.read`` does without.

What is relied on (aiohttp 3.14): a ``request.protocol`` keeps what it knows of a body that is
under way in ``_parser`` and in the request's ``content``, nowhere else; a new parser, made of
the limits that the protocol keeps, therefore begins at the next request; and nobody resumes
reading of a paused transport while the content is not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Any, Final, Self

from aiohttp import hdrs, web
from aiohttp.web_protocol import RequestPayloadError

__all__ = ["DIRECT", "GATHER_S", "DirectBody", "why_not"]

DIRECT: Final = web.AppKey("direct", bool)
"""Whether bodies may be taken directly."""

_COMPANY: Final = 256 * 1024
"""Bytes worth a disk thread. What comes more slowly is left to gather in the kernel."""

GATHER_S: Final = 0.2
"""How long bytes of a slow client wait there for company, and are not counted as heard."""

_TRIAL_S: Final = 2.0
_TRIAL_END_S: Final = 0.1
_TRIAL_BODY: Final = bytes(range(256)) * 100
_TRIAL_NEXT: Final = b"GET / HTTP/1.1\r\nHost: trial\r\nConnection: close\r\n\r\n"
_TRIAL_ANSWERS: Final = 2
_TRIAL_HEAD: Final = b"PATCH / HTTP/1.1\r\nHost: trial\r\nContent-Length: %d\r\n\r\n" % len(
    _TRIAL_BODY
)


class DirectBody:
    """The rest of one body. Bytes behind it stay in the socket.

    ``take`` it, have its ``fill`` called in a disk thread whenever ``more`` returns, and
    ``give_back`` the connection, all but ``fill`` in the event loop.
    """

    def __init__(
        self, request: web.BaseRequest, transport: asyncio.Transport, left: int
    ) -> None:
        self._handler: Final[Any] = request.protocol
        self._content: Final = request.content
        self._transport: Final = transport
        self.left = left
        """Bytes that are still to come."""
        self.cut = False
        """The connection has ended before them."""
        # A second descriptor: uvloop lets nobody wait for those of its transports, and a
        # thread must never meet one that was closed and given to somebody else.
        own = os.dup(transport.get_extra_info("socket").fileno())
        self._socket: Final = socket.socket(fileno=own)
        self._socket.setblocking(False)
        transport.pause_reading()

    @classmethod
    def take(cls, request: web.BaseRequest, *, least: int = 1) -> Self | None:
        """Return the rest of a body of which all that aiohttp has read was handed out.

        ``None``: it is to be read as usual, since it has fewer than ``least`` bytes, or its
        end must be looked for, or there is no second descriptor; nothing has changed.
        """
        transport, length = request.transport, request.content_length
        if transport is None or transport.is_closing() or length is None:
            return None
        left = length - request.content.total_bytes
        is_counted = (
            hdrs.TRANSFER_ENCODING not in request.headers
            and hdrs.UPGRADE not in request.headers
        )
        is_plain = transport.get_extra_info("sslcontext") is None
        if left < least or not is_counted or not is_plain or request.content.exception():
            return None
        try:
            return cls(request, transport, left)
        except OSError:  # the process has no descriptor left
            return None

    def fill(self, buffer: memoryview) -> int:
        """Fill the beginning of a buffer with what is there; return how much, 0 for nothing."""
        wanted = buffer[: self.left]
        try:
            count = self._socket.recv_into(wanted)
        except BlockingIOError:
            return 0
        except OSError:  # not only ConnectionError: the network may have gone away
            self.cut = True
            return 0
        self.cut = not count and bool(wanted)
        self.left -= count
        return count

    def is_broken(self) -> bool:
        """Tell whether aiohttp has given the request up, as it does when the process ends."""
        return self._content.exception() is not None

    async def more(self) -> None:
        """Return when it is worth while to fill again: for much, for little that has waited
        long enough, or for the end. May be cancelled.
        """
        while not await self._arrives(_COMPANY, GATHER_S) and not self._holds_any():
            await self._arrives(1, None)

    async def _arrives(self, least: int, limit_s: float | None) -> bool:
        """Wait for so many bytes, or the end; tell whether they came within the limit."""
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        self._wait_for(least)
        loop.add_reader(self._socket, _settle, ready)
        try:
            async with asyncio.timeout(limit_s):
                await ready
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._socket)
        return True

    def _wait_for(self, least: int) -> None:
        with contextlib.suppress(OSError):  # then fewer bytes wake us
            level = max(min(least, self.left), 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, level)

    def _holds_any(self) -> bool:
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def give_back(self) -> None:
        """Let aiohttp have the connection again.

        At the end of the body it reads the next request. Of a body that has not ended it
        reads on, counting what was taken here as still to come: it will wait for an end in
        vain, as for any body that was refused, and close. If the client has gone it is told.
        """
        self._wait_for(1)
        self._socket.close()
        if not self.left:
            if self._handler._parser is not None:
                self._handler._parser = _new_parser(self._handler)
            self._content.feed_eof()
        if self._transport.is_closing():
            return
        if self.cut:
            self._transport.close()
        else:
            self._transport.resume_reading()


async def why_not() -> str | None:
    """Take one body for trial; return what is wrong with that, if anything is."""
    trial = _Trial()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        server = web.Server(trial.answer, auto_decompress=False, lingering_time=0)
        try:
            async with asyncio.timeout(_TRIAL_S):
                await asyncio.get_running_loop().connect_accepted_socket(server, ours)
                await trial.run(theirs)
        except Exception as exc:  # whatever another aiohttp may do
            return f"{trial.step}: {trial.failure or exc!r}"
        finally:
            await server.shutdown(_TRIAL_END_S)
    return None


class _Trial:
    """Both ends of a connection with two requests; the second one comes behind the first's
    body, in one segment.
    """

    def __init__(self) -> None:
        self.step = "taking a body"
        self.failure: Exception | None = None
        self._taken: Final = asyncio.Event()
        self._got = b""

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Handle a request. One that fails is for ``failure`` to tell, not for the log."""
        try:
            if request.content_length:
                await self._receive(request)
        except Exception as exc:
            self.failure = exc
        return web.Response(status=500 if self.failure else 204)

    async def _receive(self, request: web.BaseRequest) -> None:
        self._got = await request.content.readany()
        body = DirectBody.take(request, least=1)
        if body is None:
            raise ConnectionError("refused")
        self._taken.set()
        buffer = memoryview(bytearray(len(_TRIAL_BODY)))
        try:
            while body.left and not body.cut:
                await body.more()
                self._got += buffer[: body.fill(buffer)]
        finally:
            body.give_back()

    async def run(self, sock: socket.socket) -> None:
        """Be the client. Raises: OSError, TimeoutError: it does not go as it should."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, _TRIAL_HEAD + _TRIAL_BODY[:9])
        await self._taken.wait()
        self.step = "giving the connection back"
        await loop.sock_sendall(sock, _TRIAL_BODY[9:] + _TRIAL_NEXT)
        answers = b""
        while piece := await loop.sock_recv(sock, 4096):
            answers += piece
        if answers.count(b"HTTP/1.1 204 ") != _TRIAL_ANSWERS or self._got != _TRIAL_BODY:
            raise ConnectionError("garbled")


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _new_parser(handler: Any) -> object:
    """Return one that stands before a request; see ``RequestHandler.__init__``."""
    return type(handler._parser)(
        handler,
        handler._loop,
        handler._read_bufsize,
        max_line_size=handler.max_line_size,
        max_field_size=handler.max_field_size,
        max_headers=handler.max_headers,
        payload_exception=RequestPayloadError,
        auto_decompress=False,
        max_msg_queue_size=handler._max_msg_queue_size,
    )
