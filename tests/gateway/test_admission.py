"""Places of users over several gateways: never too many, never lost, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from redis.asyncio import Redis

from services.gateway.admission import Admission, Place
from services.gateway.keys import Keys
from shared.errors import RateLimited, Unavailable
from shared.streams import connect
from tests.gateway.samples import ADA, EVE, principal
from tests.processes import RedisServer, running
from tests.shared.waiting import alongside, eventually

KEYS: Final = Keys("upload_progress")
KEY: Final = KEYS.sockets(ADA.tenant, ADA.user_id)
MOST: Final = 5


@asynccontextmanager
async def admitting(
    redis: Redis, *, most: int = 1000, lease_s: float = 30
) -> AsyncIterator[Admission]:
    """Yield the places of one gateway; it ends without a word, as if it were killed."""
    one = Admission(redis, KEYS, most=most, most_of_user=MOST, lease_s=lease_s)
    async with alongside(one.run()):
        yield one


async def let_in(admission: Admission, count: int = 1) -> list[Place]:
    """Ask for so many places of Ada's at once; return those that were given."""

    async def knock() -> Place | None:
        place = admission.enter()
        try:
            await place.claim(ADA)
        except RateLimited:
            place.release()
            return None
        return place

    found = await asyncio.gather(*(knock() for _ in range(count)))
    return [one for one in found if one is not None]


async def test_all_gateways_count_together(any_redis: Redis) -> None:
    """Five of one user, wherever; somebody else has his own; who leaves makes room."""
    async with admitting(any_redis) as here, admitting(any_redis) as there:
        first = [*await let_in(here, 3), *await let_in(there, 2)]
        assert len(first) == MOST
        assert await let_in(here) == await let_in(there) == []
        await here.enter().claim(EVE)
        await here.enter().claim(principal(ADA.user_id, "another-tenant"))
        first[0].release()

        async def is_let_in() -> bool:
            return len(await let_in(there)) == 1

        await eventually(is_let_in, "there is room again")
        assert await let_in(here) == []


async def test_storm(any_redis: Redis) -> None:
    """A hundred at once, at two gateways: exactly five get in, and Redis knows no more."""
    async with admitting(any_redis) as here, admitting(any_redis) as there:
        both = await asyncio.gather(let_in(here, 50), let_in(there, 50))
        assert sum(map(len, both)) == MOST
        assert await any_redis.zcard(KEY) == MOST
        for place in (*both[0], *both[1]):
            place.release()

        async def is_empty() -> bool:
            return not await any_redis.exists(KEY)

        await eventually(is_empty, "nothing is left")
        assert len(await let_in(here, 50)) == MOST


async def test_a_storm_takes_few_round_trips(redis: Redis) -> None:
    """What is asked for at once goes to Redis together: no connection for each handshake."""
    async with admitting(redis) as here:
        await let_in(here)
        before = (await redis.info("stats"))["total_connections_received"]
        callers = [principal(f"user-{n}") for n in range(500)]
        await asyncio.gather(*(here.enter().claim(one) for one in callers))
        after = (await redis.info("stats"))["total_connections_received"]
        assert after - before <= 2
        held = [await redis.zcard(KEYS.sockets(one.tenant, one.user_id)) for one in callers]
        assert held == [1] * 500


async def test_leases_are_prolonged(redis: Redis) -> None:
    """Who stays for longer than a lease keeps his place."""
    async with admitting(redis, lease_s=1.2) as here, admitting(redis, lease_s=1.2) as there:
        await let_in(here, MOST)
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            assert await let_in(there) == []
            await asyncio.sleep(0.05)


async def test_places_of_the_dead_come_back(any_redis: Redis) -> None:
    """When a gateway ends without a word, its leases run out, and not before."""
    async with admitting(any_redis) as there:
        async with admitting(any_redis, lease_s=1) as dead:
            await let_in(dead, MOST)
        died = time.monotonic()
        assert await let_in(there) == []

        async def is_let_in() -> bool:
            return len(await let_in(there)) == 1

        await eventually(is_let_in, "a place has come back")
        assert 0.3 < time.monotonic() - died < 10


async def test_an_orderly_end_leaves_nothing(redis: Redis) -> None:
    """A gateway that ends gives its places up, for its clients come back elsewhere at once."""
    async with admitting(redis) as here:
        places = await let_in(here, MOST)
        places[0].release()
    await here.leave()
    assert not await redis.exists(KEY)


async def test_a_refusal_is_refused_for_good(redis: Redis) -> None:
    """Prolonging what is held never lets in who is being refused at that moment."""
    async with admitting(redis, lease_s=0.01) as here, admitting(redis) as there:
        await let_in(there, MOST)
        for _ in range(200):
            assert await let_in(here, 2) == []
        assert await redis.zcard(KEY) == MOST


async def test_redis_dies_and_comes_back(tmp_path: Path) -> None:
    """Without Redis each process counts alone, at once; then Redis learns of all who came."""
    server = RedisServer(tmp_path / "redis")
    with running(server):
        redis = connect(server.url)
        async with admitting(redis) as here, admitting(redis) as there:
            await let_in(here, 2)
            server.kill()
            for _ in range(3):
                started = time.monotonic()
                assert len(await let_in(here)) == 1
                assert time.monotonic() - started < 1.5
            assert await let_in(here) == []
            server.start()

            async def is_told() -> bool:
                return bool(await redis.zcard(KEY) == MOST)

            await eventually(is_told, "an empty Redis knows of all five")

            async def is_full() -> bool:
                for place in (came := await let_in(there)):
                    place.release()
                return not came

            await eventually(is_full, "the other one refuses")
        await redis.aclose()


async def test_redis_hangs(tmp_path: Path) -> None:
    """A Redis that does not answer holds one handshake up for a moment, and no other."""
    server = RedisServer(tmp_path / "redis")
    with running(server):
        redis = connect(server.url)
        async with admitting(redis) as here:
            places = await let_in(here, 1)
            server.signal(signal.SIGSTOP)
            started = time.monotonic()
            places += await let_in(here, 1)
            assert 0.09 < time.monotonic() - started < 2
            started = time.monotonic()
            places += await let_in(here, 3)
            for _ in range(30):  # in turn, so that each would add its own moment
                place = here.enter()
                await place.claim(EVE)
                place.release()
            assert time.monotonic() - started < 2
            assert await let_in(here) == []
            for place in places[:4]:
                place.release()
            server.signal(signal.SIGCONT)

            async def is_told() -> bool:
                return bool(await redis.zcard(KEY) == 1)

            await eventually(is_told, "those who left are taken out", limit_s=15)
        await redis.aclose()


async def test_places_of_the_process(redis: Redis) -> None:
    """Those who are in the middle of their handshake count, and nobody counts twice."""
    async with admitting(redis, most=2) as here:
        first, second = here.enter(), here.enter()
        with pytest.raises(Unavailable) as refusal:
            here.enter()
        assert int(refusal.value.headers["Retry-After"]) >= 1
        first.release()
        first.release()
        third = here.enter()
        with pytest.raises(Unavailable):
            here.enter()
        for one in (second, third):
            one.release()
        assert not here.is_full
        here.closing = True
        with pytest.raises(Unavailable):
            here.enter()


async def test_held_for_as_long_as_a_context_lasts(redis: Redis) -> None:
    """What is no socket counts the same way, and leaves nothing behind when it fails."""
    async with admitting(redis, most=MOST + 1) as here:
        await let_in(here, MOST - 1)
        with contextlib.suppress(ZeroDivisionError):
            async with here.hold(ADA):
                assert await redis.zcard(KEY) == MOST
                for _ in range(3):
                    with pytest.raises(RateLimited):
                        await here.hold(ADA).__aenter__()
                raise ZeroDivisionError
        async with here.hold(ADA):
            assert not here.is_full


async def test_a_handshake_that_is_cancelled(redis: Redis) -> None:
    """Who goes while Redis is asked leaves no place taken."""
    async with admitting(redis) as here:
        for _ in range(20):
            place = here.enter()
            asking = asyncio.ensure_future(place.claim(ADA))
            await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking])
            place.release()

        async def is_empty() -> bool:
            return not await redis.exists(KEY)

        await eventually(is_empty, "nothing is left")
        assert len(await let_in(here, 10)) == MOST


async def test_who_goes_while_a_message_is_obeyed(redis: Redis) -> None:
    """A socket that ends before Redis has answered keeps no place: nobody cancels it."""
    async with admitting(redis) as here:
        for _ in range(2 * MOST):
            place = here.enter()
            asking = asyncio.ensure_future(place.claim(ADA))
            await asyncio.sleep(0)
            place.release()
            await asyncio.wait([asking])

        async def is_empty() -> bool:
            return not await redis.exists(KEY)

        await eventually(is_empty, "nothing is left")
        assert len(await let_in(here, 10)) == MOST
