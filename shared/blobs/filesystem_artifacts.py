"""Artifacts on a file system: files in the folder ``<id>.artifacts`` beside the bytes.

What is not whole yet is named ``.new-<random>``, and locked by whoever writes it, so that it is
no leftover however long the next bytes take. All functions of this module block.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shared.blobs.artifacts import Artifact, is_artifact_name
from shared.blobs.durable import sync_data, sync_directory, write_all
from shared.blobs.filesystem_chunks import remove_chunks
from shared.blobs.regular_files import open_folder, open_regular
from shared.blobs.store import UploadNotFound
from shared.sidecar import is_upload_id

if TYPE_CHECKING:
    from shared.blobs.filesystem import FilesystemStore

__all__ = ["FOLDER", "UNFINISHED", "FilesystemArtifacts"]

FOLDER: Final = ".artifacts"
UNFINISHED: Final = ".new-"
_PIECE: Final = 1024 * 1024


class FilesystemArtifacts:
    """Implements ``Artifacts``; see there for the promises."""

    def __init__(self, store: FilesystemStore) -> None:
        self._store: Final = store

    async def put(self, upload_id: str, name: str, content: AsyncIterable[bytes]) -> Artifact:
        if not is_artifact_name(name):
            raise ValueError(f"no name for an artifact: {name!r}")
        run = self._store.run
        await run(self._check_wanted, upload_id)
        fresh = self._folder(upload_id) / f"{UNFINISHED}{secrets.token_hex(8)}"
        fd = await run(self._begin, fresh, undo=os.close)
        try:
            async for piece in content:
                await run(write_all, fd, [piece])
            return await run(self._place, upload_id, fd, fresh, name)
        finally:
            os.close(fd)
            fresh.unlink(missing_ok=True)

    def _folder(self, upload_id: str) -> Path:
        return self._store.path(upload_id, FOLDER)

    def _check_wanted(self, upload_id: str) -> None:
        if not is_upload_id(upload_id) or self._store.load_now(upload_id).status != "completed":
            raise UploadNotFound(upload_id)

    def _begin(self, fresh: Path) -> int:
        while True:
            with contextlib.suppress(FileExistsError):
                os.mkdir(fresh.parent, 0o700)
            with (
                contextlib.suppress(FileNotFoundError),  # the upload has just gone
                _opened(fresh.parent) as folder,
            ):
                flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
                fd = os.open(fresh.name, flags, 0o600, dir_fd=folder)
                fcntl.flock(fd, fcntl.LOCK_EX)
                return fd

    def _place(self, upload_id: str, fd: int, fresh: Path, name: str) -> Artifact:
        """Put what is whole into its place, then look whether the upload is still there.

        An end of the upload records itself before it removes: so either it finds this one,
        or this finds its record.

        Raises:
            UploadNotFound: The upload has gone, and so has what was made of it.
            OSError: What was written has gone, though the upload is there: by a sweep that
                does not see locks of other machines. The other artifacts stay.

        """
        placed = False
        if self._store.fsync != "never":
            sync_data(fd)
        with contextlib.suppress(FileNotFoundError):
            fresh.rename(fresh.with_name(name))
            if self._store.fsync != "never":
                sync_directory(fresh.parent)
                sync_directory(fresh.parent.parent)
            placed = True
        try:
            self._check_wanted(upload_id)
        except UploadNotFound:
            remove_chunks(fresh.parent)
            raise
        if not placed:
            raise FileNotFoundError(errno.ENOENT, "the staged bytes were removed")
        return _artifact(name, os.fstat(fd))

    async def all(self, upload_id: str) -> list[Artifact]:
        return await self._store.run(self._all, upload_id) if is_upload_id(upload_id) else []

    def _all(self, upload_id: str) -> list[Artifact]:
        found = []
        with (
            contextlib.suppress(FileNotFoundError),
            _opened(self._folder(upload_id)) as folder,
            os.scandir(folder) as entries,
        ):
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    look = entry.stat(follow_symlinks=False)
                    if is_artifact_name(entry.name) and stat.S_ISREG(look.st_mode):
                        found.append(_artifact(entry.name, look))
        return sorted(found)

    async def open(self, upload_id: str, name: str) -> tuple[Artifact, int | None]:
        fd = await self._store.run(self._open, upload_id, name, undo=os.close)
        return _artifact(name, os.fstat(fd)), fd

    def _open(self, upload_id: str, name: str) -> int:
        if is_upload_id(upload_id) and is_artifact_name(name):
            with (
                contextlib.suppress(FileNotFoundError),
                _opened(self._folder(upload_id)) as folder,
            ):
                return open_regular(name, folder=folder)
        raise UploadNotFound(upload_id)

    async def read_range(
        self, upload_id: str, artifact: Artifact, start: int, length: int
    ) -> AsyncIterator[bytes]:
        now, fd = await self.open(upload_id, artifact.name)
        if fd is None:
            raise AssertionError("a file system has files")
        try:
            if now.tag != artifact.tag:
                raise OSError(f"{artifact.name} has been replaced")
            while length > 0:
                piece = await self._store.run(os.pread, fd, min(length, _PIECE), start)
                if not piece:
                    return
                yield piece
                start, length = start + len(piece), length - len(piece)
        finally:
            os.close(fd)

    async def remove(self, upload_id: str) -> None:
        if is_upload_id(upload_id):
            await self._store.run(remove_chunks, self._folder(upload_id))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    folder = open_folder(path)
    try:
        yield folder
    finally:
        os.close(folder)


def _artifact(name: str, look: os.stat_result) -> Artifact:
    return Artifact(
        name=name,
        size=look.st_size,
        modified_at=look.st_mtime,
        tag=f"{look.st_ino:x}-{look.st_mtime_ns:x}-{look.st_size:x}",
    )
