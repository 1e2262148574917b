"""The blob store in a bucket of an S3 server.

``s3_keys`` tells how the objects are named, ``s3_parts`` how an upload's bytes are laid out and
found again, ``s3_writer`` how they get there.

S3 has no locks, so the right to write is a lease (``shared.leases``). All that a writer leaves
carries the fence of its lease, so that the newest writer decides what counts, on servers
without conditional writes too. Which events are due, which uploads are open, and how old
something is: all of it is asked of the server, whose clock decides.

``fsync`` means nothing here: what the server has acknowledged is safe.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final

import structlog

from shared import sidecar as sidecars
from shared.blobs.s3_artifacts import S3Artifacts
from shared.blobs.s3_bytes import read_pieces
from shared.blobs.s3_calls import NoSuchObject, Outdated, S3Failed, S3Options
from shared.blobs.s3_chunks import S3Chunk, list_chunks
from shared.blobs.s3_client import S3Client
from shared.blobs.s3_join import Source, join
from shared.blobs.s3_keys import Keys
from shared.blobs.s3_sweep import sweep_leftovers
from shared.blobs.s3_view import load, look
from shared.blobs.s3_writer import S3Writer
from shared.blobs.store import Chunk, Due, Stored, UploadNotFound
from shared.errors import StartupError
from shared.leases import Leases
from shared.sidecar import Sidecar, SidecarDamaged

__all__ = ["S3Store"]

log = structlog.stdlib.get_logger(__name__)

_PIECE: Final = 1024 * 1024
_BATCH: Final = 256
"""Uploads that a walk looks at between two pages of its own."""
_UNBORN_S: Final = 600.0
"""How long a creation may take: longer than its calls are tried again."""


class S3Store:
    """Implements ``BlobStore``; see there for the promises.

    Args:
        options: Where the bucket is.
        prefix: Begins all keys of the store; empty, or with a slash at its end.
        leases: Grants the right to write.
        part_size: Least size of a part, in bytes; at least what the server accepts.
        parallel_parts: Parts of one upload that are sent at once.

    """

    shares: Final = False  # S3 has no links
    rereads_cheaply: Final = False  # over the network

    def __init__(
        self,
        options: S3Options,
        *,
        prefix: str,
        leases: Leases,
        part_size: int,
        parallel_parts: int = 4,
    ) -> None:
        self.artifacts: Final = S3Artifacts(self)
        self.client: Final = S3Client(options)
        self.keys: Final = Keys(prefix)
        self.part_size: Final = part_size
        self.parallel_parts: Final = parallel_parts
        self.leases: Final = leases

    async def open(self) -> None:
        await self.client.open()
        try:
            await self.client.try_conditions(self.keys.note("conditions"))
        except S3Failed as exc:
            await self.client.close()
            raise StartupError(f"BLOB_STORE: nothing can be written there ({exc})") from exc

    async def close(self) -> None:
        await self.client.close()

    def is_writable(self) -> bool:
        """Tell whether the server answered when it was asked last."""
        return self.client.healthy

    # Reading.

    async def read(self, upload_id: str) -> Stored:
        if not sidecars.is_upload_id(upload_id):
            raise UploadNotFound(upload_id)
        return (await look(self.client, self.keys, upload_id)).stored()

    async def load(self, upload_id: str) -> Sidecar:
        return (await load(self.client, self.keys, upload_id))[0]

    def open_now(self, upload_id: str) -> int:
        raise S3Failed(errno.ENOTSUP, "objects have no descriptors")

    async def open_blob(self, upload_id: str) -> None:
        if await self.client.size_of(self.keys.blob(upload_id)) is None:
            raise UploadNotFound(upload_id)

    async def url_of(
        self, upload_id: str, *, disposition: str, content_type: str, lifetime_s: int
    ) -> str:
        return await self.client.url_of(
            self.keys.blob(upload_id),
            disposition=disposition,
            content_type=content_type,
            lifetime_s=lifetime_s,
        )

    async def read_range(self, upload_id: str, start: int, length: int) -> AsyncIterator[bytes]:
        """Yield bytes; see ``BlobStore``.

        The parts of a multipart upload cannot be read before it is complete. So of an upload
        that is larger than a part, all can be read once its last byte is there; until then
        only the bytes behind its last part.

        Raises:
            OSError: The bytes are in a part (``EBUSY``).

        """
        if not sidecars.is_upload_id(upload_id):
            raise UploadNotFound(upload_id)
        try:
            stream = self.client.stream(self.keys.blob(upload_id), start, length)
            async with aclosing(stream):
                async for piece in stream:
                    yield piece
        except NoSuchObject:
            for piece in await self._read_unfinished(upload_id, start, length):
                yield piece

    async def _read_unfinished(self, upload_id: str, start: int, length: int) -> list[bytes]:
        view = await look(self.client, self.keys, upload_id)
        if view.sidecar.status == "failed":
            raise UploadNotFound(upload_id)
        if start < view.counted.parts_end or view.size is not None:
            raise S3Failed(errno.EBUSY, "the bytes are in a part of an unfinished upload")
        pieces = await read_pieces(self.client, self.keys, upload_id, view.counted)
        skipped = start - view.counted.parts_end
        content = b"".join(pieces)[skipped : skipped + length]
        return [content[at : at + _PIECE] for at in range(0, len(content), _PIECE)]

    async def stage(self, upload_id: str) -> S3Chunk:
        if not sidecars.is_upload_id(upload_id):
            raise UploadNotFound(upload_id)
        return S3Chunk(self, upload_id)

    async def chunks(self, upload_id: str) -> list[Chunk]:
        return await list_chunks(self.client, self.keys, upload_id)

    # Writing.

    async def create(self, sidecar: Sidecar) -> list[Due]:
        """Mark the upload as open, then record it; a mark without a record is swept."""
        upload_id = sidecar.upload_id
        marks = [self.keys.due(upload_id, event.seq) for event in sidecar.outbox]
        marks.append(self.keys.open_mark(upload_id))
        await self.client.each([partial(self.client.put, one, b"") for one in marks])
        try:
            due, _ = await self.save(sidecar, "", mark=False, check=lambda: None)
        except Outdated:
            raise FileExistsError(errno.EEXIST, "there is such an upload") from None
        return due

    async def create_shared(self, sidecar: Sidecar, original_id: str) -> list[Due]:
        """Open a complete upload; see ``BlobStore``. Its bytes are copied by the server.

        They come first: an object without a record is swept, a record needs its bytes.
        """
        own, original = self.keys.blob(sidecar.upload_id), self.keys.blob(original_id)
        size = await self.client.size_of(original)
        if size is None or size != sidecar.size:
            raise UploadNotFound(original_id)
        source = Source(original, size)
        try:
            await join(self.client, lambda: None, own, [source], least=self.part_size)
        except NoSuchObject:
            raise UploadNotFound(original_id) from None
        for event in sidecar.outbox:
            await self.client.put(self.keys.due(sidecar.upload_id, event.seq), b"")
        due, _ = await self.save(sidecar, "", mark=False, check=lambda: None)
        return due

    async def save(
        self, sidecar: Sidecar, etag: str, *, mark: bool, check: Callable[[], None]
    ) -> tuple[list[Due], str]:
        """Replace a sidecar; return the events that are due, and its new ETag.

        Args:
            sidecar: The new record.
            etag: Of the one that it replaces; empty: there must be none.
            mark: Its last event is new. The marker comes first: a marker without its event
                is harmless, an event without its marker would wait for a survey.
            check: Called before each call that writes.

        Raises:
            Outdated: Somebody else has changed the record.

        """
        upload_id = sidecar.upload_id
        if mark:
            seq = sidecar.outbox[-1].seq
            await self.client.put(self.keys.due(upload_id, seq), b"", check=check)
        content = sidecars.encode(sidecar)
        marked: set[Due | None] = set()

        async def replace() -> str:
            key = self.keys.info(upload_id)
            return await self.client.put_if(key, content, etag, check=check)

        async def look_for_marks() -> str:
            listed = await self.client.list_all(self.keys.due(upload_id, ""))
            marked.update(self.keys.due_of(one.key) for one in listed)
            return ""

        replaced, _ = await self.client.each([replace, look_for_marks])
        due = (Due(upload_id, event.seq) for event in sidecar.outbox)
        return [one for one in due if one in marked], replaced

    async def acquire(self, upload_id: str) -> S3Writer:
        if not sidecars.is_upload_id(upload_id):
            raise UploadNotFound(upload_id)
        least_fence = 0
        while True:
            lease = await self.leases.acquire(upload_id, least_fence=least_fence)
            try:
                view = await look(self.client, self.keys, upload_id)
                if view.sidecar.status == "failed":
                    raise UploadNotFound(upload_id)
            except BaseException:
                await lease.release()
                raise
            if (least_fence := view.turn.fence) < lease.fence:
                return S3Writer(self, lease, view)
            await lease.release()  # whoever grants them has lost its memory

    # Handing over.

    async def ask_release(self, upload_id: str) -> None:
        await self.leases.ask(upload_id)

    async def release_asked(self) -> set[str]:
        return self.leases.asked()

    # The outbox.

    async def mark_published(self, due: Due, *, last: bool) -> None:
        keys = [self.keys.due(due.upload_id, due.seq)]
        if last:  # before the marker: a crash between must not leave it for good
            await self.client.remove([self.keys.info(due.upload_id)])
        await self.client.remove(keys)

    async def restore_due(self) -> None:
        """Do nothing: what was put is durable."""

    async def due(self, *, older_than_s: float) -> list[Due]:
        listed = await self.client.list_all(f"{self.keys.prefix}due/")
        before = await self.client.now() - older_than_s if listed else 0
        old = (one.key for one in listed if one.modified_at <= before)
        return sorted(due for key in old if (due := self.keys.due_of(key)))

    async def remove_unborn(self, upload_id: str, due: Sequence[Due]) -> None:
        """Remove what a creation left; one that may still be under way is left alone."""
        keys = [self.keys.due(one.upload_id, one.seq) for one in due]
        marks = await self.client.list_all(self.keys.due(upload_id, ""))
        newest = max((one.modified_at for one in marks), default=0.0)
        if await self.client.now() - newest < _UNBORN_S:
            return
        try:
            await self.load(upload_id)
        except UploadNotFound:
            await self.client.remove([self.keys.open_mark(upload_id), *keys])

    async def remove_bytes(self, upload_id: str) -> None:
        """Remove all but the record; what is completed meanwhile is listed after that."""
        await self._abort_all(upload_id)
        await self._remove_but(upload_id, {self.keys.info(upload_id)})

    async def remove_scaffold(self, upload_id: str) -> None:
        """Remove all but the record, the bytes and the artifacts of a finished upload."""
        kept = {self.keys.blob(upload_id), self.keys.info(upload_id)}
        made = self.keys.artifacts(upload_id)  # may be on their way already
        jobs = [
            partial(self._abort_all, upload_id, but=made),
            partial(self._remove_but, upload_id, kept, but=made),
        ]
        await self.client.each(jobs)

    async def _abort_all(self, upload_id: str, *, but: str | None = None) -> None:
        uploads = await self.client.uploads(self.keys.blob(upload_id))
        doomed = [(at, one) for at, one, _ in uploads if but is None or not at.startswith(but)]
        await self.client.each([partial(self.client.abort, at, one) for at, one in doomed])

    async def _remove_but(
        self, upload_id: str, kept: set[str], *, but: str | None = None
    ) -> None:
        listed = await self.client.list_all(self.keys.blob(upload_id))
        doomed = [one.key for one in listed if but is None or not one.key.startswith(but)]
        rest = [key for key in doomed if key not in kept]
        await self.client.remove([*rest, self.keys.open_mark(upload_id)])

    # All uploads.

    async def survey(self, *, recent_s: float) -> AsyncIterator[Sidecar]:
        """Yield sidecars; see ``BlobStore``. Lists the store: a call for 1,000 objects."""
        since = await self.client.now() - recent_s
        wanted = set(await self._open_ids())
        async for page in self.client.listing(self.keys.prefix):
            recent = (one.key for one in page if one.modified_at >= since)
            infos = (key for key in recent if self.keys.rest_of(key) == ".info")
            wanted.update(upload_id for key in infos if (upload_id := self.keys.id_of(key)))
        ids = sorted(wanted)
        for start in range(0, len(ids), _BATCH):
            loads = [
                partial(self._load_if_possible, one) for one in ids[start : start + _BATCH]
            ]
            for record in await self.client.each(loads):
                if record is not None:
                    yield record

    async def _open_ids(self) -> list[str]:
        listed = await self.client.list_all(f"{self.keys.prefix}open/")
        return [upload_id for one in listed if (upload_id := self.keys.id_of(one.key))]

    async def _load_if_possible(self, upload_id: str) -> Sidecar | None:
        try:
            return await self.load(upload_id)
        except (UploadNotFound, SidecarDamaged, OSError):
            return None  # one record that cannot be read must not hide all others

    async def walk(self, *, unfinished: bool = False) -> AsyncIterator[Stored]:
        if unfinished:
            async for stored in self._looks(await self._open_ids()):
                if not stored.visible:
                    yield stored
            return
        async for ids in self._pages():
            async for stored in self._looks(ids):
                yield stored

    async def ids(self) -> AsyncIterator[str]:
        async for ids in self._pages():
            for one in ids:
                yield one

    async def _pages(self) -> AsyncIterator[list[str]]:
        async for page in self.client.listing(self.keys.prefix):
            infos = [one.key for one in page if self.keys.rest_of(one.key) == ".info"]
            yield [upload_id for key in infos if (upload_id := self.keys.id_of(key))]

    async def _looks(self, ids: Sequence[str]) -> AsyncIterator[Stored]:
        for start in range(0, len(ids), _BATCH):
            batch = ids[start : start + _BATCH]
            looks = [partial(self._look_if_possible, one) for one in batch]
            for stored in await self.client.each(looks):
                if stored is not None:
                    yield stored

    async def _look_if_possible(self, upload_id: str) -> Stored | None:
        try:
            return await self.read(upload_id)
        except UploadNotFound:
            pass
        except (SidecarDamaged, OSError) as exc:
            log.error("record_not_read", upload_id=upload_id, error=repr(exc))
        return None

    async def sweep_leftovers(self, *, older_than_s: float, dry_run: bool) -> list[str]:
        return await sweep_leftovers(self, older_than_s=older_than_s, dry_run=dry_run)

    # Notes.

    async def note(self, name: str) -> str:
        try:
            return (await self.client.get(self.keys.note(name)))[0].decode()
        except NoSuchObject:
            return ""

    async def write_note(self, name: str, text: str) -> None:
        await self.client.put(self.keys.note(name), text.encode())
