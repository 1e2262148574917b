"""A WebSocket read and written without a task: frames in, messages out, straight to the socket.

Stands on asyncio's public interface alone. How it comes by a connection that aiohttp has
accepted is the matter of ``services.gateway.takeover``.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable
from typing import Final

import structlog
from aiohttp import WSCloseCode

from services.gateway.client_frames import (
    BinaryMessage,
    ClientFrames,
    CloseFrame,
    Heard,
    PingFrame,
    TextMessage,
    Violation,
)
from services.gateway.wire import Listener

__all__ = ["OwnWire"]

log = structlog.stdlib.get_logger(__name__)

_CUT_S: Final = 3.0
"""How long the last frame may wait for a peer that does not read."""
_NO_CODE: Final = b"\x88\x00"
_RECEIVE_BYTES: Final = 64 * 1024
_receiving: Final = memoryview(bytearray(_RECEIVE_BYTES))
"""Where all sockets of the process receive: it is read before the next one does."""


class OwnWire(asyncio.BufferedProtocol):
    """A WebSocket with nothing between it and the transport.

    Args:
        transport: After the handshake. Not TLS: what is sent goes past it.
        limit: Bytes that one message may have.
        on_gone: Called once, when the connection has ended.

    """

    __slots__ = (
        *("_cut", "_fd", "_frames", "_full", "_gone", "_listener", "_on_gone"),
        *("_sent_close", "_transport"),
    )

    def __init__(
        self, transport: asyncio.Transport, *, limit: int, on_gone: Callable[[], None]
    ) -> None:
        self._transport: Final = transport
        self._fd: int = transport.get_extra_info("socket").fileno()
        """To write to; -1 when nothing more may be written, at the latest when it is closed."""
        self._full = False
        """Whether the transport has something queued."""
        self._frames: Final = ClientFrames(limit=limit)
        self._on_gone: Final = on_gone
        self._listener: Listener | None = None
        self._gone: asyncio.Event | None = None
        self._cut: asyncio.TimerHandle | None = None
        self._sent_close = False

    @property
    def transport(self) -> asyncio.Transport:
        """What frames to the other end are written to."""
        return self._transport

    def start(self, listener: Listener, tail: bytes) -> None:
        """Begin to read; ``tail`` has come already."""
        transport = self._transport
        self._listener = listener
        transport.set_protocol(self)
        transport.set_write_buffer_limits(high=0)  # so that it tells of anything it queues
        self._full = transport.get_write_buffer_size() > 0
        transport.resume_reading()  # a long tail has stopped it
        if tail:
            self._hear(tail)

    # What the transport calls.

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to receive."""
        return _receiving

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was received."""
        self._hear(bytes(_receiving[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Take what was received elsewhere.

        Not called; but uvloop holds on to this method of the protocol, and without one, to
        that of the protocol before, 1.5 KiB a socket.
        """
        self._hear(data)

    def eof_received(self) -> bool:
        """Close, too: half a WebSocket is none."""
        self._fd = -1
        self._cut_if_queued()
        return False

    def pause_writing(self) -> None:
        """Note that something is queued."""
        self._full = True

    def resume_writing(self) -> None:
        """Note that nothing is queued any more."""
        self._full = False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell that it has ended. Only after this does the transport close the descriptor."""
        self._fd = -1  # it may be somebody else's soon
        self._full = False
        if self._cut is not None:  # asyncio aborts no transport twice
            self._cut.cancel()
        self._listener = None
        if self._gone is not None:
            self._gone.set()
        self._on_gone()

    # What comes in.

    def _hear(self, data: bytes) -> None:
        listener = self._listener
        if listener is None:
            return
        pong: PingFrame | None = None
        try:
            listener.on_sign_of_life()
            for one in self._frames.feed(data):
                if isinstance(one, PingFrame):
                    pong = one  # the last one's answer is enough (section 5.5.3)
                else:
                    self._pass_on(one, listener)
        except Exception:
            log.exception("socket_failed")
            self._end(_close_frame(WSCloseCode.INTERNAL_ERROR))
        if pong is not None and not self._sent_close:
            # One that does not read gets none: an answer that is late is worth nothing.
            self.send(bytes((0x8A, len(pong.data))) + pong.data)

    def _pass_on(self, one: Heard, listener: Listener) -> None:
        match one:
            case TextMessage(text):
                listener.on_text(text)
            case BinaryMessage(data):
                listener.on_binary(data)
            case CloseFrame(code):
                self._end(_NO_CODE if code is None else _close_frame(code))
            case Violation(code, reason):
                self._end(_close_frame(code, reason))

    def _end(self, frame: bytes) -> None:
        """Send the last frame, unless it is out, and end the connection (section 7.1.1)."""
        transport = self._transport
        self._fd = -1
        if not self._sent_close:
            self._sent_close = True
            if not transport.is_closing():
                transport.write(frame)
        transport.close()
        self._cut_if_queued()

    def _cut_if_queued(self) -> None:
        """Let a connection that ends wait for a peer that does not read, but not for long."""
        if self._cut is None and self._transport.get_write_buffer_size():
            loop = asyncio.get_running_loop()
            self._cut = loop.call_later(_CUT_S, self._transport.abort)

    # What goes out.

    def send(self, data: bytes) -> bool:
        """Write straight to the socket; the transport gets what the kernel has no room for.

        An event loop's ``write`` costs as much again as the system call. It also finds out
        what is wrong with the connection, if anything is.
        """
        if self._full:
            return False
        try:
            sent = os.write(self._fd, data)
        except OSError:
            sent = 0
        if sent < len(data) and self._fd >= 0 and not self._transport.is_closing():
            self._transport.write(memoryview(data)[sent:])
        return True

    async def close(self, code: int, reason: str) -> None:
        """Send a close frame and wait for the answer, or until the connection is cut."""
        if self._transport.is_closing():
            return
        if not self._sent_close:
            self._sent_close = True
            self._fd = -1
            self._transport.write(_close_frame(code, reason))
        self._gone = self._gone or asyncio.Event()
        await self._gone.wait()


def _close_frame(code: int, reason: str = "") -> bytes:
    text = reason.encode()[:120]
    return bytes((0x88, 2 + len(text))) + struct.pack("!H", code) + text
