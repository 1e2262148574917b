"""Every message of document 004, in both directions, to the letter."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.gateway.dialects.jobs import Jobs
from services.gateway.dialects.protocol import (
    Malformed,
    Message,
    Ping,
    Subscribe,
    Unsubscribe,
)
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
    snapshot,
    working,
)
from tests.gateway.samples import Told

J1, J2 = "2025-01-01T12:01:41Z", "2025-01-01T12:01:42Z"


def message(
    status: str, at: str, progress: float = 0.0, text: str | None = None, **metadata: Any
) -> list[dict[str, Any]]:
    """Return a message as it must be (004:33 to 39)."""
    about = {"upload_id": UPLOAD_ID, "filename": "test_video.mp4"}
    return [
        {
            "job_id": JOB_ID,
            "status": status,
            "progress": progress,
            "message": text,
            "timestamp": at,
            "metadata": {**about, **metadata},
        }
    ]


def queued(told: Told) -> Any:
    """Tell that the job waits."""
    return told.queued(message="Third in line")


def started(told: Told) -> Any:
    """Tell that a worker has begun."""
    return told.started(stage="loading", message="Starting")


def processed(told: Told) -> Any:
    """Tell that the job is done."""
    return told.processed(message="Done", result={"faces": 3})


DONE = (Told.created, Told.completed)
HALFWAY = working(50.0, stage="faces", message="Half of it", current=5, total=10)
PENDING = message("pending", T1)
QUEUED = message("queued", J1, text="Third in line")
STARTED = message("in_progress", J1, text="Starting", stage="loading")
AT_HALF = message(
    "in_progress",
    "2025-01-01T12:04:10Z",
    50.0,
    "Half of it",
    stage="faces",
    current=5,
    total=10,
)
COMPLETED = message("completed", J1, 100.0, "Done", result={"faces": 3})
FAILED = message("failed", J1, 0.0, "Processing failed", error_code="PROCESSING_FAILED")

EVENTS = {
    "pending, no byte": Event(snapshot(Told.created), message("pending", T0), "004:149"),
    "pending, bytes arrive": Event(
        snapshot(Told.created, at(1000)), message("pending", "2025-01-01T12:00:00.250Z")
    ),
    "pending, complete": Event(snapshot(*DONE), PENDING, "004:17"),
    "queued": Event(after(*DONE, queued), QUEUED, "004:68"),
    "started": Event(after(*DONE, started), STARTED, "004:69"),
    "progress": Event(after(*DONE, started, HALFWAY), AT_HALF, "004:70"),
    "completed": Event(after(*DONE, processed), COMPLETED, "004:71"),
    "failed": Event(after(*DONE, Told.broken), FAILED, "004:72"),
    "failed on the way": Event(
        after(*DONE, HALFWAY, Told.broken),
        message(
            *("failed", "2025-01-01T12:04:10Z", 50.0, "Processing failed"),
            stage="faces",
            current=5,
            total=10,
            error_code="PROCESSING_FAILED",
        ),
    ),
    "late, queued": Event(snapshot(*DONE, queued), QUEUED),
    "late, started": Event(snapshot(*DONE, started), STARTED),
    "late, running": Event(snapshot(*DONE, started, HALFWAY), AT_HALF),
    "late, completed": Event(snapshot(*DONE, processed), COMPLETED),
    "late, failed": Event(snapshot(*DONE, Told.broken), FAILED),
    "no upload": Event(
        after(Told.created, Told.failed),
        message("failed", T1, text="Upload failed", error_code="CHECKSUM_MISMATCH"),
    ),
    "cancelled": Event(
        after(Told.created, Told.cancelled),
        message("failed", T1, text="The upload was cancelled."),
    ),
    "expired": Event(
        after(Told.created, Told.expired),
        message(
            *("failed", T1, 0.0, "The upload was not continued in time."),
            error_code="SESSION_EXPIRED",
        ),
    ),
    "done before": Event(
        after(Told.created, lambda told: told.duplicate(cached_result={"faces": 3})),
        message("completed", T1, 100.0, result={"faces": 3}),
    ),
    "same bytes, not done": Event(after(Told.created, Told.duplicate), []),
    "deleted before": Event(
        after(*DONE, queued, Told.deleted), message("failed", T2, text="The file was deleted.")
    ),
    "deleted after": Event(after(*DONE, processed, Told.deleted), []),
    "created": Event(after(Told.created), []),
    "bytes": Event(after(Told.created, at(1000)), []),
    "stored": Event(after(*DONE, Told.stored), []),
}


def reply(kind: str, **more: Any) -> dict[str, Any]:
    """Return an answer about a job; its time is that of writing."""
    return {"type": kind, "job_id": JOB_ID, "status": None, "progress": None, **more}


REPLIES = {
    "error": Reply(
        *("error", reply("error", message="No."), {"message": "No."}, "004:27", JOB_ID),
        known=False,
    ),
    "pong": Reply("pong", reply("pong"), line="004:25", subject=JOB_ID),
    "heartbeat": Reply("heartbeat", reply("heartbeat", job_id=None), line="004:26", subject=""),
    "subscribed": Reply("subscribed", reply("subscribed"), subject=JOB_ID),
    "unsubscribed": Reply("unsubscribed", reply("unsubscribed"), subject=JOB_ID),
}

REQUESTS = {
    "subscribe": Request(
        '{"type":"subscribe","job_id":"a"}', Message(Subscribe(("a",))), "004:45"
    ),
    "unsubscribe": Request(
        '{"type":"unsubscribe","job_id":"a"}', Message(Unsubscribe(("a",))), "004:58"
    ),
    "ping": Request('{"type":"ping"}', Message(Ping()), "004:25"),
    "token": Request('{"token":"t"}', Message(None, "t")),
    "subscribe without a job": Request(
        '{"type":"subscribe"}', Message(Malformed("job_id must be a string."))
    ),
    "job of no text": Request(
        '{"type":"subscribe","job_id":7}', Message(Malformed("job_id must be a string."))
    ),
    "unknown type": Request('{"type":"dance"}', Message(Malformed("Unknown message type."))),
    "no JSON": Request("{", Message(Malformed("Expected a JSON object."))),
}

TABLE = Table(Jobs(), EVENTS, REPLIES, REQUESTS)


@pytest.mark.parametrize("case", EVENTS)
def test_events(case: str) -> None:
    """Each change of a job is told as document 004 has it; who comes late gets the last one."""
    TABLE.check_event(case)


@pytest.mark.parametrize("case", REPLIES)
def test_replies(case: str) -> None:
    """Answers and heartbeats have a type, and name the job that they are about."""
    TABLE.check_reply(case)


@pytest.mark.parametrize("case", REQUESTS)
def test_requests(case: str) -> None:
    """Each message is understood as document 004 means it; what is not, is malformed."""
    TABLE.check_request(case)


def test_the_heartbeat_is_that_of_the_table() -> None:
    """What is sent after a silence is the heartbeat that the table checks."""
    assert b'"type":"heartbeat"' in Jobs().heartbeat()


def test_a_silence_ends_no_client_of_the_document() -> None:
    """Catches heartbeats on which the document's own loop fails (004:226)."""
    data = json.loads(Jobs().heartbeat())
    printed = f"Status: {data['status']}, Progress: {data['progress']}%"
    assert printed == "Status: None, Progress: None%"
