"""Recording positions: many at once, the last one of each upload, and never backwards."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from services.gateway.folding import fold, move
from services.gateway.projection import Projection
from services.gateway.reading import GROUP
from services.gateway.record import to_fields
from services.gateway.recording import RecordingGroup
from shared.events import MalformedEvent
from shared.streams import command, connect, pipelined, stream_names
from tests.gateway.feed import PARTITIONS, Feed, Position, entry
from tests.gateway.samples import START, Told
from tests.processes import RedisServer
from tests.shared.waiting import alongside, eventually

PREFIX = "upload_progress"
TTL_S = 3600
SOON_S = 1.0


def projection_on(redis: Redis) -> Projection:
    """Return a projection with the settings' defaults."""
    return Projection(redis, prefix=PREFIX, ttl_s=TTL_S)


def group_on(redis: Redis, *, min_idle_s: float = 30.0) -> RecordingGroup:
    """Return a member of the group, as a gateway has one."""
    projection = projection_on(redis)
    return RecordingGroup(redis, projection, partitions=PARTITIONS, min_idle_s=min_idle_s)


async def fields_of(redis: Redis, told: Told) -> dict[str, str]:
    """Return the hash of an upload."""
    found: Any = await redis.hgetall(f"{PREFIX}:{told.id}")
    return {name.decode(): text.decode() for name, text in found.items()}


async def bytes_of(redis: Redis, told: Told) -> int:
    """Return how far an upload is, as it is recorded."""
    state = await projection_on(redis).read(told.id)
    return state.bytes_uploaded if state is not None else -1


STEPS: st.SearchStrategy[list[dict[str, Any]]] = st.lists(
    st.one_of(
        st.builds(
            dict,
            offset=st.integers(0, 50) | st.integers(0, 2**53),
            at=st.integers(START - 5, START + 5) | st.integers(0, 10**15),
            size=st.none() | st.integers(0, 100) | st.integers(0, 2**53),
            speed=st.integers(-1000, 10**13).map(lambda tenths: tenths / 10),
        ),
        st.builds(
            dict,
            progress=st.sampled_from([0.0, 12.5, 50.0, 100.0]),
            at=st.integers(START - 2, START + 2),
            seq=st.integers(1, 3),
            stage=st.sampled_from(["", "reading", "zwölf Zeilen"]),
            message=st.sampled_from(["", 'a "word"\n']),
            current=st.none() | st.integers(0, 2**60),
        ),
    ),
    max_size=8,
)


@given(size=st.none() | st.integers(1, 100), steps=STEPS)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_record_is_what_moving_makes_of_it(
    redis_server: RedisServer, size: int | None, steps: list[dict[str, Any]]
) -> None:
    """What the script writes is, to the letter, what a position makes of a state in memory."""
    asyncio.run(_write_and_compare(redis_server.url, size, steps))


async def _write_and_compare(url: str, size: int | None, steps: list[dict[str, Any]]) -> None:
    async with AsyncExitStack() as stack:
        redis = connect(url)
        stack.push_async_callback(redis.aclose)
        projection, told = projection_on(redis), Told(size=size)
        created = told.created()
        state = fold(None, created)
        assert state is not None
        await projection.handle([entry(created)])
        for step in steps:
            of_upload = "offset" in step
            position: Position = told.position(**step) if of_upload else told.processing(**step)
            state = move(state, position) or state
            await projection.handle([entry(position)])
        found = await fields_of(redis, told)
        wanted = to_fields(state)
        for known in (found, wanted):
            del known["estimated_completion"]  # of the position alone, where clocks disagree
        assert found == {name: wanted[name] for name in found}
        assert await projection.read(told.id) == state


async def test_estimate(any_redis: Redis) -> None:
    """The record says when the last byte will be there, as the state does that is read."""
    projection, told = projection_on(any_redis), Told(size=1000)
    position = told.position(400, at=START + 5, speed=100.0)
    await projection.handle([entry(told.created()), entry(position)])
    found = await fields_of(any_redis, told)
    assert found["estimated_completion"] == "2025-01-01T12:00:06.005Z"
    assert found["percentage"] == "40.0"
    state = await projection.read(told.id)
    assert state is not None
    assert state.estimated_completion == found["estimated_completion"]


@pytest.mark.parametrize("family", ["upload", "job"])
async def test_a_position_that_comes_before_its_upload(any_redis: Redis, family: str) -> None:
    """Told before the creation is recorded, the last position of an upload is not lost."""
    projection, told = projection_on(any_redis), Told()
    created = told.created()
    of_upload = family == "upload"
    position: Position = told.position(700) if of_upload else told.processing(30)
    older: Position = told.position(500) if of_upload else told.processing(20)
    await projection.handle([entry(position)])
    assert await fields_of(any_redis, told) == {}
    # As one that is claimed from a gateway that was killed, which comes after what it preceded.
    await projection.handle([entry(older)])
    await projection.handle([entry(created)])
    await projection.handle([])
    state = await projection.read(told.id)
    assert state is not None
    assert (state.bytes_uploaded == 700, state.job_progress == 30.0) == (
        *(family == "upload", family == "job"),
    )


async def test_lifecycle_events_do_not_wear_out_what_waits(any_redis: Redis) -> None:
    """Catches early positions that are given up, or lost, while much else is recorded."""
    projection, told = projection_on(any_redis), Told()
    created = told.created()
    await projection.handle([entry(told.position(700))])
    for _ in range(5):
        await asyncio.gather(
            *(projection.handle([entry(Told().created())]) for _ in range(3)),
        )
    await projection.handle([entry(created)])
    await projection.handle([])
    assert await bytes_of(any_redis, told) == 700


async def test_a_position_of_an_unknown_upload_is_forgotten(any_redis: Redis) -> None:
    """What nobody ever creates is not kept in memory, nor written much later."""
    projection, told = projection_on(any_redis), Told()
    created = told.created()
    await projection.handle([entry(told.position(700))])
    for _ in range(3):
        await projection.handle([])
    await projection.handle([entry(created)])
    await projection.handle([])
    assert await bytes_of(any_redis, told) == 0


async def test_a_broken_entry_spoils_no_other(any_redis: Redis) -> None:
    """An entry whose body is not what its ids say changes nothing, and is told of."""
    projection, told = projection_on(any_redis), Told()
    await projection.handle([entry(told.created())])
    good, bad = entry(told.position(5)), entry(told.position(9))
    for body in (b"[]", b"{", b"[[1]]", b"\xff"):
        broken = bad._replace(fields={**bad.fields, b"d": body})
        with pytest.raises(MalformedEvent):
            await projection.handle([good, broken])
    assert await bytes_of(any_redis, told) == 0


async def test_many_uploads_in_pieces(any_redis: Redis) -> None:
    """More uploads than one call takes are all written, each with its own position."""
    projection, uploads = projection_on(any_redis), [Told() for _ in range(250)]
    await projection.handle([entry(one.created()) for one in uploads])
    await projection.handle([entry(one.position(n + 1)) for n, one in enumerate(uploads)])
    states = await projection.read_all(one.id for one in uploads)
    assert [states[one.id].bytes_uploaded for one in uploads] == list(range(1, 251))


async def test_life_is_not_counted_anew_each_time(any_redis: Redis) -> None:
    """Positions cost no expiry each: a record is kept longer once it is a minute old."""
    projection, told = projection_on(any_redis), Told()
    key = f"{PREFIX}:{told.id}"
    await projection.handle([entry(told.created())])
    for left, kept in ((TTL_S - 50, TTL_S - 50), (TTL_S - 70, TTL_S)):
        for one in (key, f"{key}:log", f"{PREFIX}:user:ada"):
            await any_redis.expire(one, left)
        await projection.handle([entry(told.position(left * -1 + 2 * TTL_S))])
        for one in (key, f"{key}:log", f"{PREFIX}:user:ada"):
            assert kept - 5 < await any_redis.ttl(one) <= kept


async def test_the_last_position_before_a_pause(any_redis_server: RedisServer) -> None:
    """However fast positions come, the last one is recorded within a second."""
    async with AsyncExitStack() as stack:
        redis = await _client(stack, any_redis_server)
        group = group_on(await _client(stack, any_redis_server))
        await group.prepare()
        for part in (group.lifecycle, group.positions):
            _ = await stack.enter_async_context(alongside(part.run()))
        told, feed = Told(), Feed(redis)
        await feed.tell(told.created())
        for step in range(3):
            for offset in range(1, 40):
                await feed.tell(told.position(1000 * step + offset))
            last = 1000 * step + 39
            began = time.monotonic()
            await eventually(
                partial(_is_at, redis, told, last), "the last position is recorded"
            )
            assert time.monotonic() - began < SOON_S
        before = await _scripts_run(redis)
        for offset in range(4000, 4100):
            await feed.tell(told.position(offset))
        await eventually(lambda: _is_at(redis, told, 4099), "the last position is recorded")
        assert await _scripts_run(redis) - before < 20


async def test_a_member_killed_with_positions_in_hand(any_redis_server: RedisServer) -> None:
    """What it had taken up is recorded by another one; what came later is not taken back."""
    async with AsyncExitStack() as stack:
        redis = await _client(stack, any_redis_server)
        paused, moving, feed = Told(), Told(), Feed(redis)
        both = (paused, moving)
        group = group_on(await _client(stack, any_redis_server), min_idle_s=0.3)
        await group.prepare()
        await feed.tell(*(one.created() for one in both))
        await feed.tell(*(one.position(500) for one in both))
        streams = stream_names(PARTITIONS)
        taken = ("XREADGROUP", "GROUP", GROUP, "dead", "STREAMS", *streams[PARTITIONS:])
        assert await command(redis, *taken, *[">"] * PARTITIONS)
        await feed.tell(moving.position(900))
        for part in (group.lifecycle, group.positions):
            _ = await stack.enter_async_context(alongside(part.run()))
        await eventually(lambda: _is_at(redis, paused, 500), "the position is claimed")

        async def nothing_is_pending() -> bool:
            commands = [("XPENDING", one, GROUP) for one in streams[PARTITIONS:]]
            return not any(one[0] for one in await pipelined(redis, commands))

        await eventually(nothing_is_pending, "nothing is left behind")
        # Read before its creation was recorded, it is written with the next ones.
        await eventually(partial(_is_at, redis, moving, 900), "the newer position is written")


async def _client(stack: AsyncExitStack, server: RedisServer) -> Redis:
    client = connect(server.url)
    stack.push_async_callback(client.aclose)
    return client


async def _is_at(redis: Redis, told: Told, offset: int) -> bool:
    return await bytes_of(redis, told) == offset


async def _scripts_run(redis: Redis) -> int:
    stats: dict[str, Any] = await redis.info("commandstats")
    return int(stats["cmdstat_evalsha"]["calls"])
