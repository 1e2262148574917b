"""The folders of a store on a file system, made ready before anything is kept in them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from shared.blobs.durable import sync_directory
from shared.errors import StartupError

__all__ = ["SHARDS", "prepare_folders"]

SHARDS: Final = tuple(f"{number:02x}" for number in range(256))


def prepare_folders(root: Path, *, synced: bool) -> None:
    """Make what is missing below the root, durably if it is to be synced. Blocking.

    Raises:
        StartupError: The directory cannot be made or written to.

    """
    try:
        for name in (*SHARDS, "due", "ask"):
            (root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        if synced:  # the folders must survive what is put into them
            for folder in (root, root.parent):
                sync_directory(folder)
        probe = root / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)  # in containers, all have the same pid
    except OSError as exc:
        raise StartupError(
            f"DATA_DIR: {root} is not writable ({exc.strerror}): "
            "make it writable for this user or set DATA_DIR to another folder"
        ) from exc
