"""Every message of document 002, in both directions, to the letter."""

from __future__ import annotations

from typing import Any

import pytest

from services.gateway.dialects.pipeline import Pipeline
from services.gateway.dialects.protocol import Malformed, Message, Ping
from tests.gateway.dialects.harness import (
    JOB_ID,
    T0,
    T1,
    T2,
    UPLOAD_ID,
    Event,
    Reply,
    Request,
    Table,
    after,
    at,
    moved,
    snapshot,
    working,
)
from tests.gateway.samples import SIZE, Told

QUARTER = "2025-01-01T12:00:00.250Z"
J1, J2, J3 = "2025-01-01T12:01:41Z", "2025-01-01T12:01:42Z", "2025-01-01T12:01:43Z"
HALF = "2025-01-01T12:04:10Z"
RESULT = {"label": "cat", "score": 0.98}


def message(kind: str, at: str, **more: Any) -> list[dict[str, Any]]:
    """Return an event: flat, by ``event_type`` (002:387 to 396)."""
    about = {"event_type": kind, "session_id": UPLOAD_ID, "user_id": "ada"}
    return [{**about, "filename": "test_video.mp4", "timestamp": at, **more}]


def upload(
    kind: str, at: str, sent: int, percentage: float, **more: Any
) -> list[dict[str, Any]]:
    """Return an event of the upload."""
    counts = {"bytes_uploaded": sent, "total_bytes": SIZE, "progress_percentage": percentage}
    return message(kind, at, **{**counts, **more})


def job(kind: str, at: str, percentage: float, **more: Any) -> list[dict[str, Any]]:
    """Return an event of the processing."""
    said = {"job_id": JOB_ID, "stage": None, "message": None}
    return message(kind, at, **{**said, "progress_percentage": percentage, **more})


def failed(kind: str, at: str, code: str, text: str, *, sent: int = 0) -> list[dict[str, Any]]:
    """Return how the end of an upload is told."""
    percentage = 100.0 if sent else 0.0
    return upload(kind, at, sent, percentage, error_code=code, error_message=text)


STARTED = upload("upload_started", T0, 0, 0.0)
PROGRESS = upload(
    *("upload_progress", QUARTER, 1_024_000, 45.51),
    upload_speed=102_400.0,
    estimated_completion="2025-01-01T12:00:12.222Z",
)
COMPLETED = upload(
    *("upload_completed", T1, SIZE, 100.0),
    job_id=JOB_ID,
    redirect_url=f"/dashboard/videos/{UPLOAD_ID}/results",
)
FAILED = failed("upload_failed", T1, "CHECKSUM_MISMATCH", "Upload failed")
CANCELLED = failed("upload_failed", T1, "UPLOAD_CANCELLED", "The upload was cancelled.")
EXPIRED = failed(
    "session_expired", T1, "SESSION_EXPIRED", "The upload was not continued in time."
)
DELETED = failed("error", T2, "FILE_DELETED", "The file was deleted.", sent=SIZE)
DUPLICATE = upload(
    *("duplicate_detected", T1, SIZE, 100.0),
    cached_result=RESULT,
    original_id="other",
    redirect_url=None,
)
INITIATED = job("processing_initiated", J2, 0.0, stage="loading", message="Starting")
PROCESSING = job(
    *("processing_progress", HALF, 50.0),
    stage="frames",
    message="Half of it",
    current=50,
    total=100,
)
PROCESSED = job("processing_completed", J3, 100.0, stage="loading", result=RESULT)
BROKEN = job(
    *("processing_failed", J3, 0.0),
    stage="loading",
    message="No frames",
    error_code="PROCESSING_FAILED",
    error_message="No frames",
)


def duplicate(told: Told) -> Any:
    """Tell that the bytes were there before, and what came of them."""
    return told.duplicate(cached_result=RESULT)


def started(told: Told) -> Any:
    """Tell that a worker has begun."""
    return told.started(stage="loading", message="Starting")


def processed(told: Told) -> Any:
    """Tell that the worker is done."""
    return told.processed(result=RESULT)


def broken(told: Told) -> Any:
    """Tell that the worker has failed."""
    return told.broken("No frames")


HALFWAY = working(50.0, stage="frames", message="Half of it", current=50, total=100)
DONE = (Told.created, Told.completed)
RUNNING = (*DONE, Told.queued, started)

EVENTS = {
    "started": Event(after(Told.created), STARTED, "002:213"),
    "progress": Event(moved(1_024_000, 102_400.0), PROGRESS, "002:214"),
    "progress of a deferred length": Event(
        moved(1000, size=None),
        upload(
            *("upload_progress", QUARTER, 1000, 0.0),
            total_bytes=None,
            upload_speed=0.0,
            estimated_completion=None,
        ),
    ),
    "completed": Event(after(*DONE), COMPLETED, "002:215"),
    "failed": Event(after(Told.created, Told.failed), FAILED, "002:216"),
    "cancelled": Event(after(Told.created, Told.cancelled), CANCELLED),
    "initiated": Event(after(*RUNNING), INITIATED, "002:219"),
    "processing": Event(after(*RUNNING, HALFWAY), PROCESSING, "002:220"),
    "processing goes on": Event(
        after(*RUNNING, HALFWAY, working(51.0)),
        job(
            *("processing_progress", "2025-01-01T12:04:11Z", 51.0),
            stage="frames",
            current=None,
            total=None,
        ),
    ),
    "processed": Event(after(*RUNNING, processed), PROCESSED, "002:221"),
    "processed without a result": Event(
        after(*DONE, Told.processed), job("processing_completed", J1, 100.0, result={})
    ),
    "processing failed": Event(after(*RUNNING, broken), BROKEN, "002:222"),
    "duplicate": Event(after(Told.created, duplicate), DUPLICATE, "002:225"),
    "duplicate without a result": Event(
        after(Told.created, Told.duplicate), [{**DUPLICATE[0], "cached_result": None}]
    ),
    "expired": Event(after(Told.created, Told.expired), EXPIRED, "002:226"),
    "deleted": Event(after(*DONE, Told.deleted), DELETED, "002:227"),
    "stored": Event(after(*DONE, Told.stored), []),
    "queued": Event(after(*DONE, Told.queued), []),
    "late, new": Event(snapshot(Told.created), STARTED),
    "late, under way": Event(snapshot(Told.created, at(1_024_000, 102_400.0)), PROGRESS),
    "late, completed": Event(snapshot(*DONE), COMPLETED),
    "late, queued": Event(snapshot(*DONE, Told.queued), COMPLETED),
    "late, failed": Event(snapshot(Told.created, Told.failed), FAILED),
    "late, cancelled": Event(snapshot(Told.created, Told.cancelled), CANCELLED),
    "late, expired": Event(snapshot(Told.created, Told.expired), EXPIRED),
    "late, deleted": Event(snapshot(*DONE, Told.deleted), DELETED),
    "late, duplicate": Event(snapshot(Told.created, duplicate), DUPLICATE),
    "late, initiated": Event(snapshot(*RUNNING), INITIATED),
    "late, processing": Event(snapshot(*RUNNING, HALFWAY), PROCESSING),
    "late, processed": Event(snapshot(*RUNNING, processed), PROCESSED),
    "late, processing failed": Event(snapshot(*RUNNING, broken), BROKEN),
}

REPLIES = {
    "error": Reply(
        "error",
        {
            "event_type": "error",
            "session_id": UPLOAD_ID,
            "message": "No.",
            "error_message": "No.",
        },
        {"message": "No."},
        "002:227",
        known=False,
    ),
    "authenticated": Reply(
        "authenticated",
        {"event_type": "authenticated", "session_id": None, "message": "Welcome"},
        {"message": "Welcome"},
        subject="",
    ),
    "pong": Reply("pong", {"event_type": "pong", "session_id": None}, subject=""),
    "heartbeat": Reply(
        "heartbeat", {"event_type": "heartbeat", "session_id": None}, line="002:228", subject=""
    ),
}

REQUESTS = {
    "token": Request('{"type":"authenticate","token":"t"}', Message(None, "t")),
    "ping": Request('{"type":"ping"}', Message(Ping())),
    "unknown type": Request('{"type":"dance"}', Message(Malformed("Unknown message type."))),
    "no JSON": Request("ping", Message(Malformed("Expected a JSON object."))),
}

TABLE = Table(Pipeline(), EVENTS, REPLIES, REQUESTS)


@pytest.mark.parametrize("case", EVENTS)
def test_events(case: str) -> None:
    """Each change has its event; who comes late gets the newest one that stands."""
    TABLE.check_event(case)


@pytest.mark.parametrize("case", REPLIES)
def test_replies(case: str) -> None:
    """Answers and heartbeats are flat as the events are."""
    TABLE.check_reply(case)


@pytest.mark.parametrize("case", REQUESTS)
def test_requests(case: str) -> None:
    """The document has no messages from clients; a token and a ping are understood."""
    TABLE.check_request(case)


def test_the_heartbeat_is_that_of_the_table() -> None:
    """What is sent after a silence is the heartbeat that the table checks."""
    assert b'"event_type":"heartbeat"' in Pipeline().heartbeat()
