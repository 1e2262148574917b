"""What an upload counts for against quotas: rules, no I/O."""

from __future__ import annotations

from typing import Final, NamedTuple

from shared import events
from shared.events import LifecycleEvent
from shared.sidecar import Sidecar

__all__ = ["NOTHING", "Usage", "after", "of"]


class Usage(NamedTuple):
    """Of one upload."""

    bytes: int
    """Those that it has announced, or more if more are there; as long as they exist."""
    open: int
    """1 while bytes may come."""


NOTHING: Final = Usage(0, 0)


def of(sidecar: Sidecar, offset: int) -> Usage:
    """Return what an upload counts for that has so many bytes.

    Bytes that several uploads share count for each: what one of its owners does must not
    change what another one may.
    """
    if sidecar.is_gone or sidecar.status == "failed":
        return NOTHING
    return Usage(max(sidecar.size or 0, offset), int(sidecar.status == "created"))


def after(event: LifecycleEvent) -> Usage | None:
    """Return what an upload counts for after an event; ``None``: the event changes nothing."""
    match event:
        case events.UploadCompleted() | events.UploadDuplicate():
            return Usage(max(event.upload.size or 0, event.offset), 0)
        case (
            events.UploadFailed()
            | events.UploadCancelled()
            | events.UploadExpired()
            | events.FileDeleted()
        ):
            return NOTHING
        case _:
            return None
