"""What hashing costs the stream that is being received: with and without it, in turn.

With ``ENABLE_DEDUPLICATION=true`` the SHA-256 of an upload is made beside its receipt; with
``false`` nobody asks for it. The rate is that of the PATCH, up to its answer.
"""

from __future__ import annotations

from typing import Final

from bench import tables
from bench.payload import MIB, payload
from bench.receive import Run, measure
from bench.tus_servers import ingest

__all__ = ["report"]

_SIZE: Final = 1 << 30


def report(repeat: int) -> str:
    """Measure both in turn, ``repeat`` times; return the Markdown section."""
    subjects = [
        ingest({"ENABLE_DEDUPLICATION": "false"}),
        ingest({"ENABLE_DEDUPLICATION": "true"}),
    ]
    runs: dict[str, list[Run]] = {one.name: [] for one in subjects}
    with payload(_SIZE) as content:
        measure(subjects[0], content)  # memory that a virtual machine uses anew is slow once
        for _ in range(repeat):
            for subject in subjects:
                runs[subject.name].append(measure(subject, content))
    plain = [one.mb_per_s for one in runs[subjects[0].name]]
    rows = [["subject", "MB/s", "x unhashed", "CPU s"]]
    for name, own in runs.items():
        speed = [one.mb_per_s for one in own]
        cpu = tables.median([one.cpu_s for one in own], ".2f")
        rows.append([name, tables.spread(speed), tables.ratio(speed, plain), cpu])
    notes = [f"{content.size // MIB:,} MiB in one PATCH. Target: x unhashed >= 0.90."]
    return tables.markdown("Hashing beside receipt", notes, rows)
