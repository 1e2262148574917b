"""The progress that clients read, kept in Redis for all gateways: one hash an upload.

Fed by the consumer group ``progress``: each event is folded by one gateway. The events of a
batch are folded per upload before anything is written, and the write is conditional, so that a
projection never goes backwards, whatever the members of the group do at the same time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from services.gateway.folding import counter_of, fold, move, require_writable
from services.gateway.keys import Keys
from services.gateway.log import LOG_LIMIT, Logged, UploadLog, counter_name, log_from
from services.gateway.record import JOB_FIELDS, from_fields, to_fields
from services.gateway.round_trips import RoundTrips
from services.gateway.sessions_index import SessionsIndex
from services.gateway.state import ProgressState
from shared import events
from shared.events import JobEvent, JobProgress, LifecycleEvent, UploadProgress
from shared.identity import Principal
from shared.stream_group import GroupEntry
from shared.streams import (
    Command,
    flat_dict,
    partition_in,
    pipelined,
    read_ids,
    unpack_job_positions,
    unpack_positions,
)

__all__ = ["Projection"]


class _Script(NamedTuple):
    text: str
    sha: str


def _script(name: str) -> _Script:
    text = Path(__file__).with_name(name).read_text()
    return _Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


_STATE: Final = _script("projection.lua")
_LOG: Final = _script("log.lua")
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
        self._reads: Final = RoundTrips(redis)
        keys = Keys(prefix)
        self._key: Final = keys.upload
        self._user_key: Final = keys.user
        self._name_key: Final = keys.name
        self._job_key: Final = keys.job
        self._log_key: Final = keys.log
        self._index: Final = SessionsIndex(redis, keys, ttl_s=ttl_s)
        self._ttl_s: Final = ttl_s

    async def upload_of_job(self, job_id: str) -> str | None:
        """Return the upload that a job processes."""
        (found,) = await self._reads.ask(("GET", self._job_key(job_id)))
        return found.decode() if isinstance(found, bytes) else None

    async def log_of(self, upload_ids: Iterable[str]) -> dict[str, UploadLog]:
        """Return the recorded events of several uploads; of an unknown one, an empty log."""
        ids = list(upload_ids)
        found = {}
        for start in range(0, len(ids), _READ_BATCH):
            batch = ids[start : start + _READ_BATCH]
            logs = (("HGETALL", self._log_key(one)) for one in batch)
            replies = await self._reads.ask(*logs)
            for one, reply in zip(batch, replies, strict=True):
                found[one] = log_from(_as_dict(reply))
        return found

    async def meaning_of(self, caller: Principal, name: str) -> tuple[str | None, bool]:
        """Return the upload of the caller's session of this name, and if one has this id."""
        key = self._name_key(caller.tenant, caller.user_id, name)
        named, recorded = await self._reads.ask(
            ("GETEX", key, "EX", self._ttl_s), ("EXISTS", self._key(name))
        )
        return named.decode() if isinstance(named, bytes) else None, bool(recorded)

    async def meant_by(self, caller: Principal, names: Sequence[str]) -> dict[str, str]:
        """Return the uploads that names stand for: the caller's own, or ids of jobs."""
        commands: list[Command] = []
        for name in names:
            key = self._name_key(caller.tenant, caller.user_id, name)
            commands.append(("GETEX", key, "EX", self._ttl_s))
            commands.append(("GET", self._job_key(name)))
        replies = await pipelined(self._redis, commands)
        found = zip(names, replies[::2], replies[1::2], strict=True)
        meant = {name: named or of_job for name, named, of_job in found}
        return {name: one.decode() for name, one in meant.items() if one is not None}

    async def read(self, upload_id: str) -> ProgressState | None:
        """Return what is recorded of an upload, a deletion too."""
        return (await self.read_all([upload_id])).get(upload_id)

    async def read_all(self, upload_ids: Iterable[str]) -> dict[str, ProgressState]:
        """Return what is recorded of several uploads; unknown ones are left out."""
        ids, found = list(upload_ids), {}
        for start in range(0, len(ids), _READ_BATCH):
            batch = ids[start : start + _READ_BATCH]
            replies = await self._reads.ask(*(("HGETALL", self._key(one)) for one in batch))
            for one, reply in zip(batch, replies, strict=True):
                state = from_fields(_as_dict(reply))
                if state is not None:
                    found[one] = state
        return found

    async def sessions_of(self, user_id: str) -> list[ProgressState]:
        """Return the recorded sessions of a user, newest first; forget those that are gone."""
        key = self._user_key(user_id)
        (members,) = await self._reads.ask(("SMEMBERS", key))
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
        told = _by_upload(batch)
        known = await self.read_all(told)
        commands: list[Command] = []
        noted: list[ProgressState] = []
        for upload_id, of_upload in told.items():
            folded = _folded(known.get(upload_id), of_upload)
            writes = self._writes(folded)
            if of_upload.logged:
                commands.append(self._log(upload_id, folded.after, of_upload.logged))
                writes += self._names(of_upload.logged[-1].event)
            elif writes:
                writes += self._refreshes(folded.after)
            commands += writes
            if writes and folded.after is not None:
                noted.append(folded.after)
        users = {one.user_id for one in noted}
        commands += [("EXPIRE", self._user_key(one), self._ttl_s) for one in users]
        commands += self._index.noting(noted)
        await self._run(commands)

    def _writes(self, folded: _Folded) -> list[Command]:
        """Return what brings a projection up to date: at most one write for each half."""
        before, after, commands = folded.before, folded.after, []
        if folded.late is not None:
            commands.append(self._write_upload("upload", folded.late))
        if after is None:
            return commands
        if before is None or after.seq > before.seq:
            commands += self._record(after)
        elif folded.moved:
            commands.append(self._write_upload("position", after))
        job_seq, result = (before.job_seq, before.result) if before is not None else (0, None)
        if after.job_seq > job_seq or after.result != result:
            commands.append(self._write_job("job", after, folded.job_moved_at))
        elif before is not None and after.job_version != before.job_version:
            commands.append(self._write_job("job_position", after, folded.job_moved_at))
        return commands

    def _record(self, state: ProgressState) -> list[Command]:
        change = "SREM" if state.status == "deleted" else "SADD"
        return [
            self._write_upload("upload", state),
            (change, self._user_key(state.user_id), state.session_id),
        ]

    def _names(self, event: LifecycleEvent) -> list[Command]:
        """Note what else the upload goes by: its job, and the client's own name for it."""
        facts = event.upload
        names: list[Command] = [
            ("SET", self._job_key(facts.job_id), event.upload_id, "EX", self._ttl_s)
        ]
        # A name that is given up may have been given again.
        if facts.session_id and not isinstance(event, _GIVEN_UP):
            key = self._name_key(facts.tenant, facts.user_id, facts.session_id)
            names.append(("SET", key, event.upload_id, "EX", self._ttl_s))
        return names

    def _refreshes(self, state: ProgressState | None) -> list[Command]:
        """Keep for as long as the projection what stands beside it."""
        if state is None or state.status == "deleted":
            return []
        keys = [self._log_key(state.session_id)]
        keys += [self._job_key(state.job_id)] if state.job_id else []
        return [("EXPIRE", key, self._ttl_s) for key in keys]

    def _lifetime(self, state: ProgressState | None) -> int:
        deleted = state is not None and state.status == "deleted"
        return _DELETED_TTL_S if deleted else self._ttl_s

    def _write_upload(self, kind: str, state: ProgressState) -> Command:
        version = (kind, state.seq, state.bytes_uploaded, state.bytes_uploaded)
        return self._write(version, state, of_job=False)

    def _write_job(self, kind: str, state: ProgressState, moved_at: int) -> Command:
        version = (kind, state.job_seq, state.job_updated or 0, moved_at)
        return self._write(version, state, of_job=True)

    def _write(
        self, version: tuple[str, int, int, int], state: ProgressState, *, of_job: bool
    ) -> Command:
        fields = [
            part
            for name, text in to_fields(state).items()
            if (name in JOB_FIELDS) == of_job
            for part in (name, text)
        ]
        key = self._key(state.session_id)
        return ("EVALSHA", _STATE.sha, 1, key, *version, self._lifetime(state), *fields)

    def _log(
        self, upload_id: str, state: ProgressState | None, logged: Sequence[Logged]
    ) -> Command:
        """Return the command that logs events; those that are known stay where they are."""
        values = [
            part
            for one in logged
            for part in (
                counter_name(one.event),
                b"%b %d %b" % (one.entry_id, one.partition, events.encode(one.event)),
            )
        ]
        head = (self._lifetime(state), LOG_LIMIT)
        return ("EVALSHA", _LOG.sha, 1, self._log_key(upload_id), *head, *values)

    async def _run(self, commands: Sequence[Command]) -> None:
        if not commands:
            return
        try:
            await pipelined(self._redis, commands)
        except NoScriptError:  # a Redis that has not seen them, or has forgotten them
            for one in (_STATE, _LOG):
                await self._redis.script_load(one.text)
            await pipelined(self._redis, commands)


def _as_dict(reply: Any) -> Mapping[bytes, bytes]:
    return reply if isinstance(reply, dict) else flat_dict(reply)


def _by_upload(batch: Sequence[GroupEntry]) -> dict[str, _Told]:
    """Return what a batch tells of each upload."""
    told: dict[str, _Told] = {}
    for entry in batch:
        if entry.stream.startswith("events:"):
            event = events.decode(entry.fields.get(b"d", b""))
            require_writable(event)
            logged = Logged(entry.id, partition_in(entry.stream), event)
            told.setdefault(event.upload_id, _Told()).logged.append(logged)
            continue
        packed = read_ids(entry.fields)
        for position in unpack_positions(packed):
            told.setdefault(position.upload_id, _Told()).offer(position)
        for of_job in unpack_job_positions(packed):
            told.setdefault(of_job.upload_id, _Told()).offer_of_job(of_job)
    for one in told.values():
        one.logged.sort(key=lambda logged: counter_of(logged.event))
    return told


class _Told:
    """What a batch tells of one upload: its lifecycle events, and the furthest positions."""

    def __init__(self) -> None:
        self.logged: Final[list[Logged]] = []
        self.position: UploadProgress | None = None
        self.job_position: JobProgress | None = None

    def offer(self, one: UploadProgress) -> None:
        best = self.position
        if best is None or (one.offset, one.at) >= (best.offset, best.at):
            self.position = one

    def offer_of_job(self, one: JobProgress) -> None:
        best = self.job_position
        order = (one.seq, one.at, one.progress)
        if best is None or order >= (best.seq, best.at, best.progress):
            self.job_position = one


class _Folded(NamedTuple):
    """A state before and after a batch."""

    before: ProgressState | None
    after: ProgressState | None
    late: ProgressState | None
    """What events tell by themselves that are not newer; ``None`` if there are none."""
    moved: bool
    """Whether a position has changed the upload's half."""
    job_moved_at: int
    """When the position of the job was made that is in it, ms; 0 before the first."""


def _folded(before: ProgressState | None, told: _Told) -> _Folded:
    of_upload = [one.event for one in told.logged if not isinstance(one.event, JobEvent)]
    late, after = _fold_all(before, of_upload)
    after = after or before
    for one in told.logged:
        if isinstance(one.event, JobEvent):
            after = fold(after, one.event) or after
    moved = _moved(after, told.position)
    after = moved or after
    job_moved = _moved(after, told.job_position)
    moved_at = before.job_updated or 0 if before is not None else 0
    if job_moved is not None and told.job_position is not None:
        moved_at = max(moved_at, told.job_position.at)
    return _Folded(before, job_moved or after, late, moved is not None, moved_at)


def _fold_all(
    state: ProgressState | None, lifecycle: Iterable[LifecycleEvent]
) -> tuple[ProgressState | None, ProgressState | None]:
    """Return what the events that are not newer tell by themselves, and the newest state.

    Each is ``None`` if there is no such event. Another member of the group may have been
    faster with what came later; the script takes from the first what only it tells.
    """
    late = newest = None
    for event in lifecycle:
        folded = fold(newest or state, event)
        if folded is not None:
            newest = folded
        elif newest is None:
            late = fold(late, event) or late
    return late, newest


def _moved(
    state: ProgressState | None, position: UploadProgress | JobProgress | None
) -> ProgressState | None:
    return move(state, position) if state is not None and position is not None else None
