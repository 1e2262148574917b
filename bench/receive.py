"""Receiving 1 GiB: in one PATCH, and in 16 at a time, against bare loops that only store.

Every subject writes a fresh file to the disk of the checkout and has synced it when it answers,
except the peers, which never sync. The client sends from memory by ``sendfile``, so it costs
next to nothing and sits on the other core. What an earlier run left dirty is written back
before the next one starts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from bench import streams, tables
from bench.machine import cpu_seconds, forget_peak, peak_bytes, resident_bytes, settle
from bench.payload import MIB, Payload, payload
from bench.processes import scratch
from bench.tus_servers import TusServer, absences, bare_loop, ingest, peers
from bench.wire import Connection

__all__ = ["Run", "measure", "report", "table"]

_SIZE: Final = 1 << 30


class Run(NamedTuple):
    """What one run showed."""

    mb_per_s: float
    cpu_s: float
    idle_mib: float
    growth_mib: float


def report(repeat: int) -> str:
    """Measure all subjects in turn, ``repeat`` times; return the Markdown sections."""
    with payload(_SIZE) as content:
        one = _one_stream(content, repeat)
        return f"{one}\n{streams.report(content, repeat)}"


def _one_stream(content: Payload, repeat: int) -> str:
    subjects = [bare_loop(), ingest(), *peers()]
    runs: dict[str, list[Run]] = {one.name: [] for one in subjects}
    measure(subjects[0], content)  # memory that a virtual machine uses anew is slow once
    for _ in range(repeat):
        for subject in subjects:
            runs[subject.name].append(measure(subject, content))
    notes = [
        "Growth: peak resident memory during the PATCH less what was resident before it. CPU: "
        "of the server, all threads. Targets: x bound >= 0.90, ingest >= 1.3 x `@tus/server` "
        "and >= 1.0 x tusd.",
        *absences(),
    ]
    return table(f"Receiving {content.size // MIB:,} MiB in one PATCH", notes, runs)


def measure(subject: TusServer, content: Payload) -> Run:
    """Send the whole payload to a server with an empty store."""
    with scratch() as data:
        settle()
        with subject.start(data) as server:
            client = Connection(server.port)
            path = (
                client.create(subject.collection, content.size) if subject.collection else "/"
            )
            idle = resident_bytes(server.pid)
            forget_peak(server.pid)
            cpu = cpu_seconds(server.pid)
            begun = time.perf_counter()
            client.append_file(path, content.fd, content.size)
            took = time.perf_counter() - begun
            cpu = cpu_seconds(server.pid) - cpu
            growth = peak_bytes(server.pid) - idle
            client.close()
    return Run(content.size / 1e6 / took, cpu, idle / MIB, growth / MIB)


def table(title: str, notes: Sequence[str], runs: dict[str, list[Run]]) -> str:
    """Return the section, with all rates beside that of the first subject and of each peer."""
    beside = [name for name in runs if not name.startswith("ingest")]
    rows = [["subject", "MB/s", *(f"x {tables.short(name)}" for name in beside)]]
    rows[0] += ["CPU s", "idle MiB", "growth MiB"]
    for name, own in runs.items():
        speed = [one.mb_per_s for one in own]
        row = [name, tables.spread(speed)]
        row += [tables.ratio(speed, [one.mb_per_s for one in runs[other]]) for other in beside]
        row += [
            tables.median([one.cpu_s for one in own], ".2f"),
            tables.median([one.idle_mib for one in own], ".0f"),
            tables.spread([one.growth_mib for one in own], ".0f"),
        ]
        rows.append(row)
    return tables.markdown(title, ["MB = 10⁶ bytes; median (least-greatest).", *notes], rows)
