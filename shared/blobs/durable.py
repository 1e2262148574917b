"""The few system calls that decide whether bytes survive a crash.

Blocking; call them from a disk thread.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

__all__ = ["append_file", "start_writeback", "sync_data", "sync_directory", "write_all"]

_WRITE_BYTES: Final = 512 * 1024
"""Bytes to one system call. In a virtual machine a larger one is three times slower: the kernel
then takes 2 MiB folios for it, from free memory that the host has taken back."""

_COPY_BYTES: Final = 8 * 1024 * 1024

_IOV_MAX: Final = 1024
"""Buffers that one ``writev`` takes, on Linux and macOS."""

_SYNC_FILE_RANGE_WRITE: Final = 2
_libc: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


def write_all(fd: int, pieces: Sequence[bytes | memoryview]) -> int:
    """Write all pieces at the file's position; return the number of bytes.

    Raises:
        OSError: The disk refused (ENOSPC, EIO, …). What was written before stays in the
            file, so ask the file for its size.

    """
    return sum(_write_group(fd, group) for group in _groups(pieces))


def _groups(pieces: Sequence[bytes | memoryview]) -> Iterator[list[memoryview]]:
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


def append_file(source: int, target: int) -> int:
    """Append all of one file to another, at its position; return the number of bytes.

    In the kernel where it can: file systems that share blocks copy nothing at all.

    Raises:
        OSError: The disk refused. What was copied before stays, so ask for the size.

    """
    start, total = os.lseek(target, 0, os.SEEK_CUR), 0
    while count := _copy(source, total, target, start + total):
        start_writeback(target, start + total, count)
        total += count
    return total


def _copy(source: int, position: int, target: int, at: int) -> int:
    """Copy up to a few megabytes; return how many, 0 at the end."""
    if sys.platform == "linux":
        try:
            count = os.copy_file_range(source, target, _COPY_BYTES, position)
        except OSError as exc:
            if exc.errno not in {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
                raise
        else:
            return count
    piece = os.pread(source, _WRITE_BYTES, position)
    os.lseek(target, at, os.SEEK_SET)
    return write_all(target, [piece]) if piece else 0


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
