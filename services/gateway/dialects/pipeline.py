"""Dialect *pipeline*: all of the caller's, flat messages by ``event_type`` (seed document 002).

Where the document is silent: a cancelled upload is told as ``upload_failed`` with the code
``UPLOAD_CANCELLED``; a deleted file as ``error``; a job that waits for a worker is not told
(``processing_initiated`` says that it has begun).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from services.gateway.dialects.protocol import Dialect, Told
from services.gateway.state import Change, ProgressState
from shared.identity import Principal
from shared.times import Timestamp, now_ms, rfc3339

__all__ = ["Pipeline"]

_encoder: Final = msgspec.json.Encoder()

_KINDS: Final[Mapping[Change, str]] = {
    Change.CREATED: "upload_started",
    Change.PROGRESS: "upload_progress",
    Change.COMPLETED: "upload_completed",
    Change.FAILED: "upload_failed",
    Change.CANCELLED: "upload_failed",
    Change.EXPIRED: "session_expired",
    Change.DUPLICATE: "duplicate_detected",
    Change.DELETED: "error",
    Change.JOB_STARTED: "processing_initiated",
    Change.JOB_STAGE: "processing_progress",
    Change.JOB_PROGRESS: "processing_progress",
    Change.JOB_COMPLETED: "processing_completed",
    Change.JOB_FAILED: "processing_failed",
}
_FAILURES: Final = {"upload_failed", "session_expired", "error", "processing_failed"}
_CODES: Final = {"cancelled": "UPLOAD_CANCELLED", "deleted": "FILE_DELETED"}
"""Of what is no failure for the upload itself."""


class PipelineAuthenticate(msgspec.Struct, frozen=True):
    """Say who is calling."""

    token: str


class PipelinePing(msgspec.Struct, frozen=True, tag_field="type", tag="ping"):
    """Ask for a sign of life."""


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event_type"):
    session_id: str
    user_id: str
    filename: str
    progress_percentage: float
    timestamp: Timestamp


class _OfUpload(_Event, frozen=True, kw_only=True):
    bytes_uploaded: int
    total_bytes: Annotated[
        int | None, msgspec.Meta(description="`null` while the client defers the length")
    ]


class _OfJob(_Event, frozen=True, kw_only=True):
    job_id: str | None
    stage: Annotated[str | None, msgspec.Meta(description="What the worker does, in a word")]
    message: Annotated[str | None, msgspec.Meta(description="The worker's last word")]


class PipelineUploadStarted(_OfUpload, frozen=True, kw_only=True, tag="upload_started"):
    """An upload was opened; nothing has come yet."""


class PipelineUploadProgress(_OfUpload, frozen=True, kw_only=True, tag="upload_progress"):
    """An upload is under way."""

    upload_speed: Annotated[float, msgspec.Meta(description="Bytes per second, smoothed")]
    estimated_completion: Timestamp | None


class PipelineUploadCompleted(_OfUpload, frozen=True, kw_only=True, tag="upload_completed"):
    """All bytes of an upload are safe."""

    job_id: str | None
    redirect_url: str | None


class _WithoutFile(_OfUpload, frozen=True, kw_only=True):
    error_message: str
    error_code: str | None


class PipelineUploadFailed(_WithoutFile, frozen=True, kw_only=True, tag="upload_failed"):
    """An upload failed, or was cancelled (`UPLOAD_CANCELLED`)."""


class PipelineSessionExpired(_WithoutFile, frozen=True, kw_only=True, tag="session_expired"):
    """Nobody continued an upload in time."""


class PipelineFileDeleted(_WithoutFile, frozen=True, kw_only=True, tag="error"):
    """The file of an upload is gone."""


class PipelineDuplicate(_OfUpload, frozen=True, kw_only=True, tag="duplicate_detected"):
    """The same bytes were there already."""

    cached_result: Annotated[
        dict[str, Any] | None, msgspec.Meta(description="What came of them, if anything has")
    ]
    original_id: str | None
    redirect_url: str | None


class PipelineInitiated(_OfJob, frozen=True, kw_only=True, tag="processing_initiated"):
    """A worker has begun."""


class PipelineProcessing(_OfJob, frozen=True, kw_only=True, tag="processing_progress"):
    """The processing is under way."""

    current: int | None
    total: int | None


class PipelineProcessed(_OfJob, frozen=True, kw_only=True, tag="processing_completed"):
    """The processing is done."""

    result: dict[str, Any]


class PipelineProcessingFailed(_OfJob, frozen=True, kw_only=True, tag="processing_failed"):
    """The processing has ended without a result."""

    error_message: str
    error_code: str | None


class _Answer(msgspec.Struct, frozen=True, kw_only=True, tag_field="event_type"):
    session_id: str | None
    timestamp: Timestamp


class PipelineAuthenticated(_Answer, frozen=True, kw_only=True, tag="authenticated"):
    """The token is good."""

    message: str


class PipelinePong(_Answer, frozen=True, kw_only=True, tag="pong"):
    """A sign of life."""


class PipelineHeartbeat(_Answer, frozen=True, kw_only=True, tag="heartbeat"):
    """Nothing has happened for a while."""


class PipelineError(_Answer, frozen=True, kw_only=True, tag="error"):
    """A message was not obeyed; the socket may be closed after it."""

    error_message: str
    message: str


class Pipeline(Dialect):
    """``{"event_type","session_id",…,"timestamp"}``; what else depends on the event."""

    name = "pipeline"
    paths = ("/ws",)
    receives = (PipelineAuthenticate, PipelinePing)
    sends = (
        *(PipelineUploadStarted, PipelineUploadProgress, PipelineUploadCompleted),
        *(PipelineUploadFailed, PipelineSessionExpired, PipelineFileDeleted),
        *(PipelineDuplicate, PipelineInitiated, PipelineProcessing, PipelineProcessed),
        *(PipelineProcessingFailed, PipelineAuthenticated, PipelinePong),
        *(PipelineHeartbeat, PipelineError),
    )

    def encode(
        self, change: Change, state: ProgressState, told: Told | None = None
    ) -> bytes | None:
        """Return the event about a change; of a snapshot, the newest one that stands."""
        kind = _newest(state) if change is Change.SNAPSHOT else _KINDS.get(change)
        if kind is None:
            return None
        of_job = kind.startswith("processing_")
        fields: dict[str, Any] = {
            "event_type": kind,
            "session_id": state.session_id,
            "user_id": state.user_id,
            "filename": state.filename,
            **(_of_job(kind, state) if of_job else _of_upload(kind, state)),
        }
        if kind in _FAILURES:
            fields["error_message"] = state.processing_trouble if of_job else state.trouble
            code = state.job_error_code if of_job else state.error_code
            fields["error_code"] = code or _CODES.get(state.status)
        at = state.job_updated if of_job else state.last_updated
        fields["timestamp"] = rfc3339(at or state.last_updated)
        return _encoder.encode(fields)

    def reply(
        self, kind: str, *, subject: str, caller: Principal | None, data: dict[str, Any]
    ) -> bytes:
        """Return an answer, flat as the events are."""
        if kind == "error":
            data = {"error_message": data.get("message"), **data}
        about = {"event_type": kind, "session_id": subject or None}
        return _encoder.encode({**data, **about, "timestamp": rfc3339(now_ms())})

    def heartbeat(self) -> bytes:
        """Return the sign that the connection is alive (002:228)."""
        return self.reply("heartbeat", subject="", caller=None, data={})


def _newest(state: ProgressState) -> str:
    """Return the event that a client would have had last."""
    if state.status == "deleted":
        return "error"
    if state.status != "completed":
        if state.status == "error" and state.error_code == "SESSION_EXPIRED":
            return "session_expired"
        begun = "upload_progress" if state.bytes_uploaded else "upload_started"
        return begun if state.status == "uploading" else "upload_failed"
    if state.job_is_over:
        return f"processing_{state.job_status}"
    if state.job_status == "in_progress":
        return "processing_progress" if state.job_progress else "processing_initiated"
    return "duplicate_detected" if state.duplicate_of else "upload_completed"


def _of_upload(kind: str, state: ProgressState) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "progress_percentage": state.percentage,
        "bytes_uploaded": state.bytes_uploaded,
        "total_bytes": state.total_bytes,
    }
    if kind == "upload_progress":
        fields["upload_speed"] = round(state.upload_speed, 1)
        fields["estimated_completion"] = state.estimated_completion
    elif kind == "upload_completed":
        fields["job_id"] = state.job_id
        fields["redirect_url"] = state.redirect_url
    elif kind == "duplicate_detected":
        fields["cached_result"] = state.result
        fields["original_id"] = state.duplicate_of
        fields["redirect_url"] = state.redirect_url
    return fields


def _of_job(kind: str, state: ProgressState) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "job_id": state.job_id,
        "progress_percentage": state.job_progress or 0.0,
        "stage": state.stage,
        "message": state.message,
    }
    if kind == "processing_progress":
        fields["current"] = state.current
        fields["total"] = state.total
    elif kind == "processing_completed":
        fields["result"] = state.result if state.result is not None else {}
    return fields
