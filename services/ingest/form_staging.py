"""From a form to the store: the beginning of a file, hashed beside its receipt."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from services.ingest.errors import ChunkConflict
from services.ingest.form_answer import SessionData
from services.ingest.form_reader import FilePart
from services.ingest.receive import Ended, receive
from services.ingest.settings import Settings
from services.ingest.signatures import HEAD
from shared.blobs.store import BlobStore, ChunkWriter, UploadNotFound

__all__ = ["Staged", "check_same_file", "stage_file"]


class Staged(msgspec.Struct, frozen=True, kw_only=True):
    """What was taken of a file."""

    size: int
    """Bytes."""
    digest: str
    """SHA-256, hex."""
    head: bytes
    """The first bytes, as many as tell what the file is."""
    is_whole: bool
    """The file has ended. If not, there are more bytes than were asked for."""
    ended: Ended
    """Why receiving ended; only what is ``COMPLETE`` is of use."""


class _Beginning:
    """A file as a body that ends after so many bytes, and a little more."""

    def __init__(self, part: FilePart, most: int, judge: Callable[[bytes], bool]) -> None:
        self._part: Final = part
        self._most: Final = most
        self._judge: Final = judge
        self._is_judged = False
        self._size = 0
        self.head = b""
        self.is_whole = False

    async def read(self) -> bytes:
        if self._size > self._most:
            return b""
        piece = await self._part.read()
        self.is_whole = not piece
        self._size += len(piece)
        self.head += piece[: HEAD - len(self.head)]
        self._is_judged = self._is_judged or self._judge(self.head)
        return piece

    def buffered(self) -> bytes:
        return self._part.buffered()

    def is_broken(self) -> bool:
        return self._part.is_broken()


class _Hashed:
    """Where the bytes go."""

    def __init__(self, writer: ChunkWriter) -> None:
        self._writer: Final = writer
        self.sha: Final = hashlib.sha256()
        self.offset = 0

    async def write(self, pieces: Sequence[bytes]) -> None:
        await asyncio.gather(self._writer.write(pieces), asyncio.to_thread(self._hash, pieces))
        self.offset += sum(map(len, pieces))

    def _hash(self, pieces: Sequence[bytes]) -> None:
        for piece in pieces:
            self.sha.update(piece)


async def stage_file(
    part: FilePart,
    writer: ChunkWriter,
    *,
    most: int,
    judge: Callable[[bytes], bool],
    settings: Settings,
) -> Staged:
    """Receive a file, up to a little more than ``most`` bytes if it has more.

    Args:
        part: Where the bytes come from.
        writer: Takes them.
        most: Bytes after which nothing more is read.
        judge: Called with the first bytes until it returns true; what it raises is raised.
        settings: How slow the client may be.

    Raises:
        OSError: The store failed.

    """
    beginning, hashed = _Beginning(part, most, judge), _Hashed(writer)
    ended = await receive(
        beginning,
        None,
        into=hashed,
        room=None,
        idle_s=settings.upload_idle_timeout,
        least_rate=settings.upload_min_rate,
        window_s=settings.upload_min_rate_window,
        on_progress=lambda _: None,
    )
    return Staged(
        size=hashed.offset,
        digest=hashed.sha.hexdigest(),
        head=beginning.head,
        is_whole=beginning.is_whole,
        ended=ended,
    )


async def check_same_file(store: BlobStore, there: SessionData, staged: Staged) -> None:
    """Refuse a whole file whose session has got another one; the same may be repeated.

    What has failed is answered by its failure, whatever is sent again.

    Raises:
        ChunkConflict: The bytes differ.
        OSError: The store failed.

    """
    if there.status not in {"completed", "quarantined"}:
        return
    with suppress(UploadNotFound):  # it was deleted just now
        stored = await store.read(there.upload_id)
        digest = stored.sidecar.digests.get("sha256", "")
        if stored.offset == staged.size and not digest:  # it is not hashed yet
            sha = hashlib.sha256()
            async for piece in store.read_range(there.upload_id, 0, staged.size):
                await asyncio.to_thread(sha.update, piece)
            digest = sha.hexdigest()
        if digest != staged.digest:
            raise ChunkConflict("The file of this session is there already, with other bytes.")
