"""The upload by form over HTTP (seed document 002): one form a request, in JSON answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import Final

import structlog
from aiohttp import web

from services.ingest.errors import ContentMismatch, FileRefused
from services.ingest.form_answer import (
    FormAnswer,
    SessionCancelled,
    SessionData,
    status_code_of,
)
from services.ingest.form_reader import FormReader
from services.ingest.form_sessions import FormSessions
from services.ingest.form_uploads import FormUploads
from services.ingest.handlers import SETTINGS, UPLOADS
from services.ingest.progress import ProgressReporter
from services.ingest.refusals import refusing
from services.ingest.request_body import close_uninvited, invite_later
from services.ingest.sessions import SessionNames
from services.ingest.settings import Settings
from shared.errors import ApiError
from shared.identity import principal_of
from shared.rate_limit import count_too, counts_as
from shared.web import json_response, problem

__all__ = ["FORM_SESSIONS", "FORM_UPLOADS", "add_form_routes", "provide_forms"]

log = structlog.stdlib.get_logger(__name__)

FORM_UPLOADS: Final = web.AppKey("form_uploads", FormUploads)
FORM_SESSIONS: Final = web.AppKey("form_sessions", FormSessions)

_PREFIX: Final = "/v1/upload/"
_COLLECTION: Final = _PREFIX + "{kind:video|csv|file}"
_SESSION: Final = _COLLECTION + "/session/{session_id}"

Handler = Callable[[web.Request], Awaitable[web.Response]]


def add_form_routes(app: web.Application) -> None:
    """Register uploads and their sessions."""
    app.on_response_prepare.append(_close_uninvited)
    router = app.router
    router.add_route("POST", _COLLECTION, receive_form, expect_handler=invite_later)
    router.add_get(_SESSION, read_session)
    router.add_delete(_SESSION, cancel_session)


def provide_forms(
    app: web.Application, *, names: SessionNames, progress: ProgressReporter, settings: Settings
) -> None:
    """Put what the handlers need into the application, which has ``UPLOADS`` already."""
    sessions = app[FORM_SESSIONS] = FormSessions(
        app[UPLOADS],
        names=names,
        progress=progress,
        max_file_size=settings.upload_max_file_size,
    )
    app[FORM_UPLOADS] = FormUploads(sessions, progress=progress, settings=settings)


async def _close_uninvited(request: web.Request, response: web.StreamResponse) -> None:
    """Close after every answer to a form that nobody has asked for, also to a stranger's."""
    if request.path.startswith(_PREFIX):
        close_uninvited(request, response)


def _refusing(handler: Handler) -> Handler:
    """Answer refusals; close after one that comes before the body was read."""

    @wraps(handler)
    async def wrapped(request: web.Request) -> web.Response:
        try:
            with refusing():
                response = await handler(request)
        except ApiError as exc:
            response = problem(exc)
        response.headers["Cache-Control"] = "no-store"
        if not request.content.is_eof():
            response.force_close()
        return response

    return wrapped


@counts_as("change")
@_refusing
async def receive_form(request: web.Request) -> web.Response:
    """POST: take a file, or a chunk of one; 202 while chunks are missing, then 201."""
    settings = request.app[SETTINGS]
    reader = FormReader(
        request,
        idle_s=settings.upload_idle_timeout,
        max_file_size=settings.upload_max_file_size,
    )
    try:
        data = await request.app[FORM_UPLOADS].receive(
            reader,
            request.match_info["kind"],
            principal_of(request),
            admit=partial(count_too, request, "create"),
        )
    finally:
        await reader.close()
    log.info(
        "form_received",
        upload_id=data.upload_id,
        chunks=data.chunks_received,
        total=data.total_chunks,
    )
    return json_response(FormAnswer(data=_accepted(data)), status=status_code_of(data))


_MISMATCH: Final = ContentMismatch.error_code


def _accepted(data: SessionData) -> SessionData:
    """Return the state, unless the upload has failed: then each form is told so."""
    if data.status == "failed":
        kind = ContentMismatch if data.error_code == _MISMATCH else FileRefused
        raise kind(
            data.error_message or "The upload failed.",
            error_code=data.error_code,
            details={"session_id": data.session_id},
        )
    return data


@_refusing
async def read_session(request: web.Request) -> web.Response:
    """GET: how far the session is, and which chunks to send yet."""
    data = await request.app[FORM_SESSIONS].state(
        request.match_info["session_id"], request.match_info["kind"], principal_of(request)
    )
    return json_response(FormAnswer(data=data))


@_refusing
async def cancel_session(request: web.Request) -> web.Response:
    """DELETE: cancel the session and remove what came of it."""
    await request.app[FORM_SESSIONS].cancel(
        request.match_info["session_id"], request.match_info["kind"], principal_of(request)
    )
    return json_response(SessionCancelled())
