"""Events for which nobody here subscribes: what they cost a gateway that serves others.

Four producers, as if there were four ingest pods, write positions of 10,000 uploads, 50,000 a
second in all; those that come due within 50 ms share an entry a partition, as the publisher
does it. One socket watches one more upload, whose one event a second must arrive: so the
gateway is alive, and has a reason to read. With lifecycle events: a thousand more events a
second, which create uploads of others.

The gateway is the only one, so that all recording falls to it, too; ``behind`` is how many
entries it had not recorded at the end: if that grows, the share of a core says too little.
``quiet`` is the same gateway before the feed begins.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis

from bench import tables
from bench.feed import Positions
from bench.load import opened
from bench.machine import settle
from bench.payload import lasting, scaled
from bench.processes import PARTITIONS, scratch, service
from bench.uploads import AUTH, Upload, announce, created, entry, new_uploads, opening
from bench.watch import Span, lapse, watched
from services.embedded_redis import embedded_redis
from shared.streams import Command, command, connect, flat_dict, pipelined, stream_names

__all__ = ["report"]

_UPLOADS: Final = 10_000
_PER_S: Final = 5
_PRODUCERS: Final = 4
_TICK_S: Final = 0.05
_TURNS: Final = round(1 / _PER_S / _TICK_S)
"""Ticks until it is an upload's turn again."""
_RUN_S: Final = 8.0
_QUIET_S: Final = 3.0
_MOST_REPEATS: Final = 3


class _Run(NamedTuple):
    quiet: Span
    span: Span
    written: int
    behind: int


def report(repeat: int) -> str:
    """Measure without and with lifecycle events; return the Markdown section."""
    scenes = {"positions": 0, "positions and lifecycle": 1000}
    runs: dict[str, list[_Run]] = {name: [] for name in scenes}
    for _ in range(min(repeat, _MOST_REPEATS)):
        for name, lifecycle in scenes.items():
            settle()
            runs[name].append(asyncio.run(_measure(scaled(lifecycle) if lifecycle else 0)))
    return _render(runs)


async def _measure(lifecycle: int) -> _Run:
    others, (own,) = new_uploads(scaled(_UPLOADS), users=100), new_uploads(1, users=1)
    own = Upload(own.upload_id, "user-here")
    with (
        scratch() as directory,
        embedded_redis(directory) as url,
        service("gateway", url, directory, AUTH) as server,
    ):
        redis = connect(url)
        await announce(redis, [own, *others])
        target = opening(f"/api/v1/ws/{own.upload_id}", own.user_id)
        with opened(server.port, [target], directory) as load:
            quiet = await watched(server, load, lasting(_QUIET_S), None)
            feed = _Feed(redis, own, others, lifecycle)
            task = asyncio.ensure_future(feed.run())
            await lapse(lasting(1.0), task)
            written = feed.written
            span = await watched(server, load, lasting(_RUN_S), task)
            written = feed.written - written
            feed.ended = True
            await task
            behind = await _behind(redis)
        await redis.aclose()
    return _Run(quiet, span, written, behind)


async def _behind(redis: Redis) -> int:
    """Return how many entries the groups have still to read, or to acknowledge."""
    total = 0
    for stream in stream_names(PARTITIONS):
        if await command(redis, "EXISTS", stream):
            groups: Sequence[Any] = await command(redis, "XINFO", "GROUPS", stream)
            for one in map(flat_dict, groups):
                total += int(one[b"lag"] or 0) + int(one[b"pending"])
    return total


class _Feed:
    """Writes what nobody wants, and one event a second that somebody does."""

    def __init__(
        self, redis: Redis, own: Upload, others: Sequence[Upload], lifecycle: int
    ) -> None:
        self._redis: Final = redis
        self._lifecycle: Final = round(lifecycle * _TICK_S)
        self._own: Final = Positions(redis, [own.upload_id], "own")
        ids = [one.upload_id for one in others]
        share = _PRODUCERS * _TURNS
        self._turns: Final = [
            [(Positions(redis, part, f"pod-{pod}"), len(part)) for pod in range(_PRODUCERS)
             if (part := ids[turn * _PRODUCERS + pod :: share])]
            for turn in range(_TURNS)
        ]  # fmt: skip
        self.written = 0
        self.ended = False

    async def run(self) -> None:
        """Write at the pace until told to end."""
        due, tick = time.monotonic(), 0
        while not self.ended:
            commands: list[Command] = []
            for positions, size in self._turns[tick % _TURNS]:
                commands += positions.commands()
                self.written += size
            users = new_uploads(self._lifecycle, users=100)
            commands += [entry(created(one)) for one in users]
            self.written += len(users)
            if tick % round(1 / _TICK_S) == 0:
                commands += self._own.commands()
            await pipelined(self._redis, commands)
            tick, due = tick + 1, due + _TICK_S
            await asyncio.sleep(max(due - time.monotonic(), 0))


def _render(runs: Mapping[str, Sequence[_Run]]) -> str:
    head = ["feed", "events/s", "gateway CPU", "quiet", "kept waiting", "behind, entries"]
    rows = [[*head, "own events arrived", "load CPU", "load core"]]
    for name, own in runs.items():
        spans = [one.span for one in own]
        rows.append(
            [
                name,
                tables.median([one.written / one.span.seconds for one in own]),
                tables.spread([one.server for one in spans], ".0%"),
                tables.median([one.quiet.server for one in own], ".0%"),
                tables.median([one.queued for one in spans], ".0%"),
                tables.median([one.behind for one in own]),
                tables.median([one.frames for one in spans]),
                tables.median([one.load for one in spans], ".0%"),
                tables.median([one.load_core for one in spans], ".0%"),
            ]
        )
    notes = [
        f"{scaled(_UPLOADS):,} uploads, {lasting(_RUN_S):.1f} s a run, at most {_MOST_REPEATS} "
        "rounds. Target: gateway CPU < 50 %. What the figures mean stands at the top of "
        "`bench/unwanted.py`."
    ]
    return tables.markdown("50,000 events a second that nobody here wants", notes, rows)
