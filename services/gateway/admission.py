"""How many sockets there may be: of this process, and of each user over all gateways.

A user's sockets stand in a sorted set in Redis, each with a lease that its gateway prolongs. A
socket that ends is taken out at once; those of a gateway that was killed fall out by themselves
when their leases end, so that nothing has to be counted down.

One job speaks to Redis for all sockets: what is asked for while it waits for an answer goes out
together in the next write. While Redis is away or slow, a handshake waits for it for a moment
at most, and each process counts for itself (as ``shared.rate_limit`` does); on its return Redis
is told of all sockets that are open here before it is asked about new ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis

from services.gateway.keys import Keys
from shared.errors import RateLimited, Unavailable
from shared.identity import Principal
from shared.redis_script import RedisScript, run_mixed
from shared.streams import REDIS_FAILURES, Command, pipelined, retry_delay

__all__ = ["LEASE_S", "REFUSED", "Admission", "Place"]

log = structlog.stdlib.get_logger(__name__)

LEASE_S: Final = 30.0
"""For so long the sockets of a gateway that was killed count on."""
_PATIENCE_S: Final = 0.1
"""How long a handshake waits for Redis: it usually answers within a millisecond."""
_LOOKS: Final = 5
"""In so many steps it waits: when this process is late itself, Redis is not to blame."""
_COME_AGAIN_S: Final = 5
_AT_ONCE: Final = 256
"""Users whose leases are prolonged in one write: a handshake behind it must not wait long."""
_GOODBYE_S: Final = 1.0

_SCRIPT: Final = RedisScript(Path(__file__).with_suffix(".lua"))

REFUSED: Final = Counter("gateway_refused_total", "Sockets refused, by reason.", ["reason"])
COUNTED_HERE: Final = Counter("gateway_places_local_total", "Places given without Redis.")


class Place:
    """The right of one socket, or event stream, to be there."""

    __slots__ = ("_admission", "_held")

    def __init__(self, admission: Admission) -> None:
        self._admission: Admission | None = admission
        self._held: tuple[str, str] | None = None

    async def claim(self, caller: Principal) -> None:
        """Count as one of the caller's; once.

        Raises:
            RateLimited: He has as many as he may, here or elsewhere.

        """
        admission = self._admission
        if admission is None or self._held is not None:
            return
        held = await admission.give(caller)
        if self._admission is not None:
            self._held = held
        elif held is not None:  # the socket has gone meanwhile
            admission.forget(*held)

    def release(self) -> None:
        """Give it up. Does nothing a second time."""
        if self._admission is not None:
            self._admission.take_back(self._held)
            self._admission = None


class Admission:
    """The places of one process.

    Args:
        redis: Where those of all gateways are.
        keys: The names there.
        most: Places of this process.
        most_of_user: Of each user over all gateways; 0: any number.
        lease_s: For how long a place lasts unless it is prolonged.

    """

    def __init__(
        self,
        redis: Redis,
        keys: Keys,
        *,
        most: int,
        most_of_user: int,
        lease_s: float = LEASE_S,
    ) -> None:
        self._redis: Final = redis
        self._keys: Final = keys
        self._most: Final = most
        self._most_of_user: Final = most_of_user
        self._lease_s: Final = lease_s
        self._names: Final = map(f"{secrets.token_hex(8)}.{{}}".format, itertools.count())
        self._taken = 0
        self._held: Final[dict[str, set[str]]] = {}
        """The sockets of each user here, by the key of his places."""
        self._undecided: Final[set[str]] = set()
        """Sockets in ``_held`` that may yet be refused."""
        self._asked: Final[dict[str, tuple[str, asyncio.Future[bool | None]]]] = {}
        """Those of them that Redis is to be asked about. ``None``: it could not be."""
        self._gone: Final[dict[tuple[str, str], float]] = {}
        """Sockets to be taken out, and until when that matters."""
        self._to_prolong: Final[deque[str]] = deque()
        self._prolong_at = 0.0
        self._away = False
        self._work: Final = asyncio.Event()
        self.closing = False
        """Set when the process is about to end: nobody is let in any more."""

    @property
    def is_full(self) -> bool:
        """Whether this process has no place left."""
        return self._taken >= self._most

    def enter(self) -> Place:
        """Take a place of this process, before it is known who is calling.

        Raises:
            Unavailable: There is none, or the process is about to end.

        """
        if self.closing:
            REFUSED.labels("closing").inc()
            raise Unavailable("The server restarts.")
        if self.is_full:
            REFUSED.labels("full").inc()
            raise Unavailable("No more sockets here.", retry_after=_COME_AGAIN_S)
        self._taken += 1
        return Place(self)

    @asynccontextmanager
    async def hold(self, caller: Principal) -> AsyncIterator[None]:
        """Hold a place of a caller for as long as the context lasts.

        Raises:
            Unavailable: As for ``enter``.
            RateLimited: As for ``Place.claim``.

        """
        place = self.enter()
        try:
            await place.claim(caller)
            yield
        finally:
            place.release()

    async def give(self, caller: Principal) -> tuple[str, str] | None:
        """Give one more socket of a user a place; return what ``take_back`` takes.

        Raises:
            RateLimited: As for ``Place.claim``.

        """
        if not self._most_of_user:
            return None
        key = self._keys.sockets(caller.tenant, caller.user_id)
        held, name = self._held.setdefault(key, set()), next(self._names)
        if len(held) < self._most_of_user:
            held.add(name)  # before any wait, so that no other takes the last place
            self._undecided.add(name)
            try:
                granted = await self._ask(key, name)
            except asyncio.CancelledError:
                self._asked.pop(name, None)
                self.forget(key, name)
                raise
            finally:
                self._undecided.discard(name)
            if granted:
                return key, name
            held.discard(name)
        if not held:
            self._held.pop(key, None)
        REFUSED.labels("user").inc()
        raise RateLimited("You have too many connections.", retry_after=_COME_AGAIN_S)

    def take_back(self, held: tuple[str, str] | None) -> None:
        """Have one place less taken, and one of a user if it was claimed."""
        self._taken -= 1
        if held is not None:
            self.forget(*held)

    def forget(self, key: str, name: str) -> None:
        """Take one socket out of those of its user; ``give`` has returned it."""
        held = self._held.get(key, set())
        held.discard(name)
        if not held:
            self._held.pop(key, None)
        self._gone[key, name] = asyncio.get_running_loop().time() + self._lease_s
        self._work.set()

    async def _ask(self, key: str, name: str) -> bool:
        granted = None
        if not self._away:
            answer: asyncio.Future[bool | None] = asyncio.get_running_loop().create_future()
            self._asked[name] = (key, answer)
            self._work.set()
            for _ in range(_LOOKS):
                await asyncio.wait((answer,), timeout=_PATIENCE_S / _LOOKS)
                if answer.done():
                    break
            if answer.done():
                granted = answer.result()
            else:
                self._asked.pop(name, None)
                self._lose("no answer in time")
        if granted is None:
            COUNTED_HERE.inc()
            granted = True
        return granted

    # What speaks to Redis.

    async def run(self) -> None:
        """Ask for places, give them up and prolong them, forever."""
        failures = 0
        loop = asyncio.get_running_loop()
        with contextlib.suppress(*REDIS_FAILURES):  # so that nobody has to wait for it
            await _SCRIPT.load(self._redis)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._prolong_at):
                    await self._work.wait()
            self._work.clear()
            try:
                await self._round(loop.time())
                failures = 0
            except REDIS_FAILURES as exc:
                self._lose(repr(exc))
                await asyncio.sleep(retry_delay(failures))
                failures += 1

    async def _round(self, now: float) -> None:
        if now >= self._prolong_at:
            self._to_prolong.clear()
            self._to_prolong.extend(self._held)
            self._prolong_at = now + self._lease_s / 3
        asked = list(self._asked.items())
        self._asked.clear()
        gone = list(self._gone)
        # First who leaves, for he may be the one who comes back.
        leaving = list(self._leaving(gone))
        asking = [self._call(key, self._most_of_user, name) for name, (key, _) in asked]
        replies: list[object] = []
        try:
            replies = await self._send([*leaving, *asking, *self._prolonging()])
        finally:
            for n, (_, (_, answer)) in enumerate(asked, len(leaving)):
                if not answer.done():
                    answer.set_result(bool(replies[n]) if replies else None)
        for one in gone:
            del self._gone[one]
        if self._to_prolong:
            self._work.set()
        elif self._away and self._prolong_at > now:  # it has been told of all that are here
            self._away = False
            log.info("places_with_redis")

    def _call(self, key: str, most: int, *names: str) -> Command:
        return _SCRIPT.call([key], most, int(self._lease_s * 1000), *names)

    def _prolonging(self) -> Iterator[Command]:
        for _ in range(min(len(self._to_prolong), _AT_ONCE)):
            key = self._to_prolong.popleft()
            names = tuple(self._held.get(key, set()) - self._undecided)
            if names:
                yield self._call(key, 0, *names)

    @staticmethod
    def _leaving(gone: list[tuple[str, str]]) -> Iterator[Command]:
        by_key: dict[str, list[str]] = {}
        for key, name in gone:
            by_key.setdefault(key, []).append(name)
        for key, names in by_key.items():
            yield ("ZREM", key, *names)

    async def _send(self, commands: list[Command]) -> list[object]:
        if not commands:
            if not self._away:
                return []
            commands = [("EXISTS", self._keys.cleaner)]  # whatever it is: is there an answer?
        return await run_mixed(self._redis, commands, _SCRIPT)

    def _lose(self, error: str) -> None:
        """Count here alone, until Redis has been told of all that are here."""
        if not self._away:
            log.warning("places_without_redis", error=error)
        self._away = True
        self._prolong_at = 0.0
        self._work.set()
        now = asyncio.get_running_loop().time()
        for one in list(itertools.takewhile(lambda it: self._gone[it] <= now, self._gone)):
            del self._gone[one]

    async def leave(self) -> None:
        """Give up all places here, since the process ends; never fails."""
        held = [(key, name) for key, names in self._held.items() for name in names]
        leaving = list(self._leaving([*self._gone, *held]))
        with contextlib.suppress(TimeoutError, *REDIS_FAILURES):
            async with asyncio.timeout(_GOODBYE_S):
                if leaving:
                    await pipelined(self._redis, leaving)
