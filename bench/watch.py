"""What a server did between two moments: frames at the receivers, CPU, memory, its metrics."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from bench.feed import Pace
from bench.load import Load
from bench.machine import LOAD_CORE, core_busy_seconds, cpu_seconds, kept_waiting_seconds
from bench.processes import Server

__all__ = ["Span", "feeding", "metrics", "watched"]

_SAMPLE: Final = re.compile(r"^(\w+)(?:\{.*\})? ([0-9.e+-]+)$", re.MULTILINE)


class Span(NamedTuple):
    """What one run showed; shares are of one core."""

    seconds: float
    frames: int
    cpu_s: float
    queued: float
    load: float
    load_core: float
    least: int
    most: int
    closed: int
    counters: Mapping[str, float]
    """By how much the server's own counters grew."""

    @property
    def rate(self) -> float:
        """Frames a second of the clock."""
        return self.frames / self.seconds

    @property
    def per_cpu(self) -> float:
        """Frames a second in which the server had a core."""
        return self.frames / self.cpu_s

    @property
    def server(self) -> float:
        """Its share of a core."""
        return self.cpu_s / self.seconds


async def watched(
    server: Server, load: Load, seconds: float, task: asyncio.Future[None] | None
) -> Span:
    """Compare two readings of every counter; a feed that fails meanwhile ends the benchmark."""
    counters, each = metrics(server), load.each()
    before = _reading(server, load)
    await lapse(seconds, task)
    after = _reading(server, load)
    grown = metrics(server)
    wall, frames, cpu_s, queued_s, load_s, core_s = (
        b - a for a, b in zip(before, after, strict=True)
    )
    own = [b - a for a, b in zip(each, load.each(), strict=True)]
    return Span(
        seconds=wall,
        frames=int(frames),
        cpu_s=cpu_s,
        queued=queued_s / wall,
        load=load_s / wall,
        load_core=core_s / wall,
        least=min(own),
        most=max(own),
        closed=load.closed(),
        counters={name: value - counters.get(name, 0) for name, value in grown.items()},
    )


def _reading(server: Server, load: Load) -> tuple[float, ...]:
    return (
        time.monotonic(),
        load.frames(),
        cpu_seconds(server.pid),
        kept_waiting_seconds(server.pid),
        cpu_seconds(load.pid),
        core_busy_seconds(LOAD_CORE),
    )


async def lapse(seconds: float, task: asyncio.Future[None] | None) -> None:
    """Let time pass; what a feed raises meanwhile is raised."""
    if task is None:
        await asyncio.sleep(seconds)
        return
    done, _ = await asyncio.wait({task}, timeout=seconds)
    for one in done:
        one.result()


@asynccontextmanager
async def feeding(
    pace: Pace, run: Callable[[Pace], Coroutine[Any, Any, None]]
) -> AsyncIterator[asyncio.Future[None]]:
    """Feed for as long as the block lasts."""
    task = asyncio.ensure_future(run(pace))
    try:
        yield task
    finally:
        pace.ended = True
        await asyncio.wait({task})


def metrics(server: Server) -> dict[str, float]:
    """Return the server's own counters, summed over their labels; none if it has none."""
    if not server.internal:
        return {}
    url = f"http://127.0.0.1:{server.internal}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        page = answer.read().decode()
    found: dict[str, float] = {}
    for name, value in _SAMPLE.findall(page):
        found[name] = found.get(name, 0) + float(value)
    return found
