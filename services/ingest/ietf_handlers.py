"""Resumable Uploads for HTTP (IETF draft) over HTTP, on the same URLs as tus.

Rules are in ``services.ingest.ietf``. A request that comes second ends the one before: it
comes from the client that lives (items 155 to 157).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import wraps

import structlog
from aiohttp import web

from services.ingest import ietf
from services.ingest import ietf_answers as answers
from services.ingest.checksums import Check
from services.ingest.digest_fields import declared_digests
from services.ingest.errors import (
    BodyStalled,
    ChecksumMismatch,
    CompletedUpload,
    ContentMismatch,
    DigestMismatch,
    Gone,
    HashMismatch,
    InconsistentLength,
    Locked,
    OverLength,
    OverLimit,
    ProtocolMismatch,
)
from services.ingest.handlers import SETTINGS, UPLOADS, naming
from services.ingest.receive import Ended
from services.ingest.refusals import never_away, refusing
from services.ingest.request_body import BodyCut, RequestBody
from services.ingest.writers import Lease
from shared.blobs.store import Stored
from shared.cors import origin_allowed
from shared.errors import ApiError, Forbidden, InvalidRequest, Unavailable
from shared.identity import principal_of
from shared.serve import CORS

__all__ = [
    "append_part",
    "cancel_upload",
    "open_upload",
    "read_state",
    "take_file",
]

log = structlog.stdlib.get_logger(__name__)

IetfHandler = Callable[[web.Request, ietf.Request], Awaitable[web.StreamResponse]]


def speaks_ietf(
    handler: IetfHandler,
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Read the protocol's fields; turn refusals into problem documents (RFC 9457)."""

    @wraps(handler)
    async def wrapped(request: web.Request) -> web.StreamResponse:
        said = ietf.read_request(request.headers)
        try:
            with refusing():
                return await handler(request, said)
        except ApiError as exc:
            return answers.refusal(request, said, exc)

    return wrapped


@speaks_ietf
async def open_upload(request: web.Request, said: ietf.Request) -> web.StreamResponse:
    """POST with ``Upload-Complete``: open an upload; the body is its beginning, or all.

    A file that the caller's tenant has, by its declared digest, is complete without its body.
    """
    uploads = request.app[UPLOADS]
    ietf.check_representation(request.headers)
    size = _length_after(request, said, known=None, offset=0)
    _room(request, offset=0, length=size)
    checks = _content_checks(request)
    creation = ietf.creation_of(request.headers, size)
    uploads.writers.check_grantable()  # else only an upload that nobody knows would be left
    sidecar = await uploads.create(creation, principal_of(request))
    log.info("upload_created", upload_id=sidecar.upload_id, size=size)
    if sidecar.status != "created":
        return answers.whole(sidecar, size or 0)
    location = answers.location_of(request, sidecar)
    headers = {"Location": location, **answers.limits(request, said, time.time())}
    await answers.tell(request, said, headers)
    with naming(location):
        async with uploads.writers.writing(sidecar.upload_id) as lease:
            if await _take(request, said, lease, checks):
                return answers.whole(lease.writer.sidecar, lease.writer.offset)
            headers |= answers.state(request, said, lease.writer)
            return web.Response(status=201, headers=headers)


@speaks_ietf
async def append_part(request: web.Request, said: ietf.Request) -> web.StreamResponse:
    """PATCH: add bytes at the offset; with ``Upload-Complete: ?1`` they are the last."""
    offset, complete = ietf.check_append(request.headers, said)
    checks = _content_checks(request)
    async with _writing(request, appends=True) as lease:
        writer = lease.writer
        ietf.check_offset(offset, writer.offset)
        if writer.sidecar.status != "created":
            if complete and await _is_empty(request):  # the answer was lost (item 150)
                return answers.whole(writer.sidecar, writer.offset)
            raise CompletedUpload("The upload is complete, and nothing can be added.")
        if await _take(request, said, lease, checks):
            return answers.whole(writer.sidecar, writer.offset)
        headers = answers.state(request, said, writer)
        return web.Response(status=ietf.append_status(said.version), headers=headers)


@speaks_ietf
async def read_state(request: web.Request, said: ietf.Request) -> web.StreamResponse:
    """HEAD, or GET by a client of this protocol: how far the upload is, and whether complete.

    Whoever writes to it is asked to let go first, so that the next PATCH can use the offset.
    """
    ietf.check_carries_nothing(request.headers)
    uploads, upload_id = request.app[UPLOADS], request.match_info["upload_id"]
    with never_away():
        stored = await uploads.find(upload_id, principal_of(request))
        if stored.sidecar.status == "created":
            async with _writing(request) as lease:
                headers = answers.state(request, said, lease.writer)
                return web.Response(status=204, headers=headers)
    _refuse_ended(request, stored)
    headers = answers.state(request, said, stored)
    is_file = stored.sidecar.status == "completed" and not stored.sidecar.is_partial
    if request.method == "GET" and is_file:
        headers["Location"] = answers.file_url(stored.sidecar)
        return web.Response(status=307, headers=headers)
    return web.Response(status=204, headers=headers)


@speaks_ietf
async def cancel_upload(request: web.Request, _: ietf.Request) -> web.StreamResponse:
    """DELETE: end the upload, complete or not, and remove its bytes (item 153)."""
    ietf.check_carries_nothing(request.headers)
    uploads, upload_id = request.app[UPLOADS], request.match_info["upload_id"]
    await uploads.find(upload_id, principal_of(request))
    async with uploads.writers.writing(upload_id) as lease:
        await uploads.terminate(lease.writer)
    return web.Response(status=204)


@speaks_ietf
async def take_file(request: web.Request, _: ietf.Request) -> web.StreamResponse:
    """POST without a word of resuming: the body is a file (item 136).

    Nobody could continue it, so what does not come whole is dropped. Browsers send such a
    request for any page without asking first, so pages of other origins are refused here.
    """
    if not origin_allowed(request.app[CORS], request):
        raise Forbidden("Pages of this origin may not upload.")
    uploads = request.app[UPLOADS]
    said = ietf.Request(complete=True)
    ietf.check_representation(request.headers)
    size = request.content_length
    _room(request, offset=0, length=size)
    checks = _content_checks(request)
    creation = ietf.creation_of(request.headers, size)
    uploads.writers.check_grantable()
    sidecar = await uploads.create(creation, principal_of(request))
    log.info("upload_created", upload_id=sidecar.upload_id, size=size)
    if sidecar.status != "created":
        return answers.file_answer(sidecar, size or 0)
    async with uploads.writers.writing(sidecar.upload_id) as lease:
        try:
            await _take(request, said, lease, checks)
        except ApiError as exc:
            exc.headers.pop("Upload-Offset", None)
            raise
        finally:
            if lease.writer.sidecar.status == "created":
                await uploads.terminate(lease.writer)
        return answers.file_answer(lease.writer.sidecar, lease.writer.offset)


@asynccontextmanager
async def _writing(request: web.Request, *, appends: bool = False) -> AsyncIterator[Lease]:
    """Hold the caller's upload; make up for a completion that was interrupted.

    What can be refused is refused before anyone is disturbed.
    """
    uploads, upload_id = request.app[UPLOADS], request.match_info["upload_id"]
    stored = await uploads.find(upload_id, principal_of(request))
    _refuse_ended(request, stored)
    if appends and stored.sidecar.protocol != "ietf":
        raise ProtocolMismatch("This upload was opened in another protocol.")
    async with uploads.writers.writing(upload_id) as lease:
        await uploads.settle(lease.writer)
        yield lease


def _refuse_ended(request: web.Request, stored: Stored) -> None:
    sidecar = stored.sidecar
    if sidecar.status == "failed":
        raise Gone("The upload has failed.", error_code=answers.cause_of_failure(sidecar))
    if request.app[UPLOADS].is_expired(stored):
        raise Gone("The upload was not continued in time.")


async def _take(
    request: web.Request, said: ietf.Request, lease: Lease, checks: tuple[Check, ...]
) -> bool:
    """Take the body of a request; tell whether it was the last, and the upload is complete.

    Raises:
        ApiError: The body does not fit, or did not come whole. What came is kept, but for an
            upload that became longer than was told: that one has ended (item 117).

    """
    uploads, writer = request.app[UPLOADS], lease.writer
    try:
        ended = await _receive(request, said, lease, checks)
    except (OverLength, OverLimit) as exc:
        await uploads.fail(writer, exc.error_code, exc.message)
        raise
    except ChecksumMismatch as exc:
        raise DigestMismatch(exc.message, headers=answers.at(writer.offset)) from None
    except ContentMismatch as exc:
        raise _judged(exc) from None
    if ended is not Ended.COMPLETE:
        raise _early_end(ended, lease)
    if not said.complete:
        return False
    if writer.sidecar.size not in {None, writer.offset}:
        raise InconsistentLength(
            f"The upload ended at {writer.offset}, not {writer.sidecar.size}.",
            headers=answers.at(writer.offset),
        )
    try:
        await uploads.complete(writer)
    except (ContentMismatch, HashMismatch) as exc:
        raise _judged(exc) from None
    return True


def _judged(error: ApiError) -> ApiError:
    """Return a refusal of what the upload is, not of how it came (items 114 and 145)."""
    error.headers["Upload-Complete"] = "?1"
    return error


async def _receive(
    request: web.Request, said: ietf.Request, lease: Lease, checks: tuple[Check, ...]
) -> Ended:
    uploads, writer = request.app[UPLOADS], lease.writer
    length = _length_after(request, said, known=writer.sidecar.size, offset=writer.offset)
    room = _room(request, offset=writer.offset, length=length)
    uploads.disk.admit(request.content_length or 0)
    body = RequestBody(request)
    await body.invite()
    on_safe = answers.teller(request, said)
    ended = await uploads.append(
        lease, body, room, checks=checks, length=length, on_safe=on_safe
    )
    if ended is Ended.OVERLONG:
        kind = OverLimit if length is None else OverLength
        raise kind("The body is longer than the upload may be.")
    return ended


def _length_after(
    request: web.Request, said: ietf.Request, *, known: int | None, offset: int
) -> int | None:
    length = None if "Transfer-Encoding" in request.headers else request.content_length or 0
    return ietf.length_after(said, known=known, offset=offset, content_length=length)


def _room(request: web.Request, *, offset: int, length: int | None) -> int | None:
    return ietf.room_for(
        offset=offset,
        length=length,
        content_length=request.content_length,
        max_size=request.app[SETTINGS].upload_max_file_size,
    )


def _content_checks(request: web.Request) -> tuple[Check, ...]:
    """Return what ``Content-Digest`` demands of the body (item 163)."""
    digests = declared_digests(request.headers, "Content-Digest")
    return tuple(Check(name, bytes.fromhex(value)) for name, value in digests.items())


def _early_end(ended: Ended, lease: Lease) -> ApiError:
    at = answers.at(lease.writer.offset)
    if ended is Ended.STALLED:
        return BodyStalled("No byte came for too long.", headers=at)
    if ended is Ended.CUT:
        return InvalidRequest("The body ended early.", headers=at)
    if lease.asked == "shutdown":
        return Unavailable("The server is restarting. Resume.")
    return Locked("Another request has taken over.")


async def _is_empty(request: web.Request) -> bool:
    if "Transfer-Encoding" not in request.headers:
        return not request.content_length
    body = RequestBody(request)
    await body.invite()
    with suppress(BodyCut):
        return not await body.read()
    return False
