"""What a blob store promises, in whatever it keeps the bytes.

A store holds, for each upload, its bytes and its sidecar. The bytes grow under one exclusive
writer, become visible when the upload is complete, and never change after that. Markers say
which lifecycle events of the sidecar's outbox have not been published yet.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Literal, Protocol

import msgspec

from shared.sidecar import Sidecar

__all__ = [
    "BlobStore",
    "BlobWriter",
    "Due",
    "FsyncPolicy",
    "Stored",
    "UploadBusy",
    "UploadNotFound",
]

FsyncPolicy = Literal["always", "complete", "never"]
"""When bytes are forced to stable storage: before every answer that acknowledges an offset;
once, before completion; never. Sidecars are synced unless it is ``never``."""


class UploadNotFound(Exception):
    """There is no such upload, or only its tombstone is left."""


class UploadBusy(Exception):
    """Somebody else holds the exclusive right to write."""


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """One upload as the store has it."""

    sidecar: Sidecar
    offset: int
    """Bytes that are there. May run ahead of what is synced."""
    modified_at: float
    """When bytes last arrived; UTC, seconds since the epoch."""
    visible: bool
    """Whether the bytes have their final name and can be downloaded."""


class Due(msgspec.Struct, frozen=True, order=True):
    """A lifecycle event that may not be on the stream yet."""

    upload_id: str
    seq: int


class BlobWriter(Protocol):
    """The exclusive right to one upload: its bytes and its sidecar.

    Not for concurrent calls: one operation at a time.
    """

    sidecar: Sidecar
    offset: int
    """Bytes written so far."""
    modified_at: float
    visible: bool

    async def write(self, pieces: Sequence[bytes]) -> None:
        """Append the pieces in order.

        Raises:
            OSError: Not all were written; ``offset`` says how many bytes are there.

        """

    async def sync(self) -> None:
        """Return when all bytes written are on stable storage, as the policy demands.

        Raises:
            OSError: They are not. The file was cut back to what is known to be safe, and
                ``offset`` says how much that is.

        """

    async def record(self, sidecar: Sidecar) -> list[Due]:
        """Replace the sidecar durably; return the events that are due, oldest first."""

    async def finish(self, sidecar: Sidecar) -> list[Due]:
        """Make the bytes durable and visible, then the sidecar that says so.

        May be repeated after a crash at any point of it.
        """

    async def bury(self, tombstone: Sidecar) -> list[Due]:
        """Record the end of the upload durably, then remove its bytes."""

    async def close(self) -> None:
        """Give the right up. Further calls do nothing."""


class BlobStore(Protocol):
    """All uploads. Every method may raise ``OSError`` when the store itself fails."""

    async def create(self, sidecar: Sidecar) -> list[Due]:
        """Open an upload: when this returns, it survives a crash."""

    async def read(self, upload_id: str) -> Stored:
        """Return the upload as it is now, without disturbing a writer.

        Raises:
            UploadNotFound: There is none, or only its tombstone.
            SidecarDamaged: There is one, but its record cannot be read.

        """

    async def acquire(self, upload_id: str) -> BlobWriter:
        """Take the exclusive right to write, across all processes on this store.

        The right ends with ``close`` or with the process, however that ends.

        Raises:
            UploadBusy: Somebody else has it. ``ask_release`` and try again.
            UploadNotFound: As for ``read``.
            SidecarDamaged: As for ``read``.

        """

    async def ask_release(self, upload_id: str) -> None:
        """Leave word for the holder, in whatever process, that another one waits."""

    async def release_asked(self) -> set[str]:
        """Return the ids of the uploads for which somebody waits."""

    async def mark_published(self, due: Due, *, last: bool) -> None:
        """Note that an event is on the stream; ``last`` drops the tombstone too."""

    async def due(self, *, older_than_s: float) -> list[Due]:
        """Return the events that have been due for so many seconds, by upload and ``seq``."""

    def survey(self, *, recent_s: float) -> AsyncIterator[Sidecar]:
        """Yield the sidecars of unfinished uploads and of those changed in the last seconds."""
