"""The WebSocket under a socket, by aiohttp's public interface: a task for each that reads."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, Protocol

from aiohttp import WSMsgType, web

__all__ = ["Listener", "PumpedWire", "Wire"]


class Listener(Protocol):
    """Whoever is told what comes from the other end."""

    def on_sign_of_life(self) -> None:
        """Something has come, whatever it is."""

    def on_text(self, text: str) -> None:
        """A text message has come."""

    def on_binary(self, data: bytes) -> None:
        """A binary message has come."""

    @property
    def is_closing(self) -> bool:
        """Whether ``close`` has been called, and its end will be waited for."""


class Wire(Protocol):
    """An open WebSocket."""

    @property
    def transport(self) -> asyncio.Transport:
        """What frames to the other end are written to."""

    def send(self, data: bytes) -> bool:
        """Write at once, or return False: what was written before is not drained yet.

        What is closing takes everything, and sends nothing. Never raises.
        """

    async def close(self, code: int, reason: str) -> None:
        """Send a close frame and wait a moment for the answer; never raises."""


class PumpedWire:
    """A wire that aiohttp reads.

    Args:
        ws: The answer to the handshake, prepared.
        transport: Of its request.

    """

    def __init__(self, ws: web.WebSocketResponse, transport: asyncio.Transport) -> None:
        self._ws: Final = ws
        self._transport: Final = transport
        self._closed: Final = asyncio.Event()

    @property
    def transport(self) -> asyncio.Transport:
        """What frames to the other end are written to."""
        return self._transport

    def send(self, data: bytes) -> bool:
        """Write to the transport, if it has nothing queued."""
        if self._transport.is_closing():
            return True
        if self._transport.get_write_buffer_size():
            return False
        self._transport.write(data)
        return True

    async def serve(self, listener: Listener) -> None:
        """Pass on what comes until either side ends it."""
        while await self._pass_on(listener):
            pass
        if listener.is_closing:  # the end of the handler must not cut the closing handshake
            await self._closed.wait()

    async def _pass_on(self, listener: Listener) -> bool:
        message = await self._ws.receive()
        listener.on_sign_of_life()
        if message.type is WSMsgType.TEXT:
            listener.on_text(message.data)
        elif message.type is WSMsgType.BINARY:
            listener.on_binary(message.data)
        elif message.type is WSMsgType.PING:
            with contextlib.suppress(ConnectionError):  # it is being closed
                await self._ws.pong(message.data)
        elif message.type is not WSMsgType.PONG:
            return False
        return True

    async def close(self, code: int, reason: str) -> None:
        """Send a close frame and wait a moment for the answer; never raises."""
        try:
            await self._ws.close(code=code, message=reason.encode()[:120], drain=False)
        finally:
            self._closed.set()
