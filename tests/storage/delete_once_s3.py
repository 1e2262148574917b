"""A program that deletes one file on S3 as storage does, and kills itself at a step of it.

    delete_once_s3.py ENDPOINT PREFIX REDIS_URL FILE_ID STEP

A step is a call that changes something on the server: the program ends by SIGKILL before number
STEP of them (from 1). It prints the steps that it survived.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

from services.storage.files import Files
from shared.blobs.s3 import S3Store
from shared.blobs.s3_client import S3Client
from shared.blobs.store import UploadNotFound
from shared.identity import Principal
from shared.lifecycle import background
from shared.outbox import Outbox
from shared.publisher import Publisher
from shared.streams import connect
from tests.shared.blobs.memory_leases import MemoryLeases, Registry
from tests.storage.stores import s3_options

PART = 4096


class Mortal(S3Client):
    """Kills the process before one of its writes."""

    left = 0
    """Writes until then, and one; 0: it is not to die."""

    async def call(self, operation: str, /, **arguments: Any) -> dict[str, Any]:
        """Call the server, if it is not time to die."""
        writes = operation.startswith(
            ("put", "delete", "abort", "complete", "create", "upload")
        )
        if writes and Mortal.left:
            Mortal.left -= 1
            if not Mortal.left:
                os.kill(os.getpid(), signal.SIGKILL)
            sys.stdout.write(f"{operation} {arguments['Key']}\n")
            sys.stdout.flush()
        return await super().call(operation, **arguments)


class MortalStore(S3Store):
    """A store whose writes may be its last."""

    def __init__(self, endpoint: str, prefix: str) -> None:
        options, leases = s3_options(endpoint), MemoryLeases(Registry())
        super().__init__(options, prefix=prefix, leases=leases, part_size=PART)
        vars(self)["client"] = Mortal(options)


async def delete(endpoint: str, prefix: str, url: str, file_id: str, step: str) -> None:
    """Delete the file; return when its event is out and nothing of it is left."""
    store = MortalStore(endpoint, prefix)
    await store.open()
    redis = connect(url)
    publisher = Publisher(redis, partitions=16, interval_s=0.5)
    outbox = Outbox(store, publisher, redis, recent_s=60)
    caller = Principal("local", "local", "local", frozenset(), None)
    Mortal.left = int(step)
    async with background("publisher", publisher.run()):
        await Files(store, outbox).delete(file_id, caller)
        while await is_recorded(store, file_id):
            await asyncio.sleep(0.01)
    await outbox.close()
    await redis.aclose()
    await store.close()


async def is_recorded(store: S3Store, file_id: str) -> bool:
    """Tell whether there is a record, or a tombstone."""
    try:
        await store.load(file_id)
    except UploadNotFound:
        return False
    return True


if __name__ == "__main__":
    asyncio.run(delete(*sys.argv[1:]))
