"""What workers in any language report of their jobs, and what becomes of it. No I/O.

A job's lifecycle events are counted by its worker from 1. A report whose number is known is
one that was sent again and changes nothing; one that leaves a hole is refused with the number
that is due, so that no event is lost when reports overtake each other, and a worker that has
lost count learns it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

import msgspec

from services.gateway.errors import JobEnded, SequenceGap, Unprocessable
from shared import events
from shared.errors import InvalidRequest
from shared.events import JobProgress, LifecycleEvent, Percent, UploadFacts

__all__ = [
    "LARGEST_BODY",
    "MOST_REPORTS",
    "JobReport",
    "JobReports",
    "Plan",
    "Processed",
    "Reported",
    "event_of",
    "planned",
    "position_of",
    "read_reports",
]

LARGEST_BODY: Final = 256 * 1024
"""Bytes of one request."""
MOST_REPORTS: Final = 100
"""In one request."""
_DEEPEST: Final = 32
"""Levels of a result. Parsers give up at some hundreds."""
_LARGEST: Final = 2**53 - 1
"""Beyond it not every language counts in whole numbers."""

Number: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=_LARGEST)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=_LARGEST)]
Word: TypeAlias = Annotated[str, msgspec.Meta(max_length=100)]
Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=2000)]
Moment: TypeAlias = Annotated[
    datetime, msgspec.Meta(tz=True, description="When it was, RFC 3339; never in the future")
]


class _Report(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    seq: Annotated[
        Number, msgspec.Meta(description="Counts the lifecycle events of the job from 1")
    ]
    at: Moment | None = None
    stage: Annotated[Word, msgspec.Meta(description="What the worker does, in a word")] = ""
    message: Annotated[Text, msgspec.Meta(description="For people")] = ""


class Queued(_Report, frozen=True, tag="queued"):
    """The job waits for a worker."""


class Started(_Report, frozen=True, tag="started"):
    """A worker has begun."""


class Completed(_Report, frozen=True, tag="completed"):
    """The job is done."""

    result: Annotated[dict[str, Any], msgspec.Meta(description="What it has found")] = {}


class Failed(_Report, frozen=True, tag="failed"):
    """The job has ended without a result."""

    error_code: Annotated[Word, msgspec.Meta(description="The reason, for programs")] = ""


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="progress"):
    """How far it is; only the newest is worth anything, so some may never be seen."""

    seq: Annotated[
        Number, msgspec.Meta(description="That of the lifecycle event which it follows")
    ]
    progress: Percent
    stage: Word = ""
    message: Text = ""
    current: Annotated[
        Count | None, msgspec.Meta(description="Rows, frames or pages done, of `total`")
    ] = None
    total: Count | None = None


Processed: TypeAlias = Queued | Started | Completed | Failed
JobReport: TypeAlias = Processed | Progress
JobReports: TypeAlias = (
    Annotated[list[JobReport], msgspec.Meta(min_length=1, max_length=MOST_REPORTS)] | JobReport
)


class Reported(msgspec.Struct, frozen=True, kw_only=True):
    """What has become of the reports of one request."""

    job_id: str
    upload_id: str
    accepted: Annotated[int, msgspec.Meta(description="Reports that were news")]
    known: Annotated[int, msgspec.Meta(description="Those that came again, or too late")]
    seq: Annotated[int, msgspec.Meta(description="The newest lifecycle event of the job")]


class Plan(NamedTuple):
    """What is to be written of the reports of one request."""

    lifecycle: list[Processed]
    position: Progress | None
    accepted: int
    known: int
    seq: int
    """The newest lifecycle event once all is written."""


_decoder: Final = msgspec.json.Decoder(JobReports)


def read_reports(body: bytes) -> list[JobReport]:
    """Return the reports in a body: a JSON object, or a list of them.

    Raises:
        InvalidRequest: It is no JSON.
        Unprocessable: It is, but not of reports.

    """
    try:
        read = _decoder.decode(body)
    except (msgspec.ValidationError, RecursionError) as exc:
        raise Unprocessable(f"{str(exc)[:300]}.") from exc
    except ValueError as exc:  # DecodeError is one, and so is a number of 5,000 digits
        raise InvalidRequest("The body is not JSON.") from exc
    reports = read if isinstance(read, list) else [read]
    for one in reports:
        if isinstance(one, Completed):
            _require_plain(one.result)
    return reports


def _require_plain(result: dict[str, Any]) -> None:
    """Refuse a result that some reader on the way could not take in.

    Raises:
        Unprocessable: It is nested too deep, or has a number of more than 64 bits.

    """
    level: list[Any] = [result]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below += one.values()
            elif isinstance(one, list):
                below += one
            elif isinstance(one, int) and not -(2**63) <= one < 2**63:
                raise Unprocessable("The result has a number of more than 64 bits.")
        level = below
    if level:
        raise Unprocessable(f"The result is nested deeper than {_DEEPEST} levels.")


def planned(seq: int, reports: Sequence[JobReport], *, is_over: bool) -> Plan:
    """Return what is to be written.

    Args:
        seq: The newest lifecycle event of the job that is known; 0 before the first.
        reports: In the order in which they were sent.
        is_over: Whether the job has ended.

    Raises:
        SequenceGap: A report before one of these is missing. None of them counts.
        JobEnded: One of these would follow the end. None of them counts.

    """
    lifecycle: list[Processed] = []
    position: Progress | None = None
    known = 0
    for one in reports:
        follows = isinstance(one, Progress)
        if one.seq < seq or (one.seq == seq and not follows):
            known += 1
            continue
        if is_over:
            raise JobEnded("The job has ended.", details={"seq": seq})
        if one.seq > (seq if follows else seq + 1):
            raise SequenceGap(
                f"The report with seq {seq + 1} has not come.", details={"expected": seq + 1}
            )
        if isinstance(one, Progress):
            position = one
            continue
        lifecycle.append(one)
        position, seq = None, one.seq  # the event says more than the positions before it
        is_over = isinstance(one, Completed | Failed)
    return Plan(lifecycle, position, len(reports) - known, known, seq)


def event_of(
    report: Processed, *, upload_id: str, facts: UploadFacts, offset: int, now: int
) -> LifecycleEvent:
    """Return the event that a report is, as it goes onto the stream.

    Args:
        report: What the worker says.
        upload_id: Whose job it is.
        facts: Of that upload, with the job's id.
        offset: Its bytes.
        now: UTC, ms. A worker's clock that is ahead would let nothing after it count.

    """
    at = now if report.at is None else int(report.at.timestamp() * 1000)
    job_event: dict[str, Any] = {
        "upload_id": upload_id,
        "seq": report.seq,
        "at": min(max(at, 0), now),
        "upload": facts,
        "offset": offset,
        "job_id": facts.job_id,
        "stage": report.stage,
        "message": report.message,
    }
    match report:
        case Queued():
            return events.JobQueued(**job_event)
        case Started():
            return events.JobStarted(**job_event)
        case Completed(result=result):
            return events.JobCompleted(**job_event, result=result)
        case Failed(error_code=error_code):
            return events.JobFailed(**job_event, error_code=error_code)


def position_of(report: Progress, *, upload_id: str, job_id: str, at: int) -> JobProgress:
    """Return the position that a report is; ``at`` is when it came (UTC, ms)."""
    return JobProgress(
        upload_id=upload_id,
        job_id=job_id,
        seq=report.seq,
        at=at,
        progress=report.progress,
        stage=report.stage,
        message=report.message,
        current=report.current,
        total=report.total,
    )
