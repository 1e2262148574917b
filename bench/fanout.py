"""Fan-out of progress to 1,000 sockets: frames at the receiver, against bounds.

What is compared
    The bound sends one frame a socket with one ``send()``, round after round, and never waits.
    The gateway takes its events from Redis, so it is fed in two ways. *Flood*: 400 events a
    second, more than anyone can send to 1,000 sockets; it thins them, as it is made to, and
    what counts is what arrived. One event folds into the next only before it is sent, so at
    most one frame an upload and socket leaves in a turn. *Each
    event*: the next one is written when the last has reached every socket, so nothing can be
    thinned and no frame is missed; between events the gateway waits for Redis.

    All that in two scenes: sockets that watch one upload (one frame a write is all there can
    be), and the sockets of a user who has eight uploads under way (what comes in together
    goes out in one write).

Which figure
    ``frames/s`` is the plain rate at the receivers. ``frames per CPU second`` divides by the
    time that the server process had a core: what the rate would be were it never waiting. Of a
    server that is busy all the time both are the same; of one that paces itself (see its CPU
    share) only the second says what a frame costs. ``kept waiting`` is the share of time in
    which the server was ready to run and some stranger had its core: it spoils the first only.

Is the load the limit?
    It has a core of its own and reads whatever is there with one call. Its CPU share, and how
    busy that core was with it, Redis and the feed together, stand in the table. Every subject
    sends the same payload, taken from the gateway's own socket.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import aiohttp

from bench import tables
from bench.feed import SIZE, Feed
from bench.load import Load, compiled, opened
from bench.machine import (
    LOAD_CORE,
    core_busy_seconds,
    cpu_seconds,
    kept_waiting_seconds,
    settle,
)
from bench.processes import Server, free_port, scratch, service, started
from bench.wire import Connection
from services.embedded_redis import embedded_redis
from shared.streams import connect

__all__ = ["report"]

_SOCKETS: Final = 1000
_WARM_S: Final = 1.0
_RUN_S: Final = 5.0


class _Run(NamedTuple):
    """What one run showed; shares are of one core."""

    rate: float
    per_cpu: float
    server: float
    queued: float
    load: float
    load_core: float
    least: int
    most: int
    closed: int


Pace = Callable[[Feed, Load], Awaitable[None]]


class _Scene(NamedTuple):
    title: str
    path: str
    """What the sockets open; ``{}`` stands for an upload's id."""
    uploads: int


_SCENES: Final = (
    _Scene("Fan-out of one upload's progress", "/api/v1/ws/{}", 1),
    _Scene("Fan-out of a user's eight uploads", "/ws/upload-progress", 8),
)


def report(repeat: int) -> str:
    """Measure all scenes; return the Markdown sections."""
    return "\n\n".join(_report(scene, repeat) for scene in _SCENES)


def _report(scene: _Scene, repeat: int) -> str:
    """Measure all subjects in turn, ``repeat`` times; return the Markdown section."""
    with scratch() as directory:
        payload = directory / "payload"
        payload.write_bytes(asyncio.run(_one_frame(scene)))
        c_bound = compiled("bounds/fanout.c", "bench.bounds.fanout", directory)
        aiohttp_bound = (sys.executable, "-m", "bench.bounds.send_str")
        subjects: dict[str, Callable[[], _Run]] = {
            "bound: one `send()` a frame": partial(_bound, c_bound, payload),
            "aiohttp, `await ws.send_str`": partial(_bound, aiohttp_bound, payload),
            "gateway, flood": partial(_gateway, scene, directory, _flood),
            "gateway, each event": partial(_gateway, scene, directory, _lockstep),
        }
        runs: dict[str, list[_Run]] = {name: [] for name in subjects}
        for _ in range(repeat):
            for name, measure in subjects.items():
                settle()
                runs[name].append(measure())
        return _render(scene, runs, len(payload.read_bytes()))


def _bound(command: Sequence[str], payload: Path) -> _Run:
    port = free_port()
    argv = [*command, str(port), str(_SOCKETS), str(payload)]
    with started(argv, port) as server, opened(port, "/", _SOCKETS, payload.parent) as load:
        return asyncio.run(_watch(server, load, None))


def _gateway(scene: _Scene, directory: Path, pace: Pace) -> _Run:
    with (
        _fed_gateway(scene) as (server, path, redis_url, upload_ids),
        opened(server.port, path, _SOCKETS, directory) as load,
    ):
        return asyncio.run(_feed_and_watch(server, load, redis_url, upload_ids, pace))


@contextmanager
def _fed_gateway(scene: _Scene) -> Iterator[tuple[Server, str, str, list[str]]]:
    """Yield a gateway and uploads that it knows: real ingest created them, and has ended."""
    with scratch() as data, embedded_redis(data) as redis_url:
        with service("ingest", redis_url, data) as ingest:
            client = Connection(ingest.port)
            urls = [client.create("/api/v1/uploads", SIZE) for _ in range(scene.uploads)]
            client.close()
        upload_ids = [url.rsplit("/", 1)[1] for url in urls]
        with service("gateway", redis_url, data) as gateway:
            yield gateway, scene.path.format(*upload_ids), redis_url, upload_ids


async def _one_frame(scene: _Scene) -> bytes:
    """Return the payload of a progress frame, as the gateway sends it."""
    with _fed_gateway(scene) as (server, path, redis_url, upload_ids):
        redis = connect(redis_url)
        feed = Feed(redis, upload_ids)
        url = f"http://127.0.0.1:{server.port}{path}"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as ws:
            for _ in upload_ids:
                await ws.receive_str(timeout=10)  # the snapshots
            await feed.add()
            text = await ws.receive_str(timeout=10)
        await redis.aclose()
    return text.encode()


async def _flood(feed: Feed, load: Load) -> None:
    await feed.flood()


async def _lockstep(feed: Feed, load: Load) -> None:
    await feed.lockstep(_SOCKETS, load.frames)


async def _feed_and_watch(
    server: Server, load: Load, redis_url: str, upload_ids: list[str], pace: Pace
) -> _Run:
    redis = connect(redis_url)
    feed = Feed(redis, upload_ids)
    feeding = asyncio.ensure_future(pace(feed, load))
    try:
        return await _watch(server, load, feeding)
    finally:
        feed.ended = True
        await asyncio.wait({feeding})
        await redis.aclose()


async def _watch(server: Server, load: Load, feeding: asyncio.Future[None] | None) -> _Run:
    """Let it warm up, then compare two readings of every counter."""
    await _lapse(_WARM_S, feeding)
    before, each_before = _reading(server, load), load.each()
    await _lapse(_RUN_S, feeding)
    after, each_after = _reading(server, load), load.each()
    wall, frames, server_s, queued_s, load_s, core_s = (
        b - a for a, b in zip(before, after, strict=True)
    )
    own = [b - a for a, b in zip(each_before, each_after, strict=True)]
    return _Run(
        rate=frames / wall,
        per_cpu=frames / server_s,
        server=server_s / wall,
        queued=queued_s / wall,
        load=load_s / wall,
        load_core=core_s / wall,
        least=min(own),
        most=max(own),
        closed=load.closed(),
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


async def _lapse(seconds: float, feeding: asyncio.Future[None] | None) -> None:
    """Let time pass; a feed that fails meanwhile ends the benchmark."""
    if feeding is None:
        await asyncio.sleep(seconds)
    else:
        done, _ = await asyncio.wait({feeding}, timeout=seconds)
        for one in done:
            one.result()


def _render(scene: _Scene, runs: dict[str, list[_Run]], size: int) -> str:
    bound, plain = list(runs.values())[:2]
    head = ["subject", "frames/s", "x bound", "x `send_str`", "frames per CPU s", "x bound"]
    head += [
        "x `send_str`",
        "server CPU",
        "kept waiting",
        "load CPU",
        "load core",
        "frames a socket",
    ]
    rows = [head]
    for name, own in runs.items():
        cells = [name]
        for field in ("rate", "per_cpu"):
            values = [getattr(one, field) for one in own]
            cells.append(tables.spread(values))
            for other in (bound, plain):
                cells.append(tables.ratio(values, [getattr(one, field) for one in other]))
        for field in ("server", "queued", "load", "load_core"):
            cells.append(tables.median([getattr(one, field) for one in own], ".0%"))
        least, most = min(one.least for one in own), max(one.most for one in own)
        rows.append([*cells, f"{least}-{most}"])
    closed = sum(one.closed for those in runs.values() for one in those)
    notes = [
        f"{_SOCKETS:,} sockets, payload of {size} bytes, {_RUN_S:.0f} s a run; sockets closed "
        f"by a server: {closed}. Targets: x bound >= 0.50, x `send_str` >= 1.40. What "
        "the figures mean stands at the top of `bench/fanout.py`."
    ]
    return tables.markdown(scene.title, notes, rows)
