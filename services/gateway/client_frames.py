"""WebSocket frames from a client: bytes in, messages out (RFC 6455 sections 5 and 8). No I/O.

Nothing is kept of a connection but what of a frame or a message is still to come. What breaks
the protocol is a ``Violation`` with the code to close with; nothing after it is read.
"""

from __future__ import annotations

import codecs
import struct
from typing import Final, NamedTuple, TypeAlias

__all__ = [
    "BinaryMessage",
    "ClientFrames",
    "CloseFrame",
    "Heard",
    "PingFrame",
    "PongFrame",
    "TextMessage",
    "Violation",
]

_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_PROTOCOL_ERROR: Final = 1002
_NOT_TEXT: Final = 1007
_POLICY: Final = 1008
_TOO_BIG: Final = 1009
_MOST_FRAGMENTS: Final = 1024
"""Of one message. Empty ones cost no memory, but they never end."""
_NEVER_SENT: Final = frozenset({1004, 1005, 1006, 1015})
"""Codes below 3000 that must not stand in a frame (section 7.4.1, IANA registry)."""


class TextMessage(NamedTuple):
    """A whole text message."""

    text: str


class BinaryMessage(NamedTuple):
    """A whole binary message."""

    data: bytes


class PingFrame(NamedTuple):
    """To be answered with a pong of the same data."""

    data: bytes


class PongFrame(NamedTuple):
    """An answer, or a sign of life."""

    data: bytes


class CloseFrame(NamedTuple):
    """The client ends the connection."""

    code: int | None
    """``None``: it gave none."""


class Violation(NamedTuple):
    """The client broke the protocol, or a limit: close with this code."""

    code: int
    reason: str


Heard: TypeAlias = TextMessage | BinaryMessage | PingFrame | PongFrame | CloseFrame | Violation


class ClientFrames:
    """The frames of one client.

    Args:
        limit: Bytes that one message may have.

    """

    __slots__ = (
        *("_buffer", "_decoder", "_done", "_fragments"),
        *("_held", "_limit", "_needed", "_parts"),
    )

    def __init__(self, *, limit: int) -> None:
        self._limit: Final = limit
        self._buffer: bytearray | None = None
        """The beginning of a frame whose end has not come."""
        self._needed = 2
        """Bytes that it must have before it is worth a look."""
        self._parts: bytearray | list[str] | None = None
        """A message in fragments: the bytes, or the text so far."""
        self._held = 0
        """Bytes that it has so far."""
        self._decoder: codecs.IncrementalDecoder | None = None
        self._fragments = 0
        self._done = False

    def feed(self, data: bytes) -> list[Heard]:
        """Return what is complete with these bytes, in order."""
        if self._done:
            return []
        if self._buffer is not None:
            self._buffer += data
            if len(self._buffer) < self._needed:
                return []
            data, self._buffer = bytes(self._buffer), None
        heard: list[Heard] = []
        at = 0
        while not self._done:
            end = self._frame(data, at, heard)
            if end < 0:  # so many bytes are missing still
                if at < len(data):
                    self._buffer = bytearray(data[at:])
                    self._needed = len(data) - at - end
                break
            at = end
        return heard

    def _frame(self, data: bytes, at: int, heard: list[Heard]) -> int:
        """Read the frame at ``at``; return where it ends, or how much is missing, negative."""
        there = len(data) - at
        if there < 2:
            return there - 2
        first, second = data[at], data[at + 1]
        length, head = second & 0x7F, 2
        if (fault := _fault_of(first, second)) is not None:
            return self._violated(_PROTOCOL_ERROR, fault, heard)
        if length >= 126:
            form, least, head = ("!H", 126, 4) if length == 126 else ("!Q", 65_536, 10)
            if there < head:
                return there - head
            (length,) = struct.unpack_from(form, data, at + 2)
            if length < least or length >= 1 << 63:
                return self._violated(_PROTOCOL_ERROR, "a length in the wrong form", heard)
        opcode = first & 0x0F
        if opcode < _CLOSE and length + self._held > self._limit:
            return self._violated(_TOO_BIG, "message too big", heard)
        start = at + head + 4
        end = start + length
        if end > len(data):
            return len(data) - end
        payload = _unmasked(data[start:end], data[start - 4 : start])
        if opcode >= _CLOSE:
            self._control(opcode, payload, heard)
        else:
            self._data(opcode, payload, final=first >= 0x80, heard=heard)
        return end

    def _violated(self, code: int, reason: str, heard: list[Heard]) -> int:
        self._done = True
        self._buffer = self._parts = self._decoder = None
        heard.append(Violation(code, reason))
        return 0

    def _control(self, opcode: int, payload: bytes, heard: list[Heard]) -> None:
        if opcode == _PING:
            heard.append(PingFrame(payload))
        elif opcode == _PONG:
            heard.append(PongFrame(payload))
        elif (fault := _close_fault(payload)) is not None:
            self._violated(*fault, heard)
        else:
            self._done = True
            code = int.from_bytes(payload[:2], "big") if payload else None
            heard.append(CloseFrame(code))

    def _data(self, opcode: int, payload: bytes, *, final: bool, heard: list[Heard]) -> None:
        if (opcode == _CONTINUATION) != (self._parts is not None):
            self._violated(_PROTOCOL_ERROR, "a fragment out of place", heard)
            return
        if final and self._parts is None:
            self._whole(opcode, payload, heard)
            return
        self._fragments += 1
        if self._fragments > _MOST_FRAGMENTS:
            self._violated(_POLICY, "too many fragments", heard)
            return
        if opcode == _TEXT:
            self._parts = []
            self._decoder = codecs.getincrementaldecoder("utf-8")()
        elif opcode == _BINARY:
            self._parts = bytearray()
        self._continue(payload, heard, final=final)

    def _whole(self, opcode: int, payload: bytes, heard: list[Heard]) -> None:
        if opcode == _BINARY:
            heard.append(BinaryMessage(payload))
            return
        try:
            heard.append(TextMessage(payload.decode()))
        except UnicodeDecodeError:
            self._violated(_NOT_TEXT, "not UTF-8", heard)

    def _continue(self, payload: bytes, heard: list[Heard], *, final: bool) -> None:
        parts = self._parts
        self._held += len(payload)
        if isinstance(parts, bytearray):
            parts += payload
            if final:
                heard.append(BinaryMessage(bytes(parts)))
        elif parts is not None and self._decoder is not None:
            try:
                parts.append(self._decoder.decode(payload, final))
            except UnicodeDecodeError:
                self._violated(_NOT_TEXT, "not UTF-8", heard)
                return
            if final:
                heard.append(TextMessage("".join(parts)))
        if final:
            self._parts = self._decoder = None
            self._fragments = self._held = 0


def _fault_of(first: int, second: int) -> str | None:
    """Return what is wrong with the first two bytes of a frame, if anything is."""
    opcode = first & 0x0F
    if first & 0x70:
        return "a reserved bit"  # no extension was agreed on
    if opcode not in {_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG}:
        return "an unknown opcode"
    if not second & 0x80:
        return "a frame without a mask"  # section 5.1: the server MUST close
    if opcode >= _CLOSE and (first < 0x80 or second & 0x7F > 125):
        return "a control frame in fragments, or too long"  # section 5.5
    return None


def _close_fault(payload: bytes) -> tuple[int, str] | None:
    """Return the code and reason to refuse a close frame with, if it is not well formed."""
    if not payload:
        return None
    if len(payload) == 1:
        return _PROTOCOL_ERROR, "half a close code"
    code = int.from_bytes(payload[:2], "big")
    registered = 1000 <= code <= 1014 and code not in _NEVER_SENT
    if not registered and not 3000 <= code <= 4999:
        return _PROTOCOL_ERROR, "a close code that is none"
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        return _NOT_TEXT, "not UTF-8"
    return None


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    """Return the payload as it was before the client masked it (section 5.3)."""
    length = len(payload)
    key = (mask * (length // 4 + 1))[:length]
    number = int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")
    return number.to_bytes(length, "little")
