"""The progress that clients read, kept in Redis for all gateways: one hash an upload.

Fed by the consumer group ``progress``: each event is folded by one gateway. The events of a
batch are folded per upload before anything is written, and the write is conditional, so that a
projection never goes backwards, whatever the members of the group do at the same time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from services.gateway.folding import fold, move, require_writable
from services.gateway.keys import Keys
from services.gateway.record import from_fields, to_fields
from services.gateway.sessions_index import SessionsIndex
from services.gateway.state import ProgressState
from shared import events
from shared.events import LifecycleEvent, UploadProgress
from shared.identity import Principal
from shared.stream_group import GroupEntry
from shared.streams import Command, command, flat_dict, pipelined, read_ids, unpack_positions

__all__ = ["Projection"]

_SCRIPT: Final = Path(__file__).with_name("projection.lua").read_text()
_SHA: Final = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()
_DELETED_TTL_S: Final = 60
"""How long a deleted upload is remembered, so that a late event cannot bring it back."""
_READ_BATCH: Final = 200
_GIVEN_UP: Final = (events.UploadCancelled, events.UploadExpired, events.FileDeleted)


class Projection:
    """Reads and writes the projections.

    Args:
        redis: Client made by ``shared.streams.connect``.
        prefix: ``PROGRESS_PREFIX``.
        ttl_s: ``PROGRESS_TTL_SECONDS``; counted anew with each event.

    """

    def __init__(self, redis: Redis, *, prefix: str, ttl_s: int) -> None:
        self._redis: Final = redis
        keys = Keys(prefix)
        self._key: Final = keys.upload
        self._user_key: Final = keys.user
        self._name_key: Final = keys.name
        self._index: Final = SessionsIndex(redis, keys, ttl_s=ttl_s)
        self._ttl_s: Final = ttl_s

    async def named(self, caller: Principal, name: str) -> str | None:
        """Return the upload that the caller's own name for a session stands for."""
        key = self._name_key(caller.tenant, caller.user_id, name)
        found: bytes | None = await command(self._redis, "GETEX", key, "EX", self._ttl_s)
        return found.decode() if found is not None else None

    async def read(self, upload_id: str) -> ProgressState | None:
        """Return what is recorded of an upload, a deletion too."""
        return (await self.read_all([upload_id])).get(upload_id)

    async def read_all(self, upload_ids: Iterable[str]) -> dict[str, ProgressState]:
        """Return what is recorded of several uploads; unknown ones are left out."""
        ids, found = list(upload_ids), {}
        for start in range(0, len(ids), _READ_BATCH):
            batch = ids[start : start + _READ_BATCH]
            replies = await pipelined(
                self._redis, [("HGETALL", self._key(one)) for one in batch]
            )
            for one, reply in zip(batch, replies, strict=True):
                state = from_fields(_as_dict(reply))
                if state is not None:
                    found[one] = state
        return found

    async def sessions_of(self, user_id: str) -> list[ProgressState]:
        """Return the recorded sessions of a user, newest first; forget those that are gone."""
        key = self._user_key(user_id)
        members: Any = (await pipelined(self._redis, [("SMEMBERS", key)]))[0]
        ids = [one.decode(errors="replace") for one in members]
        found = await self.read_all(ids)
        gone = [one for one in ids if one not in found]
        if gone:  # or the set of somebody who is never idle would grow forever
            await pipelined(self._redis, [("SREM", key, *gone)])
        alive = [one for one in found.values() if one.status != "deleted"]
        return sorted(alive, key=lambda one: one.started_at, reverse=True)

    async def handle(self, batch: Sequence[GroupEntry]) -> None:
        """Fold a batch of entries of both families; idempotent.

        Raises:
            MalformedEvent, UnknownEvent: An entry is not as the contract says.

        """
        lifecycle, positions = _by_upload(batch)
        ids = lifecycle.keys() | positions.keys()
        known = await self.read_all(ids)
        commands: list[Command] = []
        noted: list[ProgressState] = []
        for upload_id in ids:
            before = known.get(upload_id)
            late, state = _fold_all(before, lifecycle.get(upload_id, ()))
            moved = _moved(state or before, positions.get(upload_id))
            if late is not None:
                commands.append(self._write("lifecycle", late))
            if state is not None:
                commands += self._record(moved or state)
                commands += self._named_by(lifecycle[upload_id][-1])
                noted.append(state)
            elif moved is not None:
                commands.append(self._write("position", moved))
                noted.append(moved)
        users = {one.user_id for one in noted}
        commands += [("EXPIRE", self._user_key(one), self._ttl_s) for one in users]
        commands += self._index.noting(noted)
        await self._run(commands)

    def _record(self, state: ProgressState) -> list[Command]:
        change = "SREM" if state.status == "deleted" else "SADD"
        return [
            self._write("lifecycle", state),
            (change, self._user_key(state.user_id), state.session_id),
        ]

    def _named_by(self, event: LifecycleEvent) -> list[Command]:
        """Note the client's own name; one that is given up may have been given again."""
        facts = event.upload
        if not facts.session_id or isinstance(event, _GIVEN_UP):
            return []
        key = self._name_key(facts.tenant, facts.user_id, facts.session_id)
        return [("SET", key, event.upload_id, "EX", self._ttl_s)]

    def _write(self, kind: str, state: ProgressState) -> Command:
        ttl_s = _DELETED_TTL_S if state.status == "deleted" else self._ttl_s
        fields = [part for pair in to_fields(state).items() for part in pair]
        version = (kind, state.seq, state.bytes_uploaded, ttl_s)
        return ("EVALSHA", _SHA, 1, self._key(state.session_id), *version, *fields)

    async def _run(self, commands: Sequence[Command]) -> None:
        if not commands:
            return
        try:
            await pipelined(self._redis, commands)
        except NoScriptError:  # a Redis that has not seen it, or has forgotten it
            await self._redis.script_load(_SCRIPT)
            await pipelined(self._redis, commands)


def _as_dict(reply: Any) -> Mapping[bytes, bytes]:
    return reply if isinstance(reply, dict) else flat_dict(reply)


def _by_upload(
    batch: Sequence[GroupEntry],
) -> tuple[dict[str, list[LifecycleEvent]], dict[str, UploadProgress]]:
    """Return the lifecycle events and the furthest position of each upload."""
    lifecycle: dict[str, list[LifecycleEvent]] = {}
    positions: dict[str, UploadProgress] = {}
    for entry in batch:
        if entry.stream.startswith("events:"):
            event = events.decode(entry.fields.get(b"d", b""))
            require_writable(event)
            lifecycle.setdefault(event.upload_id, []).append(event)
            continue
        for position in unpack_positions(read_ids(entry.fields)):
            best = positions.get(position.upload_id)
            if best is None or (position.offset, position.at) >= (best.offset, best.at):
                positions[position.upload_id] = position
    return lifecycle, positions


def _fold_all(
    state: ProgressState | None, lifecycle: Iterable[LifecycleEvent]
) -> tuple[ProgressState | None, ProgressState | None]:
    """Return what the events that are not newer tell by themselves, and the newest state.

    Each is ``None`` if there is no such event. Another member of the group may have been
    faster with what came later; the script takes from the first what only it tells.
    """
    late = newest = None
    for event in sorted(lifecycle, key=lambda one: one.seq):
        folded = fold(newest or state, event)
        if folded is not None:
            newest = folded
        elif newest is None:
            late = fold(late, event) or late
    return late, newest


def _moved(
    state: ProgressState | None, position: UploadProgress | None
) -> ProgressState | None:
    return move(state, position) if state is not None and position is not None else None
