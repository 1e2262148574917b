"""A WebSocket client by hand: a test decides about every byte, and what is read when."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from multidict import CIMultiDict

__all__ = ["BINARY", "CLOSE", "PING", "PONG", "TEXT", "Frame", "RawSocket", "frame"]

TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10
LIMIT_S: Final = 20.0
"""How long any one step may take before the test fails."""


class Frame(NamedTuple):
    """One frame from the server."""

    opcode: int
    payload: bytes


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = True
) -> bytes:
    """Return a client's frame, right or wrong."""
    size, masked = len(payload), 0x80 if mask else 0
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if size < 126:
        head += bytes([masked | size])
    elif size < 65_536:
        head += struct.pack("!BH", masked | 126, size)
    else:
        head += struct.pack("!BQ", masked | 127, size)
    if not mask:
        return head + payload
    key = os.urandom(4)
    stream = key * (size // 4 + 1)
    covered = int.from_bytes(payload) ^ int.from_bytes(stream[:size])
    return head + key + covered.to_bytes(size)


class RawSocket:
    """One connection. Nothing is read from it unless a test asks for it."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket: Final = sock
        self.status = 0
        self.headers: CIMultiDict[str] = CIMultiDict()
        self._seen = b""

    @classmethod
    @asynccontextmanager
    async def opened(
        cls,
        port: int,
        path: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        receive_buffer: int | None = None,
    ) -> AsyncIterator[RawSocket]:
        """Yield a socket after its handshake, whatever its answer; close it at the end.

        Args:
            port: On loopback.
            path: With its query.
            headers: Besides those of the handshake.
            receive_buffer: Bytes that the kernel may keep for the client.

        """
        loop = asyncio.get_running_loop()
        with contextlib.closing(socket.socket()) as sock:
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", port))
            one = cls(sock)
            lines = [f"{name}: {value}\r\n" for name, value in headers]
            head = (
                f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{''.join(lines)}\r\n"
            )
            await one.send(head.encode())
            await one._read_head()
            yield one

    async def _read_head(self) -> None:
        while b"\r\n\r\n" not in self._seen:
            assert await self._more(), "no answer to the handshake"
        head, _, self._seen = self._seen.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split()[1])
        for line in lines:
            name, _, value = line.partition(":")
            self.headers.add(name, value.strip())

    async def body(self) -> dict[str, Any]:
        """Return the JSON of a refused handshake."""
        while len(self._seen) < int(self.headers["Content-Length"]):
            assert await self._more()
        found: dict[str, Any] = json.loads(self._seen)
        return found

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        async with asyncio.timeout(LIMIT_S):
            await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def say(self, message: Any) -> None:
        """Send a text message: JSON of what is not text already."""
        text = message if isinstance(message, str) else json.dumps(message)
        await self.send(frame(TEXT, text.encode()))

    async def _more(self) -> bool:
        """Read what is there; False at the end of the connection, however it came."""
        try:
            async with asyncio.timeout(LIMIT_S):
                piece = await asyncio.get_running_loop().sock_recv(self.socket, 1 << 18)
        except ConnectionError:
            return False
        self._seen += piece
        return bool(piece)

    async def _take(self, size: int) -> bytes | None:
        while len(self._seen) < size:
            if not await self._more():
                return None
        taken, self._seen = self._seen[:size], self._seen[size:]
        return taken

    async def frame(self) -> Frame | None:
        """Return the next frame; ``None`` if the connection ends instead."""
        head = await self._take(2)
        if head is None:
            return None
        assert head[0] & 0x70 == 0, "a reserved bit is set"
        assert head[1] & 0x80 == 0, "a server's frame is masked"
        assert head[0] & 0x80, "the server fragments nothing"
        extended = {126: 2, 127: 8}.get(head[1])
        length: int | None = head[1]
        if extended is not None:
            more = await self._take(extended)
            length = None if more is None else int.from_bytes(more)
        payload = None if length is None else await self._take(length)
        return None if payload is None else Frame(head[0] & 0x0F, payload)

    async def hear(self) -> dict[str, Any]:
        """Return the next text message; pings in between are not answered."""
        while True:
            found = await self.frame()
            assert found is not None, "the connection has ended"
            assert found.opcode != CLOSE, f"closed: {found.payload!r}"
            if found.opcode == TEXT:
                message: dict[str, Any] = json.loads(found.payload)
                return message

    async def end(self, *, answers: bool = True) -> int | None:
        """Read to the end of the connection; return the code of the close frame, if any.

        ``answers`` sends a close frame back, as RFC 6455 section 5.5.1 asks for.
        """
        code = None
        while (found := await self.frame()) is not None:
            assert code is None, f"a frame after the close frame: {found}"
            if found.opcode == CLOSE:
                code = int.from_bytes(found.payload[:2])
                if answers:
                    with contextlib.suppress(ConnectionError):
                        await self.send(frame(CLOSE, found.payload))
        return code

    def reset(self) -> None:
        """Vanish: the server gets an RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
