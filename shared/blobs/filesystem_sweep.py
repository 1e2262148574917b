"""Finds what belongs to no upload in a file system store, and removes it. Blocking."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from shared.blobs.filesystem_artifacts import FOLDER, UNFINISHED
from shared.blobs.filesystem_chunks import FRESH, remove_chunks
from shared.blobs.store import Due, UploadBusy, UploadNotFound

if TYPE_CHECKING:
    from shared.blobs.filesystem import FilesystemStore

__all__ = ["remove_unborn", "sweep_leftovers"]

log = structlog.stdlib.get_logger(__name__)

_ALWAYS_TEMPORARY: Final = (".info.new", ".share")
_HALVES: Final = {".chunks": FRESH, FOLDER: UNFINISHED}
"""What the names of files begin with that are not whole yet, by the suffix of their folder."""


def sweep_leftovers(folder: Path, before: float, dry_run: bool) -> list[str]:
    """Remove what is old and of no use any more; return its names.

    That is: bytes, chunks and artifacts without a record, new records and links that were
    never put in place, chunks and artifacts that were never whole, and chunks of uploads that
    have ended. Complete files without a record stay, and are told in the log: somebody has lost
    the record, and wants the file. Unless another upload shares the bytes: then a crash has
    left the link.

    Args:
        folder: One of the store's folders of uploads.
        before: What changed later is left alone; UTC, seconds since the epoch.
        dry_run: Only tell what would go.

    """
    found = []
    for path in _leftovers(folder, before):
        if not path.suffix and path.parent == folder and path.stat().st_nlink == 1:
            log.warning("file_without_record", name=path.name)
        elif dry_run or _remove(path):
            found.append(str(path.relative_to(folder)))
    return found


def _leftovers(folder: Path, before: float) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.suffix == ".info":
            continue
        record = path.with_name(path.name.partition(".")[0] + ".info")
        is_temporary = path.name.endswith(_ALWAYS_TEMPORARY)
        if is_temporary or not record.exists() or _has_ended(path):
            if _is_old(path, before):
                yield path
        elif path.suffix in _HALVES:
            halves = path.glob(f"{_HALVES[path.suffix]}*")
            yield from (one for one in halves if _is_old(one, before))


def _has_ended(path: Path) -> bool:
    """Tell whether this is a folder of chunks that nothing will be made of any more."""
    return path.suffix == ".chunks" and not path.with_suffix(".part").exists()


def _is_old(path: Path, before: float) -> bool:
    """Tell whether this is a file or folder that has not changed since; links are neither."""
    with contextlib.suppress(FileNotFoundError):
        look = path.lstat()
        return look.st_mtime < before and stat.S_IFMT(look.st_mode) in {
            stat.S_IFREG,
            stat.S_IFDIR,
        }
    return False


def _remove(path: Path) -> bool:
    """Remove a leftover; return whether it is gone. One that is locked is being made."""
    if path.is_dir():
        remove_chunks(path)
        return not path.exists()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False  # whoever made it has done so
    except OSError as exc:  # the others are still to go
        log.error("leftover_stays", name=path.name, error=repr(exc))
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def remove_unborn(store: FilesystemStore, upload_id: str, due: Sequence[Due]) -> None:
    """Do what ``BlobStore.remove_unborn`` says."""
    with contextlib.ExitStack() as stack:
        try:
            fd = store.lock_now(upload_id)
        except UploadBusy:
            return
        except UploadNotFound:
            is_empty = True
        else:
            stack.callback(os.close, fd)
            is_empty = os.fstat(fd).st_size == 0
        if store.path(upload_id, ".info").exists():  # it has been born meanwhile
            return
        if is_empty:  # else somebody has lost a sidecar, and wants the bytes
            for suffix in (".part", ".info.new"):
                store.path(upload_id, suffix).unlink(missing_ok=True)
        for one in due:
            store.marker(one).unlink(missing_ok=True)
