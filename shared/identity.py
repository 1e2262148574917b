"""Who is calling: credentials in, a ``Principal`` on the request out.

Decides who a caller is, never what is his: things know their owners. Authentication fails
closed: a request without a principal reaches no handler that isn't marked for it, and asking
for a principal that isn't there is a 401 (security items 19, 21, 24 and 29).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, Protocol, TypeGuard, TypeVar

import msgspec
import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from shared.errors import Forbidden, StartupError, Unauthorized
from shared.tokens import BAD_TOKEN, SharedSecretTokens

__all__ = [
    "BEARER_SUBPROTOCOL",
    "PRINCIPAL",
    "Authenticator",
    "IdentitySettings",
    "Principal",
    "authenticates_itself",
    "authenticator",
    "credentials",
    "identify",
    "is_handshake",
    "method_of",
    "overridable",
    "principal_from",
    "principal_of",
    "public",
    "refuse_foreign_hosts",
    "require_loopback",
]

BEARER_SUBPROTOCOL: Final = "bearer"
"""What a WebSocket client offers just before its token. Never select the token itself."""

_MAX_LENGTH: Final = 128  # characters
_AUTHORIZATION: Final = re.compile(r"bearer +(\S+)", re.ASCII | re.IGNORECASE)
_NO_CREDENTIALS: Final = 'Bearer realm="uploads"'  # RFC 6750 section 3: no error code then
_MARK: Final = "__identity__"

_log = structlog.stdlib.get_logger(__name__)
_Marked = TypeVar("_Marked", bound=Callable[..., Any])


class Principal(msgspec.Struct, frozen=True):
    """Who is calling.

    Ids have 1 to 128 printable characters and no space. They may hold ``/``, ``:`` and
    braces: quote them before they become part of a path or a key.
    """

    user_id: str
    tenant: str
    username: str
    """For people to read; proves nothing."""
    scopes: frozenset[str]
    expires_at: float | None
    """The token's ``exp``, in seconds since the epoch (UTC), without leeway. None: never."""

    @property
    def is_admin(self) -> bool:
        """May act for every user of the own tenant, and for no other tenant."""
        return "admin" in self.scopes

    def owns(self, *, user_id: str, tenant: str) -> bool:
        """Whether a thing of that user, in that tenant, is the caller's to use."""
        return tenant == self.tenant and (user_id == self.user_id or self.is_admin)


PRINCIPAL: Final = web.RequestKey("principal", Principal)


class IdentitySettings(msgspec.Struct, frozen=True, kw_only=True):
    """The ``AUTH_*`` settings. Never shows the secret."""

    auth_mode: Literal["open", "required"]
    auth_jwt_secret: str | None = None
    """At least 32 bytes. Needed in mode ``required``."""
    auth_jwt_algorithms: tuple[str, ...] = ("HS256",)
    auth_jwt_audience: str | None = None
    """None: only tokens without ``aud`` are good."""
    auth_jwt_issuer: str | None = None
    """None: ``iss`` doesn't matter."""
    auth_jwt_leeway: float = 30.0
    """Seconds, 0 to 60."""

    def __repr__(self) -> str:
        return f"IdentitySettings(auth_mode={self.auth_mode!r}, …)"


class Authenticator(Protocol):
    """Turns credentials into principals."""

    @property
    def anonymous(self) -> Principal | None:
        """Who everybody is, whatever they show. None: they must show good credentials."""

    async def from_token(self, token: str) -> Principal:
        """Return whose it is. Raises: Unauthorized: it is not good, for whatever reason."""


def authenticator(settings: IdentitySettings) -> Authenticator:
    """Build what ``AUTH_MODE`` asks for. Raises: StartupError: a setting is unusable."""
    return _Open() if settings.auth_mode == "open" else _Required(settings)


class _Open:
    anonymous: Final = Principal("local", "local", "local", frozenset(), None)

    async def from_token(self, token: str) -> Principal:
        return self.anonymous


class _Required:
    anonymous: Final = None

    def __init__(self, settings: IdentitySettings) -> None:
        self._tokens: Final = SharedSecretTokens(
            settings.auth_jwt_secret,
            algorithms=settings.auth_jwt_algorithms,
            audience=settings.auth_jwt_audience,
            issuer=settings.auth_jwt_issuer,
            leeway=settings.auth_jwt_leeway,
        )

    async def from_token(self, token: str) -> Principal:
        return _principal(await self._tokens.claims(token))


def _principal(claims: Mapping[str, Any]) -> Principal:
    user_id = claims["sub"]
    tenant = claims.get("tenant", claims.get("company", "default"))
    scope = claims.get("scope", "")
    scopes = scope.split() if isinstance(scope, str) else scope
    listed = isinstance(scopes, list) and all(isinstance(item, str) for item in scopes)
    if not (listed and _is_id(user_id) and _is_id(tenant)):
        _log.info("token_refused", reason="Claims")
        raise Unauthorized("The token's claims are not valid.", challenge=BAD_TOKEN)
    names = (claims.get("preferred_username"), claims.get("name"), user_id)
    username = next(name for name in names if _is_name(name))
    return Principal(user_id, tenant, username, frozenset(scopes), float(claims["exp"]))


def _is_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= _MAX_LENGTH and value.isprintable()


def _is_id(value: object) -> TypeGuard[str]:
    return _is_name(value) and " " not in value


def is_handshake(request: web.BaseRequest) -> bool:
    """Whether the request asks for a WebSocket (RFC 6455 section 4.1)."""
    upgrade = request.headers.get(hdrs.UPGRADE, "")
    return request.method == hdrs.METH_GET and upgrade.strip().lower() == "websocket"


def credentials(request: web.BaseRequest) -> str | None:
    """Return the token that came with the request; None when none was shown.

    ``Authorization`` is read first (RFC 6750 section 2.1). Browsers cannot set it on a
    WebSocket, so a handshake may bring ``?token=`` or the subprotocols ``bearer, <token>``.

    Raises: Unauthorized: there are credentials, but not exactly one bearer token.
    """
    if shown := request.headers.getall(hdrs.AUTHORIZATION, []):
        match = _AUTHORIZATION.fullmatch(shown[0])
        if match is None or len(shown) > 1:
            raise Unauthorized("Authorization must be one bearer token.", challenge=BAD_TOKEN)
        return match[1]
    if not is_handshake(request):
        return None
    if shown := request.query.getall("token", []):
        if len(shown) > 1:
            raise Unauthorized("There is more than one token.", challenge=BAD_TOKEN)
        return shown[0]
    lines = request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, [])
    offered = [item.strip() for line in lines for item in line.split(",")]
    if BEARER_SUBPROTOCOL not in offered:
        return None
    return "".join(offered[offered.index(BEARER_SUBPROTOCOL) + 1 :][:1])


async def principal_from(auth: Authenticator, request: web.BaseRequest) -> Principal | None:
    """Return who sent the request; None when no credentials were shown, and some are needed.

    Raises: Unauthorized: the credentials are not good.
    """
    if auth.anonymous is not None:
        return auth.anonymous
    token = credentials(request)
    return None if token is None else await auth.from_token(token)


def principal_of(request: web.BaseRequest) -> Principal:
    """Return what ``identify`` found. Raises: Unauthorized: the request has no principal."""
    if PRINCIPAL not in request:
        raise Unauthorized("Credentials are needed.", challenge=_NO_CREDENTIALS)
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


def overridable(handler: _Marked) -> _Marked:
    """Heed the method in ``X-HTTP-Method-Override``, as the handler does, instead of the real.

    So OPTIONS needs no credentials in either form (protocol item 10).
    """
    setattr(handler, _MARK, "overridable")
    return handler


def method_of(request: web.Request) -> str:
    """Return the method that the handler of a request heeds."""
    if getattr(request.match_info.handler, _MARK, None) == "overridable":
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
        mark = getattr(request.match_info.handler, _MARK, None)
        handshake = mark == "handshake" and is_handshake(request)
        if method_of(request) == hdrs.METH_OPTIONS or mark == "public" or handshake:
            return await handler(request)
        principal = await principal_from(auth, request)
        if principal is None:
            raise Unauthorized("Credentials are needed.", challenge=_NO_CREDENTIALS)
        request[PRINCIPAL] = principal
        structlog.contextvars.bind_contextvars(user_id=principal.user_id)
        return await handler(request)

    return identified


@web.middleware
async def refuse_foreign_hosts(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer only requests that name a loopback host, while everyone is the local user.

    A web page elsewhere whose name resolves to 127.0.0.1 would otherwise be let in by the
    browser of the local user (DNS rebinding).

    Raises: Forbidden: the ``Host`` is another one.
    """
    host = request.headers.get(hdrs.HOST, "").rpartition("]")
    name = f"{host[0]}{host[1]}" or host[2].partition(":")[0]
    if not _is_loopback(name):
        raise Forbidden("With AUTH_MODE=open only requests to a loopback host are answered.")
    return await handler(request)


def require_loopback(mode: str, bind_host: str | None) -> None:
    """Refuse a listener that others can reach while everyone is the local user.

    Raises: StartupError: ``AUTH_MODE=open`` and ``bind_host`` is not a loopback address.
    """
    if mode == "open" and not _is_loopback(bind_host or ""):
        raise StartupError(
            f"AUTH_MODE=open trusts everyone, but PUBLIC_BIND listens on {bind_host or '*'}:"
            " set AUTH_MODE=required, or PUBLIC_BIND to 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
