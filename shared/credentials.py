"""What a request shows to prove who is calling. Reads it, and believes none of it.

One credential a request: of two, a proxy may have checked the one and we the other.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias

import msgspec
from aiohttp import hdrs, web

from shared.errors import Unauthorized

__all__ = [
    "BEARER_SUBPROTOCOL",
    "NO_CREDENTIALS",
    "ApiKey",
    "BearerToken",
    "Credential",
    "Ticket",
    "credentials",
    "is_handshake",
]

BEARER_SUBPROTOCOL: Final = "bearer"
"""What a WebSocket client offers just before its token. Never select the token itself."""

NO_CREDENTIALS: Final = 'Bearer realm="uploads"'
"""Challenge for requests without a bearer token (RFC 6750 section 3: no error code then)."""

_BAD: Final = 'Bearer error="invalid_token"'
_AUTHORIZATION: Final = re.compile(r"bearer +(\S+)", re.ASCII | re.IGNORECASE)
_KEY_HEADER: Final = "X-API-KEY"
_NAME_HEADER: Final = "X-Username"


class BearerToken(msgspec.Struct, frozen=True):
    """A JWT, or what claims to be one."""

    token: str


class ApiKey(msgspec.Struct, frozen=True):
    """A key of a tenant, and the user of that tenant for whom its holder calls."""

    key: str
    username: str


class Ticket(msgspec.Struct, frozen=True):
    """Stands for credentials that were shown to the gateway a moment ago."""

    ticket: str


Credential: TypeAlias = BearerToken | ApiKey | Ticket


def is_handshake(request: web.BaseRequest) -> bool:
    """Whether the request asks for a WebSocket (RFC 6455 section 4.1)."""
    upgrade = request.headers.get(hdrs.UPGRADE, "")
    return request.method == hdrs.METH_GET and upgrade.strip().lower() == "websocket"


def credentials(request: web.BaseRequest, *, in_url: bool = False) -> Credential | None:
    """Return what came with the request; None when nothing was shown.

    Browsers cannot set headers on a WebSocket, so a handshake may bring ``?token=``,
    ``?api_key=&username=``, ``?ticket=`` or the subprotocols ``bearer, <token>`` instead.

    Args:
        request: Looked at, but its body.
        in_url: Whether its query is looked at although it is no handshake.

    Raises:
        Unauthorized: There are credentials, but not exactly one, or it has another form.

    """
    handshake = is_handshake(request)
    shown: list[Credential | None] = [_authorization(request), _key_of_headers(request)]
    if handshake or in_url:
        shown += _of_query(request)
    if handshake:
        shown.append(_subprotocol(request))
    found = [one for one in shown if one is not None]
    if len(found) > 1:
        raise Unauthorized("There is more than one credential.", challenge=_BAD)
    return found[0] if found else None


def _authorization(request: web.BaseRequest) -> BearerToken | None:
    shown = request.headers.getall(hdrs.AUTHORIZATION, [])
    if not shown:
        return None
    match = _AUTHORIZATION.fullmatch(shown[0])
    if match is None or len(shown) > 1:
        raise Unauthorized("Authorization must be one bearer token.", challenge=_BAD)
    return BearerToken(match[1])


def _key_of_headers(request: web.BaseRequest) -> ApiKey | None:
    """A name without a key proves nothing and contradicts nothing: it is not looked at."""
    keys = request.headers.getall(_KEY_HEADER, [])
    names = request.headers.getall(_NAME_HEADER, [])
    return _api_key(keys, names, f"{_KEY_HEADER} and {_NAME_HEADER}")


def _api_key(keys: list[str], names: list[str], needed: str) -> ApiKey | None:
    if not keys:
        return None
    if len(keys) > 1 or len(names) != 1:
        raise Unauthorized(f"One {needed} are needed.", challenge=NO_CREDENTIALS)
    return ApiKey(keys[0], names[0])


def _of_query(request: web.BaseRequest) -> list[Credential | None]:
    query = request.query
    found: list[Credential | None] = [BearerToken(one) for one in query.getall("token", [])]
    found += [Ticket(one) for one in query.getall("ticket", [])]
    keys, names = query.getall("api_key", []), query.getall("username", [])
    return [*found, _api_key(keys, names, "api_key and username")]


def _subprotocol(request: web.BaseRequest) -> BearerToken | None:
    lines = request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, [])
    offered = [item.strip() for line in lines for item in line.split(",")]
    if BEARER_SUBPROTOCOL not in offered:
        return None
    return BearerToken("".join(offered[offered.index(BEARER_SUBPROTOCOL) + 1 :][:1]))
