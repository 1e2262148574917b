"""What a client's messages do: say who is calling, watch, unwatch, ask. One for each socket.

Messages are obeyed one after another, so answers come in their order. Only a subscription to
an upload that nobody knows yet is waited for on the side.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

import structlog
from aiohttp import WSCloseCode

from services.gateway.closing import FORBIDDEN, NOT_FOUND, Closing
from services.gateway.dialects.protocol import (
    GetStats,
    Malformed,
    Message,
    Ping,
    Refresh,
    Request,
    Subscribe,
    Unsubscribe,
)
from services.gateway.hub import Watcher
from services.gateway.login import from_first_message, refreshed
from services.gateway.resume import ALL, Since, last_events
from services.gateway.subscribing import Subscribing
from shared.errors import ApiError, Forbidden, NotFound, RateLimited
from shared.identity import Principal
from shared.streams import REDIS_FAILURES
from shared.times import rfc3339

if TYPE_CHECKING:
    from services.gateway.connection import Surroundings

__all__ = ["Conversation"]

_PATIENCE_S: Final = 0.1
"""A subscription that takes longer, to an upload that nobody knows, holds nothing else up."""
_MOST_GRANTING: Final = 16
"""Subscriptions of one socket that may be waited for at a time."""


class Conversation:
    """What is said on one socket.

    Args:
        subject: What the path names; empty: nothing.
        around: What all sockets share.
        claim: Takes the caller's place; only for who is known by a message.
        make_watcher: Makes the socket known to the hub, once it is known who is calling.
        reply: Sends an answer: its kind, the subject it is about, and its data.
        fail: Ends the socket.

    """

    __slots__ = (
        *("_around", "_claim", "_fail", "_granting", "_make_watcher"),
        *("_named", "_reply", "_subject", "watcher"),
    )

    def __init__(
        self,
        subject: str,
        around: Surroundings,
        *,
        claim: Callable[[Principal], Awaitable[None]],
        make_watcher: Callable[[Principal], Watcher],
        reply: Callable[[str, str, dict[str, Any]], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._subject: Final = subject
        self._around: Final = around
        self._claim: Final = claim
        self._make_watcher: Final = make_watcher
        self._reply: Final = reply
        self._fail: Final = fail
        self._named: dict[str, str] | None = None
        """Uploads by the names that the client has for them, for as long as it watches them."""
        self._granting = 0
        self.watcher: Watcher | None = None

    async def begin(self, caller: Principal) -> None:
        """Let the caller watch what the path names: one upload, or all of his.

        Raises:
            Closing: He may not, or there is no such thing.

        """
        structlog.contextvars.bind_contextvars(user_id=caller.user_id)
        self.watcher = watcher = self._make_watcher(caller)
        try:
            if self._subject:
                await self._watch(watcher, self._subject)
            elif watcher.dialect.follows:
                states = await self._around.relay.sessions_of(caller)
                self._around.relay.hub.follow(watcher, states)
        except Forbidden as exc:
            raise Closing(FORBIDDEN, exc.message) from None
        except NotFound as exc:
            raise Closing(NOT_FOUND, exc.message) from None

    async def obey(self, message: Message) -> None:
        """Do what a message asks for; the first one may say who is calling.

        Raises:
            Closing: The socket is to end.

        """
        watcher = self.watcher
        if watcher is None:
            caller = await from_first_message(self._around.auth, message)
            await self._take_place(caller)
            if message.request is None:
                self._reply("authenticated", "", {"message": "Authentication successful"})
            await self.begin(caller)
            if message.request is None or self.watcher is None:
                return
            watcher = self.watcher
        elif message.token is not None:
            await self._refresh(watcher, message.token)
        await self._do(watcher, message.request)

    async def _do(self, watcher: Watcher, request: Request | None) -> None:
        match request:
            case Subscribe(ids, since) if watcher.dialect.resumable:
                await self._take_up(watcher, ids, since)
            case Unsubscribe(()):
                self._named = None
                self._around.relay.hub.drop(watcher)
                self._reply("unsubscribed", "", {"ids": []})
            case Refresh():
                expires_at = watcher.caller.expires_at
                until = None if expires_at is None else rfc3339(1000 * expires_at)
                self._reply("refreshed", "", {"expires_at": until})
            case Subscribe(ids):
                for one in ids:
                    await self._subscribe(watcher, one)
            case Unsubscribe(ids):
                for one in ids:
                    upload_id = (self._named or {}).pop(one, one)
                    self._around.relay.hub.unsubscribe(watcher, upload_id)
                    self._reply("unsubscribed", one, {})
            case Ping(data):
                self._reply("pong", "", data)
            case GetStats():
                self._reply("stats", "", {"subscriptions": len(watcher.topics)})
            case Malformed(reason):
                self._reply("error", "", {"message": reason})
            case None:
                self._reply("authenticated", "", {"message": "Authentication successful"})

    async def _take_place(self, caller: Principal) -> None:
        try:
            await self._claim(caller)
        except RateLimited as exc:  # too late for a status
            raise Closing(WSCloseCode.POLICY_VIOLATION, exc.message) from None

    async def _watch(self, watcher: Watcher, name: str) -> bool:
        """Subscribe by an upload's id, its job's, or the caller's own name for its session."""
        relay = self._around.relay
        watcher.asked.add(name)
        try:
            if watcher.dialect.about_jobs:
                upload_id = await relay.upload_of_job(name)
            else:
                upload_id = await relay.upload_of(name, watcher.caller)
            if name not in watcher.asked:
                return False  # it has changed its mind, or has gone
        finally:
            watcher.asked.discard(name)
        if upload_id != name:
            self._named = {**(self._named or {}), name: upload_id}
        return await relay.hub.subscribe(watcher, upload_id)

    async def _refresh(self, watcher: Watcher, token: str) -> None:
        """Go on under a newer token of the same caller, with the rights that it gives."""
        watcher.caller = await refreshed(self._around.auth, watcher.caller, token)
        for upload_id in self._around.relay.hub.recheck(watcher):
            if upload_id == (self._named or {}).get(self._subject, self._subject):
                raise Closing(FORBIDDEN, "Access denied to this upload")
            self._reply("error", upload_id, {"message": "Access denied to this upload"})

    def _has_room(self, watcher: Watcher, names: Collection[str]) -> bool:
        """Whether so many more subscriptions are allowed; if not, the client is told."""
        hub, most = self._around.relay.hub, self._around.most_subscriptions
        taken = len(watcher.topics) + len(watcher.asked)
        if taken + len(names) <= most:
            return True
        if hub.follows(watcher):  # what it would get anyway does not count
            taken -= sum(map(watcher.owns, watcher.topics))
        watched = {topic.upload_id for topic in watcher.topics}
        if taken + sum(one not in watched for one in names) <= most:
            return True
        subject = next(iter(names)) if len(names) == 1 else ""
        self._reply("error", subject, {"message": f"Only {most} subscriptions are allowed."})
        return False

    async def _subscribe(self, watcher: Watcher, name: str) -> None:
        """Grant a subscription, or go on without it until it is decided."""
        if self._granting >= _MOST_GRANTING:
            self._reply("error", name, {"message": "Too many subscriptions at once."})
            return
        if not self._has_room(watcher, (name,)):
            return
        decided = asyncio.Event()
        self._granting += 1
        self._around.tasks.start(self._grant(watcher, name, decided))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await decided.wait()

    async def _grant(self, watcher: Watcher, name: str, decided: asyncio.Event) -> None:
        try:
            if await self._watch(watcher, name):
                self._reply("subscribed", name, {})
        except ApiError as exc:
            self._reply("error", name, {"message": exc.message})
        except REDIS_FAILURES as exc:
            self._fail(exc)
        finally:
            self._granting -= 1
            decided.set()

    async def _take_up(
        self, watcher: Watcher, names: tuple[str, ...], since: str | Mapping[str, str] | None
    ) -> None:
        """Grant in one step all that is known, and go on without what nobody knows yet."""
        try:
            last = last_events(names or (ALL,), since)
        except ValueError as exc:
            self._reply("error", "", {"message": str(exc)})
            return
        if self._granting >= _MOST_GRANTING:
            self._reply("error", "", {"message": "Too many subscriptions at once."})
            return
        if ALL not in last and not self._has_room(watcher, last):
            return
        decided = asyncio.Event()
        self._granting += 1
        self._around.tasks.start(self._grant_all(watcher, last, decided))
        await decided.wait()

    async def _grant_all(self, watcher: Watcher, last: Since, decided: asyncio.Event) -> None:
        def answer(outcome: Mapping[str, str | ApiError]) -> None:
            granted = {name: one for name, one in outcome.items() if isinstance(one, str)}
            aliases = {name: one for name, one in granted.items() if name != one}
            if aliases:
                self._named = {**(self._named or {}), **aliases}
            if granted:
                self._reply("subscribed", "", {"ids": list(granted)})
            for name, one in outcome.items():
                if isinstance(one, ApiError):
                    self._reply("error", name, {"message": one.message})
            decided.set()

        subscribing = Subscribing(self._around.relay, watcher)
        try:
            if ALL in last:
                found = await subscribing.follow(last[ALL])
                if found is not None:
                    self._reply("subscribed", "", {"ids": found})
            else:
                await subscribing.watch(last, answer)
        except REDIS_FAILURES as exc:
            self._fail(exc)
        finally:
            self._granting -= 1
            decided.set()
