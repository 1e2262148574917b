"""A body that is kept apart from its upload until it is known to be what its sender meant.

tus wants a chunk whose checksum is wrong thrown away, and the upload unchanged (item 82), also
when the connection or the process dies before the last byte. So the bytes wait beside the
upload: small bodies in memory, larger ones in the store, hashed while they arrive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from services.ingest.checksums import Check, Checking
from shared.blobs.store import BlobStore, BlobWriter, ChunkWriter

__all__ = ["StagedBody"]

_IN_MEMORY: Final = 1024 * 1024
"""Bytes. Many clients send chunks of this size, and a file for each would double their cost."""

_HASH_AT_ONCE: Final = 64 * 1024
"""Bytes that are hashed sooner than a thread is woken."""


class StagedBody:
    """Where ``receive`` puts a body that has checksums.

    Args:
        store: Keeps what is too large for memory.
        upload_id: The upload that the body is for.
        checks: What was said of the body.

    """

    def __init__(self, store: BlobStore, upload_id: str, checks: Sequence[Check]) -> None:
        self._store: Final = store
        self._upload_id: Final = upload_id
        self._checking: Final = Checking(checks)
        self._held: list[bytes] = []
        self._chunk: ChunkWriter | None = None
        self.offset = 0
        """Bytes that are here."""

    async def write(self, pieces: Sequence[bytes]) -> None:
        """Append the pieces, and hash them meanwhile.

        Raises:
            OSError: The store refused. Only ``discard`` is of use then.

        """
        size = sum(map(len, pieces))
        if size <= _HASH_AT_ONCE:
            self._checking.update(pieces)
            await self._keep(pieces, size)
        else:
            hashing = asyncio.to_thread(self._checking.update, pieces)
            await asyncio.gather(self._keep(pieces, size), hashing)
        self.offset += size

    async def _keep(self, pieces: Sequence[bytes], size: int) -> None:
        if self._chunk is None:
            self._held += pieces
            if self.offset + size <= _IN_MEMORY:
                return
            self._chunk = await self._store.stage(self._upload_id)
            pieces, self._held = self._held, []
        await self._chunk.write(pieces)

    def verify(self) -> None:
        """Return if the body is what was meant.

        Raises:
            ChecksumMismatch: It is not.

        """
        self._checking.verify()

    async def append_to(self, writer: BlobWriter) -> None:
        """Make the bytes part of the upload; not synced yet.

        Raises:
            OSError: The store refused. A prefix may be there, and its bytes are right.

        """
        if self._chunk is not None:
            await writer.take(self._chunk)
        elif self._held:
            await writer.write(self._held)

    async def discard(self) -> None:
        """Forget the bytes, unless they have become the upload's."""
        self._held = []
        if self._chunk is not None:
            await self._chunk.discard()
