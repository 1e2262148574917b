"""The receiving end of a run: a process that opens sockets and counts what arrives on them."""

from __future__ import annotations

import contextlib
import functools
import mmap
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from bench.processes import ROOT

__all__ = ["Arrival", "Load", "compiled", "opened", "words"]

_SOURCES: Final = ROOT / "bench"
_WORD: Final = 8
_HEAD: Final = 4
"""Words of the counts file before those of the sockets; see ``sockets.c``."""


@functools.cache
def compiled(source: str, module: str, directory: Path) -> Sequence[str]:
    """Return the command of a program: built from C into the directory, else from Python."""
    compiler = shutil.which("cc")
    if compiler is None:
        return (sys.executable, "-m", module)
    program = directory / Path(source).stem
    subprocess.run([compiler, "-O2", "-o", program, _SOURCES / source], check=True)
    return (str(program),)


class Arrival(NamedTuple):
    """A frame that told a position."""

    socket: int
    """Its place among the openings."""
    bytes_sent: int
    at_ns: int
    """When it was read (``time.monotonic_ns``)."""


class Load:
    """Counts of the sockets, kept by the process that reads them."""

    def __init__(self, pid: int, counts: memoryview, log: memoryview) -> None:
        self.pid = pid
        self._counts = counts
        self._log = log

    def closed(self) -> int:
        """Return how many sockets the server has closed."""
        return int(self._counts[0])

    def frames(self) -> int:
        """Return the text frames that have arrived on all sockets."""
        return int(self._counts[1])

    def open_for(self) -> float:
        """Return the seconds since it began to open sockets."""
        return (time.monotonic_ns() - int(self._counts[2])) / 1e9

    def each(self) -> list[int]:
        """Return the text frames that have arrived on each socket."""
        return self._counts[_HEAD:].tolist()

    def arrivals(self) -> list[Arrival]:
        """Return the positions that have arrived, if a log was wanted."""
        flat = self._log[1 : 1 + 3 * self._log[0]].tolist()
        return [Arrival(*flat[at : at + 3]) for at in range(0, len(flat), 3)]


@contextlib.contextmanager
def opened(
    port: int,
    openings: Sequence[str],
    directory: Path,
    *,
    speech: str = "plain",
    log_room: int = 0,
) -> Iterator[Load]:
    """Open the sockets; enter the block once all are open, close them at its end.

    Args:
        port: Of the server.
        openings: For each socket its target, and behind a tab a header line if it needs one.
        directory: For the program and the files that it shares.
        speech: What is spoken besides WebSocket; see ``sockets.c``.
        log_room: How many arrivals to keep.

    Raises:
        SystemExit: The server refused one.

    """
    program = compiled("sockets.c", "bench.sockets", directory)
    said, counts, log = (directory / name for name in ("openings", "counts", "log"))
    said.write_text("".join(f"{one}\n" for one in openings))
    counts.write_bytes(bytes(_WORD * (_HEAD + len(openings))))
    log.write_bytes(bytes(_WORD * (1 + 3 * log_room)))
    argv = [*program, str(port), speech, str(said), str(counts), *([str(log)] * bool(log_room))]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        if process.stdout is None or process.stdout.readline().strip() != b"ready":
            raise SystemExit("the sockets could not be opened")
        yield Load(process.pid, words(counts), words(log))
    finally:
        process.kill()
        process.communicate()


def words(file: Path) -> memoryview:
    """Return a file that another process writes to as 64-bit words."""
    with file.open("rb") as opened_file:
        pages = mmap.mmap(opened_file.fileno(), 0, access=mmap.ACCESS_READ)
    return memoryview(pages).cast("Q")
