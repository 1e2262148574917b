"""The tus interface over HTTP: one function a method, each as thin as the protocol allows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import wraps
from typing import Final

import structlog
from aiohttp import web

from services.ingest import tus
from services.ingest.errors import BodyStalled, Gone, Locked
from services.ingest.location import COLLECTION, Locations
from services.ingest.receive import Ended
from services.ingest.refusals import refusing
from services.ingest.request_body import RequestBody, close_uninvited
from services.ingest.settings import Settings
from services.ingest.uploads import Uploads
from services.ingest.writers import Lease
from shared.blobs.store import BlobWriter, Stored
from shared.errors import ApiError, InvalidRequest, PayloadTooLarge, Unavailable
from shared.identity import principal_of

__all__ = [
    "LOCATIONS",
    "SETTINGS",
    "UPLOADS",
    "add_tus_header",
    "append_chunk",
    "create_upload",
    "discover",
    "look_at_upload",
    "read_offset",
    "terminate_upload",
]

log = structlog.stdlib.get_logger(__name__)

UPLOADS: Final = web.AppKey("uploads", Uploads)
LOCATIONS: Final = web.AppKey("locations", Locations)
SETTINGS: Final = web.AppKey("ingest_settings", Settings)

TusHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def add_tus_header(request: web.Request, response: web.StreamResponse) -> None:
    """Put the version on every answer below the collection, errors included (item 4)."""
    if request.path.startswith(COLLECTION):
        response.headers["Tus-Resumable"] = tus.VERSION
        close_uninvited(request, response)


def speaks_tus(handler: TusHandler) -> TusHandler:
    """Turn refusals into tus's short text answers."""

    @wraps(handler)
    async def wrapped(request: web.Request) -> web.StreamResponse:
        try:
            with refusing():
                tus.check_given_once(request.headers)
                return await handler(request)
        except ApiError as exc:
            return _refusal(exc)

    return wrapped


def _refusal(error: ApiError) -> web.Response:
    headers = {**error.headers, "Cache-Control": "no-store"}
    response = web.Response(status=error.status, text=error.message + "\n", headers=headers)
    if error.status >= 413 or error.status == 408:
        response.force_close()  # the rest of the body is not wanted
    return response


async def discover(request: web.Request) -> web.Response:
    """OPTIONS: say what is supported, to anyone, in any version (items 34 to 36)."""
    headers = {"Tus-Version": tus.VERSION, "Tus-Extension": tus.EXTENSIONS}
    max_size = request.app[SETTINGS].upload_max_file_size
    if max_size:
        headers["Tus-Max-Size"] = str(max_size)
    return web.Response(status=204, headers=headers)


@speaks_tus
async def create_upload(request: web.Request) -> web.StreamResponse:
    """POST: open an upload; a body of the right type is its first piece."""
    uploads, settings = request.app[UPLOADS], request.app[SETTINGS]
    tus.check_version(request.headers)
    max_size = settings.upload_max_file_size
    creation = tus.parse_creation(request.headers, max_size=max_size)
    with_piece = _has_piece(request)
    if with_piece:
        tus.room_for_chunk(
            provided=0,
            offset=0,
            size=creation.size,
            length=request.content_length,
            max_size=max_size,
        )
    sidecar = await uploads.create(creation, principal_of(request))
    location = request.app[LOCATIONS].of(
        sidecar.upload_id, headers=request.headers, scheme=request.scheme, peer=request.remote
    )
    headers = {"Location": location}
    log.info("upload_created", upload_id=sidecar.upload_id, size=creation.size)
    if sidecar.status == "completed":  # its tenant has the bytes: none need be sent
        headers |= {"Upload-Offset": str(sidecar.size), "Upload-Length": str(sidecar.size)}
    elif with_piece or creation.size == 0:
        async with uploads.writers.writing(sidecar.upload_id) as lease:
            if with_piece:
                await _receive(request, lease, provided=0)
            else:  # item 48: it is finished at once, whatever body comes along
                await uploads.complete(lease.writer)
            headers |= _state_headers(request, lease.writer)
            headers.pop("Cache-Control")
    else:
        headers |= _expiry(request, sidecar.facts.created_at / 1000)
    response = web.Response(status=201, headers=headers)
    if sidecar.status == "completed" and request.can_read_body:
        response.force_close()
    return response


def _has_piece(request: web.Request) -> bool:
    """Tell whether the POST carries bytes, be it none; others' bodies are ignored (item 67)."""
    if "Content-Type" not in request.headers:
        return False
    declared = request.headers["Content-Type"].partition(";")[0].strip().lower()
    if declared != tus.CHUNK_TYPE:
        return False
    tus.check_chunk_type(request.headers)
    return True


@speaks_tus
async def append_chunk(request: web.Request) -> web.StreamResponse:
    """PATCH: add bytes at the offset; what is acknowledged is on stable storage.

    When the connection ends early, everything that arrived is kept. The event that tells
    others goes out after the bytes are safe; Redis being away changes nothing here.
    """
    tus.check_version(request.headers)
    provided = tus.parse_count(request.headers, "Upload-Offset")
    tus.check_chunk_type(request.headers)
    async with _writing(request, provided=provided) as lease:
        await _receive(request, lease, provided=provided)
        return web.Response(status=204, headers=_progress_headers(request, lease))


@asynccontextmanager
async def _writing(
    request: web.Request, *, provided: int | None = None
) -> AsyncIterator[Lease]:
    """Hold the caller's unexpired upload; refuse what can be before anyone is disturbed."""
    uploads, upload_id = request.app[UPLOADS], request.match_info["upload_id"]
    stored = await uploads.find(upload_id, principal_of(request))
    _refuse_expired(uploads, stored)
    if provided is not None:
        tus.check_not_passed(provided, stored.offset)
    async with uploads.writers.writing(upload_id) as lease:
        yield lease


def _refuse_expired(uploads: Uploads, stored: Stored) -> None:
    if uploads.is_expired(stored):
        raise Gone("The upload was not continued in time.")


async def _receive(request: web.Request, lease: Lease, *, provided: int) -> None:
    """Check the request against the upload, take its body, and complete what is complete."""
    uploads, writer = request.app[UPLOADS], lease.writer
    max_size = request.app[SETTINGS].upload_max_file_size
    known = writer.sidecar.size
    size = tus.declared_length(
        request.headers, known=known, offset=writer.offset, max_size=max_size
    )
    room = tus.room_for_chunk(
        provided=provided,
        offset=writer.offset,
        size=size,
        length=request.content_length,
        max_size=max_size,
    )
    if size is not None and size != known:
        await uploads.declare_length(writer, size)
    body = RequestBody(request)
    await body.invite()
    ended = await uploads.append(lease, body, room)
    if ended is not Ended.COMPLETE:
        raise _early_end(ended, lease)


def _early_end(ended: Ended, lease: Lease) -> ApiError:
    offset = {"Upload-Offset": str(lease.writer.offset)}
    if ended is Ended.OVERLONG:
        return PayloadTooLarge("The body is longer than the upload.")
    if ended is Ended.STALLED:
        return BodyStalled("No byte came for too long.", headers=offset)
    if ended is Ended.CUT:
        return InvalidRequest("The body ended early.", headers=offset)
    if lease.asked == "shutdown":
        return Unavailable("The server is restarting. Resume.")
    return Locked("Another request has taken over.")


@speaks_tus
async def read_offset(request: web.Request) -> web.StreamResponse:
    """HEAD: how many bytes need not be sent again.

    A running PATCH is asked to let go first: the client that asks has usually lost it, and
    the answer must hold for its next PATCH (items 18 and 40).
    """
    tus.check_version(request.headers)
    uploads, upload_id = request.app[UPLOADS], request.match_info["upload_id"]
    stored = await uploads.find(upload_id, principal_of(request))
    is_whole = stored.sidecar.status == "completed" and stored.visible
    if is_whole or stored.sidecar.status == "quarantined":  # whoever scans it is left alone
        return web.Response(status=200, headers=_state_headers(request, stored))
    async with _writing(request) as lease:
        if lease.writer.offset == lease.writer.sidecar.size:
            await uploads.complete(lease.writer)
        return web.Response(status=200, headers=_state_headers(request, lease.writer))


@speaks_tus
async def look_at_upload(request: web.Request) -> web.StreamResponse:
    """GET: outside tus; where the file is, once it is one, else how far it is (item 174)."""
    uploads, upload_id = request.app[UPLOADS], request.match_info["upload_id"]
    stored = await uploads.find(upload_id, principal_of(request))
    headers = _state_headers(request, stored)
    if stored.sidecar.status == "completed":
        headers["Location"] = f"/api/v1/storage/{upload_id}"
        return web.Response(status=307, headers=headers)
    return web.Response(status=204, headers=headers)


@speaks_tus
async def terminate_upload(request: web.Request) -> web.StreamResponse:
    """DELETE: end the upload and remove its bytes; a running PATCH is ended first."""
    tus.check_version(request.headers)
    uploads, upload_id = request.app[UPLOADS], request.match_info["upload_id"]
    await uploads.find(upload_id, principal_of(request))
    async with uploads.writers.writing(upload_id) as lease:
        await uploads.terminate(lease.writer)
    return web.Response(status=204)


def _progress_headers(request: web.Request, lease: Lease) -> dict[str, str]:
    """Headers of a PATCH's answer (items 24 and 73)."""
    headers = {"Upload-Offset": str(lease.writer.offset)}
    if lease.writer.sidecar.status == "created":
        headers |= _expiry(request, lease.writer.modified_at)
    return headers


def _expiry(request: web.Request, modified_at: float) -> dict[str, str]:
    return {"Upload-Expires": tus.http_date(request.app[UPLOADS].expires_at(modified_at))}


def _state_headers(request: web.Request, state: Stored | BlobWriter) -> dict[str, str]:
    """Headers that describe an upload (items 12, 13, 16, 55, 61)."""
    sidecar = state.sidecar
    headers = {"Upload-Offset": str(state.offset), "Cache-Control": "no-store"}
    if sidecar.size is None:
        headers["Upload-Defer-Length"] = "1"
    else:
        headers["Upload-Length"] = str(sidecar.size)
    if sidecar.metadata_header:
        headers["Upload-Metadata"] = sidecar.metadata_header
    if sidecar.status == "created":
        headers |= _expiry(request, state.modified_at)
    return headers
