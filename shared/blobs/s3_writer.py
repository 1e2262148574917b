"""The exclusive right to one upload on S3: its bytes grow, its sidecar changes.

Bytes are collected until they make a part, and full parts are sent in the background, a few at
a time; ``write`` waits when there are too many. ``sync`` waits for all of them and puts what
does not fill a part into a piece. When the last byte of a declared length is there, it makes
the object of it: its bytes can be read then, and it is visible once the sidecar says so.

Memory for each active writer: one part that fills and those in flight, of which there are at
most ``s3_parallel_parts`` and, unless a single one is larger, 64 MiB. Parts have the least
size up to 9,000 of them (70 GB with 8 MiB), and about 600 MiB for a file of 5 TiB.

A piece goes only when its bytes are in a part that the server has. So a crash between any two
calls leaves what was acknowledged; ``s3_parts`` tells how it is found again, and how a writer
whose lease ran out is kept from harm.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from shared.blobs.s3_bytes import S3Bytes
from shared.blobs.s3_calls import NoSuchObject, S3Failed
from shared.blobs.s3_chunks import S3Chunk, chunk_key
from shared.blobs.s3_join import Source, join
from shared.blobs.s3_view import View
from shared.blobs.store import Chunk, ChunkWriter, Due, UploadNotFound
from shared.leases import Lease
from shared.sidecar import Sidecar

if TYPE_CHECKING:
    from shared.blobs.s3 import S3Store

__all__ = ["S3Writer"]


class S3Writer:
    """Implements ``BlobWriter``; see there for the promises.

    Args:
        store: Which has made it.
        lease: The right; released with ``close``.
        view: The upload as it stood when the lease was taken.

    """

    def __init__(self, store: S3Store, lease: Lease, view: View) -> None:
        self._store: Final = store
        self._lease: Final = lease
        self._etag = view.etag
        self._bytes: Final = S3Bytes(
            store.client,
            store.keys,
            lease,
            view,
            least=store.part_size,
            parallel=store.parallel_parts,
        )
        self._closed = False
        self.sidecar = view.sidecar
        self.modified_at = view.modified_at
        self.visible = view.visible

    @property
    def offset(self) -> int:
        """Bytes written so far; those that are safe after a failure."""
        return self._bytes.offset

    async def write(self, pieces: Sequence[bytes]) -> None:
        await self._bytes.write(pieces)
        self.modified_at = time.time()

    async def sync(self) -> None:
        await self._bytes.sync()

    async def record(self, sidecar: Sidecar) -> list[Due]:
        due, self._etag = await self._store.save(
            sidecar,
            self._etag,
            mark=sidecar.next_seq != self.sidecar.next_seq,
            check=self._lease.check,
        )
        self.sidecar = sidecar
        self._bytes.total = sidecar.size
        return due

    async def finish(self, sidecar: Sidecar) -> list[Due]:
        await self._bytes.seal()
        due = await self.record(sidecar)  # from here on the upload is visible
        self.visible = True
        with suppress(S3Failed):  # what stays is swept some day
            await self._store.remove_scaffold(sidecar.upload_id)
        return due

    async def bury(self, tombstone: Sidecar) -> list[Due]:
        due = await self.record(tombstone)
        await self._store.remove_bytes(tombstone.upload_id)
        return due

    async def take(self, staged: ChunkWriter) -> None:
        if not isinstance(staged, S3Chunk):
            raise TypeError(staged)
        async with aclosing(staged.content()) as content:
            async for pieces in content:
                await self.write(pieces)
        with suppress(S3Failed):  # what stays is swept some day
            await staged.discard()

    async def join_chunks(self, chunks: Sequence[Chunk]) -> None:
        keys, upload_id = self._store.keys, self.sidecar.upload_id
        await self._join(
            [
                Source(chunk_key(keys, upload_id, one.index, one.digest), one.size)
                for one in chunks
            ]
        )

    async def join_uploads(self, upload_ids: Sequence[str]) -> None:
        names = list(dict.fromkeys(upload_ids))
        views = await self._store.client.each([partial(self._source, one) for one in names])
        by_id = dict(zip(names, views, strict=True))
        await self._join([by_id[one] for one in upload_ids])

    async def _source(self, upload_id: str) -> Source:
        found = await self._store.read(upload_id)
        if not found.visible:
            raise UploadNotFound(upload_id)
        return Source(self._store.keys.blob(upload_id), found.offset)

    async def share(self, original_id: str) -> None:
        """Copy the bytes, on the server: S3 has no links, so they are stored twice."""
        await self.join_uploads([original_id])

    async def _join(self, sources: Sequence[Source]) -> None:
        store = self._store
        key = store.keys.blob(self.sidecar.upload_id)
        try:
            size = await join(
                store.client, self._lease.check, key, sources, least=store.part_size
            )
        except NoSuchObject as exc:
            raise UploadNotFound(str(exc)) from None
        self._bytes.replaced(size)
        self.modified_at = time.time()

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._bytes.close()
            await self._lease.release()
