"""Chunks that come apart from the others, on a file system.

They lie in a folder of their upload, named ``<index>-<SHA-256>``; what is still being received
is named ``new-<random>``. A lock on the folder decides which of two chunks for one place stays.
All functions block.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shared.blobs.durable import sync_data, sync_directory, write_all
from shared.blobs.store import Chunk

if TYPE_CHECKING:
    from shared.blobs.filesystem import FilesystemStore

__all__ = ["FRESH", "FilesystemChunk", "chunk_path", "list_chunks", "remove_chunks"]

FRESH: Final = "new-"
_NAME: Final = re.compile(r"([0-9]{6})-([0-9a-f]{64})")


def chunk_path(folder: Path, index: int, digest: str) -> Path:
    """Return where a committed chunk lies."""
    return folder / f"{index:06d}-{digest}"


def list_chunks(folder: Path) -> list[Chunk]:
    """Return the committed chunks in a folder by index; none if there is no folder."""
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
        if not self._folder.exists():
            self._folder.mkdir(mode=0o700, exist_ok=True)
            if store.fsync != "never":
                sync_directory(self._folder.parent)
        self._path: Final = self._folder / f"{FRESH}{secrets.token_hex(8)}"
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)
        self.size = 0

    async def write(self, pieces: Sequence[bytes]) -> None:
        self.size += await self._store.run(write_all, self._fd, pieces)

    async def commit(self, index: int, digest: str) -> Chunk:
        return await self._store.run(self._commit, index, digest)

    def _commit(self, index: int, digest: str) -> Chunk:
        if self._store.fsync != "never":
            sync_data(self._fd)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            there = [one for one in list_chunks(self._folder) if one.index == index]
            if not there:
                self._path.rename(chunk_path(self._folder, index, digest))
                if self._store.fsync != "never":
                    os.fsync(folder)
                there = [one for one in list_chunks(self._folder) if one.index == index]
        finally:
            os.close(folder)
            self.release()
        return there[0]

    async def discard(self) -> None:
        await self._store.run(self.release)

    def release(self) -> None:
        """Close and forget what was not committed."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            self._path.unlink(missing_ok=True)

    @property
    def descriptor(self) -> int:
        """The open file of an uncommitted chunk."""
        return self._fd
