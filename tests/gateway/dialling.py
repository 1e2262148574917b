"""Two WebSocket libraries behind one face, since clients use either."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Protocol

import aiohttp
import websockets
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

__all__ = ["DIALS", "Dial", "Peer"]

LIMIT_S: Final = 10.0


class Peer(Protocol):
    """The client's end of a socket."""

    async def say(self, message: Mapping[str, Any]) -> None:
        """Send a message."""

    async def hear(self) -> dict[str, Any]:
        """Return the next message."""

    async def end(self) -> int | None:
        """Return the close code; nothing else may come before it."""

    @property
    def subprotocol(self) -> str | None:
        """What the server has chosen."""


class _Aiohttp:
    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self._ws: Final = ws

    async def say(self, message: Mapping[str, Any]) -> None:
        await self._ws.send_str(json.dumps(message))

    async def hear(self) -> dict[str, Any]:
        found: dict[str, Any] = await self._ws.receive_json(timeout=LIMIT_S)
        return found

    async def end(self) -> int | None:
        message = await self._ws.receive(LIMIT_S)
        assert message.type in {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED}, message
        return self._ws.close_code

    @property
    def subprotocol(self) -> str | None:
        return self._ws.protocol


class _Websockets:
    def __init__(self, ws: ClientConnection) -> None:
        self._ws: Final = ws

    async def say(self, message: Mapping[str, Any]) -> None:
        await self._ws.send(json.dumps(message))

    async def hear(self) -> dict[str, Any]:
        async with asyncio.timeout(LIMIT_S):
            found: dict[str, Any] = json.loads(await self._ws.recv())
        return found

    async def end(self) -> int | None:
        try:
            async with asyncio.timeout(LIMIT_S):
                message = await self._ws.recv()
        except websockets.ConnectionClosed:
            return self._ws.close_code
        raise AssertionError(f"not the end: {message!r}")

    @property
    def subprotocol(self) -> str | None:
        return self._ws.subprotocol


@asynccontextmanager
async def _by_aiohttp(
    url: str, headers: Mapping[str, str] = {}, protocols: tuple[str, ...] = ()
) -> AsyncIterator[Peer]:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, headers=headers, protocols=protocols) as ws,
    ):
        yield _Aiohttp(ws)


@asynccontextmanager
async def _by_websockets(
    url: str, headers: Mapping[str, str] = {}, protocols: tuple[str, ...] = ()
) -> AsyncIterator[Peer]:
    chosen = [Subprotocol(one) for one in protocols] or None
    ws_url = url.replace("http://", "ws://")
    async with connect(ws_url, additional_headers=headers, subprotocols=chosen) as ws:
        yield _Websockets(ws)


Dial = Callable[..., AbstractAsyncContextManager[Peer]]

DIALS: Final[dict[str, Dial]] = {"aiohttp": _by_aiohttp, "websockets": _by_websockets}
"""``dial(url, headers, protocols)`` opens a socket."""
