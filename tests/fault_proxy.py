"""A TCP proxy that breaks connections where a test wants them broken.

It forwards between clients and one local server. Its faults strike one after another, each
after so many bytes from clients, counted over all connections since the fault before.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Coroutine, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

__all__ = ["Fault", "FaultProxy", "Kind"]

_READ_BYTES: Final = 64 * 1024
_NOTICE_S: Final = 10.0

Kind = Literal["fin", "rst", "stall", "lose-answer"]


@dataclass(frozen=True)
class Fault:
    """What happens to the connection on which the last of the bytes arrives."""

    after: int
    """Bytes from clients that are forwarded before it strikes."""
    how: Kind
    """``rst`` ends both sides at once; ``fin`` ends the server's, waits until the server has
    noticed, and ends the client's; ``stall`` keeps both open and forwards nothing any more;
    ``lose-answer`` forwards to the server until it answers, and then ends both sides."""


class FaultProxy:
    """Listens as long as its context lasts; ``target`` is the port of the server."""

    def __init__(self, target: int, faults: Iterable[Fault] = ()) -> None:
        self.sent = 0
        """Bytes from clients that were handed to the server's side."""
        self.struck: Final[list[Fault]] = []
        self._target: Final = target
        self._faults: Final[Iterator[Fault]] = iter(faults)
        self._next = next(self._faults, None)
        self._since = 0
        self._listener: Final = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: Final = int(self._listener.getsockname()[1])
        """Where clients connect."""
        self._tasks: Final[set[asyncio.Task[None]]] = set()

    async def __aenter__(self) -> FaultProxy:
        self._start(self._accept())
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(set(self._tasks))
        self._listener.close()

    def _start(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._listener)
            self._start(self._join(client))

    async def _join(self, client: socket.socket) -> None:
        """Forward both ways until one side, or a fault, ends it."""
        server = socket.socket()
        with client, server:
            client.setblocking(False)
            server.setblocking(False)
            with contextlib.suppress(OSError):  # a server that is away, a client that leaves
                await asyncio.get_running_loop().sock_connect(
                    server, ("127.0.0.1", self._target)
                )
                await self._forward(client, server)

    async def _forward(self, client: socket.socket, server: socket.socket) -> None:
        answer_is_lost = asyncio.Event()
        pumps = [
            asyncio.ensure_future(self._up(client, server, answer_is_lost)),
            asyncio.ensure_future(self._down(server, client, answer_is_lost)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            ends = await asyncio.gather(*pumps, return_exceptions=True)
        if "fin" in ends:
            await self._end(server)
        elif "rst" in ends:
            for one in (client, server):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def _end(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):  # a TimeoutError is one, too
            server.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(_NOTICE_S):
                while await asyncio.get_running_loop().sock_recv(server, _READ_BYTES):
                    pass

    async def _up(
        self, client: socket.socket, server: socket.socket, answer_is_lost: asyncio.Event
    ) -> str:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(client, _READ_BYTES):
            fault = self._next
            if fault is None or self._since + len(data) < fault.after:
                await self._hand_over(server, data)
                continue
            room = fault.after - self._since
            self._next, self._since = next(self._faults, None), 0
            self.struck.append(fault)
            if fault.how == "lose-answer":
                answer_is_lost.set()
                await self._hand_over(server, data)
                continue
            await self._hand_over(server, data[:room])
            self._since = 0
            if fault.how == "stall":
                await asyncio.Event().wait()
            return fault.how
        return "gone"

    async def _hand_over(self, server: socket.socket, data: bytes) -> None:
        self._since += len(data)
        await asyncio.get_running_loop().sock_sendall(server, data)
        self.sent += len(data)

    async def _down(
        self, server: socket.socket, client: socket.socket, answer_is_lost: asyncio.Event
    ) -> str:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(server, _READ_BYTES):
            if answer_is_lost.is_set():
                break
            await loop.sock_sendall(client, data)
        return "gone"
