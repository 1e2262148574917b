"""Session records in Redis, ``upload:{id}``, for those who read them there (seed document 001).

Beside the record of a session that gets chunks, ``upload:{id}:chunks`` tells of each of them
(seed document 002).

Copies, not the truth: written behind the answers, newest wins, and rebuilt from the sidecars
when Redis has lost its memory. While Redis is away nothing waits for them. Several processes
may write one record, so each write says what it is newer than (``records.lua``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import structlog
from redis.asyncio import Redis

from shared import events
from shared.blobs.store import Chunk
from shared.percent import percent_of
from shared.redis_script import RedisScript, run_mixed
from shared.sidecar import Sidecar
from shared.stream_group import GroupEntry
from shared.streams import REDIS_FAILURES, Command, pipelined
from shared.times import now_ms, rfc3339

__all__ = ["GROUP", "SessionRecords", "chunk_records", "record_of"]

log = structlog.stdlib.get_logger(__name__)

GROUP: Final = "ingest"
_TICK_S: Final = 0.5
_PENDING_LIMIT: Final = 50_000
_BATCH: Final = 500

_GONE_TTL_S: Final = 60
"""How long the record of an upload that is gone stays: until nobody tells old news of it."""

_SCRIPT: Final = RedisScript(Path(__file__).with_name("records.lua"))

_encoder: Final = msgspec.json.Encoder()


class _Pending(NamedTuple):
    sidecar: Sidecar
    offset: int
    at: int
    chunks: Sequence[Chunk] = ()


def record_of(
    sidecar: Sidecar, offset: int, at: int, chunks: Sequence[Chunk] = ()
) -> dict[str, str]:
    """Return the fields of a record. Times are RFC 3339, UTC; sizes are bytes."""
    facts, completed_at = sidecar.facts, sidecar.completed_at
    status = "created" if sidecar.status == "quarantined" else sidecar.status
    return {
        "seq": str(sidecar.outbox[-1].seq),
        "status": "uploading" if status == "created" and offset else status,
        "progress": str(percent_of(offset, facts.size, complete=status == "completed")),
        "offset": str(offset),
        "size": "" if facts.size is None else str(facts.size),
        "created_at": rfc3339(facts.created_at),
        "updated_at": rfc3339(max(at, facts.created_at)),
        "completed_at": "" if completed_at is None else rfc3339(completed_at),
        "user_id": facts.user_id,
        "tenant": facts.tenant,
        "username": sidecar.username,
        "filename": facts.filename,
        "content_type": facts.content_type,
        "file_hash": facts.file_hash or sidecar.expected.get("sha256", ""),
        "upload_options": _encoder.encode(facts.options or facts.metadata).decode(),
        "priority": str(facts.priority),
        **_of_form(sidecar, offset, chunks),
    }


def _of_form(sidecar: Sidecar, offset: int, chunks: Sequence[Chunk]) -> dict[str, str]:
    total = sidecar.form.total_chunks if sidecar.form is not None else 0
    if not total:
        return {}
    fields = {"total_chunks": str(total)}
    if sidecar.status in {"completed", "quarantined"}:
        fields["chunks_received"] = str(total)
    elif chunks or not offset:  # else it is not known here, and an earlier record says it
        fields["chunks_received"] = str(len(chunks))
    if chunks:
        fields["chunk_size"] = str(max(one.size for one in chunks))
    return fields


def chunk_records(chunks: Sequence[Chunk]) -> dict[str, str]:
    """Return the record of each chunk (JSON) by its index.

    A chunk is listed once it was hashed and is durable, so it is verified when it is received.
    """
    records = {}
    for one in chunks:
        at = rfc3339(int(one.received_at * 1000))
        record = {"index": one.index, "size": one.size, "hash": one.digest, "received": True}
        record |= {"verified": True, "received_at": at, "verified_at": at}
        records[str(one.index)] = _encoder.encode(record).decode()
    return records


class SessionRecords:
    """Writes the records behind the requests.

    Args:
        redis: Client made by ``shared.streams.connect``.
        ttl_s: How long a record outlives its last change.

    """

    def __init__(self, redis: Redis, *, ttl_s: float) -> None:
        self._redis: Final = redis
        self._ttl_s: Final = int(ttl_s)
        self._pending: Final[dict[str, _Pending]] = {}

    def note(self, sidecar: Sidecar, offset: int, chunks: Sequence[Chunk] = ()) -> None:
        """Have a record written soon; returns at once."""
        if len(self._pending) < _PENDING_LIMIT or sidecar.upload_id in self._pending:
            if not chunks and (waiting := self._pending.get(sidecar.upload_id)):
                chunks = waiting.chunks
            self._pending[sidecar.upload_id] = _Pending(sidecar, offset, now_ms(), chunks)

    async def run(self) -> None:
        """Write what is pending, now and then, forever."""
        while True:
            await asyncio.sleep(_TICK_S)
            await self.write()

    async def write(self) -> None:
        """Write what is pending, as far as Redis takes it."""
        while self._pending:
            batch = [self._pending[one] for one in list(self._pending)[:_BATCH]]
            try:
                commands = [each for one in batch for each in self._writes(one)]
                await run_mixed(self._redis, commands, _SCRIPT)
            except REDIS_FAILURES as exc:
                log.debug("records_not_written", count=len(batch), error=repr(exc))
                return
            for one in batch:
                if self._pending.get(one.sidecar.upload_id) is one:
                    del self._pending[one.sidecar.upload_id]

    def _writes(self, pending: _Pending) -> list[Command]:
        sidecar = pending.sidecar
        fields = [part for pair in record_of(*pending).items() for part in pair]
        ttl_s = _GONE_TTL_S if sidecar.is_gone else self._ttl_s
        version = (sidecar.outbox[-1].seq, pending.offset, ttl_s)
        commands: list[Command] = [
            _SCRIPT.call([f"upload:{sidecar.upload_id}"], *version, *fields)
        ]
        chunks_key = _chunks_key(sidecar.upload_id)
        if pending.chunks and not sidecar.is_gone:
            flat = [part for pair in chunk_records(pending.chunks).items() for part in pair]
            commands += [("HSET", chunks_key, *flat), ("EXPIRE", chunks_key, ttl_s)]
        elif sidecar.is_gone and sidecar.form is not None:
            commands.append(("DEL", chunks_key))
        return commands

    async def handle(self, batch: Sequence[GroupEntry]) -> None:
        """Drop the records of files that storage has deleted.

        Raises:
            MalformedEvent, UnknownEvent: An entry is not as the contract says.

        """
        gone = []
        for entry in batch:
            event = events.decode(entry.fields.get(b"d", b""))
            if isinstance(event, events.FileDeleted):
                self._pending.pop(event.upload_id, None)
                gone.append(event.upload_id)
        if gone:
            keys = [key for one in gone for key in (f"upload:{one}", _chunks_key(one))]
            await pipelined(self._redis, [("DEL", key) for key in keys])


def _chunks_key(upload_id: str) -> str:
    return f"upload:{upload_id}:chunks"
