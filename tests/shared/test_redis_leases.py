"""Leases through a Redis that is killed, wiped, hung, and holders that are stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import IO, Any, Final

import pytest
from redis.asyncio import Redis
from redis.exceptions import BusyLoadingError

from shared.blobs.store import LeaseUnavailable, UploadBusy
from shared.leases import LeaseLost
from shared.redis_leases import RedisLease, RedisLeases, proves_absence
from shared.sidecar import new_id
from shared.streams import command
from tests.processes import ROOT, RedisServer
from tests.shared.conftest import ConnectTo, StartRedis
from tests.shared.waiting import eventually

TTL_S: Final = 1.0
MEMORY: Final = "lease:{writers}:memory"
PULSES: Final = "lease:{writers}:pulses"
HELD: Final = "lease:{writers}:held"

REFUSED: Final = (UploadBusy, LeaseUnavailable)
"""While somebody else has the lease; on a busy machine an answer may be late, too."""

Process = Callable[..., Any]

SERVERS: Final = ["embedded", pytest.param("redis-7.0", marks=pytest.mark.slow)]
on_each_own_server: Final = pytest.mark.parametrize("start_redis", SERVERS, indirect=True)
"""Both servers, for tests that mostly wait; the older one is left to the slow run."""
on_each_server: Final = pytest.mark.parametrize("any_redis_server", SERVERS, indirect=True)


@pytest.fixture
async def process() -> AsyncIterator[Process]:
    """Return what stands for a process: its leases, which end with the test."""
    async with AsyncExitStack() as stack:

        async def start(url: str, *, fenced: bool = True) -> RedisLeases:
            leases = RedisLeases(url, fenced=fenced, ttl_s=TTL_S)
            await stack.enter_async_context(leases.running())
            return leases

        yield start


async def settle(redis: Redis, leases: RedisLeases) -> None:
    """Have Redis think that it has served for long, so that it grants at once."""
    await eventually(lambda: redis.exists(MEMORY), "a process has pulsed")
    await eventually(lambda: not leases.away, "it was answered")
    for field in ("born", "since"):
        await redis.hincrby(MEMORY, field, -60_000)


@pytest.fixture
async def pair(
    any_redis_server: RedisServer, any_redis: Redis, process: Process
) -> tuple[RedisLeases, RedisLeases]:
    """Two processes on a Redis that grants at once."""
    one, other = [await process(any_redis_server.url) for _ in range(2)]
    await settle(any_redis, one)
    return one, other


async def take(leases: RedisLeases, upload_id: str, limit_s: float = 15.0) -> RedisLease:
    """Return the lease once it is granted."""
    end = time.monotonic() + limit_s
    while True:
        try:
            return await leases.acquire(upload_id)
        except REFUSED:
            assert time.monotonic() < end, f"not granted within {limit_s} s"
            await asyncio.sleep(0.01)


def believes(lease: RedisLease) -> bool:
    """Tell whether the holder thinks that it may write."""
    try:
        lease.check()
    except LeaseLost:
        return False
    return True


async def watch(lease: RedisLease, seconds: float) -> None:
    """Check for so long that the holder never stops believing."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        lease.check()
        await asyncio.sleep(0.01)


# While all is well.


async def test_exclusive(pair: tuple[RedisLeases, RedisLeases]) -> None:
    """Of all who want an upload one has it, until it lets go; other uploads are others'."""
    one, other = pair
    lease = await take(one, "a")
    for leases in pair:
        with pytest.raises(UploadBusy):
            await leases.acquire("a")
    await (await take(other, "b")).release()
    lease.check()

    await lease.release()
    again = await take(other, "a")

    assert again.fence > lease.fence
    again.check()
    with pytest.raises(LeaseLost):
        lease.check()


async def test_many_at_once(pair: tuple[RedisLeases, RedisLeases]) -> None:
    """Whoever comes at the same moment, in whatever process, never shares a turn or a fence."""
    holding, fences = 0, list[int]()

    async def turn(leases: RedisLeases) -> None:
        nonlocal holding
        lease = await take(leases, "a")
        holding += 1
        assert holding == 1
        fences.append(lease.fence)
        await asyncio.sleep(0)
        holding -= 1
        await lease.release()

    await asyncio.gather(*(turn(pair[number % 2]) for number in range(40)))
    assert fences == sorted(set(fences))
    assert len(fences) == 40


@on_each_server
async def test_held_for_longer_than_the_ttl(pair: tuple[RedisLeases, RedisLeases]) -> None:
    """A holder that lives keeps its leases however long it takes."""
    leases = [await take(pair[0], new_id()) for _ in range(50)]
    await watch(leases[0], 1.5 * TTL_S)
    for lease in leases:
        lease.check()
        with pytest.raises(REFUSED):
            await pair[1].acquire(lease.upload_id)


async def test_fence_is_beyond_what_the_store_has_seen(
    pair: tuple[RedisLeases, RedisLeases],
) -> None:
    """A clock that is behind does not make a fence that the store would refuse."""
    seen = 4_000_000_000_000
    lease = await pair[0].acquire("a", least_fence=seen)
    assert lease.fence > seen
    await lease.release()
    assert (await take(pair[1], "a")).fence > lease.fence


async def test_asked_within_milliseconds(pair: tuple[RedisLeases, RedisLeases]) -> None:
    """The holder learns at once who waits, and forgets it when it lets go."""
    one, other = pair
    lease, kept = await take(one, "a"), await one.acquire("b")
    assert one.asked() == set()
    waits = []
    for _ in range(10):
        started = time.monotonic()
        hearing = asyncio.ensure_future(one.until_asked(10))
        await asyncio.sleep(0)
        await other.ask("a")
        await hearing
        waits.append(time.monotonic() - started)
    assert one.asked() == {"a"}
    assert sorted(waits)[5] < 0.25
    await lease.release()
    assert one.asked() == set()
    kept.check()
    await other.ask("nobody's")
    await one.until_asked(0.1)
    assert one.asked() == set()


async def test_release_by_another_does_nothing(
    pair: tuple[RedisLeases, RedisLeases], any_redis: Redis
) -> None:
    """A late release of an earlier holder leaves the present one's lease alone."""
    one, other = pair
    early = await take(one, "a")
    await early.release()
    late = await take(other, "a")
    before = await any_redis.hget(HELD, "a")

    await early.release()
    await one._give_back("a", early.value)

    assert await any_redis.hget(HELD, "a") == before
    late.check()


async def test_what_was_granted_to_nobody_is_given_back(
    pair: tuple[RedisLeases, RedisLeases], any_redis: Redis
) -> None:
    """A grant whose answer got lost does not lock the upload as long as its process lives."""
    lease = await take(pair[0], "a")
    forgotten = lease.value.replace(":", ":77")
    await any_redis.hset(HELD, "b", forgotten)
    with pytest.raises(REFUSED):
        await pair[1].acquire("b")

    await pair[1].ask("b")

    (await take(pair[1], "b")).check()
    lease.check()


async def test_own_forgotten_lease_is_taken_over(
    pair: tuple[RedisLeases, RedisLeases], any_redis: Redis
) -> None:
    """A process that knows that it holds nothing need not wait for itself."""
    lease = await take(pair[0], "a")
    await any_redis.hset(HELD, "b", lease.value)
    assert (await take(pair[0], "b")).fence > lease.fence


async def test_leaving_in_good_order(any_redis_server: RedisServer, any_redis: Redis) -> None:
    """A process that ends leaves nothing of itself behind."""
    leases = RedisLeases(any_redis_server.url, fenced=True, ttl_s=TTL_S)
    with pytest.raises(LeaseUnavailable):
        await leases.acquire("a")
    async with leases.running():
        await settle(any_redis, leases)
        await (await leases.acquire("a")).release()
        assert await any_redis.hlen(PULSES) == 1
    assert await any_redis.hlen(PULSES) == 0
    assert await any_redis.hlen(HELD) == 0


async def test_the_dead_are_forgotten(
    pair: tuple[RedisLeases, RedisLeases], any_redis: Redis
) -> None:
    """What processes that were killed have left in Redis does not pile up."""
    lease = await take(pair[0], "a")
    await any_redis.hset(PULSES, "dead", 1)
    await any_redis.hset(HELD, "b", "dead:1 7")

    async def forgotten() -> bool:
        return not await any_redis.hexists(PULSES, "dead")

    await eventually(forgotten, "it is forgotten")
    assert await any_redis.hkeys(HELD) == [b"a"]
    lease.check()


# When the holder dies or is stopped.


class Holder:
    """A process that holds a lease; see ``lease_child``."""

    def __init__(self, url: str, upload_id: str) -> None:
        command = [sys.executable, "-m", "tests.shared.lease_child", url, upload_id, str(TTL_S)]
        self.process: Final = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self._out: Final[IO[str]] = self.process.stdout
        self.fence: Final = int(self._out.readline().split()[1])

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.process.pid, number)

    def lines_until(self, word: str) -> list[float]:
        """Return when it believed in its lease, up to the line with the word."""
        times = list[float]()
        while True:
            at, said = self._out.readline().split()
            if said == word:
                return times
            times.append(float(at))

    def stays_lost(self, seconds: float) -> None:
        """Check that it does not believe in its lease for so long."""
        end = time.monotonic() + seconds
        while float((line := self._out.readline().split())[0]) < end:
            assert line[1] == "lost"


@contextmanager
def holding(url: str, upload_id: str) -> Iterator[Holder]:
    """Run a holder; it is killed at the end."""
    holder = Holder(url, upload_id)
    try:
        yield holder
    finally:
        holder.process.kill()
        holder.process.communicate()


@on_each_server
async def test_killed_holder(
    pair: tuple[RedisLeases, RedisLeases], any_redis_server: RedisServer
) -> None:
    """The lease of a process that was killed goes to the next one after the TTL, not before."""
    with holding(any_redis_server.url, "a") as holder:
        await asyncio.sleep(1.5 * TTL_S)
        with pytest.raises(REFUSED):
            await pair[0].acquire("a")
        started = time.monotonic()
        holder.process.kill()
        lease = await take(pair[0], "a")
        assert 0.5 * TTL_S < time.monotonic() - started < 5 * TTL_S
        assert lease.fence > holder.fence


@on_each_server
async def test_stopped_holder(
    pair: tuple[RedisLeases, RedisLeases], any_redis_server: RedisServer
) -> None:
    """A holder that was stopped and wakes up when its time is over writes nothing more."""
    with holding(any_redis_server.url, "a") as holder:
        holder.signal(signal.SIGSTOP)
        lease = await take(pair[0], "a")
        granted = time.monotonic()
        holder.signal(signal.SIGCONT)
        believed = await asyncio.to_thread(holder.lines_until, "lost")
        assert all(at < granted for at in believed)
        await watch(lease, 0.5 * TTL_S)  # the one that woke up takes nothing away


@on_each_server
async def test_stopped_for_a_moment(
    pair: tuple[RedisLeases, RedisLeases], any_redis_server: RedisServer
) -> None:
    """A holder whom nobody replaced while it was stopped goes on once Redis has told it so."""
    with holding(any_redis_server.url, "a") as holder:
        holder.signal(signal.SIGSTOP)
        await asyncio.sleep(1.2 * TTL_S)
        holder.signal(signal.SIGCONT)
        await asyncio.to_thread(holder.lines_until, "lost")
        await asyncio.to_thread(holder.lines_until, "ok")
        with pytest.raises(REFUSED):
            await pair[0].acquire("a")


@on_each_server
async def test_stopped_while_redis_forgets(
    pair: tuple[RedisLeases, RedisLeases], any_redis_server: RedisServer, any_redis: Redis
) -> None:
    """A holder that comes back too late after a wipe cannot claim what others were granted."""
    with holding(any_redis_server.url, "a") as holder:
        holder.signal(signal.SIGSTOP)
        await any_redis.flushall()
        lease = await take(pair[0], "a")
        assert lease.fence > holder.fence
        await lease.release()  # now nobody has it, but its time has gone by
        holder.signal(signal.SIGCONT)
        await asyncio.to_thread(holder.lines_until, "lost")
        await asyncio.to_thread(holder.stays_lost, 0.5)
        again = await take(pair[1], "a")
        await watch(again, 0.5)


@pytest.mark.slow
async def test_woken_into_silence(start_redis: StartRedis) -> None:
    """One whose time ran out while it was stopped does not take silence for an outage."""
    server = start_redis(aof=False)
    with holding(server.url, "a") as holder:
        holder.signal(signal.SIGSTOP)
        server.signal(signal.SIGSTOP)
        await asyncio.sleep(1.2 * TTL_S)
        holder.signal(signal.SIGCONT)
        await asyncio.to_thread(holder.lines_until, "lost")
        await asyncio.to_thread(holder.stays_lost, TTL_S)
        server.signal(signal.SIGCONT)
        await asyncio.to_thread(holder.lines_until, "ok")


@pytest.mark.slow
async def test_redis_and_holder_sleep(start_redis: StartRedis, process: Process) -> None:
    """Time in which Redis served nobody does not count as silence of a holder."""
    server = start_redis(aof=False)
    with holding(server.url, "a") as holder:
        other = await process(server.url)
        holder.signal(signal.SIGSTOP)
        server.signal(signal.SIGSTOP)
        await asyncio.sleep(1.5 * TTL_S)
        server.signal(signal.SIGCONT)
        started = time.monotonic()
        lease = await take(other, "a")
        assert time.monotonic() - started > 0.9 * TTL_S
        granted = time.monotonic()
        holder.signal(signal.SIGCONT)
        believed = await asyncio.to_thread(holder.lines_until, "lost")
        assert all(at < granted for at in believed)
        lease.check()


# When Redis forgets, dies or hangs.


async def test_wiped_while_held(
    pair: tuple[RedisLeases, RedisLeases], any_redis: Redis
) -> None:
    """After FLUSHALL the holder keeps its lease and its fence, and fences go on growing."""
    lease = await take(pair[0], "a")
    free = await take(pair[0], "b")
    await free.release()
    await any_redis.flushall()
    started = time.monotonic()
    with pytest.raises(REFUSED):
        await pair[1].acquire("a")
    with pytest.raises(REFUSED):  # it may have been somebody's
        await pair[1].acquire("b")
    again = await take(pair[1], "b")
    assert time.monotonic() - started > 0.9 * TTL_S
    assert again.fence > free.fence
    lease.check()
    with pytest.raises(REFUSED):
        await pair[1].acquire("a")
    await lease.release()
    assert (await take(pair[1], "a")).fence > lease.fence


@on_each_own_server
@pytest.mark.parametrize(
    ("aof", "fenced"),
    [
        pytest.param(True, True, id="kept"),
        pytest.param(False, False, id="lost", marks=pytest.mark.slow),
    ],
)
async def test_killed_while_held(
    start_redis: StartRedis, process: Process, aof: bool, fenced: bool
) -> None:
    """While Redis is dead the holder goes on and nobody is granted anything; nor after that."""
    server = start_redis(aof=aof)
    one, other = [await process(server.url, fenced=fenced) for _ in range(2)]
    lease = await take(one, "a")
    await asyncio.to_thread(server.kill)
    await eventually(lambda: one.away and other.away, "they notice")
    started = time.monotonic()
    for leases in (one, other):
        with pytest.raises(LeaseUnavailable):
            await leases.acquire("b")
    await other.ask("a")
    assert time.monotonic() - started < 2
    await watch(lease, 1.5 * TTL_S)

    await asyncio.to_thread(server.start)

    lease.check()
    await eventually(lambda: not other.away and not one.away, "they notice")
    end = time.monotonic() + 1.2 * TTL_S
    while time.monotonic() < end:
        lease.check()
        with pytest.raises(REFUSED):
            await other.acquire("a")
        await asyncio.sleep(0.01)
    await (await take(other, "b")).release()
    await lease.release()
    assert (await take(other, "a")).fence > lease.fence


@on_each_own_server
async def test_the_last_second_is_lost(
    start_redis: StartRedis, connect_to: ConnectTo, process: Process
) -> None:
    """A lease that a restarted Redis does not know is not granted to others meanwhile."""
    server = start_redis(aof=False)
    redis = connect_to(server.url)
    one, other = [await process(server.url) for _ in range(2)]
    await settle(redis, one)
    await command(redis, "SAVE")
    lease = await take(one, "a")
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    end = time.monotonic() + 1.2 * TTL_S
    while time.monotonic() < end:
        lease.check()
        with pytest.raises(REFUSED):
            await other.acquire("a")
        await asyncio.sleep(0.01)
    assert await redis.hget(HELD, "a") == lease.value.encode()


@on_each_own_server
async def test_released_while_redis_is_dead(start_redis: StartRedis, process: Process) -> None:
    """What was given up while Redis was away is free when it is back, for everybody."""
    server = start_redis(aof=True)
    one, other = [await process(server.url) for _ in range(2)]
    leases = [await take(one, name) for name in ("a", "b")]
    await asyncio.to_thread(server.kill)
    await eventually(lambda: one.away, "it notices")
    for lease in leases:
        await lease.release()
    await asyncio.to_thread(server.start)
    assert (await take(one, "a")).fence > leases[0].fence

    async def granted() -> bool:
        await other.ask("b")
        try:
            await other.acquire("b")
        except REFUSED:
            return False
        return True

    await eventually(granted, "it is free")


@on_each_own_server
async def test_hung_while_held(start_redis: StartRedis, process: Process) -> None:
    """With a store that fences a holder outlasts a Redis that hangs; nobody overtakes it."""
    server = start_redis(aof=False)
    one, other = [await process(server.url) for _ in range(2)]
    lease = await take(one, "a")
    server.signal(signal.SIGSTOP)
    await watch(lease, 1.5 * TTL_S)
    started = time.monotonic()
    with pytest.raises(LeaseUnavailable):
        await other.acquire("a")
    assert time.monotonic() - started < 4 * TTL_S
    server.signal(signal.SIGCONT)
    end = time.monotonic() + 1.2 * TTL_S
    while time.monotonic() < end:
        lease.check()
        with pytest.raises(REFUSED):
            await other.acquire("a")
        await asyncio.sleep(0.01)


@on_each_own_server
async def test_hung_while_held_without_fences(
    start_redis: StartRedis, process: Process
) -> None:
    """Where nothing else keeps zombies out a holder stops when silence may mean that it is one.

    It goes on when it turns out that it was not.
    """
    server = start_redis(aof=False)
    one = await process(server.url, fenced=False)
    lease = await take(one, "a")
    server.signal(signal.SIGSTOP)
    started = time.monotonic()
    last = started
    while believes(lease):
        last = time.monotonic()
        await asyncio.sleep(0.005)
    assert 0.4 * TTL_S < last - started < TTL_S
    server.signal(signal.SIGCONT)
    await eventually(lambda: believes(lease), "it is told that it was right")


@on_each_own_server
async def test_grant_that_came_too_late(start_redis: StartRedis, process: Process) -> None:
    """A grant that Redis makes when nobody waits for it any more locks nothing for long."""
    server = start_redis(aof=False)
    one, other = [await process(server.url) for _ in range(2)]
    await (await take(one, "a")).release()
    server.signal(signal.SIGSTOP)
    with pytest.raises(LeaseUnavailable):
        await one.acquire("a")
    server.signal(signal.SIGCONT)

    async def granted() -> bool:
        await other.ask("a")  # again and again, as newcomers do: the first may be lost
        try:
            (await other.acquire("a")).check()
        except REFUSED:
            return False
        return True

    await eventually(granted, "it is free")


async def test_clock_that_is_set_back(
    pair: tuple[RedisLeases, RedisLeases], any_redis: Redis
) -> None:
    """When the clock of Redis jumps nobody loses a lease by it, and fences still grow."""
    lease = await take(pair[0], "a")
    ahead = int(time.time() * 1000) + 3_600_000
    await any_redis.hset(MEMORY, "last", ahead)
    await any_redis.set("lease:{writers}:fence", ahead)
    started = time.monotonic()
    with pytest.raises(REFUSED):
        await pair[1].acquire("b")
    other = await take(pair[1], "b")
    assert time.monotonic() - started > 0.9 * TTL_S
    assert other.fence > ahead
    lease.check()
    with pytest.raises(REFUSED):
        await pair[1].acquire("a")


def refused(text: str) -> OSError:
    """Return the error of several addresses that all failed, as event loops raise it."""
    return OSError(f"Multiple exceptions: {text}")


def after(cause: BaseException) -> BaseException:
    """Return an error that was raised because of another one."""
    try:
        raise ConnectionError("wrapped") from cause
    except ConnectionError as exc:
        return exc


@pytest.mark.parametrize(
    ("failure", "proof"),
    [
        (ConnectionRefusedError(111, "Connect call failed"), True),
        (FileNotFoundError(2, "no socket"), True),
        (BusyLoadingError("LOADING"), True),
        (after(ConnectionRefusedError(111, "Connect call failed")), True),
        (refused("[Errno 111] Connect ('::1'), [Errno 111] Connect ('127.0.0.1')"), True),
        (refused("[Errno 111] Connect ('::1'), [Errno 110] timed out ('10.0.0.1')"), False),
        (TimeoutError(), False),
        (ConnectionResetError(104, "reset"), False),
        (after(TimeoutError()), False),
        (EOFError(), False),
        (OSError(113, "No route to host"), False),
    ],
)
def test_only_a_refusal_proves_absence(failure: BaseException, proof: bool) -> None:
    """Silence, and whatever else one process alone may meet, is no proof that Redis is dead."""
    assert proves_absence(failure) is proof


async def test_connects_to_nothing_before_it_runs() -> None:
    """A wrong URL is told by the service's own check, not by what is built before it."""
    with pytest.raises(LeaseUnavailable):
        await RedisLeases("", fenced=False).acquire("a")
