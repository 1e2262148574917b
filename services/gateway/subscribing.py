"""Lets a socket watch many uploads in one step, with what its client has missed of them.

What was missed of all of them goes out in the order in which it was told, and the socket joins
in the same turn of the loop: so the last event that a client has says, for all that it watches,
what it has not got, and nothing falls between what is told again and what comes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final, NamedTuple

from services.gateway.dialects.protocol import Told
from services.gateway.folding import change_of
from services.gateway.hub import DELIVERED, UNKNOWN_WAIT_S
from services.gateway.log import Logged, UploadLog
from services.gateway.relay import Relay
from services.gateway.resume import (
    ALL,
    EventId,
    Place,
    Since,
    event_id,
    in_order,
    is_of_lost_history,
    missed,
    place_of,
)
from services.gateway.state import ProgressState
from services.gateway.topic import Watcher
from shared.errors import ApiError, Forbidden, NotFound
from shared.identity import Principal
from shared.streams import entry_order
from shared.times import now_ms

__all__ = ["Outcome", "Subscribing", "require_any"]

_MOST_AT_ONCE: Final = 128 * 1024
"""Bytes that are told again before the client must have read them."""
_MOST_KEPT: Final = 2_000
"""Events that wait to be told again."""
_MOST_ROUNDS: Final = 4
"""Of so many events. Who is behind by more gets the states."""
_MOST_RESUMED: Final = 1_000
"""Uploads whose logs are read, the newest of who follows; of others the state is sent."""
_CATCH_UP_S: Final = 2.0
_RETRY_S: Final = 0.1
_NOTHING: Final = UploadLog()

Outcome = Mapping[str, str | ApiError]
"""By a client's names: the id of the upload that is watched now, or why it is not."""
States = dict[str, ProgressState]
Wanted = Callable[[], Mapping[str, ProgressState | None]]
"""Returns what is asked for at this moment, each with the state that was read of it."""


class _Entry(NamedTuple):
    """An upload that is about to be watched."""

    state: ProgressState
    """As those have it who watch it here."""
    resumes: bool
    missed: list[Logged] | None
    """``None``: nothing can be told again, so its state is sent."""


class Subscribing:
    """The subscriptions of one socket.

    Args:
        relay: Delivers events.
        watcher: The socket; its dialect is resumable.

    """

    def __init__(self, relay: Relay, watcher: Watcher) -> None:
        self._relay: Final = relay
        self._watcher: Final = watcher

    async def follow(self, since: EventId | None) -> list[str] | None:
        """Watch all that is the caller's, now and to come; return the ids of what there is.

        ``None`` if the socket has changed its mind, or has gone, meanwhile.
        """
        relay, watcher = self._relay, self._watcher
        watcher.asked.add(ALL)
        try:
            states = {one.session_id: one for one in await relay.sessions_of(watcher.caller)}
            if since is not None:
                states |= await relay.load_all(self._heard_of())
            given: dict[str, EventId | None] = dict.fromkeys(states, since)

            def wanted() -> Mapping[str, ProgressState | None]:
                if ALL not in watcher.asked:
                    return {}
                new = [one for one in self._heard_of() if one not in states]
                given.update(dict.fromkeys(new, since))
                return {**states, **dict.fromkeys(new)}

            await self._enter(states, given, wanted, relay.partitions)
            if ALL not in watcher.asked:
                return None
            relay.hub.follow(watcher, ())
        finally:
            watcher.asked.discard(ALL)
        return sorted(topic.upload_id for topic in watcher.topics)

    async def watch(self, last: Since, answer: Callable[[Outcome], None]) -> None:
        """Watch uploads, in one step all that are known; wait a while for the others.

        Args:
            last: The last event that the client has of each, by the names that it has for
                them: ids of uploads or of jobs, or its own names for sessions.
            answer: Told what came of it, once or more often.

        """
        asked = self._watcher.asked
        asked.update(last)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + UNKNOWN_WAIT_S
        try:
            while left := {name: one for name, one in last.items() if name in asked}:
                outcome = await self._watch_known(left)
                if loop.time() >= deadline:
                    outcome |= dict.fromkeys(left.keys() - outcome.keys(), _unknown())
                asked.difference_update(outcome)
                answer(outcome)
                if left.keys() <= outcome.keys():
                    return
                await asyncio.sleep(_RETRY_S)
        finally:
            asked.difference_update(last)

    async def _watch_known(self, last: Since) -> dict[str, str | ApiError]:
        """Return what came of it for all but those that nobody knows."""
        watcher = self._watcher
        meant = await self._relay.meant_by(watcher.caller, list(last))
        states = await self._relay.load_all(set(meant.values()))
        outcome: dict[str, str | ApiError] = {
            name: _unknown() for name in last if name not in meant
        }
        since: dict[str, EventId | None] = {}
        for name, upload_id in meant.items():
            if (state := states.get(upload_id)) is not None:
                refusal = self._refusal(state, last[name])
                outcome[name] = refusal or upload_id
                if refusal is None:
                    since[upload_id] = last[name]

        def wanted() -> Mapping[str, ProgressState | None]:
            left = (one for name, one in meant.items() if name in watcher.asked)
            return {one: states[one] for one in left if one in since}

        partitions = {self._relay.partition_of(one) for one in since}
        found = {one: states[one] for one in since}
        await self._enter(found, since, wanted, partitions)
        return {name: one for name, one in outcome.items() if name in watcher.asked}

    def _refusal(self, state: ProgressState, since: EventId | None) -> ApiError | None:
        if not self._watcher.may_watch(state):
            return Forbidden("Access denied to this upload")
        if state.status == "deleted" and since is None:
            return _unknown()
        return None

    async def _enter(
        self, states: States, since: Since, wanted: Wanted, partitions: Collection[int]
    ) -> None:
        """Tell what was missed and join, without a pause between the two."""
        has: dict[str, Place] = {}
        for _ in range(_MOST_ROUNDS):
            entries = await self._looked_up(states, since, wanted, partitions, has)
            behind = in_order(event for one in entries for event in one.missed or ())
            pending = deque(behind[:_MOST_KEPT])
            known = {one.state.session_id: one.state for one in entries}
            if self._tell(pending, known, has) and len(behind) <= _MOST_KEPT:
                self._join(entries)
                return
            await self._watcher.outbound.drained()
            while not self._tell(pending, known, has):
                await self._watcher.outbound.drained()
            states |= await self._relay.load_all(states)
        entries = await self._looked_up(states, since, wanted, partitions, has)
        self._join([one._replace(missed=None) if one.missed else one for one in entries])

    async def _looked_up(
        self,
        states: States,
        since: Since,
        wanted: Wanted,
        partitions: Collection[int],
        has: Mapping[str, Place],
    ) -> list[_Entry]:
        """Return what is to be watched, as of the moment of returning."""
        relay = self._relay
        # Each upload's state before its log: what is in the one is then in the other.
        resuming = [one for one in states if since.get(one) is not None][:_MOST_RESUMED]
        logs = await relay.logs_of(resuming)
        # Who has seen an event elsewhere must not get it here once more; and what is told of
        # one partition must not be ahead of what is still to be told of another.
        await relay.read_all(partitions, limit_s=_CATCH_UP_S)
        return self._entries(logs, wanted(), since, has)

    def _entries(
        self,
        logs: Mapping[str, UploadLog],
        recorded: Mapping[str, ProgressState | None],
        since: Since,
        has: Mapping[str, Place],
    ) -> list[_Entry]:
        watched = {topic.upload_id for topic in self._watcher.topics}
        return [
            self._entry(state, logs.get(one, _NOTHING), since.get(one), has.get(one))
            for one, known in recorded.items()
            if one not in watched and (state := self._now(one, known)) is not None
        ]

    def _entry(
        self,
        state: ProgressState,
        recorded: UploadLog,
        since: EventId | None,
        has: Place | None,
    ) -> _Entry:
        if since is None:
            return _Entry(state, resumes=False, missed=None)
        partition = self._relay.partition_of(state.session_id)
        read_to = entry_order(self._relay.read_to(partition))
        if is_of_lost_history(since, partition, read_to=read_to, now=now_ms()):
            return _Entry(state, resumes=True, missed=None)
        after = has or since.place_on(partition)
        recent = self._relay.recent.logged(state.session_id)
        found = missed(recorded, recent, state, after=after, read_to=read_to)
        return _Entry(state, resumes=True, missed=found)

    def _tell(
        self, pending: deque[Logged], states: Mapping[str, ProgressState], has: dict[str, Place]
    ) -> bool:
        """Send some of what was missed; return whether that was all. ``has`` follows."""
        outbound, dialect = self._watcher.outbound, self._watcher.dialect
        left = _MOST_AT_ONCE
        while pending and left > 0:
            one = pending.popleft()
            told = Told(one.event, event_id(one.entry_id, one.partition))
            payload = dialect.encode(change_of(one.event), states[one.event.upload_id], told)
            if payload is not None:
                framed = dialect.framed(payload)
                left -= len(framed)
                outbound.put(framed)
                DELIVERED.inc()
            has[one.event.upload_id] = place_of(one)
        return not pending

    def _join(self, entries: list[_Entry]) -> None:
        for state, resumes, told in entries:
            gap = resumes and told is None
            if state.status != "deleted":
                self._relay.hub.join(self._watcher, state, show=told is None, gap=gap)
            elif gap:
                self._relay.hub.show(self._watcher, state, gap=True)

    def _now(self, upload_id: str, recorded: ProgressState | None) -> ProgressState | None:
        """Return the newest state of an upload, as of this turn."""
        known = self._relay.hub.state_of(upload_id)
        return known or self._relay.recent.newer(upload_id, recorded)

    def _heard_of(self) -> Iterator[str]:
        caller = self._watcher.caller
        yield from self._relay.recent.of(tenant=caller.tenant, user_id=caller.user_id)


async def require_any(relay: Relay, caller: Principal, last: Since) -> None:
    """Return when there is anything that the caller may watch of what is asked for.

    Args:
        relay: Knows the uploads.
        caller: Who asks.
        last: What is asked for, as for ``Subscribing.watch``.

    Raises:
        NotFound: Nobody knows any of it, even after a wait.
        Forbidden: It is all somebody else's.

    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + UNKNOWN_WAIT_S
    while True:
        meant = await relay.meant_by(caller, list(last))
        found = (await relay.load_all(set(meant.values()))).values()
        if any(caller.owns(user_id=one.user_id, tenant=one.tenant) for one in found):
            return
        if found:
            raise Forbidden("Access denied to this upload")
        if loop.time() >= deadline:
            raise _unknown()
        await asyncio.sleep(_RETRY_S)


def _unknown() -> NotFound:
    return NotFound("There is no such upload.")
