"""The gateway's own end of a WebSocket, over real TCP, on both event loops."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Final

import pytest
from structlog.testing import capture_logs

from services.gateway.own_wire import OwnWire
from tests.gateway.loops import on_both_loops
from tests.gateway.pairs import End, connected
from tests.gateway.raw_socket import BINARY, CLOSE, PING, PONG, TEXT, frame
from tests.shared.waiting import eventually

LIMIT: Final = 64 * 1024


class Side:
    """The server's side of one socket, and what was heard there."""

    def __init__(self, end: End) -> None:
        self.end: Final = end
        self.heard: Final[list[str | bytes]] = []
        self.signs = 0
        self.is_closing = False
        self.fails = False
        self.gone = 0
        self.descriptor: Final = end.transport.get_extra_info("socket").fileno()
        self.inode: Final = os.fstat(self.descriptor).st_ino
        self.open_at_the_end = False
        self.wire: Final = OwnWire(end.transport, limit=LIMIT, on_gone=self._on_gone)

    def _on_gone(self) -> None:
        self.gone += 1
        try:
            self.open_at_the_end = os.fstat(self.descriptor).st_ino == self.inode
        except OSError:
            self.open_at_the_end = False

    def on_sign_of_life(self) -> None:
        """Count it."""
        self.signs += 1

    def on_text(self, text: str) -> None:
        """Keep it."""
        if self.fails:
            raise ZeroDivisionError
        self.heard.append(text)

    def on_binary(self, data: bytes) -> None:
        """Keep it."""
        self.heard.append(data)

    async def is_gone(self) -> None:
        """Return when the connection has ended, told once."""
        await eventually(lambda: self.gone, "the connection has ended")
        assert self.gone == 1

    async def says(self, data: bytes) -> None:
        """Send as the peer."""
        await asyncio.get_running_loop().sock_sendall(self.end.peer, data)

    async def rest(self) -> bytes:
        """Read as the peer to the end of the connection."""
        loop, data = asyncio.get_running_loop(), bytearray()
        while piece := await asyncio.wait_for(loop.sock_recv(self.end.peer, 1 << 20), 10):
            data += piece
        return bytes(data)


@asynccontextmanager
async def opened(tail: bytes = b"") -> AsyncIterator[Side]:
    """Yield a socket after its handshake."""
    async with connected(receive_buffer=4096) as end:
        side = Side(end)
        side.wire.start(side, tail)
        yield side


def closing(code: int) -> bytes:
    """Return the server's close frame, without a reason."""
    return b"\x88\x02" + struct.pack("!H", code)


@on_both_loops
async def test_both_ways() -> None:
    """Messages arrive in their order, whole; what is sent arrives as it is."""
    cut = frame(TEXT, b"cut")
    async with opened(frame(TEXT, b"early") + cut[:3]) as side:
        assert side.heard == ["early"]
        await side.says(cut[3:])
        await eventually(lambda: side.heard == ["early", "cut"], "the rest is heard")
        side.heard.clear()
        await side.says(frame(BINARY, b"\0") + frame(TEXT, b"x" * 60_000))
        await eventually(lambda: len(side.heard) == 2, "both are heard")
        assert side.heard == [b"\0", "x" * 60_000]
        assert side.wire.send(b"[1]")
        assert side.wire.send(b"[2]")
        assert await side.end.received(6) == b"[1][2]"


@on_both_loops
async def test_what_the_kernel_has_no_room_for() -> None:
    """It is queued once, nothing gets past it, and it all arrives in order."""
    async with opened() as side:
        data = bytes(range(256)) * 64 * 1024  # 16 MiB: more than any kernel takes at once
        assert side.wire.send(data)
        assert not side.wire.send(b"[too early]")
        assert side.end.transport.get_write_buffer_size() > 0
        assert await side.end.received(len(data)) == data
        await eventually(lambda: side.wire.send(b"[now]"), "it has drained")
        assert await side.end.received(5) == b"[now]"


@on_both_loops
async def test_pings_get_one_answer_a_segment() -> None:
    """A flood of pings is answered by the last one's pong; RFC 6455 section 5.5.3 has that."""
    async with opened() as side:
        await side.says(b"".join(frame(PING, b"%03d" % n) for n in range(500)))
        answers = await side.end.received_until(b"\x8a\x03499")
        assert len(answers) <= 5 * 20
        await side.says(frame(TEXT, b"a") + frame(PING, b"!") + frame(PONG))
        assert await side.end.received(3) == b"\x8a\x01!"


@on_both_loops
async def test_pings_of_who_does_not_read() -> None:
    """Answers that nobody takes are not kept."""
    async with opened() as side:
        side.end.fill()
        queued = side.end.transport.get_write_buffer_size()
        for _ in range(200):
            await side.says(frame(PING, b"x" * 125))
            await asyncio.sleep(0)
        await eventually(lambda: side.signs > 5, "they are heard")
        assert side.end.transport.get_write_buffer_size() <= queued


@on_both_loops
async def test_close_of_the_peer() -> None:
    """The peer gets its code back, or none for none, and then the end of the connection."""
    for sent, answer in (
        (frame(CLOSE, struct.pack("!H", 4321) + b"bye"), closing(4321)),
        (frame(CLOSE), b"\x88\x00"),
    ):
        async with opened() as side:
            await side.says(frame(TEXT, b"a") + sent + frame(TEXT, b"late"))
            assert await side.rest() == answer
            await side.is_gone()
            assert side.heard == ["a"]
            assert side.wire.send(b"[nowhere]")


@on_both_loops
async def test_close_of_the_peer_behind_what_is_queued() -> None:
    """The answer comes after all that was sent before."""
    async with opened() as side:
        sock = side.end.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
        data = b"x" * (1 << 18)
        side.wire.send(data)
        assert side.end.transport.get_write_buffer_size() > 0
        await side.says(frame(CLOSE, struct.pack("!H", 1000)))
        assert await side.rest() == data + closing(1000)
        await side.is_gone()
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    await asyncio.sleep(3.1)  # what would have cut it must know that it has gone
    assert not faults


@on_both_loops
async def test_close_by_us() -> None:
    """It waits for the answer; nothing follows the close frame; both who wait are told."""
    async with opened() as side:
        waiting = asyncio.gather(side.wire.close(1012, "x"), side.wire.close(1001, "y"))
        await asyncio.sleep(0)
        assert side.wire.send(b"[late]")
        await side.says(frame(PING, b"?"))
        assert await side.end.received(5) == b"\x88\x03" + struct.pack("!H", 1012) + b"x"
        await side.says(frame(CLOSE, struct.pack("!H", 1012)))
        assert await side.rest() == b""
        await asyncio.wait_for(waiting, 5)
        await side.is_gone()
        await asyncio.wait_for(side.wire.close(1000, ""), 2.5)


@pytest.mark.parametrize("reads", [True, False])
@on_both_loops
async def test_close_by_us_meets_a_cut(reads: bool) -> None:
    """Whoever waits for an answer is let go when the connection is cut instead."""
    async with opened() as side:
        if not reads:
            side.end.fill()
        waiting = asyncio.ensure_future(side.wire.close(1001, ""))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        side.end.transport.abort()
        await asyncio.wait_for(waiting, 5)
        await side.is_gone()


@on_both_loops
async def test_close_of_what_is_closing() -> None:
    """A connection that is on its way out holds nobody up."""
    async with opened() as side:
        side.end.fill()
        side.end.transport.close()
        await asyncio.wait_for(side.wire.close(1001, ""), 2.5)
        assert not side.gone


@on_both_loops
async def test_who_ends_but_does_not_read() -> None:
    """Half a connection, or a close that cannot be answered, is cut after a while."""

    async def end(said: bytes) -> None:
        async with opened() as side:
            side.end.fill()
            await side.says(said) if said else side.end.peer.shutdown(socket.SHUT_WR)
            await asyncio.sleep(0.5)
            assert not side.gone
            await eventually(lambda: side.gone, "it is cut")

    await asyncio.gather(end(b""), end(frame(CLOSE)), end(frame(3)))


@on_both_loops
async def test_a_fault_of_ours() -> None:
    """A listener that fails ends its socket with 1011, and the log tells why."""
    with capture_logs() as logged:
        async with opened() as side:
            side.fails = True
            await side.says(frame(TEXT, b"a") + frame(TEXT, b"b"))
            assert await side.rest() == closing(1011)
            await side.is_gone()
    assert [one["event"] for one in logged] == ["socket_failed"]


async def _reset(side: Side) -> None:
    linger = struct.pack("ii", 1, 0)
    side.end.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    side.end.peer.close()


async def _reset_while_we_write(side: Side) -> None:
    await _reset(side)
    side.wire.send(b"x")
    side.wire.send(b"x")


async def _reset_while_queued(side: Side) -> None:
    side.end.fill()
    await _reset(side)


async def _gone(side: Side) -> None:
    side.end.peer.close()


async def _abort(side: Side) -> None:
    side.end.transport.abort()


async def _abort_while_queued(side: Side) -> None:
    side.end.fill()
    side.end.transport.abort()


async def _breach(side: Side) -> None:
    await side.says(b"\x00" * 100)


async def _goodbye(side: Side) -> None:
    closed = asyncio.ensure_future(side.wire.close(1000, ""))
    await side.says(frame(CLOSE))
    await asyncio.wait_for(closed, 5)


ENDS: Final[dict[str, Callable[[Side], Awaitable[None]]]] = {
    one.__name__.strip("_"): one
    for one in (
        *(_reset, _reset_while_we_write, _reset_while_queued, _gone),
        *(_abort, _abort_while_queued, _breach, _goodbye),
    )
}


@pytest.mark.parametrize("end", ENDS)
@on_both_loops
async def test_whose_descriptor(end: str) -> None:
    """However a connection ends, its number is never written to once it can be another's."""
    async with opened() as side:
        await ENDS[end](side)
        while not side.gone:
            side.wire.send(b"*")
            await asyncio.sleep(0)
        assert side.gone == 1
        assert side.open_at_the_end, "told only after the descriptor was closed"
        with ExitStack() as others:
            while True:
                pair = [others.enter_context(one) for one in socket.socketpair()]
                for mine, its in (pair, pair[::-1]):
                    if mine.fileno() == side.descriptor:
                        assert side.wire.send(b"not yours")
                        its.setblocking(False)
                        with pytest.raises(BlockingIOError):
                            its.recv(100)
                        return
                if max(one.fileno() for one in pair) > side.descriptor + 50:
                    raise AssertionError("the number was never given out again")
                await asyncio.sleep(0)
