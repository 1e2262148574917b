"""Every message of document 000, in both directions, to the letter."""

from __future__ import annotations

from typing import Any

import pytest

from services.gateway.dialects.dashboard import Dashboard
from services.gateway.dialects.protocol import (
    GetStats,
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
    moved,
    snapshot,
    working,
)
from tests.gateway.samples import SIZE, Told


def message(kind: str, at: str, **data: Any) -> list[dict[str, Any]]:
    """Return a message as it must be (000:188 to 204)."""
    numbers = {"percentage": 0.0, "bytes_uploaded": 0, "total_bytes": SIZE}
    speeds = {"upload_speed": 0.0, "estimated_completion": None}
    return [
        {
            "event_type": kind,
            "session_id": UPLOAD_ID,
            "user_id": "ada",
            "data": {**numbers, **speeds, **data},
            "timestamp": at,
        }
    ]


WHOLE = {"percentage": 100.0, "bytes_uploaded": SIZE}
ENDS = {
    "video_id": UPLOAD_ID,
    "analysis_id": JOB_ID,
    "redirect_url": f"/dashboard/videos/{UPLOAD_ID}/results",
}

EVENTS = {
    "created": Event(after(Told.created), message("upload_progress", T0), "000:189"),
    "progress": Event(
        moved(1_024_000, 102_400.04),
        message(
            "upload_progress",
            "2025-01-01T12:00:00.250Z",
            percentage=45.51,
            bytes_uploaded=1_024_000,
            upload_speed=102400.0,
            estimated_completion="2025-01-01T12:00:12.222Z",
        ),
        "000:193",
    ),
    "progress of a deferred length": Event(
        moved(1000, 10.0, size=None),
        message(
            "upload_progress",
            "2025-01-01T12:00:00.250Z",
            bytes_uploaded=1000,
            total_bytes=None,
            upload_speed=10.0,
        ),
    ),
    "complete": Event(
        after(Told.created, Told.completed),
        message("upload_complete", T1, **WHOLE, **ENDS),
        "000:198",
    ),
    "duplicate": Event(
        after(Told.created, Told.duplicate),
        message("upload_complete", T1, **WHOLE, **{**ENDS, "redirect_url": None}),
    ),
    "error": Event(
        after(Told.created, Told.failed),
        message(
            "upload_error", T1, error_message="Upload failed", error_code="CHECKSUM_MISMATCH"
        ),
        "000:201",
    ),
    "cancelled": Event(
        after(Told.created, Told.cancelled),
        message("upload_error", T1, error_message="The upload was cancelled.", error_code=None),
    ),
    "expired": Event(
        after(Told.created, Told.expired),
        message(
            "upload_error",
            T1,
            error_message="The upload was not continued in time.",
            error_code="SESSION_EXPIRED",
        ),
    ),
    "deleted": Event(
        after(Told.created, Told.completed, Told.deleted),
        message(
            "upload_error", T2, **WHOLE, error_message="The file was deleted.", error_code=None
        ),
    ),
    "snapshot of a finished one": Event(
        snapshot(Told.created, Told.completed, Told.stored),
        message("upload_complete", T2, **WHOLE, **ENDS),
    ),
    "stored": Event(after(Told.created, Told.completed, Told.stored), []),
    "queued": Event(after(Told.created, Told.completed, Told.queued), []),
    "processed": Event(
        after(Told.created, Told.completed, Told.started, working(5.0), Told.processed), []
    ),
}


def reply(kind: str, user_id: str = "ada", **data: Any) -> dict[str, Any]:
    """Return a reply, in the envelope of the events; its time is that of writing."""
    about = {"event_type": kind, "session_id": UPLOAD_ID, "user_id": user_id}
    return {**about, "data": data}


DENIED = {"message": "No."}
REPLIES = {
    "subscribed": Reply("subscribed", reply("subscribed")),
    "unsubscribed": Reply("unsubscribed", reply("unsubscribed")),
    "pong": Reply("pong", reply("pong")),
    "authenticated": Reply("authenticated", reply("authenticated")),
    "stats": Reply("stats", reply("stats", subscriptions=2), {"subscriptions": 2}),
    "error": Reply("error", reply("error", error_message="No.", **DENIED), DENIED),
    "error before login": Reply(
        "error", reply("error", "", error_message="No.", **DENIED), DENIED, known=False
    ),
}

REQUESTS = {
    "subscribe": Request(
        '{"type":"subscribe_session","session_id":"a"}', Message(Subscribe(("a",))), "000:180"
    ),
    "unsubscribe": Request(
        '{"type":"unsubscribe_session","session_id":"a"}',
        Message(Unsubscribe(("a",))),
        "000:180",
    ),
    "ping": Request('{"type":"ping"}', Message(Ping()), "000:180"),
    "get_stats": Request('{"type":"get_stats"}', Message(GetStats()), "000:180"),
    "token alone": Request('{"token":"t"}', Message(None, "t"), "000:182"),
    "token, named": Request('{"type":"authenticate","token":"t"}', Message(None, "t")),
    "token with a request": Request(
        '{"type":"subscribe_session","session_id":"a","token":"t"}',
        Message(Subscribe(("a",)), "t"),
        "000:179",
    ),
    "token of no text": Request(
        '{"type":"ping","token":1}', Message(Malformed("token must be a string."))
    ),
    "subscribe without id": Request(
        '{"type":"subscribe_session"}', Message(Malformed("session_id must be a string."))
    ),
    "unknown type": Request('{"type":"dance"}', Message(Malformed("Unknown message type."))),
    "no type": Request("{}", Message(Malformed("Unknown message type."))),
    "type of no text": Request(
        '{"type":[],"token":"t"}', Message(Malformed("type must be a string."), "t")
    ),
    "no object": Request("[]", Message(Malformed("Expected a JSON object."))),
    "no JSON": Request("{", Message(Malformed("Expected a JSON object."))),
}

TABLE = Table(Dashboard(), EVENTS, REPLIES, REQUESTS)


@pytest.mark.parametrize("case", EVENTS)
def test_events(case: str) -> None:
    """Each change is told exactly as document 000 has it, or not at all."""
    TABLE.check_event(case)


@pytest.mark.parametrize("case", REPLIES)
def test_replies(case: str) -> None:
    """Replies come in the envelope of the events, with the text of an error where those do."""
    TABLE.check_reply(case)


@pytest.mark.parametrize("case", REQUESTS)
def test_requests(case: str) -> None:
    """Each message is understood as document 000 means it; what is not, is malformed."""
    TABLE.check_request(case)
