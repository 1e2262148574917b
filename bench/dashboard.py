"""One dashboard socket that follows 1,000 uploads: how many frames reach it.

*Paced*: ten events a second of each upload, 10,000 in all, written as ingest writes them; all
must arrive, and what counts is the share of a core. *Each round*: the next position of all
uploads is written when the last has arrived: the most that can be delivered with nothing
conflated. *Flood*: 150,000 events a second, whatever
arrives; what cannot be sent is conflated.

``frames per CPU second`` is what a core could deliver were it never waiting for Redis.
``frames a write`` tells whether writes were coalesced (by the gateway's own counters).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from bench import tables
from bench.feed import Pace, Positions
from bench.load import opened
from bench.machine import settle
from bench.payload import lasting, scaled
from bench.processes import scratch, service
from bench.uploads import AUTH, announce, new_uploads, opening
from bench.watch import Span, feeding, lapse, watched
from services.embedded_redis import embedded_redis
from shared.streams import connect

__all__ = ["report"]

_UPLOADS: Final = 1000
_PER_S: Final = 10
_TICKS: Final = 20
"""Writes a second while paced: ingest lets due positions gather for 50 ms."""
_FLOOD_ROUNDS: Final = 150
"""A second; half as much again as has to be delivered."""
_WARM_S: Final = 1.0
_RUN_S: Final = 5.0
_MOST_REPEATS: Final = 3


class _Run(NamedTuple):
    span: Span
    fed: int
    """Events that were written meanwhile."""


Way = Callable[[Pace], Coroutine[Any, Any, None]]

_WAYS: Final[Mapping[str, tuple[Way, int]]] = {
    "paced": (partial(Pace.steadily, per_s=_TICKS), _TICKS // _PER_S),
    "each round": (Pace.lockstep, 1),
    "flood": (partial(Pace.steadily, per_s=_FLOOD_ROUNDS), 1),
}
"""How the feed runs, and by how many turns it writes positions of all uploads."""


def report(repeat: int) -> str:
    """Measure all ways in turn; return the Markdown section."""
    runs: dict[str, list[_Run]] = {name: [] for name in _WAYS}
    for _ in range(min(repeat, _MOST_REPEATS)):
        for name, (way, turns) in _WAYS.items():
            settle()
            runs[name].append(asyncio.run(_measure(way, turns)))
    return _render(runs)


async def _measure(way: Way, turns: int) -> _Run:
    uploads = new_uploads(scaled(_UPLOADS))
    ids = [one.upload_id for one in uploads]
    with (
        scratch() as directory,
        embedded_redis(directory) as url,
        service("gateway", url, directory, AUTH) as server,
    ):
        redis = connect(url)
        await announce(redis, uploads)
        target = opening("/ws/upload-progress", uploads[0].user_id)
        with opened(server.port, [target], directory) as load:
            await lapse(lasting(_WARM_S), None)
            groups = [Positions(redis, ids[turn::turns]) for turn in range(turns)]
            feed = _Feed(groups, [len(ids[turn::turns]) for turn in range(turns)])
            pace = Pace(feed.add, len(ids), load.frames)
            async with feeding(pace, way) as task:
                await lapse(lasting(_WARM_S), task)
                fed = feed.written
                span = await watched(server, load, lasting(_RUN_S), task)
                fed = feed.written - fed
        await redis.aclose()
    return _Run(span, fed)


class _Feed:
    """Writes by turns, and counts."""

    def __init__(self, groups: Sequence[Positions], sizes: Sequence[int]) -> None:
        self._groups: Final = groups
        self._sizes: Final = sizes
        self._turn = 0
        self.written = 0

    async def add(self) -> None:
        """Write the next positions of the group whose turn it is."""
        turn = self._turn
        self._turn = (turn + 1) % len(self._groups)
        await self._groups[turn].add()
        self.written += self._sizes[turn]


def _render(runs: Mapping[str, Sequence[_Run]]) -> str:
    head = ["feed", "events/s written", "frames/s delivered", "conflated", "frames per CPU s"]
    rows = [[*head, "frames a write", "server CPU", "kept waiting", "load CPU", "load core"]]
    for name, own in runs.items():
        spans = [one.span for one in own]
        row = [name, tables.median([one.fed / one.span.seconds for one in own])]
        row.append(tables.spread([one.rate for one in spans]))
        row.append(tables.median([_conflated(one) for one in own], ".0%"))
        row.append(tables.spread([one.per_cpu for one in spans]))
        row.append(tables.median([_frames_a_write(one) for one in spans], ",.0f"))
        for field in ("server", "queued", "load", "load_core"):
            row.append(tables.median([getattr(one, field) for one in spans], ".0%"))
        rows.append(row)
    notes = [
        f"{scaled(_UPLOADS):,} uploads of one user, one socket, {lasting(_RUN_S):.1f} s a run, "
        f"at most {_MOST_REPEATS} rounds. Target: >= 100,000 frames/s delivered in coalesced "
        "writes. What the figures mean stands at the top of `bench/dashboard.py`."
    ]
    return tables.markdown("A dashboard that follows 1,000 uploads", notes, rows)


def _conflated(run: _Run) -> float:
    """Return the share of the events that had no frame of their own.

    Between two readings a few are under way; that is not less than nothing conflated.
    """
    return max(1 - run.span.frames / run.fed, 0.0) if run.fed else 0.0


def _frames_a_write(span: Span) -> float:
    writes = span.counters.get("gateway_writes_total", 0)
    return span.frames / writes if writes else float("nan")
