"""WebSocket frames from a server, built once and shared by all sockets (RFC 6455 section 5.2).

A server's frames are unmasked and hold no state of the connection, so the same bytes are right
for every socket, also for one that has negotiated compression.
"""

from __future__ import annotations

import struct
from typing import Final

__all__ = ["PING", "frame", "payload_of"]

PING: Final = b"\x89\x00"
"""A ping with nothing in it."""

_FIN_TEXT: Final = 0x81
_FIN_BINARY: Final = 0x82


def frame(payload: bytes, *, binary: bool = False) -> bytes:
    """Return the frame of one unfragmented message; a text is UTF-8."""
    first, length = _FIN_BINARY if binary else _FIN_TEXT, len(payload)
    if length < 126:
        return bytes((first, length)) + payload
    if length < 65_536:
        return struct.pack("!BBH", first, 126, length) + payload
    return struct.pack("!BBQ", first, 127, length) + payload


def payload_of(framed: bytes) -> bytes:
    """Return the message in a frame that ``frame`` has made."""
    length = framed[1]
    return framed[2 if length < 126 else 4 if length == 126 else 10 :]
