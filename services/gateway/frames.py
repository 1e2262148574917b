"""WebSocket frames from a server, built once and shared by all sockets (RFC 6455 section 5.2).

A server's frames are unmasked and hold no state of the connection, so the same bytes are right
for every socket, also for one that has negotiated compression.
"""

from __future__ import annotations

import struct
from typing import Final

__all__ = ["PING", "text_frame"]

PING: Final = b"\x89\x00"
"""A ping with nothing in it."""

_FIN_TEXT: Final = 0x81


def text_frame(payload: bytes) -> bytes:
    """Return the frame of one unfragmented text message (UTF-8)."""
    length = len(payload)
    if length < 126:
        return bytes((_FIN_TEXT, length)) + payload
    if length < 65_536:
        return struct.pack("!BBH", _FIN_TEXT, 126, length) + payload
    return struct.pack("!BBQ", _FIN_TEXT, 127, length) + payload
