"""Downloads and deletes over HTTP (RFC 9110), safe to show to a browser."""

from __future__ import annotations

import os
from functools import wraps
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import Counter

from services.storage.disposition import content_disposition, safe_content_type
from services.storage.errors import PreconditionFailed, RangeNotSatisfiable
from services.storage.files import FileDamaged, Files
from services.storage.ranges import Selection, content_range, select
from services.storage.sendfile import send_file
from services.storage.settings import Settings
from services.storage.streaming import opened
from shared.blobs.store import LeaseUnavailable, Stored, UploadNotFound
from shared.errors import ApiError, NotFound, Unavailable
from shared.identity import principal_of
from shared.sidecar import SidecarDamaged
from shared.web import problem

__all__ = ["FILES", "SETTINGS", "add_storage_routes", "explains_failures"]

log = structlog.stdlib.get_logger(__name__)

FILES: Final = web.AppKey("files", Files)
SETTINGS: Final = web.AppKey("storage_settings", Settings)

SENT = Counter("storage_bytes_total", "Bytes of files sent.")

_SAFE_HEADERS: Final = {
    # Whatever the bytes are, they must not act on the page that shows them (items 5 to 7).
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-cache",
    "Accept-Ranges": "bytes",
}


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
    """GET and HEAD: the file, or the part of it that was asked for."""
    files, file_id = request.app[FILES], request.match_info["file_id"]
    stored = await files.find(file_id, principal_of(request))
    fd = await files.open(stored)
    try:
        etag = f'"{file_id}"'  # the bytes of an id never change
        modified_s = int((stored.sidecar.completed_at or 0) / 1000)
        selection = select(
            headers=request.headers,
            method=request.method,
            size=stored.offset,
            etag=etag,
            modified_s=modified_s,
        )
        response = _response(stored, selection, etag=etag, modified_s=modified_s)
        wanted = selection.length if request.method == "GET" else 0
        sent = await _send(request, response, fd, selection.start, wanted)
        SENT.inc(sent)
        if sent == wanted:  # else the client has gone, or the store; the connection is cut
            await response.write_eof()
        return response
    finally:
        if fd is not None:
            os.close(fd)


async def _send(
    request: web.Request, response: web.StreamResponse, fd: int | None, start: int, length: int
) -> int:
    """Send the head and so many bytes; return how many bytes went out."""
    stall_s = request.app[SETTINGS].download_stall_timeout
    if fd is None and length:
        source = request.app[FILES].read(request.match_info["file_id"], start, length)
        async with opened(source) as pieces:
            await response.prepare(request)
            return await pieces.send(request, response, length, stall_timeout_s=stall_s)
    await response.prepare(request)
    if fd is None or not length:
        return 0
    return await send_file(request, response, fd, start, length, stall_timeout_s=stall_s)


def _response(
    stored: Stored, selection: Selection, *, etag: str, modified_s: int
) -> web.StreamResponse:
    response = _begun(stored, selection)
    response.headers.update(_SAFE_HEADERS)
    response.etag = etag.strip('"')
    response.last_modified = modified_s
    covered = content_range(selection, stored.offset)
    if covered is not None:
        response.headers["Content-Range"] = covered
    return response


def _begun(stored: Stored, selection: Selection) -> web.StreamResponse:
    """Return the answer with what depends on the status: a file's headers, or a refusal."""
    if selection.status == 412:
        return problem(PreconditionFailed("The file does not meet the conditions."))
    if selection.status == 416:
        message = f"The file has {stored.offset} bytes, and none in this range."
        return problem(RangeNotSatisfiable(message))
    response = web.StreamResponse(status=selection.status)
    response.content_length = selection.length
    if selection.status != 304:
        facts = stored.sidecar.facts
        response.headers["Content-Type"] = safe_content_type(facts.content_type)
        response.headers["Content-Disposition"] = content_disposition(facts.filename)
    return response


@explains_failures
async def delete(request: web.Request) -> web.StreamResponse:
    """DELETE: 204 once the file is durably gone; 404 the second time."""
    await request.app[FILES].delete(request.match_info["file_id"], principal_of(request))
    return web.Response(status=204)
