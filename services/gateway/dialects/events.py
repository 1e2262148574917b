"""Dialect *events*: any uploads on one socket, each event as it is, to be resumed by its id.

Two encodings of the same messages, chosen by the subprotocol: JSON in text frames, and
MessagePack in binary ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from services.gateway.dialects.protocol import (
    Dialect,
    Malformed,
    Message,
    Ping,
    Refresh,
    Request,
    Subscribe,
    Told,
    Unsubscribe,
)
from services.gateway.frames import frame, payload_of
from services.gateway.snapshot import Snapshot, snapshot_of
from services.gateway.state import Change, ProgressState
from shared.events import Event
from shared.identity import Principal
from shared.times import Timestamp

__all__ = ["EventsJson", "EventsMsgpack", "event_fields", "told_state"]

_MOST_IDS: Final = 1_000
_LARGEST_JOINED: Final = 64 * 1024
"""Bytes of one message. Clients refuse messages beyond a limit of theirs."""

_Ids: TypeAlias = Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=_MOST_IDS)]


class _Incoming(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    token: str | None = None
    """Who is calling; any message may bring it."""


class EventsSubscribe(_Incoming, frozen=True, kw_only=True, tag="subscribe"):
    """Watch uploads, by their ids, the caller's names for them, or the ids of their jobs."""

    ids: _Ids | None = None
    """All that is the caller's, if there are none."""
    since: str | dict[str, str] | None = None
    """The id of the last event that the client has: of all, or of each by the name here."""


class EventsUnsubscribe(_Incoming, frozen=True, kw_only=True, tag="unsubscribe"):
    """Watch them no more; nothing at all, if none are named."""

    ids: _Ids | None = None


class EventsAuthenticate(_Incoming, frozen=True, kw_only=True, tag="authenticate"):
    """Say who is calling."""

    token: str


class EventsRefresh(_Incoming, frozen=True, kw_only=True, tag="refresh"):
    """Go on under a newer token."""

    token: str


class EventsPing(_Incoming, frozen=True, kw_only=True, tag="ping"):
    """Ask for a sign of life."""

    data: Any = None


_Said: TypeAlias = (
    EventsSubscribe | EventsUnsubscribe | EventsAuthenticate | EventsRefresh | EventsPing
)


class _State(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    upload_id: str
    since: str
    """What goes on from here, for who watches nothing but this upload."""
    snapshot: Snapshot


class EventsSnapshot(_State, frozen=True, kw_only=True, tag="snapshot"):
    """Where an upload is that is watched from now on."""


class EventsGap(_State, frozen=True, kw_only=True, tag="gap"):
    """Events were missed that cannot be told again; this is what came of them."""


class EventsTold(msgspec.Struct, frozen=True):
    """What has happened, in order; lifecycle events have an ``id`` besides."""

    events: list[Event]


class _About(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    ids: list[str]
    """As the client called them; after ``subscribe`` to all: what there is."""


class EventsSubscribed(_About, frozen=True, kw_only=True, tag="subscribed"):
    """These are watched, and what was missed of them has been told."""


class EventsUnsubscribed(_About, frozen=True, kw_only=True, tag="unsubscribed"):
    """These are watched no more; nothing at all, if there are none."""


class EventsAuthenticated(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="authenticated"
):
    """The token is good."""

    message: str


class EventsRefreshed(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="refreshed"
):
    """The newer token counts."""

    expires_at: Timestamp | None


class EventsPong(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="pong"):
    """A sign of life."""

    data: Any = None
    """What the ping brought."""


class EventsError(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="error"):
    """A message was not obeyed, or the socket is about to be closed."""

    message: str
    id: str | None = None
    """What it is about, as the client called it."""


_from_json: Final = msgspec.json.Decoder(_Said)
_from_msgpack: Final = msgspec.msgpack.Decoder(_Said)
_to_json: Final = msgspec.json.Encoder()
_to_msgpack: Final = msgspec.msgpack.Encoder()

_JSON_HEAD: Final = b'{"events":['
_PACKED_HEAD: Final = b"\x81" + _to_msgpack.encode("events")


def event_fields(told: Told) -> dict[str, Any]:
    """Return an event as clients get it: as on its stream, with the id that it goes by."""
    fields: dict[str, Any] = msgspec.to_builtins(told.event)
    return {"id": told.id, **fields} if told.id else fields


def told_state(state: ProgressState, since: str, *, gap: bool) -> EventsSnapshot | EventsGap:
    """Return an upload's state as clients get it."""
    kind = EventsGap if gap else EventsSnapshot
    return kind(upload_id=state.session_id, since=since, snapshot=snapshot_of(state))


class EventsJson(Dialect):
    """``{"events":[…]}``, each with an ``id`` that a later ``subscribe`` takes as ``since``."""

    name = "events"
    paths = ("/v1/events/ws",)
    follows = False
    resumable = True
    subprotocol = "events.v1.json"
    receives = (
        *(EventsSubscribe, EventsUnsubscribe),
        *(EventsAuthenticate, EventsRefresh, EventsPing),
    )
    sends = (
        *(EventsTold, EventsSnapshot, EventsGap, EventsSubscribed, EventsUnsubscribed),
        *(EventsAuthenticated, EventsRefreshed, EventsPong, EventsError),
    )

    def encode(
        self, change: Change, state: ProgressState, told: Told | None = None
    ) -> bytes | None:
        """Return the event itself, whatever it is about."""
        if told is None:
            return self.show(state)
        return self._event(event_fields(told))

    def show(self, state: ProgressState, since: str = "", *, gap: bool = False) -> bytes:
        """Return the state, with the id to go on from for who watches nothing but this."""
        return self._encoded(told_state(state, since, gap=gap))

    def _event(self, fields: dict[str, Any]) -> bytes:
        return _JSON_HEAD + self._encoded(fields) + b"]}"

    def _encoded(self, fields: object) -> bytes:
        return _to_json.encode(fields)

    def parse(self, text: str) -> Message:
        """Return what a message asks for."""
        try:
            return _message(_from_json.decode(text))
        except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
            return _not_understood(exc)

    def reply(
        self, kind: str, *, subject: str, caller: Principal | None, data: dict[str, Any]
    ) -> bytes:
        """Return an answer: its ``type``, what it is about, and what it says."""
        about: dict[str, Any] = {}
        if subject:
            about = {"ids": [subject]} if kind.endswith("subscribed") else {"id": subject}
        return self._encoded({"type": kind, **about, **data})

    def join(self, frames: Collection[bytes]) -> bytes:
        """Return the frames with events that follow one another put into one."""
        return b"".join(self._joined(frames))

    def _joined(self, frames: Collection[bytes]) -> Iterator[bytes]:
        run: list[bytes] = []
        size = 0
        for framed in frames:
            body = self._body_of(payload_of(framed))
            if run and (body is None or size + len(body) > _LARGEST_JOINED):
                yield self._frame_of(run)
                run, size = [], 0
            if body is None:
                yield framed
            else:
                run.append(body)
                size += len(body)
        if run:
            yield self._frame_of(run)

    def _body_of(self, payload: bytes) -> bytes | None:
        """Return the event in a message; ``None`` for another kind of message."""
        return payload[len(_JSON_HEAD) : -2] if payload.startswith(_JSON_HEAD) else None

    def _frame_of(self, bodies: list[bytes]) -> bytes:
        return frame(_JSON_HEAD + b",".join(bodies) + b"]}")


class EventsMsgpack(EventsJson):
    """As ``EventsJson``, but in MessagePack."""

    name = "events_msgpack"
    subprotocol = "events.v1.msgpack"
    binary = True

    def _event(self, fields: dict[str, Any]) -> bytes:
        return _PACKED_HEAD + b"\x91" + self._encoded(fields)

    def _encoded(self, fields: object) -> bytes:
        return _to_msgpack.encode(fields)

    def parse(self, text: str) -> Message:
        """Refuse it: all is binary here."""
        return Message(Malformed("Only binary messages are understood."))

    def parse_binary(self, data: bytes) -> Message:
        """Return what a message asks for."""
        try:
            return _message(_from_msgpack.decode(data))
        except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
            return _not_understood(exc)

    def _body_of(self, payload: bytes) -> bytes | None:
        head = len(_PACKED_HEAD)
        return payload[head + 1 :] if payload.startswith(_PACKED_HEAD) else None

    def _frame_of(self, bodies: list[bytes]) -> bytes:
        head = _to_msgpack.encode([None] * len(bodies))[: -len(bodies)]
        return frame(_PACKED_HEAD + head + b"".join(bodies), binary=True)


def _not_understood(exc: Exception) -> Message:
    if isinstance(exc, msgspec.ValidationError):
        if "$.type" in str(exc):
            return Message(Malformed("Unknown message type."))
        return Message(Malformed(f"{exc}."))
    return Message(Malformed("Expected an object."))


def _message(said: _Said) -> Message:
    return Message(_request(said), said.token)


def _request(said: _Said) -> Request | None:
    match said:
        case EventsSubscribe(ids=ids, since=since):
            return _subscribe(ids or (), since)
        case EventsUnsubscribe(ids=ids):
            return Unsubscribe(ids or ())
        case EventsPing(data=data):
            return Ping({} if data is None else {"data": data})
        case EventsRefresh():
            return Refresh()
        case EventsAuthenticate():
            return None


def _subscribe(ids: tuple[str, ...], since: str | dict[str, str] | None) -> Request:
    if isinstance(since, dict) and not ids:
        return Malformed("since is for all, where no ids are named.")
    return Subscribe(ids, since or None)
