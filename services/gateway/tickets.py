"""Tickets: what a browser puts into a URL instead of a token, which would stay good there.

A ticket has 256 random bits, is good for 30 seconds, once, for the caller and the origin that
it was made for (security item 24). Only its hash is kept, in Redis, so that any gateway takes
it. While Redis is away none is made or taken. A failover of Redis within the 30 seconds may
forget tickets, or that one was used.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Annotated, Final

import msgspec
import structlog
from aiohttp import hdrs, web
from redis.asyncio import Redis

from shared.cors import is_origin, is_own_origin
from shared.credentials import NO_CREDENTIALS, is_handshake
from shared.errors import InvalidRequest, Unauthorized, Unavailable
from shared.identity import Principal, principal_of
from shared.streams import REDIS_FAILURES, command
from shared.web import json_response, small_body

__all__ = [
    "OFFICE",
    "TICKET_S",
    "MadeTicket",
    "TicketOffice",
    "TicketRequest",
    "add_ticket_route",
]

log = structlog.stdlib.get_logger(__name__)

TICKET_S: Final = 30
_MAX_BODY: Final = 1024  # bytes


class TicketRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a ticket is to be made for."""

    origin: Annotated[
        str | None,
        msgspec.Meta(
            description="Origin of the page that will use it, such as `https://app.example.com`,"
            " if a server asks on its behalf; a page's own requests say so by themselves"
        ),
    ] = None


class MadeTicket(msgspec.Struct, frozen=True):
    """A ticket."""

    ticket: Annotated[str, msgspec.Meta(description="Goes into `?ticket=`, once")]
    expires_in: Annotated[int, msgspec.Meta(description="Seconds")]


class _Stored(msgspec.Struct, frozen=True):
    """What stands behind a ticket."""

    caller: Principal
    origin: str | None


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(_Stored)
_request_decoder: Final = msgspec.json.Decoder(TicketRequest)


class TicketOffice:
    """Makes tickets and takes them.

    Args:
        redis: Client made by ``shared.streams.connect``.
        prefix: ``PROGRESS_PREFIX``.

    """

    def __init__(self, redis: Redis, *, prefix: str) -> None:
        self._redis: Final = redis
        self._prefix: Final = prefix

    def _key(self, ticket: str) -> str:
        digest = hashlib.sha256(ticket.encode("utf-8", "replace")).hexdigest()
        return f"{self._prefix}:ticket:{digest}"

    async def make(self, caller: Principal, origin: str | None) -> str:
        """Return a ticket for a caller.

        Args:
            caller: With the rights that the ticket gives, and their end.
            origin: Of the page that may use it; ``None``: only what is no page.

        Raises:
            Unavailable: Redis is away.

        """
        ticket = secrets.token_urlsafe(32)
        body = _encoder.encode(_Stored(caller, origin))
        try:
            await command(self._redis, "SET", self._key(ticket), body, "EX", TICKET_S)
        except REDIS_FAILURES:
            raise Unavailable("No ticket can be made right now.") from None
        return ticket

    async def redeem(self, ticket: str, request: web.Request) -> Principal:
        """Return for whom a ticket was made; from then on it is no good, whatever comes of it.

        Raises:
            Unauthorized: There is none, no more, or not for the page that sends the request.
            Unavailable: Redis is away; the ticket may have been used up.

        """
        try:
            body: bytes | None = await command(self._redis, "GETDEL", self._key(ticket))
        except REDIS_FAILURES:
            raise Unavailable("Tickets cannot be checked right now.") from None
        stored = None if body is None else _decoder.decode(body)
        if stored is None:
            raise _refused("The ticket is not good, or has been used.")
        if not _comes_from(stored.origin, request):
            raise _refused("The ticket was made for another origin.")
        end = stored.caller.expires_at
        if end is not None and end <= time.time():
            raise _refused("The credentials behind the ticket have expired.")
        return stored.caller


OFFICE: Final = web.AppKey("ticket_office", TicketOffice)


def _refused(message: str) -> Unauthorized:
    log.info("ticket_refused", reason=message)
    return Unauthorized(message, challenge=NO_CREDENTIALS)


def _comes_from(origin: str | None, request: web.Request) -> bool:
    """Whether a request is sent by a page of that origin, or by no page if there is none.

    Browsers send ``Origin`` with every handshake, but with a GET only to another origin (Fetch
    standard, "append a request Origin header"): a GET without is a page's of our own.
    """
    sent = request.headers.getall(hdrs.ORIGIN, [])
    if sent or origin is None or is_handshake(request):
        return sent == ([] if origin is None else [origin])
    return is_own_origin(origin, request)


async def make_ticket(request: web.Request) -> web.Response:
    """Answer with a ticket for the caller and the page that asks, or that it asks for."""
    asked = await _body_of(request)
    origin = _origin_for(request.headers.getall(hdrs.ORIGIN, []), asked.origin)
    ticket = await request.app[OFFICE].make(principal_of(request), origin)
    made = MadeTicket(ticket, TICKET_S)
    return json_response(made, status=201, headers={hdrs.CACHE_CONTROL: "no-store"})


def _origin_for(sent: list[str], named: str | None) -> str | None:
    """Return what a ticket is bound to. Raises: InvalidRequest: that is not one origin."""
    origins = {*sent, *([] if named is None else [named])}
    if len(origins) > 1:
        raise InvalidRequest("A page can get tickets for its own origin only.")
    origin = next(iter(origins), None)
    if origin is not None and not is_origin(origin):
        raise InvalidRequest("An origin is https://host or https://host:port, in lower case.")
    return origin


async def _body_of(request: web.Request) -> TicketRequest:
    """Return what the body asks for; without a body, nothing special.

    Raises:
        InvalidRequest: It is something else, or comes too slowly.
        PayloadTooLarge: It is too large for what it may say.

    """
    body = await small_body(request, _MAX_BODY)
    try:
        return _request_decoder.decode(body) if body else TicketRequest()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest(
            'The body must be JSON such as {"origin":"https://host"}.'
        ) from None


def add_ticket_route(router: web.UrlDispatcher) -> None:
    """Register the endpoint."""
    router.add_post("/v1/events/ticket", make_ticket)
