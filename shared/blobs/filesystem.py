"""The blob store on a file system, local or shared by several processes and machines.

Layout, below one root: ``ab/<id>.part`` grows, ``ab/<id>`` is complete, ``ab/<id>.info`` is
the sidecar, ``ab/<id>.chunks/`` holds the chunks that came apart from the others, and
``ab/<id>.artifacts/`` what was made of the bytes, where ``ab`` are the first two characters of
the id. Uploads that share their bytes are hard links of one file. ``due/<id>.<seq>`` marks an
event that may be unpublished, ``ask/<id>`` asks the writer to let go; both directories are
nearly empty, so that listing them is cheap however many uploads there are.

The writer's right is ``flock`` on the file of bytes: the kernel ends it with the process,
whatever kills that, and a rename keeps it. Where locks do not reach all machines a lease is
taken before it. All blocking calls run in disk threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import structlog

from shared import sidecar as sidecars
from shared.blobs import filesystem_listing as listing
from shared.blobs.disk_threads import DiskThreads
from shared.blobs.durable import sync_data
from shared.blobs.filesystem_artifacts import FOLDER as ARTIFACTS
from shared.blobs.filesystem_artifacts import FilesystemArtifacts
from shared.blobs.filesystem_chunks import FilesystemChunk, list_chunks, remove_chunks
from shared.blobs.filesystem_folder import SHARDS, prepare_folders
from shared.blobs.filesystem_records import mark_published, restore_markers, save_record
from shared.blobs.filesystem_sharing import create_shared
from shared.blobs.filesystem_sweep import remove_unborn, sweep_leftovers
from shared.blobs.filesystem_writer import FilesystemWriter
from shared.blobs.regular_files import checked, open_regular
from shared.blobs.store import Chunk, Due, FsyncPolicy, Stored, UploadBusy, UploadNotFound
from shared.leases import Lease, Leases
from shared.sidecar import Sidecar, SidecarDamaged

__all__ = ["FilesystemStore"]

T = TypeVar("T")

log = structlog.stdlib.get_logger(__name__)

_DISK_THREADS: Final = 16
"""More than a disk's useful queue depth; a thread costs nothing while it waits."""

_SURVEY_BATCH: Final = 256
_PIECE: Final = 1024 * 1024


def _checked(upload_id: str) -> str:
    if not sidecars.is_upload_id(upload_id):
        raise ValueError(f"no upload id: {upload_id!r}")
    return upload_id


class FilesystemStore:
    """Implements ``BlobStore``; see there for the promises.

    Args:
        root: Directory of the blobs; made if it is not there.
        fsync: When bytes are forced to stable storage.
        leases: Grant the right to write too, where locks do not reach all processes.

    Raises:
        StartupError: The directory cannot be made or written to.

    """

    shares: Final = True  # by hard links
    rereads_cheaply: Final = True  # from the page cache

    def __init__(
        self, root: Path, *, fsync: FsyncPolicy = "always", leases: Leases | None = None
    ) -> None:
        self.root: Final = root
        self.fsync: Final = fsync
        self.markers_restored = False
        """Since then no marker can have gone by a power cut."""
        self._leases: Final = leases
        self._threads: Final = DiskThreads(_DISK_THREADS)
        self.artifacts: Final = FilesystemArtifacts(self)
        prepare_folders(root, synced=fsync != "never")

    def is_writable(self) -> bool:
        """Tell whether the root is there and writable; a look, no write."""
        return os.access(self.root, os.W_OK | os.X_OK)

    async def run(
        self, job: Callable[..., T], *args: object, undo: Callable[[T], object] | None = None
    ) -> T:
        """Run a blocking call in a disk thread; see ``DiskThreads.run``."""
        return await self._threads.run(job, *args, undo=undo)

    async def open(self) -> None:
        """Do nothing: a file system is ready when it is made."""

    async def close(self) -> None:
        """End the disk threads once their work is done."""
        self._threads.close()

    def path(self, upload_id: str, suffix: str = "") -> Path:
        """Return the path of one of an upload's files.

        Raises:
            ValueError: This is no id. Callers check ids where they enter; this keeps a slip
                from ever naming a file outside the root.

        """
        return self.root / upload_id[:2] / f"{_checked(upload_id)}{suffix}"

    def marker(self, due: Due) -> Path:
        """Return the path of the marker of an event that is due."""
        return self.root / "due" / f"{_checked(due.upload_id)}.{due.seq}"

    def _question(self, upload_id: str) -> Path:
        return self.root / "ask" / _checked(upload_id)

    # Reading.

    async def read(self, upload_id: str) -> Stored:
        if not sidecars.is_upload_id(upload_id):
            raise UploadNotFound(upload_id)
        return await self.run(self._read, upload_id)

    def _read(self, upload_id: str) -> Stored:
        sidecar = self.load_now(upload_id)
        if sidecar.is_gone:
            raise UploadNotFound(upload_id)
        for suffix in (".part", "", ".part"):  # a rename may fall between two looks
            with contextlib.suppress(FileNotFoundError):
                look = checked(os.lstat(self.path(upload_id, suffix)))
                return Stored(
                    sidecar=sidecar,
                    offset=look.st_size,
                    modified_at=look.st_mtime,
                    visible=not suffix,
                )
        if sidecar.status == "failed":  # its bytes were removed, its record stays
            ended_at = sidecar.outbox[-1].at / 1000
            return Stored(sidecar=sidecar, offset=0, modified_at=ended_at, visible=False)
        raise UploadNotFound(upload_id)

    async def load(self, upload_id: str) -> Sidecar:
        return await self.run(self.load_now, upload_id)

    def load_now(self, upload_id: str) -> Sidecar:
        """Return the sidecar, a tombstone too. Blocking.

        Raises:
            UploadNotFound: There is none.
            SidecarDamaged: It cannot be read.

        """
        try:
            fd = open_regular(self.path(upload_id, ".info"))
        except FileNotFoundError:
            raise UploadNotFound(upload_id) from None
        with os.fdopen(fd, "rb") as file:
            record = sidecars.decode(file.read())
        if record.upload_id != upload_id:
            raise SidecarDamaged(f"the record of {record.upload_id} has another's name")
        return record

    async def open_blob(self, upload_id: str) -> int:
        try:
            return await self.run(open_regular, self.path(upload_id), undo=os.close)
        except FileNotFoundError:
            raise UploadNotFound(upload_id) from None

    async def url_of(
        self, upload_id: str, *, disposition: str, content_type: str, lifetime_s: int
    ) -> None:
        """Return nothing: files have no URLs."""

    async def read_range(self, upload_id: str, start: int, length: int) -> AsyncIterator[bytes]:
        if not sidecars.is_upload_id(upload_id):
            raise UploadNotFound(upload_id)
        fd = await self.run(self.open_now, upload_id, undo=os.close)
        try:
            while length > 0:
                piece = await self.run(os.pread, fd, min(length, _PIECE), start)
                if not piece:
                    return
                yield piece
                start, length = start + len(piece), length - len(piece)
        finally:
            os.close(fd)

    def open_now(self, upload_id: str) -> int:
        for suffix in (".part", "", ".part"):
            with contextlib.suppress(FileNotFoundError):
                return open_regular(self.path(upload_id, suffix))
        raise UploadNotFound(upload_id)

    async def stage(self, upload_id: str) -> FilesystemChunk:
        if not sidecars.is_upload_id(upload_id):
            raise UploadNotFound(upload_id)
        return await self.run(FilesystemChunk, self, upload_id, undo=FilesystemChunk.release)

    async def chunks(self, upload_id: str) -> list[Chunk]:
        return await self.run(list_chunks, self.path(upload_id, ".chunks"))

    # Writing.

    async def create(self, sidecar: Sidecar) -> list[Due]:
        return await self.run(self._create, sidecar)

    def _create(self, sidecar: Sidecar) -> list[Due]:
        upload_id = sidecar.upload_id
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        fd = os.open(self.path(upload_id, ".part"), flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # a sweep sees that this is no leftover
            return self.save(sidecar)
        except BaseException:  # a full disk must not fill with the beginnings of uploads
            for suffix in (".info", ".info.new", ".part"):
                self.path(upload_id, suffix).unlink(missing_ok=True)
            self.marker(Due(upload_id, 1)).unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)

    async def create_shared(self, sidecar: Sidecar, original_id: str) -> list[Due]:
        return await self.run(create_shared, self, sidecar, original_id)

    def save(self, sidecar: Sidecar, *, mark: bool = True) -> list[Due]:
        """Replace a sidecar durably; return the events that are due. Blocking.

        Args:
            sidecar: The new record.
            mark: Its last event is new.

        """
        return save_record(self, sidecar, mark=mark)

    async def acquire(self, upload_id: str) -> FilesystemWriter:
        if not sidecars.is_upload_id(upload_id):
            raise UploadNotFound(upload_id)
        lease = await self._leases.acquire(upload_id) if self._leases else None
        try:
            return await self.run(
                self._acquire, upload_id, lease, undo=FilesystemWriter.release
            )
        except BaseException:
            if lease is not None:
                await lease.release()
            raise

    def _acquire(self, upload_id: str, lease: Lease | None) -> FilesystemWriter:
        fd = self.lock_now(upload_id)
        try:
            record = self.load_now(upload_id)
            if record.is_gone or record.status == "failed":
                raise UploadNotFound(upload_id)
            self._question(upload_id).unlink(missing_ok=True)
            if self.fsync == "always" and os.fstat(fd).st_size:
                sync_data(fd)  # a predecessor that was killed may have left unsynced bytes
            return FilesystemWriter(self, fd, record, lease)
        except BaseException:
            os.close(fd)
            raise

    def lock_now(self, upload_id: str) -> int:
        """Return a descriptor of an upload's bytes that locks them. Blocking.

        Raises:
            UploadBusy: Somebody else has locked them.
            UploadNotFound: There are none.

        """
        for suffix in (".part", "", ".part", ""):
            try:
                fd = os.open(
                    self.path(upload_id, suffix), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
                )
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                os.close(fd)
                if isinstance(exc, BlockingIOError):
                    raise UploadBusy(upload_id) from None
                raise
            with contextlib.suppress(FileNotFoundError):
                # Not the number of links: other uploads may share the bytes.
                if os.path.samestat(os.fstat(fd), os.lstat(self.path(upload_id, suffix))):
                    return fd
            os.close(fd)  # removed or renamed between open and lock
        self._question(upload_id).unlink(missing_ok=True)  # there is nobody left to answer
        raise UploadNotFound(upload_id)

    async def ask_release(self, upload_id: str) -> None:
        question = self._question(upload_id)
        if self._leases is not None:
            await self._leases.ask(upload_id)
        await self.run(lambda: question.touch(mode=0o600))

    async def release_asked(self) -> set[str]:
        asked = self._leases.asked() if self._leases else set()
        return asked.union(await self.run(os.listdir, self.root / "ask"))

    async def mark_published(self, due: Due, *, last: bool) -> None:
        await self.run(partial(mark_published, self, due, last=last))

    async def restore_due(self) -> None:
        for shard in SHARDS:
            await self.run(restore_markers, self, self.root / shard)
        self.markers_restored = True

    async def remove_unborn(self, upload_id: str, due: Sequence[Due]) -> None:
        await self.run(remove_unborn, self, upload_id, due)

    async def remove_bytes(self, upload_id: str) -> None:
        await self.run(self.unlink_bytes, upload_id)

    def unlink_bytes(self, upload_id: str) -> None:
        """Remove all of an upload but its record. Blocking."""
        for suffix in ("", ".part"):
            self.path(upload_id, suffix).unlink(missing_ok=True)
        for suffix in (".chunks", ARTIFACTS):
            remove_chunks(self.path(upload_id, suffix))

    async def due(self, *, older_than_s: float) -> list[Due]:
        return await self.run(listing.due_events, self.root / "due", time.time() - older_than_s)

    async def survey(self, *, recent_s: float) -> AsyncIterator[Sidecar]:
        folders = [self.root / shard for shard in SHARDS]
        wanted = await self.run(listing.live_and_recent, folders, time.time() - recent_s)
        for start in range(0, len(wanted), _SURVEY_BATCH):
            for record in await self.run(self._load_all, wanted[start : start + _SURVEY_BATCH]):
                yield record

    async def walk(self, *, unfinished: bool = False) -> AsyncIterator[Stored]:
        async for one in self.ids(".part" if unfinished else ".info"):
            try:
                yield await self.read(one)
            except UploadNotFound:
                continue
            except (SidecarDamaged, OSError) as exc:
                log.error("record_not_read", upload_id=one, error=repr(exc))

    async def ids(self, suffix: str = ".info") -> AsyncIterator[str]:
        for shard in SHARDS:
            for one in await self.run(listing.ids_in, self.root / shard, suffix):
                yield one

    async def sweep_leftovers(self, *, older_than_s: float, dry_run: bool) -> list[str]:
        before, found = time.time() - older_than_s, list[str]()
        for shard in SHARDS:
            found += await self.run(sweep_leftovers, self.root / shard, before, dry_run)
        return found

    async def note(self, name: str) -> str:
        return await self.run(listing.read_note, self.root / name)

    async def write_note(self, name: str, text: str) -> None:
        await self.run(listing.write_note, self.root / name, text)

    def _load_all(self, upload_ids: Sequence[str]) -> list[Sidecar]:
        records = []
        for upload_id in upload_ids:
            # One record that the disk does not give must not hide all others.
            with contextlib.suppress(UploadNotFound, SidecarDamaged, OSError):
                records.append(self.load_now(upload_id))
        return records
