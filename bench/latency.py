"""How old an event is when it is at the client: from XADD to the receiver's read.

*Quiet*: one upload, one watcher, ten events a second: what one event costs when nothing else
happens. *Busy*: 1,000 uploads with a watcher each, two events a second and upload, written as
ingest writes them: those that come due within 50 ms in one entry a partition.

The bound is a process on the gateway's core that does nothing but XREAD BLOCK: entries for it
are written between those for the gateway, through the same client, so that both meet the same
machine. In the busy scene it also waits while the gateway has the core, so that the busy age is
held against the quiet bound, too. The clock is the same for all processes
(``CLOCK_MONOTONIC``). An event that never arrived alone, since a newer one of its upload had
come, is not counted: see ``arrived``.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from redis.asyncio import Redis

from bench import tables
from bench.feed import STEP, Positions
from bench.load import Arrival, opened, words
from bench.machine import SERVER_CORE, settle, starting_on
from bench.payload import lasting, scaled
from bench.processes import ROOT, scratch, service
from bench.uploads import AUTH, announce, new_uploads, opening
from bench.watch import watched
from services.embedded_redis import embedded_redis
from shared.streams import command, connect

__all__ = ["report"]

_MOST_REPEATS: Final = 3
_TICK_S: Final = 0.05
_BARE: Final = "bench:bare"
_ROOM: Final = 100_000
_WARM_S: Final = 1.0


class _Scene(NamedTuple):
    name: str
    uploads: int
    per_s: float
    """Events a second of each upload."""
    seconds: float
    target: str


_SCENES: Final = (
    _Scene("quiet", 1, 10, 20, "p99 <= 5 x bare"),
    _Scene("busy", 1000, 2, 8, "p99 <= quiet bare + 100 ms"),
)


class _Run(NamedTuple):
    ages: list[float]
    """Milliseconds."""
    bare: list[float]
    arrived: float
    """Share of the events."""
    server: float
    load: float


def report(repeat: int) -> str:
    """Measure both scenes; return the Markdown section."""
    runs: dict[_Scene, list[_Run]] = {one: [] for one in _SCENES}
    for _ in range(min(repeat, _MOST_REPEATS)):
        for scene, own in runs.items():
            settle()
            own.append(asyncio.run(_measure(scene)))
    head = ["scene", "events/s", "arrived", "age p50, ms", "p99, ms", "bare p50", "bare p99"]
    rows = [[*head, "p50 x bare", "p99 x bare", "p99 - quiet bare", "server CPU", "load CPU"]]
    quiet = [tables.quantile(one.bare, 0.99) for one in runs[_SCENES[0]]]
    rows += [_row(scene, own, quiet) for scene, own in runs.items()]
    targets = "; ".join(f"{one.name}: {one.target}" for one in _SCENES)
    notes = [
        f"{scaled(1000):,} uploads in the busy scene; at most {_MOST_REPEATS} rounds. "
        f"Targets: {targets}. What the figures mean stands at the top of `bench/latency.py`."
    ]
    return tables.markdown("Age of an event at the client", notes, rows)


def _row(scene: _Scene, runs: Sequence[_Run], quiet: Sequence[float]) -> list[str]:
    p50, p99 = ([tables.quantile(one.ages, q) for one in runs] for q in (0.5, 0.99))
    bare50, bare99 = ([tables.quantile(one.bare, q) for one in runs] for q in (0.5, 0.99))
    return [
        scene.name,
        f"{scaled(scene.uploads) * scene.per_s:,.0f}",
        tables.median([one.arrived for one in runs], ".1%"),
        *(tables.spread(own, ".2f") for own in (p50, p99, bare50, bare99)),
        tables.ratio(p50, bare50),
        tables.ratio(p99, bare99),
        tables.median([a - b for a, b in zip(p99, quiet, strict=True)], ".2f"),
        tables.median([one.server for one in runs], ".0%"),
        tables.median([one.load for one in runs], ".0%"),
    ]


async def _measure(scene: _Scene) -> _Run:
    uploads = new_uploads(scaled(scene.uploads))
    with scratch() as directory, embedded_redis(directory) as url:
        settings = {**AUTH, "WEBSOCKET_MAX_CONNECTIONS_TOTAL": str(len(uploads) + 100)}
        with (
            service("gateway", url, directory, settings) as server,
            _bare(directory, url) as log,
        ):
            redis = connect(url)
            await announce(redis, uploads)
            openings = [opening(f"/api/v1/ws/{one.upload_id}", one.user_id) for one in uploads]
            with opened(server.port, openings, directory, log_room=_ROOM) as load:
                await asyncio.sleep(lasting(_WARM_S))
                feed = _Feed(redis, [one.upload_id for one in uploads], scene.per_s)
                seconds = lasting(scene.seconds)
                task = asyncio.ensure_future(feed.run(seconds))
                span = await watched(server, load, seconds, task)
                await task
                ages = feed.ages(load.arrivals())
                bare = feed.bare_ages(log)
            await redis.aclose()
    return _Run(ages, bare, len(ages) / feed.events, span.server, span.load)


@contextmanager
def _bare(directory: Path, url: str) -> Iterator[memoryview]:
    """Run the bound on the gateway's core; yield its log."""
    file = directory / "bare"
    file.write_bytes(bytes(8 * (1 + 3 * _ROOM)))
    argv = [sys.executable, "-m", "bench.bounds.xread", url, _BARE, str(file)]
    with starting_on(SERVER_CORE):
        process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        if process.stdout is None or process.stdout.readline().strip() != b"ready":
            raise SystemExit("the bare reader did not start")
        yield words(file)
    finally:
        process.kill()
        process.communicate()


class _Feed:
    """Writes positions and bare entries by turns; knows when it wrote which."""

    def __init__(self, redis: Redis, upload_ids: Sequence[str], per_s: float) -> None:
        self._redis: Final = redis
        self._turns: Final = max(round(1 / per_s / _TICK_S), 1)
        self._groups: Final = [
            Positions(redis, upload_ids[turn :: self._turns]) for turn in range(self._turns)
        ]
        self._sizes: Final = [
            len(upload_ids[turn :: self._turns]) for turn in range(self._turns)
        ]
        self._written: Final[dict[tuple[int, int], int]] = {}
        self._bare: Final[dict[int, int]] = {}
        self.events = 0

    async def run(self, seconds: float) -> None:
        """Write at the pace for so long, then let the last ones arrive."""
        due = time.monotonic()
        for tick in range(round(seconds / _TICK_S)):
            turn = tick % self._turns
            group = self._groups[turn]
            if self._sizes[turn]:
                self._written[turn, (group.rounds + 1) * STEP] = time.monotonic_ns()
                await group.add()
                self.events += self._sizes[turn]
            await _until(due + _TICK_S / 2)
            self._bare[tick] = time.monotonic_ns()
            await command(self._redis, "XADD", _BARE, "*", "n", tick)
            due += _TICK_S
            await _until(due)
        await asyncio.sleep(0.5)

    def ages(self, arrivals: Sequence[Arrival]) -> list[float]:
        """Return the ages of the events that arrived, in milliseconds."""
        known = [
            (self._written.get((o.socket % self._turns, o.bytes_sent)), o) for o in arrivals
        ]
        return [(one.at_ns - at) / 1e6 for at, one in known if at is not None]

    def bare_ages(self, log: memoryview) -> list[float]:
        """Return those of the bare entries."""
        flat = log[1 : 1 + 3 * log[0]].tolist()
        return [
            (at - self._bare[number]) / 1e6
            for number, at in zip(flat[1::3], flat[2::3], strict=True)
        ]


async def _until(moment: float) -> None:
    await asyncio.sleep(max(moment - time.monotonic(), 0))
