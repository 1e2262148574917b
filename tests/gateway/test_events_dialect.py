"""Every message of dialect *events*, in both directions and both encodings."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.gateway.dialects.events import EventsJson, EventsMsgpack
from services.gateway.dialects.protocol import (
    Malformed,
    Message,
    Ping,
    Refresh,
    Subscribe,
    Unsubscribe,
)
from services.gateway.dialects.protocol import Told as ToldEvent
from services.gateway.dialects.server_sent import CHUNKED, PLAIN
from services.gateway.folding import change_of, fold, move
from services.gateway.state import Change, ProgressState
from shared import events
from shared.events import LifecycleEvent
from tests.gateway.samples import ADA, SIZE, Told

UPLOAD_ID: Final = "0b7f7a52-63a5-4b8e-9d4c-6d5f0c1a2b3c"
EVENT_ID: Final = "1735732800000-0-7"
BOTH: Final = pytest.mark.parametrize(
    "dialect", [EventsJson(), EventsMsgpack()], ids=["json", "msgpack"]
)


def parsed(dialect: EventsJson, message: Any) -> Message:
    """Return what a dialect makes of a message in its encoding."""
    if dialect.binary:
        return dialect.parse_binary(msgspec.msgpack.encode(message))
    return dialect.parse(json.dumps(message))


def read(dialect: EventsJson, payload: bytes) -> Any:
    """Return what a client reads."""
    return msgspec.msgpack.decode(payload) if dialect.binary else json.loads(payload)


FROM_CLIENTS: Final[dict[str, tuple[dict[str, Any], Message]]] = {
    "subscribe": (
        {"type": "subscribe", "ids": ["a", "b"]},
        Message(Subscribe(("a", "b"))),
    ),
    "subscribe since": (
        {"type": "subscribe", "ids": ["a"], "since": EVENT_ID},
        Message(Subscribe(("a",), EVENT_ID)),
    ),
    "subscribe each since": (
        {"type": "subscribe", "ids": ["a", "b"], "since": {"a": EVENT_ID}},
        Message(Subscribe(("a", "b"), {"a": EVENT_ID})),
    ),
    "subscribe since nothing": (
        {"type": "subscribe", "ids": ["a"], "since": ""},
        Message(Subscribe(("a",))),
    ),
    "follow": ({"type": "subscribe"}, Message(Subscribe(()))),
    "follow since": (
        {"type": "subscribe", "since": EVENT_ID},
        Message(Subscribe((), EVENT_ID)),
    ),
    "with token": (
        {"type": "subscribe", "ids": ["a"], "token": "t"},
        Message(Subscribe(("a",)), "t"),
    ),
    "unknown members": (
        {"type": "subscribe", "ids": ["a"], "colour": "red"},
        Message(Subscribe(("a",))),
    ),
    "unsubscribe": ({"type": "unsubscribe", "ids": ["a"]}, Message(Unsubscribe(("a",)))),
    "unsubscribe all": ({"type": "unsubscribe"}, Message(Unsubscribe(()))),
    "authenticate": ({"type": "authenticate", "token": "t"}, Message(None, "t")),
    "refresh": ({"type": "refresh", "token": "t"}, Message(Refresh(), "t")),
    "ping": ({"type": "ping"}, Message(Ping())),
    "ping with data": ({"type": "ping", "data": [1]}, Message(Ping({"data": [1]}))),
}

MALFORMED: Final[dict[str, tuple[Any, str]]] = {
    "unknown type": ({"type": "dance"}, "Unknown message type."),
    "type of no type": ({"type": 7}, "Unknown message type."),
    "no type": ({"ids": ["a"]}, "Object missing required field `type`."),
    "no object": ([1], "Expected `object`, got `array`."),
    "ids no list": (
        {"type": "subscribe", "ids": "a"},
        "Expected `array | null`, got `str` - at `$.ids`.",
    ),
    "id no text": (
        {"type": "subscribe", "ids": [7]},
        "Expected `str`, got `int` - at `$.ids[0]`.",
    ),
    "no ids": (
        {"type": "subscribe", "ids": []},
        "Expected `array` of length >= 1 - at `$.ids`.",
    ),
    "too many ids": (
        {"type": "subscribe", "ids": ["a"] * 1001},
        "Expected `array` of length <= 1000 - at `$.ids`.",
    ),
    "since no text": (
        {"type": "subscribe", "ids": ["a"], "since": 7},
        "Expected `str | object | null`, got `int` - at `$.since`.",
    ),
    "since for each of all": (
        {"type": "subscribe", "since": {"a": EVENT_ID}},
        "since is for all, where no ids are named.",
    ),
    "no token": ({"type": "refresh"}, "Object missing required field `token`."),
    "token no text": (
        {"type": "ping", "token": 7},
        "Expected `str | null`, got `int` - at `$.token`.",
    ),
}


@BOTH
@pytest.mark.parametrize("case", FROM_CLIENTS)
def test_messages_from_clients(dialect: EventsJson, case: str) -> None:
    """Each message is understood."""
    message, expected = FROM_CLIENTS[case]
    assert parsed(dialect, message) == expected


@BOTH
@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_messages(dialect: EventsJson, case: str) -> None:
    """What cannot be meant so is refused, and the client is told what was expected."""
    message, reason = MALFORMED[case]
    assert parsed(dialect, message) == Message(Malformed(reason))


def test_wrong_kind_of_frame() -> None:
    """Each encoding has its kind of frame."""
    message = Message(Malformed("Only binary messages are understood."))
    assert EventsMsgpack().parse('{"type":"ping"}') == message
    message = Message(Malformed("Only text messages are understood."))
    assert EventsJson().parse_binary(msgspec.msgpack.encode({"type": "ping"})) == message


@given(st.text())
@example("[" * 60_000)
@example('{"type":"\\ud800"}')
@example('{"type":"subscribe","ids":["\\ud800"]}')
@example('{"type":"ping","data":' + "[" * 30_000)
def test_hostile_text(text: str) -> None:
    """Whatever text comes, it is a message."""
    assert isinstance(EventsJson().parse(text), Message)


@given(st.binary())
@example(b"\x91" * 60_000)
@example(msgspec.msgpack.encode({"type": "ping", "data": msgspec.msgpack.Ext(5, b"x")}))
@example(b"\x81\xa4type\xa4\xff\xff\xff\xff")
def test_hostile_bytes(data: bytes) -> None:
    """Whatever bytes come, they are a message."""
    assert isinstance(EventsMsgpack().parse_binary(data), Message)


Step = Callable[[Told], LifecycleEvent]
STEPS: Final[tuple[Step, ...]] = (
    *(Told.created, Told.completed, Told.duplicate, Told.failed, Told.cancelled),
    *(Told.expired, Told.stored, Told.deleted),
    *(Told.queued, Told.started, Told.processed, Told.broken),
)


@BOTH
@pytest.mark.parametrize("step", STEPS, ids=lambda one: one.__name__)
def test_events(dialect: EventsJson, step: Step) -> None:
    """Each lifecycle event goes out as it stands on its stream, with its id."""
    event = step(Told(UPLOAD_ID))
    state = fold(None, event)
    assert state is not None
    payload = dialect.encode(change_of(event), state, ToldEvent(event, EVENT_ID))
    assert payload is not None
    on_stream = json.loads(events.encode(event))
    assert read(dialect, payload) == {"events": [{"id": EVENT_ID, **on_stream}]}


def created() -> ProgressState:
    """Return the state of a new upload."""
    state = fold(None, Told(UPLOAD_ID).created())
    assert state is not None
    return state


@BOTH
def test_positions(dialect: EventsJson) -> None:
    """A position has no id: it is not logged."""
    told = Told(UPLOAD_ID)
    told.created()
    position = told.position(1000)
    state = move(created(), position)
    assert state is not None
    payload = dialect.encode(Change.PROGRESS, state, ToldEvent(position))
    assert payload is not None
    (event,) = read(dialect, payload)["events"]
    assert (event["type"], event["offset"], event["size"]) == ("upload.progress", 1000, SIZE)
    assert "id" not in event
    payload = dialect.encode(Change.JOB_PROGRESS, state, ToldEvent(told.processing(12.5)))
    assert payload is not None
    (event,) = read(dialect, payload)["events"]
    assert (event["type"], event["progress"]) == ("job.progress", 12.5)


@BOTH
@pytest.mark.parametrize("gap", [False, True])
def test_states(dialect: EventsJson, gap: bool) -> None:
    """A state says whether it is the first thing, or stands for what cannot be told again."""
    found = read(dialect, dialect.show(created(), EVENT_ID, gap=gap))
    snapshot = found.pop("snapshot")
    kind = "gap" if gap else "snapshot"
    assert found == {"type": kind, "upload_id": UPLOAD_ID, "since": EVENT_ID}
    assert snapshot["session_id"] == UPLOAD_ID
    assert snapshot["status"] == "uploading"
    assert (snapshot["seq"], snapshot["job_seq"]) == (1, 0)
    assert snapshot["started_at"] == "2025-01-01T12:00:00Z"
    assert snapshot["completed_at"] is None
    assert (snapshot["percentage"], snapshot["estimated_completion"]) == (0.0, None)


ANSWERS: Final[dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]]] = {
    "subscribed": (
        *("subscribed", "", {"ids": ["a", "b"]}),
        {"type": "subscribed", "ids": ["a", "b"]},
    ),
    "unsubscribed": ("unsubscribed", "a", {}, {"type": "unsubscribed", "ids": ["a"]}),
    "pong": ("pong", "", {"data": 7}, {"type": "pong", "data": 7}),
    "refreshed": (
        *("refreshed", "", {"expires_at": "2025-01-01T12:00:00Z"}),
        {"type": "refreshed", "expires_at": "2025-01-01T12:00:00Z"},
    ),
    "authenticated": (
        *("authenticated", "", {"message": "Welcome."}),
        {"type": "authenticated", "message": "Welcome."},
    ),
    "error": ("error", "a", {"message": "No."}, {"type": "error", "id": "a", "message": "No."}),
}


@BOTH
@pytest.mark.parametrize("case", ANSWERS)
def test_answers(dialect: EventsJson, case: str) -> None:
    """Each answer has its type, and says what it is about."""
    kind, subject, data, expected = ANSWERS[case]
    assert (
        read(dialect, dialect.reply(kind, subject=subject, caller=ADA, data=data)) == expected
    )


def frames_in(data: bytes) -> list[tuple[int, bytes]]:
    """Return first byte and payload of each frame."""
    found, at = [], 0
    while at < len(data):
        size, start = data[at + 1], at + 2
        if size >= 126:
            start = at + (4 if size == 126 else 10)
            size = int.from_bytes(data[at + 2 : start])
        found.append((data[at], data[start : start + size]))
        at = start + size
    return found


OWED: Final = st.lists(
    st.one_of(st.just("answer"), st.integers(0, 70_000), st.integers(0, 40)), max_size=40
)


@BOTH
@given(owed=OWED)
@example(owed=[1] * 40)
@example(owed=[40_000, 40_000, 1, "answer", 1, 1])
def test_joining(dialect: EventsJson, owed: list[str | int]) -> None:
    """What is due together comes in few messages, none large, nothing lost or moved."""
    told, frames, expected = Told(UPLOAD_ID), [], []
    for number, one in enumerate(owed):
        if isinstance(one, str):
            payload = dialect.reply("pong", subject="", caller=ADA, data={"data": number})
            expected.append(number)
        else:
            event = told.failed("." * one)
            payload = (
                dialect.encode(Change.FAILED, created(), ToldEvent(event, EVENT_ID)) or b""
            )
            expected.append(event.seq)
        frames.append(dialect.framed(payload))
    found, sizes = [], []
    for first, payload in frames_in(dialect.join(frames)):
        assert first == (0x82 if dialect.binary else 0x81)
        message = read(dialect, payload)
        if "events" in message:
            found += [event["seq"] for event in message["events"]]
            sizes.append((len(message["events"]), len(payload)))
        else:
            found.append(message["data"])
    assert found == expected
    assert all(count == 1 or size < 66_000 for count, size in sizes)
    runs = sum(
        isinstance(one, int) and (not at or isinstance(owed[at - 1], str))
        for at, one in enumerate(owed)
    )
    if all(isinstance(one, str) or one <= 40 for one in owed):
        assert len(sizes) == runs


def test_server_sent() -> None:
    """An event is one block, in a chunk of its own where the protocol has chunks."""
    event = Told(UPLOAD_ID).failed("two\nlines")
    payload = PLAIN.encode(Change.FAILED, created(), ToldEvent(event, EVENT_ID))
    assert payload is not None
    lines = payload.decode().split("\n")
    assert lines[:2] == [f"id: {EVENT_ID}", "event: upload.failed"]
    assert json.loads(lines[2].removeprefix("data: "))["error_message"] == "two\nlines"
    assert lines[3:] == ["", ""]
    assert PLAIN.framed(payload) == payload
    assert CHUNKED.framed(payload) == b"%x\r\n" % len(payload) + payload + b"\r\n"
    assert CHUNKED.encode(Change.SNAPSHOT, created()) == CHUNKED.show(created())
    refused = PLAIN.reply("error", subject="a", caller=ADA, data={"message": "No."})
    assert refused.startswith(b"event: refused\n")
    assert PLAIN.parse("x") == Message(Malformed("Nothing can be said here."))
