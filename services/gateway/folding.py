"""How events change what clients are told. No I/O.

Folding never goes backwards: an event whose ``seq`` is known changes nothing, a position
behind the known one neither, and after the end no position counts. The events of a job are
counted apart from those of its upload, because other parties make them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from services.gateway.state import (
    AFTER_ALL,
    ID_FORM,
    LARGEST,
    LATEST_MS,
    Change,
    ProgressState,
)
from shared import events
from shared.events import JobEvent, JobProgress, LifecycleEvent, MalformedEvent, UploadProgress

__all__ = [
    "change_of",
    "change_of_position",
    "counter_of",
    "fold",
    "merged",
    "move",
    "position_of",
    "require_writable",
]

_CHANGES: Final[Mapping[type, Change]] = {
    events.UploadCreated: Change.CREATED,
    events.UploadCompleted: Change.COMPLETED,
    events.UploadFailed: Change.FAILED,
    events.UploadCancelled: Change.CANCELLED,
    events.UploadExpired: Change.EXPIRED,
    events.UploadDuplicate: Change.DUPLICATE,
    events.FileStored: Change.STORED,
    events.FileDeleted: Change.DELETED,
    events.JobQueued: Change.JOB_QUEUED,
    events.JobStarted: Change.JOB_STARTED,
    events.JobCompleted: Change.JOB_COMPLETED,
    events.JobFailed: Change.JOB_FAILED,
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


_JOB_STATUS: Final[Mapping[type, str]] = {
    events.JobQueued: "queued",
    events.JobStarted: "in_progress",
    events.JobCompleted: "completed",
    events.JobFailed: "failed",
}
_JOB_HALF: Final = (
    *("job_id", "job_seq", "job_status", "stage", "job_progress", "message"),
    *("current", "total", "result", "job_error_code", "job_updated"),
)


def change_of(event: LifecycleEvent) -> Change:
    """Return what an event tells about."""
    return _CHANGES[type(event)]


def change_of_position(
    position: UploadProgress | JobProgress, before: ProgressState, after: ProgressState
) -> Change:
    """Return what a position tells about, by the states before and after it."""
    if isinstance(position, UploadProgress):
        return Change.PROGRESS
    known = (before.job_status, before.stage)
    same = known == (after.job_status, after.stage)
    return Change.JOB_PROGRESS if same else Change.JOB_STAGE


def counter_of(event: LifecycleEvent) -> tuple[bool, int]:
    """Return what tells the events of one upload apart, and sorts them: the job's come last."""
    return isinstance(event, JobEvent), event.seq


def require_writable(event: LifecycleEvent) -> None:
    """Refuse an event that would spoil the state of its upload, or another key, for all.

    Raises:
        MalformedEvent: An id is none, a number is after all that can come, a time is none that
            RFC 3339 can write, or a size is absurd.

    """
    if not ID_FORM.fullmatch(event.upload_id):
        raise MalformedEvent(f"{type(event).__name__}: no upload has such an id")
    if event.seq >= AFTER_ALL:
        raise MalformedEvent(f"{type(event).__name__}: nothing could follow its seq")
    if max(event.at, event.upload.created_at) > LATEST_MS:
        raise MalformedEvent(f"{type(event).__name__}: a time is beyond the year 9892")
    if max(event.offset, event.upload.size or 0) > LARGEST:
        raise MalformedEvent(f"{type(event).__name__}: a size is beyond 63 bits")


def fold(state: ProgressState | None, event: LifecycleEvent) -> ProgressState | None:
    """Return the state after a lifecycle event, or ``None`` if the event is not newer."""
    if isinstance(event, JobEvent):
        return _fold_job(state, event)
    if state is not None and event.seq <= state.seq:
        return None
    facts, change = event.upload, change_of(event)
    before = state.bytes_uploaded if state is not None else 0
    size = state.total_bytes if state is not None and facts.size is None else facts.size
    status = _STATUS.get(change) or _kept_status(state)
    done = status == "completed" and not facts.partial
    error_code, error_message = _error(state, event, status)
    folded = ProgressState(
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
        client_name=facts.session_id,
        duplicate_of=_duplicate_of(state, event),
        job_id=facts.job_id,
        result=event.cached_result if isinstance(event, events.UploadDuplicate) else None,
    )
    return folded if state is None else _with_job_of(state, folded)


def _with_job_of(source: ProgressState, target: ProgressState) -> ProgressState:
    """Return ``target`` with what ``source`` knows of the job."""
    known = {name: getattr(source, name) for name in _JOB_HALF if _is_of_job(source, name)}
    return msgspec.structs.replace(target, **known)


def _is_of_job(state: ProgressState, name: str) -> bool:
    if name == "result":  # that of a duplicate is known without a job
        return state.result is not None
    return state.job_version > (0, 0)  # a position may come before the first event


def merged(one: ProgressState, other: ProgressState) -> ProgressState:
    """Return the newer half of each of two states of the same upload."""
    upload, job = (one, other) if one.upload_version >= other.upload_version else (other, one)
    furthest = max(one.bytes_uploaded, other.bytes_uploaded)
    upload = msgspec.structs.replace(upload, bytes_uploaded=furthest)
    return _with_job_of(job, upload) if job.job_version > upload.job_version else upload


def _fold_job(state: ProgressState | None, event: JobEvent) -> ProgressState | None:
    """Fold an event of the job; the first thing known of an upload may be one."""
    if state is not None and (event.seq <= state.job_seq or state.job_is_over):
        return None
    base = state or _of_facts(event)
    completed = isinstance(event, events.JobCompleted)
    return msgspec.structs.replace(
        base,
        job_id=event.job_id,
        job_seq=event.seq,
        job_status=_JOB_STATUS[type(event)],
        stage=event.stage or base.stage,
        job_progress=100.0 if completed else base.job_progress or 0.0,
        message=event.message or None,
        current=base.current,
        total=base.total,
        result=event.result if isinstance(event, events.JobCompleted) else base.result,
        job_error_code=_job_error_code(event),
        job_updated=max(event.at, base.job_updated or 0),
    )


def _job_error_code(event: JobEvent) -> str | None:
    return event.error_code or None if isinstance(event, events.JobFailed) else None


def _of_facts(event: JobEvent) -> ProgressState:
    """Return what the event of a job says of its upload: jobs begin when bytes are safe."""
    facts = event.upload
    return ProgressState(
        session_id=event.upload_id,
        seq=0,
        user_id=facts.user_id,
        tenant=facts.tenant,
        status="completed",
        bytes_uploaded=max(event.offset, facts.size or 0),
        total_bytes=facts.size,
        upload_speed=0.0,
        filename=facts.filename,
        content_type=facts.content_type,
        started_at=facts.created_at,
        last_updated=event.at,
        completed_at=event.at,
        video_id=event.upload_id,
        analysis_id=event.job_id,
        metadata=facts.metadata,
        client_name=facts.session_id,
    )


def _duplicate_of(state: ProgressState | None, event: LifecycleEvent) -> str | None:
    if isinstance(event, events.UploadDuplicate):
        return event.original_id
    return state.duplicate_of if state is not None else None


def _kept_status(state: ProgressState | None) -> str:
    """Return the status where the event says nothing of it: an end is never taken back."""
    return state.status if state is not None and state.is_over else "uploading"


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
        return event.error_code or None, event.error_message or "The upload failed."
    if isinstance(event, events.UploadExpired):
        return "SESSION_EXPIRED", "The upload was not continued in time."
    if state is not None and status == "error":
        return state.error_code, state.error_message
    return None, None


def move(state: ProgressState, position: UploadProgress | JobProgress) -> ProgressState | None:
    """Return the state at a new position, or ``None`` if the position is not newer.

    A position at the same byte counts when it is later: it says that the upload rests.
    """
    if isinstance(position, JobProgress):
        return _move_job(state, position)
    if state.is_over or position.offset < state.bytes_uploaded:
        return None
    if position.at > LATEST_MS or max(position.offset, position.size or 0) > LARGEST:
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


def _move_job(state: ProgressState, position: JobProgress) -> ProgressState | None:
    if state.job_is_over or position.seq < state.job_seq or position.at > LATEST_MS:
        return None
    known = (state.job_updated or 0, state.job_progress or 0.0)
    if position.seq == state.job_seq and (position.at, position.progress) <= known:
        return None
    return msgspec.structs.replace(
        state,
        job_status="in_progress",
        stage=position.stage or state.stage,
        job_progress=position.progress,
        message=position.message or None,
        current=position.current,
        total=position.total,
        job_updated=max(position.at, known[0]),
    )


def position_of(state: ProgressState, *, of_job: bool) -> UploadProgress | JobProgress:
    """Return the position that a state, of the upload or of its job, stands at."""
    if of_job:
        return JobProgress(
            upload_id=state.session_id,
            job_id=state.job_id or "",
            seq=state.job_seq,
            at=state.job_updated or 0,
            progress=state.job_progress or 0.0,
            stage=state.stage or "",
            message=state.message or "",
            current=state.current,
            total=state.total,
        )
    return UploadProgress(
        upload_id=state.session_id,
        seq=state.seq,
        at=state.last_updated,
        offset=state.bytes_uploaded,
        size=state.total_bytes,
        speed=state.upload_speed,
    )
