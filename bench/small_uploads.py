"""1,000 uploads of 4 KiB, 16 at a time: what one small upload costs the server.

Creation and one PATCH each, over connections that stay open. The figure is uploads per CPU
second of the server process, which is uploads a second per core whatever the disk, the client
and the number of cores; the plain rate stands beside it. Ours syncs each upload to the disk
before it answers and publishes its events; the peers do neither, so a second row has ours
without the sync.

What one run stored stays until all have ended: ext4 without a journal does not give out an
inode again for minutes, and finds the next free one only by looking at each of those.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from bench import tables
from bench.machine import cpu_seconds, settle
from bench.processes import scratch
from bench.tus_servers import NODE, TusServer, absences, ingest, peers
from bench.wire import Connection

__all__ = ["report"]

_UPLOADS: Final = 1000
_WARM_UPLOADS: Final = 1000
"""Until then a server that compiles as it runs is slower by half."""

_AT_A_TIME: Final = 16
_BODY: Final = os.urandom(4096)


class _Run(NamedTuple):
    per_cpu: float
    rate: float
    redis_share: float
    """CPU time of Redis, as a share of the server's."""


def report(repeat: int) -> str:
    """Measure all subjects in turn, ``repeat`` times; return the Markdown section."""
    subjects = [ingest(), ingest({"UPLOAD_FSYNC": "never"}), *peers()]
    runs: dict[str, list[_Run]] = {one.name: [] for one in subjects}
    with scratch() as stores:
        for number in range(repeat):
            for index, subject in enumerate(subjects):
                store = stores / f"{number}-{index}"
                store.mkdir()
                runs[subject.name].append(_measure(subject, store))
    return _render(runs)


def _measure(subject: TusServer, store: Path) -> _Run:
    settle()
    with subject.start(store) as server:
        _upload(server.port, subject.collection, _WARM_UPLOADS)
        before = cpu_seconds(server.pid), cpu_seconds(server.redis_pid)
        begun = time.perf_counter()
        _upload(server.port, subject.collection, _UPLOADS)
        took = time.perf_counter() - begun
        own = cpu_seconds(server.pid) - before[0]
        redis = cpu_seconds(server.redis_pid) - before[1]
    return _Run(_UPLOADS / own, _UPLOADS / took, redis / own)


def _upload(port: int, collection: str, count: int) -> None:
    """Make so many uploads over as many connections as are at work at a time."""
    tickets = iter(range(count))
    faults: list[BaseException] = []
    threads = [
        threading.Thread(target=_work, args=(port, collection, tickets, faults))
        for _ in range(_AT_A_TIME)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    if faults:
        raise SystemExit(f"an upload failed: {faults[0]}")


def _work(
    port: int, collection: str, tickets: Iterator[int], faults: list[BaseException]
) -> None:
    client = Connection(port)
    try:
        for _ in tickets:
            client.append(client.create(collection, len(_BODY)), _BODY)
    except (Exception, SystemExit) as exc:
        faults.append(exc)
    finally:
        client.close()


def _render(runs: dict[str, list[_Run]]) -> str:
    peer = [one.per_cpu for one in runs.get(NODE, [])]
    rows = [
        [
            *("subject", "uploads per CPU s", "x `@tus/server`", "uploads/s"),
            "Redis, of the server's CPU",
        ]
    ]
    for name, own in runs.items():
        per_cpu = [one.per_cpu for one in own]
        beside = tables.ratio(per_cpu, peer)
        rate = tables.spread([one.rate for one in own])
        redis = tables.median([one.redis_share for one in own], ".0%")
        rows.append([name, tables.spread(per_cpu), beside, rate, redis])
    notes = [f"{_UPLOADS:,} uploads of 4 KiB, {_AT_A_TIME} at a time; median (least-greatest)."]
    notes += absences()
    return tables.markdown("Small uploads", notes, rows)
