"""Takes the reports of workers and puts them on the streams on their behalf.

While Redis is away nothing is accepted, and the worker repeats. A lifecycle event is accepted
only once it is on the stream; when it was written but the answer was lost, its repeat is known,
or written again and dropped by every reader. Progress is folded, and sent once an interval.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final
from weakref import WeakValueDictionary

from prometheus_client import Counter
from redis.asyncio import Redis

from services.gateway.errors import SequenceGap
from services.gateway.hub import UNKNOWN_WAIT_S
from services.gateway.job_reports import (
    JobReport,
    Plan,
    Reported,
    event_of,
    planned,
    position_of,
)
from services.gateway.projection import Projection
from services.gateway.relay import Relay
from services.gateway.state import ProgressState
from shared.errors import NotFound, Unavailable
from shared.events import JobEvent, LifecycleEvent
from shared.publisher import Publisher
from shared.streams import REDIS_FAILURES, command, event_entry, partition_of
from shared.times import now_ms

__all__ = ["Reporting"]

REPORTS = Counter(
    "gateway_job_reports_total", "Reports of workers, by what they were.", ["kind"]
)
_GAP_RETRY_S: Final = (0.01, 0.02, 0.05, 0.1)


class Reporting:
    """The way from reports to the streams.

    Args:
        redis: Client made by ``shared.streams.connect``.
        relay: Knows the uploads and how far their jobs are.
        projection: Has what the events of an upload say of it.
        publisher: Sends progress.
        partitions: ``EVENT_PARTITIONS``.

    """

    def __init__(
        self,
        redis: Redis,
        relay: Relay,
        projection: Projection,
        publisher: Publisher,
        *,
        partitions: int,
    ) -> None:
        self._redis: Final = redis
        self._relay: Final = relay
        self._projection: Final = projection
        self._publisher: Final = publisher
        self._partitions: Final = partitions
        self._turns: Final[WeakValueDictionary[str, asyncio.Lock]] = WeakValueDictionary()

    async def take(self, job_id: str, reports: Sequence[JobReport]) -> Reported:
        """Write the news among the reports of a job; return once they are on the streams.

        A report that overtakes another one, on the way here or through another gateway, waits
        for it up to two seconds.

        Raises:
            NotFound: Nobody knows the job.
            SequenceGap, JobEnded: As for ``planned``; nothing was written.
            Unavailable: Redis is away or refuses. What was written is known at the repeat.

        """
        try:
            upload_id = await self._relay.upload_of_job(job_id)
            plan = await self._write_in_turn(upload_id, job_id, reports)
        except REDIS_FAILURES as exc:
            raise Unavailable("The report cannot be kept right now. Repeat it.") from exc
        REPORTS.labels("accepted").inc(plan.accepted)
        REPORTS.labels("known").inc(plan.known)
        return Reported(
            job_id=job_id,
            upload_id=upload_id,
            accepted=plan.accepted,
            known=plan.known,
            seq=plan.seq,
        )

    async def _write_in_turn(
        self, upload_id: str, job_id: str, reports: Sequence[JobReport]
    ) -> Plan:
        deadline = asyncio.get_running_loop().time() + UNKNOWN_WAIT_S
        turn = self._turns.setdefault(job_id, asyncio.Lock())
        tries = 0
        while True:
            try:
                async with turn:
                    return await self._write(upload_id, job_id, reports)
            except SequenceGap:
                if asyncio.get_running_loop().time() >= deadline:
                    raise
            await asyncio.sleep(_GAP_RETRY_S[min(tries, len(_GAP_RETRY_S) - 1)])
            tries += 1

    async def _write(self, upload_id: str, job_id: str, reports: Sequence[JobReport]) -> Plan:
        state = await self._relay.load(upload_id)
        if state is None or state.status == "deleted":
            raise NotFound("There is no such job.")
        plan = planned(state.job_seq, reports, is_over=state.job_is_over)
        if plan.lifecycle:
            await self._write_events(await self._events(state, plan))
        if plan.position is not None:
            # By one clock, and not before what is known: a worker's own may go wrong.
            at = max(now_ms(), state.job_updated or 0)
            position = position_of(plan.position, upload_id=upload_id, job_id=job_id, at=at)
            self._publisher.progress(position)
        return plan

    async def _events(self, state: ProgressState, plan: Plan) -> list[LifecycleEvent]:
        """Return the events with the facts of their upload: readers need nothing else."""
        upload_id = state.session_id
        told = self._relay.recent.logged(upload_id)
        if all(isinstance(one.event, JobEvent) for one in told):
            recorded = (await self._projection.log_of([upload_id]))[upload_id]
            told = [*recorded.entries, *told]
        if not told:
            raise NotFound("There is no such job.")
        # What the upload's own events say, or else what another worker was told of it.
        newest = min((one.event for one in told), key=_preference)
        now = now_ms()
        return [
            event_of(
                one, upload_id=upload_id, facts=newest.upload, offset=newest.offset, now=now
            )
            for one in plan.lifecycle
        ]

    async def _write_events(self, events: Sequence[LifecycleEvent]) -> None:
        """Write one after another: none may get past one that was refused."""
        for event in events:
            entry = event_entry(event, self._partitions)
            entry_id: bytes = await command(self._redis, *entry)
            # The group takes a moment to record it, and the next report may come before.
            partition = partition_of(event.upload_id, self._partitions)
            self._relay.recent.remember(event, entry_id, partition)


def _preference(event: LifecycleEvent) -> tuple[bool, int]:
    return isinstance(event, JobEvent), -event.seq
