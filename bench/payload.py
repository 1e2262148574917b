"""What is sent: random bytes in memory, so that a client reads them at next to no cost."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

__all__ = ["MIB", "Payload", "lasting", "little", "payload", "scaled", "send_little"]

MIB = 1 << 20
_LITTLE = 16
_divisor = [1]


def send_little() -> None:
    """Let all payloads have a sixteenth of their size: to see whether a benchmark works."""
    _divisor[0] = _LITTLE


def little() -> bool:
    """Whether it is only to be seen that benchmarks work."""
    return _divisor[0] > 1


def lasting(seconds: float) -> float:
    """Return how long to measure: an eighth of it where little is to be done."""
    return seconds / 8 if little() else seconds


def scaled(amount: float) -> int:
    """Return an amount, or a sixteenth of it where little is to be done; at least 1."""
    return max(int(amount) // _divisor[0], 1)


class Payload(NamedTuple):
    """A file that no file system can take for zeros."""

    fd: int
    path: Path
    size: int


@contextmanager
def payload(size: int) -> Iterator[Payload]:
    """Yield a file of so many bytes, a whole number of MiB; it goes with the block."""
    block, size = os.urandom(MIB), size // _divisor[0]
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.NamedTemporaryFile(dir=memory) as file:
        for _ in range(size // MIB):
            file.write(block)
        file.flush()
        yield Payload(file.fileno(), Path(file.name), size)
