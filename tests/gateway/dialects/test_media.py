"""Every message of document 001, in both directions, to the letter."""

from __future__ import annotations

from typing import Any

import pytest

from services.gateway.dialects.media import Media
from services.gateway.dialects.protocol import Malformed, Message, Ping
from tests.gateway.dialects.harness import (
    UPLOAD_ID,
    Event,
    Reply,
    Request,
    Table,
    after,
    at,
    moved,
    snapshot,
)
from tests.gateway.samples import SIZE, Told


def message(
    kind: str,
    status: str,
    progress: float,
    sent: int,
    text: str | None = None,
    *,
    size: int = SIZE,
) -> dict[str, Any]:
    """Return a message as it must be (001:19 to 29)."""
    more = {} if text is None else {"message": text}
    counts = {"progress": progress, "bytes_sent": sent, "total_size": size}
    return {"type": kind, "upload_id": UPLOAD_ID, **counts, "status": status, **more}


def failed(text: str, *, whole: bool = False) -> list[dict[str, Any]]:
    """Return how it is told that there is no file."""
    progress, sent = (100.0, SIZE) if whole else (0.0, 0)
    return [message("error", "failed", progress, sent, text)]


COMPLETE = [message("complete", "completed", 100.0, SIZE)]

EVENTS = {
    "created": Event(after(Told.created), [message("created", "created", 0.0, 0)], "001:33"),
    "progress": Event(
        moved(1_024_000), [message("progress", "uploading", 45.51, 1_024_000)], "001:34"
    ),
    "progress without a byte": Event(moved(0), [message("progress", "uploading", 0.0, 0)]),
    "progress of a deferred length": Event(
        moved(1000, size=None), [message("progress", "uploading", 0.0, 1000, size=0)]
    ),
    "complete": Event(after(Told.created, Told.completed), COMPLETE, "001:35"),
    "duplicate": Event(after(Told.created, Told.duplicate), COMPLETE),
    "error": Event(after(Told.created, Told.failed), failed("Upload failed"), "001:36"),
    "cancelled": Event(
        after(Told.created, Told.cancelled), failed("The upload was cancelled.")
    ),
    "expired": Event(
        after(Told.created, Told.expired), failed("The upload was not continued in time.")
    ),
    "deleted": Event(
        after(Told.created, Told.completed, Told.deleted),
        failed("The file was deleted.", whole=True),
    ),
    "snapshot of a new one": Event(
        snapshot(Told.created), [message("created", "created", 0.0, 0)]
    ),
    "snapshot of one under way": Event(
        snapshot(Told.created, at(1_024_000)),
        [message("progress", "uploading", 45.51, 1_024_000)],
    ),
    "snapshot of a finished one": Event(
        snapshot(Told.created, Told.completed, Told.queued), COMPLETE
    ),
    "stored": Event(after(Told.created, Told.completed, Told.stored), []),
    "queued": Event(after(Told.created, Told.completed, Told.queued), []),
}

REPLIES = {
    "error": Reply(
        "error",
        message("error", "failed", 0.0, 0, "No.", size=0),
        {"message": "No."},
        "001:36",
        known=False,
    ),
    "pong": Reply("pong", {"type": "pong", "upload_id": UPLOAD_ID}),
    "authenticated": Reply(
        "authenticated",
        {"type": "authenticated", "upload_id": UPLOAD_ID, "message": "Welcome"},
        {"message": "Welcome"},
    ),
}

REQUESTS = {
    "token alone": Request('{"token":"t"}', Message(None, "t")),
    "token of any type": Request('{"type":"x","token":"t"}', Message(None, "t")),
    "ping": Request('{"type":"ping"}', Message(Ping())),
    "unknown type": Request('{"type":"dance"}', Message(Malformed("Unknown message type."))),
    "no JSON": Request("", Message(Malformed("Expected a JSON object."))),
}

TABLE = Table(Media(), EVENTS, REPLIES, REQUESTS)


@pytest.mark.parametrize("case", EVENTS)
def test_events(case: str) -> None:
    """Each change is told exactly as document 001 has it, or not at all."""
    TABLE.check_event(case)


@pytest.mark.parametrize("case", REPLIES)
def test_replies(case: str) -> None:
    """An error about the socket has the form of document 001 (001:20 to 28)."""
    TABLE.check_reply(case)


@pytest.mark.parametrize("case", REQUESTS)
def test_requests(case: str) -> None:
    """The document has no messages from clients; a token and a ping are understood."""
    TABLE.check_request(case)
