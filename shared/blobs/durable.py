"""The few system calls that decide whether bytes survive a crash.

Blocking; call them from a disk thread.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["start_writeback", "sync_data", "sync_directory", "write_all"]

_IOV_MAX: Final = 1024
"""Buffers that one ``writev`` takes, on Linux and macOS."""

_SYNC_FILE_RANGE_WRITE: Final = 2
_libc: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


def write_all(fd: int, pieces: Sequence[bytes]) -> int:
    """Write all pieces at the file's position; return the number of bytes.

    Raises:
        OSError: The disk refused (ENOSPC, EIO, …). What was written before stays in the
            file, so ask the file for its size.

    """
    written = 0
    queue = list(pieces)
    while queue:
        batch = queue[:_IOV_MAX]
        count = os.writev(fd, batch)
        written += count
        done = 0
        for piece in batch:
            if count < len(piece):
                break
            count -= len(piece)
            done += 1
        del queue[:done]
        if count:  # a short write: only a signal or a full disk makes one
            queue[0] = queue[0][count:]
    return written


def start_writeback(fd: int, start: int, length: int) -> None:
    """Ask the kernel to begin writing a range of dirty pages; do not wait for it.

    The ``sync_data`` that comes later then finds little left to do: this is what makes
    synced uploads run at nearly the speed of unsynced ones. Where the call does not exist
    (macOS), or the file system does not know it, nothing happens; it is only a hint.
    """
    if _libc is not None:
        _libc.sync_file_range(
            fd, ctypes.c_int64(start), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE
        )


def sync_data(fd: int) -> None:
    """Return when the file's bytes and its size are on stable storage.

    Raises:
        OSError: They may be lost; do not trust a later call that succeeds, because the
            kernel forgets a failed page.

    """
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync there only reaches the drive's cache
    else:
        os.fdatasync(fd)


def sync_directory(path: Path) -> None:
    """Return when the names in a directory are on stable storage."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
