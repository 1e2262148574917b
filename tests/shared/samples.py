"""Events and records as services make them, for the tests of what carries them."""

from __future__ import annotations

from typing import Any, Final

from shared import events
from shared.sidecar import Sidecar, new_id
from shared.streams import partition_of
from shared.times import now_ms

__all__ = [
    "FACTS",
    "cancelled",
    "completed",
    "created",
    "ids_of_partition",
    "new_sidecar",
    "position",
]

FACTS: Final = events.UploadFacts(
    user_id="ada",
    tenant="acme",
    created_at=1_735_732_800_250,
    job_id="6f9b2c1e-4f57-4f7e-9c55-0f3d3b8f2a11",
    size=1000,
    filename="clip.mp4",
)


def created(upload_id: str, seq: int = 1) -> events.UploadCreated:
    """Return the first event of an upload."""
    return events.UploadCreated(upload_id=upload_id, seq=seq, at=now_ms(), upload=FACTS)


def completed(upload_id: str, seq: int = 2) -> events.UploadCompleted:
    """Return the event that an upload's last byte causes."""
    return events.UploadCompleted(
        upload_id=upload_id, seq=seq, at=now_ms(), upload=FACTS, offset=1000
    )


def cancelled(upload_id: str, seq: int = 2) -> events.UploadCancelled:
    """Return an event after which only a tombstone is left."""
    return events.UploadCancelled(upload_id=upload_id, seq=seq, at=now_ms(), upload=FACTS)


def position(upload_id: str, offset: int, **more: Any) -> events.UploadProgress:
    """Return how far an upload is."""
    return events.UploadProgress(
        upload_id=upload_id, seq=1, at=now_ms(), offset=offset, size=1000, **more
    )


def new_sidecar() -> Sidecar:
    """Return the record of a new upload."""
    upload_id = new_id()
    return Sidecar(
        upload_id=upload_id, status="created", facts=FACTS, outbox=(created(upload_id),)
    )


def ids_of_partition(partition: int, count: int, partitions: int) -> list[str]:
    """Return new ids that all fall into one partition."""
    found: list[str] = []
    while len(found) < count:
        one = new_id()
        if partition_of(one, partitions) == partition:
            found.append(one)
    return found
