"""Which uploads nobody comes back for: rules, no I/O."""

from __future__ import annotations

from typing import Literal

from shared.blobs.store import BlobWriter, Stored
from shared.sidecar import Sidecar

__all__ = ["Remains", "can_expire", "is_abandoned", "remains_of"]

Remains = Literal["upload", "part", "record", "unrecorded"]
"""``upload``: not finished in time. ``part``: a piece that was to be joined, complete.
``record``: of an upload that failed. ``unrecorded``: its bytes are in place, but its finish was
cut off before it was recorded; it is made up for."""


def can_expire(sidecar: Sidecar, *, visible: bool) -> bool:
    """Tell whether an upload ends if it is left alone for too long (items 72 and 76).

    Files stay, and so do records of failures as long as they do. A partial upload never becomes
    a file: complete or not, it goes when it has not changed for a session's time, since a
    client may join it again until then (item 96).

    Args:
        sidecar: Of the upload.
        visible: Whether its bytes have their final name; its record may not say so yet.

    """
    if sidecar.is_partial:
        return sidecar.status in {"created", "completed"}
    return sidecar.status == "created" and not visible


def is_abandoned(state: Stored | BlobWriter, lifetime_s: float, now: float) -> bool:
    """Tell whether an upload was left for too long without becoming a file.

    Args:
        state: Of the upload.
        lifetime_s: Seconds without a byte after which it ends.
        now: UTC, seconds.

    """
    return remains_of(state, lifetime_s, now) in {"upload", "part"}


def remains_of(state: Stored | BlobWriter, lifetime_s: float, now: float) -> Remains | None:
    """Return what is to be cleaned up of an upload; ``None``: nothing, or not yet.

    Never what waits for a scan, and never a complete file.
    """
    sidecar = state.sidecar
    if now <= state.modified_at + lifetime_s:
        return None
    if can_expire(sidecar, visible=state.visible):
        return "part" if sidecar.status == "completed" else "upload"
    if sidecar.status == "created":
        return "unrecorded"
    return "record" if sidecar.status == "failed" else None
