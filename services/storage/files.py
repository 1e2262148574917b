"""The files that storage serves and deletes, straight from the blob store.

The sidecar decides what is a file and whose: so a file can be downloaded the moment its upload
was answered, and no lagging stream or wiped Redis hides it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Final

from msgspec.structs import replace

from services.storage.heads import ContentTypes
from shared.blobs.artifacts import Artifacts
from shared.blobs.store import BlobStore, BlobWriter, Stored, UploadBusy, UploadNotFound
from shared.errors import Conflict, Forbidden, NotFound
from shared.events import FileDeleted
from shared.identity import Principal
from shared.outbox import Outbox
from shared.sidecar import is_upload_id
from shared.times import now_ms

__all__ = ["FileDamaged", "Files", "Quarantined"]

_ACQUIRE_S: Final = 10.0
"""Longer than the lease of a process that was killed goes on."""
_RETRY_S: Final = 0.05


class Quarantined(Conflict):
    """A scan is due, and must clear the file before anybody gets it. Retry later."""

    error_code = "FILE_QUARANTINED"


class FileDamaged(Exception):
    """The bytes on the disk are not those of the upload; they must not be served as if."""


class Files:
    """Complete uploads.

    Args:
        store: Keeps bytes and sidecars.
        outbox: Publishes what happens to them.

    """

    def __init__(self, store: BlobStore, outbox: Outbox) -> None:
        self._store: Final = store
        self._outbox: Final = outbox
        self.content_types: Final = ContentTypes(store)

    async def find(self, file_id: str, caller: Principal, *, cleared: bool = True) -> Stored:
        """Return the caller's file.

        Args:
            file_id: Its id.
            caller: Who asks.
            cleared: Whether it must have been scanned, if it is to be.

        Raises:
            NotFound: There is no such file; an unfinished upload is none, nor is a piece
                that another upload joins.
            Quarantined: It must be scanned first.
            Forbidden: It is somebody else's.
            SidecarDamaged: It is there, but whose it is cannot be read.

        """
        stored = await self._read(file_id)
        facts = stored.sidecar.facts
        if not caller.owns(user_id=facts.user_id, tenant=facts.tenant):
            raise Forbidden("This file belongs to somebody else.")
        if stored.sidecar.status == "quarantined" and not cleared:
            return stored
        return _cleared(stored)

    async def find_linked(self, file_id: str) -> Stored:
        """Return a file for somebody who was given a link to it.

        Raises:
            NotFound, Quarantined, SidecarDamaged: As ``find``.

        """
        return _cleared(await self._read(file_id))

    async def _read(self, file_id: str) -> Stored:
        try:
            return await self._store.read(file_id)
        except UploadNotFound:
            raise _unknown() from None

    async def open(self, found: Stored) -> int | None:
        """Return a descriptor of a file's bytes; it stays good when the file is deleted.

        ``None``: the store has no files; the bytes come from ``read``.

        Raises:
            NotFound: It has been deleted meanwhile.
            FileDamaged: It does not have the bytes that were uploaded.

        """
        sidecar = found.sidecar
        fd = None
        if self._store.rereads_cheaply:
            try:
                fd = await self._store.open_blob(sidecar.upload_id)
            except UploadNotFound:
                raise _unknown() from None
        # Over the network, a second look would cost as much as the read that follows, which
        # notices what was deleted since the first one.
        size = found.offset if fd is None else os.fstat(fd).st_size
        if size != sidecar.size:
            if fd is not None:
                os.close(fd)
            raise FileDamaged(f"{size} bytes instead of {sidecar.size}")
        return fd

    def read(self, file_id: str, start: int, length: int) -> AsyncIterator[bytes]:
        """Yield a part of a file's bytes, as ``BlobStore.read_range``."""
        return self._store.read_range(file_id, start, length)

    async def url_of(
        self, found: Stored, *, disposition: str, content_type: str, lifetime_s: int
    ) -> str | None:
        """Return where anybody gets a file's bytes for a while, as ``BlobStore.url_of``."""
        return await self._store.url_of(
            found.sidecar.upload_id,
            disposition=disposition,
            content_type=content_type,
            lifetime_s=lifetime_s,
        )

    @property
    def artifacts(self) -> Artifacts:
        """What was made of the files."""
        return self._store.artifacts

    async def revoke_links(self, file_id: str, caller: Principal) -> None:
        """Have no link to the caller's file be good that was made until now.

        Raises:
            NotFound, Quarantined, Forbidden, SidecarDamaged: As ``find``.
            Conflict: Somebody holds it for longer than a moment.

        """
        await self.find(file_id, caller)
        writer = await self._acquire(file_id)
        try:
            count = writer.sidecar.link_generation + 1
            await writer.record(replace(writer.sidecar, link_generation=count))
        finally:
            await writer.close()

    async def delete(self, file_id: str, caller: Principal) -> None:
        """Delete the caller's file: the tombstone first, then the bytes, then the event.

        A crash between the steps is made up for by the outbox sweep. Downloads under way
        go on to their end; from S3 only if the client does not let them rest.

        Raises:
            NotFound, Forbidden, SidecarDamaged: As ``find``.
            Conflict: Somebody holds it for longer than a moment.

        """
        await self.find(file_id, caller)
        writer = await self._acquire(file_id)
        try:
            sidecar = writer.sidecar
            tombstone = sidecar.after(
                "deleted",
                FileDeleted(
                    upload_id=file_id,
                    seq=sidecar.next_seq,
                    at=now_ms(),
                    upload=sidecar.facts,
                    offset=writer.offset,
                ),
            )
            self._outbox.announce(tombstone, await writer.bury(tombstone))
        finally:
            await writer.close()

    async def _acquire(self, file_id: str) -> BlobWriter:
        if not is_upload_id(file_id):
            raise _unknown()
        try:
            async with asyncio.timeout(_ACQUIRE_S):
                while True:
                    try:
                        return await self._store.acquire(file_id)
                    except UploadBusy:
                        await self._store.ask_release(file_id)
                        await asyncio.sleep(_RETRY_S)
        except UploadNotFound:  # another one has deleted it first
            raise _unknown() from None
        except TimeoutError:
            raise Conflict("The file is in use.") from None


def _cleared(stored: Stored) -> Stored:
    """Return what is a file, and may be served."""
    sidecar = stored.sidecar
    if sidecar.status == "quarantined":
        raise Quarantined("This file has not been cleared yet.")
    if sidecar.status != "completed" or sidecar.is_partial or not stored.visible:
        raise _unknown()
    return stored


def _unknown() -> NotFound:
    return NotFound("There is no such file.")
