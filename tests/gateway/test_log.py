"""The log that a client resumes from: what is in it, where, how much; and merging two."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from services.gateway.log import (
    LOG_LIMIT,
    Logged,
    UploadLog,
    counter_name,
    log_from,
    merged_log,
)
from services.gateway.projection import Projection
from shared.events import LifecycleEvent, encode
from shared.streams import connect, entry_order, partition_of
from tests.gateway.feed import PARTITIONS, entry
from tests.gateway.samples import Told
from tests.processes import RedisServer


def projection_on(redis: Redis) -> Projection:
    """Return a projection with the settings' defaults."""
    return Projection(redis, prefix="upload_progress", ttl_s=3600)


def story_of(told: Told) -> list[LifecycleEvent]:
    """Return the events of a whole life, in an order in which they may happen."""
    return [
        *(told.created(), told.completed(), told.queued(), told.stored()),
        *(told.started(), told.processed(), told.deleted()),
    ]


def placed(told: Sequence[LifecycleEvent], *, first_ms: int = 10) -> list[Logged]:
    """Return the events as they stand on a stream, one after another."""
    partition = partition_of(told[0].upload_id, PARTITIONS)
    return [Logged(b"%d-0" % (first_ms + n), partition, one) for n, one in enumerate(told)]


async def handed(projection: Projection, entries: Sequence[Logged]) -> None:
    """Hand the entries over as one batch."""
    await projection.handle([entry(one.event, entry_id=one.entry_id) for one in entries])


async def test_events_are_logged_in_their_order(any_redis: Redis) -> None:
    """All lifecycle events come back as they stand on the stream, and no positions."""
    projection, told, other = projection_on(any_redis), Told(), Told()
    entries = placed(story_of(told))
    for one in entries:
        await handed(projection, [one])
        await projection.handle([entry(told.position(5)), entry(told.processing(7))])
    logs = await projection.log_of([told.id, other.id])
    assert logs == {told.id: UploadLog(tuple(entries)), other.id: UploadLog()}
    assert logs[told.id].is_whole
    assert not logs[other.id].is_whole


async def test_repeats_do_not_stand_twice(any_redis: Redis) -> None:
    """Entries handed over again, and copies on the stream, move no event."""
    projection, told = projection_on(any_redis), Told()
    story = story_of(told)
    entries, copies = placed(story), placed(story, first_ms=100)
    await handed(projection, copies[2:4])  # a member that was faster with the copies
    await handed(projection, entries)
    await handed(projection, entries[1:5])
    await handed(projection, copies)
    assert (await projection.log_of([told.id]))[told.id].entries == tuple(entries)


async def test_the_log_is_bounded(any_redis: Redis) -> None:
    """Only the newest are kept, in one batch or many, and a log so cut is not whole."""
    projection = projection_on(any_redis)
    for size in (1, 40, 200):
        told = Told()
        entries = placed([told.created(), *(told.stored() for _ in range(LOG_LIMIT + 35))])
        for at in range(0, len(entries), size):
            await handed(projection, entries[at : at + size])
        await handed(projection, entries[:3])  # told again, but no place for them any more
        log = (await projection.log_of([told.id]))[told.id]
        assert log.entries == tuple(entries[-LOG_LIMIT:])
        assert not log.is_whole


async def test_entry_ids_are_compared_as_numbers(any_redis: Redis) -> None:
    """An id with fewer digits is the smaller one, in milliseconds and in number."""
    projection, told = projection_on(any_redis), Told()
    story = [told.created(), told.completed(), told.stored()]
    ids = (b"9-9", b"9-10", b"10-2")
    entries = [Logged(i, 0, one) for i, one in zip(ids, story, strict=True)]
    partition = partition_of(told.id, PARTITIONS)
    for one in reversed(entries):
        await handed(projection, [one])
    await projection.handle([entry(story[0], entry_id=b"10-0")])
    log = (await projection.log_of([told.id]))[told.id]
    assert [(one.entry_id, one.partition) for one in log.entries] == [
        (one, partition) for one in ids
    ]


async def test_members_log_at_once(any_redis_server: RedisServer) -> None:
    """However the batches of two members interleave, the log has each event once."""
    told = Told()
    entries = placed([told.created(), *(told.stored() for _ in range(50))])
    batches = [entries[at : at + 3] for at in range(0, 51, 2)]
    one, other = connect(any_redis_server.url), connect(any_redis_server.url)
    try:
        members = [projection_on(client) for client in (one, other)]

        async def work(member: Projection) -> None:
            while batches:
                await handed(member, batches.pop())

        await asyncio.gather(*(work(member) for member in members))
        log = (await members[0].log_of([told.id]))[told.id]
        assert log.entries == tuple(entries)
    finally:
        await one.aclose()
        await other.aclose()


async def test_many_logs_are_read_in_pieces(any_redis: Redis) -> None:
    """More logs than one round trip takes are all found."""
    projection, uploads = projection_on(any_redis), [Told() for _ in range(450)]
    await projection.handle([entry(one.created()) for one in uploads])
    logs = await projection.log_of(one.id for one in uploads)
    assert all(logs[one.id].is_whole for one in uploads)
    assert len(logs) == 450


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"1-0",
        b"1-0 0",
        b"x 0 {}",
        b"1-0 x {}",
        b"1-0 0 {",
        b'1-0 0 {"type":"upload.sung"}',
    ],
)
def test_what_cannot_be_read_is_missing(value: bytes) -> None:
    """A value that is damaged, or of a newer build, is left out, and the log is not whole."""
    told = Told()
    created, completed, stored = told.created(), told.completed(), told.stored()
    log = log_from(
        {
            b"upload:1": b"1-0 0 " + encode(created),
            b"upload:2": value,
            b"upload:3": b"3-0 0 " + encode(stored),
        }
    )
    assert [one.event for one in log.entries] == [created, stored]
    assert not log.is_whole
    assert counter_name(completed) == "upload:2"


def test_a_log_of_the_job_alone_is_not_whole() -> None:
    """Where the upload's own events are gone, nothing says that none is missing."""
    told = Told()
    assert not UploadLog(tuple(placed([told.queued(), told.started()]))).is_whole


@given(st.data())
def test_merging_misses_nothing(data: st.DataObject) -> None:
    """Whatever part of the events either side knows, in whatever order, and with copies."""
    told = Told("one")
    story = story_of(told)
    entries, copies = placed(story), placed(story, first_ms=100)
    of_both: Any = st.sets(st.sampled_from(range(len(story))))
    recorded, recent, again = (data.draw(of_both) for _ in range(3))
    log = merged_log(
        UploadLog(tuple(entries[n] for n in sorted(recorded))),
        data.draw(st.permutations([entries[n] for n in recent] + [copies[n] for n in again])),
    )
    firsts = [
        entries[n] if n in recorded | recent else copies[n]
        for n in sorted(recorded | recent | again)
    ]
    assert list(log.entries) == sorted(firsts, key=lambda one: entry_order(one.entry_id))
    assert log.is_whole == _no_holes([one.event for one in log.entries])


def _no_holes(known: Sequence[LifecycleEvent]) -> bool:
    """Return whether the names are upload:1 … upload:n, n > 0, and job:1 … job:m."""
    names = {counter_name(one) for one in known}
    uploads = sum(name.startswith("upload:") for name in names)
    expected = {f"upload:{n + 1}" for n in range(uploads)}
    expected |= {f"job:{n + 1}" for n in range(len(names) - uploads)}
    return bool(uploads) and names == expected
