"""What the upload by form answers: members as seed document 002 and the contract name them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, TypeVar

import msgspec

from services.ingest.form import missing_chunks, total_chunks_of
from shared.blobs.store import Chunk
from shared.events import UploadCompleted, UploadDuplicate, UploadFailed
from shared.percent import percent_of
from shared.sidecar import Sidecar

__all__ = ["FormAnswer", "SessionCancelled", "SessionData", "data_of", "status_code_of"]

E = TypeVar("E")

SessionStatus = Literal["active", "quarantined", "completed", "failed", "cancelled", "expired"]

_STATES: Final[dict[str, SessionStatus]] = {
    "created": "active",
    "quarantined": "quarantined",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
    "expired": "expired",
    "deleted": "cancelled",
}


class SessionData(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a session."""

    upload_id: str
    session_id: str
    """The client's own name for the session if it has one, else the upload's id."""
    filename: str
    status: SessionStatus
    progress_percentage: float
    """Percent; 100.0 only when all bytes are safe."""
    chunks_received: int
    total_chunks: int
    """1 if the file comes whole."""
    missing_chunks: list[int]
    """Indexes still to be sent."""
    video_id: str | None
    """Set once the file is whole, as the two that follow."""
    analysis_id: str | None
    redirect_url: str | None
    duplicate: bool
    """The same bytes were there already."""
    cached_result: dict[str, Any] | None
    """The finished analysis of those bytes, when there is one."""
    error_code: str | None = None
    """Why the upload failed, if it did."""
    error_message: str | None = None


class FormAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Body of every good answer that tells a state."""

    success: Literal[True] = True
    data: SessionData


class SessionCancelled(msgspec.Struct, frozen=True, kw_only=True):
    """Body of the answer to ``DELETE``."""

    success: Literal[True] = True
    message: str = "Upload session cancelled and cleaned up"


def data_of(sidecar: Sidecar, chunks: Sequence[Chunk], offset: int) -> SessionData:
    """Return the state of a session.

    Args:
        sidecar: Its record.
        chunks: What has come of it apart from the rest; of no use once it is complete.
        offset: Bytes that are there of a file that comes whole.

    """
    total = total_chunks_of(sidecar)
    all_there = sidecar.status in {"completed", "quarantined"}
    done = sidecar.status == "completed"
    received = range(total or 1) if all_there else {one.index for one in chunks}
    duplicate = _last(sidecar, UploadDuplicate)
    completed = _last(sidecar, UploadCompleted)
    failed = _last(sidecar, UploadFailed)
    return SessionData(
        upload_id=sidecar.upload_id,
        session_id=(sidecar.form.session_id if sidecar.form else "") or sidecar.upload_id,
        filename=sidecar.facts.filename,
        status=_STATES[sidecar.status],
        progress_percentage=percent_of(len(received), total, complete=done)
        if total
        else percent_of(offset, sidecar.size, complete=done),
        chunks_received=len(received),
        total_chunks=total or 1,
        missing_chunks=missing_chunks(total or 1, received),
        video_id=sidecar.upload_id if done else None,
        analysis_id=sidecar.facts.job_id if done else None,
        redirect_url=_redirect_url(sidecar, completed) if done else None,
        duplicate=bool(sidecar.original_id) or duplicate is not None,
        cached_result=duplicate.cached_result if duplicate is not None else None,
        error_code=failed.error_code if failed is not None else None,
        error_message=failed.error_message if failed is not None else None,
    )


def _redirect_url(sidecar: Sidecar, completed: UploadCompleted | None) -> str:
    known = completed.redirect_url if completed is not None else ""
    return known or f"/dashboard/videos/{sidecar.upload_id}/results"


def _last(sidecar: Sidecar, kind: type[E]) -> E | None:
    found = [event for event in sidecar.outbox if isinstance(event, kind)]
    return found[-1] if found else None


def status_code_of(data: SessionData) -> int:
    """Return the status of the answer to a form that was accepted."""
    if data.status != "completed":
        return 202
    return 200 if data.duplicate else 201
