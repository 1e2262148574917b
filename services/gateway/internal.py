"""The internal listener's part for other systems: workers report on their jobs here.

For the platform around the service; it must not be reachable from outside. Who may call:
whoever the mesh lets through (``INTERNAL_AUTH=mesh``), or who has one of the tokens.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Iterable
from typing import Final

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from services.gateway.errors import NotJson
from services.gateway.internal_api import internal_document
from services.gateway.job_reports import LARGEST_BODY, read_reports
from services.gateway.reporting import Reporting
from services.gateway.settings import Settings
from shared.credentials import NO_CREDENTIALS, BearerToken, credentials
from shared.errors import (
    InvalidRequest,
    PayloadTooLarge,
    StartupError,
    Unauthorized,
    Unavailable,
)
from shared.identity import PRINCIPAL
from shared.loopback import is_loopback, refuse_foreign_hosts
from shared.principal import Principal
from shared.proxies import TrustedProxies
from shared.rate_limit import RateLimits, counts_as
from shared.settings import bind_address
from shared.token_bucket import limit_of
from shared.tokens import BAD_TOKEN
from shared.web import create_application, json_response

__all__ = ["ServiceTokens", "create_reports_application"]

_BODY_S: Final = 10.0
"""How long a body may take: workers are near."""


class ServiceTokens:
    """The tokens of services: what is kept of each is its SHA-256.

    Args:
        entries: ``name:sha256`` each, as in ``INTERNAL_TOKENS``; the name is for logs.

    """

    def __init__(self, entries: Iterable[str]) -> None:
        pairs = (one.rpartition(":") for one in entries)
        self._known: Final = [(name, bytes.fromhex(digest)) for name, _, digest in pairs]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._known)

    def name_of(self, token: str) -> str | None:
        """Return whose token it is, in a time that tells nothing of the others."""
        digest, found = hashlib.sha256(token.encode()).digest(), None
        for name, known in self._known:
            if hmac.compare_digest(digest, known):
                found = name
        return found


def create_reports_application(
    settings: Settings, reporting: Callable[[], Reporting | None]
) -> web.Application:
    """Return what is served below ``/internal``.

    Args:
        settings: Of the gateway.
        reporting: Returns what takes the reports; ``None`` while the process ends.

    Raises:
        StartupError: Tokens are asked for, and there are none.

    """
    tokens = _tokens(settings)
    limits = _rate_limits(settings)
    app = create_application(
        *([refuse_foreign_hosts] if tokens is None and _is_local(settings) else []),
        *([limits.refused_logins] if limits else []),
        *([_authenticate(tokens)] if tokens is not None else []),
        *([limits.requests] if limits else []),
    )
    if limits:
        limits.add_to(app)

    @counts_as("jobs")
    async def report(request: web.Request) -> web.Response:
        """Take reports of a job; 202 once what is new of them is on the streams."""
        reports = read_reports(await _json_body(request))
        taker = reporting()
        if taker is None:
            raise Unavailable("The process is ending. Repeat the report.")
        return json_response(
            await taker.take(request.match_info["job_id"], reports), status=202
        )

    async def openapi(_: web.Request) -> web.Response:
        """Answer with the description of this interface."""
        return json_response(internal_document())

    app.router.add_get("/openapi.json", openapi)
    app.router.add_post("/v1/jobs/{job_id}/events", report)
    return app


def _is_local(settings: Settings) -> bool:
    if settings.internal_bind == "off":
        return True
    return is_loopback(bind_address("INTERNAL_BIND", settings.internal_bind)[0])


def _tokens(settings: Settings) -> ServiceTokens | None:
    """Return the tokens that are good; ``None`` if none is needed."""
    tokens = ServiceTokens(settings.internal_tokens)
    match settings.internal_auth:
        case "token":
            if not tokens:
                raise StartupError("INTERNAL_AUTH=token: set INTERNAL_TOKENS, or use mesh")
            return tokens
        case "mesh":
            return None
        case "auto":
            return None if _is_local(settings) and not tokens else tokens


def _rate_limits(settings: Settings) -> RateLimits | None:
    enabled = settings.rate_limit_enabled
    if not (settings.auth_mode == "required" if enabled is None else enabled):
        return None
    # What is asked besides reports is refused anyhow, and counts the same.
    limits = dict.fromkeys(
        ("jobs", "create", "change", "read"), limit_of(settings.rate_limit_jobs)
    )
    limits["login"] = limit_of(settings.rate_limit_login)
    return RateLimits(limits, TrustedProxies(()), settings.redis_url)


def _authenticate(tokens: ServiceTokens) -> Middleware:
    @web.middleware
    async def authenticated(request: web.Request, handler: Handler) -> web.StreamResponse:
        shown = credentials(request)
        if shown is None:
            raise Unauthorized("A service token is needed.", challenge=NO_CREDENTIALS)
        name = tokens.name_of(shown.token) if isinstance(shown, BearerToken) else None
        if name is None:
            raise Unauthorized("The token is not known here.", challenge=BAD_TOKEN)
        request[PRINCIPAL] = Principal(name, "internal", name, frozenset(), None)
        structlog.contextvars.bind_contextvars(service=name)
        return await handler(request)

    return authenticated


async def _json_body(request: web.Request) -> bytes:
    """Return the body.

    Raises:
        NotJson: It is declared as something else, or compressed.
        PayloadTooLarge: It is larger than ``LARGEST_BODY``.
        InvalidRequest: It is broken, or does not come in time.

    """
    coding = request.headers.get(hdrs.CONTENT_ENCODING, "identity")
    if request.content_type != "application/json" or coding.lower() != "identity":
        raise NotJson("Send the report as application/json, not compressed.")
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            if (request.content_length or 0) <= LARGEST_BODY:
                async for part in request.content.iter_any():
                    body += part
                    if len(body) > LARGEST_BODY:
                        break
    except TimeoutError as exc:
        raise InvalidRequest("The body did not come in time.") from exc
    except web.RequestPayloadError as exc:
        raise InvalidRequest("The body is broken.") from exc
    if max(len(body), request.content_length or 0) > LARGEST_BODY:
        raise PayloadTooLarge(f"A request may have {LARGEST_BODY} bytes.")
    return bytes(body)
