"""Leases in Redis: one writer per upload across processes, whatever happens to Redis.

Each process pulses; a lease holds until it is released or its process has been silent for the
TTL. What holds, and why (``docs/adr/0005-one-writer.md`` has the reasons):

- A process that is stopped, cut off or too busy stops believing in its leases ``ttl / 5``
  before anybody else can be granted them, by a clock that counts sleep too.
- Fences only grow, over a wipe of Redis too: they are the time of its clock, unless that is
  not greater than the last fence, or than the one that the store has seen.
- After a restart, a wipe or a failover Redis may have forgotten leases. It then grants nothing
  for one TTL, in which the holders claim again what they hold, with the same fence.
- After a time in which Redis served nobody (it hung, its clock jumped) the silence of others
  proves nothing, so it counts from then on.
- While Redis is away nobody is granted anything: ``acquire`` raises ``LeaseUnavailable``, and
  holders go on. That is proved by a connection that is refused, unless another server may take
  over (Sentinel, Cluster). Silence is no proof: Redis may be away, or only out of this
  process's reach. Where the store keeps out older fences by itself silence counts as away,
  since a wrong guess costs nothing; elsewhere the holder stops in time.

What does not hold: a write that a disk or a network delays past the end of the lease is not
called back, so stores fence or lock as far as they can; and two Redis servers that serve one
store at the same time exclude nobody.

Keys: ``lease:{writers}:*``, of ingest; storage takes leases too, to delete.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import itertools
import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis
from redis.exceptions import BusyLoadingError, NoScriptError

from shared.blobs.store import LeaseUnavailable, UploadBusy
from shared.leases import LeaseLost
from shared.lifecycle import background
from shared.redis_urls import fails_over
from shared.streams import REDIS_FAILURES, command, connect, retry_delay

__all__ = ["TTL_S", "RedisLease", "RedisLeases"]

log = structlog.stdlib.get_logger(__name__)

TTL_S: Final = 5.0
"""How long the uploads of a killed process stay locked. Clients begin to give up after nine
seconds (tus-js-client waits 0, 1, 3 and 5); a busy process must not miss it by chance."""

_PULSES: Final = 5
"""Pulses in a TTL; one is the margin by which holders stop early."""

_PREFIX: Final = "lease:{writers}:"
_KEYS: Final = tuple(
    _PREFIX + name for name in ("memory", "pulses", "held", "fence", "questions:")
)
_SCRIPT: Final = Path(__file__).with_name("redis_leases.lua").read_text()
_SHA: Final = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Goes on while the machine sleeps, where the system has such a clock."""

LOST = Counter("leases_lost_total", "Leases that ended before their holder let go.")


def _now() -> float:
    return time.clock_gettime(_CLOCK)


class RedisLease:
    """Implements ``Lease``; made by ``RedisLeases``."""

    def __init__(
        self, leases: RedisLeases, upload_id: str, value: str, fence: int, until: float
    ) -> None:
        self.upload_id: Final = upload_id
        self.fence = fence
        self.value: Final = value
        """What stands in Redis for it: no two leases have the same."""
        self.memory = ""
        """The memory of Redis in which it was last confirmed."""
        self._leases: Final = leases
        self._until = until

    def check(self) -> None:
        if _now() >= self._until:
            raise LeaseLost(f"the lease of {self.upload_id} has run out")

    async def release(self) -> None:
        await self._leases.release(self)

    def confirm(self, memory: str, until: float) -> None:
        """Believe in it until then: Redis has just said that it is ours."""
        self.memory, self._until = memory, until

    def stretch(self, until: float) -> None:
        """Believe in it until then, unless it has run out: then only Redis can tell."""
        if _now() < self._until:
            self._until = max(self._until, until)

    def lose(self) -> None:
        """Stop believing in it."""
        self._until = 0.0


class RedisLeases:
    """Implements ``Leases`` for one process.

    Args:
        redis_url: Of the Redis that all processes on the store share.
        fenced: The store keeps out what an older fence writes.
        ttl_s: How long a process may be silent before its leases go to others.

    """

    def __init__(self, redis_url: str, *, fenced: bool, ttl_s: float = TTL_S) -> None:
        self.away = False
        """Whether Redis did not answer the last pulse. Then nothing is granted."""
        self._redis_url: Final = redis_url
        self._redis: Redis | None = None
        self._fenced: Final = fenced
        self._alone: Final = not fails_over(redis_url)
        self._ttl_s: Final = ttl_s
        self._pulse_s: Final = ttl_s / _PULSES
        self._belief_s: Final = ttl_s - self._pulse_s
        self._name: Final = uuid.uuid4().hex
        self._numbers: Final = itertools.count(1)
        self._held: Final[dict[str, RedisLease]] = {}
        self._acquiring: Final[set[str]] = set()
        self._asked: Final[set[str]] = set()
        self._news: Final = asyncio.Event()

    # What the store needs.

    async def acquire(self, upload_id: str, *, least_fence: int = 0) -> RedisLease:
        if upload_id in self._held or upload_id in self._acquiring:
            raise UploadBusy(upload_id)
        if self.away:  # not one second for each request to find out again
            raise LeaseUnavailable(upload_id)
        self._acquiring.add(upload_id)
        try:
            return await self._acquire(upload_id, least_fence)
        finally:
            self._acquiring.discard(upload_id)

    async def _acquire(self, upload_id: str, least_fence: int) -> RedisLease:
        number, until = next(self._numbers), _now() + self._belief_s
        try:
            grant = await self._run("acquire", upload_id, number, least_fence)
        except REDIS_FAILURES as exc:
            raise LeaseUnavailable(upload_id) from exc
        if grant is None:
            raise UploadBusy(upload_id)
        fence = int(grant[0])
        lease = RedisLease(self, upload_id, f"{self._name}:{number} {fence}", fence, until)
        lease.confirm(grant[1].decode(), until)
        self._held[upload_id] = lease
        return lease

    async def release(self, lease: RedisLease) -> None:
        """Give a lease up; see ``Lease.release``.

        If Redis does not hear of it, the next who asks for the upload makes it known.
        """
        lease.lose()
        if self._held.get(lease.upload_id) is lease:
            del self._held[lease.upload_id]
            self._asked.discard(lease.upload_id)
            await self._give_back(lease.upload_id, lease.value)

    async def _give_back(self, upload_id: str, value: str) -> None:
        if not self.away:
            try:
                await self._run("release", upload_id, value)
            except REDIS_FAILURES as exc:
                log.debug("lease_not_given_back", upload_id=upload_id, error=repr(exc))

    async def ask(self, upload_id: str) -> None:
        if not self.away:
            try:
                await self._run("ask", upload_id)
            except REDIS_FAILURES as exc:
                log.debug("lease_not_asked_for", upload_id=upload_id, error=repr(exc))

    def asked(self) -> set[str]:
        return set(self._asked)

    async def until_asked(self, timeout_s: float) -> None:
        """Return when somebody asks for what is held here, at the latest after so long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return
        self._news.clear()

    # What keeps it going.

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Grant leases as long as the context lasts; at its end all must be released."""
        self._redis, listening = (connect(self._redis_url) for _ in range(2))
        async with (
            background("leases", self._pulse()),
            background("questions", self._listen(listening)),
        ):
            yield
        await self._leave()
        await self._redis.aclose()
        await listening.aclose()
        self._redis = None

    async def _leave(self) -> None:
        if not self.away:
            try:
                await self._run("leave")
            except REDIS_FAILURES as exc:
                log.debug("leases_not_left", error=repr(exc))

    async def _pulse(self) -> None:
        while True:
            started = _now()
            held = list(self._held.values())
            try:
                await self._renew(held, started + self._belief_s)
            except REDIS_FAILURES as exc:
                self._bear(held, exc, started + self._belief_s)
            await asyncio.sleep(self._pulse_s)

    async def _renew(self, held: list[RedisLease], until: float) -> None:
        parts = [part for one in held for part in (one.upload_id, one.value, one.memory)]
        memory, *lost = (answer.decode() for answer in await self._run("renew", *parts))
        if self.away:
            log.info("leases_are_granted_again", held=len(held), lost=len(lost))
        self.away = False
        for lease in held:
            if lease.upload_id not in lost:
                lease.confirm(memory, until)
            elif self._held.get(lease.upload_id) is lease:  # else it was given up meanwhile
                lease.lose()
                LOST.inc()
                log.warning("lease_lost", upload_id=lease.upload_id, fence=lease.fence)

    def _bear(self, held: list[RedisLease], failure: BaseException, until: float) -> None:
        """Go on without Redis, as far as that is safe."""
        if not self.away:
            log.warning("no_leases_are_granted", held=len(held), error=repr(failure))
        self.away = True
        if self._fenced or (self._alone and proves_absence(failure)):
            for lease in held:
                lease.stretch(until)

    async def _listen(self, redis: Redis) -> None:
        failures = 0
        while True:
            try:
                reply = await command(redis, "BLPOP", _KEYS[4] + self._name, 1)
            except REDIS_FAILURES:
                await asyncio.sleep(retry_delay(failures))
                failures += 1
                continue
            failures = 0
            if reply is not None:
                upload_id, _, value = reply[1].decode().partition(" ")
                await self._hear(upload_id, value)

    async def _hear(self, upload_id: str, value: str) -> None:
        lease = self._held.get(upload_id)
        if lease is not None:
            self._asked.add(upload_id)
            self._news.set()
        elif upload_id not in self._acquiring:  # Redis has missed that it was given up
            await self._give_back(upload_id, value)

    async def _run(self, verb: str, *parts: object) -> Any:
        """Run the script; whatever goes wrong takes no longer than a pulse."""
        if self._redis is None:
            raise ConnectionError("no leases are granted before the start and after the end")
        arguments = (len(_KEYS), *_KEYS, verb, self._name, int(self._ttl_s * 1000), *parts)
        async with asyncio.timeout(self._pulse_s):
            try:
                return await command(self._redis, "EVALSHA", _SHA, *arguments)
            except NoScriptError:  # a Redis that has not seen it, or has forgotten it
                return await command(self._redis, "EVAL", _SCRIPT, *arguments)


def proves_absence(failure: BaseException | None) -> bool:
    """Tell whether a failure shows that no server is at work, for anybody.

    So it is if the system refuses the connection, at all addresses of the name, or if the
    server says that it is still loading its data.
    """
    while failure is not None:
        if isinstance(failure, BusyLoadingError | ConnectionRefusedError | FileNotFoundError):
            return True
        codes = re.findall(r"\[Errno (\d+)\]", str(failure))
        if codes and all(int(code) == errno.ECONNREFUSED for code in codes):
            return True
        failure = failure.__cause__ or failure.__context__
    return False
