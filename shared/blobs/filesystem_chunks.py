"""Chunks that come apart from the others, on a file system.

They lie in a folder of their upload, named ``<index>-<SHA-256>``; what is still being received
is named ``new-<random>``. A lock on the folder decides which of two chunks for one place stays.
All functions block.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shared.blobs.durable import sync_data, sync_directory, write_all
from shared.blobs.store import Chunk, UploadNotFound

if TYPE_CHECKING:
    from shared.blobs.filesystem import FilesystemStore

__all__ = ["FRESH", "FilesystemChunk", "chunk_path", "list_chunks", "remove_chunks"]

FRESH: Final = "new-"
_NAME: Final = re.compile(r"([0-9]{6})-([0-9a-f]{64})")


def chunk_path(folder: Path, index: int, digest: str) -> Path:
    """Return where a committed chunk lies."""
    return folder / _chunk_name(index, digest)


def _chunk_name(index: int, digest: str) -> str:
    return f"{index:06d}-{digest}"


def _make_folder(folder: Path) -> None:
    # Not pathlib's: that looks again at what is there, and fails if it has gone meanwhile.
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)


def list_chunks(folder: Path | int) -> list[Chunk]:
    """Return the committed chunks in a folder by index; none if there is no folder.

    A descriptor lists that very folder, whatever has its name by now.
    """
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if name := _NAME.fullmatch(entry.name):
                look = entry.stat()
                found.append(
                    Chunk(
                        index=int(name[1]),
                        size=look.st_size,
                        digest=name[2],
                        received_at=look.st_mtime,
                    )
                )
    return sorted(found)


def remove_chunks(folder: Path) -> None:
    """Remove a folder of chunks, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


class FilesystemChunk:
    """Implements ``ChunkWriter``; see there for the promises."""

    def __init__(self, store: FilesystemStore, upload_id: str) -> None:
        self._store: Final = store
        self._folder: Final = store.path(upload_id, ".chunks")
        self._path: Final = self._folder / f"{FRESH}{secrets.token_hex(8)}"
        self._fd = self._open()
        self.size = 0

    def _open(self) -> int:
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        while True:
            _make_folder(self._folder)
            with contextlib.suppress(FileNotFoundError):  # another one left it empty
                return os.open(self._path, flags, 0o600)

    async def write(self, pieces: Sequence[bytes]) -> None:
        self.size += await self._store.run(write_all, self._fd, pieces)

    async def commit(self, upload_id: str, index: int, digest: str) -> Chunk:
        return await self._store.run(self._commit, upload_id, index, digest)

    def _commit(self, upload_id: str, index: int, digest: str) -> Chunk:
        try:
            if self._store.fsync != "never":
                sync_data(self._fd)
            while True:
                try:
                    return self._place(upload_id, index, digest)
                except FileNotFoundError:
                    self._check_wanted(upload_id)  # else the folder went when it was empty
        finally:
            self.release()

    def _place(self, upload_id: str, index: int, digest: str) -> Chunk:
        """Try once to put the chunk where it belongs; return what lies there then.

        Nothing goes by the folder's name while it is locked: whoever leaves it empty removes
        it, and another request makes a new one, with a lock of its own.

        Raises:
            FileNotFoundError: The folder, the staged bytes or the upload went meanwhile.

        """
        target = self._store.path(upload_id, ".chunks")
        if self._store.path(upload_id, ".part").exists():
            _make_folder(target)
        folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            before = list_chunks(folder)
            there = next((one for one in before if one.index == index), None)
            if there is None:
                look = os.fstat(self._fd)
                os.rename(self._path, _chunk_name(index, digest), dst_dir_fd=folder)
                there = Chunk(
                    index=index,
                    size=look.st_size,
                    digest=digest,
                    received_at=look.st_mtime,
                )
                if self._store.fsync != "never":
                    os.fsync(folder)
                    if not before:
                        sync_directory(target.parent)
            # Should the upload have ended since it was looked for, this does not find it.
            os.utime(self._store.path(upload_id, ".part"))
        finally:
            os.close(folder)
        return there

    def _check_wanted(self, upload_id: str) -> None:
        """Refuse a chunk of an upload that is complete or gone, and leave nothing there."""
        if not self._store.path(upload_id, ".part").exists():
            remove_chunks(self._store.path(upload_id, ".chunks"))
            raise UploadNotFound(upload_id)
        if not self._path.exists():
            raise FileNotFoundError(errno.ENOENT, "the staged bytes were removed")

    def hand_over(self, target: Path) -> int:
        """Move the staged bytes over a file; return their descriptor, which locks them."""
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._path.rename(target)
        fd, self._fd = self._fd, -1
        with contextlib.suppress(OSError):  # others may be in it
            self._folder.rmdir()
        return fd

    async def discard(self) -> None:
        await self._store.run(self.release)

    def release(self) -> None:
        """Close and forget what was not committed, and its folder if that is empty."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            self._path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self._folder.rmdir()

    @property
    def descriptor(self) -> int:
        """The open file of an uncommitted chunk."""
        return self._fd
