"""An upload's whole state, as clients of dialect *events* get it. No I/O."""

from __future__ import annotations

from typing import Any

import msgspec

from services.gateway.state import ProgressState
from shared.times import Timestamp, rfc3339

__all__ = ["Snapshot", "snapshot_of"]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """How far an upload and its processing are. Sizes are bytes."""

    session_id: str
    seq: int
    """The newest event of the upload that it tells of; 0: none."""
    user_id: str
    tenant: str
    status: str
    """``uploading``, ``completed``, ``error``, ``cancelled`` or ``deleted``."""
    percentage: float
    bytes_uploaded: int
    total_bytes: int | None
    upload_speed: float
    estimated_completion: Timestamp | None
    filename: str
    content_type: str
    started_at: Timestamp
    last_updated: Timestamp
    completed_at: Timestamp | None
    video_id: str | None
    analysis_id: str | None
    redirect_url: str | None
    error_message: str | None
    error_code: str | None
    metadata: dict[str, str]
    duplicate_of: str | None
    job_id: str | None
    job_seq: int
    """The newest event of the job that it tells of; 0: none."""
    job_status: str | None
    """``queued``, ``in_progress``, ``completed``, ``failed``; ``None`` before."""
    stage: str | None
    job_progress: float | None
    message: str | None
    current: int | None
    total: int | None
    result: dict[str, Any] | None
    job_error_code: str | None
    job_updated: Timestamp | None


def snapshot_of(state: ProgressState) -> Snapshot:
    """Return what clients get of a state."""
    fields: dict[str, Any] = {name: getattr(state, name) for name in Snapshot.__struct_fields__}
    for name in ("started_at", "last_updated", "completed_at", "job_updated"):
        at = fields[name]
        fields[name] = rfc3339(at) if at is not None else None
    return Snapshot(**fields)
