"""Two ends of a real TCP connection: a transport as the server has it, and a plain socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, cast

__all__ = ["End", "connected"]

PATIENCE_S: Final = 10.0


class End:
    """The server's end; counts what is written to it.

    Args:
        transport: The real one; everything goes through to it.
        peer: The other end, not blocking; nobody reads from it by itself.

    """

    def __init__(self, transport: asyncio.Transport, peer: socket.socket) -> None:
        self.transport: Final = transport
        self.peer: Final = peer
        self.writes: Final[list[bytes]] = []

    def write(self, data: bytes) -> None:
        """Count and write."""
        self.writes.append(data)
        self.transport.write(data)

    def __getattr__(self, name: str) -> Any:
        """Be the transport in all else."""
        return getattr(self.transport, name)

    def fill(self) -> int:
        """Write until nothing more goes out to a peer that does not read; return how much."""
        size = 0
        while not self.transport.get_write_buffer_size():
            self.transport.write(b"." * 65_536)
            size += 65_536
        return size

    async def received(self, size: int) -> bytes:
        """Read so many bytes as the peer."""
        loop, data = asyncio.get_running_loop(), bytearray()
        async with asyncio.timeout(PATIENCE_S):
            while len(data) < size:
                data += await loop.sock_recv(self.peer, size - len(data))
        return bytes(data)

    async def received_until(self, end: bytes) -> bytes:
        """Read as the peer until what came ends so."""
        loop, data = asyncio.get_running_loop(), bytearray()
        async with asyncio.timeout(PATIENCE_S):
            while not data.endswith(end):
                data += await loop.sock_recv(self.peer, 1 << 20)
        return bytes(data)


class _Accepted(asyncio.Protocol):
    def __init__(self, made: asyncio.Future[asyncio.Transport]) -> None:
        self._made: Final = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._made.set_result(cast("asyncio.Transport", transport))


@asynccontextmanager
async def connected(*, receive_buffer: int | None = None) -> AsyncIterator[End]:
    """Yield the server's end of a connection; ``receive_buffer`` is the peer's, in bytes."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[asyncio.Transport] = loop.create_future()
    server = await loop.create_server(lambda: _Accepted(made), "127.0.0.1", 0)
    with contextlib.closing(socket.socket()) as peer:
        if receive_buffer is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        peer.setblocking(False)
        await loop.sock_connect(peer, server.sockets[0].getsockname())
        transport = await made
        try:
            yield End(transport, peer)
        finally:
            with contextlib.suppress(AttributeError):  # asyncio aborts no transport twice
                transport.abort()
            server.close()
            await server.wait_closed()
