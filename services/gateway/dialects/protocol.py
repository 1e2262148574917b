"""What a dialect is, and what clients can ask for in any of them. No I/O."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import msgspec

from services.gateway.state import Change, ProgressState
from shared.identity import Principal

__all__ = [
    "Dialect",
    "GetStats",
    "Malformed",
    "Message",
    "Ping",
    "Subscribe",
    "Unsubscribe",
    "decode_object",
]


class Subscribe(msgspec.Struct, frozen=True):
    """Watch an upload."""

    upload_id: str


class Unsubscribe(msgspec.Struct, frozen=True):
    """Watch it no more."""

    upload_id: str


class Ping(msgspec.Struct, frozen=True):
    """Ask for a sign of life."""


class GetStats(msgspec.Struct, frozen=True):
    """Ask for the socket's own figures."""


class Malformed(msgspec.Struct, frozen=True):
    """Not understood; ``reason`` is told to the client."""

    reason: str


Request: TypeAlias = Subscribe | Unsubscribe | Ping | GetStats | Malformed


class Message(msgspec.Struct, frozen=True):
    """A client's message: what it asks for, and the token it brings along, if any."""

    request: Request | None
    token: str | None = None


class Dialect(Protocol):
    """One published protocol."""

    paths: tuple[str, ...]
    """Routes; ``{upload_id}`` in one names the upload that its sockets watch."""

    def encode(self, change: Change, state: ProgressState) -> bytes | None:
        """Return the message about a change, or ``None`` if this protocol has none."""

    def parse(self, text: str) -> Message:
        """Return what a client's message asks for; never raises."""

    def reply(
        self, kind: str, *, upload_id: str, caller: Principal | None, data: dict[str, Any]
    ) -> bytes:
        """Return an answer: ``subscribed``, ``unsubscribed``, ``pong``, ``stats``, ``error``.

        ``data["message"]`` is the text of an error.
        """


_decoder: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])


def decode_object(text: str) -> dict[str, Any] | None:
    """Return a message that is a JSON object; ``None`` for anything else."""
    try:
        return _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
