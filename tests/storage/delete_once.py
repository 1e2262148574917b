"""A program that deletes one file as storage does, and kills itself at a step of it.

    delete_once.py DATA_DIR REDIS_URL FILE_ID STEP

A step is a change in the data folder that is about to happen: the program ends by SIGKILL
before number STEP of them (from 1). It prints the steps that it survived.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from services.storage.files import Files
from shared.blobs.filesystem import FilesystemStore
from shared.identity import Principal
from shared.lifecycle import background
from shared.outbox import Outbox
from shared.publisher import Publisher
from shared.streams import connect


class Reaper:
    """Counts the changes below a folder, and kills the process before one of them."""

    def __init__(self, folder: str, step: int) -> None:
        self._folder = folder
        self._left = step

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Be told by the interpreter what it is about to do."""
        writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)
        if not writes and event not in {"os.rename", "os.remove", "os.rmdir"}:
            return
        path = str(args[0])  # what is not absolute is in a folder that is being removed
        if path.startswith("/") and not path.startswith(self._folder):
            return
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)
        sys.stdout.write(f"{event} {Path(args[0]).name}\n")
        sys.stdout.flush()


async def delete(data_dir: str, redis_url: str, file_id: str, step: str) -> None:
    """Delete the file; return when its event is out and nothing of it is left."""
    store = FilesystemStore(Path(data_dir) / "blobs")
    redis = connect(redis_url)
    publisher = Publisher(redis, partitions=16, interval_s=0.5)
    outbox = Outbox(store, publisher, redis, recent_s=60)
    caller = Principal("local", "local", "local", frozenset(), None)
    sys.addaudithook(Reaper(data_dir, int(step)))
    async with background("publisher", publisher.run()):
        await Files(store, outbox).delete(file_id, caller)
        while store.path(file_id, ".info").exists():
            await asyncio.sleep(0.01)
    await outbox.close()
    await redis.aclose()


if __name__ == "__main__":
    asyncio.run(delete(*sys.argv[1:]))
