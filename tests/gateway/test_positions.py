"""Recording positions: many at once, the last one of each upload, and never backwards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

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
from shared.streams import command, connect, progress_stream, stream_names
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
    found: dict[bytes, bytes] = await redis.hgetall(f"{PREFIX}:{told.id}")
    return {name.decode(): text.decode() for name, text in found.items()}


async def bytes_of(redis: Redis, told: Told) -> int:
    """Return how far an upload is, as it is recorded."""
    state = await projection_on(redis).read(told.id)
    return state.bytes_uploaded if state is not None else -1


STEPS = st.lists(
    st.one_of(
        st.builds(
            dict,
            offset=st.integers(0, 50) | st.integers(0, 2**62),
            at=st.integers(START - 5, START + 5) | st.integers(0, 10**15),
            size=st.none() | st.integers(0, 100) | st.integers(0, 2**62),
            speed=st.floats(-1e3, 1e15),
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
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_record_is_what_moving_makes_of_it(
    lasting_redis: LastingRedis, size: int | None, steps: list[dict[str, object]]
) -> None:
    """The script writes, to the letter, what folding the positions in Python would write."""
    lasting_redis.run(_compare(lasting_redis, size, steps))
