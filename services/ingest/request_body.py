"""The body of a request, to the last byte that arrived.

The only module that knows how aiohttp keeps a body: when a client goes away, aiohttp's
reader raises before it hands out what it has already buffered, up to hundreds of kilobytes
that a resumable upload must keep (protocol items 27 and 175). Getting at them takes one
private method; a test pins it.
"""

from __future__ import annotations

from typing import Final

from aiohttp import ClientError, web
from aiohttp.http_exceptions import HttpProcessingError

__all__ = ["BodyCut", "RequestBody"]


class BodyCut(Exception):
    """The connection ended, or the framing broke, before the body was complete."""


class RequestBody:
    """Reads a request's body as it comes."""

    def __init__(self, request: web.Request) -> None:
        self._content: Final = request.content
        self._cut = False

    async def read(self) -> bytes:
        """Return what has arrived, at least one byte; ``b""`` at the end of the body.

        Raises:
            BodyCut: Everything that arrived was returned, and there is no more to come.

        """
        if self._cut:
            raise BodyCut
        try:
            return await self._content.readany()
        except (ConnectionError, ClientError, HttpProcessingError, RuntimeError) as exc:
            self._cut = True
            rest = self._content._read_nowait(-1)
            if rest:
                return rest
            raise BodyCut from exc
