"""Which handler a tus request gets: that of its method, or of the one it names instead.

Some clients cannot send PATCH or DELETE, so any request may name its method in
``X-HTTP-Method-Override``, and the real one does not count then (item 10). The handlers check
callers and versions themselves, so this opens no way around them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from services.ingest import handlers
from services.ingest.location import COLLECTION
from services.ingest.request_body import invite_later
from shared.identity import overridable
from shared.web import refuses_by

__all__ = ["add_tus_routes"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def add_tus_routes(router: web.UrlDispatcher) -> None:
    """Register collection and uploads."""
    collection = {"OPTIONS": handlers.discover, "POST": handlers.create_upload}
    one: Mapping[str, Handler] = {
        "OPTIONS": handlers.discover,
        "HEAD": handlers.read_offset,
        "GET": handlers.look_at_upload,
        "PATCH": handlers.append_chunk,
        "DELETE": handlers.terminate_upload,
    }
    _add(router, COLLECTION, collection)
    _add(router, COLLECTION + "/{upload_id}", one)


def _add(router: web.UrlDispatcher, path: str, by_method: Mapping[str, Handler]) -> None:
    async def dispatch(request: web.Request) -> web.StreamResponse:
        method = request.headers.get("X-HTTP-Method-Override", request.method).upper()
        if method not in by_method:
            raise web.HTTPMethodNotAllowed(method, sorted(by_method))
        return await by_method[method](request)

    handler = refuses_by(handlers.refuse, overridable(dispatch))
    router.add_route("*", path, handler, expect_handler=invite_later)
