"""The progress that clients read, kept in Redis for all gateways: one hash an upload.

Fed by the consumer group ``progress``: each event is folded by one gateway. The events of a
batch are folded per upload before anything is written, and the write is conditional, so that a
projection never goes backwards, whatever the members of the group do at the same time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis

from services.gateway.folding import counter_of, fold, require_writable
from services.gateway.keys import Keys
from services.gateway.log import LOG_LIMIT, Logged, UploadLog, counter_name, log_from
from services.gateway.position_writer import PositionWriter
from services.gateway.positions import Newest
from services.gateway.record import JOB_FIELDS, from_fields, to_fields
from services.gateway.round_trips import RoundTrips
from services.gateway.sessions_index import NOTING, SessionsIndex
from services.gateway.state import ProgressState
from shared import events
from shared.events import JobEvent, LifecycleEvent
from shared.identity import Principal
from shared.redis_script import RedisScript, run_mixed
from shared.stream_group import GroupEntry
from shared.streams import (
    Command,
    flat_dict,
    is_event_stream,
    partition_in,
    pipelined,
    read_ids,
)

__all__ = ["Projection"]


_STATE: Final = RedisScript(Path(__file__).with_name("projection.lua"))
_LOG: Final = RedisScript(Path(__file__).with_name("log.lua"))
_DELETED_TTL_S: Final = 60
"""How long a deleted upload is remembered, so that a late event cannot bring it back."""
_READ_BATCH: Final = 200
_POSITIONS_A_TURN: Final = 5_000
"""Decoded before others have their turn: some milliseconds."""
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
        self._positions: Final = PositionWriter(redis, keys, ttl_s=ttl_s)
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

    async def sessions_of(
        self, user_id: str, known: Callable[[str], ProgressState | None] = lambda _: None
    ) -> list[ProgressState]:
        """Return the recorded sessions of a user, newest first.

        Those that ``known`` has the state of are not read. Those without a record are not
        forgotten here: on a cluster it may be written later than the set. Cleaning up forgets
        them, once they have been silent for as long as a record is kept.
        """
        (members,) = await self._reads.ask(("SMEMBERS", self._user_key(user_id)))
        found: list[ProgressState] = []
        unknown: list[str] = []
        for member in members:
            session_id = member.decode(errors="replace")
            if (state := known(session_id)) is not None:
                found.append(state)
            else:
                unknown.append(session_id)
        found += (await self.read_all(unknown)).values()
        alive = [one for one in found if one.status != "deleted"]
        return sorted(alive, key=lambda one: one.started_at, reverse=True)

    async def handle(self, batch: Sequence[GroupEntry]) -> None:
        """Fold a batch of entries of both families; idempotent.

        Raises:
            MalformedEvent, UnknownEvent: An entry is not as the contract says.

        """
        told = _by_upload(one for one in batch if is_event_stream(one.stream))
        positions = [one for one in batch if not is_event_stream(one.stream)]
        newest = await _newest(positions)
        await self._record_all(told)
        # The other part of the group is under way beside this one, and must not count rounds.
        if positions or not batch:
            await self._keep(await self._positions.write(newest))

    async def _record_all(self, told: Mapping[str, Sequence[Logged]]) -> None:
        """Fold the lifecycle events of several uploads into what is recorded of them."""
        known = await self.read_all(told)
        commands: list[Command] = []
        noted: list[ProgressState] = []
        for upload_id, logged in told.items():
            folded = _folded(known.get(upload_id), logged)
            commands.append(self._log(upload_id, folded.after, logged))
            commands += self._writes(folded)
            commands += self._names(logged[-1].event)
            if folded.after is not None:
                noted.append(folded.after)
        await self._run([*commands, *self._noting(noted)])

    async def _keep(self, upload_ids: Iterable[str]) -> None:
        """Count anew how long records are kept that positions have been written into."""
        states = [one for one in (await self.read_all(upload_ids)).values() if _is_kept(one)]
        commands = [part for one in states for part in self._refreshes(one)]
        await self._run([*commands, *self._noting(states)])

    def _noting(self, states: Sequence[ProgressState]) -> list[Command]:
        users = {one.user_id for one in states}
        expiries: list[Command] = [
            ("EXPIRE", self._user_key(one), self._ttl_s) for one in users
        ]
        return expiries + self._index.noting(states)

    def _writes(self, folded: _Folded) -> list[Command]:
        """Return what brings a projection up to date: at most one write for each half."""
        before, after, commands = folded.before, folded.after, []
        if folded.late is not None:
            commands.append(self._write_upload(folded.late))
        if after is None:
            return commands
        if before is None or after.seq > before.seq:
            commands += self._record(after)
        job_seq, result = (before.job_seq, before.result) if before is not None else (0, None)
        if after.job_seq > job_seq or after.result != result:
            heard = before.job_updated if before is not None else None
            commands.append(self._write_job(after, heard or 0))
        return commands

    def _record(self, state: ProgressState) -> list[Command]:
        change = "SREM" if state.status == "deleted" else "SADD"
        return [
            self._write_upload(state),
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

    def _refreshes(self, state: ProgressState) -> list[Command]:
        """Keep a projection, and for as long what stands beside it."""
        keys = [self._key(state.session_id), self._log_key(state.session_id)]
        keys += [self._job_key(state.job_id)] if state.job_id else []
        return [("EXPIRE", key, self._ttl_s) for key in keys]

    def _lifetime(self, state: ProgressState | None) -> int:
        deleted = state is not None and state.status == "deleted"
        return _DELETED_TTL_S if deleted else self._ttl_s

    def _write_upload(self, state: ProgressState) -> Command:
        return self._write(("upload", state.seq, state.bytes_uploaded, 0), state)

    def _write_job(self, state: ProgressState, heard: int) -> Command:
        """Return what writes the job's half; ``heard``: of it, when it was read, ms."""
        return self._write(("job", state.job_seq, state.job_updated or 0, heard), state)

    def _write(self, version: tuple[str, int, int, int], state: ProgressState) -> Command:
        of_job = version[0] == "job"
        fields = [
            part
            for name, text in to_fields(state).items()
            if (name in JOB_FIELDS) == of_job
            for part in (name, text)
        ]
        key = self._key(state.session_id)
        return _STATE.call([key], *version, self._lifetime(state), *fields)

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
        return _LOG.call([self._log_key(upload_id)], *head, *values)

    async def _run(self, commands: Sequence[Command]) -> None:
        await run_mixed(self._redis, commands, _STATE, _LOG, NOTING)


def _as_dict(reply: Any) -> Mapping[bytes, bytes]:
    return reply if isinstance(reply, dict) else flat_dict(reply)


def _by_upload(entries: Iterable[GroupEntry]) -> dict[str, list[Logged]]:
    """Return the lifecycle events of each upload, those of its job last."""
    told: dict[str, list[Logged]] = {}
    for entry in entries:
        event = events.decode(entry.fields.get(b"d", b""))
        require_writable(event)
        logged = Logged(entry.id, partition_in(entry.stream), event)
        told.setdefault(event.upload_id, []).append(logged)
    for one in told.values():
        one.sort(key=lambda logged: counter_of(logged.event))
    return told


async def _newest(entries: Iterable[GroupEntry]) -> Newest:
    """Return the newest positions; others have their turn of the loop in between."""
    newest, seen = Newest(), 0
    for entry in entries:
        positions = read_ids(entry.fields)
        newest.add(positions)
        seen += len(positions.ids) + len(positions.job_ids)
        if seen > _POSITIONS_A_TURN:
            seen = 0
            await asyncio.sleep(0)
    return newest


class _Folded(NamedTuple):
    """A state before and after a batch."""

    before: ProgressState | None
    after: ProgressState | None
    late: ProgressState | None
    """What events tell by themselves that are not newer; ``None`` if there are none."""


def _folded(before: ProgressState | None, told: Sequence[Logged]) -> _Folded:
    of_upload = [one.event for one in told if not isinstance(one.event, JobEvent)]
    late, after = _fold_all(before, of_upload)
    after = after or before
    for one in told:
        if isinstance(one.event, JobEvent):
            after = fold(after, one.event) or after
    return _Folded(before, after, late)


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


def _is_kept(state: ProgressState) -> bool:
    return state.status != "deleted"
