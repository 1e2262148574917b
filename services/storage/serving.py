"""Answers a GET or HEAD for bytes that are there (RFC 9110), safe to show to a browser.

Knows neither files nor links: it is told what the bytes are, and where they come from.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec
import structlog
from aiohttp import web
from msgspec.structs import replace
from multidict import CIMultiDict
from prometheus_client import Counter

from services.storage.claiming import Claim, Read, claim_at_first, claim_readable
from services.storage.conditions import Validators, field
from services.storage.errors import PreconditionFailed, RangeNotSatisfiable
from services.storage.gathering import gathered
from services.storage.multipart import Layout, Part, several, single
from services.storage.ranges import Selection, Span, content_range, select
from services.storage.repr_digest import repr_digest
from services.storage.sendfile import abort, duplicate, send_file
from services.storage.streaming import opened
from shared.blobs.store import UploadNotFound
from shared.web import problem

__all__ = ["Representation", "may_redirect", "serve"]

log = structlog.stdlib.get_logger(__name__)

SENT = Counter("storage_bytes_total", "Bytes of files sent.")

_EXACT: Final = ("If-Match", "If-Unmodified-Since", "If-Range")
"""Conditions that a client repeats where it is redirected to, and that only we can judge."""


class Representation(msgspec.Struct, frozen=True):
    """Bytes that can be read until their descriptor is closed, and what is told of them."""

    size: int
    validators: Validators
    headers: CIMultiDict[str]
    """Of every answer about them."""
    disposition: str
    """Safe in a header."""
    content_type: str
    """Safe to serve."""
    digests: Mapping[str, str]
    """Of all bytes, hex, by algorithm."""
    fd: int | None
    """``None``: the bytes come from ``read``."""
    read: Read


async def serve(
    request: web.Request,
    what: Representation,
    *,
    stall_timeout_s: float,
    elsewhere: Callable[[], Awaitable[str | None]] | None = None,
    claim: Claim | None = None,
) -> web.StreamResponse:
    """Answer with all of it, the parts of it that were asked for, or why not.

    Args:
        request: A GET or HEAD.
        what: The bytes.
        stall_timeout_s: Seconds that a client may take to accept 4 KiB.
        elsewhere: Called once bytes are to be sent. If it returns a URL, the client is sent
            there for them.
        claim: Called when the first bytes are at hand, before they are sent; may refuse.

    Raises:
        ApiError: ``claim`` has refused.
        UploadNotFound, OSError: The bytes cannot be read, and nothing was sent.

    """
    selection = select(
        headers=request.headers,
        method=request.method,
        size=what.size,
        validators=what.validators,
    )
    response, layout = _response(request, what, selection)
    if request.method == "GET" and layout is not None:
        if elsewhere is not None and (url := await elsewhere()):
            return _redirect(what, url)
        if claim is not None:
            what = await _claimed(what, layout.parts[0].span, claim)
        try:
            await _send(request, response, layout, what, stall_timeout_s)
        except (OSError, UploadNotFound) as exc:
            if isinstance(exc, ConnectionError) or not response.prepared:
                raise
            _cut(request, exc)
    return response  # of which aiohttp sends what has not been sent, and ends it


def _cut(request: web.Request, why: Exception) -> None:
    """End the connection: whatever were answered now would be taken for bytes of the file."""
    log.error("store_failed_in_a_download", error=repr(why))
    transport = request.transport
    if transport is not None and not transport.is_closing():
        with duplicate(transport) as sock:
            abort(transport, sock)


async def _claimed(what: Representation, first: Span, claim: Claim) -> Representation:
    """Claim the bytes, or have them claimed as the first of them come."""
    if not first.length:
        await claim()
    elif what.fd is None:
        return replace(what, read=claim_at_first(what.read, claim))
    else:
        await claim_readable(what.fd, first.start, claim)
    return what


def may_redirect(request: web.Request) -> bool:
    """Tell whether somebody who does not know our tags and times can answer a request."""
    return not any(name in request.headers for name in _EXACT)


def _redirect(what: Representation, url: str) -> web.Response:
    headers = CIMultiDict(what.headers)
    for name in ("Accept-Ranges", "ETag", "Last-Modified"):
        headers.pop(name, None)
    headers["Cache-Control"] = "no-store"
    headers["Location"] = url
    return web.Response(status=307, headers=headers)


async def _send(
    request: web.Request,
    response: web.StreamResponse,
    layout: Layout,
    what: Representation,
    stall_s: float,
) -> None:
    """Send head and body of an answer, until the client has gone or the store has failed."""
    if what.fd is None and len(layout.parts) > 1:
        async with gathered(what.read, [part.span for part in layout.parts]) as read:
            near = replace(what, read=read)
            await _send_parts(request, response, layout, near, stall_s)
    else:
        await _send_parts(request, response, layout, what, stall_s)


async def _send_parts(
    request: web.Request,
    response: web.StreamResponse,
    layout: Layout,
    what: Representation,
    stall_s: float,
) -> None:
    for part in layout.parts:
        start, length = part.span
        if what.fd is None:
            sent = await _send_pieces(request, response, part, what, stall_s)
        else:
            if part.head:
                await _write_head(request, response, part)
            sent = await send_file(
                request, response, what.fd, start, length, stall_timeout_s=stall_s
            )
        SENT.inc(sent)
        if sent < length:
            return
    if layout.end:
        await response.write(layout.end)


async def _send_pieces(
    request: web.Request,
    response: web.StreamResponse,
    part: Part,
    what: Representation,
    stall_s: float,
) -> int:
    """Send a part of what the store has no file of; return the store's bytes of it."""
    start, length = part.span
    if not length:
        return 0
    async with opened(what.read(start, length)) as pieces:
        await _write_head(request, response, part)
        return await pieces.send(request, response, length, stall_timeout_s=stall_s)


async def _write_head(request: web.Request, response: web.StreamResponse, part: Part) -> None:
    if not response.prepared:
        await response.prepare(request)
    if part.head:
        await response.write(part.head)


def _response(
    request: web.Request, what: Representation, selection: Selection
) -> tuple[web.StreamResponse, Layout | None]:
    """Return the answer, and what belongs in its body if that is bytes of the file."""
    status, spans = selection.status, selection.spans
    if not spans:
        return _without_bytes(what, status), None
    response = web.StreamResponse(status=status, headers=what.headers)
    headers = response.headers
    if len(spans) > 1:
        layout = several(spans, what.size, what.content_type)
    else:
        layout = single(spans[0], what.content_type)
        if status == 206:
            headers["Content-Range"] = content_range(spans[0], what.size)
    headers["Content-Length"] = str(layout.length)
    headers["Content-Type"] = layout.content_type
    headers["Content-Disposition"] = what.disposition
    if what.digests:
        wish = field(request.headers, "Want-Repr-Digest")
        if digest := repr_digest(what.digests, wish):
            headers["Repr-Digest"] = digest
    return response, layout


def _without_bytes(what: Representation, status: int) -> web.StreamResponse:
    """Return a 304, or a refusal."""
    if status == 304:
        return web.StreamResponse(status=status, headers=what.headers)
    if status == 412:
        refusal = problem(PreconditionFailed("The file does not meet the conditions."))
    else:
        size = what.size
        refusal = problem(
            RangeNotSatisfiable(f"The file has {size} bytes, none in this range.")
        )
        refusal.headers["Content-Range"] = f"bytes */{size}"
    refusal.headers.update(what.headers)
    return refusal
