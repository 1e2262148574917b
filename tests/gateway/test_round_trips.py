"""Many readers, one round trip: each gets his own answer, or his own error."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from services.gateway.round_trips import RoundTrips
from shared.streams import REDIS_FAILURES, connect, pipelined
from tests.processes import RedisServer, running
from tests.shared.waiting import eventually


async def reads_processed(redis: Redis) -> int:
    """Return how often Redis has found something to read on a connection."""
    return int((await redis.info("stats"))["total_reads_processed"])


async def gets_processed(redis: Redis) -> int:
    """Return how many GETs Redis has seen."""
    return int((await redis.info("commandstats")).get("cmdstat_get", {"calls": 0})["calls"])


async def test_one_trip(redis: Redis) -> None:
    """What a thousand ask at a time goes out together, once, and comes back to who asked it."""
    for n in range(3):
        await redis.set(f"key{n}", n)
    trips = RoundTrips(redis)
    await trips.ask(("PING",))
    before, gets = await reads_processed(redis), await gets_processed(redis)
    asked = [trips.ask(("GET", f"key{n % 3}"), ("ECHO", str(n))) for n in range(1000)]
    answers = await asyncio.gather(*asked)
    assert await reads_processed(redis) - before < 20
    assert await gets_processed(redis) - gets == 3
    assert answers == [[b"%d" % (n % 3), b"%d" % n] for n in range(1000)]


async def test_a_refused_command_is_its_askers_alone(redis: Redis) -> None:
    """An error of one command does not reach those who asked beside it."""
    await redis.rpush("a list", "x")
    trips = RoundTrips(redis)
    asked = [
        trips.ask(("LLEN", "a list")),
        trips.ask(("PING",), ("GET", "a list")),
        trips.ask(("ECHO", "b")),
    ]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(answers.pop(1), ResponseError)
    assert answers == [[1], [b"b"]]


async def test_who_asked_may_have_gone(redis: Redis) -> None:
    """A caller that is cancelled, before or amid the trip, takes nothing from the others."""
    trips = RoundTrips(redis)
    first, second, third = (
        asyncio.ensure_future(trips.ask(("ECHO", name))) for name in ("a", "b", "c")
    )
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    second.cancel()
    assert await third == [b"c"]
    assert first.cancelled()
    assert second.cancelled()
    assert await trips.ask(("ECHO", "d")) == [b"d"]


async def test_while_redis_is_away(tmp_path: Path) -> None:
    """All who ask get the failure, at once, and an answer when Redis is back."""
    server = RedisServer(tmp_path)
    with running(server):
        redis = connect(server.url)
        trips = RoundTrips(redis)
        await trips.ask(("PING",))
        server.kill()
        asked = [trips.ask(("PING",)) for _ in range(50)]
        async with asyncio.timeout(10):
            failures = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(one, REDIS_FAILURES) for one in failures)
        server.start()

        async def answers() -> bool:
            try:
                return await trips.ask(("ECHO", "x")) == [b"x"]
            except REDIS_FAILURES:
                return False

        await eventually(answers, "it answers again")
        with pytest.raises(ResponseError):
            await pipelined(redis, [("NOSUCH",)])
        await redis.aclose()
