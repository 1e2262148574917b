"""One writer at a time, and how the next one gets its turn: in a process, and between two."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.ingest import writers as writers_module
from services.ingest.errors import Locked
from services.ingest.writers import Lease, Writers
from shared.blobs.filesystem import FilesystemStore
from shared.blobs.store import UploadBusy, UploadNotFound
from shared.events import UploadCreated, UploadFacts
from shared.lifecycle import background
from shared.sidecar import Sidecar, new_id
from tests.ingest.conftest import Ingest
from tests.ingest.tus_client import id_of, wait_for_offset


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FilesystemStore]:
    """A store of its own."""
    one = FilesystemStore(tmp_path / "blobs")
    yield one
    await one.close()


@pytest.fixture
async def upload_id(store: FilesystemStore) -> str:
    """An open upload in the store."""
    one = new_id()
    facts = UploadFacts(user_id="u", tenant="t", created_at=1, job_id=new_id(), size=100)
    event = UploadCreated(upload_id=one, seq=1, at=1, upload=facts)
    await store.create(Sidecar(upload_id=one, status="created", facts=facts, outbox=(event,)))
    return one


async def hold(writers: Writers, upload_id: str, held: asyncio.Event, log: list[str]) -> None:
    """Hold an upload until asked to let go, as a PATCH does."""
    async with writers.writing(upload_id) as lease:
        asked = asyncio.Event()
        lease.when_asked(asked.set)
        held.set()
        await asked.wait()
        log.append(f"asked for {lease.asked}")
        await lease.writer.write([b"x"])
    log.append("released")


async def test_holds_alone(store: FilesystemStore, upload_id: str) -> None:
    """Whoever holds an upload is the only one, and it is free again afterwards."""
    writers = Writers(store)
    for _ in range(2):
        async with writers.writing(upload_id) as lease:
            assert writers.count == 1
            assert lease.upload_id == upload_id
            with pytest.raises(UploadBusy):
                await store.acquire(upload_id)
        assert writers.count == 0


async def test_free_after_an_error(store: FilesystemStore, upload_id: str) -> None:
    """A request that fails does not keep its upload."""
    writers = Writers(store)
    with pytest.raises(ZeroDivisionError):
        async with writers.writing(upload_id):
            raise ZeroDivisionError
    assert writers.count == 0
    await (await store.acquire(upload_id)).close()


async def test_unknown_upload(store: FilesystemStore) -> None:
    """There is nothing to hold of an upload that is not there."""
    with pytest.raises(UploadNotFound):
        async with Writers(store).writing(new_id()):
            pass


async def test_newcomer_takes_over(store: FilesystemStore, upload_id: str) -> None:
    """The holder is asked, ends what it does, and the newcomer sees all of it."""
    writers, held, log = Writers(store), asyncio.Event(), list[str]()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(hold(writers, upload_id, held, log))
        await held.wait()
        started = time.monotonic()
        async with writers.writing(upload_id) as lease:
            assert log == ["asked for takeover", "released"]
            assert lease.writer.offset == 1
            assert lease.asked is None
        assert time.monotonic() - started < 5.0


async def test_many_newcomers(store: FilesystemStore, upload_id: str) -> None:
    """Of many at once each gets its turn, alone, and none is left waiting."""
    writers, turns, holding = Writers(store), [], 0

    async def come(number: int) -> None:
        nonlocal holding
        async with writers.writing(upload_id) as lease:
            holding += 1
            assert holding == 1
            await lease.writer.write([b"x"])
            turns.append(number)
            holding -= 1

    started = time.monotonic()
    await asyncio.gather(*(come(number) for number in range(20)))
    assert sorted(turns) == list(range(20))
    assert (await store.read(upload_id)).offset == 20
    assert time.monotonic() - started < 9


async def test_removed_while_waiting(store: FilesystemStore, upload_id: str) -> None:
    """Who waits for an upload that its holder removes is told that it is gone."""
    writers = Writers(store)
    async with asyncio.TaskGroup() as tasks:
        async with writers.writing(upload_id) as lease:
            waiting = tasks.create_task(expect_gone(writers, upload_id))
            while lease.asked is None:
                await asyncio.sleep(0.01)
            store.unlink_bytes(upload_id)
        await waiting


async def test_no_question_is_left(store: FilesystemStore, upload_id: str) -> None:
    """A question about an upload that was removed meanwhile does not stay for ever."""
    elsewhere = FilesystemStore(store.root)
    async with asyncio.TaskGroup() as tasks:
        async with Writers(elsewhere).writing(upload_id):
            waiting = tasks.create_task(expect_gone(Writers(store), upload_id))
            while not os.listdir(store.root / "ask"):
                await asyncio.sleep(0.01)
            store.unlink_bytes(upload_id)
        await waiting
    await elsewhere.close()
    assert os.listdir(store.root / "ask") == []


async def expect_gone(writers: Writers, upload_id: str) -> None:
    """Ask for an upload that ends meanwhile."""
    with pytest.raises(UploadNotFound):
        async with writers.writing(upload_id):
            pass


async def test_holder_that_stays(
    store: FilesystemStore, upload_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the holder does not let go in time, the newcomer is refused, and disturbs nobody."""
    monkeypatch.setattr(writers_module, "_ACQUIRE_S", 0.2)
    writers = Writers(store)
    async with writers.writing(upload_id) as lease:
        for _ in range(2):
            with pytest.raises(Locked) as refused:
                async with writers.writing(upload_id):
                    pass
            assert refused.value.status == 423
        assert lease.asked == "takeover"
        await lease.writer.write([b"x"])
    async with writers.writing(upload_id) as again:
        assert again.writer.offset == 1


async def test_newcomer_that_gives_up(store: FilesystemStore, upload_id: str) -> None:
    """A newcomer that is cancelled while it waits leaves nothing locked."""
    writers = Writers(store)
    async with writers.writing(upload_id):
        newcomer = asyncio.ensure_future(expect_gone(writers, upload_id))
        await asyncio.sleep(0.1)
        newcomer.cancel()
        await asyncio.wait([newcomer])
    async with writers.writing(upload_id):
        assert writers.count == 1


async def test_asked_before_it_listens(store: FilesystemStore, upload_id: str) -> None:
    """A wish that came before the holder listens for wishes is told at once; once only."""
    told = []
    async with Writers(store).writing(upload_id) as lease:
        lease.ask("takeover")
        lease.ask("shutdown")
        lease.when_asked(lambda: told.append(lease.asked))
        lease.when_asked(None)
        lease.ask("takeover")
    assert told == ["takeover"]


async def test_shutdown(store: FilesystemStore, upload_id: str) -> None:
    """At shutdown every holder is asked, and so is each one that comes later."""
    writers, held, log = Writers(store), asyncio.Event(), list[str]()
    holder = asyncio.ensure_future(hold(writers, upload_id, held, log))
    await held.wait()
    writers.let_go()
    await holder
    assert log == ["asked for shutdown", "released"]
    async with writers.writing(upload_id) as lease:
        assert lease.asked == "shutdown"


async def test_two_stores_on_one_folder(store: FilesystemStore, upload_id: str) -> None:
    """A holder elsewhere is asked through the folder; nothing of the question stays."""
    elsewhere = FilesystemStore(store.root)
    here, there = Writers(store), Writers(elsewhere)
    held, log = asyncio.Event(), list[str]()
    async with background("handover", there.listen()):
        holder = asyncio.ensure_future(hold(there, upload_id, held, log))
        await held.wait()
        started = time.monotonic()
        async with here.writing(upload_id) as lease:
            assert time.monotonic() - started < 5.0
            assert lease.writer.offset == 1
        await holder
    assert log == ["asked for takeover", "released"]
    assert os.listdir(store.root / "ask") == []
    await elsewhere.close()


async def test_takes_over_from_another_process(ingest: Ingest) -> None:
    """A PATCH in another process lets go at once, and what it received is there."""
    path = ingest.tus.create(1000)
    store = FilesystemStore(ingest.data_dir / "blobs")
    with ingest.tus.begin_patch(path, 0, 1000, b"x" * 300) as hanging:
        wait_for_offset(ingest.tus, path, 300)
        started = time.monotonic()
        async with Writers(store).writing(id_of(path)) as lease:
            assert time.monotonic() - started < 5.0
            assert lease.writer.offset == 300
            # Late bytes of the old connection go nowhere.
            with pytest.raises((ConnectionError, EOFError)):  # noqa: PT012
                hanging.send(b"late" * 100)
                assert hanging.read().status == 423
                while True:
                    hanging.send(b"late" * 1000)
        assert (await store.read(id_of(path))).offset == 300
    await store.close()


async def test_gives_way_to_another_process(ingest: Ingest) -> None:
    """A HEAD in another process makes a holder here let go at once."""
    path = ingest.tus.create(1000)
    store = FilesystemStore(ingest.data_dir / "blobs")
    writers, held, log = Writers(store), asyncio.Event(), list[str]()
    async with background("handover", writers.listen()):
        holder = asyncio.ensure_future(hold(writers, id_of(path), held, log))
        await held.wait()
        started = time.monotonic()
        offset = await asyncio.get_running_loop().run_in_executor(None, ingest.tus.offset, path)
        assert offset == 1
        assert time.monotonic() - started < 5.0
        await holder
    await store.close()


def test_lease_is_free_of_the_loop() -> None:
    """A lease can be asked before anything runs, and remembers the first reason."""
    lease = Lease("id", None)  # type: ignore[arg-type]
    lease.ask("shutdown")
    lease.ask("takeover")
    assert lease.asked == "shutdown"
