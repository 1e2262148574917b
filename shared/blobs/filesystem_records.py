"""Records on a file system, and which of their events may be unpublished. Blocking.

``due/<id>.<seq>`` marks an event from before its record is in place until it is published, so
whoever lists that folder finds what a killed process has left. It is not forced to the disk,
which would cost each change as much as the record itself. A power loss may take it, therefore
the record carries a mark too, its sticky bit, which means nothing on a file: it comes with the
file's own sync, and goes once the newest event is out. ``restore_markers`` goes by it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from shared import sidecar as sidecars
from shared.blobs.durable import sync_data, sync_directory, write_all
from shared.blobs.store import Due, UploadNotFound
from shared.sidecar import Sidecar, SidecarDamaged

if TYPE_CHECKING:
    from shared.blobs.filesystem import FilesystemStore

__all__ = ["mark_published", "restore_markers", "save_record"]

log = structlog.stdlib.get_logger(__name__)

_UNPUBLISHED: Final = stat.S_ISVTX
_MODE: Final = 0o600
_locks: Final = tuple(threading.Lock() for _ in range(64))


def save_record(store: FilesystemStore, sidecar: Sidecar, *, mark: bool) -> list[Due]:
    """Replace a sidecar durably; return the events that are due.

    Args:
        store: Where it lies.
        sidecar: The new record.
        mark: Its last event is new. The marker comes first: a marker without its event is
            harmless, an event without its marker would wait for the next start.

    """
    with _lock_of(sidecar.upload_id):
        events = _replace(store, sidecar, mark=mark)
    if store.fsync != "never":
        sync_directory(store.path(sidecar.upload_id, ".info").parent)
    # Looked for last: what is published meanwhile must not be published again.
    return [one for one in events if store.marker(one).exists()]


def _replace(store: FilesystemStore, sidecar: Sidecar, *, mark: bool) -> list[Due]:
    upload_id = sidecar.upload_id
    events = [Due(upload_id, event.seq) for event in sidecar.outbox]
    target, fresh = store.path(upload_id, ".info"), store.path(upload_id, ".info.new")
    known = events[:-1] if mark else events
    # Later, a mark without a marker is one that another process is about to take away.
    if known and not store.markers_restored and _is_flagged(target):
        _restore(store, known)
    if mark:
        store.marker(events[-1]).touch(mode=_MODE)
    unpublished = any(store.marker(one).exists() for one in events)
    flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(fresh, flags, _MODE)
    try:
        _flag(fd, unpublished=unpublished)
        write_all(fd, [sidecars.encode(sidecar)])
        if store.fsync != "never":
            sync_data(fd)
    finally:
        os.close(fd)
    fresh.rename(target)
    return events


def _lock_of(upload_id: str) -> threading.Lock:
    """Return what keeps marker and mark of a record together, for a change and an answer."""
    return _locks[hash(upload_id) % len(_locks)]


def _flag(fd: int, *, unpublished: bool) -> None:
    with contextlib.suppress(OSError):  # some systems keep the bit for the superuser
        os.fchmod(fd, _MODE | _UNPUBLISHED if unpublished else _MODE)


def mark_published(store: FilesystemStore, due: Due, *, last: bool) -> None:
    """Do what ``BlobStore.mark_published`` says."""
    with _lock_of(due.upload_id):
        _unmark(store, due, last=last)


def _unmark(store: FilesystemStore, due: Due, *, last: bool) -> None:
    record = store.path(due.upload_id, ".info")
    if last:  # before the marker: a crash between must not leave it for good
        record.unlink(missing_ok=True)
    store.marker(due).unlink(missing_ok=True)
    if not last:
        with contextlib.suppress(FileNotFoundError):
            # First opened, then looked: a record that comes meanwhile keeps its mark.
            fd = os.open(record, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if not _has_markers(store, fd):
                    _flag(fd, unpublished=False)
            finally:
                os.close(fd)


def _has_markers(store: FilesystemStore, fd: int) -> bool:
    """Whether any event of an open record may be unpublished; of a damaged one, it may."""
    try:
        record = sidecars.decode(os.read(fd, os.fstat(fd).st_size))
    except SidecarDamaged:
        return True
    return any(store.marker(Due(record.upload_id, one.seq)).exists() for one in record.outbox)


def restore_markers(store: FilesystemStore, folder: Path) -> None:
    """Mark the events of records that say of themselves that not all of them are out.

    One that cannot be read is logged, and keeps nobody from the others.

    Args:
        store: Where they lie.
        folder: One of its folders of uploads.

    """
    with os.scandir(folder) as entries:
        names = [
            one.name
            for one in entries
            if one.name.endswith(".info") and _is_flagged(Path(one.path))
        ]
    for name in names:
        with contextlib.suppress(UploadNotFound, SidecarDamaged, ValueError):
            try:
                record = store.load_now(name.removesuffix(".info"))
                _restore(store, [Due(record.upload_id, one.seq) for one in record.outbox])
            except OSError as exc:
                log.error("marker_not_restored", record=name, error=repr(exc))


def _restore(store: FilesystemStore, events: Sequence[Due]) -> None:
    if not store.marker(events[-1]).exists():  # else it was not taken, nor were those before it
        for one in events:
            store.marker(one).touch(mode=_MODE)


def _is_flagged(record: Path) -> bool:
    with contextlib.suppress(OSError):
        return bool(record.lstat().st_mode & _UNPUBLISHED)
    return False
