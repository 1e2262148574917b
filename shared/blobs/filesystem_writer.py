"""The exclusive right to one upload on a file system: its bytes grow, its sidecar changes."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from shared.blobs.drawing import Source, piece_buffer
from shared.blobs.durable import (
    append_file,
    start_writeback,
    sync_data,
    sync_directory,
    write_all,
)
from shared.blobs.filesystem_chunks import FilesystemChunk, chunk_path, remove_chunks
from shared.blobs.filesystem_sharing import share_file
from shared.blobs.store import Chunk, ChunkWriter, Due, UploadNotFound
from shared.leases import Lease
from shared.sidecar import Sidecar

if TYPE_CHECKING:
    from shared.blobs.filesystem import FilesystemStore

__all__ = ["FilesystemWriter"]

T = TypeVar("T")


class FilesystemWriter:
    """Implements ``BlobWriter`` and ``Drawing``; see there for the promises."""

    def __init__(
        self, store: FilesystemStore, fd: int, record: Sidecar, lease: Lease | None
    ) -> None:
        self._store: Final = store
        self._fd = fd
        self._lease: Final = lease
        self.sidecar = record
        self.offset = os.lseek(fd, 0, os.SEEK_END)
        self.modified_at = os.fstat(fd).st_mtime
        self.visible = not store.path(record.upload_id, ".part").exists()
        is_shared = os.fstat(fd).st_nlink > 1  # so they are those of a complete file
        self._safe = self.offset if store.fsync == "always" or is_shared else 0
        """Bytes that are on stable storage; ``acquire`` has synced what was there before."""

    async def _run(self, job: Callable[..., T], *args: object) -> T:
        """Run a blocking call in a disk thread, while the lease holds and only if it held.

        Raises:
            LeaseLost: The right was lost before the call, or during it: then what it did must
                not be acknowledged.

        """
        done = await self._store.run(lambda: self._leased(job, args))
        self._check()
        return done

    def _leased(self, job: Callable[..., T], args: tuple[object, ...]) -> T:
        self._check()
        return job(*args)

    def _check(self) -> None:
        if self._lease is not None:
            self._lease.check()

    async def write(self, pieces: Sequence[bytes]) -> None:
        await self._run(self._write, pieces)

    def _write(self, pieces: Sequence[bytes]) -> None:
        start = self.offset
        self._write_on(pieces)
        self._wrote_since(start)

    def _write_on(self, pieces: Sequence[bytes | memoryview]) -> None:
        try:
            self.offset += write_all(self._fd, pieces)
        except OSError:
            self.offset = os.lseek(self._fd, 0, os.SEEK_CUR)
            raise

    def _wrote_since(self, start: int) -> None:
        self.modified_at = time.time()
        if self._store.fsync == "always":
            start_writeback(self._fd, start, self.offset - start)

    async def draw(self, source: Source, most: int) -> None:
        await self._run(self._draw, source, most)

    def _draw(self, source: Source, most: int) -> None:
        start, end = self.offset, self.offset + most
        buffer = piece_buffer()
        while self.offset < end and (count := source(buffer[: end - self.offset])):
            self._write_on([buffer[:count]])
        if self.offset > start:
            self._wrote_since(start)

    async def sync(self) -> None:
        if self._store.fsync == "always" and self._safe != self.offset:
            await self._run(self._sync)

    def _sync(self) -> None:
        try:
            sync_data(self._fd)
        except OSError:
            # The kernel may have dropped the pages that failed, so nothing after the last
            # good sync may ever be acknowledged. Should the disk refuse to cut it off, then
            # at least what comes next is written over it.
            self.offset = os.lseek(self._fd, self._safe, os.SEEK_SET)
            os.ftruncate(self._fd, self._safe)
            raise
        self._safe = self.offset

    async def record(self, sidecar: Sidecar) -> list[Due]:
        return await self._run(self._record, sidecar)

    def _record(self, sidecar: Sidecar) -> list[Due]:
        due = self._store.save(sidecar, mark=sidecar.next_seq != self.sidecar.next_seq)
        self.sidecar = sidecar
        return due

    async def finish(self, sidecar: Sidecar) -> list[Due]:
        return await self._run(self._finish, sidecar)

    def _finish(self, sidecar: Sidecar) -> list[Due]:
        synced = self._store.fsync == "always" and self._safe == self.offset
        if self._store.fsync != "never" and not synced:
            self._sync()
        part = self._store.path(sidecar.upload_id, ".part")
        with contextlib.suppress(FileNotFoundError):  # an earlier try came this far
            part.rename(self._store.path(sidecar.upload_id))
        self.visible = True
        due = self._record(sidecar)  # its sync of the directory covers the rename
        remove_chunks(self._store.path(sidecar.upload_id, ".chunks"))
        return due

    async def take(self, staged: ChunkWriter) -> None:
        if not isinstance(staged, FilesystemChunk):
            raise TypeError(staged)
        await self._run(self._take, staged)

    def _take(self, staged: FilesystemChunk) -> None:
        if not self.offset and not self.visible:
            with contextlib.suppress(FileNotFoundError):  # its upload has ended, and it stays
                self._become(staged)
                return
        self._append(staged.descriptor)
        staged.release()

    def _become(self, staged: FilesystemChunk) -> None:
        """Put a file in the place of an empty upload, rather than write its bytes twice.

        Whoever opened the old file meanwhile finds out once it is locked.
        """
        part = self._store.path(self.sidecar.upload_id, ".part")
        fd = staged.hand_over(part)
        os.close(self._fd)
        self._fd, self._safe = fd, 0
        self.offset = os.lseek(fd, 0, os.SEEK_END)
        self.modified_at = time.time()
        if self._store.fsync == "always":
            try:
                sync_directory(part.parent)  # else a power loss brings the old one back
            except OSError:
                self._empty()
                raise

    def _append(self, source: int) -> None:
        try:
            append_file(source, self._fd)
        finally:
            self.offset = os.lseek(self._fd, 0, os.SEEK_END)
            self.modified_at = time.time()

    async def join_chunks(self, chunks: Sequence[Chunk]) -> None:
        folder = self._store.path(self.sidecar.upload_id, ".chunks")
        paths = [chunk_path(folder, one.index, one.digest) for one in chunks]
        await self._run(self._join, paths)

    async def join_uploads(self, upload_ids: Sequence[str]) -> None:
        await self._run(self._join, [self._store.path(one) for one in upload_ids])

    def _join(self, paths: Sequence[Path]) -> None:
        self._empty()
        try:
            for path in paths:
                fd = self._open_source(path)
                try:
                    self._append(fd)
                finally:
                    os.close(fd)
        except OSError:
            self._empty()  # half a join is of no use, and a full disk needs the room
            raise
        if self._store.fsync != "never":
            self._sync()

    def _empty(self) -> None:
        os.ftruncate(self._fd, 0)
        self.offset = self._safe = os.lseek(self._fd, 0, os.SEEK_SET)

    def _open_source(self, path: Path) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise UploadNotFound(path.name) from None

    async def share(self, original_id: str) -> None:
        await self._run(self._share, original_id)

    def _share(self, original_id: str) -> None:
        """Hold the lock of the shared file from then on: it lies on the file, not on its name.

        So while one of those that share it is held, which is rare and short for complete
        files, the others are busy.
        """
        own = self._store.path(self.sidecar.upload_id, "" if self.visible else ".part")
        fd = share_file(self._store.path(original_id), own, self._fd)
        if fd is not None:
            os.close(self._fd)
            self._fd = fd
        self.offset = self._safe = os.fstat(self._fd).st_size

    async def bury(self, tombstone: Sidecar) -> list[Due]:
        return await self._run(self._bury, tombstone)

    def _bury(self, tombstone: Sidecar) -> list[Due]:
        try:
            due = self._record(tombstone)
        except OSError as exc:
            if exc.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            self._make_room()  # or nothing could be deleted from a full disk
            due = self._record(tombstone)
        self._store.unlink_bytes(tombstone.upload_id)
        return due

    def _make_room(self) -> None:
        """Free the bytes of an upload that is to end; hidden first, so nobody gets half."""
        if os.fstat(self._fd).st_nlink > 1:  # others have these bytes too
            return
        part = self._store.path(self.sidecar.upload_id, ".part")
        if self.visible:
            whole = self._store.path(self.sidecar.upload_id)
            whole.rename(part)
            if os.fstat(self._fd).st_nlink > 1:  # another upload has just come to share them
                part.rename(whole)
                return
            self.visible = False
        self._empty()

    async def close(self) -> None:
        self.release()
        if self._lease is not None:
            await self._lease.release()

    def release(self) -> None:
        """Give the lock up at once."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
