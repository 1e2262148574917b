"""The progress in Redis: folded once, never taken back, gone when it is due."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from services.gateway.folding import fold, move
from services.gateway.projection import Projection, _Folded
from services.gateway.state import ProgressState
from shared.events import LifecycleEvent, MalformedEvent, UnknownEvent
from shared.stream_group import GroupEntry, StreamGroup
from shared.streams import command, connect, stream_names
from tests.gateway.feed import PARTITIONS, Feed, Position, entry
from tests.gateway.samples import START, Told
from tests.processes import RedisServer
from tests.shared.waiting import alongside, eventually

PREFIX = "upload_progress"
RESULT = {"rows": 10}
TTL_S = 3600


def projection_on(redis: Redis) -> Projection:
    """Return a projection with the settings' defaults."""
    return Projection(redis, prefix=PREFIX, ttl_s=TTL_S)


@pytest.fixture
def projection(any_redis: Redis) -> Projection:
    """A projection on each server."""
    return projection_on(any_redis)


async def told_to(projection: Projection, *told: LifecycleEvent | Position) -> None:
    """Hand the events over one by one."""
    for one in told:
        await projection.handle([entry(one)])


async def stored(projection: Projection, upload_id: str) -> ProgressState:
    """Return what is recorded of an upload."""
    state = await projection.read(upload_id)
    assert state is not None
    return state


def applied(
    state: ProgressState | None, told: LifecycleEvent | Position
) -> ProgressState | None:
    """Return what folding makes of a state."""
    if isinstance(told, Position):
        return state if state is None else move(state, told) or state
    return fold(state, told) or state


async def calls(redis: Redis, name: str) -> int:
    """Return how often a command has been called."""
    stats: dict[str, Any] = await redis.info("commandstats")
    return int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"])


async def test_what_is_told_is_recorded(projection: Projection) -> None:
    """After each event the record is what folding makes of it."""
    told = Told()
    state = None
    events = (
        *(told.created(), told.completed(), told.queued(), told.stored(), told.started()),
        *(
            told.processing(40, message="rows", current=4, total=10),
            told.processed(result=RESULT),
        ),
    )
    for event in events:
        await told_to(projection, event)
        state = applied(state, event)
        assert await projection.read(told.id) == state
    assert state is not None
    assert (state.job_status, state.result) == ("completed", RESULT)


async def test_a_batch_writes_once_an_upload(any_redis: Redis) -> None:
    """However many events of an upload a batch has, each half of it is written once."""
    projection, uploads = projection_on(any_redis), [Told() for _ in range(5)]
    other = Told()  # the scripts are known from here on
    await told_to(projection, other.created(), other.position(1), other.processing(1))
    before = await calls(any_redis, "evalsha")
    batch = [entry(one.created()) for one in uploads]
    batch += [entry(*(one.position(n) for one in uploads)) for n in range(20)]
    batch += [entry(one.completed()) for one in uploads[:2]]
    batch += [entry(one.stored()) for one in uploads[:2]]
    batch += [entry(one.queued()) for one in uploads[:2]]
    batch += [entry(*(one.processing(n) for one in uploads[:2])) for n in range(20)]
    await projection.handle(batch)
    logs, upload_halves, job_halves, positions, notes = 5, 5, 2, 2, 1
    writes = logs + upload_halves + job_halves + positions + notes
    assert await calls(any_redis, "evalsha") == before + writes
    moving = [entry(*(one.position(n) for one in uploads[2:])) for n in range(20, 40)]
    moving += [entry(*(one.processing(n) for one in uploads[:2])) for n in range(20, 40)]
    await projection.handle(moving)
    assert await calls(any_redis, "evalsha") == before + writes + positions
    states = await projection.read_all(one.id for one in uploads)
    assert [states[one.id].status for one in uploads] == ["completed"] * 2 + ["uploading"] * 3
    assert [states[one.id].bytes_uploaded for one in uploads[2:]] == [39] * 3
    assert [states[one.id].job_progress for one in uploads[:2]] == [39.0] * 2


async def test_furthest_position_of_a_batch(projection: Projection) -> None:
    """A position that comes after a further one in the same batch is not what is kept."""
    told = Told()
    batch = [entry(told.created()), entry(told.position(9)), entry(told.position(5))]
    await projection.handle(batch)
    assert (await stored(projection, told.id)).bytes_uploaded == 9


async def test_positions(projection: Projection) -> None:
    """A position makes no record, takes none back, and says nothing once it is over."""
    told = Told()
    created = told.created()
    await told_to(projection, told.position(5))
    assert await projection.read(told.id) is None
    await told_to(projection, created, told.position(9), told.position(5))
    assert (await stored(projection, told.id)).bytes_uploaded == 9
    await told_to(projection, told.failed(), told.position(99))
    state = await stored(projection, told.id)
    assert (state.status, state.bytes_uploaded) == ("error", 9)


async def test_repeated_events_change_nothing(any_redis: Redis) -> None:
    """Events that come again leave the record as it is, to the letter."""
    projection, told = projection_on(any_redis), Told()
    story = [told.created(), told.position(5), told.completed(), told.stored()]
    await told_to(projection, *story)
    key = f"{PREFIX}:{told.id}"
    before = await any_redis.hgetall(key)
    await told_to(projection, *story)
    await projection.handle([entry(one) for one in story])
    assert await any_redis.hgetall(key) == before


@pytest.mark.parametrize("first", ["stored", "deleted"])
async def test_a_completion_that_comes_late(projection: Projection, first: str) -> None:
    """What only the completion tells is kept when another member was faster with the rest."""
    told = Told()
    created, completed = told.created(), told.completed()
    later = getattr(told, first)()
    await told_to(projection, created, later, completed)
    state = await stored(projection, told.id)
    assert state.seq == 3
    assert state.status == ("deleted" if first == "deleted" else "completed")
    assert state.redirect_url == f"/dashboard/videos/{told.id}/results"
    assert state.completed_at == completed.at
    assert state.percentage == 100.0


async def test_a_late_completion_within_a_batch(projection: Projection) -> None:
    """A batch may bring what is late and what is new of one upload at once."""
    told = Told()
    created, completed = told.created(), told.completed()
    stored_at, deleted, queued = told.stored(), told.deleted(), told.queued()
    await told_to(projection, created, stored_at)
    await projection.handle([entry(deleted), entry(queued), entry(completed)])
    state = await stored(projection, told.id)
    assert (state.seq, state.job_seq, state.completed_at) == (4, 1, completed.at)
    assert state.redirect_url is not None


async def test_a_job_known_before_its_upload(projection: Projection) -> None:
    """After a loss a job's event may be all there is: it makes a record that the rest fills."""
    told = Told()
    created, completed = told.created(), told.completed()
    await told_to(projection, told.queued(), told.started(), told.processing(30))
    state = await stored(projection, told.id)
    assert (state.seq, state.status, state.user_id) == (0, "completed", "ada")
    assert (state.job_seq, state.job_status, state.job_progress) == (2, "in_progress", 30.0)
    assert [one.session_id for one in await projection.sessions_of("ada")] == [told.id]
    await told_to(projection, created, completed)
    state = await stored(projection, told.id)
    assert (state.seq, state.job_seq, state.completed_at) == (2, 2, completed.at)
    assert state.redirect_url is not None


async def test_a_job_tells_nothing_of_an_upload_that_is_known(any_redis: Redis) -> None:
    """A member that has not seen the record does not end an upload by folding a job's event."""
    projection, told = projection_on(any_redis), Told()
    await told_to(projection, told.created())
    blind = fold(None, told.queued())
    assert blind is not None
    await projection._run(projection._writes(_Folded(None, blind, None)))
    state = await stored(projection, told.id)
    assert (state.seq, state.status, state.completed_at) == (1, "uploading", None)
    assert state.job_status == "queued"


async def test_the_end_of_a_job_stays(projection: Projection) -> None:
    """Whatever comes after a job's end, of job or upload, leaves result and status alone."""
    told = Told()
    await told_to(projection, told.created(), told.completed(), told.queued())
    late = told.started()
    await told_to(projection, told.processed(result=RESULT), late, told.broken())
    await told_to(projection, told.processing(5), told.stored())
    state = await stored(projection, told.id)
    assert (state.job_seq, state.job_status, state.result) == (3, "completed", RESULT)
    assert (state.seq, state.job_progress) == (3, 100.0)


async def test_job_progress_never_goes_back(any_redis: Redis) -> None:
    """A member that read before another one wrote a job's position does not undo it."""
    projection, told = projection_on(any_redis), Told()
    await told_to(projection, told.created(), told.completed(), told.queued())
    stale = await stored(projection, told.id)
    await told_to(projection, told.processing(80, current=8, total=10))
    started = fold(stale, told.started())
    assert started is not None
    behind = told.processing(10, seq=1)
    await told_to(projection, behind)
    await projection._run([projection._write_job(started, stale.job_updated or 0)])
    await told_to(projection, behind)
    state = await stored(projection, told.id)
    assert (state.job_seq, state.job_status) == (2, "in_progress")
    assert (state.job_progress, state.current, state.total) == (80.0, 8, 10)
    assert state.job_updated == told.processing(80).at


async def test_halves_leave_each_other_alone(any_redis: Redis) -> None:
    """A member whose reading of the other half is stale does not write that half back."""
    projection, told = projection_on(any_redis), Told()
    await told_to(projection, told.created(), told.completed())
    stale = await stored(projection, told.id)
    await told_to(projection, told.queued(), told.stored())
    upload, job = fold(stale, told.deleted()), fold(stale, told.started())
    assert upload is not None
    assert job is not None
    await projection._run([projection._write_upload(upload)])
    await projection._run([projection._write_job(job, 0)])
    state = await stored(projection, told.id)
    assert (state.seq, state.status, state.job_seq, state.job_status) == (
        *(4, "deleted"),
        *(2, "in_progress"),
    )


async def test_result_of_a_duplicate(projection: Projection) -> None:
    """What the original's processing found is recorded though the duplicate has no job yet."""
    told = Told()
    await told_to(projection, told.created(), told.duplicate(cached_result=RESULT))
    assert (await stored(projection, told.id)).result == RESULT
    await told_to(projection, told.stored())
    assert (await stored(projection, told.id)).result == RESULT
    other = Told()
    await told_to(projection, other.created(), other.processing(30))
    await told_to(projection, other.duplicate(cached_result=RESULT))
    state = await stored(projection, other.id)
    assert (state.result, state.job_progress) == (RESULT, 30.0)


@pytest.mark.parametrize("by", ["created", "queued"])
async def test_upload_of_a_job(any_redis: Redis, by: str) -> None:
    """A job leads to its upload from the first event on, whichever that is."""
    projection, told = projection_on(any_redis), Told()
    assert await projection.upload_of_job(told.facts.job_id) is None
    await told_to(projection, getattr(told, by)())
    assert await projection.upload_of_job(told.facts.job_id) == told.id
    assert await projection.upload_of_job("someone:else") is None


async def test_bytes_never_go_back(any_redis: Redis) -> None:
    """A member that read before another one wrote a further position does not undo it."""
    projection, told = projection_on(any_redis), Told()
    await told_to(projection, told.created(), told.position(500))
    stale = await stored(projection, told.id)
    await told_to(projection, told.position(900))
    failed = fold(stale, told.failed())
    assert failed is not None
    assert failed.bytes_uploaded == 500
    await projection._run(projection._record(failed))  # as it would with a stale reading
    state = await stored(projection, told.id)
    assert (state.status, state.bytes_uploaded) == ("error", 900)
    percentage = await command(any_redis, "HGET", f"{PREFIX}:{told.id}", "percentage")
    assert float(percentage) == state.percentage


async def test_two_members_at_once(any_redis_server: RedisServer) -> None:
    """However two members' batches interleave, no record ever goes back, and all end right."""
    chance = random.Random(7)
    uploads = [Told() for _ in range(12)]
    batches: list[list[GroupEntry]] = []
    for one in uploads:
        story: list[Any] = [one.created(), *(one.position(n) for n in range(1, 8))]
        story += [one.completed(), one.queued(), one.stored(), one.started()]
        story += [one.processing(n) for n in (10, 30, 60, 90)]
        story += [one.processed(result=RESULT) if chance.random() < 0.5 else one.broken()]
        batches += [[entry(event) for event in story[at : at + 2]] for at in range(0, 17, 2)]
    batches += chance.sample(batches, 20)
    chance.shuffle(batches)
    async with AsyncExitStack() as stack:
        clients = [connect(any_redis_server.url) for _ in range(3)]
        for client in clients:
            stack.push_async_callback(client.aclose)
        members = [projection_on(client) for client in clients[:2]]
        looking = projection_on(clients[2])

        async def work(member: Projection) -> None:
            while batches:
                await member.handle(batches.pop())

        async def look() -> None:
            last: dict[str, ProgressState] = {}
            while batches:
                for key, state in (await looking.read_all(o.id for o in uploads)).items():
                    before = last.get(key, state)
                    assert state.seq >= before.seq
                    assert state.bytes_uploaded >= before.bytes_uploaded
                    assert state.percentage >= before.percentage
                    assert before.status == "uploading" or state.status == before.status
                    assert state.job_version >= before.job_version
                    assert not before.job_is_over or state.job_status == before.job_status
                    last[key] = state

        await asyncio.gather(work(members[0]), work(members[1]), look())
        for state in (await looking.read_all(one.id for one in uploads)).values():
            assert (state.seq, state.status, state.percentage) == (3, "completed", 100.0)
            assert state.job_seq == 3
            assert state.job_is_over
            assert (state.result == RESULT) == (state.job_status == "completed")
            assert state.redirect_url is not None
            assert state.completed_at == START + 1000


async def test_members_of_a_real_group(any_redis_server: RedisServer, any_redis: Redis) -> None:
    """Two members that share the streams bring every upload to its end."""
    uploads = [Told() for _ in range(40)]
    feed = Feed(any_redis)
    async with AsyncExitStack() as stack:
        for _ in range(2):
            client = connect(any_redis_server.url)
            stack.push_async_callback(client.aclose)
            reading = connect(any_redis_server.url)
            stack.push_async_callback(reading.aclose)
            group = StreamGroup(
                reading,
                group="progress",
                streams=stream_names(PARTITIONS),
                handle=projection_on(client).handle,
            )
            _ = await stack.enter_async_context(alongside(group.run()))
        for step in range(8):
            told = [one.position(step) if step else one.created() for one in uploads]
            await feed.tell(*told)
        await feed.tell(*(one.completed() for one in uploads))
        await feed.tell(*(one.stored() for one in uploads))
        projection = projection_on(any_redis)

        async def all_done() -> bool:
            states = await projection.read_all(one.id for one in uploads)
            return [one.seq for one in states.values()] == [3] * 40 and all(
                one.redirect_url and one.status == "completed" for one in states.values()
            )

        await eventually(all_done, "all uploads are complete, and say where to go")


async def test_life_of_the_keys(any_redis: Redis) -> None:
    """A record and all beside it live as the setting says, counted anew by each event."""
    projection, told = projection_on(any_redis), Told()
    key = f"{PREFIX}:{told.id}"
    keys = (key, f"{key}:log", f"{PREFIX}:job:{told.facts.job_id}", f"{PREFIX}:user:ada")
    await told_to(projection, told.created())
    rest = (
        told.position(5),
        told.completed(),
        told.queued(),
        told.processing(5),
        told.broken(),
    )
    for more in rest:
        for key in keys:
            assert TTL_S - 10 < await any_redis.ttl(key) <= TTL_S
            await any_redis.expire(key, 100)
        await told_to(projection, more)
    for key in keys:
        assert TTL_S - 10 < await any_redis.ttl(key) <= TTL_S


async def test_deletion(any_redis: Redis) -> None:
    """A deleted upload leaves the user's set, and is remembered just long enough."""
    projection, told = projection_on(any_redis), Told()
    created, completed = told.created(), told.completed()
    await told_to(projection, created, completed, told.deleted())
    await told_to(projection, created, completed)
    await told_to(projection, told.queued(), told.processing(5))
    assert (await stored(projection, told.id)).status == "deleted"
    assert 0 < await any_redis.ttl(f"{PREFIX}:{told.id}") <= 60
    assert 0 < await any_redis.ttl(f"{PREFIX}:{told.id}:log") <= 60
    assert await projection.sessions_of("ada") == []


async def test_sessions_of_a_user(any_redis: Redis) -> None:
    """A user's sessions come newest first, without those that have run out."""
    projection = projection_on(any_redis)
    uploads = [Told(at=START + n) for n in (2, 1, 3)]
    await told_to(projection, *(one.created() for one in uploads))
    await any_redis.delete(f"{PREFIX}:{uploads[0].id}")
    found = await projection.sessions_of("ada")
    assert [one.session_id for one in found] == [uploads[2].id, uploads[1].id]
    assert await projection.sessions_of("nobody") == []


async def test_a_record_that_is_late(any_redis: Redis) -> None:
    """Who lists between the set and a record, in another slot, takes nothing from the user."""
    projection, told = projection_on(any_redis), Told()
    await told_to(projection, told.created())
    key = f"{PREFIX}:{told.id}"
    record = await any_redis.hgetall(key)
    await any_redis.delete(key)
    assert await projection.sessions_of("ada") == []
    fields = (part for pair in record.items() for part in pair)
    await command(any_redis, "HSET", key, *fields)
    assert [one.session_id for one in await projection.sessions_of("ada")] == [told.id]


async def test_what_is_known_is_not_read(any_redis: Redis) -> None:
    """The record of a session whose state is at hand is of no interest to who lists it."""
    projection, told, other = projection_on(any_redis), Told(), Told(at=START + 1)
    await told_to(projection, told.created(), other.created())
    known = msgspec.structs.replace(await stored(projection, told.id), bytes_uploaded=77)
    await any_redis.delete(f"{PREFIX}:{told.id}")
    found = await projection.sessions_of("ada", {told.id: known}.get)
    assert [(one.session_id, one.bytes_uploaded) for one in found] == [
        *((other.id, 0), (told.id, 77)),
    ]


async def test_a_redis_that_has_forgotten_everything(any_redis: Redis) -> None:
    """After FLUSHALL, and without the script, events are recorded again."""
    projection, told = projection_on(any_redis), Told()
    created = told.created()
    await told_to(projection, created)
    await any_redis.flushall()
    await command(any_redis, "SCRIPT", "FLUSH")
    await told_to(projection, told.position(5))
    assert await projection.read(told.id) is None
    await command(any_redis, "SCRIPT", "FLUSH")
    await told_to(projection, created, told.position(5))
    assert (await stored(projection, told.id)).bytes_uploaded == 5
    assert len(await projection.sessions_of("ada")) == 1


async def test_many_are_read_in_pieces(projection: Projection) -> None:
    """More records than one round trip takes are all found, unknown ones left out."""
    uploads = [Told() for _ in range(450)]
    await projection.handle([entry(one.created()) for one in uploads])
    found = await projection.read_all([*(one.id for one in uploads), "unknown"])
    assert set(found) == {one.id for one in uploads}


async def test_a_damaged_record_is_none_and_mended(any_redis: Redis) -> None:
    """A hash that is not ours counts as unknown, and the next lifecycle event mends it."""
    projection, told = projection_on(any_redis), Told()
    await told_to(projection, told.created())
    key = f"{PREFIX}:{told.id}"
    await any_redis.hset(key, mapping={"seq": "x", "bytes_uploaded": "y", "metadata": "{"})
    assert await projection.read(told.id) is None
    assert await projection.sessions_of("ada") == []
    await told_to(projection, told.completed())
    assert (await stored(projection, told.id)).status == "completed"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({b"d": b"{"}, MalformedEvent),
        ({}, MalformedEvent),
        ({b"d": b'{"type":"upload.sung"}'}, UnknownEvent),
    ],
)
async def test_entries_that_cannot_be_handled(
    projection: Projection, fields: dict[bytes, bytes], error: type[Exception]
) -> None:
    """What cannot be read is raised to the group, before anything is written."""
    told = Told()
    with pytest.raises(error):
        await projection.handle(
            [entry(told.created()), GroupEntry("events:{p00}", b"1-1", fields)]
        )
    assert await projection.read(told.id) is None


async def test_an_absurd_event_is_given_up(projection: Projection) -> None:
    """An event that would spoil its upload's record goes to the dead letters instead."""
    with pytest.raises(MalformedEvent):
        await projection.handle([entry(Told(at=START * 1000).created())])


async def test_no_entries(projection: Projection) -> None:
    """An empty batch is no work."""
    await projection.handle([])
    await projection.handle(
        [GroupEntry("progress:{p00}", b"1-0", entry(Told().position(1))[2])]
    )
