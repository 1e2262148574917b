"""From sidecars to streams, through crashes, outages, wiped and restarted servers."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from shared import events
from shared.blobs.filesystem import FilesystemStore
from shared.blobs.store import Due, UploadNotFound
from shared.outbox import Outbox
from shared.publisher import Publisher
from shared.sidecar import Sidecar
from shared.streams import REDIS_FAILURES, command, entry_of, event_stream, pipelined
from tests.shared.conftest import ConnectTo, StartRedis
from tests.shared.samples import cancelled, completed, new_sidecar
from tests.shared.waiting import alongside, eventually, stop

PARTITIONS = 2
RECENT_S = 3600.0


class Process:
    """What one process has: a store, a publisher at work, and an outbox."""

    def __init__(self, root: Path, redis: Redis, *, queue_limit: int = 10_000) -> None:
        self.store = FilesystemStore(root)
        self.publisher = Publisher(
            redis, partitions=PARTITIONS, interval_s=0.1, queue_limit=queue_limit
        )
        self.republished: list[str] = []
        self.outbox = Outbox(
            self.store,
            self.publisher,
            redis,
            recent_s=RECENT_S,
            on_republish=self._note,
        )

    async def _note(self, sidecar: Sidecar) -> None:
        self.republished.append(sidecar.upload_id)

    async def create(self) -> Sidecar:
        """Open an upload and announce it."""
        sidecar = new_sidecar()
        self.outbox.announce(sidecar, await self.store.create(sidecar))
        return sidecar

    async def complete(self, sidecar: Sidecar) -> Sidecar:
        """Complete an upload and announce that."""
        done = sidecar.after("completed", completed(sidecar.upload_id))
        writer = await self.store.acquire(sidecar.upload_id)
        self.outbox.announce(done, await writer.finish(done))
        await writer.close()
        return done

    async def cancel(self, sidecar: Sidecar) -> None:
        """End an upload and announce that."""
        tombstone = sidecar.after("cancelled", cancelled(sidecar.upload_id))
        writer = await self.store.acquire(sidecar.upload_id)
        self.outbox.announce(tombstone, await writer.bury(tombstone))
        await writer.close()

    async def due(self) -> list[Due]:
        """Return the markers that are there."""
        return await self.store.due(older_than_s=0)

    async def all_published(self) -> bool:
        """Tell whether no marker is left."""
        return not await self.due()


StartProcess = Callable[..., Process]


@pytest.fixture
async def start_process(data_dir: Path) -> AsyncIterator[StartProcess]:
    """Start processes that share one blob store; ``publishes=False`` for one that hangs."""
    async with AsyncExitStack() as stack:
        tasks: list[asyncio.Task[None]] = []

        def start(redis: Redis, *, publishes: bool = True, queue_limit: int = 9999) -> Process:
            process = Process(data_dir, redis, queue_limit=queue_limit)
            stack.push_async_callback(process.store.close)
            stack.push_async_callback(process.outbox.close)
            if publishes:
                tasks.append(asyncio.create_task(process.publisher.run()))
            return process

        yield start
        for task in tasks:
            await stop(task)


async def published(redis: Redis) -> list[tuple[str, int]]:
    """Return upload and number of each event on the streams, in their order."""
    keys = [event_stream(n) for n in range(PARTITIONS)]
    replies = await pipelined(redis, [("XRANGE", key, "-", "+") for key in keys])
    found = [events.decode(entry_of(raw)[1][b"d"]) for reply in replies for raw in reply]
    return [(event.upload_id, event.seq) for event in found]


def files_below(root: Path) -> set[str]:
    """Return the names of all files of a store, its epoch aside."""
    return {path.name for path in root.rglob("*") if path.is_file()} - {"epoch"}


async def test_a_marker_stays_until_its_event_is_out(
    start_redis: StartRedis, connect_to: ConnectTo, start_process: StartProcess
) -> None:
    """While Redis is away the disk knows what is due; afterwards nothing is."""
    server = start_redis(aof=False)
    redis = connect_to(server.url)
    process = start_process(redis)
    server.kill()
    sidecar = await process.create()
    await process.complete(sidecar)
    one = sidecar.upload_id
    await eventually(lambda: process.publisher.degraded, "the outage is noticed")
    assert await process.due() == [Due(one, 1), Due(one, 2)]
    await asyncio.to_thread(server.start)
    await eventually(process.all_published, "the markers are gone")
    assert await published(redis) == [(one, 1), (one, 2)]
    assert files_below(process.store.root) == {one, f"{one}.info"}


async def test_a_crash_before_publishing_is_made_up_for(
    any_redis: Redis, start_process: StartProcess
) -> None:
    """Another process finds what stands in the sidecars and was never announced."""
    victim = start_process(any_redis, publishes=False)
    sidecars = [new_sidecar() for _ in range(3)]
    for sidecar in sidecars:
        await victim.store.create(sidecar)
    finished = sidecars[0]
    writer = await victim.store.acquire(finished.upload_id)
    await writer.finish(finished.after("completed", completed(finished.upload_id)))
    await writer.close()

    rescuer = start_process(any_redis)
    assert await rescuer.outbox.sweep(older_than_s=60) == 0  # it may still be at it
    assert await rescuer.outbox.sweep(older_than_s=0) == 3
    await eventually(rescuer.all_published, "the markers are gone")
    expected = [(one.upload_id, 1) for one in sidecars] + [(finished.upload_id, 2)]
    found = await published(any_redis)
    assert sorted(found) == sorted(expected)
    of_finished = [seq for upload_id, seq in found if upload_id == finished.upload_id]
    assert of_finished == [1, 2]


async def test_markers_that_a_power_loss_took_are_made_up_for(
    any_redis: Redis, start_process: StartProcess
) -> None:
    """They are not forced to the disk, so the records alone must tell what is not out yet."""
    victim = start_process(any_redis)
    told = await victim.create()
    await eventually(victim.all_published, "it is published")
    await victim.outbox.check_epoch()  # it would have all of it published again
    await eventually(victim.all_published, "it is published again")
    victim = start_process(any_redis, publishes=False)
    half, gone = await victim.create(), await victim.create()
    await victim.complete(half)
    await victim.cancel(gone)
    await victim.complete(told)
    before = Counter(await published(any_redis))
    for marker in (victim.store.root / "due").iterdir():
        marker.unlink()

    rescuer = start_process(any_redis)
    async with alongside(rescuer.outbox.watch()):

        async def made_up_for() -> bool:
            found = set(Counter(await published(any_redis)) - before)
            wanted = {(one.upload_id, seq) for one in (half, gone, told) for seq in (1, 2)}
            return found == wanted and await rescuer.all_published()

        await eventually(made_up_for, "all of it is out")
    await rescuer.store.restore_due()
    assert await rescuer.due() == [], "what is out is not brought out at each start"


async def test_an_upload_that_goes_on_before_its_markers_are_made_up_for(
    any_redis: Redis, start_process: StartProcess
) -> None:
    """A client that comes back at once after a power loss must not take an event away."""
    victim = start_process(any_redis, publishes=False)
    told, amended = await victim.create(), await victim.create()
    for marker in (victim.store.root / "due").iterdir():
        marker.unlink()
    rescuer = start_process(any_redis)
    await rescuer.complete(told)
    writer = await rescuer.store.acquire(amended.upload_id)
    assert await writer.record(amended) == [Due(amended.upload_id, 1)]
    await writer.close()
    one = told.upload_id
    await eventually(
        lambda: _are_published(any_redis, (one, 1), (one, 2)), "both events are out, in order"
    )


async def _are_published(redis: Redis, *wanted: tuple[str, int]) -> bool:
    return await published(redis) == list(wanted)


async def test_an_old_event_that_is_out_again_says_nothing_of_newer_ones(
    any_redis: Redis, start_process: StartProcess
) -> None:
    """Told again after a restart of Redis, it must leave the mark of what still waits."""
    process = start_process(any_redis, publishes=False)
    one = await process.create()
    done = await process.complete(one)
    stored = done.after("completed", replace(completed(one.upload_id), seq=3))
    writer = await process.store.acquire(one.upload_id)
    await writer.record(stored)
    await writer.close()
    due = [Due(one.upload_id, seq) for seq in (1, 2, 3)]
    for published_again in (due[0], due[1], due[0]):
        await process.store.mark_published(published_again, last=False)
    for marker in (process.store.root / "due").iterdir():
        marker.unlink()
    await process.store.restore_due()
    assert due[2] in await process.due()


async def test_what_cannot_be_read_keeps_no_event_back(
    any_redis: Redis, start_process: StartProcess
) -> None:
    """One bad record must not stop sweeps, for none of which anybody would notice."""
    victim = start_process(any_redis, publishes=False)
    one = await victim.create()
    bad = victim.store.path(new_sidecar().upload_id, ".info")
    bad.mkdir(parents=True)
    bad.chmod(0o1700)
    rescuer = start_process(any_redis)
    async with alongside(rescuer.outbox.watch()):
        await eventually(lambda: _are_told(any_redis, one), "its event is out")


async def _are_told(redis: Redis, one: Sidecar) -> bool:
    return (one.upload_id, 1) in await published(redis)


async def test_a_full_queue_is_made_up_for(
    any_redis: Redis, start_process: StartProcess
) -> None:
    """What the publisher had no room for comes with the next sweep."""
    process = start_process(any_redis, queue_limit=2)
    for _ in range(5):
        await process.create()
    for _ in range(4):
        await process.outbox.sweep(older_than_s=0)
        await asyncio.sleep(0.05)
    await eventually(process.all_published, "the markers are gone")
    assert len(set(await published(any_redis))) == 5


async def test_sweeps_during_an_outage_publish_nothing_twice(
    start_redis: StartRedis, connect_to: ConnectTo, start_process: StartProcess
) -> None:
    """What waits to be published is not handed over again."""
    server = start_redis(aof=False)
    redis = connect_to(server.url)
    process = start_process(redis, queue_limit=20)
    server.kill()
    uploads = [await process.create() for _ in range(5)]
    for _ in range(10):
        await process.outbox.sweep(older_than_s=0)
    await asyncio.to_thread(server.start)
    await eventually(process.all_published, "the markers are gone")
    assert sorted(await published(redis)) == sorted((one.upload_id, 1) for one in uploads)
    await process.create()
    await eventually(process.all_published, "new ones are published")
    assert await process.outbox.sweep(older_than_s=0) == 0


async def test_a_tombstone_stays_until_its_event_is_out(
    start_redis: StartRedis, connect_to: ConnectTo, start_process: StartProcess
) -> None:
    """A cancelled upload is gone at once, but what must still be told of it is kept."""
    server = start_redis(aof=False)
    redis = connect_to(server.url)
    process = start_process(redis)
    server.kill()
    sidecar = await process.create()
    await process.cancel(sidecar)
    one = sidecar.upload_id
    with pytest.raises(UploadNotFound):
        await process.store.read(one)
    await eventually(lambda: process.publisher.degraded, "the outage is noticed")
    await process.outbox.sweep(older_than_s=0)
    assert files_below(process.store.root) == {f"{one}.info", f"{one}.1", f"{one}.2"}
    await asyncio.to_thread(server.start)
    await eventually(lambda: not files_below(process.store.root), "nothing is left")
    assert await published(redis) == [(one, 1), (one, 2)]


async def test_a_crash_in_the_middle_of_an_end_is_made_up_for(
    any_redis: Redis, start_process: StartProcess
) -> None:
    """The tombstone was written, its bytes were not removed: the sweep does the rest."""
    process = start_process(any_redis)
    sidecar = new_sidecar()
    await process.store.create(sidecar)
    writer = await process.store.acquire(sidecar.upload_id)
    await writer.write([b"bytes"])
    tombstone = sidecar.after("cancelled", cancelled(sidecar.upload_id))
    process.store.save(tombstone)
    await writer.close()
    await process.outbox.sweep(older_than_s=0)
    await eventually(lambda: not files_below(process.store.root), "nothing is left")
    assert await published(any_redis) == [(sidecar.upload_id, 1), (sidecar.upload_id, 2)]


async def test_a_crash_between_tombstone_and_marker_leaves_nothing(
    any_redis: Redis, start_process: StartProcess
) -> None:
    """The event is out; whichever of the two was removed first, the sweep removes the other."""
    process = start_process(any_redis)
    sidecar = new_sidecar()
    await process.store.create(sidecar)
    process.store.path(sidecar.upload_id, ".info").unlink()
    process.store.path(sidecar.upload_id, ".part").unlink()
    await process.outbox.sweep(older_than_s=0)
    assert files_below(process.store.root) == set()
    assert await published(any_redis) == []


async def test_what_a_crashed_creation_left_is_removed(
    any_redis: Redis, start_process: StartProcess
) -> None:
    """No client knows of an upload whose record was never written: nothing stays of it."""
    process = start_process(any_redis)
    one = new_sidecar().upload_id
    process.store.path(one, ".part").touch()
    process.store.path(one, ".info.new").write_bytes(b'{"upload_id":')
    (process.store.root / "due" / f"{one}.1").touch()
    await process.outbox.sweep(older_than_s=0)
    assert files_below(process.store.root) == set()


async def test_a_creation_under_way_is_left_alone(
    any_redis: Redis, start_process: StartProcess
) -> None:
    """A sweep that comes between marker and record takes neither away."""
    process = start_process(any_redis)
    one = new_sidecar().upload_id
    part = process.store.path(one, ".part")
    fd = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    (process.store.root / "due" / f"{one}.1").touch()
    await process.outbox.sweep(older_than_s=0)
    assert files_below(process.store.root) == {f"{one}.part", f"{one}.1"}
    os.close(fd)


async def test_many_creations_during_many_sweeps_are_all_published(
    any_redis: Redis, start_process: StartProcess
) -> None:
    """Processes that start and sweep take no event from those that create."""
    creator, sweeper = start_process(any_redis), start_process(any_redis)

    async def sweep() -> None:
        while True:
            await sweeper.outbox.sweep(older_than_s=0)

    async with alongside(sweep()):
        uploads = [await creator.create() for _ in range(100)]
    await eventually(creator.all_published, "the markers are gone")
    found = set(await published(any_redis))
    assert found == {(one.upload_id, 1) for one in uploads}


async def test_bytes_without_a_record_are_not_thrown_away(
    any_redis: Redis, start_process: StartProcess
) -> None:
    """A sidecar that was lost may be restored; the bytes wait for it."""
    process = start_process(any_redis)
    sidecar = await process.create()
    writer = await process.store.acquire(sidecar.upload_id)
    await writer.write([b"precious"])
    await writer.close()
    process.store.path(sidecar.upload_id, ".info").unlink()
    (process.store.root / "due" / f"{sidecar.upload_id}.2").touch()
    await process.outbox.sweep(older_than_s=0)
    assert process.store.path(sidecar.upload_id, ".part").read_bytes() == b"precious"


async def test_a_damaged_record_holds_up_no_other(
    any_redis: Redis, start_process: StartProcess
) -> None:
    """The sweep goes on; the marker of the damaged one stays for those who repair it."""
    process = start_process(any_redis)
    sidecars = sorted((new_sidecar() for _ in range(3)), key=lambda one: one.upload_id)
    for sidecar in sidecars:
        await process.store.create(sidecar)
    damaged, strange, good = (one.upload_id for one in sidecars)
    process.store.path(damaged, ".info").write_bytes(b"{")
    process.store.path(strange, ".info").unlink()
    process.store.path(strange, ".info").mkdir()
    await process.outbox.sweep(older_than_s=0)
    await eventually(lambda: published(any_redis), "the good one is published")
    assert await published(any_redis) == [(good, 1)]
    assert Due(damaged, 1) in await process.due()


async def test_a_marker_without_its_event_is_harmless(
    any_redis: Redis, start_process: StartProcess
) -> None:
    """A crash before the record was written: the event does not exist, so nothing is said."""
    process = start_process(any_redis)
    sidecar = await process.create()
    await eventually(process.all_published, "it is published")
    (process.store.root / "due" / f"{sidecar.upload_id}.2").touch()
    await process.outbox.sweep(older_than_s=0)
    await process.complete(sidecar)
    await eventually(process.all_published, "the markers are gone")
    assert await published(any_redis) == [(sidecar.upload_id, 1), (sidecar.upload_id, 2)]


def make_old(store: FilesystemStore, upload_id: str) -> None:
    """Make an upload look as if nothing had happened to it for long."""
    for suffix in (".info", ".part", ""):
        path = store.path(upload_id, suffix)
        if path.exists():
            os.utime(path, (1_000_000, 1_000_000))


async def test_a_wiped_redis_is_filled_again_by_one_process(
    any_redis: Redis, start_process: StartProcess
) -> None:
    """One of two processes publishes live and recent uploads once; old ones are left."""
    processes = [start_process(any_redis) for _ in range(2)]
    creator = processes[0]
    live, done, old = [await creator.create() for _ in range(3)]
    await creator.complete(done)
    await creator.complete(old)
    make_old(creator.store, live.upload_id)
    make_old(creator.store, old.upload_id)
    for process in processes:
        await process.outbox.check_epoch()
    expected = sorted([(live.upload_id, 1), (done.upload_id, 1), (done.upload_id, 2)])
    for _ in range(5):
        await eventually(creator.all_published, "nothing is under way")
        await any_redis.flushall()
        for process in processes:
            process.republished.clear()
        told = await asyncio.gather(*(one.outbox.check_epoch() for one in processes * 3))
        assert sorted(told) == [False] * 5 + [True]
        assert sorted(await published(any_redis)) == expected
        republished = [one for process in processes for one in process.republished]
        assert sorted(republished) == sorted({live.upload_id, done.upload_id})
        assert [await one.outbox.check_epoch() for one in processes] == [False, False]


async def test_more_uploads_than_the_queue_holds_are_published_again(
    any_redis: Redis, start_process: StartProcess
) -> None:
    """A wipe with many uploads waits for room instead of leaving some out."""
    creator = start_process(any_redis)
    uploads = [await creator.create() for _ in range(20)]
    await eventually(creator.all_published, "all are published")
    await any_redis.flushall()
    small = start_process(any_redis, queue_limit=3)
    assert await small.outbox.check_epoch()
    assert sorted(await published(any_redis)) == sorted((one.upload_id, 1) for one in uploads)


async def test_a_crash_while_publishing_again_is_made_up_for(
    any_redis: Redis, start_process: StartProcess
) -> None:
    """The epoch is noted when all is out, so another process does it once more."""
    creator = start_process(any_redis)
    uploads = [await creator.create() for _ in range(5)]
    await eventually(creator.all_published, "all are published")
    await any_redis.flushall()
    victim = start_process(any_redis, publishes=False)
    task = asyncio.create_task(victim.outbox.check_epoch())
    await eventually(lambda: len(victim.republished) == 5, "it is at it")
    assert not await creator.outbox.check_epoch()
    task.cancel()
    await asyncio.wait([task])
    await any_redis.delete("ingest:epoch:lock")  # it runs out
    assert await creator.outbox.check_epoch()
    assert sorted(await published(any_redis)) == sorted((one.upload_id, 1) for one in uploads)


async def test_a_blink_while_publishing_again_holds_nobody_up(
    start_redis: StartRedis, connect_to: ConnectTo, start_process: StartProcess
) -> None:
    """Whoever was at it goes on when Redis is back, and leaves no lock that others wait for."""
    server = start_redis(aof=True)
    redis = connect_to(server.url)
    process = start_process(redis, publishes=False)
    await process.create()
    at_it = asyncio.create_task(process.outbox.check_epoch())
    await eventually(lambda: process.republished, "it is at it")
    server.kill()
    with pytest.raises(REDIS_FAILURES):
        await at_it
    await asyncio.to_thread(server.start)
    assert await redis.exists("ingest:epoch:lock")
    async with alongside(process.publisher.run()):
        await eventually(process.outbox.check_epoch, "it goes on", 5)
    assert not await redis.exists("ingest:epoch:lock")


async def test_a_redis_that_lost_its_last_second_is_made_up_for(
    start_redis: StartRedis, connect_to: ConnectTo, start_process: StartProcess
) -> None:
    """After a restart, or a failover, even what had been acknowledged is published again."""
    server = start_redis(aof=False)
    redis = connect_to(server.url)
    process = start_process(redis)
    await process.outbox.check_epoch()
    first = await process.create()
    await eventually(process.all_published, "the first is published")
    await command(redis, "SAVE")
    last = await process.create()
    await eventually(process.all_published, "the last is published")
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)

    async def check() -> bool:
        try:
            return await process.outbox.check_epoch()
        except OSError:
            return False
        except Exception as exc:  # the connection that died with the server
            assert "onnect" in repr(exc)  # noqa: PT017
            return False

    await eventually(check, "it notices")
    assert set(await published(redis)) == {(first.upload_id, 1), (last.upload_id, 1)}


async def test_watching_does_all_of_it(any_redis: Redis, start_process: StartProcess) -> None:
    """What a predecessor left is published at the start, and a wipe is noticed soon."""
    victim = start_process(any_redis, publishes=False)
    sidecar = new_sidecar()
    await victim.store.create(sidecar)
    process = start_process(any_redis)
    async with alongside(process.outbox.watch()):
        await eventually(process.all_published, "the predecessor's event is out")
        await eventually(lambda: any_redis.exists("ingest:epoch"), "the epoch is known")
        await any_redis.flushall()
        await eventually(lambda: published(any_redis), "it is published again", 5)
    assert set(await published(any_redis)) == {(sidecar.upload_id, 1)}


async def test_watching_survives_an_outage(
    start_redis: StartRedis, connect_to: ConnectTo, start_process: StartProcess
) -> None:
    """It goes on when Redis comes back, here with nothing in it."""
    server = start_redis(aof=False)
    redis = connect_to(server.url)
    process = start_process(redis)
    sidecar = await process.create()
    async with alongside(process.outbox.watch()):
        await eventually(process.all_published, "it works before")
        await asyncio.to_thread(server.kill)
        await process.complete(sidecar)
        await asyncio.sleep(0.2)
        await asyncio.to_thread(server.start)

        async def all_again() -> bool:
            return {seq for _, seq in await published(redis)} == {1, 2}

        await eventually(all_again, "both are there again", 6)
