"""One watched upload, and one socket that watches. What happens to them, the hub decides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from services.gateway.dialects.protocol import Dialect
from services.gateway.folding import counter_of, fold, move
from services.gateway.outbound import Outbound
from services.gateway.state import ProgressState
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


class Topic:
    """One watched upload: its newest state, and who watches it."""

    __slots__ = (
        "_early",
        "_known",
        "_positions",
        "_shown",
        "job",
        "state",
        "upload_id",
        "waiting",
        "watchers",
    )

    def __init__(self, upload_id: str) -> None:
        self.upload_id: Final = upload_id
        self.state: ProgressState | None = None
        """``None`` until it is read or told; nobody has joined before."""
        self.watchers: Final[dict[Dialect, dict[Watcher, None]]] = {}
        self._shown: tuple[Dialect, str, bool, bytes | None] | None = None
        """The last message with this very state, for others who begin to watch meanwhile."""
        self.waiting = 0
        """Subscriptions that are being granted."""
        self._early: list[LifecycleEvent] = []
        self._positions: dict[type, UploadProgress | JobProgress] = {}
        self.job: Final = object()
        """What progress of the job is conflated under; progress of the upload: the topic."""
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
        self._shown = None
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


def message(dialect: Dialect, state: ProgressState, since: str, *, gap: bool) -> bytes | None:
    """Return the message with a state as it goes over the wire; arguments as of ``show``."""
    payload = dialect.show(state, since, gap=gap)
    return None if payload is None else dialect.framed(payload)
