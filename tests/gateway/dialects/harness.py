"""What the tables of messages are made of: a state and what it must be told as, to the letter.

A case that stands for a line of a document names it (``000:189``); where the document is
silent, and we have decided, it names none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from services.gateway.dialects import Dialect
from services.gateway.dialects.protocol import Malformed, Message
from services.gateway.folding import change_of, change_of_position, fold, move
from services.gateway.state import Change, ProgressState
from shared.events import JobProgress, LifecycleEvent, UploadProgress
from tests.gateway.samples import ADA, SIZE, START, Told

__all__ = [
    "JOB_ID",
    "T0",
    "T1",
    "T2",
    "UPLOAD_ID",
    "Event",
    "Reply",
    "Request",
    "Step",
    "Table",
    "after",
    "at",
    "moved",
    "said",
    "snapshot",
    "working",
]

UPLOAD_ID: Final = "0b7f7a52-63a5-4b8e-9d4c-6d5f0c1a2b3c"
JOB_ID: Final = f"job-of-{UPLOAD_ID}"
T0, T1, T2 = "2025-01-01T12:00:00Z", "2025-01-01T12:00:01Z", "2025-01-01T12:00:02Z"

Step = Callable[[Told], LifecycleEvent | UploadProgress | JobProgress]
Moment = tuple[Change, ProgressState]


def after(*steps: Step, size: int | None = SIZE) -> Moment:
    """Return the last change and the state after what was told."""
    told, change = Told(UPLOAD_ID, size=size), Change.SNAPSHOT
    state: ProgressState | None = None
    for step in steps:
        event, before = step(told), state
        if isinstance(event, UploadProgress | JobProgress):
            assert before is not None
            state = move(before, event)
            assert state is not None
            change = change_of_position(event, before, state)
        else:
            state, change = fold(before, event), change_of(event)
    assert state is not None
    return change, state


def snapshot(*steps: Step, size: int | None = SIZE) -> Moment:
    """Return what somebody sees who comes after all that."""
    return Change.SNAPSHOT, after(*steps, size=size)[1]


def at(offset: int, speed: float = 0.0) -> Step:
    """Return a position of the upload, a quarter of a second after its creation."""
    return lambda told: told.position(offset, speed=speed, at=START + 250)


def moved(offset: int, speed: float = 0.0, *, size: int | None = SIZE) -> Moment:
    """Return an upload under way."""
    return after(Told.created, at(offset, speed), size=size)


def working(progress: float, **more: Any) -> Step:
    """Return a position of the job."""
    return lambda told: told.processing(progress, **more)


def said(dialect: Dialect, change: Change, state: ProgressState) -> list[dict[str, Any]]:
    """Return the messages about a change."""
    payload = dialect.encode(change, state)
    if payload is None:
        return []
    decode: Callable[[bytes], dict[str, Any]] = json.loads
    if dialect.binary:
        decode = msgspec.msgpack.decode
    return [decode(one) for one in ([payload] if isinstance(payload, bytes) else payload)]


@dataclass(frozen=True)
class Event:
    """What a dialect tells of a change."""

    moment: Moment
    expected: list[dict[str, Any]]
    line: str = ""


@dataclass(frozen=True)
class Reply:
    """What a dialect answers."""

    kind: str
    expected: dict[str, Any]
    data: Mapping[str, Any] = field(default_factory=dict)
    line: str = ""
    subject: str = UPLOAD_ID
    known: bool = True
    """Whether the caller has said who he is."""


@dataclass(frozen=True)
class Request:
    """What a client says, and how it is understood."""

    text: str
    expected: Message
    line: str = ""


@dataclass(frozen=True)
class Table:
    """All messages of one dialect."""

    dialect: Dialect
    events: Mapping[str, Event]
    replies: Mapping[str, Reply]
    requests: Mapping[str, Request]

    def check_event(self, case: str) -> None:
        """Compare what is told, to the letter."""
        one = self.events[case]
        assert said(self.dialect, *one.moment) == one.expected

    def check_reply(self, case: str) -> None:
        """Compare an answer, to the letter but for the time of writing it."""
        one = self.replies[case]
        answer = self._answer(one)
        if "timestamp" in answer and "timestamp" not in one.data:
            assert isinstance(answer.pop("timestamp"), str)
        assert answer == one.expected

    def _answer(self, one: Reply) -> dict[str, Any]:
        caller = ADA if one.known else None
        reply = self.dialect.reply(
            one.kind, subject=one.subject, caller=caller, data=dict(one.data)
        )
        found: dict[str, Any] = json.loads(reply)
        return found

    def check_request(self, case: str) -> None:
        """Compare how a message is understood."""
        one = self.requests[case]
        assert self.dialect.parse(one.text) == one.expected

    def cited(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each message that stands for a line of the document, with the line."""
        for event in self.events.values():
            for message in said(self.dialect, *event.moment) if event.line else ():
                yield event.line, message
        for reply in self.replies.values():
            if reply.line:
                yield reply.line, self._answer(reply)
        for request in self.requests.values():
            understood = self.dialect.parse(request.text).request
            if request.line and not isinstance(understood, Malformed):
                yield request.line, json.loads(request.text)
