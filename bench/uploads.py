"""Uploads that the gateway knows, and callers who own them, without anything being uploaded.

They are announced as ingest would: by events on the streams. Each user has a token of his own,
so that a run needs no exception from limits that hold per user.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import jwt
from redis.asyncio import Redis

from bench.processes import PARTITIONS
from shared import events
from shared.events import JobStarted, LifecycleEvent, UploadCreated, UploadFacts
from shared.streams import Command, event_stream, partition_of, pipelined

__all__ = [
    "AUTH",
    "SIZE",
    "Upload",
    "announce",
    "created",
    "entry",
    "new_uploads",
    "opening",
    "started",
]

SIZE: Final = 10 << 30
"""Declared length of each upload, in bytes; nothing of it is ever sent."""

_SECRET: Final = "the benchmarks' own secret, known to all who read it"
_TENANT: Final = "bench"
AUTH: Final[Mapping[str, str]] = {"AUTH_MODE": "required", "AUTH_JWT_SECRET": _SECRET}
"""Settings under which a service believes the tokens."""

_BATCH: Final = 500
_KNOWN_WITHIN_S: Final = 60.0


class Upload(NamedTuple):
    """An upload and its owner."""

    upload_id: str
    user_id: str
    job_id: str = ""


def new_uploads(count: int, *, users: int = 1) -> list[Upload]:
    """Return new uploads, dealt out to so many users."""
    return [
        Upload(str(uuid.uuid4()), f"user-{n % users}", str(uuid.uuid4())) for n in range(count)
    ]


def opening(path: str, user_id: str) -> str:
    """Return how a user opens a socket: the target and the header with his token."""
    claims = {"sub": user_id, "tenant": _TENANT, "exp": int(time.time()) + 3600}
    return f"{path}\tAuthorization: Bearer {jwt.encode(claims, _SECRET, 'HS256')}"


def created(upload: Upload) -> UploadCreated:
    """Return the event with which an upload begins."""
    at = int(time.time() * 1000)
    return UploadCreated(upload_id=upload.upload_id, seq=1, at=at, upload=_facts(upload, at))


def started(upload: Upload, seq: int) -> JobStarted:
    """Return the event that a worker has begun to process it, for the ``seq``-th time."""
    at, job_id = int(time.time() * 1000), upload.job_id
    facts = _facts(upload, at)
    return JobStarted(upload_id=upload.upload_id, seq=seq, at=at, upload=facts, job_id=job_id)


def _facts(upload: Upload, at: int) -> UploadFacts:
    return UploadFacts(
        user_id=upload.user_id,
        tenant=_TENANT,
        created_at=at,
        job_id=upload.job_id,
        size=SIZE,
        filename="bench.bin",
    )


def entry(event: LifecycleEvent) -> Command:
    """Return the command that writes a lifecycle event, as the publisher does."""
    stream = event_stream(partition_of(event.upload_id, PARTITIONS))
    return ("XADD", stream, "*", "i", event.upload_id, "d", events.encode(event))


async def announce(redis: Redis, uploads: Sequence[Upload]) -> None:
    """Write the uploads' first events; return once a gateway has recorded all of them.

    Raises:
        SystemExit: It did not within a minute.

    """
    for start in range(0, len(uploads), _BATCH):
        batch = uploads[start : start + _BATCH]
        await pipelined(redis, [entry(created(one)) for one in batch])
    deadline = time.monotonic() + _KNOWN_WITHIN_S
    keys = [f"upload_progress:{one.upload_id}" for one in uploads]
    while await _known(redis, keys) < len(keys):
        if time.monotonic() > deadline:
            raise SystemExit("the gateway has not recorded the uploads")
        await asyncio.sleep(0.1)


async def _known(redis: Redis, keys: Sequence[str]) -> int:
    batches = [keys[start : start + _BATCH] for start in range(0, len(keys), _BATCH)]
    return sum(await pipelined(redis, [("EXISTS", *batch) for batch in batches]))
