"""Which handler a request for uploads gets: by its protocol, and by its method.

Two protocols live on the same URLs, told apart by their headers (items 169 to 172). Some
clients cannot send PATCH or DELETE, so any request may name its method in
``X-HTTP-Method-Override``, and the real one does not count then (item 10). The handlers check
callers and versions themselves, so neither opens a way around them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from services.ingest import handlers, ietf, ietf_handlers, tus
from services.ingest.location import COLLECTION
from services.ingest.request_body import close_uninvited, invite_later
from shared.identity import overridable
from shared.web import refuses_by

__all__ = ["add_upload_routes", "name_protocol"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ByMethod = Mapping[str, Handler]


def add_upload_routes(router: web.UrlDispatcher) -> None:
    """Register collection and uploads."""
    to_collection: Mapping[str, ByMethod] = {
        "tus": {"OPTIONS": handlers.discover, "POST": handlers.create_upload},
        "ietf": {"POST": ietf_handlers.open_upload},
        "plain": {"POST": ietf_handlers.take_file},
    }
    to_upload: Mapping[str, ByMethod] = {
        "tus": {
            "OPTIONS": handlers.discover,
            "HEAD": handlers.read_offset,
            "GET": handlers.look_at_upload,
            "PATCH": handlers.append_chunk,
            "DELETE": handlers.terminate_upload,
        },
        "ietf": {
            "HEAD": ietf_handlers.read_state,
            "GET": ietf_handlers.read_state,
            "PATCH": ietf_handlers.append_part,
            "DELETE": ietf_handlers.cancel_upload,
        },
    }
    _add(router, COLLECTION, to_collection)
    _add(router, COLLECTION + "/{upload_id}", to_upload)


def _add(router: web.UrlDispatcher, path: str, by_protocol: Mapping[str, ByMethod]) -> None:
    async def dispatch(request: web.Request) -> web.StreamResponse:
        by_method, method = by_protocol[_protocol_of(request)], _method_of(request)
        if method not in by_method:
            # OPTIONS is in no protocol's way, so all of them have it.
            raise web.HTTPMethodNotAllowed(method, sorted({*by_method, "OPTIONS"}))
        return await by_method[method](request)

    handler = refuses_by(handlers.refuse, overridable(dispatch))
    router.add_route("*", path, handler, expect_handler=invite_later)


def _method_of(request: web.Request) -> str:
    return request.headers.get("X-HTTP-Method-Override", request.method).upper()


def _protocol_of(request: web.Request) -> str:
    creates = request.path.rstrip("/") == COLLECTION
    return ietf.detect(_method_of(request), request.headers, creates=creates)


async def name_protocol(request: web.Request, response: web.StreamResponse) -> None:
    """Say on every answer below the collection, errors included, what its protocol demands.

    That is the version in tus (item 4), and in the IETF's protocol whether the answer is that
    of a complete upload (items 132 and 151).
    """
    if not request.path.startswith(COLLECTION):
        return
    protocol = _protocol_of(request)
    if protocol == "tus":
        response.headers["Tus-Resumable"] = tus.VERSION
    elif protocol == "ietf":
        version = ietf.read_request(request.headers).version
        told = ietf.told_in(version, response.headers)
        response.headers.pop("Upload-Complete", None)
        response.headers.update(told)
    close_uninvited(request, response)
