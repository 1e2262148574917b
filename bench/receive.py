"""Receiving 1 GiB in one PATCH: bytes a second against a bare loop, and memory meanwhile.

Every subject writes a fresh file to the disk of the checkout and has synced it when it answers,
except the peer, which never syncs. The client sends from memory by ``sendfile``, so it costs
next to nothing and sits on the other core. What an earlier run left dirty is written back
before the next one starts.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from bench import tables
from bench.machine import cpu_seconds, forget_peak, peak_bytes, resident_bytes, settle
from bench.processes import Server, free_port, scratch, started
from bench.tus_servers import TusServer, ingest, peers, why_absent
from bench.wire import Connection

__all__ = ["report"]

_SIZE: Final = 1 << 30
_MIB: Final = 1 << 20


class _Run(NamedTuple):
    mb_per_s: float
    cpu_s: float
    idle_mib: float
    growth_mib: float


def report(repeat: int) -> str:
    """Measure all subjects in turn, ``repeat`` times; return the Markdown section."""
    with _payload() as payload:
        bound = TusServer("bound: recv, write, one fdatasync", _bound, "")
        unhashed = ingest({"ENABLE_DEDUPLICATION": "false"})
        subjects = [bound, ingest(), unhashed, *peers()]
        runs: dict[str, list[_Run]] = {one.name: [] for one in subjects}
        _measure(bound, payload)  # memory that a virtual machine uses anew is slow once
        for _ in range(repeat):
            for subject in subjects:
                runs[subject.name].append(_measure(subject, payload))
    return _render(runs)


def _measure(subject: TusServer, payload: int) -> _Run:
    with scratch() as data:
        settle()
        with subject.start(data) as server:
            client = Connection(server.port)
            path = client.create(subject.collection, _SIZE) if subject.collection else "/"
            idle = resident_bytes(server.pid)
            forget_peak(server.pid)
            cpu = cpu_seconds(server.pid)
            begun = time.perf_counter()
            client.append_file(path, payload, _SIZE)
            took = time.perf_counter() - begun
            cpu = cpu_seconds(server.pid) - cpu
            growth = peak_bytes(server.pid) - idle
            client.close()
    return _Run(_SIZE / 1e6 / took, cpu, idle / _MIB, growth / _MIB)


@contextmanager
def _bound(data: Path) -> Iterator[Server]:
    port = free_port()
    argv = [sys.executable, "-m", "bench.bounds.receive", str(port), str(data)]
    with started(argv, port) as server:
        yield server


@contextmanager
def _payload() -> Iterator[int]:
    """Yield a file in memory with 1 GiB that no file system can take for zeros."""
    block = os.urandom(_MIB)
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryFile(dir=memory) as file:
        for _ in range(_SIZE // _MIB):
            file.write(block)
        file.flush()
        yield file.fileno()


def _render(runs: dict[str, list[_Run]]) -> str:
    bound = [one.mb_per_s for one in next(iter(runs.values()))]
    rows = [["subject", "MB/s", "x bound", "CPU s", "idle MiB", "growth MiB"]]
    for name, own in runs.items():
        speed = [one.mb_per_s for one in own]
        cpu = tables.median([one.cpu_s for one in own], ".2f")
        idle = tables.median([one.idle_mib for one in own], ".0f")
        growth = tables.spread([one.growth_mib for one in own], ".0f")
        ratio = tables.ratio(speed, bound)
        rows.append([name, tables.spread(speed), ratio, cpu, idle, growth])
    notes = [
        "MB = 10⁶ bytes; median (least-greatest). Growth: peak resident memory during the "
        "PATCH less what was resident before it. CPU: of the server, all threads. Targets: "
        "x bound >= 0.80, growth < 64 MiB."
    ]
    if why_absent():
        notes.append(why_absent())
    return tables.markdown("Receiving 1 GiB in one PATCH", notes, rows)
