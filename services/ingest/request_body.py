"""The body of a request, to the last byte that arrived.

The only module that knows how aiohttp keeps a body. aiohttp invites a body (``100 Continue``)
before any middleware has looked at the request; here the invitation waits until the request is
found good, so that a refused one costs nobody its body (protocol item 69). And when a client
goes away, aiohttp's reader raises before it hands out what it has already buffered, up to
hundreds of kilobytes that a resumable upload must keep (items 27 and 175). Getting at them
takes one private method; a test pins it. And when the framing of a chunked body breaks, aiohttp
notes it for the next request and leaves whoever reads this one waiting.

What comes fast can be taken past aiohttp: ``services.ingest.direct_body``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from aiohttp import ClientError, web
from aiohttp.http_exceptions import HttpProcessingError

from services.ingest.direct_body import DIRECT, DirectBody
from services.ingest.interim import send_interim, takes_interim

__all__ = ["Body", "BodyCut", "RequestBody", "WatchedBody", "close_uninvited", "invite_later"]

_LEAST: Final = 1024 * 1024
"""Bytes that must be left to be taken directly: it costs about 0.1 ms to begin and to end."""

_INVITED: Final = web.RequestKey("invited", bool)


async def invite_later(request: web.Request) -> None:
    """Be a route's ``expect_handler``: leave ``100 Continue`` to ``RequestBody.invite``.

    Raises:
        web.HTTPExpectationFailed: The client expects something else.

    """
    if request.headers.get("Expect", "").lower() != "100-continue":
        raise web.HTTPExpectationFailed(text="Only 100-continue is understood.")


def close_uninvited(request: web.Request, response: web.StreamResponse) -> None:
    """Close after an answer to a client that still waits to be invited.

    It may send the body or leave it out (RFC 9110 section 10.1.1), so nobody could tell where
    its next request begins. Call it before the response's headers are sent.
    """
    if "Expect" in request.headers and _INVITED not in request:
        response.force_close()
        response.headers["Connection"] = "close"


def _ignore(_: bytes) -> None:
    pass


class BodyCut(Exception):
    """The connection ended, or the framing broke, before the body was complete."""


class Body(Protocol):
    """Bytes that come from a client; ``RequestBody`` says what the methods promise."""

    async def read(self) -> bytes:
        """Return what has arrived, at least one byte; ``b""`` at the end. May be cancelled."""

    def buffered(self) -> bytes:
        """Return what has arrived and was not read yet, perhaps nothing."""

    def is_broken(self) -> bool:
        """Tell whether the framing broke, so that the end of the body can never come."""


class WatchedBody(Body, Protocol):
    """A body whose pieces can be looked at on their way."""

    @property
    def length(self) -> int | None:
        """Bytes that are announced, if that is known."""

    def watch(self, see: Callable[[bytes], None]) -> None:
        """Have each piece shown to ``see`` before it is handed out; not what is taken
        directly.
        """


class RequestBody:
    """Reads a request's body as it comes."""

    def __init__(self, request: web.Request) -> None:
        self._request: Final = request
        self._content: Final = request.content
        self._cut = False
        self._see: Callable[[bytes], None] = _ignore
        self._given = 0
        self._direct: DirectBody | None = None

    def watch(self, see: Callable[[bytes], None]) -> None:
        """Have each piece shown to ``see`` before it is handed out; what that raises is raised
        instead.
        """
        self._see = see

    @property
    def length(self) -> int | None:
        """Bytes of the body, if they are announced."""
        return self._request.content_length

    async def invite(self) -> None:
        """Tell a client that waits for it to send the body."""
        if "Expect" in self._request.headers and takes_interim(self._request):
            await send_interim(self._request, 100, "Continue")
        self._request[_INVITED] = True

    def buffered(self) -> bytes:
        """Return what has arrived and was not read yet, perhaps nothing."""
        return self._give(b"" if self._cut else self._content._read_nowait(-1))

    def _give(self, piece: bytes) -> bytes:
        self._see(piece)
        self._given += len(piece)
        return piece

    def is_broken(self) -> bool:
        """Tell whether the framing broke, so that the end of the body can never come.

        What follows is then no request either: one is queued behind this only when its body
        is complete, or as the error that the parser has met.
        """
        if self._direct is not None:
            return self._direct.is_broken()
        return bool(self._request.protocol._messages) and not self._content.is_eof()

    def leave(self, keep: Callable[[bytes], None], room: int | None) -> DirectBody | None:
        """Hand what has arrived to ``keep``; return what comes then, to be taken directly.

        ``None``: read on. So it is wherever the end of the body would have to be looked for,
        or might be behind the ``room``, bytes that may still be handed out.
        """
        length = self.length
        if length is None or self._cut or not self._request.app.get(DIRECT, False):
            return None
        if room is not None and length - self._given > room:
            return None
        while piece := self.buffered():  # handing out may let aiohttp parse on
            keep(piece)
        self._direct = DirectBody.take(self._request, least=_LEAST)
        return self._direct

    async def read(self) -> bytes:
        """Return what has arrived, at least one byte; ``b""`` at the end of the body.

        Raises:
            BodyCut: Everything that arrived was returned, and there is no more to come.

        """
        return self._give(await self._next())

    async def _next(self) -> bytes:
        if self._cut:
            raise BodyCut
        try:
            return await self._content.readany()
        except (OSError, ClientError, HttpProcessingError, RuntimeError) as exc:
            # OSError and not ConnectionError: a network that went away is a TimeoutError or
            # "no route to host" when the kernel gives up.
            self._cut = True
            rest = self._content._read_nowait(-1)
            if rest:
                return rest
            raise BodyCut from exc
