"""What a dialect is, and what clients can ask for in any of them. No I/O."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import msgspec

from services.gateway.frames import frame
from services.gateway.state import Change, ProgressState
from shared.events import JobProgress, LifecycleEvent, UploadProgress
from shared.identity import Principal

__all__ = [
    "Dialect",
    "GetStats",
    "Malformed",
    "Message",
    "Ping",
    "Refresh",
    "Request",
    "Subscribe",
    "Told",
    "Unsubscribe",
    "decode_object",
    "subscription",
]


class Subscribe(msgspec.Struct, frozen=True):
    """Watch uploads, or jobs where the dialect is about those."""

    ids: tuple[str, ...]
    """None: all that is the caller's, those to come too. Only where it is resumable."""
    since: str | Mapping[str, str] | None = None
    """The last event that the client has: for all of them, or for each."""


class Unsubscribe(msgspec.Struct, frozen=True):
    """Watch them no more."""

    ids: tuple[str, ...]
    """None: watch nothing any more. Only where it is resumable."""


class Ping(msgspec.Struct, frozen=True):
    """Ask for a sign of life."""

    data: dict[str, Any] = {}
    """What the answer is to repeat."""


class Refresh(msgspec.Struct, frozen=True):
    """Go on under the token that came along, and be told until when."""


class GetStats(msgspec.Struct, frozen=True):
    """Ask for the socket's own figures."""


class Malformed(msgspec.Struct, frozen=True):
    """Not understood; ``reason`` is told to the client."""

    reason: str


Request: TypeAlias = Subscribe | Unsubscribe | Ping | Refresh | GetStats | Malformed


class Message(msgspec.Struct, frozen=True):
    """A client's message: what it asks for, and the token it brings along, if any."""

    request: Request | None
    token: str | None = None


class Told(msgspec.Struct, frozen=True):
    """What has just been told of an upload, for dialects that pass it on as it is."""

    event: LifecycleEvent | UploadProgress | JobProgress
    id: str = ""
    """Where it stands in the log; empty for a position, which is not logged."""


class Dialect(ABC):
    """One published protocol. An instance has no state: it serves all its sockets."""

    name: ClassVar[str]
    """As the document and the metrics call it."""
    paths: ClassVar[tuple[str, ...]]
    """Routes. ``{upload_id}`` or ``{job_id}`` names what a socket watches; where neither is
    there, it follows all that is the caller's."""
    receives: ClassVar[tuple[type, ...]] = ()
    """Messages of clients that are understood, as structs that document them."""
    sends: ClassVar[tuple[type, ...]] = ()
    """Messages to clients, likewise: all that ``encode`` and ``reply`` ever return."""
    follows: ClassVar[bool] = True
    """Whether a socket that names nothing follows all that is the caller's; else it watches
    nothing until it subscribes."""
    resumable: ClassVar[bool] = False
    """Whether it passes each event on as it is, with an id to go on from later."""
    subprotocol: ClassVar[str | None] = None
    """Of several dialects on one path, the one whose name the client offers; else the first."""
    binary: ClassVar[bool] = False
    """Whether its messages are binary."""
    whole_tenant: ClassVar[bool] = False
    """Whether everybody of a tenant may watch the tenant's uploads, not only their owner."""
    says_authenticated: ClassVar[bool] = False
    """Whether ``authenticated`` is said also to who showed a token at the handshake."""
    about_jobs: ClassVar[bool] = False
    """Whether its ids are those of jobs: who watches one watches the upload it processes."""

    @abstractmethod
    def encode(
        self, change: Change, state: ProgressState, told: Told | None = None
    ) -> bytes | Sequence[bytes] | None:
        """Return the message about a change, or ``None`` if this protocol has none.

        Several, where a change takes more than one, reach a socket together or not at all.

        Args:
            change: What it is about; ``SNAPSHOT``: the state as it is.
            state: After the change.
            told: The event behind it; ``None`` for a snapshot.

        """

    def show(
        self, state: ProgressState, since: str = "", *, gap: bool = False
    ) -> bytes | Sequence[bytes] | None:
        """Return the message with the state as it is.

        Args:
            state: Of the upload.
            since: The id to go on from later.
            gap: Whether who gets it has missed events, and does not just begin to watch.

        """
        return self.encode(Change.SNAPSHOT, state)

    def caught_up(
        self, before: ProgressState, state: ProgressState, since: str = ""
    ) -> bytes | Sequence[bytes] | None:
        """Return the message with the state for who has missed events since ``before``.

        ``None`` where that brings nothing new in this protocol: what is over must not end
        twice, because something was missed that only others are told. Arguments as of ``show``.
        """
        shown = self.show(state, since, gap=True)
        if self.resumable:  # it is told as a gap, and then what it was is known
            return shown
        as_late = msgspec.structs.replace(
            before,
            last_updated=state.last_updated,
            job_updated=before.job_updated and state.job_updated,
        )
        return None if shown == self.show(as_late, since, gap=True) else shown

    def parse(self, text: str) -> Message:
        """Return what a client's message asks for; never raises.

        Any message may bring a ``token``; one of an unknown type is there for its token.
        """
        fields = decode_object(text)
        if fields is None:
            return Message(Malformed("Expected a JSON object."))
        token, kind = fields.get("token"), fields.get("type")
        if token is not None and not isinstance(token, str):
            return Message(Malformed("token must be a string."))
        if kind is not None and not isinstance(kind, str):
            return Message(Malformed("type must be a string."), token)
        request = self.request(kind or "", fields)
        if request is None and token is None:
            request = Malformed("Unknown message type.")
        return Message(request, token)

    def request(self, kind: str, fields: Mapping[str, Any]) -> Request | None:
        """Return what a message of the type ``kind`` asks for; ``None``: no such type."""
        return Ping() if kind == "ping" else None

    def parse_binary(self, data: bytes) -> Message:
        """Return what a client's binary message asks for; never raises."""
        return Message(Malformed("Only text messages are understood."))

    @abstractmethod
    def reply(
        self, kind: str, *, subject: str, caller: Principal | None, data: dict[str, Any]
    ) -> bytes:
        """Return an answer: ``authenticated``, ``refreshed``, ``subscribed``,
        ``unsubscribed``, ``pong``, ``stats``, ``error``.

        Args:
            kind: Which of them.
            subject: The upload, or job, that it is about, as the client named it; or empty.
            caller: Who is calling, once that is known.
            data: ``message`` is the text of an error.

        """

    def heartbeat(self) -> bytes | None:
        """Return what is sent after a long silence, or ``None`` if there is no such message."""
        return None

    def framed(self, payload: bytes | Sequence[bytes]) -> bytes:
        """Return a message as it goes over the wire; several, one behind the other."""
        if isinstance(payload, bytes):
            return frame(payload, binary=self.binary)
        return b"".join(frame(one, binary=self.binary) for one in payload)

    def join(self, frames: Collection[bytes]) -> bytes:
        """Return the frames of several messages that leave in one write."""
        return b"".join(frames)


def subscription(
    wanted: type[Subscribe | Unsubscribe], fields: Mapping[str, Any], member: str
) -> Request:
    """Return the request to watch, or watch no more, what a member of a message names."""
    named = fields.get(member)
    if not isinstance(named, str):
        return Malformed(f"{member} must be a string.")
    return wanted((named,))


_decoder: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])


def decode_object(text: str) -> dict[str, Any] | None:
    """Return a message that is a JSON object; ``None`` for anything else."""
    try:
        return _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
