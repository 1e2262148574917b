"""Which web pages may call: CORS headers, preflights, and the Origin of WebSockets.

Knows origins, not callers: an origin that is allowed still needs credentials. Answers as
the Fetch standard describes CORS, for the headers of tus and of the IETF resumable uploads
(protocol items 103 and 104, security items 25 and 27).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from shared.errors import StartupError

__all__ = [
    "ALLOWED_HEADERS",
    "ALLOWED_METHODS",
    "EXPOSED_HEADERS",
    "CorsSettings",
    "answer_preflights",
    "check_origins",
    "is_origin",
    "is_own_origin",
    "origin_allowed",
    "share_responses",
]

ALLOWED_METHODS: Final = ("GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS")

ALLOWED_HEADERS: Final = (
    # Protocol item 103.
    "Tus-Resumable",
    "Upload-Length",
    "Upload-Offset",
    "Upload-Metadata",
    "Upload-Defer-Length",
    "Upload-Concat",
    "Upload-Checksum",
    "Content-Type",
    "X-HTTP-Method-Override",
    "X-Requested-With",
    "X-Request-ID",
    "Authorization",
    # The IETF resumable uploads, drafts included.
    "Upload-Complete",
    "Upload-Incomplete",
    "Upload-Draft-Interop-Version",
    "Content-Disposition",
    "Content-Digest",
    "Repr-Digest",
    "Want-Repr-Digest",
    # The other way to say who is calling.
    "X-API-KEY",
    "X-Username",
    # Downloads and event streams that continue.
    "Range",
    "If-Range",
    "If-Match",
    "If-None-Match",
    "Last-Event-ID",
)
"""What a page may send besides what the Fetch standard always allows.

A list, because ``*`` would leave out ``Authorization``.
"""

EXPOSED_HEADERS: Final = (
    # Protocol item 104.
    "Location",
    "Upload-Offset",
    "Upload-Length",
    "Upload-Metadata",
    "Upload-Defer-Length",
    "Upload-Concat",
    "Upload-Expires",
    "Tus-Version",
    "Tus-Resumable",
    "Tus-Max-Size",
    "Tus-Extension",
    "Tus-Checksum-Algorithm",
    "Upload-Complete",
    "Upload-Incomplete",
    "Upload-Limit",
    "Accept-Patch",
    "Repr-Digest",
)
"""What a page may read of each response, errors included."""

_ANY: Final = "*"
_MAX_AGE: Final = "7200"  # seconds; Chromium keeps a preflight's answer no longer
_ORIGIN: Final = re.compile(
    r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?"
)
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


class CorsSettings(msgspec.Struct, frozen=True):
    """``CORS_ALLOWED_ORIGINS``."""

    allowed_origins: tuple[str, ...] = ()
    """Origins as browsers write them (RFC 6454 section 6.2), compared byte for byte, or
    ``*`` for all. Empty: pages of the own origin only."""


def check_origins(settings: CorsSettings) -> None:
    """Refuse entries that no browser ever sends, since they would silently match nothing.

    Raises:
        StartupError: names the first such entry.

    """
    for origin in settings.allowed_origins:
        if origin != _ANY and not is_origin(origin):
            raise StartupError(
                f"CORS_ALLOWED_ORIGINS has {origin!r}, which is not an origin: write"
                " https://host or https://host:port in lower case, without path or default port"
            )


def is_origin(text: str) -> bool:
    """Whether a text is an origin as browsers write it, and none that many pages share."""
    scheme, _, authority = text.partition("://")
    default_port = authority.endswith(_DEFAULT_PORTS.get(scheme, "/"))
    return _ORIGIN.fullmatch(text) is not None and not default_port


def answer_preflights() -> Middleware:
    """Build the middleware that answers each preflight with 204, before authentication.

    An OPTIONS without ``Access-Control-Request-Method`` is not a preflight and goes on to
    its handler: it asks a tus server what it can do. Whether the page may go on is said by
    the headers that ``share_responses`` adds; without them the browser stops.
    """
    headers = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: ", ".join(ALLOWED_METHODS),
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: ", ".join(ALLOWED_HEADERS),
        hdrs.ACCESS_CONTROL_MAX_AGE: _MAX_AGE,
    }

    @web.middleware
    async def preflights_answered(request: web.Request, handler: Handler) -> web.StreamResponse:
        if (
            request.method == hdrs.METH_OPTIONS
            and hdrs.ORIGIN in request.headers
            and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        ):
            return web.Response(status=204, headers=headers)
        return await handler(request)

    return preflights_answered


def share_responses(
    settings: CorsSettings, *, also_expose: Iterable[str] = ()
) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Build the ``on_response_prepare`` signal that lets allowed pages read responses.

    A signal and no middleware, so that errors are readable too, those of aiohttp included.
    Credentials mode is never granted: no service reads a cookie, and a page that holds a
    token can send it without (security item 27).

    Args:
        settings: Whose pages.
        also_expose: Response headers of this service besides ``EXPOSED_HEADERS``.

    """
    exposed = ", ".join((*EXPOSED_HEADERS, *also_expose))
    origins = frozenset(settings.allowed_origins)

    async def response_shared(request: web.Request, response: web.StreamResponse) -> None:
        if _ANY in origins:
            allowed = _ANY
        else:
            # Also when this answer allows nobody: a cache must not give it to another page.
            _vary_by_origin(response)
            sent = request.headers.getall(hdrs.ORIGIN, [])
            if len(sent) != 1 or sent[0] not in origins:
                return
            allowed = sent[0]
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = allowed
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = exposed

    return response_shared


def _vary_by_origin(response: web.StreamResponse) -> None:
    if hdrs.VARY not in response.headers:  # as in most answers
        response.headers[hdrs.VARY] = hdrs.ORIGIN
        return
    names = [
        name.strip()
        for line in response.headers.popall(hdrs.VARY, [])
        for name in line.split(",")
        if name.strip()
    ]
    if not {"origin", "*"}.intersection(name.lower() for name in names):
        names.append(hdrs.ORIGIN)
    response.headers[hdrs.VARY] = ", ".join(names)


def origin_allowed(settings: CorsSettings, request: web.BaseRequest) -> bool:
    """Whether the page that opens this WebSocket may (security item 25).

    Browsers do not apply CORS to WebSockets, so ask before the handshake is answered. No
    ``Origin`` means no page: programs need none, and tokens do not come by themselves as
    cookies do.
    """
    sent = request.headers.getall(hdrs.ORIGIN, [])
    if not sent:
        return True
    if len(sent) > 1:
        return False
    allowed = settings.allowed_origins
    return _ANY in allowed or sent[0] in allowed or is_own_origin(sent[0], request)


def is_own_origin(origin: str, request: web.BaseRequest) -> bool:
    """Whether an origin is the one that a request is sent to."""
    scheme, _, authority = origin.partition("://")
    # Behind an ingress that ends TLS, a page of https is seen on a connection without.
    if scheme not in (("https",) if request.secure else ("http", "https")) or not authority:
        return False
    host = request.headers.get(hdrs.HOST, "").lower()
    return host in (authority, authority + _DEFAULT_PORTS[scheme])
