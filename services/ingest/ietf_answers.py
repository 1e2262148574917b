"""The answers of the IETF's resumable uploads: final ones, interim ones, and refusals."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Annotated

import msgspec
from aiohttp import web

from services.ingest import ietf
from services.ingest.digest_fields import render_digests
from services.ingest.errors import OverLength
from services.ingest.handlers import LOCATIONS, SETTINGS, UPLOADS
from services.ingest.interim import send_interim, takes_interim
from shared.blobs.store import BlobWriter, Stored
from shared.errors import ApiError, PayloadTooLarge
from shared.events import UploadDuplicate, UploadFailed
from shared.sidecar import Sidecar
from shared.web import json_response, problem

__all__ = [
    "StoredFile",
    "at",
    "cause_of_failure",
    "file_answer",
    "file_url",
    "limits",
    "location_of",
    "refusal",
    "state",
    "tell",
    "teller",
    "whole",
]


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file whose upload is complete; name and type are as the client gave them."""

    upload_id: str
    location: Annotated[str, msgspec.Meta(description="Where the file can be fetched")]
    filename: str
    content_type: str
    size: Annotated[int, msgspec.Meta(description="Bytes")]
    status: Annotated[
        str, msgspec.Meta(description="`completed`, or `quarantined` until it is found clean")
    ]
    duplicate: Annotated[bool, msgspec.Meta(description="Whether the bytes were there already")]


def refusal(request: web.Request, said: ietf.Request, error: ApiError) -> web.Response:
    """Return an error as a problem document (RFC 9457), with what it takes to do better."""
    response = problem(error)
    response.headers["Cache-Control"] = "no-store"
    if isinstance(error, PayloadTooLarge):  # item 124
        response.headers.update(limits(request, said, None))
    if error.status >= 413 or error.status == 408 or isinstance(error, OverLength):
        response.force_close()  # the rest of the body is not wanted
    return response


async def tell(request: web.Request, said: ietf.Request, headers: Mapping[str, str]) -> None:
    """Send 104, if the client can read it (items 127, 158 to 160, 167)."""
    policy = request.app[SETTINGS].ietf_send_104
    if ietf.asks_for_interim(said, policy) and takes_interim(request):
        version = {"Upload-Draft-Interop-Version": str(said.version)}
        with suppress(ConnectionError):  # who reads the body finds out, and keeps what came
            await send_interim(
                request, 104, "Upload Resumption Supported", {**headers, **version}
            )


def teller(request: web.Request, said: ietf.Request) -> Callable[[int], Awaitable[None]] | None:
    """Return what tells the client that bytes are safe (items 128 and 147), if it may."""
    policy = request.app[SETTINGS].ietf_send_104
    if not ietf.asks_for_interim(said, policy) or not ietf.progress_interim(said):
        return None
    return lambda offset: tell(request, said, at(offset))


def state(
    request: web.Request, said: ietf.Request, state: Stored | BlobWriter
) -> dict[str, str]:
    """Return the fields that describe an upload (items 130 and 137)."""
    sidecar = state.sidecar
    complete = sidecar.status != "created"
    return {
        **ietf.offset_headers(
            said.version, offset=state.offset, length=sidecar.size, complete=complete
        ),
        **limits(request, said, None if complete else state.modified_at),
    }


def limits(
    request: web.Request, said: ietf.Request, modified_at: float | None
) -> dict[str, str]:
    """Return ``Upload-Limit``, with what is left of an upload's life unless it has none."""
    lifetime_s = None
    if modified_at is not None:
        lifetime_s = request.app[UPLOADS].expires_at(modified_at) - time.time()
    max_size = request.app[SETTINGS].upload_max_file_size
    return ietf.limits(said.version, max_size=max_size, lifetime_s=lifetime_s)


def whole(sidecar: Sidecar, size: int) -> web.Response:
    """Return what the collection answers to a file that is whole (items 129 and 145)."""
    response = file_answer(sidecar, size)
    response.headers.update({"Upload-Complete": "?1", **at(size)})
    return response


def file_answer(sidecar: Sidecar, size: int) -> web.Response:
    """Return what is said of a file that is whole. Its body may not have been read."""
    facts, location = sidecar.facts, file_url(sidecar)
    file = StoredFile(
        upload_id=sidecar.upload_id,
        location=location,
        filename=facts.filename,
        content_type=facts.content_type,
        size=size,
        status=sidecar.status,
        duplicate=any(isinstance(event, UploadDuplicate) for event in sidecar.outbox),
    )
    digest = render_digests(sidecar.digests, sidecar.wants_digest)
    headers = {"Location": location, "Cache-Control": "no-store", **digest}
    return json_response(file, status=201, headers=headers)


def file_url(sidecar: Sidecar) -> str:
    """Return where a complete upload can be fetched."""
    return f"/api/v1/storage/{sidecar.upload_id}"


def location_of(request: web.Request, sidecar: Sidecar) -> str:
    """Return the URL of an upload, as its client must use it."""
    return request.app[LOCATIONS].of(
        sidecar.upload_id, headers=request.headers, scheme=request.scheme, peer=request.remote
    )


def cause_of_failure(sidecar: Sidecar) -> str:
    """Return the code of why an upload failed."""
    last = sidecar.outbox[-1]
    return last.error_code if isinstance(last, UploadFailed) else "UPLOAD_FAILED"


def at(offset: int) -> dict[str, str]:
    """Return the field for bytes that need not be sent again (item 111)."""
    return {"Upload-Offset": str(offset)}
