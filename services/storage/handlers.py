"""Downloads and deletes over HTTP (RFC 9110), safe to show to a browser."""

from __future__ import annotations

import os
from functools import wraps
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import Counter

from services.storage.conditions import field
from services.storage.errors import PreconditionFailed, RangeNotSatisfiable
from services.storage.files import FileDamaged, Files
from services.storage.multipart import Layout, Part, several, single
from services.storage.openings import Opened, Openings
from services.storage.ranges import Selection, content_range, select
from services.storage.repr_digest import repr_digest
from services.storage.sendfile import send_file
from services.storage.settings import Settings
from services.storage.streaming import opened
from shared.blobs.store import LeaseUnavailable, UploadNotFound
from shared.errors import ApiError, NotFound, Unavailable
from shared.identity import principal_of
from shared.sidecar import SidecarDamaged
from shared.web import problem

__all__ = ["FILES", "OPENINGS", "SETTINGS", "add_storage_routes", "explains_failures"]

log = structlog.stdlib.get_logger(__name__)

FILES: Final = web.AppKey("files", Files)
OPENINGS: Final = web.AppKey("openings", Openings)
SETTINGS: Final = web.AppKey("storage_settings", Settings)

SENT = Counter("storage_bytes_total", "Bytes of files sent.")


def add_storage_routes(router: web.UrlDispatcher) -> None:
    """Register the endpoints."""
    path = "/api/v1/storage/{file_id}"
    router.add_get(path, download)
    router.add_delete(path, delete)


def explains_failures(handler: Handler) -> Handler:
    """Answer what a store or a file fails with as clients must know it."""

    @wraps(handler)
    async def wrapped(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except UploadNotFound:  # it has been deleted just now
            raise NotFound("There is no such file.") from None
        except LeaseUnavailable:
            raise Unavailable("No right to delete can be granted just now.") from None
        except SidecarDamaged as exc:
            log.error("sidecar_damaged", error=str(exc))
            raise ApiError("The record of this file is damaged.") from None
        except FileDamaged as exc:
            log.error("file_damaged", error=str(exc))
            raise ApiError("This file is damaged.") from None
        except ConnectionError:
            raise  # the client has gone
        except OSError as exc:
            log.error("disk_failed", error=repr(exc))
            raise Unavailable("The store failed.") from None

    return wrapped


@explains_failures
async def download(request: web.Request) -> web.StreamResponse:
    """GET and HEAD: the file, or the parts of it that were asked for."""
    file_id = request.match_info["file_id"]
    file = await request.app[OPENINGS].open(file_id, principal_of(request))
    try:
        selection = select(
            headers=request.headers,
            method=request.method,
            size=file.stored.offset,
            validators=file.validators,
        )
        response, layout = _response(request, file, selection)
        if request.method != "GET" or layout is None:
            await response.prepare(request)
            sent_all = True
        else:
            sent_all = await _send(request, response, layout, file)
        if sent_all:  # else the client has gone, or the store; the connection is cut
            await response.write_eof()
        return response
    finally:
        if file.fd is not None:
            os.close(file.fd)


async def _send(
    request: web.Request, response: web.StreamResponse, layout: Layout, file: Opened
) -> bool:
    """Send head and body of an answer; return whether all of it went out."""
    for part in layout.parts:
        length = part.span.length
        sent = await _send_part(request, response, part, file)
        SENT.inc(sent)
        if sent < length:
            return False
    if layout.end:
        await response.write(layout.end)
    return True


async def _send_part(
    request: web.Request, response: web.StreamResponse, part: Part, file: Opened
) -> int:
    """Send a part, the head of the answer before the first; return the file's bytes of it."""
    stall_s = request.app[SETTINGS].download_stall_timeout
    start, length = part.span
    if file.fd is None and length:
        source = request.app[FILES].read(request.match_info["file_id"], start, length)
        async with opened(source) as pieces:
            await _write_head(request, response, part)
            return await pieces.send(request, response, length, stall_timeout_s=stall_s)
    await _write_head(request, response, part)
    if file.fd is None or not length:
        return 0
    return await send_file(request, response, file.fd, start, length, stall_timeout_s=stall_s)


async def _write_head(request: web.Request, response: web.StreamResponse, part: Part) -> None:
    if not response.prepared:
        await response.prepare(request)
    if part.head:
        await response.write(part.head)


def _response(
    request: web.Request, file: Opened, selection: Selection
) -> tuple[web.StreamResponse, Layout | None]:
    """Return the answer, and what belongs in its body if that is bytes of the file."""
    stored = file.stored
    response, layout = _begun(file, selection)
    response.headers.update(file.headers)
    if layout is not None:
        wish = field(request.headers, "Want-Repr-Digest")
        if digest := repr_digest(stored.sidecar.digests, wish):
            response.headers["Repr-Digest"] = digest
    return response, layout


def _begun(file: Opened, selection: Selection) -> tuple[web.StreamResponse, Layout | None]:
    """Return the answer with what depends on the status: a file's headers, or a refusal."""
    size = file.stored.offset
    if selection.status == 412:
        return problem(PreconditionFailed("The file does not meet the conditions.")), None
    if selection.status == 416:
        refusal = problem(
            RangeNotSatisfiable(f"The file has {size} bytes, none in this range.")
        )
        refusal.headers["Content-Range"] = f"bytes */{size}"
        return refusal, None
    response = web.StreamResponse(status=selection.status)
    if selection.status == 304:
        return response, None
    first, *others = selection.spans
    if others:
        layout = several(selection.spans, size, file.content_type)
    else:
        layout = single(first, file.content_type)
        if selection.status == 206:
            response.headers["Content-Range"] = content_range(first, size)
    response.content_length = layout.length
    response.headers["Content-Type"] = layout.content_type
    response.headers["Content-Disposition"] = file.disposition
    return response, layout


@explains_failures
async def delete(request: web.Request) -> web.StreamResponse:
    """DELETE: 204 once the file is durably gone; 404 the second time."""
    await request.app[FILES].delete(request.match_info["file_id"], principal_of(request))
    return web.Response(status=204)
