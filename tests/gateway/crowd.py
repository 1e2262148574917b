"""Hundreds of clients of dialect media in one process, each checking what it gets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, cast

__all__ = ["Member", "crowd"]

_AT_ONCE: Final = 50
_HANDSHAKE: Final = (
    "GET {} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Member(asyncio.Protocol):
    """One client. It keeps the lifecycle messages, and of progress the number."""

    def __init__(self, path: str) -> None:
        self.lifecycle: Final[list[tuple[str, int]]] = []
        """Type and bytes of each message that is no progress."""
        self.progress = 0
        self.furthest = -1
        self.faults: Final[list[str]] = []
        self.lost = False
        self.ready: Final = asyncio.Event()
        self._path: Final = path
        self._data = b""
        self._open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the socket."""
        head = _HANDSHAKE.format(self._path)
        cast("asyncio.WriteTransport", transport).write(head.encode())

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        self.lost = True
        self.ready.set()

    def data_received(self, data: bytes) -> None:
        """Take the messages out of what has come."""
        self._data += data
        if not self._open:
            head, end, self._data = self._data.partition(b"\r\n\r\n")
            if not end:
                self._data = head
                return
            self._open = True
            if not head.startswith(b"HTTP/1.1 101"):
                self.faults.append(head.decode())
        at, data = 0, self._data
        while len(data) - at >= 2:
            size, start = data[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(data[at + 2 : at + 4]), at + 4
            if len(data) < start + size:
                break
            self._take(data[at], data[start : start + size])
            at = start + size
        self._data = data[at:]

    def _take(self, first: int, payload: bytes) -> None:
        if first != 0x81:
            self.faults.append(f"{first:02x} {payload!r}")
            return
        message: dict[str, Any] = json.loads(payload)
        if message["bytes_sent"] < self.furthest:
            self.faults.append(f"back to {message} from {self.furthest}")
        self.furthest = message["bytes_sent"]
        if message["type"] == "progress":
            self.progress += 1
        else:
            self.lifecycle.append((message["type"], message["bytes_sent"]))
        self.ready.set()


def _same(member: Member) -> Member:
    return member


@asynccontextmanager
async def crowd(port: int, path: str, count: int) -> AsyncIterator[list[Member]]:
    """Yield so many clients, each of which has its snapshot."""
    loop = asyncio.get_running_loop()
    transports: list[asyncio.Transport] = []
    members = [Member(path) for _ in range(count)]
    try:
        for start in range(0, count, _AT_ONCE):
            opening = (
                loop.create_connection(partial(_same, one), "127.0.0.1", port)
                for one in members[start : start + _AT_ONCE]
            )
            transports += [transport for transport, _ in await asyncio.gather(*opening)]
            await members[start].ready.wait()  # no faster than it lets them in
        async with asyncio.timeout(30):
            for member in members:
                await member.ready.wait()
        yield members
    finally:
        for transport in transports:
            transport.abort()
        await asyncio.sleep(0)
