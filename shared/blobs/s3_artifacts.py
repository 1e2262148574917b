"""Artifacts on S3: objects below ``<id>.artifacts/`` beside the bytes."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from shared.blobs.artifacts import Artifact, is_artifact_name
from shared.blobs.s3_calls import NoSuchObject, S3Failed
from shared.blobs.s3_chunks import S3Chunk
from shared.blobs.store import UploadNotFound
from shared.sidecar import is_upload_id

if TYPE_CHECKING:
    from shared.blobs.s3 import S3Store

__all__ = ["S3Artifacts"]


class S3Artifacts:
    """Implements ``Artifacts``; see there for the promises."""

    def __init__(self, store: S3Store) -> None:
        self._store: Final = store

    async def put(self, upload_id: str, name: str, content: AsyncIterable[bytes]) -> Artifact:
        if not is_artifact_name(name):
            raise ValueError(f"no name for an artifact: {name!r}")
        await self._check_wanted(upload_id)
        target = f"{self._store.keys.artifacts(upload_id)}{name}"
        staged = S3Chunk(self._store, upload_id, key=target)
        try:
            async for piece in content:
                await staged.write([piece])
            await staged.keep()
        except S3Failed:
            await self._check_wanted(upload_id)  # its end may have removed what was sent
            raise
        finally:
            await staged.discard()
        try:
            # An end of the upload records itself before it removes: so either it finds this
            # one, or this finds its record.
            await self._check_wanted(upload_id)
        except UploadNotFound:
            await self.remove(upload_id)
            raise
        return (await self.open(upload_id, name))[0]

    async def _check_wanted(self, upload_id: str) -> None:
        if not is_upload_id(upload_id):
            raise UploadNotFound(upload_id)
        if (await self._store.load(upload_id)).status != "completed":
            raise UploadNotFound(upload_id)

    async def all(self, upload_id: str) -> list[Artifact]:
        if not is_upload_id(upload_id):
            return []
        prefix = self._store.keys.artifacts(upload_id)
        listed = await self._store.client.list_all(prefix)
        return sorted(
            Artifact(name=name, size=one.size, modified_at=one.modified_at, tag=one.tag)
            for one in listed
            if is_artifact_name(name := one.key.removeprefix(prefix))
        )

    async def open(self, upload_id: str, name: str) -> tuple[Artifact, int | None]:
        if not (is_upload_id(upload_id) and is_artifact_name(name)):
            raise UploadNotFound(upload_id)
        key = f"{self._store.keys.artifacts(upload_id)}{name}"
        try:
            there = await self._store.client.call("head_object", Key=key)
        except NoSuchObject:
            raise UploadNotFound(upload_id) from None
        artifact = Artifact(
            name=name,
            size=int(there["ContentLength"]),
            modified_at=there["LastModified"].timestamp(),
            tag=there["ETag"].strip('"'),
        )
        return artifact, None

    async def read_range(
        self, upload_id: str, artifact: Artifact, start: int, length: int
    ) -> AsyncIterator[bytes]:
        key = f"{self._store.keys.artifacts(upload_id)}{artifact.name}"
        stream = self._store.client.stream(key, start, length, etag=f'"{artifact.tag}"')
        try:
            async with aclosing(stream):
                async for piece in stream:
                    yield piece
        except NoSuchObject:
            raise UploadNotFound(upload_id) from None

    async def remove(self, upload_id: str) -> None:
        if is_upload_id(upload_id):
            listed = await self._store.client.list_all(self._store.keys.artifacts(upload_id))
            await self._store.client.remove([one.key for one in listed])
