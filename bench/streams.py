"""Receiving 16 uploads at a time: their rates together, and the memory that each one takes.

The bound is 16 bare loops, each a process of its own, on the core that the one server has.
Each stream sends its own part of the payload. What a server has resident once all uploads are
open is idle; what it grows by at most until all are answered is shared out among the streams.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from bench import tables
from bench.machine import cpu_seconds, forget_peak, peak_bytes, resident_bytes, settle
from bench.payload import MIB, Payload
from bench.processes import Server, scratch
from bench.tus_servers import TusServer, absences, bare_loop, ingest, peers
from bench.wire import Connection

__all__ = ["report"]

_STREAMS: Final = 16


class _Run(NamedTuple):
    mb_per_s: float
    cpu_s: float
    growth_mib: float
    """For each stream."""


def report(content: Payload, repeat: int) -> str:
    """Measure all subjects in turn, ``repeat`` times; return the Markdown section."""
    subjects = [bare_loop(), ingest(), *peers()]
    runs: dict[str, list[_Run]] = {one.name: [] for one in subjects}
    for _ in range(repeat):
        for subject in subjects:
            runs[subject.name].append(_measure(subject, content))
    return _render(runs, content.size // _STREAMS)


def _measure(subject: TusServer, content: Payload) -> _Run:
    with scratch() as data:
        settle()
        with _started(subject, data) as servers:
            share = content.size // _STREAMS
            clients = [Connection(servers[one % len(servers)].port) for one in range(_STREAMS)]
            paths = ["/" for _ in clients]
            if subject.collection:
                paths = [one.create(subject.collection, share) for one in clients]
            idle = sum(resident_bytes(one.pid) for one in servers)
            for one in servers:
                forget_peak(one.pid)
            cpu = sum(cpu_seconds(one.pid) for one in servers)
            begun = time.perf_counter()
            _send_all(clients, paths, content.fd, share)
            took = time.perf_counter() - begun
            cpu = sum(cpu_seconds(one.pid) for one in servers) - cpu
            growth = sum(peak_bytes(one.pid) for one in servers) - idle
            for client in clients:
                client.close()
    return _Run(content.size / 1e6 / took, cpu, growth / MIB / _STREAMS)


@contextlib.contextmanager
def _started(subject: TusServer, data: Path) -> Iterator[list[Server]]:
    """Yield one server for all; of the bound, which takes one connection, one for each."""
    count = 1 if subject.collection else _STREAMS
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(subject.start(data)) for _ in range(count)]


def _send_all(clients: Sequence[Connection], paths: Sequence[str], fd: int, share: int) -> None:
    """Send each client's part of the file, all at the same time."""
    faults: list[BaseException] = []

    def send(number: int) -> None:
        try:
            clients[number].append_file(paths[number], fd, share, start=number * share)
        except (Exception, SystemExit) as exc:
            faults.append(exc)

    threads = [threading.Thread(target=send, args=(one,)) for one in range(_STREAMS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise SystemExit(f"an upload failed: {faults[0]}")


def _render(runs: dict[str, list[_Run]], share: int) -> str:
    beside = [name for name in runs if not name.startswith("ingest")]
    rows = [
        [
            "subject",
            "MB/s",
            *(f"x {tables.short(name)}" for name in beside),
            "CPU s",
            "MiB a stream",
        ]
    ]
    for name, own in runs.items():
        speed = [one.mb_per_s for one in own]
        row = [name, tables.spread(speed)]
        row += [tables.ratio(speed, [one.mb_per_s for one in runs[other]]) for other in beside]
        row.append(tables.median([one.cpu_s for one in own], ".2f"))
        row.append(tables.spread([one.growth_mib for one in own], ".1f"))
        rows.append(row)
    notes = [
        f"{_STREAMS} uploads of {share // MIB} MiB, one PATCH each, all at the same time; the "
        f"bound is {_STREAMS} bare loops. Targets: x bound >= 0.90, MiB a stream <= 8.",
        *absences(),
    ]
    return tables.markdown(f"Receiving {_STREAMS} streams", notes, rows)
