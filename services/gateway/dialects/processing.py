"""Dialect *processing*: what happens to one uploaded file (seed document 003).

Everybody of a tenant may watch the tenant's uploads (003:30). Where the document is silent: a
job that waits is ``pending``; what has failed has the status ``failed``, then comes the
``error``; and a client that is late gets the last status, and the results or the error again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from services.gateway.dialects.protocol import Dialect, Malformed, Ping, Request, Told
from services.gateway.state import Change, ProgressState, tells_of_processing
from shared.identity import Principal

__all__ = ["Processing"]

_encoder: Final = msgspec.json.Encoder()

_NAMES: Final = {"queued": "pending", "in_progress": "processing"}
"""States of a job that this document calls otherwise."""
_MESSAGES: Final = {
    "pending": "Waiting for processing",
    "validating": "Validating",
    "processing": "Processing",
    "completed": "Upload processing complete!",
}


class ProcessingAuthenticate(msgspec.Struct, frozen=True, tag_field="type", tag="authenticate"):
    """Say who is calling; also to go on when the token is about to end."""

    token: str


class ProcessingPing(msgspec.Struct, frozen=True, tag_field="type", tag="ping"):
    """Ask for a sign of life."""

    timestamp: float | str | msgspec.UnsetType = msgspec.UNSET


class ProcessingAuthenticated(
    msgspec.Struct, frozen=True, tag_field="type", tag="authenticated"
):
    """The token is good; the status follows, if the upload may be watched."""

    message: str


class ProcessingStatus(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="status"
):
    """Where the processing is: at the beginning, and whenever that changes."""

    status: Literal["pending", "validating", "processing", "completed", "failed"]
    message: str
    progress: Annotated[float, msgspec.Meta(description="Percent")]
    rows_processed: Annotated[int, msgspec.Meta(description="0 where nothing is counted")]
    total_rows: Annotated[int, msgspec.Meta(description="0 where nothing is counted")]
    stage: Annotated[str | None, msgspec.Meta(description="What the worker does, in a word")]


class ProcessingProgress(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="progress"
):
    """How far the processing is."""

    percent: float
    message: str
    current: Annotated[int, msgspec.Meta(description="0 where nothing is counted")]
    total: Annotated[int, msgspec.Meta(description="0 where nothing is counted")]
    stage: str | None


class ProcessingComplete(msgspec.Struct, frozen=True, tag_field="type", tag="complete"):
    """The processing is done."""

    message: str
    results: Annotated[
        dict[str, Any], msgspec.Meta(description="As the worker reports them; with `upload_id`")
    ]


class ProcessingError(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    """There will be no results, or a message was not obeyed."""

    message: str
    details: Annotated[str, msgspec.Meta(description="A code, or empty")]


class ProcessingPong(msgspec.Struct, frozen=True, tag_field="type", tag="pong"):
    """A sign of life, with the timestamp of the ping."""

    timestamp: float | str | None


class Processing(Dialect):
    """``{"type":"status"|"progress"|"error"|"complete"|"pong"|"authenticated",…}``."""

    name = "processing"
    paths = ("/ws/processing/{upload_id}", "/ws/processing/{upload_id}/")
    receives = (ProcessingAuthenticate, ProcessingPing)
    sends = (
        *(ProcessingAuthenticated, ProcessingStatus, ProcessingProgress),
        *(ProcessingComplete, ProcessingError, ProcessingPong),
    )
    whole_tenant = True
    says_authenticated = True

    def encode(
        self, change: Change, state: ProgressState, told: Told | None = None
    ) -> tuple[bytes, ...] | None:
        """Return the status where it changes, the progress, and how it has ended.

        Status and end come together, as the helpers of the document send them (003:88).
        """
        if not tells_of_processing(change, state):
            return None
        if change is Change.JOB_PROGRESS:
            return (_progress(state),)
        if change is Change.JOB_STAGE:
            return _status(state), _progress(state)
        if state.processing == "completed":
            return _status(state), _complete(state)
        if state.processing == "failed":
            return _status(state), _error(state)
        return (_status(state),)

    def request(self, kind: str, fields: Mapping[str, Any]) -> Request | None:
        """Return a ping with the timestamp that its answer repeats."""
        if kind != "ping":
            return None
        timestamp = fields.get("timestamp")
        if isinstance(timestamp, list | dict):
            return Malformed("timestamp must be a number or a string.")
        return Ping({"timestamp": timestamp})

    def reply(
        self, kind: str, *, subject: str, caller: Principal | None, data: dict[str, Any]
    ) -> bytes:
        """Return an answer: its type, and what it says."""
        more = {"details": ""} if kind == "error" else {}
        return _encoder.encode({"type": kind, **more, **data})


def _status(state: ProgressState) -> bytes:
    status = _NAMES.get(state.processing, state.processing)
    if status == "processing" and state.stage == "validating":
        status = "validating"
    if status == "failed":
        message = state.processing_trouble
    else:
        message = state.message or _MESSAGES.get(status, "")
    done = status == "completed"
    return _encoder.encode(
        {
            "type": "status",
            "status": status,
            "message": message,
            "progress": 100.0 if done else state.job_progress or 0.0,
            "rows_processed": state.current or 0,
            "total_rows": state.total or 0,
            "stage": state.stage,
        }
    )


def _progress(state: ProgressState) -> bytes:
    return _encoder.encode(
        {
            "type": "progress",
            "percent": state.job_progress or 0.0,
            "message": state.message or "",
            "current": state.current or 0,
            "total": state.total or 0,
            "stage": state.stage,
        }
    )


def _complete(state: ProgressState) -> bytes:
    message = state.message or _MESSAGES["completed"]
    results = {"upload_id": state.session_id, **(state.result or {})}
    return _encoder.encode({"type": "complete", "message": message, "results": results})


def _error(state: ProgressState) -> bytes:
    code = state.job_error_code if state.job_status == "failed" else state.error_code
    return _encoder.encode(
        {"type": "error", "message": state.processing_trouble, "details": code or ""}
    )
