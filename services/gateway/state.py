"""What clients are told of an upload, and how events change it. No I/O.

One ``ProgressState`` is what the projection in Redis holds and what every dialect encodes.
Folding never goes backwards: an event whose ``seq`` is known changes nothing, a position
behind the known one neither, and after the end no position counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import Final

import msgspec

from shared import events
from shared.events import LifecycleEvent, MalformedEvent, UploadProgress
from shared.percent import percent_of
from shared.times import rfc3339

__all__ = [
    "Change",
    "ProgressState",
    "change_of",
    "fold",
    "from_fields",
    "move",
    "require_writable",
    "to_fields",
]


class Change(Enum):
    """What a message tells about."""

    SNAPSHOT = "snapshot"
    CREATED = "created"
    PROGRESS = "progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DUPLICATE = "duplicate"
    STORED = "stored"
    DELETED = "deleted"
    JOB = "job"


class ProgressState(msgspec.Struct, frozen=True, kw_only=True):
    """An upload as clients see it. Sizes are bytes; times UTC, milliseconds since the epoch."""

    session_id: str
    seq: int
    """The newest lifecycle event in it."""
    user_id: str
    tenant: str
    status: str
    """``uploading``, ``completed``, ``error``, ``cancelled``; or ``deleted``, for a while."""
    bytes_uploaded: int
    total_bytes: int | None
    upload_speed: float
    """Bytes per second; 0 while nothing arrives."""
    filename: str
    content_type: str
    started_at: int
    last_updated: int
    completed_at: int | None = None
    video_id: str | None = None
    analysis_id: str | None = None
    redirect_url: str | None = None
    error_message: str | None = None
    error_code: str | None = None
    metadata: dict[str, str] = {}

    @property
    def is_over(self) -> bool:
        """Whether no position can change it any more."""
        return self.status != "uploading"

    def is_ahead_of(self, other: ProgressState) -> bool:
        """Whether it tells something that ``other``, of the same upload, does not."""
        return (self.seq, self.bytes_uploaded) > (other.seq, other.bytes_uploaded)

    @property
    def percentage(self) -> float:
        """Percent of the bytes; exactly 100.0 once all were safe, also after a deletion."""
        complete = self.status == "completed" or self.completed_at is not None
        return percent_of(self.bytes_uploaded, self.total_bytes, complete=complete)

    @property
    def estimated_completion(self) -> str | None:
        """When the last byte will be there at this speed, RFC 3339; ``None``: unknown."""
        if self.is_over or self.total_bytes is None or self.upload_speed < 1.0:
            return None
        left_ms = 1000 * (self.total_bytes - self.bytes_uploaded) / self.upload_speed
        if left_ms > _LONGEST_MS:
            return None
        return rfc3339(self.last_updated + max(int(left_ms), 0))


_LONGEST_MS: Final = 365 * 86_400_000
"""An estimate beyond a year is none."""
_LATEST_MS: Final = 250_000_000_000_000
"""In the year 9892: with an estimate on top it can still be written as RFC 3339."""
_LARGEST: Final = 2**63 - 1
"""Bytes. No store holds more, and beyond it not every client's numbers reach."""

_CHANGES: Final[Mapping[type, Change]] = {
    events.UploadCreated: Change.CREATED,
    events.UploadCompleted: Change.COMPLETED,
    events.UploadFailed: Change.FAILED,
    events.UploadCancelled: Change.CANCELLED,
    events.UploadExpired: Change.EXPIRED,
    events.UploadDuplicate: Change.DUPLICATE,
    events.FileStored: Change.STORED,
    events.FileDeleted: Change.DELETED,
}
_STATUS: Final[Mapping[Change, str]] = {
    Change.COMPLETED: "completed",
    Change.DUPLICATE: "completed",
    Change.FAILED: "error",
    Change.EXPIRED: "error",
    Change.CANCELLED: "cancelled",
    Change.DELETED: "deleted",
    Change.STORED: "completed",
}


def change_of(event: LifecycleEvent) -> Change:
    """Return what an event tells about."""
    return _CHANGES.get(type(event), Change.JOB)


def require_writable(event: LifecycleEvent) -> None:
    """Refuse an event that would spoil the state of its upload for every reader.

    Raises:
        MalformedEvent: A time is none that RFC 3339 can write, or a size is absurd.

    """
    if max(event.at, event.upload.created_at) > _LATEST_MS:
        raise MalformedEvent(f"{type(event).__name__}: a time is beyond the year 9892")
    if max(event.offset, event.upload.size or 0) > _LARGEST:
        raise MalformedEvent(f"{type(event).__name__}: a size is beyond 63 bits")


def fold(state: ProgressState | None, event: LifecycleEvent) -> ProgressState | None:
    """Return the state after a lifecycle event, or ``None`` if the event is not newer."""
    if state is not None and event.seq <= state.seq:
        return None
    facts, change = event.upload, change_of(event)
    before = state.bytes_uploaded if state is not None else 0
    size = state.total_bytes if state is not None and facts.size is None else facts.size
    status = _STATUS.get(change) or _kept_status(state, change)
    done = status == "completed" and not facts.partial
    error_code, error_message = _error(state, event, status)
    return ProgressState(
        session_id=event.upload_id,
        seq=event.seq,
        user_id=facts.user_id,
        tenant=facts.tenant,
        status=status,
        bytes_uploaded=max(before, event.offset),
        total_bytes=size,
        upload_speed=0.0,
        filename=facts.filename,
        content_type=facts.content_type,
        started_at=facts.created_at,
        last_updated=event.at,
        completed_at=_completed_at(state, event, status),
        video_id=event.upload_id if done else None,
        analysis_id=facts.job_id if done else None,
        redirect_url=_redirect_url(state, event),
        error_message=error_message,
        error_code=error_code,
        metadata=facts.metadata,
    )


def _kept_status(state: ProgressState | None, change: Change) -> str:
    """Return the status where the event says nothing of it: jobs begin when bytes are safe."""
    if state is not None and state.is_over:
        return state.status
    return "completed" if change is Change.JOB else "uploading"


def _completed_at(
    state: ProgressState | None, event: LifecycleEvent, status: str
) -> int | None:
    known = state.completed_at if state is not None else None
    if isinstance(event, events.UploadCompleted | events.UploadDuplicate):
        return event.at
    # What follows completion may be all that is left of an upload's events.
    return event.at if known is None and status == "completed" else known


def _redirect_url(state: ProgressState | None, event: LifecycleEvent) -> str | None:
    if isinstance(event, events.UploadCompleted | events.UploadDuplicate):
        return event.redirect_url or None
    return state.redirect_url if state is not None else None


def _error(
    state: ProgressState | None, event: LifecycleEvent, status: str
) -> tuple[str | None, str | None]:
    """Return code and message; what follows a failure does not undo it."""
    if isinstance(event, events.UploadFailed):
        return event.error_code, event.error_message or "The upload failed."
    if isinstance(event, events.UploadExpired):
        return "SESSION_EXPIRED", "The upload was not continued in time."
    if state is not None and status == "error":
        return state.error_code, state.error_message
    return None, None


def move(state: ProgressState, position: UploadProgress) -> ProgressState | None:
    """Return the state at a new position, or ``None`` if the position is not newer.

    A position at the same byte counts when it is later: it says that the upload rests.
    """
    if state.is_over or position.offset < state.bytes_uploaded:
        return None
    if position.at > _LATEST_MS or max(position.offset, position.size or 0) > _LARGEST:
        return None
    if position.offset == state.bytes_uploaded and position.at <= state.last_updated:
        return None
    return msgspec.structs.replace(
        state,
        bytes_uploaded=position.offset,
        total_bytes=position.size if position.size is not None else state.total_bytes,
        upload_speed=max(position.speed, 0.0) if math.isfinite(position.speed) else 0.0,
        last_updated=max(position.at, state.last_updated),
    )


_TIMES: Final = ("started_at", "last_updated", "completed_at")
_FIELDS: Final = tuple(field.name for field in msgspec.structs.fields(ProgressState))
_encoder: Final = msgspec.json.Encoder()


def to_fields(state: ProgressState) -> dict[str, str]:
    """Return the fields of the projection's hash, as the contract names and writes them."""
    fields = {
        "percentage": str(state.percentage),
        "estimated_completion": state.estimated_completion or "",
    }
    for name in _FIELDS:
        value = getattr(state, name)
        if name in _TIMES:
            fields[name] = rfc3339(value) if value is not None else ""
            fields[f"{name}_ms"] = "" if value is None else str(value)
        elif name == "metadata":
            fields[name] = _encoder.encode(value).decode()
        else:
            fields[name] = "" if value is None else str(value)
    return fields


def from_fields(fields: Mapping[bytes, bytes]) -> ProgressState | None:
    """Return the state in a hash; ``None`` if there is none, or it is not one of ours."""
    try:
        state = msgspec.convert(_values(fields), ProgressState, strict=False)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    times = (state.started_at, state.last_updated, state.completed_at or 0)
    sizes = (state.bytes_uploaded, state.total_bytes or 0)
    sane = min(*times, *sizes) >= 0 and max(times) <= _LATEST_MS and max(sizes) <= _LARGEST
    return state if sane and math.isfinite(state.upload_speed) else None


def _values(fields: Mapping[bytes, bytes]) -> dict[str, object]:
    values: dict[str, object] = {}
    for name in _FIELDS:
        key = f"{name}_ms" if name in _TIMES else name
        text = fields.get(key.encode(), b"")
        if name == "metadata":
            values[name] = msgspec.json.decode(text or b"{}")
        elif text or name in _TEXTS:
            values[name] = text.decode()
        else:
            values[name] = None
    return values


_TEXTS: Final = {"filename", "content_type", "session_id", "user_id", "tenant", "status"}
