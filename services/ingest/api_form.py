"""What ingest offers to those who upload by form (seed document 002)."""

from __future__ import annotations

from typing import Any, Final, Literal

from services.ingest import errors
from services.ingest.form_answer import FormAnswer, SessionCancelled
from shared.errors import InvalidRequest, NotFound, PayloadTooLarge, StorageFull, Unavailable
from shared.operations import JSON, Body, Header, Kind, Operation, Parameter, Response, Section

__all__ = ["FORMS"]

_NO_STORE: Final = (
    Header("Cache-Control", str, "`no-store`, but for those who are not let in", always=False),
)
_SESSION: Final = Parameter(
    "session_id", "path", str, "The client's own name for the session, or the upload's id."
)
_BYTES: Final = {"type": "string", "format": "binary"}


def _field(schema: dict[str, Any], meaning: str) -> dict[str, Any]:
    return {**schema, "description": meaning}


_NUMBER: Final = {"type": "integer", "minimum": 0}
_FORM: Final[Kind] = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": _field(_BYTES, "The whole file, or one chunk; before or after the fields."),
        "session_id": _field(
            {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
            "Names the session; left out with the first chunk, the answer names it.",
        ),
        "chunk_index": _field(
            _NUMBER, "Which chunk this is, from 0; left out: the whole file."
        ),
        "total_chunks": _field({**_NUMBER, "minimum": 1}, "How many there are."),
        "file_hash": _field(
            {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"},
            "SHA-256 of the whole file, in hex.",
        ),
        "options": _field({"type": "string"}, "A JSON object for the processing."),
        "priority": _field({"type": "integer", "minimum": 1, "maximum": 10}, "10 is highest."),
    },
}
_STATE: Final[dict[str, Kind]] = {JSON: FormAnswer}
_STORE: Final = (NotFound, errors.Gone, errors.Locked, Unavailable)
_RECEIVING: Final = (
    InvalidRequest,
    errors.UnsupportedMediaType,
    errors.ContentMismatch,
    errors.HashMismatch,
    errors.SessionMismatch,
    errors.ChunkConflict,
    errors.SessionOver,
    errors.FileRefused,
    errors.BodyStalled,
    PayloadTooLarge,
    errors.QuotaExceeded,
    StorageFull,
    *_STORE,
)
_CODES: Final = {"SESSION_CANCELLED": "410: The session was cancelled. Open another one."}


_PATH: Final = "/v1/upload/{kind}"
_KIND: Final = Parameter(
    "kind", "path", Literal["video", "csv", "file"], "What the content must turn out to be."
)
_AS_CALLER: Final = '-H "Authorization: Bearer $TOKEN"'

FORMS: Final = Section(
    "Upload by form",
    "For browsers' forms and simple clients: `multipart/form-data`, whole files or chunks. A "
    "chunk that was answered is on stable storage; after a break ask for the session, and send "
    "what is missing.",
    (
        Operation(
            name="send_form",
            method="POST",
            path=_PATH,
            summary="Send a file, or a chunk of it",
            about="Chunks may come in any order, at the same time, and more than once. The "
            "answer to each says which are missing yet.",
            parameters=(_KIND,),
            body=Body({"multipart/form-data": _FORM}, "One form a request."),
            headers=_NO_STORE,
            responses={
                200: Response("The same bytes were there already.", media=_STATE),
                201: Response("The file is whole.", media=_STATE),
                202: Response("It is kept; more is to come, or to be checked.", media=_STATE),
            },
            errors=_RECEIVING,
            codes=_CODES,
            examples=(
                f"curl -F file=@film.mp4 {_AS_CALLER} $URL/v1/upload/video",
                "curl -F session_id=mine -F chunk_index=0 -F total_chunks=2 -F file=@part0 \\\n"
                f"  {_AS_CALLER} $URL/v1/upload/video",
            ),
        ),
        Operation(
            name="read_session",
            method="GET",
            path=_PATH + "/session/{session_id}",
            summary="Ask which chunks are missing",
            parameters=(_KIND, _SESSION),
            headers=_NO_STORE,
            responses={200: Response("So far.", media=_STATE)},
            errors=_STORE,
            codes=_CODES,
            examples=(f"curl {_AS_CALLER} $URL/v1/upload/video/session/mine",),
        ),
        Operation(
            name="cancel_session",
            method="DELETE",
            path=_PATH + "/session/{session_id}",
            summary="Cancel an upload, and remove what came of it",
            parameters=(_KIND, _SESSION),
            headers=_NO_STORE,
            responses={200: Response("It is gone.", media={JSON: SessionCancelled})},
            errors=(*_STORE, errors.SessionOver, StorageFull),
            examples=(f"curl -X DELETE {_AS_CALLER} $URL/v1/upload/video/session/mine",),
        ),
    ),
)
