"""One watched upload, and one socket that watches. What happens to them, the hub decides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache
from typing import Final

from services.gateway.dialects.protocol import Dialect, Told
from services.gateway.folding import counter_of, fold, move, position_of
from services.gateway.outbound import Outbound
from services.gateway.owed import Source
from services.gateway.resume import just_before
from services.gateway.state import Change, ProgressState
from shared.events import JobProgress, LifecycleEvent, UploadProgress
from shared.identity import Principal

__all__ = ["Topic", "Watcher", "message"]


class Watcher:
    """One socket, as the hub knows it."""

    __slots__ = (
        *("__weakref__", "_caller", "_on_caller", "asked", "declined", "gone"),
        *("dialect", "outbound", "topics"),
    )

    def __init__(
        self,
        dialect: Dialect,
        outbound: Outbound,
        caller: Principal,
        *,
        on_caller: Callable[[Principal], None] | None = None,
    ) -> None:
        self.dialect: Final = dialect
        self.outbound: Final = outbound
        self._on_caller: Final = on_caller
        self.caller = caller
        self.topics: Final[set[Topic]] = set()
        self.asked: Final[set[str]] = set()
        """Uploads it has asked for and is not granted yet."""
        self.declined: Final[set[str]] = set()
        """Uploads of its owner that it does not want to follow."""
        self.gone = False
        """Whether its socket has; what was being looked up for it comes to nothing."""

    @property
    def caller(self) -> Principal:
        """Who it belongs to, as the last token tells."""
        return self._caller

    @caller.setter
    def caller(self, caller: Principal) -> None:
        self._caller = caller
        if self._on_caller is not None:
            self._on_caller(caller)

    def may_watch(self, state: ProgressState) -> bool:
        """Whether an upload is the caller's to watch, as the dialect has it."""
        if self.dialect.whole_tenant and state.tenant == self.caller.tenant:
            return True
        return self.caller.owns(user_id=state.user_id, tenant=state.tenant)

    def owns(self, topic: Topic) -> bool:
        """Whether an upload is the caller's own."""
        state, caller = topic.state, self.caller
        owner = (state.tenant, state.user_id) if state is not None else None
        return owner == (caller.tenant, caller.user_id)


class Topic(Source):
    """One watched upload: its newest state, and who watches it.

    Args:
        upload_id: Of the upload.
        since: Returns the id to go on from for who has its present state.

    """

    __slots__ = (
        *("_early", "_known", "_moved", "_positions", "_shown", "_since", "_unsettled"),
        *("job", "state", "upload", "upload_id", "waiting", "watchers"),
    )

    def __init__(self, upload_id: str, since: Callable[[str], str]) -> None:
        self.upload_id: Final = upload_id
        self._since: Final = since
        self.state: ProgressState | None = None
        """``None`` until it is read or told; nobody has joined before."""
        self.watchers: Final[dict[Dialect, dict[Watcher, None]]] = {}
        self._shown: tuple[Dialect, str, bool, bytes | None] | None = None
        """The last message with this very state, for others who begin to watch meanwhile."""
        self.waiting = 0
        """Subscriptions that are being granted."""
        self._early: list[LifecycleEvent] = []
        self._positions: dict[type, UploadProgress | JobProgress] = {}
        self.upload: Final = object()
        """What progress of the upload is conflated under."""
        self.job: Final = object()
        """What progress of the job is."""
        self._unsettled: tuple[Dialect, ...] = ()
        """Those in which somebody may still be owed a state that has no frame yet."""
        self._moved: tuple[Dialect, object, bytes] | None = None
        """The last progress encoded with this very state, likewise."""
        self._known: Final = asyncio.Event()

    def keep(self, told: LifecycleEvent | UploadProgress | JobProgress) -> None:
        """Keep what arrives before there is a state; ``learn`` folds it in."""
        if isinstance(told, UploadProgress | JobProgress):
            self._positions[type(told)] = told
        else:
            self._early.append(told)
            self._known.set()

    def learn(self, recorded: ProgressState | None) -> ProgressState | None:
        """Return the first state: what is recorded, with what has arrived meanwhile."""
        state = recorded
        for event in sorted(self._early, key=counter_of):
            state = fold(state, event) or state
        if state is None:
            return None
        for position in self._positions.values():
            state = move(state, position) or state
        self.become(state)
        return state

    def become(self, state: ProgressState) -> None:
        """Take on a state; wakes those who wait for the first one."""
        is_first, self.state = self.state is None, state
        self._shown = self._moved = None
        if is_first:
            self._early.clear()
            self._positions.clear()
            self._known.set()

    def message(
        self, dialect: Dialect, state: ProgressState, since: str, *, gap: bool
    ) -> bytes | None:
        """Return the message with a state, if it is the present one, the same for all."""
        if state is not self.state:
            return message(dialect, state, since, gap=gap)
        asked = (dialect, since, gap)
        if self._shown is None or self._shown[:3] != asked:
            self._shown = (*asked, message(dialect, state, since, gap=gap))
        return self._shown[3]

    def show(self, watcher: Watcher, *, gap: bool = False, now: bool = False) -> None:
        """Send a socket the state as it is when it leaves.

        Args:
            watcher: The socket.
            gap: Whether it has missed events.
            now: Send the state as it is now: it stands for an event.

        """
        if now:
            if frame := self.shown(watcher.dialect, gap=gap):
                watcher.outbound.put(frame)
            return
        if watcher.dialect not in self._unsettled:
            self._unsettled += (watcher.dialect,)
        watcher.outbound.put_state(self, gap=gap)

    def shown(self, dialect: Dialect, *, gap: bool) -> bytes:
        """Return the frame with the state as it is now."""
        if self.state is None:
            return b""
        since = self._since(self.upload_id)
        return self.message(dialect, self.state, since, gap=gap) or b""

    def moved(self, dialect: Dialect, kind: object) -> bytes:
        """Return the frame with the newest progress of the upload, or of its job."""
        if self.state is None:
            return b""
        if self._moved is None or self._moved[:2] != (dialect, kind):
            change = Change.JOB_PROGRESS if kind is self.job else Change.PROGRESS
            told = Told(position_of(self.state, of_job=change.of_job))
            payload = dialect.encode(change, self.state, told)
            framed = b"" if payload is None else dialect.framed(payload)
            self._moved = (dialect, kind, framed)
        return self._moved[2]

    def settle(self, dialect: Dialect, before: ProgressState, event_id: str) -> None:
        """Have sockets that are still owed the state get the one before an event.

        Args:
            dialect: Of the sockets.
            before: The state.
            event_id: Where the event stands; empty: nowhere, it is a position.

        """
        if dialect not in self._unsettled:
            return
        self._unsettled = tuple(one for one in self._unsettled if one is not dialect)
        since = just_before(event_id) if event_id else self._since(self.upload_id)
        frame = cache(lambda gap: message(dialect, before, since, gap=gap) or b"")
        for watcher in tuple(self.watchers.get(dialect, ())):
            watcher.outbound.settle(self, frame)

    async def known(self, timeout_s: float) -> None:
        """Return when something is known of the upload, or after so many seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._known.wait()
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
        if not watcher.gone:
            watcher.outbound.let_go(self, (self.upload, self.job))


def message(dialect: Dialect, state: ProgressState, since: str, *, gap: bool) -> bytes | None:
    """Return the message with a state as it goes over the wire; arguments as of ``show``."""
    payload = dialect.show(state, since, gap=gap)
    return None if payload is None else dialect.framed(payload)
