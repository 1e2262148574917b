"""The receiving end of a fan-out run: a process that opens the sockets and counts frames."""

from __future__ import annotations

import contextlib
import functools
import mmap
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from bench.processes import ROOT

__all__ = ["Load", "compiled", "opened"]

_SOURCES: Final = ROOT / "bench"


@functools.cache
def compiled(source: str, module: str, directory: Path) -> Sequence[str]:
    """Return the command of a program: built from C into the directory, else from Python."""
    compiler = shutil.which("cc")
    if compiler is None:
        return (sys.executable, "-m", module)
    program = directory / Path(source).stem
    subprocess.run([compiler, "-O2", "-o", program, _SOURCES / source], check=True)
    return (str(program),)


class Load:
    """Counts of the sockets, kept by the process that reads them."""

    def __init__(self, pid: int, counts: memoryview) -> None:
        self.pid = pid
        self._counts = counts

    def closed(self) -> int:
        """Return how many sockets the server has closed."""
        return int(self._counts[0])

    def frames(self) -> int:
        """Return the text frames that have arrived on all sockets."""
        return int(self._counts[1])

    def each(self) -> list[int]:
        """Return the text frames that have arrived on each socket."""
        return self._counts[2:].tolist()


@contextlib.contextmanager
def opened(port: int, path: str, sockets: int, directory: Path) -> Iterator[Load]:
    """Open the sockets; enter the block once all are open, close them at its end.

    Raises:
        SystemExit: The server refused one.

    """
    file = directory / "counts"
    file.write_bytes(bytes(8 * (2 + sockets)))
    program = compiled("sockets.c", "bench.sockets", directory)
    argv = [*program, str(port), path, str(sockets), str(file)]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        if process.stdout is None or process.stdout.readline().strip() != b"ready":
            raise SystemExit("the sockets could not be opened")
        with file.open("rb") as opened_file:
            pages = mmap.mmap(opened_file.fileno(), 0, access=mmap.ACCESS_READ)
        yield Load(process.pid, memoryview(pages).cast("Q"))
    finally:
        process.kill()
        process.communicate()
