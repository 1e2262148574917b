"""What clients are told of an upload and of its processing. No I/O.

One ``ProgressState`` is what the projection in Redis holds and what every dialect encodes. It
has two halves, each with a counter of its own, since two parties tell of them: ``seq`` counts
what ingest and storage tell of the file, ``job_seq`` what the workers tell of the job.
``services.gateway.folding`` says how events change it.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any, Final

import msgspec

from shared.percent import percent_of
from shared.times import rfc3339

__all__ = [
    "AFTER_ALL",
    "ID_FORM",
    "LARGEST",
    "LATEST_MS",
    "Change",
    "ProgressState",
    "expected_at",
    "tells_of_processing",
]

ID_FORM: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
"""What cannot be an id is neither looked for nor recorded: with a colon it would name a key of
another kind."""
AFTER_ALL: Final = 2**53 - 1
"""A ``seq`` that no event has, and that Lua's numbers can still hold."""
LATEST_MS: Final = 250_000_000_000_000
"""In the year 9892: with an estimate on top it can still be written as RFC 3339."""
LARGEST: Final = 2**63 - 1
"""Bytes. No store holds more, and beyond it not every client's numbers reach."""
_LONGEST_MS: Final = 365 * 86_400_000
"""An estimate beyond a year is none."""
_TROUBLE: Final = {
    "cancelled": "The upload was cancelled.",
    "deleted": "The file was deleted.",
}


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
    JOB_QUEUED = "job_queued"
    JOB_STARTED = "job_started"
    JOB_PROGRESS = "job_progress"
    JOB_STAGE = "job_stage"
    """A position that says more than a number: the worker does something else now."""
    JOB_COMPLETED = "job_completed"
    JOB_FAILED = "job_failed"

    def __init__(self, name: str) -> None:
        self.of_job: Final = name.startswith("job_")
        """Whether it tells of the processing, not of the upload."""
        self.is_replaced: Final = name in {"progress", "job_progress"}
        """Whether the next one of its kind says all that it says."""

    # Members are looked up for each event and dialect; Enum's own hash is that of the name.
    __hash__ = object.__hash__


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
    client_name: str = ""
    """The name that the client gave to its session, if it gave one."""
    duplicate_of: str | None = None
    """The upload whose bytes these are, if the tenant held them already."""

    job_id: str | None = None
    """Made with the upload; its processing goes by it."""
    job_seq: int = 0
    """The newest lifecycle event of the job in it; 0 while nothing is known of the job."""
    job_status: str | None = None
    """``queued``, ``in_progress``, ``completed``, ``failed``; ``None`` before."""
    stage: str | None = None
    """What the worker does, in its own words, such as ``validating``."""
    job_progress: float | None = None
    """Percent of the processing, as the worker reckons it."""
    message: str | None = None
    """The worker's last word, for people."""
    current: int | None = None
    """Rows (or frames, or pages) done, of ``total``."""
    total: int | None = None
    result: dict[str, Any] | None = None
    """What the processing found; of a duplicate, what that of the original did."""
    job_error_code: str | None = None
    job_updated: int | None = None
    """When the worker was last heard, ms."""

    @property
    def is_over(self) -> bool:
        """Whether no position can change it any more."""
        return self.status != "uploading"

    def is_ahead_of(self, other: ProgressState) -> bool:
        """Whether either half tells something that ``other``, of the same upload, does not."""
        return (
            self.upload_version > other.upload_version or self.job_version > other.job_version
        )

    @property
    def upload_version(self) -> tuple[int, int]:
        """What orders two states of an upload."""
        return self.seq, self.bytes_uploaded

    @property
    def job_version(self) -> tuple[int, int]:
        """What orders two states of a job."""
        return self.job_seq, self.job_updated or 0

    def may_change(self, before: int | None = None) -> bool:
        """Whether something may still be told of it; and if ``before`` is given (UTC, ms), it
        or its job has begun and been silent since.
        """
        if not self.is_over:
            return before is None or self.last_updated < before
        if self.status != "completed" or self.job_is_over:
            return False
        return before is None or (self.job_seq > 0 and (self.job_updated or 0) < before)

    @property
    def job_is_over(self) -> bool:
        """Whether the processing has ended, one way or the other."""
        return self.job_status in {"completed", "failed"}

    @property
    def heard_at(self) -> int:
        """When anything was told of it last, also of its job; ms."""
        return max(self.last_updated, self.job_updated or 0)

    @property
    def processing(self) -> str:
        """``pending``, ``queued``, ``in_progress``, ``completed`` or ``failed``.

        Failed is also what will never begin, since there is nothing to process any more.
        """
        if self.job_status is not None and self.job_is_over:
            return self.job_status
        if self.status in _TROUBLE or self.status == "error":
            return "failed"
        if self.job_status is None and self.duplicate_of and self.result is not None:
            return "completed"
        return self.job_status or "pending"

    @property
    def trouble(self) -> str:
        """What has befallen the upload, for people."""
        return self.error_message or _TROUBLE.get(self.status, "The upload failed.")

    @property
    def processing_trouble(self) -> str:
        """Why there is no result, for people."""
        if self.job_status == "failed":
            return self.message or "The processing failed."
        return self.trouble

    @property
    def percentage(self) -> float:
        """Percent of the bytes; exactly 100.0 once all were safe, also after a deletion."""
        complete = self.status == "completed" or self.completed_at is not None
        return percent_of(self.bytes_uploaded, self.total_bytes, complete=complete)

    @property
    def estimated_completion(self) -> str | None:
        """When the last byte will be there at this speed, RFC 3339; ``None``: unknown."""
        if self.is_over or self.total_bytes is None:
            return None
        left = self.total_bytes - self.bytes_uploaded
        at = expected_at(self.last_updated, left, self.upload_speed)
        return None if at is None else rfc3339(at)


def expected_at(now: int, left: int, speed: float) -> int | None:
    """Return when so many bytes will be there, ms; ``None`` if that cannot be known.

    Args:
        now: UTC, milliseconds since the epoch.
        left: Bytes.
        speed: Bytes per second.

    """
    if speed < 1.0:
        return None
    left_ms = 1000 * left / speed
    return None if left_ms > _LONGEST_MS else now + max(int(left_ms), 0)


def tells_of_processing(change: Change, state: ProgressState) -> bool:
    """Tell whether a change says anything of the processing that was not said before.

    As long as only bytes arrive, it is pending; an upload that fails takes it along.
    """
    if change.of_job or change is Change.SNAPSHOT:
        return True
    if change in {Change.CREATED, Change.PROGRESS, Change.COMPLETED, Change.STORED}:
        return False
    return not state.job_is_over and state.processing != "pending"
