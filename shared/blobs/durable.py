"""The few system calls that decide whether bytes survive a crash.

Blocking; call them from a disk thread.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

__all__ = ["start_writeback", "sync_data", "sync_directory", "write_all"]

_WRITE_BYTES: Final = 512 * 1024
"""Bytes to one system call. In a virtual machine a larger one is three times slower: the kernel
then takes 2 MiB folios for it, from free memory that the host has taken back."""

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
    return sum(_write_group(fd, group) for group in _groups(pieces))


def _groups(pieces: Sequence[bytes]) -> Iterator[list[memoryview]]:
    """Yield the bytes in groups that one system call takes."""
    group: list[memoryview] = []
    room = _WRITE_BYTES
    for piece in pieces:
        view = memoryview(piece)
        while view:
            part, view = view[:room], view[room:]
            group.append(part)
            room -= len(part)
            if not room or len(group) == _IOV_MAX:
                yield group
                group, room = [], _WRITE_BYTES
    if group:
        yield group


def _write_group(fd: int, group: list[memoryview]) -> int:
    total = sum(map(len, group))
    written = os.writev(fd, group)
    while written < total:  # only a signal or a full disk makes a short write
        rest = memoryview(b"".join(group))[written:]
        written += os.write(fd, rest)
    return total


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
