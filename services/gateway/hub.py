"""Fan-out in memory: who watches which upload, and in what order they learn of it. No I/O.

A topic is one upload that somebody here watches. It holds the newest state; events fold into it
once, are encoded once per dialect, and go to all its sockets. A new watcher gets the topic's
state first, in the same step in which it joins: so it misses nothing and gets nothing twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Final

from prometheus_client import Counter, Gauge

from services.gateway.dialects.protocol import Dialect
from services.gateway.frames import text_frame
from services.gateway.outbound import Outbound
from services.gateway.state import Change, ProgressState, change_of, fold, move
from shared.errors import Forbidden, NotFound
from shared.events import LifecycleEvent, UploadProgress
from shared.identity import Principal

__all__ = ["Hub", "Watcher"]

_UNKNOWN_WAIT_S: Final = 2.0
"""An id may be asked for before its ``created`` event has come through."""
_UNKNOWN_RETRY_S: Final = 0.2

DELIVERED = Counter("gateway_events_delivered_total", "Events handed to sockets.")
WATCHED = Gauge("gateway_topics", "Uploads that are watched here.")

Load = Callable[[str], Awaitable[ProgressState | None]]


class Watcher:
    """One socket, as the hub knows it."""

    __slots__ = ("__weakref__", "caller", "dialect", "outbound", "topics")

    def __init__(self, dialect: Dialect, outbound: Outbound, caller: Principal) -> None:
        self.dialect: Final = dialect
        self.outbound: Final = outbound
        self.caller = caller
        self.topics: Final[set[Topic]] = set()


class Topic:
    """One watched upload."""

    __slots__ = ("_changed", "state", "upload_id", "waiting", "watchers")

    def __init__(self, upload_id: str) -> None:
        self.upload_id: Final = upload_id
        self.state: ProgressState | None = None
        self.watchers: Final[dict[Dialect, dict[Watcher, None]]] = {}
        self.waiting = 0
        """Subscriptions that are being granted."""
        self._changed: Final = asyncio.Event()

    def become(self, state: ProgressState) -> None:
        """Take on a state; wakes those who wait for the first one."""
        self.state = state
        self._changed.set()

    async def known(self, timeout_s: float) -> None:
        """Return when there is a state, or after so many seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            pass

    def join(self, watcher: Watcher) -> None:
        """Add a watcher."""
        self.watchers.setdefault(watcher.dialect, {})[watcher] = None
        watcher.topics.add(self)

    def leave(self, watcher: Watcher) -> None:
        """Remove a watcher."""
        of_dialect = self.watchers.get(watcher.dialect, {})
        of_dialect.pop(watcher, None)
        if not of_dialect:
            self.watchers.pop(watcher.dialect, None)
        watcher.topics.discard(self)


class Hub:
    """The topics of one process.

    Args:
        load: Returns the state of an upload as it is recorded, or ``None``. What it raises
            reaches those who subscribe.

    """

    def __init__(self, load: Load) -> None:
        self._load: Final = load
        self._topics: Final[dict[str, Topic]] = {}
        self._followers: Final[dict[tuple[str, str], dict[Watcher, None]]] = {}

    @property
    def watched(self) -> Collection[str]:
        """The uploads that somebody watches."""
        return self._topics.keys()

    # What comes in.

    def publish(self, event: LifecycleEvent) -> None:
        """Deliver a lifecycle event to all who watch its upload or follow its owner."""
        topic = self._topics.get(event.upload_id)
        followers = self._followers.get((event.upload.tenant, event.upload.user_id))
        if topic is None and not followers:
            return
        if topic is None:
            topic = self._topic(event.upload_id)
        state = fold(topic.state, event)
        if state is None:
            return
        for watcher in followers or ():
            topic.join(watcher)
        topic.become(state)
        self._deliver(topic, change_of(event), state)

    def advance(self, position: UploadProgress) -> None:
        """Deliver a position to all who watch the upload."""
        topic = self._topics.get(position.upload_id)
        if topic is None or topic.state is None:
            return
        state = move(topic.state, position)
        if state is not None:
            topic.become(state)
            self._deliver(topic, Change.PROGRESS, state)

    def correct(self, recorded: ProgressState) -> None:
        """Bring a topic up to a recorded state that is ahead of it: events were missed."""
        topic = self._topics.get(recorded.session_id)
        if topic is not None and _is_newer(recorded, topic.state):
            topic.become(recorded)
            self._deliver(topic, Change.SNAPSHOT, recorded)

    def _deliver(self, topic: Topic, change: Change, state: ProgressState) -> None:
        for dialect, watchers in topic.watchers.items():
            payload = dialect.encode(change, state)
            if payload is None:
                continue
            frame = text_frame(payload)
            DELIVERED.inc(len(watchers))
            if change is Change.PROGRESS:
                for watcher in watchers:
                    watcher.outbound.put_latest(topic, frame)
            else:
                for watcher in watchers:
                    watcher.outbound.put(frame, supersedes=topic)

    # Who watches.

    async def subscribe(self, watcher: Watcher, upload_id: str) -> None:
        """Let a socket watch an upload; its current state is the first thing it gets.

        Raises:
            NotFound: Nobody knows the upload, even after a wait for its first event.
            Forbidden: It belongs to somebody else.

        """
        topic = self._topic(upload_id)
        topic.waiting += 1
        try:
            state = await self._state_of(topic)
            if not watcher.caller.owns(user_id=state.user_id, tenant=state.tenant):
                raise Forbidden("Access denied to this upload")
            self._admit(watcher, topic)
        finally:
            topic.waiting -= 1
            self._drop_if_unwatched(topic)

    def _admit(self, watcher: Watcher, topic: Topic) -> None:
        """Join and send the state: one step, so that no event falls between."""
        state = topic.state
        if topic in watcher.topics or state is None:
            return
        topic.join(watcher)
        payload = watcher.dialect.encode(Change.SNAPSHOT, state)
        if payload is not None:
            watcher.outbound.put(text_frame(payload))

    async def _state_of(self, topic: Topic) -> ProgressState:
        deadline = asyncio.get_running_loop().time() + _UNKNOWN_WAIT_S
        while True:
            if topic.state is None:
                recorded = await self._load(topic.upload_id)
                if recorded is not None and topic.state is None:
                    topic.become(recorded)
            state = topic.state
            if state is not None:
                if state.status == "deleted":
                    raise NotFound("There is no such upload.")
                return state
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                raise NotFound("There is no such upload.")
            await topic.known(min(left, _UNKNOWN_RETRY_S))

    async def find(self, upload_id: str) -> ProgressState:
        """Return the state of an upload, waiting for one that is just being made.

        Raises:
            NotFound: As for ``subscribe``.

        """
        topic = self._topic(upload_id)
        topic.waiting += 1
        try:
            if not topic.watchers:  # nobody has kept it current
                recorded = await self._load(upload_id)
                if recorded is not None and _is_newer(recorded, topic.state):
                    topic.become(recorded)
            return await self._state_of(topic)
        finally:
            topic.waiting -= 1
            self._drop_if_unwatched(topic)

    def follow(self, watcher: Watcher, states: Iterable[ProgressState]) -> None:
        """Let a socket watch all uploads of its caller, those to come too."""
        key = (watcher.caller.tenant, watcher.caller.user_id)
        self._followers.setdefault(key, {})[watcher] = None
        for recorded in states:
            topic = self._topic(recorded.session_id)
            if topic.state is None:
                topic.become(recorded)
            self._admit(watcher, topic)

    def unsubscribe(self, watcher: Watcher, upload_id: str) -> None:
        """Let a socket watch an upload no more."""
        topic = self._topics.get(upload_id)
        if topic is not None:
            topic.leave(watcher)
            self._drop_if_unwatched(topic)

    def drop(self, watcher: Watcher) -> None:
        """Forget a socket."""
        for topic in list(watcher.topics):
            topic.leave(watcher)
            self._drop_if_unwatched(topic)
        key = (watcher.caller.tenant, watcher.caller.user_id)
        followers = self._followers.get(key, {})
        followers.pop(watcher, None)
        if not followers:
            self._followers.pop(key, None)

    def unfinished(self, *, before: int | None = None) -> list[str]:
        """Return the watched uploads that are not over; silent since ``before`` (UTC, ms)."""
        return [
            topic.upload_id
            for topic in self._topics.values()
            if topic.state is not None
            and not topic.state.is_over
            and (before is None or topic.state.last_updated < before)
        ]

    def _topic(self, upload_id: str) -> Topic:
        topic = self._topics.get(upload_id)
        if topic is None:
            topic = self._topics[upload_id] = Topic(upload_id)
            WATCHED.set(len(self._topics))
        return topic

    def _drop_if_unwatched(self, topic: Topic) -> None:
        if not topic.watchers and not topic.waiting:
            self._topics.pop(topic.upload_id, None)
            WATCHED.set(len(self._topics))


def _is_newer(recorded: ProgressState, state: ProgressState | None) -> bool:
    if state is None:
        return True
    return (recorded.seq, recorded.bytes_uploaded) > (state.seq, state.bytes_uploaded)
