"""Bytes that several uploads on a file system have: hard links of one file. Blocking."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shared.blobs.store import Due, UploadBusy, UploadNotFound
from shared.sidecar import Sidecar

if TYPE_CHECKING:
    from shared.blobs.filesystem import FilesystemStore

__all__ = ["create_shared", "share_file"]

_CANNOT: Final = {errno.ENOENT, errno.EMLINK}
"""There is no file, or it has as many links as it may have: 65,000 on ext4."""


def create_shared(store: FilesystemStore, sidecar: Sidecar, original_id: str) -> list[Due]:
    """Do what ``BlobStore.create_shared`` says.

    The bytes come first: a link without a record is swept, a record needs its bytes.
    """
    upload_id = sidecar.upload_id
    own = store.path(upload_id)
    markers = [store.marker(Due(upload_id, event.seq)) for event in sidecar.outbox]
    try:
        os.link(store.path(original_id), own, follow_symlinks=False)
        look = os.lstat(own)
        if not stat.S_ISREG(look.st_mode) or look.st_size != sidecar.size:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        for marker in markers:
            marker.touch(mode=0o600)
        return store.save(sidecar)
    except OSError as exc:
        leftovers = (own, own.with_suffix(".info"), own.with_suffix(".info.new"), *markers)
        for path in leftovers:
            path.unlink(missing_ok=True)
        if exc.errno in _CANNOT:
            raise UploadNotFound(original_id) from None
        raise


def share_file(original: Path, own: Path, held: int) -> int | None:
    """Replace a file by a link of another one; return a descriptor that locks it.

    Args:
        original: The other one.
        own: The file, there or not.
        held: Descriptor of the file as it is.

    Returns:
        The descriptor, open for reading; ``None``: they are one file
        already, as an earlier try may have left them.

    Raises:
        UploadNotFound: The other one is not there, or can have no more links.
        UploadBusy: It is locked.

    """
    fd = None
    try:
        fd = os.open(original, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        if os.path.samestat(os.fstat(fd), os.fstat(held)):
            os.close(fd)
            return None
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        link = own.with_suffix(".share")
        link.unlink(missing_ok=True)
        os.link(original, link)
        link.rename(own)
    except OSError as exc:
        if fd is not None:
            os.close(fd)
        if isinstance(exc, BlockingIOError):
            raise UploadBusy(original.name) from None
        if exc.errno in _CANNOT:
            raise UploadNotFound(original.name) from None
        raise
    return fd
