"""An HTTP proxy before an S3 server, which does to calls what a test wants done to them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Final, Literal

import aiohttp
import msgspec
from aiohttp import web
from yarl import URL

__all__ = ["Call", "Fate", "S3Proxy"]

Fate = Literal["pass", "drop", "lose", "slow-down", "refuse", "error-in-200"]
"""``drop``: the connection ends and the server never hears of it; ``lose``: it ends after the
server has done it; ``slow-down``: 503; ``refuse``: 403; ``error-in-200``: an error in the body
of a good answer, as Amazon's may be, of which the server never hears."""

_HOP: Final = {"connection", "transfer-encoding", "content-length", "keep-alive"}
_ERROR: Final = '<?xml version="1.0"?><Error><Code>{}</Code><Message>no</Message></Error>'


class Call(msgspec.Struct, frozen=True):
    """One request to the server."""

    number: int
    """From 1."""
    method: str
    key: str
    query: Mapping[str, str]

    @property
    def kind(self) -> str:
        """Name what it asks for; two calls of one kind differ in key and content only."""
        marks = ("uploads", "uploadId", "partNumber", "list-type")
        return " ".join([self.method, *(one for one in marks if one in self.query)])


class S3Proxy:
    """Listens as long as its context lasts. Set ``decide`` to let calls fail.

    Args:
        target: URL of the server.
        access_key_id: Of the server; the proxy has the same.
        secret_access_key: Of the server.

    """

    def __init__(self, target: str, *, access_key_id: str, secret_access_key: str) -> None:
        self.access_key_id: Final = access_key_id
        self.secret_access_key: Final = secret_access_key
        self.calls: Final[list[Call]] = []
        self.decide: Callable[[Call], Fate] = lambda _: "pass"
        self.delay_s = 0.0
        """How long a call with a body waits before the server hears of it."""
        self.gate: Final = asyncio.Event()
        """While it is not set, calls wait on the way to the server."""
        self.gate.set()
        self.held = 0
        """Calls that wait."""
        self._target: Final = URL(target)
        self._socket: Final = socket.create_server(("127.0.0.1", 0))
        self.url: Final = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    async def __aenter__(self) -> S3Proxy:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        self._runner = web.ServerRunner(web.Server(self._forward), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _forward(self, request: web.BaseRequest) -> web.StreamResponse:
        call = Call(len(self.calls) + 1, request.method, request.path, dict(request.query))
        self.calls.append(call)
        fate = self.decide(call)
        if "Expect" in request.headers and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await request.read()
        if body and self.delay_s:
            await asyncio.sleep(self.delay_s)
        self.held += 1
        await self.gate.wait()
        self.held -= 1
        if fate == "drop":
            return self._cut(request)
        if fate in {"slow-down", "refuse", "error-in-200"}:
            code = {"slow-down": "SlowDown", "refuse": "AccessDenied"}.get(
                fate, "InternalError"
            )
            status = {"slow-down": 503, "refuse": 403}.get(fate, 200)
            return web.Response(status=status, text=_ERROR.format(code))
        headers = {k: v for k, v in request.headers.items() if k.lower() != "expect"}
        url = self._target.join(URL(request.raw_path, encoded=True))
        async with self._session.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        ) as answer:
            content = await answer.read()
            if fate == "lose":
                return self._cut(request)
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP}
            if request.method == "HEAD":
                kept["Content-Length"] = answer.headers.get("Content-Length", "0")
            return web.Response(status=answer.status, headers=kept, body=content)

    @staticmethod
    def _cut(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()
