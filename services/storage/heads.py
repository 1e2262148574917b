"""Looks at the first bytes of files to tell their types, once for each file."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Final

from services.storage.content_types import HEAD_BYTES, served_type
from shared.blobs.store import BlobStore, Stored

__all__ = ["ContentTypes"]

_REMEMBERED: Final = 10_000
"""Files. Some 200 bytes each."""


class ContentTypes:
    """The types of the files that were asked for last; the bytes of an id never change.

    Args:
        store: Keeps the bytes.

    """

    def __init__(self, store: BlobStore) -> None:
        self._store: Final = store
        self._known: Final = OrderedDict[str, str]()

    async def of(self, stored: Stored, fd: int | None) -> str:
        """Return the type to serve a complete file with.

        Args:
            stored: The file.
            fd: Descriptor of its bytes; ``None``: the store has no files.

        Raises:
            UploadNotFound, OSError: As ``BlobStore.read_range``.

        """
        file_id, facts = stored.sidecar.upload_id, stored.sidecar.facts
        known = self._known.get(file_id)
        if known is None:
            head = await self._head(file_id, fd) if stored.offset else b""
            known = served_type(facts.content_type, facts.kind, head)
            self._known[file_id] = known
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(file_id)
        return known

    async def _head(self, file_id: str, fd: int | None) -> bytes:
        if fd is not None:
            own = os.dup(fd)  # the caller may be cancelled, and close its own
            return await asyncio.to_thread(_read_and_close, own)
        pieces: AsyncIterator[bytes] = self._store.read_range(file_id, 0, HEAD_BYTES)
        return b"".join([piece async for piece in pieces])


def _read_and_close(fd: int) -> bytes:
    try:
        return os.pread(fd, HEAD_BYTES, 0)
    finally:
        os.close(fd)
