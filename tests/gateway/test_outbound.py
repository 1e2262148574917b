"""What is owed to one socket and when it is written, over real TCP, on both event loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from services.gateway.dialects.protocol import Dialect
from services.gateway.flusher import Flusher
from services.gateway.outbound import Outbound
from services.gateway.owed import Source
from tests.gateway.audience import Plain
from tests.gateway.loops import on_both_loops
from tests.gateway.pairs import End, connected
from tests.shared.waiting import eventually

TURNS: Final = 5
PLAIN: Final = Plain()


class Socket:
    """One socket as the gateway has it, and how often it was called too slow."""

    def __init__(self, end: End, *, stall_limit_s: float) -> None:
        self.end: Final = end
        self.flusher: Final = Flusher(asyncio.get_running_loop(), stall_limit_s=stall_limit_s)
        self.slow = 0
        self.out: Final = Outbound(end, self.flusher, self._count, PLAIN)  # type: ignore[arg-type]

    def _count(self) -> None:
        self.slow += 1


@asynccontextmanager
async def opened(*, stall_limit_s: float = 30.0) -> AsyncIterator[Socket]:
    """Yield a socket whose peer reads when the test says so."""
    async with connected(receive_buffer=4096) as end:
        yield Socket(end, stall_limit_s=stall_limit_s)


async def turns() -> None:
    """Let the loop turn a few times."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


@on_both_loops
async def test_one_write_a_turn() -> None:
    """All that is owed within one turn of the loop goes out in one write, in order."""
    async with opened() as one:
        one.out.put(b"a")
        one.out.put_latest("k", b"b")
        one.out.put(b"c")
        assert one.end.writes == []
        await turns()
        assert one.end.writes == [b"abc"]
        one.out.put(b"d")
        await turns()
        assert one.end.writes == [b"abc", b"d"]
        assert await one.end.received(4) == b"abcd"


class Broken(Source):
    """A state that no dialect can encode."""

    def shown(self, dialect: Dialect, *, gap: bool) -> bytes:
        """Fail."""
        raise OverflowError

    def moved(self, dialect: Dialect, kind: object) -> bytes:
        """Fail."""
        raise OverflowError


@pytest.mark.parametrize("stalled", [False, True])
async def test_what_cannot_be_encoded_silences_nobody_else(*, stalled: bool) -> None:
    """A fault of one message costs the sockets that are owed it, never those beside them."""
    async with connected(receive_buffer=4096) as one, connected() as other:
        flusher = Flusher(asyncio.get_running_loop(), stall_limit_s=30.0)
        given_up: list[str] = []
        bad = Outbound(one, flusher, lambda: given_up.append("bad"), PLAIN)  # type: ignore[arg-type]
        good = Outbound(other, flusher, lambda: given_up.append("good"), PLAIN)  # type: ignore[arg-type]
        filled = one.fill() if stalled else 0
        bad.put(b"a")
        bad.put_state(Broken())
        good.put(b"b")
        await turns()
        if stalled:
            assert (await one.received(filled)).strip(b".") == b""
        await eventually(lambda: given_up == ["bad"], "the one is given up")
        good.put(b"c")
        await turns()
        assert other.writes[-1].endswith(b"c")
        assert flusher.stalled == 0


@on_both_loops
async def test_newest_progress_of_a_turn() -> None:
    """Of several positions within one turn only the newest goes out, once for each key."""
    async with opened() as one:
        for n in range(10):
            one.out.put_latest("k", b"k%d" % n)
            one.out.put_latest("l", b"l%d" % n)
        await turns()
        assert one.end.writes == [b"k9l9"]


@on_both_loops
async def test_not_written_while_something_is_queued() -> None:
    """A socket that does not drain gets nothing more; once it drains, it gets all at once."""
    async with opened() as one:
        filled = one.end.fill()
        for n in range(100):
            one.out.put_latest("k", b"<%02d>" % n)
            one.out.put(b"[%02d]" % n)
            await asyncio.sleep(0)
        assert one.end.writes == []
        assert one.flusher.stalled == 1
        lifecycle = b"".join(b"[%02d]" % n for n in range(100))
        assert (await one.end.received(filled)).strip(b".") == b""
        assert await one.end.received(4 + len(lifecycle)) == b"<99>" + lifecycle
        assert len(one.end.writes) == 1
        assert one.flusher.stalled == 0
        assert one.slow == 0


@on_both_loops
async def test_lifecycle_takes_the_place_of_older_progress() -> None:
    """A lifecycle frame drops the progress that it makes stale; newer progress follows it."""
    async with opened() as one:
        filled = one.end.fill()
        one.out.put_latest("t", b"<old>")
        one.out.put_latest("u", b"<other>")
        await turns()
        one.out.put(b"[complete]", supersedes="t")
        one.out.put_latest("t", b"<new>")
        await one.end.received(filled)
        assert await one.end.received_until(b"<new>") == b"<other>[complete]<new>"


@pytest.mark.parametrize("frames", [[b"x"] * 1100, [b"x" * 30_000] * 10])
@on_both_loops
async def test_bounds(frames: list[bytes]) -> None:
    """Over the bound of frames or bytes a stalled socket is given up, once, for good."""
    async with opened() as one:
        filled = one.end.fill()
        one.out.put_latest("k", b"<progress>")
        await turns()
        for frame in frames:
            one.out.put(frame)
        assert one.slow == 1
        for frame in frames:
            one.out.put(frame)
        assert one.slow == 1
        await one.end.received(filled)
        await asyncio.sleep(0.2)
        assert sum(map(len, one.end.writes)) <= 256 * 1024


@on_both_loops
async def test_a_burst_to_a_reader_is_no_stall() -> None:
    """Many frames in one turn, such as snapshots, are no reason to give up who reads."""
    async with opened() as one:
        frames = [b"%06d" % n for n in range(5000)]
        for frame in frames:
            one.out.put(frame)
        assert await one.end.received(30_000) == b"".join(frames)
        assert one.slow == 0


@on_both_loops
async def test_stall_limit() -> None:
    """Who has drained nothing for the limit is given up, once."""
    async with opened(stall_limit_s=0.2) as one:
        one.end.fill()
        one.out.put_latest("k", b"<progress>")
        await eventually(lambda: one.slow, "given up")
        one.out.put_latest("k", b"<progress>")
        await asyncio.sleep(0.5)
        assert one.slow == 1
        assert one.end.writes == []


@on_both_loops
async def test_draining_starts_the_limit_anew() -> None:
    """Who drains now and then is never given up, however long that goes on."""
    async with opened(stall_limit_s=1.0) as one:
        for _ in range(5):
            filled = one.end.fill()
            one.out.put(b"!")
            await asyncio.sleep(0.25)
            assert (await one.end.received(filled + 1)).endswith(b"!")
        assert one.slow == 0


@on_both_loops
async def test_a_socket_that_is_owed_nothing_must_drain_too() -> None:
    """A transport that never empties is noticed without anything new to write."""
    async with opened(stall_limit_s=0.2) as one:
        one.end.fill()
        one.flusher.expect_drain(one.out)
        one.flusher.expect_drain(one.out)
        await eventually(lambda: one.slow, "given up")
        assert one.end.writes == []


@on_both_loops
async def test_drained_without_owing() -> None:
    """A transport that empties is left alone."""
    async with opened(stall_limit_s=0.5) as one:
        filled = one.end.fill()
        one.flusher.expect_drain(one.out)
        await one.end.received(filled)
        await eventually(lambda: not one.flusher.stalled, "nobody is stalled")
        assert (one.slow, one.end.writes) == (0, [])


@on_both_loops
async def test_finish_writes_the_rest_and_no_more() -> None:
    """At the end all that is owed goes out, even behind a queue; later frames do not."""
    async with opened() as one:
        filled = one.end.fill()
        one.out.put(b"[last]")
        one.out.finish()
        assert one.end.writes == [b"[last]"]
        one.out.put(b"[late]")
        await turns()
        await one.end.received(filled + len(b"[last]"))
        await asyncio.sleep(0.2)
        assert one.end.writes == [b"[last]"]


@on_both_loops
async def test_a_closed_transport_is_left_alone() -> None:
    """What is owed to a socket that is closing is forgotten, without a word."""
    async with opened() as one:
        one.out.put(b"a")
        one.end.transport.abort()
        await turns()
        one.out.put_latest("k", b"b")
        one.out.put(b"c")
        one.out.finish()
        await turns()
        assert one.end.writes == []
        assert one.flusher.stalled == 0


@on_both_loops
async def test_forgotten_sockets_are_not_called_slow() -> None:
    """Who has gone while he was stalled is nobody's business any more."""
    async with opened(stall_limit_s=0.2) as one:
        one.end.fill()
        one.out.put(b"a")
        await eventually(lambda: one.flusher.stalled, "it is stalled")
        one.flusher.forget(one.out)
        await asyncio.sleep(0.5)
        assert one.slow == 0


@on_both_loops
async def test_one_too_slow_spoils_no_turn() -> None:
    """The sockets flushed after one that is given up get theirs in the same turn."""
    async with connected(receive_buffer=4096) as slow, connected() as quick:
        flusher = Flusher(asyncio.get_running_loop(), stall_limit_s=30)
        gone: list[str] = []
        outs = [
            Outbound(end, flusher, lambda: gone.append("one"), PLAIN)  # type: ignore[arg-type]
            for end in (slow, quick)
        ]
        slow.fill()
        for _ in range(4):  # what it was owed before it stalled counts for nothing
            for out in outs:
                for _ in range(400):
                    out.put(b"x")
            await turns()
        assert gone == ["one"]
        assert await quick.received(1600) == b"x" * 1600


@on_both_loops
async def test_the_kernel_takes_little_ahead() -> None:
    """A client that never reads costs the kernel well under a megabyte of stale progress."""
    async with connected() as end:
        flusher = Flusher(asyncio.get_running_loop(), stall_limit_s=30)
        out = Outbound(end, flusher, lambda: None, PLAIN)  # type: ignore[arg-type]
        frame, quiet = b"p" * 512, 0
        while quiet < 50:
            before = len(end.writes)
            out.put_latest("k", frame)
            await asyncio.sleep(0)
            quiet = 0 if len(end.writes) > before else quiet + 1
        assert sum(map(len, end.writes)) < 512 * 1024


@on_both_loops
async def test_a_client_that_has_gone_can_still_be_wrapped() -> None:
    """A connection that was cut during its handshake raises nothing here."""
    async with connected() as end:
        end.transport.abort()
        await asyncio.sleep(0.05)
        flusher = Flusher(asyncio.get_running_loop(), stall_limit_s=30)
        Outbound(end, flusher, lambda: None, PLAIN).put(b"a")  # type: ignore[arg-type]
        await turns()
        assert end.writes == []


@on_both_loops
async def test_much_goes_out_in_pieces() -> None:
    """What waits behind one piece is still replaced by newer progress; a reader gets all."""
    async with opened() as one:
        for n in range(1000):
            one.out.put_latest(n.to_bytes(2), b"%04d" % n + b"." * 996)
        await turns()
        assert 0 < len(one.end.writes[0]) <= 64 * 1024
        assert sum(map(len, one.end.writes)) < 1_000_000
        one.out.put_latest((999).to_bytes(2), b"last" + b"!" * 996)
        received = await one.end.received(1_000_000)
        assert received[:4] == b"0000"
        assert received[-1000:-996] == b"last"
        assert one.slow == 0


@on_both_loops
async def test_a_long_beginning_is_not_slowness() -> None:
    """More than the bound at once is no fault of the reader; more after it has stalled is."""
    async with opened() as one:
        for n in range(1500):
            one.out.put(b"%04d" % n + b"." * 496)
        await turns()
        one.out.put(b"more")
        assert one.slow == 0
        assert (await one.end.received(750_004))[-4:] == b"more"
        assert one.slow == 0
