"""What a blob store promises, in whatever it keeps the bytes.

A store holds, for each upload, its bytes and its sidecar. The bytes grow under one exclusive
writer, become visible when the upload is complete, and never change after that. Markers say
which lifecycle events of the sidecar's outbox have not been published yet.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Literal, Protocol

import msgspec

from shared.blobs.artifacts import Artifacts
from shared.sidecar import Sidecar

__all__ = [
    "BlobStore",
    "BlobWriter",
    "Chunk",
    "ChunkWriter",
    "Due",
    "FsyncPolicy",
    "LeaseUnavailable",
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


class LeaseUnavailable(Exception):
    """Nobody can grant the right to write just now. Try again in a moment."""


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


class Chunk(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A piece of an upload that was received apart from the others, whole and durable."""

    index: int
    """Its place among the chunks of the upload, from 0."""
    size: int
    """Bytes."""
    digest: str
    """SHA-256 of the bytes, hex."""
    received_at: float
    """UTC, seconds since the epoch."""


class ChunkWriter(Protocol):
    """Receives one chunk beside the upload's bytes, which it does not touch.

    Many may be open for one upload, in all processes, even for the same index. What is not
    committed is nothing: a crash leaves at most an orphan for ``sweep_leftovers``.
    """

    size: int
    """Bytes written so far."""

    async def write(self, pieces: Sequence[bytes]) -> None:
        """Append the pieces in order.

        Raises:
            OSError: Not all were written. Only ``discard`` is of use then.

        """

    async def commit(self, upload_id: str, index: int, digest: str) -> Chunk:
        """Make the chunk durable and part of an unfinished upload; return what is there.

        It may be another upload than it was staged for: a form may bring the bytes before
        the fields that tell where they belong. That costs a move, so stage well.

        If a chunk with this index is there already, that one stays and is returned: the
        caller compares the digests. Either way bytes have arrived: ``Stored.modified_at`` of
        the upload moves.

        Raises:
            UploadNotFound: There is no such upload, or it takes no bytes any more.
            OSError: It is not durable, and not listed.

        """

    async def discard(self) -> None:
        """Forget the bytes. Does nothing after ``commit`` or a second time."""


class BlobWriter(Protocol):
    """The exclusive right to one upload: its bytes and its sidecar.

    Not for concurrent calls: one operation at a time.
    """

    sidecar: Sidecar
    modified_at: float
    visible: bool

    @property
    def offset(self) -> int:
        """Bytes written so far."""

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
        """Record the end of the upload durably, then remove its bytes, chunks and artifacts.

        The record of a failed upload stays to be read; of others only the tombstone is left.
        """

    async def take(self, staged: ChunkWriter) -> None:
        """Append the bytes of an uncommitted chunk, which is then gone. Not synced yet.

        Raises:
            OSError: As ``write``. What is there is a prefix of the chunk.

        """

    async def join_chunks(self, chunks: Sequence[Chunk]) -> None:
        """Replace the bytes by those of the chunks, in this order, durably.

        The chunks stay until ``finish`` or ``bury``, so it may be repeated after a crash.

        Raises:
            OSError: The bytes are not complete; repeat it.

        """

    async def join_uploads(self, upload_ids: Sequence[str]) -> None:
        """Replace the bytes by those of other, visible uploads, in this order, durably.

        One may be named several times. They stay as they are.

        Raises:
            UploadNotFound: One of them is not there, or not visible.
            OSError: The bytes are not complete; repeat it.

        """

    async def share(self, original_id: str) -> None:
        """Replace the bytes by those of another, visible upload, stored once for both.

        They go with the last upload that has them. Where a store cannot share, it copies.
        The upload may be visible itself; readers then find the old bytes or the new ones.

        Raises:
            UploadNotFound: The other is not there, or not visible; or so many share its bytes
                that no more can.
            UploadBusy: It is held just now.

        """

    async def close(self) -> None:
        """Give the right up. Further calls do nothing."""


class BlobStore(Protocol):
    """All uploads. Every method may raise ``OSError`` when the store itself fails."""

    @property
    def artifacts(self) -> Artifacts:
        """What was made of the bytes of complete uploads; goes with them."""

    @property
    def shares(self) -> bool:
        """Whether ``BlobWriter.share`` keeps one copy for both; else it makes another one."""

    @property
    def rereads_cheaply(self) -> bool:
        """Whether bytes just written can be read again for the price of copying them."""

    async def open(self) -> None:
        """Connect to what is behind the store. Called once, in the loop that uses it.

        Raises:
            StartupError: It cannot be used; the text says why.

        """

    async def close(self) -> None:
        """Let go of connections and threads, once their work is done."""

    def is_writable(self) -> bool:
        """Tell, without delay, whether the store seems usable now."""

    async def create(self, sidecar: Sidecar) -> list[Due]:
        """Open an upload: when this returns, it survives a crash."""

    async def create_shared(self, sidecar: Sidecar, original_id: str) -> list[Due]:
        """Open an upload that is complete at once, with the bytes of another, visible one.

        As ``create``, ``BlobWriter.share`` and ``BlobWriter.finish`` in one step; all events
        of the sidecar are due.

        Raises:
            UploadNotFound: The other is not there, not visible, or has not the declared size;
                or so many share its bytes that no more can. Nothing has changed.

        """

    async def read(self, upload_id: str) -> Stored:
        """Return the upload as it is now, without disturbing a writer.

        Raises:
            UploadNotFound: There is none, or only its tombstone.
            SidecarDamaged: There is one, but its record cannot be read.

        """

    async def load(self, upload_id: str) -> Sidecar:
        """Return the record alone, a tombstone too.

        Raises:
            UploadNotFound: There is none.
            SidecarDamaged: It cannot be read.

        """

    def read_range(self, upload_id: str, start: int, length: int) -> AsyncIterator[bytes]:
        """Yield so many bytes from ``start``, in pieces of at most 1 MiB, visible or not.

        Yields fewer if there are fewer. Holds no more than a few pieces in memory.

        Raises:
            UploadNotFound: There is no such upload.

        """

    def open_now(self, upload_id: str) -> int:
        """Return a descriptor for an upload's bytes, visible or not; the caller closes it.

        Blocking, and only where ``rereads_cheaply``.

        Raises:
            UploadNotFound: There is no such upload.

        """

    async def open_blob(self, upload_id: str) -> int | None:
        """Return a descriptor for the bytes of a complete upload; the caller closes it.

        ``None``: this store has no files. Use ``read_range``.

        Raises:
            UploadNotFound: There are none (any more), or they are not complete.

        """

    async def url_of(
        self, upload_id: str, *, disposition: str, content_type: str, lifetime_s: int
    ) -> str | None:
        """Return a URL at which anybody gets the bytes of a complete upload for a while.

        ``None``: this store serves nobody. Whether the bytes are there is not looked at.

        Args:
            upload_id: Of the upload.
            disposition: Content-Disposition that they are served with.
            content_type: Content-Type that they are served with.
            lifetime_s: Seconds within which a download must begin.

        """

    async def acquire(self, upload_id: str) -> BlobWriter:
        """Take the exclusive right to write, across all processes on this store.

        The right ends with ``close`` or with the process, however that ends.

        Raises:
            UploadBusy: Somebody else has it. ``ask_release`` and try again.
            LeaseUnavailable: Redis grants the right, and it is away.
            UploadNotFound: As for ``read``; or it has failed, and takes no bytes any more.
            SidecarDamaged: As for ``read``.

        """

    async def ask_release(self, upload_id: str) -> None:
        """Leave word for the holder, in whatever process, that another one waits."""

    async def release_asked(self) -> set[str]:
        """Return the ids of the uploads for which somebody waits."""

    async def stage(self, upload_id: str) -> ChunkWriter:
        """Begin to receive a chunk. Needs no right to write, and no upload to be there yet.

        Args:
            upload_id: Where it will most likely belong; ``commit`` and ``take`` decide.

        Raises:
            UploadNotFound: This is no id.

        """

    async def chunks(self, upload_id: str) -> list[Chunk]:
        """Return the committed chunks by index."""

    async def mark_published(self, due: Due, *, last: bool) -> None:
        """Note that an event is on the stream; ``last`` drops the tombstone too."""

    async def restore_due(self) -> None:
        """Make all that may be unpublished due, also what a power loss has taken from ``due``.

        To be called once at the start: it looks at every record.
        """

    async def due(self, *, older_than_s: float) -> list[Due]:
        """Return the events that have been due for so many seconds, by upload and ``seq``."""

    def survey(self, *, recent_s: float) -> AsyncIterator[Sidecar]:
        """Yield the sidecars of unfinished uploads and of those changed in the last seconds."""

    def walk(self, *, unfinished: bool = False) -> AsyncIterator[Stored]:
        """Yield every upload, or those that are not visible yet; no tombstones.

        Records that cannot be read are left out and logged. For work in the background:
        it takes as long as there are uploads.
        """

    def ids(self) -> AsyncIterator[str]:
        """Yield the id of every record that there is, tombstones and damaged ones too.

        Those with the same first two characters come together, in the order of these.
        """

    async def remove_unborn(self, upload_id: str, due: Sequence[Due]) -> None:
        """Remove markers without a sidecar, and what else a crash left of a creation.

        An upload that is being created just now is left alone.
        """

    async def remove_bytes(self, upload_id: str) -> None:
        """Remove the bytes, chunks and artifacts that a crash left beside a tombstone."""

    async def sweep_leftovers(self, *, older_than_s: float, dry_run: bool) -> list[str]:
        """Remove what belongs to no upload and is so old; return what that was, for a log.

        That is: bytes, chunks and artifacts without a record, temporary files, multipart
        uploads that nobody owns. A dry run only tells.
        """

    async def note(self, name: str) -> str:
        """Return the text kept under a name; empty if there is none."""

    async def write_note(self, name: str, text: str) -> None:
        """Replace the text kept under a name, at once or not at all."""
