"""The sets of a tenant's sessions, told in any order; and what cleaning up does to them."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack

import pytest
from redis.asyncio import Redis

from services.gateway.cleaning import Cleaned, Cleaner
from services.gateway.dismissal import Dismissals
from services.gateway.keys import LISTED, Keys, member_of, user_and_session
from services.gateway.projection import Projection
from services.gateway.sessions_index import SessionsIndex
from services.gateway.state import AFTER_ALL
from shared.events import LifecycleEvent, UploadProgress
from shared.identity import Principal
from shared.redis_lock import RedisLock
from shared.streams import command, connect, pipelined
from tests.gateway.feed import entry
from tests.gateway.samples import Told, principal
from tests.processes import RedisServer
from tests.shared.waiting import alongside, eventually

PREFIX = "upload_progress"
TTL_S = 3600
KEYS = Keys(PREFIX)
ODD = principal("a:b/{c} ü", "t{:}%/")


class Parts:
    """What a gateway has, on one client."""

    def __init__(self, redis: Redis, *, ttl_s: int = TTL_S, batch: int = 100) -> None:
        self.redis = redis
        self.index = SessionsIndex(redis, KEYS, ttl_s=ttl_s)
        self.projection = Projection(redis, prefix=PREFIX, ttl_s=ttl_s)
        self.dismissals = Dismissals(redis, KEYS, self.index)
        self.cleaner = Cleaner(
            self.index, self.projection, self.dismissals, ttl_s=ttl_s, batch=batch
        )

    async def tell(self, *told: LifecycleEvent | UploadProgress) -> None:
        """Hand events over one by one."""
        for one in told:
            await self.projection.handle([entry(one)])

    async def age(self, tenant: str, by_s: int) -> None:
        """Let the sets think that all was heard of so much earlier."""
        for key in (KEYS.listed(tenant, status) for status in LISTED):
            for member in await command(self.redis, "ZRANGE", key, 0, -1):
                await command(self.redis, "ZINCRBY", key, -1000 * by_s, member)


@pytest.fixture
def parts(any_redis: Redis) -> Parts:
    """On each server."""
    return Parts(any_redis)


def counted(**expected: int) -> dict[str, int]:
    """Return counts, those that are not named being none."""
    return {**dict.fromkeys(LISTED, 0), **expected}


async def test_counts_follow_the_projections(parts: Parts) -> None:
    """Each session counts once, as what it is, in its own tenant."""
    running, done, bad, off = (Told() for _ in range(4))
    await parts.tell(*(one.created() for one in (running, done, bad, off)))
    assert await parts.index.counts("acme") == counted(uploading=4)
    await parts.tell(done.completed(), bad.failed(), off.cancelled(), running.position(5))
    await parts.tell(done.stored(), done.queued())
    every = counted(uploading=1, completed=1, error=1, cancelled=1)
    assert await parts.index.counts("acme") == every
    await parts.tell(done.deleted(), Told(owner=ODD).created())
    assert await parts.index.counts("acme") == {**every, "completed": 0}
    assert await parts.index.counts(ODD.tenant) == counted(uploading=1)
    assert set(await parts.index.tenants()) == {"acme", ODD.tenant}
    for status in LISTED:
        left = await parts.redis.ttl(KEYS.listed("acme", status))
        assert left in {-2, *range(TTL_S - 10, TTL_S + 1)}


async def test_any_order_comes_to_the_same(parts: Parts) -> None:
    """A member of the group that was slow with the beginning does not undo the end."""
    for order in itertools.permutations(range(3)):
        told = Told()
        await parts.tell(told.created())
        states = [await parts.projection.read(told.id)]
        await parts.tell(told.position(5))
        states.append(await parts.projection.read(told.id))
        await parts.tell(told.completed())
        states.append(await parts.projection.read(told.id))
        await parts.redis.delete(*(KEYS.listed("acme", status) for status in LISTED))
        for number in order:
            state = states[number]
            assert state is not None
            await pipelined(parts.redis, parts.index.noting([state]))
        assert await parts.index.counts("acme") == counted(completed=1)


@pytest.mark.parametrize("user_id", ["ada", ODD.user_id, "%3A", "::"])
def test_members_come_back(user_id: str) -> None:
    """Whatever a user is called, a member tells whose session it is, and which."""
    assert user_and_session(member_of(user_id, "a-b").encode()) == (user_id, "a-b")


async def test_a_dismissed_session_stays_away(parts: Parts) -> None:
    """Neither late, nor repeated, nor new events bring it back, nor a second deletion."""
    told = Told(session_id="my.video")
    story = [told.created(), told.completed()]
    await parts.tell(*story)
    state = await parts.projection.read(told.id)
    assert state is not None
    assert await parts.dismissals.dismiss([state], for_s=500) == [True]
    await parts.tell(*story, told.stored(), told.queued(), told.deleted())
    assert await parts.dismissals.dismiss([state], for_s=500) == [False]
    left = await parts.projection.read(told.id)
    assert left is not None
    assert (left.status, left.seq, left.filename, left.metadata) == (
        *("deleted", AFTER_ALL, ""),
        {},
    )
    assert 490 < await parts.redis.ttl(KEYS.upload(told.id)) <= 500
    assert await parts.index.counts("acme") == counted()
    assert await parts.projection.sessions_of("ada") == []
    ada = Principal("ada", "acme", "ada", frozenset(), None)
    assert await parts.projection.meaning_of(ada, "my.video") == (None, False)


async def test_nothing_else_is_kept(parts: Parts) -> None:
    """Whatever gateways note of an upload beside its projection goes with it."""
    told = Told(session_id="my.video")
    await parts.tell(told.created(), told.position(5), told.completed(), told.queued())
    state = await parts.projection.read(told.id)
    assert state is not None
    kept = await command(parts.redis, "KEYS", "*")
    await parts.dismissals.dismiss([state], for_s=60)
    assert set(await command(parts.redis, "KEYS", "*")) == {
        KEYS.upload(told.id).encode(),
        KEYS.tenants.encode(),
    }
    assert len(kept) > 4


async def test_a_name_that_was_given_again(parts: Parts) -> None:
    """Dismissing the old session of a name leaves the name to the new one."""
    old, new = Told(session_id="video"), Told(session_id="video")
    await parts.tell(old.created(), old.cancelled(), new.created())
    state = await parts.projection.read(old.id)
    assert state is not None
    await parts.dismissals.dismiss([state], for_s=60)
    ada = Principal("ada", "acme", "ada", frozenset(), None)
    assert await parts.projection.meaning_of(ada, "video") == (new.id, False)


async def test_cleaning_up_takes_what_is_over_and_old(parts: Parts) -> None:
    """Finished sessions of the tenant go once they are old enough; nothing else does."""
    old, new, running = Told(), Told(), Told()
    elsewhere = Told(owner=ODD)
    await parts.tell(*(one.created() for one in (old, running, elsewhere)))
    await parts.tell(old.completed(), elsewhere.completed())
    await parts.age("acme", 100)
    await parts.age(ODD.tenant, 100)
    await parts.tell(new.created(), new.failed())
    assert await parts.cleaner.clean("acme", older_than_s=50) == Cleaned(1, 0, 0)
    assert await parts.index.counts("acme") == counted(uploading=1, error=1)
    assert await parts.index.counts(ODD.tenant) == counted(completed=1)
    assert [one.session_id for one in await parts.projection.sessions_of(ODD.user_id)] == [
        elsewhere.id
    ]
    assert await parts.cleaner.clean("acme", older_than_s=0) == Cleaned(1, 0, 0)
    assert await parts.cleaner.clean("acme", older_than_s=0) == Cleaned()


async def test_cleaning_up_takes_what_has_run_out(parts: Parts) -> None:
    """What Redis has dropped leaves the sets; what is there after all is left in peace."""
    gone, there, ended = Told(owner=ODD), Told(owner=ODD), Told(owner=ODD)
    await parts.tell(*(one.created() for one in (gone, there, ended)), ended.completed())
    await parts.redis.delete(KEYS.upload(gone.id), KEYS.upload(ended.id))
    await parts.age(ODD.tenant, TTL_S + 10)
    assert await parts.index.counts(ODD.tenant) == counted()
    assert await parts.cleaner.clean(ODD.tenant, older_than_s=TTL_S) == Cleaned(0, 2, 0)
    assert await parts.index.counts(ODD.tenant) == counted(uploading=1)
    members = await parts.redis.smembers(KEYS.user(ODD.user_id))
    assert members == {there.id.encode()}


async def test_a_call_is_bounded(any_redis: Redis) -> None:
    """A call looks at so many sessions and says how many are left, to the last one."""
    parts, uploads = Parts(any_redis, batch=7), [Told() for _ in range(50)]
    await parts.projection.handle([entry(one.created()) for one in uploads])
    await parts.projection.handle([entry(one.cancelled()) for one in uploads])
    first = await parts.cleaner.clean("acme", older_than_s=0, limit=30)
    second = await parts.cleaner.clean("acme", older_than_s=0, limit=30)
    assert (first, second) == (Cleaned(30, 0, 20), Cleaned(20, 0, 0))


async def test_two_that_clean_up_at_once(any_redis_server: RedisServer) -> None:
    """Each session is removed, and counted, by exactly one of them."""
    async with AsyncExitStack() as stack:
        clients = [connect(any_redis_server.url) for _ in range(3)]
        for client in clients:
            stack.push_async_callback(client.aclose)
        gateways = [Parts(client, batch=10) for client in clients]
        uploads = [Told() for _ in range(200)]
        await gateways[0].projection.handle([entry(one.created()) for one in uploads])
        await gateways[0].projection.handle([entry(one.failed()) for one in uploads])
        done = await asyncio.gather(
            *(one.cleaner.clean("acme", older_than_s=0) for one in gateways)
        )
        assert sum(one.removed for one in done) == 200
        assert await gateways[0].index.counts("acme") == counted()
        assert await gateways[0].projection.sessions_of("ada") == []


async def test_it_is_done_by_itself_by_one_at_a_time(any_redis_server: RedisServer) -> None:
    """Of several only the one with the lock cleans up; when it ends another one goes on."""
    async with AsyncExitStack() as stack:
        clients = [connect(any_redis_server.url) for _ in range(2)]
        for client in clients:
            stack.push_async_callback(client.aclose)
        one, other = (Parts(client) for client in clients)
        locks = [RedisLock(client, KEYS.cleaner, ttl_s=30) for client in clients]
        assert await locks[0].take()

        async def leave_some() -> None:
            told = [Told() for _ in range(5)]
            await one.projection.handle([entry(upload.created()) for upload in told])
            await one.redis.delete(*(KEYS.upload(upload.id) for upload in told))
            await one.age("acme", TTL_S + 1)

        async def nothing_left() -> bool:
            return await one.redis.zcard(KEYS.listed("acme", "uploading")) == 0

        await leave_some()
        async with alongside(other.cleaner.run(locks[1], every_s=0.02)):
            await asyncio.sleep(0.2)
            assert not await nothing_left()
            async with alongside(one.cleaner.run(locks[0], every_s=0.02)):
                await eventually(nothing_left, "the one with the lock has cleaned up")
            await leave_some()
            await eventually(nothing_left, "the other one has cleaned up")
