"""Answers a GET or HEAD for bytes that are there (RFC 9110), safe to show to a browser.

Knows neither files nor links: it is told what the bytes are, and where they come from.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

import structlog
from aiohttp import web
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


class Representation(NamedTuple):
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
            sent_all = await _send(request, response, layout, what, stall_timeout_s)
        except (OSError, UploadNotFound) as exc:
            if isinstance(exc, ConnectionError) or not response.prepared:
                raise
            _cut(request, exc)
            sent_all = False
    else:
        await response.prepare(request)
        sent_all = True
    if sent_all:  # else the client has gone, or the store; the connection is cut
        await response.write_eof()
    return response


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
        return what._replace(read=claim_at_first(what.read, claim))
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
) -> bool:
    """Send head and body of an answer; return whether all of it went out."""
    if what.fd is None and len(layout.parts) > 1:
        async with gathered(what.read, [part.span for part in layout.parts]) as read:
            near = what._replace(read=read)
            return await _send_parts(request, response, layout, near, stall_s)
    return await _send_parts(request, response, layout, what, stall_s)


async def _send_parts(
    request: web.Request,
    response: web.StreamResponse,
    layout: Layout,
    what: Representation,
    stall_s: float,
) -> bool:
    for part in layout.parts:
        length = part.span.length
        sent = await _send_part(request, response, part, what, stall_s)
        SENT.inc(sent)
        if sent < length:
            return False
    if layout.end:
        await response.write(layout.end)
    return True


async def _send_part(
    request: web.Request,
    response: web.StreamResponse,
    part: Part,
    what: Representation,
    stall_s: float,
) -> int:
    """Send a part, the head of the answer before the first; return the file's bytes of it."""
    start, length = part.span
    if what.fd is None and length:
        async with opened(what.read(start, length)) as pieces:
            await _write_head(request, response, part)
            return await pieces.send(request, response, length, stall_timeout_s=stall_s)
    await _write_head(request, response, part)
    if what.fd is None or not length:
        return 0
    return await send_file(request, response, what.fd, start, length, stall_timeout_s=stall_s)


async def _write_head(request: web.Request, response: web.StreamResponse, part: Part) -> None:
    if not response.prepared:
        await response.prepare(request)
    if part.head:
        await response.write(part.head)


def _response(
    request: web.Request, what: Representation, selection: Selection
) -> tuple[web.StreamResponse, Layout | None]:
    """Return the answer, and what belongs in its body if that is bytes of the file."""
    response, layout = _begun(what, selection)
    response.headers.update(what.headers)
    if layout is not None:
        wish = field(request.headers, "Want-Repr-Digest")
        if digest := repr_digest(what.digests, wish):
            response.headers["Repr-Digest"] = digest
    return response, layout


def _begun(
    what: Representation, selection: Selection
) -> tuple[web.StreamResponse, Layout | None]:
    """Return the answer with what depends on the status: a file's headers, or a refusal."""
    size = what.size
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
        layout = several(selection.spans, size, what.content_type)
    else:
        layout = single(first, what.content_type)
        if selection.status == 206:
            response.headers["Content-Range"] = content_range(first, size)
    response.content_length = layout.length
    response.headers["Content-Type"] = layout.content_type
    response.headers["Content-Disposition"] = what.disposition
    return response, layout
