"""From the streams to the hub, with what must be known to miss nothing on the way.

The projection that a new watcher's snapshot comes from is written by a consumer group, which
may lag behind what this process has already read and passed on. So lifecycle events are
remembered for a while (``services.gateway.recent``), and a snapshot is what is recorded with
them on top. After a gap, and now and then for uploads that have fallen silent, states are read
again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Sequence
from typing import Final

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis

from services.gateway.canary import Canary
from services.gateway.figures import Ages
from services.gateway.folding import require_writable
from services.gateway.hub import DELIVERED, UNKNOWN_WAIT_S, Hub
from services.gateway.interest import Interest
from services.gateway.log import UploadLog
from services.gateway.positions import Newest
from services.gateway.projection import Projection
from services.gateway.reading import Reading
from services.gateway.recent import Recent
from services.gateway.resume import event_id
from services.gateway.state import ID_FORM, ProgressState
from shared import events
from shared.errors import NotFound
from shared.events import (
    LifecycleEvent,
    MalformedEvent,
    UnknownEvent,
)
from shared.identity import Principal
from shared.stream_order import TailEntry
from shared.stream_tail import newest
from shared.streams import (
    REDIS_FAILURES,
    entry_order,
    event_stream,
    is_event_stream,
    partition_in,
    partition_of,
    read_ids,
)
from shared.times import now_ms

__all__ = ["Relay"]

log = structlog.stdlib.get_logger(__name__)

_REPAIR_EVERY_S: Final = 5.0
_SILENT_MS: Final = 10_000
_NAME_RETRY_S: Final = 0.1
_GRACE_S: Final = 0.2
"""The group may be ahead of the tail; what the tail is about to bring needs no repair."""
_FOLLOWED_MS: Final = 2 * 3_600_000
"""How long after its end an upload is followed; repeated events come sooner than that."""

SEEN = Counter("gateway_events_total", "Events read from the streams.", ["family"])
_EVENTS: Final = SEEN.labels("events")
_POSITIONS: Final = SEEN.labels("progress")
GAPS = Counter("gateway_gaps_total", "Times when events may have been missed.")


class Relay:
    """Feeds a hub.

    Args:
        redis: A client of its own for the tail, made by ``shared.streams.connect``.
        projection: Where states are recorded.
        canary: Shows that what is written is read.
        partitions: ``EVENT_PARTITIONS``.

    """

    def __init__(
        self, redis: Redis, projection: Projection, canary: Canary, *, partitions: int
    ) -> None:
        self._projection: Final = projection
        self._redis: Final = redis
        self._partitions: Final = partitions
        self.canary: Final = canary
        self._interest: Final = Interest(partitions=partitions)
        self.recent: Final = Recent()
        self._numbers: Final[dict[tuple[str, bytes], int]] = {}
        self._gap: Final = asyncio.Event()
        self._passed: Final[dict[int, bytes]] = {}
        """Where the events of this batch stand, by their partitions."""
        self._progress = asyncio.Event()
        self.hub: Final = Hub(self.load, self._interest, self.since)
        self.ages: Final = Ages()
        self._told = 0
        self.reading: Final = Reading(
            redis,
            self._interest,
            on_entries=self._on_entries,
            on_gap=self._gap.set,
            on_join=self._on_join,
            always=[canary.stream],
        )

    def tell(self) -> None:
        """Tell how much was delivered, and how old it was, now that it is written.

        Once a turn, for a metric takes a lock, and there are many sockets.
        """
        self.ages.tell()
        DELIVERED.inc(self.hub.events - self._told)
        self._told = self.hub.events

    async def load(self, upload_id: str) -> ProgressState | None:
        """Return the newest that is known of an upload; what follows is read from then on."""
        await self.reading.of(upload_id)
        return self.recent.newer(upload_id, await self._projection.read(upload_id))

    def recent_of(self, user_id: str, tenant: str) -> Iterable[str]:
        """Return the uploads of a user of which something was heard in the last minutes."""
        return self.recent.of(tenant=tenant, user_id=user_id)

    def is_ahead_of(self, upload_id: str, seq: int) -> bool:
        """Whether something was heard of an upload that comes after ``seq``."""
        return self.recent.is_ahead_of(upload_id, seq)

    async def load_all(self, upload_ids: Iterable[str]) -> dict[str, ProgressState]:
        """Return the newest that is known of uploads; unknown ones are left out."""
        ids = list(upload_ids)
        await self.reading.of(*ids)
        found = await self._projection.read_all(ids)
        newest = {one: self.recent.newer(one, found.get(one)) for one in ids}
        return {one: state for one, state in newest.items() if state is not None}

    async def meant_by(self, caller: Principal, names: Sequence[str]) -> dict[str, str]:
        """Return the uploads that names stand for: ids of uploads or of jobs, or the caller's
        own names for sessions. Any other may be the id of an upload still to come.
        """
        names = [one for one in names if ID_FORM.fullmatch(one)]
        meant = {one: one for one in names if self.hub.state_of(one) is not None}
        meant |= await self._projection.meant_by(caller, [o for o in names if o not in meant])
        for name in names:
            if name not in meant:
                meant[name] = self.recent.of_job(name) or name
        return meant

    async def logs_of(self, upload_ids: Iterable[str]) -> dict[str, UploadLog]:
        """Return what is recorded of the events of uploads."""
        return await self._projection.log_of(upload_ids)

    @property
    def partitions(self) -> range:
        """All there are."""
        return range(self._partitions)

    def partition_of(self, upload_id: str) -> int:
        """Return the partition whose streams tell of an upload."""
        return partition_of(upload_id, self._partitions)

    def since(self, upload_id: str) -> str:
        """Return the id to go on from for who has the present state of an upload."""
        partition = self.partition_of(upload_id)
        place = self._passed.get(partition) or self.read_to(partition)
        return event_id(place, partition)

    def read_to(self, partition: int) -> bytes:
        """Return the entry up to which all events of a partition have been passed on."""
        return self.reading.tail.position(event_stream(partition))

    async def read_all(self, partitions: Iterable[int], *, limit_s: float) -> None:
        """Return when all is read that is on the streams of the events now, or after a while.

        Raises:
            RedisError, OSError: Redis is away (``REDIS_FAILURES``).

        """
        streams = {event_stream(one): one for one in partitions}
        if not streams:
            return
        goals = await newest(self._redis, list(streams))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                for stream, goal in goals.items():
                    while entry_order(self.read_to(streams[stream])) < entry_order(goal):
                        await self._progress.wait()

    async def upload_of(self, session_id: str, caller: Principal) -> str:
        """Return the upload that a session id stands for: its own, or the caller's name for it.

        A name that is not known yet is waited for, as ids are. Without Redis only what is
        watched here is known.

        Raises:
            NotFound: There is neither an upload of this id nor a session of this name, or it
                was dismissed.

        """
        upload_id = await self._meant(session_id, caller)
        if self.hub.has_ended(upload_id):
            # What is watched is kept in memory, and a dismissal is told to no gateway.
            with contextlib.suppress(*REDIS_FAILURES):
                recorded = await self._projection.read(upload_id)
                if recorded is not None and recorded.status == "deleted":
                    raise NotFound("There is no such upload.")
        return upload_id

    async def _meant(self, session_id: str, caller: Principal) -> str:
        if self.hub.state_of(session_id) is not None:
            return session_id
        deadline = asyncio.get_running_loop().time() + UNKNOWN_WAIT_S
        while ID_FORM.fullmatch(session_id):
            # Clients name their sessions by UUIDs too: what looks like an id may be a name.
            named, is_recorded = await self._projection.meaning_of(caller, session_id)
            if named is not None:
                return named
            if is_recorded or await self.load(session_id) is not None:
                return session_id
            if asyncio.get_running_loop().time() >= deadline:
                break
            await asyncio.sleep(_NAME_RETRY_S)
        raise NotFound("There is no such upload.")

    async def upload_of_job(self, job_id: str) -> str:
        """Return the upload that a job processes, waiting for one that is just being made.

        Raises:
            NotFound: Nobody knows the job.

        """
        deadline = asyncio.get_running_loop().time() + UNKNOWN_WAIT_S
        while ID_FORM.fullmatch(job_id):
            found = self.recent.of_job(job_id) or await self._projection.upload_of_job(job_id)
            if found is not None:
                return found
            if asyncio.get_running_loop().time() >= deadline:
                break
            await asyncio.sleep(_NAME_RETRY_S)
        raise NotFound("There is no such job.")

    async def sessions_of(self, caller: Principal) -> list[ProgressState]:
        """Return the caller's sessions, newest first, as of the moment of returning."""
        await self.reading.of_all()
        recorded = await self._projection.sessions_of(caller.user_id, self._under_way)
        own = {
            one.session_id: self._under_way(one.session_id) or one
            for one in recorded
            if one.tenant == caller.tenant
        }
        recent = self.recent_of(caller.user_id, caller.tenant)
        own |= await self._projection.read_all([one for one in recent if one not in own])
        for upload_id in self.recent_of(caller.user_id, caller.tenant):
            newer = self.recent.newer(upload_id, own.get(upload_id))
            if newer is not None:
                own[upload_id] = newer
        alive = [one for one in own.values() if one.status != "deleted"]
        return sorted(alive, key=lambda one: one.started_at, reverse=True)

    def _under_way(self, upload_id: str) -> ProgressState | None:
        """Return the state of an upload that somebody watches here, unless it is over: that it
        was dismissed would only be recorded.
        """
        state = self.hub.state_of(upload_id)
        return state if state is not None and not state.is_over else None

    def _on_join(self, streams: Collection[str]) -> None:
        """Forget the numbers of producers: they went on while nobody read them."""
        for source in [one for one in self._numbers if one[0] in streams]:
            del self._numbers[source]

    def _on_entries(self, entries: list[TailEntry]) -> bool:
        """Deliver what was read; return whether anybody here watches any of it."""
        positions, so_far = Newest(), self.hub.delivered
        for entry in entries:
            try:
                if is_event_stream(entry.stream):
                    event = events.decode(entry.fields.get(b"d", b""))
                    self._on_event(entry.stream, entry.id, event)
                elif entry.stream == self.canary.stream:
                    self.canary.hear(entry)
                else:
                    self._on_positions(entry.stream, entry.fields, positions)
            except UnknownEvent as exc:
                log.debug("event_skipped", entry=entry.id, tag=str(exc))
            except MalformedEvent as exc:  # the group parks it
                log.error("event_malformed", entry=entry.id, error=str(exc))
            except Exception:  # one entry must not end the reading of all
                log.exception("event_not_delivered", stream=entry.stream, entry=entry.id)
        try:
            for position in positions.events():
                before = self.hub.delivered
                self.hub.advance(position)
                if self.hub.delivered > before:
                    self.ages.note("progress", position.at)
        except Exception:
            log.exception("positions_not_delivered")
        self._passed.clear()
        self._progress.set()
        self._progress = asyncio.Event()
        return self.hub.delivered > so_far

    def _on_event(self, stream: str, entry_id: bytes, event: LifecycleEvent) -> None:
        """Deliver an event; they come in the order of ``(entry_id, stream)``."""
        require_writable(event)
        _EVENTS.inc()
        partition = partition_in(stream)
        self._passed[partition] = entry_id
        self.recent.remember(event, entry_id, partition)
        before = self.hub.delivered
        self.hub.publish(event, event_id(entry_id, partition))
        if self.hub.delivered > before:
            self.ages.note("events", event.at)

    def _on_positions(
        self,
        stream: str,
        fields: dict[bytes, bytes],
        positions: Newest,
    ) -> None:
        """Note the newest position of each watched upload: one delivery a batch is enough."""
        entry = read_ids(fields)
        _POSITIONS.inc(len(entry.ids) + len(entry.job_ids))
        source = (stream, entry.producer)
        expected = self._numbers.get(source)
        if expected is not None and entry.number > expected:
            self._gap.set()
        self._numbers[source] = entry.number + 1
        if self._interest.is_in(entry.ids) or self._interest.is_in(entry.job_ids):
            positions.add(entry, self._interest.ids)  # most are not decoded

    async def repair(self) -> None:
        """Read states again after a gap, and of silent uploads; forever."""
        while True:
            try:
                async with asyncio.timeout(_REPAIR_EVERY_S):
                    await self._gap.wait()
                GAPS.inc()
                before = None
            except TimeoutError:
                before = now_ms() - _SILENT_MS
            gap = self._gap.is_set()
            self._gap.clear()
            try:
                recorded = await self._projection.read_all(self.hub.unfinished(before=before))
                if gap:
                    await self._look_for_new_uploads()
            except REDIS_FAILURES as exc:
                log.debug("repair_failed", error=repr(exc))
                if gap:
                    self._gap.set()
                await asyncio.sleep(0.5)
                continue
            await asyncio.sleep(_GRACE_S)
            for state in recorded.values():
                self.hub.correct(state)
            self.hub.let_go(before=now_ms() - _FOLLOWED_MS)

    async def _look_for_new_uploads(self) -> None:
        """Let followers have what was created while nothing was heard."""
        for watcher in self.hub.followers:
            states = await self.sessions_of(watcher.caller)
            if self.hub.follows(watcher):
                self.hub.follow(watcher, states)
