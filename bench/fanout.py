"""Fan-out of progress to many sockets: frames at the receiver, against bounds and peers.

What is compared
    The bound sends one frame a socket with one ``send()``, round after round, and never waits.
    The gateway takes its events from Redis, so it is fed in two ways. *Flood*: 400 events a
    second, more than anyone can send to 1,000 sockets; it thins them, as it is made to, and
    what counts is what arrived. One event folds into the next only before it is sent, so at
    most one frame an upload and socket leaves in a turn. *Each
    event*: the next one is written when the last has reached every socket, so nothing can be
    thinned and no frame is missed; between events the gateway waits for Redis.
    Peers thin nothing. They get the next event while up to seven are still on their way, so
    that they never wait: the best that they can do.

    All that with 1,000 and with 5,000 sockets that watch one upload (one frame a write is all
    there can be), and, without the peers, with the 1,000 sockets of a user who has eight
    uploads under way (what comes in together goes out in one write).

    And with the lifecycle events of one job, which the gateway thins as little as peers do: so
    it gets them as they do, the next one while up to seven are on their way. It still passes
    on, remembers and records each; what one read has brought leaves in one write.

Which figure
    ``frames/s`` is the plain rate at the receivers. ``frames per CPU second`` divides by the
    time that the server process had a core: what the rate would be were it never waiting. Of a
    server that is busy all the time both are the same; of one that paces itself (see its CPU
    share) only the second says what a frame costs. ``kept waiting`` is the share of time in
    which the server was ready to run and some stranger had its core: it spoils the first only.

Is the load the limit?
    It has a core of its own, reads whatever is there with one call, and rests 0.3 ms before it
    looks again, or a server that is not always busy would pay for waking it, which the bound
    never does (12 % of the gateway's time without that rest). Its CPU share, and how busy
    that core was with it, Redis and the feed together, stand in the table. Every subject
    sends the same payload, taken from the gateway's own socket; Socket.IO and Centrifugo put
    their own envelope around it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp

from bench import tables
from bench.broadcasters import Start, Subject, bounds, gateway, gateway_of_job, peers
from bench.feed import Pace
from bench.load import opened
from bench.machine import settle
from bench.payload import lasting, scaled
from bench.processes import scratch
from bench.watch import Span, feeding, lapse, watched

__all__ = ["report"]

_WARM_S: Final = 1.0
_RUN_S: Final = 4.0
_FLOOD_EVENTS_PER_S: Final = 400
"""To 1,000 sockets more than the bound itself can send."""
_AHEAD: Final = 8
_MOST_REPEATS: Final = 3


class _Run(NamedTuple):
    span: Span
    lost: int


Way = Callable[[Pace], Coroutine[Any, Any, None]]


class _Scene(NamedTuple):
    title: str
    ours: Start
    ways: Mapping[str, Way]
    """How ours is fed."""
    sockets: int
    others: tuple[Subject, ...]
    targets: str


_AS_PEERS: Final[Way] = partial(Pace.lockstep, ahead=_AHEAD)
_WHOLE: Final[Mapping[str, Way]] = {
    "gateway, as peers": _AS_PEERS,
    "gateway, each event": Pace.lockstep,
}


def report(repeat: int) -> str:
    """Measure all scenes; return the Markdown sections."""
    send, send_str = bounds()
    known = tuple(peers())
    beside = "x bound >= 0.70; x Socket.IO >= 1.50; x Channels >= 15; x Centrifugo >= 1.00."
    title, one = "Fan-out of one upload's progress", partial(gateway, "/api/v1/ws/{}", 1)
    ways, each = _thinned(1), f"Targets: each event, {beside}"
    eight = partial(gateway, "/ws/upload-progress", 8)
    job, alike = "Fan-out of one job's lifecycle events", f"Targets: as peers, {beside}"
    scenes = [
        _Scene(title, one, ways, 1000, (send, send_str, *known), each),
        _Scene(title, one, ways, 5000, (send, *known), each),
        _Scene(
            "Fan-out of a user's eight uploads",
            *(eight, _thinned(8), 1000, (send, send_str), "Target: x bound >= 1."),
        ),
        _Scene(job, gateway_of_job, _WHOLE, 1000, (send, *known[:1]), alike),
        _Scene(job, gateway_of_job, _WHOLE, 5000, (send, *known[:1]), alike),
    ]
    return "\n\n".join(_report(scene, min(repeat, _MOST_REPEATS)) for scene in scenes)


def _thinned(uploads: int) -> Mapping[str, Way]:
    flood = partial(Pace.steadily, per_s=_FLOOD_EVENTS_PER_S / uploads)
    return {"gateway, flood": flood, "gateway, each event": Pace.lockstep}


def _report(scene: _Scene, repeat: int) -> str:
    """Measure all subjects in turn, ``repeat`` times; return the Markdown section."""
    sockets = scaled(scene.sockets)
    with scratch() as directory:
        size = asyncio.run(_write_payload(directory, scene.ours))
        subjects: dict[str, tuple[Start, Way]] = {
            one.name: (one.start, _AS_PEERS) for one in scene.others if not one.absence
        }
        subjects |= {name: (scene.ours, way) for name, way in scene.ways.items()}
        runs: dict[str, list[_Run]] = {name: [] for name in subjects}
        for _ in range(repeat):
            for name, (start, way) in subjects.items():
                settle()
                runs[name].append(asyncio.run(_measure(start, way, directory, sockets)))
    return _render(scene, sockets, runs, size)


async def _write_payload(directory: Path, ours: Start) -> int:
    """Leave the payload of a frame, as the gateway sends it; return its length."""
    async with ours(directory, 1) as broadcast, aiohttp.ClientSession() as session:
        target, _, header = broadcast.openings[0].partition("\t")
        headers = dict([header.split(": ", 1)])
        url = f"http://127.0.0.1:{broadcast.server.port}{target}"
        async with session.ws_connect(url, headers=headers) as ws:
            for _ in range(broadcast.uploads):
                await ws.receive_str(timeout=10)  # the snapshots
            if broadcast.add is not None:
                await broadcast.add()
            text = await ws.receive_str(timeout=10)
    return (directory / "payload").write_bytes(text.encode())


async def _measure(start: Start, way: Way, directory: Path, sockets: int) -> _Run:
    seconds = lasting(_RUN_S)
    async with start(directory, sockets) as broadcast:
        port, openings = broadcast.server.port, broadcast.openings
        with opened(port, openings, directory, speech=broadcast.speech) as load:
            if broadcast.add is None:
                await lapse(lasting(_WARM_S), None)
                return _Run(await watched(broadcast.server, load, seconds, None), 0)
            frames = sockets * broadcast.uploads
            pace = Pace(broadcast.add, frames, load.frames)
            await pace.wake()
            async with feeding(pace, way) as task:
                await lapse(lasting(_WARM_S), task)
                return _Run(await watched(broadcast.server, load, seconds, task), pace.lost)


def _render(scene: _Scene, sockets: int, runs: dict[str, list[_Run]], size: int) -> str:
    beside = [name for name in runs if not name.startswith("gateway")]
    rows = [_head(beside)]
    for name, own in runs.items():
        rows.append(_row(name, own, [runs[other] for other in beside]))
    absent = [
        f"{one.name} was left out: {one.absence.rstrip('.')}."
        for one in scene.others
        if one.absence
    ]
    notes = [
        f"{sockets:,} sockets, payload of {size} bytes, {lasting(_RUN_S):.1f} s a run, at most "
        f"{_MOST_REPEATS} rounds; ratios are of frames per CPU second. "
        f"{scene.targets} What the figures mean stands at the top of `bench/fanout.py`.",
        *absent,
    ]
    return tables.markdown(f"{scene.title}, {sockets:,} sockets", notes, rows)


def _head(beside: Sequence[str]) -> list[str]:
    shares = ["server CPU", "kept waiting", "load CPU", "load core"]
    ratios = [f"x {_column(name)}" for name in beside]
    return [
        "subject",
        "frames/s",
        "frames per CPU s",
        *ratios,
        *shares,
        "frames a socket",
        "lost",
    ]


def _column(name: str) -> str:
    """Return a short name for the head of a column; the two layers are told apart."""
    return (
        name.removeprefix("Django ").replace(",", "") if "layer" in name else tables.short(name)
    )


def _row(name: str, own: Sequence[_Run], beside: Sequence[Sequence[_Run]]) -> list[str]:
    spans = [one.span for one in own]
    per_cpu = [one.per_cpu for one in spans]
    cells = [name, tables.spread([one.rate for one in spans]), tables.spread(per_cpu)]
    cells += [tables.ratio(per_cpu, [one.span.per_cpu for one in other]) for other in beside]
    for field in ("server", "queued", "load", "load_core"):
        cells.append(tables.median([getattr(one, field) for one in spans], ".0%"))
    cells.append(f"{min(one.least for one in spans)}-{max(one.most for one in spans)}")
    cells.append(f"{sum(one.lost for one in own):,}")
    return [*cells, f"{sum(one.closed for one in spans):,}"]
