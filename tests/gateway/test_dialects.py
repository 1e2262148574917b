"""Every message of documents 000 and 001, in both directions, to the letter.

Where a case stands for a line of a document, it names it (``000:189``).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.gateway.dialects import ALL, Dialect
from services.gateway.dialects.dashboard import Dashboard
from services.gateway.dialects.media import Media
from services.gateway.dialects.protocol import (
    GetStats,
    Malformed,
    Message,
    Ping,
    Subscribe,
    Unsubscribe,
)
from services.gateway.folding import change_of, fold, move
from services.gateway.state import Change, ProgressState
from shared.events import LifecycleEvent
from tests.gateway.samples import ADA, SIZE, START, Told

UPLOAD_ID = "0b7f7a52-63a5-4b8e-9d4c-6d5f0c1a2b3c"

Step = Callable[[Told], LifecycleEvent]


def after(*steps: Step, size: int | None = SIZE) -> tuple[Change, ProgressState]:
    """Return the last change and the state after the events."""
    told, state, change = Told(UPLOAD_ID, size=size), None, Change.SNAPSHOT
    for step in steps:
        event = step(told)
        state, change = fold(state, event), change_of(event)
    assert state is not None
    return change, state


def moved(offset: int, speed: float = 0.0, *, size: int | None = SIZE) -> ProgressState:
    """Return the state of an upload under way, some milliseconds after its creation."""
    _, state = after(Told.created, size=size)
    told = Told(UPLOAD_ID, size=size)
    found = move(state, told.position(offset, speed=speed, at=START + 250))
    assert found is not None
    return found


def dashboard(kind: str, at: str, **data: Any) -> dict[str, Any]:
    """Return a message of document 000 as it must be (000:187 to 204)."""
    numbers = {"percentage": 0.0, "bytes_uploaded": 0, "total_bytes": SIZE}
    speeds = {"upload_speed": 0.0, "estimated_completion": None}
    return {
        "event_type": kind,
        "session_id": UPLOAD_ID,
        "user_id": "ada",
        "data": {**numbers, **speeds, **data},
        "timestamp": at,
    }


WHOLE = {"percentage": 100.0, "bytes_uploaded": SIZE}
ENDS = {
    "video_id": UPLOAD_ID,
    "analysis_id": f"job-of-{UPLOAD_ID}",
    "redirect_url": f"/dashboard/videos/{UPLOAD_ID}/results",
}
T0, T1, T2 = "2025-01-01T12:00:00Z", "2025-01-01T12:00:01Z", "2025-01-01T12:00:02Z"

DASHBOARD = {
    "created": (after(Told.created), dashboard("upload_progress", T0)),  # 000:189
    "progress": (  # 000:189, 193 to 197
        (Change.PROGRESS, moved(1_024_000, 102_400.04)),
        dashboard(
            "upload_progress",
            "2025-01-01T12:00:00.250Z",
            percentage=45.51,
            bytes_uploaded=1_024_000,
            upload_speed=102400.0,
            estimated_completion="2025-01-01T12:00:12.222Z",
        ),
    ),
    "progress of a deferred length": (
        (Change.PROGRESS, moved(1000, 10.0, size=None)),
        dashboard(
            "upload_progress",
            "2025-01-01T12:00:00.250Z",
            bytes_uploaded=1000,
            total_bytes=None,
            upload_speed=10.0,
        ),
    ),
    "complete": (  # 000:189, 198 to 200
        after(Told.created, Told.completed),
        dashboard("upload_complete", T1, **WHOLE, **ENDS),
    ),
    "duplicate": (
        after(Told.created, Told.duplicate),
        dashboard("upload_complete", T1, **WHOLE, **{**ENDS, "redirect_url": None}),
    ),
    "error": (  # 000:189, 201
        after(Told.created, Told.failed),
        dashboard(
            "upload_error", T1, error_message="Upload failed", error_code="CHECKSUM_MISMATCH"
        ),
    ),
    "cancelled": (
        after(Told.created, Told.cancelled),
        dashboard(
            "upload_error", T1, error_message="The upload was cancelled.", error_code=None
        ),
    ),
    "expired": (
        after(Told.created, Told.expired),
        dashboard(
            "upload_error",
            T1,
            error_message="The upload was not continued in time.",
            error_code="SESSION_EXPIRED",
        ),
    ),
    "deleted": (
        after(Told.created, Told.completed, Told.deleted),
        dashboard(
            "upload_error",
            T2,
            **WHOLE,
            error_message="The file was deleted.",
            error_code=None,
        ),
    ),
    "snapshot of a finished one": (
        (Change.SNAPSHOT, after(Told.created, Told.completed, Told.stored)[1]),
        dashboard("upload_complete", T2, **WHOLE, **ENDS),
    ),
    "stored": (after(Told.created, Told.completed, Told.stored), None),
    "job": (after(Told.created, Told.completed, Told.queued), None),
}


@pytest.mark.parametrize("case", DASHBOARD)
def test_dashboard_events(case: str) -> None:
    """Each change is told exactly as document 000 has it, or not at all."""
    (change, state), expected = DASHBOARD[case]
    encoded = Dashboard().encode(change, state)
    assert (None if encoded is None else json.loads(encoded)) == expected


def media(
    kind: str, status: str, progress: float, sent: int, size: int, message: str | None = None
) -> dict[str, Any]:
    """Return a message of document 001 as it must be (001:19 to 28)."""
    more = {} if message is None else {"message": message}
    return {
        "type": kind,
        "upload_id": UPLOAD_ID,
        "progress": progress,
        "bytes_sent": sent,
        "total_size": size,
        "status": status,
        **more,
    }


MEDIA = {
    "created": (after(Told.created), media("created", "created", 0.0, 0, SIZE)),  # 001:33
    "progress": (  # 001:34
        (Change.PROGRESS, moved(1_024_000)),
        media("progress", "uploading", 45.51, 1_024_000, SIZE),
    ),
    "progress without a byte": (
        (Change.PROGRESS, moved(0)),
        media("progress", "uploading", 0.0, 0, SIZE),
    ),
    "progress of a deferred length": (
        (Change.PROGRESS, moved(1000, size=None)),
        media("progress", "uploading", 0.0, 1000, 0),
    ),
    "complete": (  # 001:35
        after(Told.created, Told.completed),
        media("complete", "completed", 100.0, SIZE, SIZE),
    ),
    "duplicate": (
        after(Told.created, Told.duplicate),
        media("complete", "completed", 100.0, SIZE, SIZE),
    ),
    "error": (  # 001:36
        after(Told.created, Told.failed),
        media("error", "failed", 0.0, 0, SIZE, "Upload failed"),
    ),
    "cancelled": (
        after(Told.created, Told.cancelled),
        media("error", "failed", 0.0, 0, SIZE, "The upload was cancelled."),
    ),
    "expired": (
        after(Told.created, Told.expired),
        media("error", "failed", 0.0, 0, SIZE, "The upload was not continued in time."),
    ),
    "deleted": (
        after(Told.created, Told.completed, Told.deleted),
        media("error", "failed", 100.0, SIZE, SIZE, "The file was deleted."),
    ),
    "snapshot of a new one": (
        (Change.SNAPSHOT, after(Told.created)[1]),
        media("created", "created", 0.0, 0, SIZE),
    ),
    "snapshot of one under way": (
        (Change.SNAPSHOT, moved(1_024_000)),
        media("progress", "uploading", 45.51, 1_024_000, SIZE),
    ),
    "snapshot of a finished one": (
        (Change.SNAPSHOT, after(Told.created, Told.completed, Told.queued)[1]),
        media("complete", "completed", 100.0, SIZE, SIZE),
    ),
    "stored": (after(Told.created, Told.completed, Told.stored), None),
    "job": (after(Told.created, Told.completed, Told.queued), None),
}


@pytest.mark.parametrize("case", MEDIA)
def test_media_events(case: str) -> None:
    """Each change is told exactly as document 001 has it, or not at all."""
    (change, state), expected = MEDIA[case]
    encoded = Media().encode(change, state)
    assert (None if encoded is None else json.loads(encoded)) == expected


FROM_CLIENTS: dict[str, tuple[Dialect, str, Message]] = {
    "subscribe (000:180)": (
        Dashboard(),
        '{"type":"subscribe_session","session_id":"a"}',
        Message(Subscribe(("a",))),
    ),
    "unsubscribe (000:180)": (
        Dashboard(),
        '{"type":"unsubscribe_session","session_id":"a"}',
        Message(Unsubscribe(("a",))),
    ),
    "ping (000:180)": (Dashboard(), '{"type":"ping"}', Message(Ping())),
    "get_stats (000:180)": (Dashboard(), '{"type":"get_stats"}', Message(GetStats())),
    "token alone (000:182)": (Dashboard(), '{"token":"t"}', Message(None, "t")),
    "token, named": (
        Dashboard(),
        '{"type":"authenticate","token":"t"}',
        Message(None, "t"),
    ),
    "token with a request (000:179 to 183)": (
        Dashboard(),
        '{"type":"subscribe_session","session_id":"a","token":"t"}',
        Message(Subscribe(("a",)), "t"),
    ),
    "token of no text": (
        Dashboard(),
        '{"type":"ping","token":1}',
        Message(Malformed("token must be a string.")),
    ),
    "subscribe without id": (
        Dashboard(),
        '{"type":"subscribe_session"}',
        Message(Malformed("session_id must be a string.")),
    ),
    "unknown type": (
        Dashboard(),
        '{"type":"dance"}',
        Message(Malformed("Unknown message type.")),
    ),
    "no type": (Dashboard(), "{}", Message(Malformed("Unknown message type."))),
    "type of no text": (
        Dashboard(),
        '{"type":[],"token":"t"}',
        Message(Malformed("type must be a string."), "t"),
    ),
    "no object": (Dashboard(), "[]", Message(Malformed("Expected a JSON object."))),
    "no JSON": (Dashboard(), "{", Message(Malformed("Expected a JSON object."))),
    "media: token": (Media(), '{"type":"x","token":"t"}', Message(None, "t")),
    "media: ping": (Media(), '{"type":"ping"}', Message(Ping())),
    "media: unknown": (
        Media(),
        '{"type":"dance"}',
        Message(Malformed("Unknown message type.")),
    ),
    "media: no JSON": (Media(), "", Message(Malformed("Expected a JSON object."))),
}


@pytest.mark.parametrize("case", FROM_CLIENTS)
def test_messages_from_clients(case: str) -> None:
    """Each message is understood as its document means it; what is not, is malformed."""
    dialect, text, expected = FROM_CLIENTS[case]
    assert dialect.parse(text) == expected


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner)),
    max_leaves=8,
)
MESSAGES = st.dictionaries(
    st.sampled_from(["type", "session_id", "token", "timestamp", "x"]),
    st.one_of(
        JSON,
        st.sampled_from(["subscribe_session", "unsubscribe_session", "ping", "authenticate"]),
    ),
)


@pytest.mark.parametrize("dialect", ALL, ids=lambda one: type(one).__name__)
@given(st.one_of(st.text(), MESSAGES.map(json.dumps), JSON.map(json.dumps)))
@example("[" * 60_000)
@example('{"type":' * 8_000)
@example('{"type":"\\ud800","session_id":"\\ud800","token":"\\ud800"}')
@example('{"type":"subscribe_session","session_id":"\\u0000"}')
@example('{"type":1e999}')
@example('{"type":{"type":[]}}')
def test_hostile_messages_never_raise(dialect: Dialect, text: str) -> None:
    """Whatever text arrives, it is a message; and what it names can be told back."""
    message = dialect.parse(text)
    if isinstance(message.request, Subscribe | Unsubscribe):
        (subject,) = message.request.ids
        answer = dialect.reply("subscribed", subject=subject, caller=ADA, data={})
        assert json.loads(answer)


@pytest.mark.parametrize("kind", ["subscribed", "unsubscribed", "pong", "authenticated"])
def test_dashboard_replies(kind: str) -> None:
    """Replies come in the envelope of the events."""
    reply = json.loads(Dashboard().reply(kind, subject="a", caller=ADA, data={}))
    assert list(reply) == ["event_type", "session_id", "user_id", "data", "timestamp"]
    assert (reply["event_type"], reply["session_id"], reply["user_id"]) == (kind, "a", "ada")


def test_dashboard_stats() -> None:
    """Statistics stand in ``data``."""
    reply = Dashboard().reply("stats", subject="", caller=ADA, data={"subscriptions": 2})
    assert json.loads(reply)["data"] == {"subscriptions": 2}


def test_dashboard_error_before_login() -> None:
    """An error has its text where events have it, also for somebody who is nobody yet."""
    reply = Dashboard().reply("error", subject="", caller=None, data={"message": "No."})
    error = json.loads(reply)
    assert (error["event_type"], error["user_id"]) == ("error", "")
    assert error["data"] == {"error_message": "No.", "message": "No."}


def test_media_error() -> None:
    """An error about the socket has the form of document 001 (001:20 to 28)."""
    reply = Media().reply("error", subject=UPLOAD_ID, caller=None, data={"message": "No."})
    assert json.loads(reply) == media("error", "failed", 0.0, 0, 0, "No.")


def test_paths() -> None:
    """The paths are those of the documents (000:63 and 64, 001:14)."""
    assert [path for dialect in ALL for path in dialect.paths] == [
        "/ws/upload-progress",
        "/ws/upload-progress/{upload_id}",
        "/api/v1/ws/{upload_id}",
    ]
