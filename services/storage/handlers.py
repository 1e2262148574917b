"""Downloads and deletes over HTTP (RFC 9110)."""

from __future__ import annotations

import os
import time
from functools import partial, wraps
from math import inf
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from services.storage.claiming import Claim
from services.storage.conditions import refusal
from services.storage.disposition import content_disposition
from services.storage.errors import PreconditionFailed
from services.storage.files import FileDamaged, Files
from services.storage.openings import Opened, Openings, headers_of, validators_of
from services.storage.serving import Representation, may_redirect, serve
from services.storage.settings import Settings
from shared.blobs.store import LeaseUnavailable, Stored, UploadNotFound
from shared.errors import ApiError, NotFound, Unavailable
from shared.identity import principal_of
from shared.sidecar import SidecarDamaged

__all__ = [
    "FILES",
    "OPENINGS",
    "SETTINGS",
    "add_storage_routes",
    "explains_failures",
    "send",
]

log = structlog.stdlib.get_logger(__name__)

FILES: Final = web.AppKey("files", Files)
OPENINGS: Final = web.AppKey("openings", Openings)
SETTINGS: Final = web.AppKey("storage_settings", Settings)

_URL_S: Final = 60
"""How long a URL of the store is good at most: a client that is sent there goes at once."""

_ABOUT_DELETES: Final = ("If-Match", "If-None-Match", "If-Unmodified-Since")
"""Conditions that methods which change something must keep to."""


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
    return await send(request, await request.app[OPENINGS].open(file_id, principal_of(request)))


async def send(
    request: web.Request,
    file: Opened,
    *,
    filename: str = "",
    ends_at: float = inf,
    claim: Claim | None = None,
) -> web.StreamResponse:
    """Answer with a file, or the parts of it that were asked for, and close it.

    Args:
        request: A GET or HEAD.
        file: The file.
        filename: To save it under; empty: its own.
        ends_at: When whoever asks has no right to it any more, by this or any other way; UTC,
            seconds since the epoch.
        claim: Called before the first byte is sent; may refuse. The bytes are sent by no
            other way then, where nobody would ask.

    """
    try:
        what = Representation(
            size=file.stored.offset,
            validators=file.validators,
            headers=file.headers,
            disposition=content_disposition(filename) if filename else file.disposition,
            content_type=file.content_type,
            digests=file.stored.sidecar.digests,
            fd=file.fd,
            read=partial(request.app[FILES].read, file.stored.sidecar.upload_id),
        )
        elsewhere = None
        if claim is None and file.fd is None:  # files on a disk have no URLs
            elsewhere = partial(_elsewhere, request, file, what, ends_at)
        return await serve(
            request,
            what,
            stall_timeout_s=request.app[SETTINGS].download_stall_timeout,
            elsewhere=elsewhere,
            claim=claim,
        )
    finally:
        if file.fd is not None:
            os.close(file.fd)


async def _elsewhere(
    request: web.Request, file: Opened, what: Representation, ends_at: float
) -> str | None:
    """Return where the bytes are to be had, if not here."""
    lifetime_s = int(min(_URL_S, ends_at - time.time()))
    settings = request.app[SETTINGS]
    if settings.s3_download == "proxy" or not may_redirect(request) or lifetime_s < 1:
        return None
    return await request.app[FILES].url_of(
        file.stored,
        disposition=what.disposition,
        content_type=what.content_type,
        lifetime_s=lifetime_s,
    )


@explains_failures
async def delete(request: web.Request) -> web.StreamResponse:
    """DELETE: 204 once the file is durably gone; 404 the second time."""
    files, file_id = request.app[FILES], request.match_info["file_id"]
    if any(name in request.headers for name in _ABOUT_DELETES):
        _check_conditions(request, await files.find(file_id, principal_of(request)))
    await files.delete(file_id, principal_of(request))
    return web.Response(status=204)


def _check_conditions(request: web.Request, stored: Stored) -> None:
    """Refuse what the client wants of other bytes than these (RFC 9110, section 13.1.1).

    The bytes of an id never change, so what holds now holds until it is deleted.
    """
    own = validators_of(stored)
    if refusal(request.headers, request.method, own) is not None:
        raise PreconditionFailed(
            "The file does not meet the conditions.", headers=headers_of(own)
        )
