"""Who is calling: a ``Principal`` on each request, or 401.

Decides who a caller is, never what is his: things know their owners. Authentication fails
closed: a request without a principal reaches no handler that isn't marked for it, and asking
for a principal that isn't there is a 401 (security items 19, 21, 24 and 29).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from shared.authenticator import Authenticator
from shared.credentials import (
    BEARER_SUBPROTOCOL,
    NO_CREDENTIALS,
    ApiKey,
    BearerToken,
    Ticket,
    credentials,
    is_handshake,
)
from shared.errors import Unauthorized
from shared.principal import Principal

__all__ = [
    "BEARER_SUBPROTOCOL",
    "PRINCIPAL",
    "TICKETS",
    "Authenticator",
    "Principal",
    "Tickets",
    "authenticates_itself",
    "credentials_in_url",
    "identify",
    "method_of",
    "overridable",
    "principal_from",
    "principal_of",
    "public",
]

_MARK: Final = "__identity__"
_Marked = TypeVar("_Marked", bound=Callable[..., Any])

PRINCIPAL: Final = web.RequestKey("principal", Principal)


class Tickets(Protocol):
    """Takes the tickets that a service has made."""

    async def redeem(self, ticket: str, request: web.Request) -> Principal:
        """Return for whom it was made; from then on it is no good.

        Raises:
            Unauthorized: It is not good for this request.
            Unavailable: That cannot be told right now.

        """


TICKETS: Final = web.AppKey("tickets", Tickets)
"""Set by a service that makes tickets; nobody else takes any."""


async def principal_from(auth: Authenticator, request: web.Request) -> Principal | None:
    """Return who sent the request; None when no credentials were shown, and some are needed.

    Raises:
        Unauthorized: The credentials are not good.
        Unavailable: They cannot be checked right now.

    """
    if auth.anonymous is not None:
        return auth.anonymous
    in_url = _mark_of(request) == "url" and request.method == hdrs.METH_GET
    match credentials(request, in_url=in_url):
        case BearerToken(token):
            return await auth.from_token(token)
        case ApiKey(key, username):
            return await auth.from_api_key(key, username)
        case Ticket(ticket) if TICKETS in request.app:
            return await request.app[TICKETS].redeem(ticket, request)
        case Ticket():
            raise Unauthorized("Tickets are not taken here.", challenge=NO_CREDENTIALS)
    return None


def principal_of(request: web.BaseRequest) -> Principal:
    """Return what ``identify`` found. Raises: Unauthorized: the request has no principal."""
    if PRINCIPAL not in request:
        raise Unauthorized("Credentials are needed.", challenge=NO_CREDENTIALS)
    return request[PRINCIPAL]


def public(handler: _Marked) -> _Marked:
    """Let anyone call the handler, without a principal."""
    setattr(handler, _MARK, "public")
    return handler


def authenticates_itself(handler: _Marked) -> _Marked:
    """Let any WebSocket handshake reach the handler, without a principal.

    For those who send their token in a message; other requests need credentials as usual.
    """
    setattr(handler, _MARK, "handshake")
    return handler


def credentials_in_url(handler: _Marked) -> _Marked:
    """Take credentials from the query of a GET too, as from that of a WebSocket handshake.

    For what browsers open without headers, such as an ``EventSource``.
    """
    setattr(handler, _MARK, "url")
    return handler


def overridable(handler: _Marked) -> _Marked:
    """Heed the method in ``X-HTTP-Method-Override``, as the handler does, instead of the real.

    So OPTIONS needs no credentials in either form (protocol item 10).
    """
    setattr(handler, _MARK, "overridable")
    return handler


def _mark_of(request: web.Request) -> str | None:
    mark: str | None = getattr(request.match_info.handler, _MARK, None)
    return mark


def method_of(request: web.Request) -> str:
    """Return the method that the handler of a request heeds."""
    if _mark_of(request) == "overridable":
        return request.headers.get("X-HTTP-Method-Override", request.method).upper()
    return request.method


def identify(auth: Authenticator) -> Middleware:
    """Build the middleware that puts ``PRINCIPAL`` on each request, or answers 401.

    It runs before a byte of the body is read. From then on ``user_id`` is in the log context,
    which ends with the request: aiohttp handles each in a task of its own. OPTIONS has no
    principal: browsers send it without credentials.
    """

    @web.middleware
    async def identified(request: web.Request, handler: Handler) -> web.StreamResponse:
        mark = _mark_of(request)
        handshake = mark == "handshake" and is_handshake(request)
        heeded = method_of(request) if mark == "overridable" else request.method
        if heeded == hdrs.METH_OPTIONS or mark == "public" or handshake:
            return await handler(request)
        principal = await principal_from(auth, request)
        if principal is None:
            raise Unauthorized("Credentials are needed.", challenge=NO_CREDENTIALS)
        request[PRINCIPAL] = principal
        structlog.contextvars.bind_contextvars(user_id=principal.user_id)
        return await handler(request)

    return identified
