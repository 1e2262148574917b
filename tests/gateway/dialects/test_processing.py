"""Every message of document 003, in both directions, to the letter."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.gateway.dialects.processing import Processing
from services.gateway.dialects.protocol import Malformed, Message, Ping
from tests.gateway.dialects.harness import (
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

ROWS = {"processed_rows": 1000, "data_quality_score": 98.5}


def status(name: str, text: str, progress: float = 0.0, **more: Any) -> dict[str, Any]:
    """Return a status as it must be (003:207 to 214)."""
    about = {"type": "status", "status": name, "message": text, "progress": progress}
    return {**about, "rows_processed": 0, "total_rows": 0, "stage": None, **more}


def progress(percent: float, text: str, current: int, total: int, stage: str | None) -> Any:
    """Return a progress as it must be (003:219 to 225)."""
    return {
        "type": "progress",
        "percent": percent,
        "message": text,
        "current": current,
        "total": total,
        "stage": stage,
    }


def complete(text: str, **results: Any) -> dict[str, Any]:
    """Return a completion as it must be (003:239 to 254)."""
    return {"type": "complete", "message": text, "results": {"upload_id": UPLOAD_ID, **results}}


def failed(text: str, details: str, *, done: float = 0.0) -> list[dict[str, Any]]:
    """Return how a failure is told: the status, and the error (003:230 to 234)."""
    error = {"type": "error", "message": text, "details": details}
    return [status("failed", text, done), error]


def validating(told: Told) -> Any:
    """Tell that the worker has begun, with the rows."""
    return told.started(stage="validating", message="Loading and validating CSV...")


def processed(told: Told) -> Any:
    """Tell that the rows are done."""
    return told.processed(message="Upload processing complete!", result=ROWS)


def duplicate(told: Told) -> Any:
    """Tell that the same rows were done before."""
    return told.duplicate(cached_result=ROWS)


DONE = (Told.created, Told.completed)
HALFWAY = working(
    45.2, stage="calculating", message="Processing rows...", current=452, total=1000
)
FURTHER = working(
    50.0, stage="calculating", message="Processing rows...", current=500, total=1000
)
PENDING = [status("pending", "Waiting for processing")]
AT_HALF = progress(45.2, "Processing rows...", 452, 1000, "calculating")
HALF_STATUS = status(
    *("processing", "Processing rows...", 45.2),
    rows_processed=452,
    total_rows=1000,
    stage="calculating",
)
COMPLETE = [
    status("completed", "Upload processing complete!", 100.0),
    complete("Upload processing complete!", **ROWS),
]
BROKEN = failed("Processing failed", "PROCESSING_FAILED")

EVENTS = {
    "pending, no byte": Event(snapshot(Told.created), PENDING, "003:24"),
    "pending, bytes arrive": Event(snapshot(Told.created, at(1000)), PENDING),
    "pending, complete": Event(snapshot(*DONE), PENDING),
    "pending, queued": Event(
        after(*DONE, lambda told: told.queued(message="Third in line")),
        [status("pending", "Third in line")],
    ),
    "validating": Event(
        after(*DONE, Told.queued, validating),
        [status("validating", "Loading and validating CSV...", stage="validating")],
        "003:68",
    ),
    "processing": Event(
        after(*DONE, Told.started), [status("processing", "Processing")], "003:64"
    ),
    "another stage": Event(
        after(*DONE, validating, HALFWAY), [HALF_STATUS, AT_HALF], "003:208"
    ),
    "progress": Event(
        after(*DONE, validating, HALFWAY, FURTHER),
        [progress(50.0, "Processing rows...", 500, 1000, "calculating")],
        "003:220",
    ),
    "progress with nothing to count": Event(
        after(*DONE, Told.started, working(5.0)), [progress(5.0, "", 0, 0, None)]
    ),
    "progress before the start": Event(
        after(*DONE, Told.queued, working(5.0)),
        [status("processing", "Processing", 5.0), progress(5.0, "", 0, 0, None)],
    ),
    "complete": Event(after(*DONE, processed), COMPLETE, "003:88"),
    "complete without results": Event(
        after(*DONE, Told.processed),
        [
            status("completed", "Upload processing complete!", 100.0),
            complete("Upload processing complete!"),
        ],
    ),
    "failed": Event(after(*DONE, Told.broken), BROKEN, "003:231"),
    "failed without a word": Event(
        after(*DONE, lambda told: told.broken("", error_code="")),
        failed("The processing failed.", ""),
    ),
    "late, running": Event(snapshot(*DONE, validating, HALFWAY), [HALF_STATUS]),
    "late, complete": Event(snapshot(*DONE, processed), COMPLETE, "003:240"),
    "late, failed": Event(snapshot(*DONE, Told.broken), BROKEN),
    "done before": Event(
        after(Told.created, duplicate),
        [*COMPLETE[:1], complete("Upload processing complete!", **ROWS)],
    ),
    "same bytes, not done": Event(after(Told.created, Told.duplicate), []),
    "no upload": Event(
        after(Told.created, Told.failed), failed("Upload failed", "CHECKSUM_MISMATCH")
    ),
    "cancelled": Event(
        after(Told.created, Told.cancelled), failed("The upload was cancelled.", "")
    ),
    "expired": Event(
        after(Told.created, Told.expired),
        failed("The upload was not continued in time.", "SESSION_EXPIRED"),
    ),
    "deleted before": Event(
        after(*DONE, Told.queued, Told.deleted), failed("The file was deleted.", "")
    ),
    "deleted after": Event(after(*DONE, processed, Told.deleted), []),
    "created": Event(after(Told.created), []),
    "bytes": Event(after(Told.created, at(1000)), []),
    "completed": Event(after(*DONE), []),
    "stored": Event(after(*DONE, Told.stored), []),
}

WELCOME = "Authentication successful"
REPLIES = {
    "authenticated": Reply(
        "authenticated",
        {"type": "authenticated", "message": WELCOME},
        {"message": WELCOME},
        "003:200",
    ),
    "pong": Reply(
        "pong",
        {"type": "pong", "timestamp": 1_704_484_800},
        {"timestamp": 1_704_484_800},
        "003:260",
    ),
    "access denied": Reply(
        "error",
        {"type": "error", "message": "Access denied to this upload", "details": ""},
        {"message": "Access denied to this upload"},
        "003:286",
        known=False,
    ),
}

REQUESTS = {
    "authenticate": Request(
        '{"type":"authenticate","token":"t"}', Message(None, "t"), "003:182"
    ),
    "ping": Request(
        '{"type":"ping","timestamp":1704484800}',
        Message(Ping({"timestamp": 1_704_484_800})),
        "003:190",
    ),
    "ping without a time": Request('{"type":"ping"}', Message(Ping({"timestamp": None}))),
    "ping with a list": Request(
        '{"type":"ping","timestamp":[[]]}',
        Message(Malformed("timestamp must be a number or a string.")),
    ),
    "unknown type": Request('{"type":"dance"}', Message(Malformed("Unknown message type."))),
    "no JSON": Request("{", Message(Malformed("Expected a JSON object."))),
}

TABLE = Table(Processing(), EVENTS, REPLIES, REQUESTS)


@pytest.mark.parametrize("case", EVENTS)
def test_events(case: str) -> None:
    """The status where it changes, progress, and the end: as the helpers of 003 send them."""
    TABLE.check_event(case)


@pytest.mark.parametrize("case", REPLIES)
def test_replies(case: str) -> None:
    """Answers are those of document 003."""
    TABLE.check_reply(case)


@pytest.mark.parametrize("case", REQUESTS)
def test_requests(case: str) -> None:
    """Each message is understood as document 003 means it; what is not, is malformed."""
    TABLE.check_request(case)


@pytest.mark.parametrize("stamp", [0, 1.5, "2025-11-05", None, True, 2**70])
def test_a_timestamp_comes_back_as_it_was(stamp: object) -> None:
    """A pong repeats the timestamp of its ping, of whatever kind that is."""
    request = Processing().parse(json.dumps({"type": "ping", "timestamp": stamp})).request
    assert isinstance(request, Ping)
    answer = Processing().reply("pong", subject="", caller=None, data=request.data)
    assert json.loads(answer) == {"type": "pong", "timestamp": stamp}
