"""Bodies that are taken past aiohttp: each byte in its place, and the connection goes on.

Pins what ``direct_body`` knows of aiohttp, on both event loops.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp.web_protocol import RequestHandler
from structlog.testing import capture_logs

from services.ingest import app, direct_body
from services.ingest.direct_body import why_not
from services.ingest.receive import Ended
from services.ingest.settings import Settings
from shared.blobs import filesystem_writer
from shared.blobs.durable import write_all
from tests.gateway.loops import on_both_loops
from tests.ingest.direct_server import connected, served
from tests.ingest.wire import Cut, chunk, head_of
from tests.shared.waiting import alongside, eventually

MIB: Final = 1024 * 1024


def head(length: int | None) -> bytes:
    """Return the head of a request with a body."""
    framing = {"Transfer-Encoding": "chunked"}
    if length is not None:
        framing = {"Content-Length": str(length)}
    return head_of("PATCH", "/", framing)


NEXT: Final = head_of("GET", "/?next", {})


FRAGMENTS: Final[dict[str, tuple[int, int, Callable[[int, int], Iterable[int]]]]] = {
    "whole": (50_000, 50_000, lambda start, end: ()),
    "every byte": (60, 1, lambda start, end: range(start - 20, end + 20)),
    "one byte along with the head": (300_000, 2, lambda start, end: (start + 1,)),
    "one byte behind the head": (300_000, 3_000, lambda start, end: (start, start + 1)),
    "all but one along with the head": (100_000, 5 * MIB, lambda start, end: (end - 1,)),
    "half of it": (2 * MIB, 40, lambda start, end: ((start + end) // 2,)),
    "by chance": (3 * MIB, 5 * MIB + 1, lambda start, end: _chosen(6, start, end)),
    "by chance, finely": (700_000, 70_000, lambda start, end: _chosen(200, start, end)),
}
"""The sizes of two bodies, and where a stream with them is cut, for each body by its place."""


def _chosen(count: int, start: int, end: int) -> list[int]:
    return sorted(random.Random(start).sample(range(start, end + 10), count))


@pytest.mark.parametrize("name", FRAGMENTS)
@on_both_loops
async def test_hostile_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """However a stream of requests is cut, each body is stored exactly and nothing is taken
    from the requests behind it, which are answered on the same connection.
    """
    *sizes, where = FRAGMENTS[name]
    bodies, stream, cuts, inside = [os.urandom(size) for size in sizes], b"", {0}, []
    for body in bodies:
        stream += head(len(body)) + body
        begin = len(stream) - len(body)
        own = {at for at in where(begin, len(stream)) if at > max(cuts)}
        inside += [min(within)] if (within := own & {*range(begin + 1, len(stream))}) else []
        cuts |= own
    stream += NEXT
    ends = [*sorted(cuts), len(stream)]
    async with served(tmp_path, monkeypatch) as server, connected(server) as client:

        async def send() -> None:
            for begin, end in itertools.pairwise(ends):
                await client.send(stream[begin:end])
                if end in inside:
                    await server.takes(inside.index(end) + 1)

        async with alongside(send()):
            answers = [await client.answer() for _ in range(3)]
        assert answers == [(200, "COMPLETE"), (200, "COMPLETE"), (200, "next")]
        assert [server.content(0), server.content(1)] == bodies
        assert len(server.taken) == len(inside)


@on_both_loops
async def test_many_bodies_on_one_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection may bring as many bodies as it likes, and aiohttp loses count of none: it
    reads only so many requests ahead.
    """
    async with served(tmp_path, monkeypatch) as server, connected(server) as client:
        for number in range(40):
            await client.send(head(5) + b"he")
            await server.takes(number + 1)
            await client.send(b"llo")
            assert await client.answer() == (200, "COMPLETE")
        await client.send(NEXT)
        assert await client.answer() == (200, "next")
        assert {server.content(number) for number in range(40)} == {b"hello"}


@on_both_loops
async def test_more_than_was_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes behind a body is not part of it, and is refused if it is no request."""
    async with served(tmp_path, monkeypatch) as server, connected(server) as client:
        await client.send(head(10) + b"0")
        await server.takes(1)
        await client.send(b"123456789surplus\r\n\r\n")
        assert await client.answer() == (200, "COMPLETE")
        assert (await client.answer())[0] == 400
        assert server.content() == b"0123456789"


@on_both_loops
async def test_less_than_was_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that falls silent is let go; what came is kept, down to the last byte."""
    async with served(tmp_path, monkeypatch) as server, connected(server) as client:
        server.idle_s = 0.6
        sent = os.urandom(300_001)
        await client.send(head(MIB) + sent[:1])
        await server.takes(1)
        await client.send(sent[1:])
        assert await client.answer() == (200, "STALLED")
        assert server.content() == sent
        assert await client.closed() == b""


@on_both_loops
async def test_chunks_are_left_to_aiohttp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body whose end must be looked for is not taken."""
    async with served(tmp_path, monkeypatch) as server, connected(server) as client:
        sent = os.urandom(300_000)
        await client.send(head(None) + chunk(sent[:9]), chunk(sent[9:]), chunk(b"") + NEXT)
        assert await client.answer() == (200, "COMPLETE")
        assert await client.answer() == (200, "next")
        assert (server.content(), server.taken) == (sent, [])


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("how", ["fin", "rst", "half-close"])
@on_both_loops
async def test_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Cut, waits: bool
) -> None:
    """The end of a connection is noticed at once, also in silence, and costs no byte."""
    async with served(tmp_path, monkeypatch) as server, connected(server) as client:
        sent = os.urandom(700_000)
        await client.send(head(4 * MIB) + sent[:100])
        await server.takes(1)
        await client.send(sent[100:])
        await server.holds(len(sent))
        if waits:
            await asyncio.sleep(0.3)  # until it waits for a first byte
        began = time.monotonic()
        client.cut(how)
        await eventually(lambda: server.ends, "the cut is noticed", 5)
        assert time.monotonic() - began < 3
        assert server.ends == [Ended.CUT]
        assert server.content() == sent


@on_both_loops
async def test_slow_bytes_reach_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few bytes are in the file in a moment, also after a silence."""
    async with served(tmp_path, monkeypatch) as server, connected(server) as client:
        await client.send(head(MIB) + b"a")
        await server.takes(1)
        for so_far in (10, 20):
            await client.send(b"b" * (so_far - len(server.content()) or 1))
            began = time.monotonic()
            await server.holds(so_far)
            assert time.monotonic() - began < 3
            await asyncio.sleep(0.4)
        assert server.content() == b"a" + b"b" * 19


@on_both_loops
async def test_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is asked keeps what has arrived, and what comes then is not taken for a request."""
    async with served(tmp_path, monkeypatch) as server, connected(server) as client:
        sent = os.urandom(200_000)
        await client.send(head(MIB) + sent[:1])
        await server.takes(1)
        await client.send(sent[1:])
        await server.holds(2)
        server.leases[0].ask("takeover")
        assert await client.answer() == (200, "ASKED")
        kept = server.content()
        assert kept == sent[: len(kept)]
        await client.send(bytes(MIB - len(sent)), NEXT)
        assert await client.closed() == b""


@on_both_loops
async def test_let_go_while_bytes_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that wait for company when somebody asks are not left behind."""
    monkeypatch.setattr(direct_body, "GATHER_S", 30.0)
    async with served(tmp_path, monkeypatch) as server, connected(server) as client:
        await client.send(head(MIB) + b"a")
        await server.takes(1)
        await asyncio.sleep(0.1)  # until it waits
        await client.send(b"b" * 1000)
        server.leases[0].ask("takeover")
        assert await client.answer() == (200, "ASKED")
        assert server.content() == b"a" + b"b" * 1000


@on_both_loops
async def test_the_disk_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails half-way is told, and nothing is written behind the gap."""
    calls = 0

    def refusing(fd: int, pieces: Sequence[bytes]) -> int:
        nonlocal calls
        calls += 1
        if calls != 3:
            return write_all(fd, pieces)
        os.write(fd, b"".join(pieces)[:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(filesystem_writer, "write_all", refusing)
    async with served(tmp_path, monkeypatch) as server, connected(server) as client:
        sent = os.urandom(3 * MIB)
        await client.send(head(len(sent)) + sent[:9])
        await server.takes(1)
        async with alongside(client.send(sent[9:])):
            assert await client.answer() == (200, "refused")
        content = server.content()
        assert 1000 <= len(content) < len(sent)
        assert content == sent[: len(content)]
        assert server.leases[0].writer.offset == len(content)


@on_both_loops
async def test_who_waits_when_the_process_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A silent body that is being taken keeps no process, and no byte is lost."""
    async with served(tmp_path, monkeypatch) as server, connected(server) as client:
        await client.send(head(MIB) + b"a" * 9)
        await server.takes(1)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert server.content() == b"a" * 9
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


@on_both_loops
async def test_not_unless_it_was_found_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the trial's word aiohttp reads all bodies."""
    directly = served(tmp_path, monkeypatch, directly=False)
    async with directly as server, connected(server) as client:
        sent = os.urandom(2 * MIB)
        await client.send(head(len(sent)) + sent[:9], sent[9:] + NEXT)
        assert await client.answer() == (200, "COMPLETE")
        assert await client.answer() == (200, "next")
        assert (server.content(), server.taken) == (sent, [])


@on_both_loops
async def test_no_descriptor_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may open no more files goes on receiving as usual."""

    def dup(fd: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    async with served(tmp_path, monkeypatch) as server, connected(server) as client:
        monkeypatch.setattr(os, "dup", dup)
        await client.send(head(300_000) + bytes(9), bytes(300_000 - 9) + NEXT)
        assert await client.answer() == (200, "COMPLETE")
        assert await client.answer() == (200, "next")
        assert (server.content(), server.taken) == (bytes(300_000), [])


@on_both_loops
async def test_the_trial_of_this_aiohttp(caplog: pytest.LogCaptureFixture) -> None:
    """With the aiohttp that is installed nothing stands against it, and nothing is left."""
    tasks = len(asyncio.all_tasks())
    assert await why_not() is None
    assert len(asyncio.all_tasks()) == tasks
    assert caplog.records == []


def _keep_the_first() -> property:
    """Stand for a protocol that keeps its parser where nobody can replace it."""
    parsers: dict[int, object] = {}

    def keep(handler: Any, parser: object) -> None:
        parsers.setdefault(id(handler), parser)

    return property(lambda handler: parsers.get(id(handler)), keep)


def _read_on(handler: Any) -> None:
    """Stand for a protocol that has its transport read again whenever it can."""
    if handler.transport is not None:
        handler.transport.resume_reading()
        asyncio.get_running_loop().call_soon(_read_on, handler)


def _made(real: Callable[..., None]) -> Callable[..., None]:
    def made(handler: Any, transport: asyncio.Transport) -> None:
        real(handler, transport)
        _read_on(handler)

    return made


OTHERS: Final[dict[str, tuple[str, Callable[[], object]]]] = {
    "keeps its parser": ("_parser", _keep_the_first),
    "has other limits": ("max_line_size", lambda: property(lambda _: None, lambda *_: None)),
    "reads on": ("connection_made", lambda: _made(RequestHandler.connection_made)),
}


@pytest.mark.parametrize("other", OTHERS)
@on_both_loops
async def test_the_trial_of_another_aiohttp(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, other: str
) -> None:
    """One that behaves differently is found out, in words, with no noise in the log."""
    name, replaced = OTHERS[other]
    monkeypatch.setattr(RequestHandler, name, replaced())
    monkeypatch.setattr(direct_body, "_TRIAL_S", 0.5)
    fault = await why_not()
    assert fault is not None
    assert ": " in fault
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


async def test_without_direct_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the trial fails, one line says so; where it is not wanted, nothing is tried."""
    monkeypatch.setattr(RequestHandler, "_parser", _keep_the_first())
    monkeypatch.setattr(direct_body, "_TRIAL_S", 0.5)
    with capture_logs() as logged:
        assert not await app.may_read_directly(Settings())
        assert not await app.may_read_directly(Settings(upload_reader="aiohttp"))
    assert [(one["event"], one["log_level"]) for one in logged] == [
        ("bodies_read_by_aiohttp", "warning")
    ]
