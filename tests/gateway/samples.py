"""Uploads as their events tell of them, for the tests of who passes the events on."""

from __future__ import annotations

from typing import Any, Final, TypeVar

from shared import events
from shared.events import JobProgress, LifecycleEvent, UploadFacts, UploadProgress
from shared.identity import Principal
from shared.sidecar import new_id
from shared.times import now_ms

__all__ = ["ADA", "EVE", "SIZE", "START", "Told", "admin", "principal"]

Event = TypeVar("Event", bound=LifecycleEvent)

START: Final = 1_735_732_800_000
"""2025-01-01T12:00:00Z, in milliseconds."""
SIZE: Final = 2_250_000


def principal(user_id: str, tenant: str = "acme", *scopes: str) -> Principal:
    """Return a caller."""
    return Principal(user_id, tenant, user_id, frozenset(scopes), None)


ADA: Final = principal("ada")
EVE: Final = principal("eve")


def admin(tenant: str = "acme") -> Principal:
    """Return somebody who may see everything of a tenant."""
    return principal("root", tenant, "admin")


class Told:
    """One upload and what is told about it; each event gets the next ``seq``.

    Args:
        upload_id: A new one if empty.
        owner: Whose upload it is.
        size: Declared length in bytes; ``None`` for a deferred one.
        at: When it was made, ms; its events follow one second after another. ``None``: its
            events are made when they are asked for.
        session_id: The owner's own name for the session.

    """

    def __init__(
        self,
        upload_id: str = "",
        *,
        owner: Principal = ADA,
        size: int | None = SIZE,
        at: int | None = START,
        session_id: str = "",
    ) -> None:
        self.id: Final = upload_id or new_id()
        self._at: Final = at
        self.facts: Final = UploadFacts(
            user_id=owner.user_id,
            tenant=owner.tenant,
            created_at=now_ms() if at is None else at,
            job_id=f"job-of-{self.id}",
            size=size,
            filename="test_video.mp4",
            content_type="video/mp4",
            metadata={"filename": "test_video.mp4"},
            session_id=session_id,
        )
        self.seq = 0
        self.job_seq = 0

    def _make(self, kind: type[Event], **more: Any) -> Event:
        self.seq += 1
        at = now_ms() if self._at is None else self._at + 1000 * (self.seq - 1)
        values = {"upload_id": self.id, "seq": self.seq, "at": at, "upload": self.facts}
        return kind(**{**values, **more})

    def created(self, **more: Any) -> LifecycleEvent:
        """The first event."""
        return self._make(events.UploadCreated, **more)

    def completed(self, **more: Any) -> LifecycleEvent:
        """All bytes are there."""
        more = {"redirect_url": f"/dashboard/videos/{self.id}/results", **more}
        return self._make(events.UploadCompleted, **{"offset": self.facts.size or 0, **more})

    def duplicate(self, **more: Any) -> LifecycleEvent:
        """The bytes were there before."""
        more = {"offset": self.facts.size or 0, "original_id": "other", **more}
        return self._make(events.UploadDuplicate, **more)

    def failed(self, message: str = "Upload failed", **more: Any) -> LifecycleEvent:
        """It cannot be resumed."""
        more = {"error_code": "CHECKSUM_MISMATCH", "error_message": message, **more}
        return self._make(events.UploadFailed, **more)

    def cancelled(self, **more: Any) -> LifecycleEvent:
        """The client has ended it."""
        return self._make(events.UploadCancelled, **more)

    def expired(self, **more: Any) -> LifecycleEvent:
        """Nobody has continued it."""
        return self._make(events.UploadExpired, **more)

    def stored(self, **more: Any) -> LifecycleEvent:
        """Storage knows the file."""
        return self._make(events.FileStored, **{"offset": self.facts.size or 0, **more})

    def _of_job(self, kind: type[Event], **more: Any) -> Event:
        self.job_seq += 1
        at = now_ms() if self._at is None else self._at + 100_000 + 1000 * self.job_seq
        safe = {"offset": self.facts.size or 0, "job_id": self.facts.job_id}
        values = {"upload_id": self.id, "seq": self.job_seq, "at": at, "upload": self.facts}
        return kind(**{**values, **safe, **more})

    def queued(self, **more: Any) -> LifecycleEvent:
        """Its processing waits."""
        return self._of_job(events.JobQueued, **more)

    def started(self, **more: Any) -> LifecycleEvent:
        """A worker has begun."""
        return self._of_job(events.JobStarted, **more)

    def processed(self, **more: Any) -> LifecycleEvent:
        """The processing is done."""
        return self._of_job(events.JobCompleted, **more)

    def broken(self, message: str = "Processing failed", **more: Any) -> LifecycleEvent:
        """The processing has failed."""
        more = {"error_code": "PROCESSING_FAILED", "message": message, **more}
        return self._of_job(events.JobFailed, **more)

    def processing(self, progress: float, **more: Any) -> JobProgress:
        """How far the processing is; the time grows with it."""
        at = now_ms() if self._at is None else self._at + 200_000 + int(1000 * progress)
        values = {"upload_id": self.id, "seq": max(self.job_seq, 1), "at": at}
        return JobProgress(
            **{**values, "job_id": self.facts.job_id, "progress": progress, **more}
        )

    def deleted(self, **more: Any) -> LifecycleEvent:
        """The file is gone."""
        return self._make(events.FileDeleted, **{"offset": self.facts.size or 0, **more})

    def position(self, offset: int, **more: Any) -> UploadProgress:
        """How far it is; the time grows with the offset."""
        at = now_ms() if self._at is None else self._at + 1 + offset // 1000
        values = {"upload_id": self.id, "seq": max(self.seq, 1), "at": at, "offset": offset}
        return UploadProgress(**{**values, "size": self.facts.size, **more})
