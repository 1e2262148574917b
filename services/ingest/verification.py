"""Digests of a whole upload, made of the bytes that are stored, before it is completed.

They are read back, since an upload may have come in many requests, to many processes.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from services.ingest.uploads import Uploads
from services.ingest.writers import Lease

__all__ = ["HASH_MISMATCH", "complete_verified"]

HASH_MISMATCH: Final = "HASH_MISMATCH"


async def complete_verified(uploads: Uploads, lease: Lease) -> bool:
    """Complete an upload whose bytes are what its client declared; else let it fail.

    Returns False when somebody else wanted to have it before that was known; it is as it was.

    Raises:
        OSError: The store refused; the upload is as it was.

    """
    writer = lease.writer
    sidecar = writer.sidecar
    algorithms = {*sidecar.expected, sidecar.wants_digest} - {"", *sidecar.digests}
    digests = dict(sidecar.digests)
    if algorithms:
        made = await _digests(uploads, lease, algorithms)
        if made is None:
            return False
        digests |= made
        writer.sidecar = replace(sidecar, digests=digests)  # kept with the completion
    for algorithm, expected in sidecar.expected.items():
        if digests[algorithm] != expected:
            await uploads.fail(
                writer, HASH_MISMATCH, f"The {algorithm} of the file is another one."
            )
            return True
    await uploads.complete(writer)
    return True


async def _digests(
    uploads: Uploads, lease: Lease, algorithms: Iterable[str]
) -> dict[str, str] | None:
    running = {name: hashlib.new(name) for name in algorithms}

    def update(piece: bytes) -> None:
        for one in running.values():
            one.update(piece)

    async for piece in uploads.store.read_range(lease.upload_id, 0, lease.writer.offset):
        if lease.asked is not None:
            return None
        await asyncio.to_thread(update, piece)
    return {name: one.hexdigest() for name, one in running.items()}
