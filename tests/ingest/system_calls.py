"""Makes system calls of a running process fail, wait, or be its last ones, by strace."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import wait_until

__all__ = ["injecting"]


@contextmanager
def injecting(pid: int, call: str, path: Path, effect: str) -> Iterator[None]:
    """Have the first system call of a kind on a file fail, or be the last one.

    Args:
        pid: Of the process.
        call: How the system call's name begins.
        path: Of the file.
        effect: As strace names it: ``signal=SIGKILL`` comes before the call is made.

    """
    tracer = subprocess.Popen(
        [
            *("strace", "-f", "-qq", "-o", "/dev/null", "-p", str(pid), "-P", str(path)),
            *("-e", f"trace=/^{call}", "-e", f"inject=/^{call}:{effect}:when=1"),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: is_traced(pid), "the process is traced")
        yield
    finally:
        tracer.kill()  # strace is deaf to SIGTERM while its process ends
        tracer.wait()


def is_traced(pid: int) -> bool:
    """Tell whether all threads of a process are traced."""
    statuses = [task / "status" for task in Path(f"/proc/{pid}/task").iterdir()]
    return all("TracerPid:\t0\n" not in status.read_text() for status in statuses)
