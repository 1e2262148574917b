"""Serves what an application offers: ``/openapi.json`` for programs, ``/docs`` for people.

Both are public, since they tell nothing that depends on who asks, and made once, when they are
first asked for: by then every part of the application has described itself.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from shared.api_page import STYLE, page
from shared.identity import public
from shared.openapi import document
from shared.operations import (
    JSON,
    Header,
    Operation,
    Parameter,
    Response,
    Section,
    merged,
)

__all__ = [
    "API",
    "CONDITION",
    "JSON_HEADERS",
    "TAGGED",
    "UNCHANGED",
    "ApiDescription",
    "add_api_routes",
    "serving",
]

TITLE: Final = "Uploads"
ABOUT: Final = """\
Resumable uploads in, live progress out, files back. This page as an OpenAPI document:
`/openapi.json`.

In the examples `$URL` is where the service listens, such as `http://127.0.0.1:8080`, `$TOKEN`
a token of yours, `$KEY` an API key that can be used instead, and `$ID` the id of an upload. A
server that runs with `AUTH_MODE=open` takes everyone for the local user, without a token, and
answers only requests to a loopback host.

401 means no or bad credentials, 403 good ones for something that is somebody else's, 404 that
there is no such thing. Errors in JSON are a `Problem` with one of the codes at the end. Times
are RFC 3339 in UTC, sizes and offsets are bytes. Every answer has `X-Request-ID`, the request's
own if it brought one; where requests are limited, also `RateLimit` and `RateLimit-Policy`."""

TAGGED: Final = (
    Header("ETag", str, "Changes with the content"),
    Header("Cache-Control", str, "May be kept, and should be checked now and then"),
)
CONDITION: Final = Parameter(
    "If-None-Match", "header", str, "`ETag` of what the client has", always=False
)
UNCHANGED: Final = Response("The client has the current one.", TAGGED)

OWN: Final = Section(
    "This description",
    "",
    (
        Operation(
            name="read_openapi",
            method="GET",
            path="/openapi.json",
            summary="This interface as an OpenAPI 3.1 document",
            access="public",
            parameters=(CONDITION,),
            responses={
                200: Response("The document.", TAGGED, {JSON: {"type": "object"}}),
                304: UNCHANGED,
            },
            examples=("curl $URL/openapi.json",),
        ),
        Operation(
            name="read_docs",
            method="GET",
            path="/docs",
            summary="This interface as a page to read",
            access="public",
            parameters=(CONDITION,),
            responses={
                200: Response("The page.", TAGGED, {"text/html": {"type": "string"}}),
                304: UNCHANGED,
            },
        ),
    ),
)


class ApiDescription:
    """What the parts of an application say of themselves."""

    def __init__(self) -> None:
        self._sections: Final[list[Section]] = []

    def add(self, *sections: Section) -> None:
        """Describe more; sections of one title are joined (``shared.openapi.merged``)."""
        self._sections.extend(sections)

    def document(self) -> dict[str, Any]:
        """Return the OpenAPI document of all that was added, and of the description itself."""
        return document(TITLE, ABOUT, merged([*self._sections, OWN]))


API: Final = web.AppKey("api", ApiDescription)

JSON_HEADERS: Final = {"Content-Type": JSON, "X-Content-Type-Options": "nosniff"}
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
_PAGE_HEADERS: Final = {
    # Nothing may be loaded or run, and nothing but this very style sheet applies.
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def add_api_routes(app: web.Application) -> None:
    """Register both, and put the description where services find it."""
    app[API] = description = ApiDescription()

    @functools.cache
    def encoded() -> bytes:
        return msgspec.json.encode(description.document())

    @functools.cache
    def rendered() -> bytes:
        return page(description.document()).encode()

    html_type = {"Content-Type": "text/html; charset=utf-8", **_PAGE_HEADERS}
    app.router.add_get("/openapi.json", serving(encoded, JSON_HEADERS))
    app.router.add_get("/docs", serving(rendered, html_type))


def serving(make: Callable[[], bytes], headers: Mapping[str, str]) -> Handler:
    """Return a handler that serves what ``make`` returns, to anyone, by its tag."""

    @public
    async def serve(request: web.Request) -> web.Response:
        body = make()
        tag = hashlib.sha256(body).hexdigest()[:32]
        known = request.if_none_match or ()
        unchanged = any(one.value in {tag, "*"} for one in known)
        response = web.Response(
            status=304 if unchanged else 200,
            body=None if unchanged else body,
            headers={**headers, "Cache-Control": "public, max-age=300"},
        )
        response.etag = tag
        return response

    return serve
