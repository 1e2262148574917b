"""HTTP conventions of every service: request ids, one log line a request, error bodies.

Errors are ``application/problem+json`` (RFC 9457) with the members of seed document 000.
"""

from __future__ import annotations

import asyncio
import functools
import random
import re
import secrets
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web, web_response
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import Histogram

from shared.errors import ApiError, InvalidRequest, PayloadTooLarge
from shared.times import now_ms, rfc3339

__all__ = ["create_application", "json_response", "problem", "refuses_by", "small_body"]

log = structlog.stdlib.get_logger(__name__)

_REQUEST_ID: Final = web.RequestKey("request_id", str)
_ID_FORM: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECONDS: Final = Histogram(
    "http_request_seconds", "Time to answer, by route.", ["method", "route", "status"]
)
_json: Final = msgspec.json.Encoder()

_BODY_S: Final = 10.0
"""How long a small body may take."""

_CLIENT_GONE: Final = 499
"""Accounted, never sent: nobody is left to be told a status (nginx's number for this)."""

# No versions (security item 32). Set here because aiohttp answers requests that it cannot
# parse by itself, past every middleware and signal.
web_response.SERVER_SOFTWARE = "uploads"  # type: ignore[attr-defined]


def create_application(*middlewares: Middleware) -> web.Application:
    """Return an application with the conventions; ``middlewares`` run inside them."""
    app = web.Application(middlewares=[_account, _render_errors, *middlewares])
    app.on_response_prepare.append(_add_headers)
    return app


def json_response(
    body: object, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """Return ``body`` encoded by msgspec."""
    return web.Response(
        body=_json.encode(body), status=status, headers=headers, content_type="application/json"
    )


_request_ids: Final = random.Random(secrets.randbits(256))  # noqa: S311 - no secrets


def _new_request_id() -> str:
    """Return 128 bits that nobody else has. No secret: the system's source takes 50 µs."""
    return f"{_request_ids.getrandbits(128):032x}"


async def small_body(request: web.Request, limit: int) -> bytes:
    """Return a body of at most so many bytes.

    Raises:
        InvalidRequest: It comes too slowly.
        PayloadTooLarge: It has more.

    """
    try:
        async with asyncio.timeout(_BODY_S):
            await request.content.readexactly(limit + 1)
    except asyncio.IncompleteReadError as exc:
        return exc.partial
    except TimeoutError:
        raise InvalidRequest("The body did not come in time.") from None
    raise PayloadTooLarge(f"The body may have {limit} bytes.")


@web.middleware
async def _account(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request an id, bind ids to its logs, and write one line when it is done.

    What is bound ends with the request: aiohttp handles each in a task of its own.
    """
    given = request.headers.get("X-Request-ID")
    request_id = given if given and _ID_FORM.fullmatch(given) else _new_request_id()
    request[_REQUEST_ID] = request_id
    started = time.perf_counter()
    status = 500
    structlog.contextvars.bind_contextvars(request_id=request_id, **_subject(request))
    try:
        response = await handler(request)
        status = response.status
    except ConnectionError:
        status = _CLIENT_GONE
        raise
    else:
        return response
    finally:
        seconds = time.perf_counter() - started
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "none"
        _seconds_of(request.method, route, status).observe(seconds)
        # The path only: a query may hold a token.
        log.info(
            "request_handled",
            method=request.method,
            path=request.path,
            status=status,
            ms=round(seconds * 1000, 1),
        )


@functools.lru_cache(1024)
def _seconds_of(method: str, route: str, status: int) -> Histogram:
    """Return what one kind of answer is counted in; the library looks for it slowly."""
    return _SECONDS.labels(method, route, status)


_ID_NAMES: Final = ("upload_id", "session_id", "file_id", "token")
"""One id has these names in paths; in logs it is always ``upload_id``."""


def _subject(request: web.Request) -> dict[str, str]:
    found = request.match_info
    for name in _ID_NAMES if found else ():
        if name in found:
            return {"upload_id": found[name][:64]}
    return {}


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    # Without an id: refused before the middlewares, for what its Expect says.
    response.headers["X-Request-ID"] = request.get(_REQUEST_ID) or _new_request_id()


_FORM: Final = "__refuses_by__"
Refuser = Callable[[web.Request, ApiError], web.StreamResponse]


def refuses_by(refuser: Refuser, handler: Handler) -> Handler:
    """Have errors on the handler's route, those of middlewares included, rendered so."""
    setattr(handler, _FORM, refuser)
    return handler


@web.middleware
async def _render_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn errors into responses; say nothing of a cause that is our fault."""
    refuse: Refuser = getattr(request.match_info.handler, _FORM, lambda _, exc: problem(exc))
    try:
        return await handler(request)
    except ApiError as exc:
        return refuse(request, exc)
    except web.HTTPException as exc:
        if exc.status < 400:
            raise
        return refuse(request, _library_error(exc))
    except ConnectionError:
        raise  # the client has gone; aiohttp ends the connection
    except Exception:
        log.exception("request_failed", method=request.method, path=request.path)
        return refuse(request, ApiError("The server failed to handle the request."))


def problem(error: ApiError) -> web.Response:
    """Return an error as problem+json."""
    body: dict[str, Any] = {
        "type": error.problem_type,
        "title": error.title,
        "status": error.status,
        "detail": error.message,
        "error_code": error.error_code,
        "error_message": error.message,
        "details": {**error.details, "timestamp": rfc3339(now_ms())},
        **error.members,
    }
    return web.Response(
        body=_json.encode(body),
        status=error.status,
        headers=error.headers,
        content_type="application/problem+json",
    )


def _library_error(exc: web.HTTPException) -> ApiError:
    """Return an error of aiohttp (no such route, wrong method, …) as one of ours."""
    phrase = HTTPStatus(exc.status).phrase
    error = ApiError(phrase, headers=_kept(exc), error_code=_code(phrase))
    error.status, error.title = exc.status, phrase
    return error


def _kept(exc: web.HTTPException) -> dict[str, str]:
    return {name: exc.headers[name] for name in _of(exc, ("Allow", "Location"))}


def _of(exc: web.HTTPException, names: Iterable[str]) -> list[str]:
    return [name for name in names if name in exc.headers]


def _code(phrase: str) -> str:
    return re.sub(r"[^A-Z]+", "_", phrase.upper()).strip("_")
