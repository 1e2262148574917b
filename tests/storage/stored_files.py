"""Uploads in a data folder as ingest leaves them there, and what a delete leaves of them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import jwt
import redis
from msgspec.structs import replace

from shared import events
from shared.blobs.store import BlobStore
from shared.events import (
    FileDeleted,
    FileStored,
    LifecycleEvent,
    UploadCompleted,
    UploadCreated,
)
from shared.sidecar import Sidecar, encode, new_id
from shared.streams import event_stream, partition_of
from shared.times import now_ms

__all__ = [
    "SECRET",
    "lifecycle",
    "put_artifact",
    "put_copy",
    "put_file",
    "token_of",
    "tombstone_of",
    "traces",
]

SECRET: Final = "0123456789abcdef0123456789abcdef"
"""Signs the tokens of these tests."""


def token_of(user_id: str, tenant: str = "acme", scope: str = "") -> dict[str, str]:
    """Return the header of a caller."""
    claims = {"sub": user_id, "tenant": tenant, "scope": scope, "exp": time.time() + 3600}
    return {"Authorization": f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"}


async def put_file(
    store: BlobStore,
    content: bytes,
    *,
    complete: bool = True,
    announced: bool = True,
    user_id: str = "local",
    tenant: str = "local",
    filename: str = "report.pdf",
    content_type: str = "application/pdf",
    concat: str = "",
) -> str:
    """Keep an upload with these bytes; return its id.

    Args:
        store: Where.
        content: Its bytes.
        complete: Whether it is a file; else its last byte is missing.
        announced: Whether its events count as published.
        user_id: Whose it is.
        tenant: Whose it is.
        filename: As declared.
        content_type: As declared.
        concat: ``Upload-Concat`` of the upload.

    """
    upload_id, now = new_id(), now_ms()
    facts = events.UploadFacts(
        user_id=user_id,
        tenant=tenant,
        created_at=now,
        job_id=new_id(),
        size=len(content) if complete else len(content) + 1,
        filename=filename,
        content_type=content_type,
    )
    created = UploadCreated(upload_id=upload_id, seq=1, at=now, upload=facts)
    due = await store.create(
        Sidecar(
            upload_id=upload_id,
            status="created",
            facts=facts,
            concat=concat,
            outbox=(created,),
        )
    )
    writer = await store.acquire(upload_id)
    try:
        await writer.write([content])
        await writer.sync()
        if complete:
            event = UploadCompleted(
                upload_id=upload_id, seq=2, at=now, upload=facts, offset=len(content)
            )
            due = await writer.finish(
                writer.sidecar.after("completed", event, completed_at=now)
            )
        if complete and concat != "partial":  # as storage leaves it there
            stored = FileStored(
                upload_id=upload_id, seq=3, at=now, upload=facts, offset=len(content)
            )
            due = await writer.record(writer.sidecar.after("completed", stored))
    finally:
        await writer.close()
    for one in due if announced else ():
        await store.mark_published(one, last=False)
    return upload_id


async def put_artifact(store: BlobStore, file_id: str, content: bytes = b"small") -> None:
    """Keep a thumbnail of a file, as a worker does."""

    async def pieces() -> AsyncIterator[bytes]:
        yield content

    await store.artifacts.put(file_id, "thumb.jpg", pieces())


async def put_copy(store: BlobStore, original_id: str, *, user_id: str = "local") -> str:
    """Keep a file that has the bytes of another one; return its id. Nothing is announced."""
    original, upload_id, now = await store.load(original_id), new_id(), now_ms()
    facts = replace(original.facts, user_id=user_id)
    created = UploadCreated(upload_id=upload_id, seq=1, at=now, upload=facts)
    event = UploadCompleted(
        upload_id=upload_id, seq=2, at=now, upload=facts, offset=facts.size or 0
    )
    sidecar = Sidecar(upload_id=upload_id, status="created", facts=facts, outbox=(created,))
    done = sidecar.after("completed", event, completed_at=now, original_id=original_id)
    for one in await store.create_shared(done, original_id):
        await store.mark_published(one, last=False)
    return upload_id


def tombstone_of(sidecar: Sidecar) -> bytes:
    """Return the content of the record that a delete leaves."""
    event = FileDeleted(
        upload_id=sidecar.upload_id, seq=sidecar.next_seq, at=now_ms(), upload=sidecar.facts
    )
    return encode(sidecar.after("deleted", event))


def traces(data_dir: Path, upload_id: str) -> list[str]:
    """Return the files that name an upload, below the folder of the blobs, in no order."""
    found = (data_dir / "blobs").rglob(f"{upload_id}*")
    return [str(one.relative_to(data_dir / "blobs")) for one in found]


def lifecycle(redis_url: str, upload_id: str, partitions: int = 16) -> list[LifecycleEvent]:
    """Return the lifecycle events of an upload that are on its stream, oldest first."""
    client: Any = redis.Redis.from_url(redis_url)
    try:
        entries = client.xrange(event_stream(partition_of(upload_id, partitions)))
    finally:
        client.close()
    wanted = upload_id.encode()
    return [events.decode(fields[b"d"]) for _, fields in entries if fields[b"i"] == wanted]
