"""Finds what belongs to no upload in one folder of a file system store. Blocking."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from shared.blobs.filesystem_chunks import FRESH, remove_chunks

__all__ = ["sweep_leftovers"]


def sweep_leftovers(folder: Path, before: float, dry_run: bool) -> list[str]:
    """Remove bytes, chunks and new records that have no record beside them and are old.

    Complete files without a record are only told: somebody may have lost it, and wants them.

    Args:
        folder: One of the store's folders of uploads.
        before: What changed later is left alone; UTC, seconds since the epoch.
        dry_run: Only tell what would go.

    """
    found = []
    for path in _old_orphans(folder, before):
        if path.suffix and not dry_run and not _remove(path):
            continue
        found.append(path.name if path.suffix else f"{path.name} (kept: it is complete)")
    return found


def _old_orphans(folder: Path, before: float) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            stem = path.name.partition(".")[0]
            is_old = path.stat().st_mtime < before
            if path.suffix == ".chunks" and path.with_name(f"{stem}.part").exists():
                yield from _old_chunks(path, before)
            elif is_old and (
                path.name.endswith((".info.new", ".share", ".chunks"))
                or (path.suffix != ".info" and not path.with_name(f"{stem}.info").exists())
            ):
                yield path


def _old_chunks(folder: Path, before: float) -> Iterator[Path]:
    for path in folder.glob(f"{FRESH}*"):
        if path.stat().st_mtime < before:
            yield path


def _remove(path: Path) -> bool:
    """Remove a leftover; return whether it is gone. One that is locked is being made."""
    if path.is_dir():
        remove_chunks(path)
        return True
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
    return True
