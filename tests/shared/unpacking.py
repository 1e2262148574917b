"""What stands in entries of progress streams, as the events that were packed."""

from __future__ import annotations

from itertools import starmap

from shared.events import UploadProgress
from shared.streams import ProgressEntry, positions_in, progress_of

__all__ = ["unpack_positions"]


def unpack_positions(entry: ProgressEntry) -> list[UploadProgress]:
    """Return the positions of uploads, in order."""
    return list(starmap(progress_of, positions_in(entry)))
