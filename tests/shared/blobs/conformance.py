"""What every blob store promises (``shared.blobs.store``), as tests.

To test another store, derive a class from ``BlobStoreConformance`` in a test module and give it
the fixture ``open_store``: each call opens the same store once more, as another process would.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from shared.blobs.store import BlobStore, BlobWriter, Due, UploadBusy, UploadNotFound
from shared.sidecar import Sidecar, new_id
from tests.shared.samples import FACTS, cancelled, completed, new_sidecar

__all__ = ["NO_IDS", "BlobStoreConformance", "OpenStore", "ended", "finished", "writing"]

OpenStore = Callable[[], BlobStore]

NO_IDS = ["", ".", "..", "../etc/passwd", "/etc/passwd", "x" * 300, "\0", "ABCDEF" * 6, "due"]


@asynccontextmanager
async def writing(store: BlobStore, upload_id: str) -> AsyncIterator[BlobWriter]:
    """Hold the right to write."""
    writer = await store.acquire(upload_id)
    try:
        yield writer
    finally:
        await writer.close()


def finished(sidecar: Sidecar) -> Sidecar:
    """Return the record of the completed upload."""
    return sidecar.after("completed", completed(sidecar.upload_id, sidecar.next_seq))


def ended(sidecar: Sidecar) -> Sidecar:
    """Return the tombstone of the upload."""
    return sidecar.after("cancelled", cancelled(sidecar.upload_id, sidecar.next_seq))


class BlobStoreConformance:
    """The promises, one a test."""

    @pytest.fixture
    def store(self, open_store: OpenStore) -> BlobStore:
        """The store as one process sees it."""
        return open_store()

    @pytest.fixture
    def other(self, open_store: OpenStore) -> BlobStore:
        """The same store as another process sees it."""
        return open_store()

    async def test_a_new_upload_is_there_at_once(
        self, store: BlobStore, other: BlobStore
    ) -> None:
        """What was created is read as it was recorded, everywhere."""
        sidecar = new_sidecar()
        assert await store.create(sidecar) == [Due(sidecar.upload_id, 1)]
        for view in (store, other):
            stored = await view.read(sidecar.upload_id)
            assert (stored.sidecar, stored.offset, stored.visible) == (sidecar, 0, False)

    async def test_an_upload_is_created_once(self, store: BlobStore) -> None:
        """A second creation under the same id fails and leaves the first as it was."""
        sidecar = new_sidecar()
        await store.create(sidecar)
        async with writing(store, sidecar.upload_id) as writer:
            await writer.write([b"kept"])
        with pytest.raises(OSError):  # noqa: PT011 - whichever one
            await store.create(replace(sidecar, username="mallory"))
        stored = await store.read(sidecar.upload_id)
        assert (stored.sidecar, stored.offset) == (sidecar, 4)

    async def test_bytes_are_appended_in_order(self, store: BlobStore) -> None:
        """The offset says how many bytes are there, now and after the next acquisition."""
        sidecar = new_sidecar()
        await store.create(sidecar)
        expected = 0
        for count in (1, 3, 0, 1500):
            async with writing(store, sidecar.upload_id) as writer:
                assert writer.offset == expected
                assert not writer.visible
                await writer.write([b"x" * 7] * count)
                await writer.write([b"", b"y", b""])
                expected += 7 * count + 1
                assert writer.offset == expected
                await writer.sync()
            assert (await store.read(sidecar.upload_id)).offset == expected

    async def test_reading_does_not_disturb_a_writer(
        self, store: BlobStore, other: BlobStore
    ) -> None:
        """An upload can be looked at while it grows; the offset only grows."""
        sidecar = new_sidecar()
        await store.create(sidecar)
        seen = []
        async with writing(store, sidecar.upload_id) as writer:
            for _ in range(20):
                looks = asyncio.gather(*(other.read(sidecar.upload_id) for _ in range(3)))
                await writer.write([b"12345"])
                seen += [look.offset for look in await looks]
                assert (await other.read(sidecar.upload_id)).offset == writer.offset
        assert set(seen) <= set(range(0, 101, 5))

    async def test_one_writer_at_a_time(self, store: BlobStore, other: BlobStore) -> None:
        """Whoever comes second is refused, here and elsewhere, until the first lets go."""
        sidecar = new_sidecar()
        await store.create(sidecar)
        writer = await store.acquire(sidecar.upload_id)
        for view in (store, other):
            with pytest.raises(UploadBusy):
                await view.acquire(sidecar.upload_id)
        await writer.close()
        await writer.close()  # does nothing
        async with writing(other, sidecar.upload_id):
            with pytest.raises(UploadBusy):
                await store.acquire(sidecar.upload_id)

    async def test_many_who_want_to_write_take_turns(
        self, store: BlobStore, other: BlobStore
    ) -> None:
        """No byte of one writer comes between those of another."""
        sidecar = new_sidecar()
        await store.create(sidecar)
        order = random.Random(7)

        async def append(view: BlobStore) -> None:
            while True:
                try:
                    async with writing(view, sidecar.upload_id) as writer:
                        start = writer.offset
                        for _ in range(4):
                            await writer.write([b"x" * 10])
                        assert writer.offset == start + 40
                        return
                except UploadBusy:
                    await asyncio.sleep(order.random() / 200)

        await asyncio.gather(*(append(view) for view in [store, other] * 8))
        assert (await store.read(sidecar.upload_id)).offset == 640

    @pytest.mark.parametrize("upload_id", [*NO_IDS, new_id()])
    async def test_an_unknown_id_is_not_found(self, store: BlobStore, upload_id: str) -> None:
        """What could be no id is answered like an id that nobody has."""
        with pytest.raises(UploadNotFound):
            await store.read(upload_id)
        with pytest.raises(UploadNotFound):
            await store.acquire(upload_id)

    async def test_a_newcomer_can_ask_the_holder_to_let_go(
        self, store: BlobStore, other: BlobStore
    ) -> None:
        """The question is seen by the others until somebody has got the upload."""
        sidecar = new_sidecar()
        await store.create(sidecar)
        assert await store.release_asked() == set()
        writer = await store.acquire(sidecar.upload_id)
        await other.ask_release(sidecar.upload_id)
        await other.ask_release(sidecar.upload_id)
        assert await store.release_asked() == {sidecar.upload_id}
        await writer.close()
        async with writing(other, sidecar.upload_id):
            assert await store.release_asked() == set()

    async def test_a_record_is_replaced(self, store: BlobStore, other: BlobStore) -> None:
        """A change without an event makes nothing due that was not."""
        sidecar = new_sidecar()
        await store.create(sidecar)
        longer = replace(sidecar, facts=replace(FACTS, size=5))
        async with writing(store, sidecar.upload_id) as writer:
            assert await writer.record(longer) == [Due(sidecar.upload_id, 1)]
            assert writer.sidecar == longer
            await store.mark_published(Due(sidecar.upload_id, 1), last=False)
            assert await writer.record(longer) == []
        assert (await other.read(sidecar.upload_id)).sidecar == longer

    async def test_a_finished_upload_is_visible_and_has_ended(
        self, store: BlobStore, other: BlobStore
    ) -> None:
        """Its bytes are all there, its event is due, and its right is still exclusive."""
        sidecar = new_sidecar()
        await store.create(sidecar)
        done = finished(sidecar)
        async with writing(store, sidecar.upload_id) as writer:
            await writer.write([b"all of it"])
            due = await writer.finish(done)
            assert due == [Due(sidecar.upload_id, 1), Due(sidecar.upload_id, 2)]
            assert (writer.visible, writer.offset, writer.sidecar) == (True, 9, done)
            with pytest.raises(UploadBusy):
                await other.acquire(sidecar.upload_id)
        stored = await other.read(sidecar.upload_id)
        assert (stored.sidecar, stored.offset, stored.visible) == (done, 9, True)
        async with writing(other, sidecar.upload_id) as writer:
            assert (writer.visible, writer.offset, writer.sidecar) == (True, 9, done)

    async def test_finishing_twice_is_finishing_once(self, store: BlobStore) -> None:
        """A finish whose answer was lost may be repeated."""
        sidecar = new_sidecar()
        await store.create(sidecar)
        done = finished(sidecar)
        for _ in range(2):
            async with writing(store, sidecar.upload_id) as writer:
                if not writer.offset:
                    await writer.write([b"all of it"])
                await writer.finish(done)
        stored = await store.read(sidecar.upload_id)
        assert (stored.sidecar, stored.offset, stored.visible) == (done, 9, True)

    async def test_an_empty_upload_can_be_finished(self, store: BlobStore) -> None:
        """A file of no bytes is a file."""
        sidecar = new_sidecar()
        await store.create(sidecar)
        async with writing(store, sidecar.upload_id) as writer:
            await writer.finish(finished(sidecar))
        stored = await store.read(sidecar.upload_id)
        assert (stored.offset, stored.visible) == (0, True)

    @pytest.mark.parametrize("finish_first", [False, True])
    async def test_a_buried_upload_is_gone(
        self, store: BlobStore, other: BlobStore, finish_first: bool
    ) -> None:
        """Nobody finds it again; its last event is due, and then even the tombstone goes."""
        sidecar = new_sidecar()
        await store.create(sidecar)
        async with writing(store, sidecar.upload_id) as writer:
            await writer.write([b"x"])
            if finish_first:
                await writer.finish(finished(sidecar))
            tombstone = ended(writer.sidecar)
            due = await writer.bury(tombstone)
            last = due[-1]
            assert last == Due(sidecar.upload_id, tombstone.next_seq - 1)
        for view in (store, other):
            with pytest.raises(UploadNotFound):
                await view.read(sidecar.upload_id)
            with pytest.raises(UploadNotFound):
                await view.acquire(sidecar.upload_id)
        assert [one async for one in store.survey(recent_s=60)] == [tombstone]
        for one in due:
            await store.mark_published(one, last=one == last)
        assert await store.due(older_than_s=0) == []
        assert [one async for one in store.survey(recent_s=60)] == []

    async def test_due_events_are_listed_until_they_are_published(
        self, store: BlobStore, other: BlobStore
    ) -> None:
        """By upload and number; what has just come due can be left out."""
        sidecars = sorted((new_sidecar() for _ in range(3)), key=lambda one: one.upload_id)
        for sidecar in sidecars:
            await store.create(sidecar)
            async with writing(store, sidecar.upload_id) as writer:
                await writer.finish(finished(sidecar))
        expected = [Due(one.upload_id, seq) for one in sidecars for seq in (1, 2)]
        assert await other.due(older_than_s=0) == expected
        assert await other.due(older_than_s=60) == []
        for one in expected[::2]:
            await other.mark_published(one, last=False)
            await other.mark_published(one, last=False)  # by somebody else, too
        assert await store.due(older_than_s=0) == expected[1::2]

    async def test_a_survey_finds_what_is_live_or_recent(self, store: BlobStore) -> None:
        """Each upload once; those that have ended only if that was recently."""
        live, done = new_sidecar(), new_sidecar()
        for sidecar in (live, done):
            await store.create(sidecar)
        async with writing(store, done.upload_id) as writer:
            await writer.finish(finished(done))
        recent = [one async for one in store.survey(recent_s=60)]
        assert sorted(one.upload_id for one in recent) == sorted(
            [live.upload_id, done.upload_id]
        )
        assert {one.status for one in recent} == {"created", "completed"}
        assert [one async for one in store.survey(recent_s=-60)] == [live]
