"""The tus interface over HTTP: one function a method, each as thin as the protocol allows."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import wraps
from typing import Final

import structlog
from aiohttp import web

from services.ingest import ietf, tus
from services.ingest.abandoned import can_expire
from services.ingest.checksums import TUS_ALGORITHMS, Check, tus_checks
from services.ingest.creation import Creation
from services.ingest.errors import (
    BodyStalled,
    ChecksumMismatch,
    Gone,
    Locked,
    ProtocolMismatch,
)
from services.ingest.joining import Joins
from services.ingest.location import Locations
from services.ingest.receive import Ended
from services.ingest.refusals import never_away, refusing
from services.ingest.request_body import RequestBody
from services.ingest.settings import Settings
from services.ingest.uploads import Uploads
from services.ingest.writers import Lease
from shared.blobs.store import BlobWriter, Stored
from shared.errors import ApiError, Forbidden, InvalidRequest, PayloadTooLarge, Unavailable
from shared.identity import principal_of
from shared.sidecar import Sidecar
from shared.web import problem

__all__ = [
    "JOINS",
    "LOCATIONS",
    "SETTINGS",
    "UPLOADS",
    "append_chunk",
    "create_upload",
    "discover",
    "look_at_upload",
    "naming",
    "read_offset",
    "refuse",
    "terminate_upload",
]

log = structlog.stdlib.get_logger(__name__)

UPLOADS: Final = web.AppKey("uploads", Uploads)
JOINS: Final = web.AppKey("joins", Joins)
LOCATIONS: Final = web.AppKey("locations", Locations)
SETTINGS: Final = web.AppKey("ingest_settings", Settings)

_UNREAD: Final = {408, *range(413, 460), *range(500, 600)}
"""Statuses of refusals that come before the body is read to its end."""

TusHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]


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


def refuse(request: web.Request, error: ApiError) -> web.Response:
    """Return what others refuse, such as a missing credential, as a tus client expects it."""
    return _refusal(error) if "Tus-Resumable" in request.headers else problem(error)


def _refusal(error: ApiError) -> web.Response:
    headers = {**error.headers, "Cache-Control": "no-store"}
    response = web.Response(
        status=error.status,
        # aiohttp has no phrase for the status that is tus's own.
        reason=error.title if isinstance(error, ChecksumMismatch) else None,
        text=error.message + "\n",
        headers=headers,
    )
    if error.status in _UNREAD:
        response.force_close()  # the rest of the body is not wanted
    return response


async def discover(request: web.Request) -> web.Response:
    """OPTIONS: say what is supported, to anyone, in any version (items 34 to 36)."""
    headers = {
        "Tus-Version": tus.VERSION,
        "Tus-Extension": tus.EXTENSIONS,
        "Tus-Checksum-Algorithm": ",".join(TUS_ALGORITHMS),
    }
    max_size = request.app[SETTINGS].upload_max_file_size
    if max_size:
        headers["Tus-Max-Size"] = str(max_size)
    # The same for the IETF's protocol, which is asked in the same way (item 119).
    now = time.time()
    lifetime_s = request.app[UPLOADS].expires_at(now) - now
    version = ietf.read_request(request.headers).version
    headers |= ietf.limits(version, max_size=max_size, lifetime_s=lifetime_s)
    headers["Accept-Patch"] = f"{ietf.PARTIAL_TYPE}, {tus.CHUNK_TYPE}"
    return web.Response(status=204, headers=headers)


@speaks_tus
async def create_upload(request: web.Request) -> web.StreamResponse:
    """POST: open an upload; a body of the right type is its first piece."""
    uploads, settings = request.app[UPLOADS], request.app[SETTINGS]
    tus.check_version(request.headers)
    max_size = settings.upload_max_file_size
    creation = tus.parse_creation(
        request.headers, max_size=max_size, collection=_collection_url(request)
    )
    if creation.parts:
        return await _create_final(request, creation)
    checks = tus_checks(request.headers)
    with_piece = _has_piece(request)
    if with_piece:
        tus.room_for_chunk(
            provided=0,
            offset=0,
            size=creation.size,
            length=request.content_length,
            max_size=max_size,
        )
    if with_piece or creation.size == 0:
        uploads.writers.check_grantable()  # else only an upload that nobody knows would be left
    sidecar = await uploads.create(creation, principal_of(request))
    headers = _birth(request, sidecar)
    if sidecar.status == "completed":  # its tenant has the bytes: none need be sent
        return _created_whole(request, sidecar, headers["Location"])
    if not with_piece and creation.size != 0:
        return web.Response(status=201, headers=headers)
    with naming(headers["Location"]):
        async with uploads.writers.writing(sidecar.upload_id) as lease:
            if with_piece:
                await _receive(request, lease, provided=0, checks=checks)
            else:  # item 48: it is finished at once, whatever body comes along
                await uploads.complete(lease.writer)
            state = _state_headers(request, lease.writer)
    del state["Cache-Control"]
    return web.Response(status=201, headers={"Location": headers["Location"], **state})


def _created_whole(request: web.Request, sidecar: Sidecar, location: str) -> web.Response:
    size = str(sidecar.size)
    headers = {"Location": location, "Upload-Offset": size, "Upload-Length": size}
    response = web.Response(status=201, headers=headers)
    if request.can_read_body:
        response.force_close()
    return response


def _collection_url(request: web.Request) -> str:
    return request.app[LOCATIONS].collection(
        headers=request.headers, scheme=request.scheme, peer=request.remote
    )


def _birth(request: web.Request, sidecar: Sidecar) -> dict[str, str]:
    """Return what the answer says of an upload that has just been opened (items 46, 73)."""
    log.info("upload_created", upload_id=sidecar.upload_id, size=sidecar.size)
    location = f"{_collection_url(request)}/{sidecar.upload_id}"
    return {"Location": location, **_expiry(request, sidecar.facts.created_at / 1000)}


@contextmanager
def naming(location: str) -> Iterator[None]:
    """Have refusals name the upload that exists by now, so that its client can go on."""
    try:
        with refusing():
            yield
    except ApiError as exc:
        exc.headers["Location"] = location
        raise


async def _create_final(request: web.Request, creation: Creation) -> web.StreamResponse:
    if request.body_exists:
        raise Forbidden("A final upload takes no bytes: it has those of its parts.")
    sidecar = await request.app[JOINS].open(creation, principal_of(request))
    return web.Response(status=201, headers=_birth(request, sidecar))


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
    checks = tus_checks(request.headers)
    async with _writing(request, provided=provided) as lease:
        await _receive(request, lease, provided=provided, checks=checks)
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
        if stored.sidecar.protocol != "tus":
            raise ProtocolMismatch("This upload was not opened with tus.")
        if stored.sidecar.is_final:
            raise Forbidden("A final upload takes no bytes: it has those of its parts.")
        tus.check_not_passed(provided, stored.offset)
    async with uploads.writers.writing(upload_id) as lease:
        yield lease


def _refuse_expired(uploads: Uploads, stored: Stored) -> None:
    if uploads.is_expired(stored):
        raise Gone("The upload was not continued in time.")


async def _receive(
    request: web.Request, lease: Lease, *, provided: int, checks: Sequence[Check] = ()
) -> None:
    """Check the request against the upload, take its body, and complete what is complete."""
    uploads, writer = request.app[UPLOADS], lease.writer
    max_size = request.app[SETTINGS].upload_max_file_size
    size = tus.declared_length(
        request.headers,
        known=writer.sidecar.size,
        offset=writer.offset,
        max_size=max_size,
    )
    room = tus.room_for_chunk(
        provided=provided,
        offset=writer.offset,
        size=size,
        length=request.content_length,
        max_size=max_size,
    )
    uploads.disk.admit(request.content_length or 0)
    body = RequestBody(request)
    await body.invite()
    ended = await uploads.append(lease, body, room, checks=checks, length=size)
    if ended is not Ended.COMPLETE:
        raise _early_end(ended, lease)


def _early_end(ended: Ended, lease: Lease) -> ApiError:
    offset = {"Upload-Offset": str(lease.writer.offset)}
    if ended is Ended.OVERLONG:
        return PayloadTooLarge("The body is longer than the upload.")
    if ended is Ended.STALLED:
        return BodyStalled("The body came too slowly, or not at all.", headers=offset)
    if ended is Ended.CUT:
        return InvalidRequest("The body ended early, or its framing broke.", headers=offset)
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
    with never_away():
        stored = await uploads.find(upload_id, principal_of(request))
        _refuse_expired(uploads, stored)
        if _is_unjoined(stored.sidecar):
            request.app[JOINS].follow(upload_id)
            return web.Response(status=200, headers=_state_headers(request, stored))
        is_whole = stored.sidecar.status == "completed" and stored.visible
        if is_whole or stored.sidecar.status == "quarantined":  # whoever scans it is left alone
            return web.Response(status=200, headers=_state_headers(request, stored))
        async with _writing(request) as lease:
            await uploads.settle(lease.writer)
            return web.Response(status=200, headers=_state_headers(request, lease.writer))


@speaks_tus
async def look_at_upload(request: web.Request) -> web.StreamResponse:
    """GET: outside tus; where the file is, once it is one, else how far it is (item 174)."""
    uploads, upload_id = request.app[UPLOADS], request.match_info["upload_id"]
    stored = await uploads.find(upload_id, principal_of(request))
    if stored.sidecar.status == "failed":
        raise Gone("The upload has failed.")
    headers = _state_headers(request, stored)
    headers["Upload-Complete"] = "?0" if stored.sidecar.status == "created" else "?1"
    if stored.sidecar.status == "completed" and not stored.sidecar.is_partial:
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
    writer = lease.writer
    headers = {"Upload-Offset": str(writer.offset)}
    if can_expire(writer.sidecar, visible=writer.visible):
        headers |= _expiry(request, writer.modified_at)
    return headers


def _expiry(request: web.Request, modified_at: float) -> dict[str, str]:
    return {"Upload-Expires": tus.http_date(request.app[UPLOADS].expires_at(modified_at))}


def _state_headers(request: web.Request, state: Stored | BlobWriter) -> dict[str, str]:
    """Headers that describe an upload (items 12, 13, 16, 55, 61, 98 to 100)."""
    sidecar = state.sidecar
    headers = {"Cache-Control": "no-store"}
    if not _is_unjoined(sidecar):
        headers["Upload-Offset"] = str(state.offset)
    if sidecar.size is not None:
        headers["Upload-Length"] = str(sidecar.size)
    elif not sidecar.is_final:
        headers["Upload-Defer-Length"] = "1"
    if sidecar.metadata_header:
        headers["Upload-Metadata"] = sidecar.metadata_header
    if sidecar.concat:
        headers["Upload-Concat"] = sidecar.concat
    if can_expire(sidecar, visible=state.visible):
        headers |= _expiry(request, state.modified_at)
    return headers


def _is_unjoined(sidecar: Sidecar) -> bool:
    return sidecar.is_final and sidecar.status == "created"
