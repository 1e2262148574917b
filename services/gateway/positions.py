"""The newest positions of many entries, and how they are written. No I/O."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Final, NamedTuple, TypeAlias

from services.gateway.state import LARGEST, LATEST_MS, expected_at
from shared.events import JobProgress, UploadProgress
from shared.streams import (
    JobPosition,
    Position,
    ProgressEntry,
    job_positions_in,
    job_progress_of,
    positions_in,
    progress_of,
)
from shared.times import rfc3339

__all__ = ["Newest", "Row", "Rows", "further"]


class Row(NamedTuple):
    """What is written of one position."""

    order: tuple[float, ...]
    """Of two positions of an upload, or of a job, the later one has the greater one."""
    texts: tuple[str, ...]
    """As ``positions.lua`` takes them."""


Rows: TypeAlias = Mapping[str, Row]


def further(these: Rows, those: Rows) -> dict[str, Row]:
    """Return of each upload the later one of two rows; of two that are alike, of ``those``."""
    found = dict(these)
    for upload_id, row in those.items():
        other = found.get(upload_id)
        if other is None or row.order >= other.order:
            found[upload_id] = row
    return found


class Newest:
    """The furthest position of each upload, and of each job.

    There may be tens of thousands a second, most of which are replaced before anybody writes
    or delivers them: so ids and positions stay as they stand in the entries until then.
    """

    def __init__(self) -> None:
        self._of_uploads: Final[dict[bytes, Position]] = {}
        self._of_jobs: Final[dict[bytes, JobPosition]] = {}

    def add(self, entry: ProgressEntry, wanted: Collection[bytes] | None = None) -> None:
        """Take in an entry, of it the wanted uploads (all, if ``None``).

        Raises:
            MalformedEvent: Its body is not what its ids say.

        """
        known = self._of_uploads
        for upload_id, one in positions_in(entry):
            best = known.get(upload_id)
            if best is None:
                if wanted is None or upload_id in wanted:
                    known[upload_id] = one
            elif (one.offset, one.at) >= (best.offset, best.at):
                known[upload_id] = one
        jobs = self._of_jobs
        for upload_id, job in job_positions_in(entry):
            if wanted is not None and upload_id not in wanted:
                continue
            last = jobs.get(upload_id)
            order = (job.seq, job.at, job.progress)
            if last is None or order >= (last.seq, last.at, last.progress):
                jobs[upload_id] = job

    def events(self) -> Iterator[UploadProgress | JobProgress]:
        """Return them as events."""
        yield from itertools.starmap(progress_of, self._of_uploads.items())
        yield from itertools.starmap(job_progress_of, self._of_jobs.items())

    def of_uploads(self) -> Rows:
        """Return what is written of uploads."""
        sane = (one for one in self._of_uploads.items() if _is_sane(one[1]))
        return {
            upload_id.decode(): Row((one.offset, one.at), _upload_texts(one))
            for upload_id, one in sane
        }

    def of_jobs(self) -> Rows:
        """Return what is written of jobs."""
        return {
            upload_id.decode(): Row((one.seq, one.at, one.progress), _job_texts(one))
            for upload_id, one in self._of_jobs.items()
            if one.at <= LATEST_MS
        }


def _is_sane(one: Position) -> bool:
    """Whether a position spoils nothing for those who read the record."""
    return one.at <= LATEST_MS and max(one.offset, one.size or 0) <= LARGEST


def _upload_texts(one: Position) -> tuple[str, ...]:
    speed = max(one.speed, 0.0) if math.isfinite(one.speed) else 0.0
    end = None if one.size is None else expected_at(one.at, one.size - one.offset, speed)
    return (
        *(str(one.offset), str(one.at), "" if one.size is None else str(one.size)),
        *(str(speed), "" if end is None else rfc3339(end), rfc3339(one.at)),
    )


def _job_texts(one: JobPosition) -> tuple[str, ...]:
    return (
        *(str(one.seq), str(one.at), str(one.progress), one.stage, one.message),
        "" if one.current is None else str(one.current),
        "" if one.total is None else str(one.total),
        rfc3339(one.at),
    )
