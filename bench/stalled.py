"""What a client costs that stops reading while its uploads go on.

*One upload*: 50 sockets that never read, at an upload with 500 events a second, 250 times as
many as ingest would write. *Dashboard*: 40 sockets that follow 1,000 uploads with two events a
second each, which is what ingest writes. In both, one more socket reads, so that the events go
somewhere. There are that many since a process grows by a megabyte or so once, whoever comes.

The process is read after a while with that one reader alone, and again once the others have
stalled for some seconds: what it grew by is theirs, the cost of an open socket included. The
kernel's part is what it charges to the gateway's ends (``ss -tm``: queued for sending,
received, reserved).
"""

from __future__ import annotations

import asyncio
import math
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from bench import tables
from bench.feed import Pace, Positions
from bench.load import opened
from bench.machine import resident_bytes, settle
from bench.payload import lasting, scaled
from bench.processes import scratch, service
from bench.sockets import Peer
from bench.uploads import AUTH, announce, new_uploads, opening
from bench.watch import feeding, lapse, watched
from services.embedded_redis import embedded_redis
from shared.streams import connect

__all__ = ["report"]

_MOST_REPEATS: Final = 3
_WARM_S: Final = 3.0
_STALLED_S: Final = 6.0
"""Well below the time after which the gateway closes such a socket."""
_SKMEM: Final = re.compile(r"skmem:\(r(\d+),rb\d+,t\d+,tb\d+,f(\d+),w(\d+),o(\d+),bl(\d+)")


class _Scene(NamedTuple):
    name: str
    path: str
    """What the sockets open; ``{}`` stands for the first upload's id."""
    uploads: int
    rounds_per_s: float
    sockets: int


_SCENES: Final = (
    _Scene("one upload", "/api/v1/ws/{}", 1, 500, 50),
    _Scene("dashboard, 1,000 uploads", "/ws/upload-progress", 1000, 2, 40),
)


class _Run(NamedTuple):
    """Bytes a socket."""

    process: float
    kernel: float
    written: float
    """Events a second and socket while it stalled."""
    server: float
    """Share of a core: one that is overloaded grows by what it has read and not yet told."""
    open: int
    """Sockets that the gateway had not closed at the end."""


def report(repeat: int) -> str:
    """Measure both scenes; return the Markdown section."""
    runs: dict[_Scene, list[_Run]] = {one: [] for one in _SCENES}
    for _ in range(min(repeat, _MOST_REPEATS)):
        for scene, own in runs.items():
            settle()
            own.append(asyncio.run(_measure(scene)))
    return _render(runs)


async def _measure(scene: _Scene) -> _Run:
    uploads = new_uploads(scaled(scene.uploads))
    target = opening(scene.path.format(uploads[0].upload_id), uploads[0].user_id)
    with (
        scratch() as directory,
        embedded_redis(directory) as url,
        service("gateway", url, directory, AUTH) as server,
    ):
        redis = connect(url)
        await announce(redis, uploads)
        positions = Positions(redis, [one.upload_id for one in uploads])
        with opened(server.port, [target], directory) as load:
            pace = Pace(positions.add, len(uploads), load.frames)
            async with feeding(pace, lambda one: one.steadily(scene.rounds_per_s)) as task:
                await lapse(lasting(_WARM_S), task)
                before = resident_bytes(server.pid)
                with _stalled(server.port, target, scene.sockets):
                    rounds = positions.rounds
                    span = await watched(server, load, lasting(_STALLED_S), task)
                    grown = resident_bytes(server.pid) - before
                    kernel = _kernel_bytes(server.port)
                    rounds = positions.rounds - rounds
        await redis.aclose()
    return _Run(
        process=grown / scene.sockets,
        kernel=sum(sorted(kernel)[-scene.sockets :]) / scene.sockets if kernel else math.nan,
        written=rounds * len(uploads) / span.seconds,
        server=span.server,
        open=len(kernel) - 1,
    )


@contextmanager
def _stalled(port: int, target: str, count: int) -> Iterator[None]:
    """Hold so many sockets open that are never read from."""
    peers = [Peer(port, "plain", target) for _ in range(count)]
    try:
        yield
    finally:
        for one in peers:
            one.socket.close()


def _kernel_bytes(port: int) -> list[int]:
    """Return the memory charged to each open socket of a server; nothing without ``ss``."""
    if shutil.which("ss") is None:
        return []
    argv = ["ss", "-tmnHO", "state", "established", "sport", "=", f":{port}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return [sum(map(int, one)) for one in _SKMEM.findall(done.stdout)]


def _render(runs: dict[_Scene, list[_Run]]) -> str:
    rows = [["scene", "sockets", "events/s", "process, KiB", "kernel, KiB", "together"]]
    rows[0] += ["gateway CPU", "open"]
    for scene, own in runs.items():
        process, kernel = (
            [getattr(one, part) / 1024 for one in own] for part in _Run._fields[:2]
        )
        rows.append(
            [
                scene.name,
                str(scene.sockets),
                tables.median([one.written for one in own]),
                tables.spread(process),
                tables.spread(kernel),
                tables.spread(_together(process, kernel)),
                tables.median([one.server for one in own], ".0%"),
                str(min(one.open for one in own)),
            ]
        )
    notes = [
        f"At most {_MOST_REPEATS} rounds, {lasting(_STALLED_S):.1f} s each. Target: together "
        "<= 256 KiB a socket. What the figures mean stands at the top of `bench/stalled.py`."
    ]
    return tables.markdown("A client that stops reading", notes, rows)


def _together(process: Sequence[float], kernel: Sequence[float]) -> list[float]:
    return [a + b for a, b in zip(process, kernel, strict=True)]
