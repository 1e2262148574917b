"""Takes an accepted WebSocket out of aiohttp's hands: what is left of it is one small object.

aiohttp keeps a task, a request, a parser and a queue for each socket. A socket that mostly
listens needs none of them. This is the one place that relies on more than aiohttp's public
interface; ``why_not`` tries at start whether all of that is there, and
``services.gateway.wire.PumpedWire`` does without.

What is relied on (aiohttp 3.14): a handler's ``request.protocol`` forgets its connection by
``connection_lost`` and closes its ``transport`` only if it has one; what came behind the
handshake waits in ``_message_tail`` while nothing has been set to parse it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import socket
from typing import Any, Final

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter

from services.gateway.frames import frame
from services.gateway.own_wire import OwnWire

__all__ = ["Handover", "why_not"]

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TRIAL_S: Final = 2.0
_TURNS: Final = 20
"""Of the loop; aiohttp needs about three to end what it has begun."""
_HANDSHAKE: Final = (
    b"GET / HTTP/1.1\r\nHost: trial\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
_CLOSE: Final = b"\x88\x80\0\0\0\0"


class Handover(web.StreamResponse):
    """The answer to a handshake, after which the connection is not aiohttp's any more.

    Args:
        request: The handshake; ``web.WebSocketResponse.can_prepare`` has said yes.
        protocol: The subprotocol agreed on, if any.

    """

    def __init__(self, request: web.BaseRequest, protocol: str | None) -> None:
        super().__init__(status=101)
        key = request.headers[hdrs.SEC_WEBSOCKET_KEY].strip().encode()
        digest = hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
        self.headers[hdrs.UPGRADE] = "websocket"
        self.headers[hdrs.CONNECTION] = "upgrade"
        self.headers[hdrs.SEC_WEBSOCKET_ACCEPT] = base64.b64encode(digest).decode()
        if protocol is not None:
            self.headers[hdrs.SEC_WEBSOCKET_PROTOCOL] = protocol
        self._is_out = False

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the answer, once."""
        if self._is_out:
            return None
        self._is_out = True
        writer = await super().prepare(request)
        if writer is not None:
            writer.send_headers()
        self.force_close()
        return writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Send nothing: what follows the answer is not ours to end."""

    async def take(self, request: web.BaseRequest) -> tuple[asyncio.Transport, bytes] | None:
        """Answer; return the transport, and what has come on it behind the handshake.

        ``None``: the client has gone; aiohttp ends what is left of the connection.
        """
        with contextlib.suppress(ConnectionError):
            await self.prepare(request)
            handler: Any = request.protocol
            transport = request.transport
            if transport is not None and not transport.is_closing():
                tail = bytes(handler._message_tail)
                handler.transport = None  # or it would be closed
                handler.connection_lost(None)
                return transport, tail
        return None


async def why_not() -> str | None:
    """Take over one connection for trial; return what is wrong with that, if anything is.

    The other end sends a message along with its handshake, another one when aiohttp must have
    let go of the connection, and closes.
    """
    trial = _Trial()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        server = web.Server(trial.answer)
        try:
            async with asyncio.timeout(_TRIAL_S):
                await asyncio.get_running_loop().connect_accepted_socket(server, ours)
                await trial.run(server, theirs)
        except Exception as exc:  # whatever another aiohttp may do
            return f"{trial.step}: {trial.failure or exc!r}"
        finally:
            trial.abort()
            await server.shutdown(0)
    return None


class _Trial:
    """Both ends of a socket on which everything is said back."""

    def __init__(self) -> None:
        self.step = "answering a handshake"
        self.failure: Exception | None = None
        self.is_closing: Final = False
        self._wire: OwnWire | None = None
        self._gone: Final = asyncio.Event()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Handle the handshake."""
        try:
            answer = Handover(request, None)
            taken = await answer.take(request)
            if taken is not None:
                self._wire = OwnWire(taken[0], limit=125, on_gone=self._gone.set)
                self._wire.start(self, taken[1])
        except Exception as exc:
            self.failure = exc
            return web.Response(status=500)
        return answer

    def abort(self) -> None:
        """Leave nothing open that aiohttp would not close."""
        if self._wire is not None:
            self._wire.transport.abort()

    def on_sign_of_life(self) -> None:
        """Nothing is to be noted."""

    def on_text(self, text: str) -> None:
        """Say it back."""
        if self._wire is not None:
            self._wire.send(frame(text.encode()))

    def on_binary(self, data: bytes) -> None:
        """None is sent."""

    async def run(self, server: web.Server, sock: socket.socket) -> None:
        """Be the other end. Raises: OSError, TimeoutError: it does not go as it should."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, _HANDSHAKE + _said("a"))
        answered = b""
        while not answered.endswith(b"\r\n\r\n" + frame(b"a")):
            answered += await _received(sock)
        if not answered.startswith(b"HTTP/1.1 101 "):
            raise ConnectionError("refused")
        self.step = "leaving the connection to us"
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        if server.connections:
            raise ConnectionError("it is kept")
        await loop.sock_sendall(sock, _said("b"))
        if await _received(sock) != frame(b"b"):
            raise ConnectionError("garbled")
        self.step = "closing it"
        await loop.sock_sendall(sock, _CLOSE)
        if await _received(sock) != b"\x88\x00":
            raise ConnectionError("garbled")
        await self._gone.wait()


def _said(text: str) -> bytes:
    """Return a client's frame; its mask is of zeros."""
    return bytes((0x81, 0x80 | len(text), 0, 0, 0, 0)) + text.encode()


async def _received(sock: socket.socket) -> bytes:
    data = await asyncio.get_running_loop().sock_recv(sock, 4096)
    if not data:
        raise ConnectionError("cut")
    return data
