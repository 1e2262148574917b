"""Fan-out in memory: who watches which upload, and in what order they learn of it. No I/O.

A topic is one upload that somebody here watches. It holds the newest state; events fold into it
once, are encoded once per dialect, and go to all its sockets. A new watcher gets the topic's
state first, in the same step in which it joins: so it misses nothing and gets nothing twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import Counter, Gauge

from services.gateway.dialects.protocol import Told
from services.gateway.folding import (
    change_of,
    change_of_position,
    counter_of,
    fold,
    merged,
    move,
)
from services.gateway.interest import Interest
from services.gateway.state import ID_FORM, Change, ProgressState
from services.gateway.topic import Topic, Watcher, message
from shared.errors import Forbidden, NotFound
from shared.events import JobProgress, LifecycleEvent, UploadProgress

__all__ = ["UNKNOWN_WAIT_S", "Hub", "Watcher"]

UNKNOWN_WAIT_S: Final = 2.0
"""An id may be asked for before its ``created`` event has come through."""
_UNKNOWN_RETRY_S: Final = 0.2

DELIVERED = Counter("gateway_events_delivered_total", "Events handed to sockets.")
WATCHED = Gauge("gateway_topics", "Uploads that are watched here.")

Load = Callable[[str], Awaitable[ProgressState | None]]
Since = Callable[[str], str]


class Hub:
    """The topics of one process.

    Args:
        load: Returns the state of an upload as it is recorded, or ``None``. What it raises
            reaches those who subscribe.
        interest: Is told what is watched here.
        since: Returns the id to go on from for who has the present state of an upload.

    """

    def __init__(
        self,
        load: Load,
        interest: Interest | None = None,
        since: Since = lambda _: "",
    ) -> None:
        self._load: Final = load
        self._since: Final = since
        self._interest: Final = interest or Interest()
        self._topics: Final[dict[str, Topic]] = {}
        self._followers: Final[dict[tuple[str, str], dict[Watcher, None]]] = {}
        self.delivered = self.events = 0
        """Messages handed to sockets so far; those of them that told of an event."""

    @property
    def watched(self) -> Collection[str]:
        """The uploads that somebody watches."""
        return self._topics.keys()

    def has_ended(self, upload_id: str) -> bool:
        """Whether somebody watches the upload, and it is over."""
        topic = self._topics.get(upload_id)
        return topic is not None and topic.state is not None and topic.state.is_over

    @property
    def followers(self) -> list[Watcher]:
        """The sockets that follow all uploads of their callers."""
        return [one for group in self._followers.values() for one in group]

    def publish(self, event: LifecycleEvent, event_id: str = "") -> None:
        """Deliver a lifecycle event to all who watch its upload or follow its owner.

        ``event_id`` says where it stands in the log.
        """
        topic = self._topics.get(event.upload_id)
        followers = self._followers.get((event.upload.tenant, event.upload.user_id))
        if topic is None and not followers:
            return
        topic = topic or self._topic(event.upload_id)
        is_first = topic.state is None and counter_of(event) == (False, 1)
        if topic.state is None:
            topic.keep(event)
            state = topic.learn(None) if followers else None
        else:
            state = fold(topic.state, event)
        if state is not None:
            before = topic.state
            topic.become(state)
            for watcher in tuple(followers or ()):
                if watcher.dialect.resumable:  # it gets the event itself, besides the state
                    self._admit(watcher, topic, show=not is_first, now=True)
            self._deliver(topic, change_of(event), state, Told(event, event_id), before)
        for watcher in tuple(followers or ()):
            self._admit(watcher, topic, now=True)
        self._drop_if_unwatched(topic)

    def advance(self, position: UploadProgress | JobProgress) -> None:
        """Deliver a position to all who watch the upload."""
        if (topic := self._topics.get(position.upload_id)) is None:
            return
        if topic.state is None:
            topic.keep(position)
            return
        before = topic.state
        state = move(before, position)
        if state is not None:
            topic.become(state)
            change = change_of_position(position, before, state)
            self._deliver(topic, change, state, Told(position), before)

    def correct(self, recorded: ProgressState) -> None:
        """Bring a topic up to a recorded state that is ahead of it: events were missed."""
        topic = self._topics.get(recorded.session_id)
        if topic is None or topic.state is None or not recorded.is_ahead_of(topic.state):
            return
        before, state = topic.state, merged(topic.state, recorded)
        topic.become(state)
        self._deliver(topic, Change.SNAPSHOT, state, None, before)

    def _deliver(
        self,
        topic: Topic,
        change: Change,
        state: ProgressState,
        told: Told | None,
        before: ProgressState | None,
    ) -> None:
        for dialect, watchers in tuple(topic.watchers.items()):
            if told is not None:
                payload = dialect.encode(change, state, told)
            else:  # events were missed
                since = self._since(topic.upload_id)
                payload = dialect.caught_up(before or state, state, since)
            if payload is None:
                continue
            framed = dialect.framed(payload)
            self.delivered += len(watchers)
            self.events += len(watchers)
            key = topic.job if change.of_job else topic.upload
            if change.is_replaced:
                for watcher in watchers:
                    watcher.outbound.put_latest(key, framed, topic)
            else:
                # Who can go on from a gap needs no state from before it.
                is_gap = told is None and dialect.resumable
                if before is not None and not is_gap:
                    topic.settle(dialect, before, told.id if told is not None else "")
                for watcher in tuple(watchers):  # who is too slow is dropped at once
                    if not (is_gap and watcher.outbound.owes_gap(topic)):
                        watcher.outbound.put(framed, supersedes=key)

    async def subscribe(self, watcher: Watcher, upload_id: str) -> bool:
        """Let a socket watch an upload; its current state is the first thing it gets.

        Returns False if the socket has changed its mind, or has gone, meanwhile.

        Raises:
            NotFound: Nobody knows the upload, even after a wait for its first event.
            Forbidden: It belongs to somebody else.

        """
        with self._awaited(upload_id) as topic:
            watcher.asked.add(upload_id)
            try:
                state = await self._state_of(topic)
                if not watcher.may_watch(state):
                    raise Forbidden("Access denied to this upload")
                if upload_id in watcher.asked:
                    watcher.declined.discard(upload_id)
                    self._admit(watcher, topic)
                return topic in watcher.topics
            finally:
                watcher.asked.discard(upload_id)

    def _admit(self, watcher: Watcher, topic: Topic, *, show: bool = True, **how: bool) -> None:
        """Join and send the state, as ``Topic.show`` does: no event falls between."""
        state = topic.state
        unwanted = topic in watcher.topics or topic.upload_id in watcher.declined
        if unwanted or watcher.gone or state is None:
            return
        topic.join(watcher)
        self.delivered += 1
        if show:
            topic.show(watcher, **how)

    def show(self, watcher: Watcher, state: ProgressState, *, gap: bool = False) -> None:
        """Send a socket a state; ``gap``: because it has missed events."""
        topic, since = self._topics.get(state.session_id), self._since(state.session_id)
        of_topic = message if topic is None else topic.message
        framed = of_topic(watcher.dialect, state, since, gap=gap)
        if framed is not None:
            watcher.outbound.put(framed)

    def state_of(self, upload_id: str) -> ProgressState | None:
        """Return the state as those have it who watch the upload here, if anybody does."""
        topic = self._topics.get(upload_id)
        return topic.state if topic is not None else None

    def join(
        self, watcher: Watcher, state: ProgressState, *, show: bool, gap: bool = False
    ) -> None:
        """Let a socket watch an upload whose state is at hand, as of this turn of the loop.

        Args:
            watcher: It may watch the upload; that is not asked here.
            state: Of the upload.
            show: Whether the state is sent, as the first thing; else it is known there.
            gap: Whether that is because events were missed.

        """
        if watcher.gone:  # nobody would ever drop the topic
            return
        topic = self._topic(state.session_id)
        if topic.state is None:
            topic.learn(state)
        watcher.declined.discard(state.session_id)
        self._admit(watcher, topic, show=show, gap=gap)

    async def _state_of(self, topic: Topic) -> ProgressState:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + UNKNOWN_WAIT_S
        while True:
            if topic.state is None:
                recorded = await self._load(topic.upload_id)
                if topic.state is None:
                    topic.learn(recorded)
            if topic.state is not None:
                return _alive(topic.state)
            left = deadline - loop.time()
            if left <= 0:
                raise _unknown()
            await topic.known(min(left, _UNKNOWN_RETRY_S))

    async def find(self, upload_id: str) -> ProgressState:
        """Return the state of an upload, waiting for one that is just being made.

        Raises:
            NotFound: As for ``subscribe``.

        """
        with self._awaited(upload_id) as topic:
            recorded = None
            if not topic.watchers:  # nobody has kept it current
                recorded = await self._load(upload_id)
                if topic.state is None:
                    topic.learn(recorded)
            state = await self._state_of(topic)
            # The topic itself stays as it is: who watches must still get what is ahead of it.
            if recorded is not None and recorded.is_ahead_of(state):
                state = recorded
            return _alive(state)

    def follow(self, watcher: Watcher, states: Iterable[ProgressState]) -> None:
        """Let a socket watch all uploads of its caller, those to come too.

        ``states`` are those that there are, as of this very turn of the loop.
        """
        if watcher.gone:
            return
        if not self.follows(watcher):
            self._interest.follow()
        self._followers.setdefault(_owner(watcher), {})[watcher] = None
        for recorded in states:
            topic = self._topic(recorded.session_id)
            if topic.state is None:
                topic.learn(recorded)
            self._admit(watcher, topic)
            self._drop_if_unwatched(topic)

    def unsubscribe(self, watcher: Watcher, upload_id: str) -> None:
        """Let a socket watch an upload no more, also when it follows the owner."""
        watcher.asked.discard(upload_id)
        topic = self._topics.get(upload_id)
        if topic is None or topic not in watcher.topics:
            return
        if self.follows(watcher):
            watcher.declined.add(upload_id)
        topic.leave(watcher)
        self._drop_if_unwatched(topic)

    def recheck(self, watcher: Watcher) -> list[str]:
        """Take from a socket what its caller has no right to any more; return the ids."""
        lost = [
            topic
            for topic in watcher.topics
            if topic.state is not None and not watcher.may_watch(topic.state)
        ]
        for topic in lost:
            topic.leave(watcher)
            self._drop_if_unwatched(topic)
        return [topic.upload_id for topic in lost]

    def drop(self, watcher: Watcher) -> None:
        """Let a socket watch nothing any more."""
        watcher.asked.clear()
        for topic in list(watcher.topics):
            topic.leave(watcher)
            self._drop_if_unwatched(topic)
        key = _owner(watcher)
        followers = self._followers.get(key, {})
        if watcher in followers:
            del followers[watcher]
            self._interest.unfollow()
        if not followers:
            self._followers.pop(key, None)

    def forget(self, watcher: Watcher) -> None:
        """Drop a socket for good: it has gone."""
        watcher.gone = True
        self.drop(watcher)

    def let_go(self, *, before: int) -> None:
        """Let followers leave uploads that are over, and silent since ``before`` (UTC, ms)."""
        for topic in list(self._topics.values()):
            state = topic.state
            if state is not None and state.is_over and state.heard_at < before:
                for watcher in [one for group in topic.watchers.values() for one in group]:
                    if self.follows(watcher):
                        topic.leave(watcher)
                self._drop_if_unwatched(topic)

    def follows(self, watcher: Watcher) -> bool:
        """Whether a socket follows all uploads of its caller."""
        return watcher in self._followers.get(_owner(watcher), ())

    @property
    def subscriptions(self) -> int:
        """How many pairs of a socket and an upload that it watches there are."""
        groups = (group for topic in self._topics.values() for group in topic.watchers.values())
        return sum(map(len, groups))

    def unfinished(self, *, before: int | None = None) -> list[str]:
        """Return the watched uploads that something may still be told of.

        Args:
            before: Only those whose upload or job has begun and been silent since (UTC, ms).

        """
        return [
            topic.upload_id
            for topic in self._topics.values()
            if topic.state is not None and topic.state.may_change(before)
        ]

    def _topic(self, upload_id: str) -> Topic:
        topic = self._topics.get(upload_id)
        if topic is None:
            topic = self._topics[upload_id] = Topic(upload_id, self._since)
            self._interest.watch(upload_id)
            WATCHED.set(len(self._topics))
        return topic

    @contextmanager
    def _awaited(self, upload_id: str) -> Iterator[Topic]:
        """Keep the topic for as long as somebody waits for its state."""
        if not ID_FORM.fullmatch(upload_id):
            raise _unknown()
        topic = self._topic(upload_id)
        topic.waiting += 1
        try:
            yield topic
        finally:
            topic.waiting -= 1
            self._drop_if_unwatched(topic)

    def _drop_if_unwatched(self, topic: Topic) -> None:
        unwatched = not topic.watchers and not topic.waiting
        if unwatched and self._topics.pop(topic.upload_id, None) is not None:
            self._interest.unwatch(topic.upload_id)
            WATCHED.set(len(self._topics))


def _owner(watcher: Watcher) -> tuple[str, str]:
    return watcher.caller.tenant, watcher.caller.user_id


def _unknown() -> NotFound:
    return NotFound("There is no such upload.")


def _alive(state: ProgressState) -> ProgressState:
    if state.status == "deleted":
        raise _unknown()
    return state
