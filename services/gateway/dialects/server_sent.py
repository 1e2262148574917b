"""Dialect *events* as Server-Sent Events, for those who cannot use WebSockets (HTML, 9.2).

A line ``id`` stands only where a client can go on from: with events, not with positions, nor
with states, since those say what is so and not what has been told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from services.gateway.dialects.events import event_fields, told_state
from services.gateway.dialects.protocol import Dialect, Malformed, Message, Told
from services.gateway.state import Change, ProgressState
from shared.identity import Principal

__all__ = ["CHUNKED", "HEARTBEAT", "PLAIN", "ServerSent", "hint"]

HEARTBEAT: Final = b":\n\n"
"""A comment, which clients skip."""
_encoder: Final = msgspec.json.Encoder()


class ServerSent(Dialect):
    """``id``, ``event`` (the type) and ``data`` (the event as JSON, on one line)."""

    name = "server-sent"
    paths = ()
    resumable = True

    def __init__(self, *, chunked: bool) -> None:
        self._chunked: Final = chunked

    def encode(
        self, change: Change, state: ProgressState, told: Told | None = None
    ) -> bytes | None:
        """Return the event itself, whatever it is about."""
        if told is None:
            return self.show(state)
        return _block(event_fields(told), told.id)

    def show(self, state: ProgressState, since: str = "", *, gap: bool = False) -> bytes:
        """Return the state."""
        return _block(msgspec.to_builtins(told_state(state, since, gap=gap)))

    def parse(self, text: str) -> Message:
        """Nobody says anything here."""
        return Message(Malformed("Nothing can be said here."))

    def reply(
        self, kind: str, *, subject: str, caller: Principal | None, data: dict[str, Any]
    ) -> bytes:
        """Return what came of the request. A browser calls its own failures ``error``."""
        about = {"id": subject} if subject else {}
        return _block({"type": "refused" if kind == "error" else kind, **about, **data})

    def framed(self, payload: bytes | Sequence[bytes]) -> bytes:
        """Return a message as a chunk of the body (RFC 9112 section 7.1), or as it is."""
        if not isinstance(payload, bytes):
            payload = b"".join(payload)
        return b"%x\r\n%b\r\n" % (len(payload), payload) if self._chunked else payload


CHUNKED: Final = ServerSent(chunked=True)
PLAIN: Final = ServerSent(chunked=False)
"""For HTTP/1.0, which proxies speak: there the end of the connection ends the body."""


def hint(retry_ms: int) -> bytes:
    """Return what tells a client how long to wait before it comes back."""
    return b"retry: %d\n\n" % retry_ms


def _block(fields: dict[str, Any], event_id: str = "") -> bytes:
    head = f"id: {event_id}\n" if event_id else ""
    head += f"event: {fields['type']}\ndata: "
    return head.encode() + _encoder.encode(fields) + b"\n\n"
