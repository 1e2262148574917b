"""What every blob store promises (``shared.blobs.store``), as tests.

To test another store, derive a class from ``BlobStoreConformance`` in a test module and give it
the fixture ``open_store``: each call opens the same store once more, as another process would.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest
from msgspec.structs import replace

from shared.blobs.store import BlobStore, BlobWriter, Chunk, Due, UploadBusy, UploadNotFound
from shared.events import UploadFailed
from shared.sidecar import Sidecar, new_id
from shared.times import now_ms
from tests.shared.samples import FACTS, cancelled, completed, new_sidecar

__all__ = [
    "NO_IDS",
    "BlobStoreConformance",
    "OpenStore",
    "StoreFixtures",
    "content",
    "ended",
    "finished",
    "opened",
    "pattern",
    "writing",
]

Store = TypeVar("Store", bound=BlobStore)
OpenStore = Callable[[], BlobStore]

NO_IDS = ["", ".", "..", "../etc/passwd", "/etc/passwd", "x" * 300, "\0", "ABCDEF" * 6, "due"]


@asynccontextmanager
async def opened(store: Store) -> AsyncIterator[Store]:
    """Open a store and close it at the end."""
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def writing(store: BlobStore, upload_id: str) -> AsyncIterator[BlobWriter]:
    """Hold the right to write."""
    writer = await store.acquire(upload_id)
    try:
        yield writer
    finally:
        await writer.close()


def pattern(size: int, seed: int = 0) -> bytes:
    """Return bytes of which no two stretches are alike."""
    return random.Random(seed).randbytes(size)


async def content(
    store: BlobStore, upload_id: str, start: int = 0, length: int = 1 << 40
) -> bytes:
    """Return what the store gives of an upload's bytes."""
    return b"".join([piece async for piece in store.read_range(upload_id, start, length)])


async def stored_file(store: BlobStore, body: bytes) -> Sidecar:
    """Put a finished upload into the store; return its record."""
    sidecar = new_sidecar()
    await store.create(sidecar)
    async with writing(store, sidecar.upload_id) as writer:
        await writer.write([body])
        await writer.finish(finished(sidecar))
        return writer.sidecar


async def committed(store: BlobStore, upload_id: str, index: int, body: bytes) -> Chunk:
    """Bring a chunk into the store; return what has its place."""
    staged = await store.stage(upload_id)
    for at in range(0, len(body), 1000):
        await staged.write([body[at : at + 1000]])
    assert staged.size == len(body)
    return await staged.commit(upload_id, index, hashlib.sha256(body).hexdigest())


def finished(sidecar: Sidecar) -> Sidecar:
    """Return the record of the completed upload."""
    return sidecar.after("completed", completed(sidecar.upload_id, sidecar.next_seq))


def ended(sidecar: Sidecar) -> Sidecar:
    """Return the tombstone of the upload."""
    return sidecar.after("cancelled", cancelled(sidecar.upload_id, sidecar.next_seq))


class StoreFixtures:
    """The store that is tested, opened as two processes would."""

    @pytest.fixture
    async def store(self, open_store: OpenStore) -> AsyncIterator[BlobStore]:
        """The store as one process sees it."""
        async with opened(open_store()) as store:
            yield store

    @pytest.fixture
    async def other(self, open_store: OpenStore) -> AsyncIterator[BlobStore]:
        """The same store as another process sees it."""
        async with opened(open_store()) as store:
            yield store


class BlobStoreConformance(StoreFixtures):
    """The promises, one a test."""

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
            await writer.sync()
        with pytest.raises(OSError):  # noqa: PT011 - whichever one
            await store.create(replace(sidecar, username="mallory"))
        stored = await store.read(sidecar.upload_id)
        assert (stored.sidecar, stored.offset) == (sidecar, 4)

    async def test_ids_of_all_records(self, store: BlobStore, other: BlobStore) -> None:
        """Every record is found, whatever became of its upload, those of a shard together."""
        kept = [new_sidecar() for _ in range(40)]
        for sidecar in kept:
            await store.create(sidecar)
        whole = await stored_file(store, b"whole")
        async with writing(store, kept[0].upload_id) as writer:
            await writer.bury(ended(kept[0]))

        found = [one async for one in other.ids()]

        assert sorted(found) == sorted([whole.upload_id, *(one.upload_id for one in kept)])
        shards = [one[:2] for one in found]
        assert shards == sorted(shards)

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
                await writer.sync()
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
                        await writer.sync()
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

    # Reading.

    @pytest.mark.parametrize("size", [0, 1, 700, 9000])
    async def test_a_finished_upload_is_read_in_ranges(
        self, store: BlobStore, other: BlobStore, size: int
    ) -> None:
        """Any range gives exactly the bytes that are there, in pieces of bounded size."""
        body = pattern(size)
        upload_id = (await stored_file(store, body)).upload_id
        for start, length in [
            (0, size),
            (0, 1),
            (size // 2, 10),
            (size, 5),
            (3, 10**9),
            (0, 0),
        ]:
            assert await content(other, upload_id, start, length) == body[start:][:length]

    async def test_large_ranges_come_in_small_pieces(self, store: BlobStore) -> None:
        """A reader that is slow makes nobody hold the file in memory."""
        body = pattern(1024 * 1024 + 17)
        upload_id = (await stored_file(store, body)).upload_id
        pieces = [one async for one in store.read_range(upload_id, 0, len(body))]
        assert b"".join(pieces) == body
        assert max(map(len, pieces)) <= 1024 * 1024

    async def test_an_unfinished_upload_is_read(
        self, store: BlobStore, other: BlobStore
    ) -> None:
        """What was synced can be looked at before the upload is complete."""
        sidecar = new_sidecar()
        await store.create(sidecar)
        async with writing(store, sidecar.upload_id) as writer:
            for _ in range(3):
                await writer.write([b"0123456789"])
                await writer.sync()
            assert await content(other, sidecar.upload_id) == b"0123456789" * 3
            assert await content(other, sidecar.upload_id, 8, 5) == b"89012"

    async def test_an_upload_is_read_once_its_last_byte_is_there(
        self, store: BlobStore, other: BlobStore
    ) -> None:
        """It can be hashed and scanned before anybody else may get it."""
        body = pattern(9000)
        sidecar = new_sidecar()
        sidecar = replace(sidecar, facts=replace(FACTS, size=len(body)))
        await store.create(sidecar)
        async with writing(store, sidecar.upload_id) as writer:
            await writer.write([body])
            await writer.sync()
            stored = await other.read(sidecar.upload_id)
            assert (stored.offset, stored.visible, writer.visible) == (9000, False, False)
            assert await content(other, sidecar.upload_id) == body
        async with writing(other, sidecar.upload_id) as writer:
            assert (writer.offset, writer.visible) == (9000, False)
            await writer.finish(finished(sidecar))
        assert (await store.read(sidecar.upload_id)).visible

    @pytest.mark.parametrize("upload_id", [*NO_IDS, new_id()])
    async def test_nothing_is_read_of_what_is_not_there(
        self, store: BlobStore, upload_id: str
    ) -> None:
        """An unknown upload is not mistaken for an empty one."""
        with pytest.raises(UploadNotFound):
            await content(store, upload_id)

    async def test_an_unfinished_upload_has_no_descriptor(self, store: BlobStore) -> None:
        """Nobody is served a file that still grows."""
        sidecar = new_sidecar()
        await store.create(sidecar)
        with pytest.raises(UploadNotFound):
            await store.open_blob(sidecar.upload_id)

    async def test_the_record_alone_is_loaded(self, store: BlobStore, other: BlobStore) -> None:
        """A tombstone is found too, and what is not there is not."""
        sidecar = new_sidecar()
        await store.create(sidecar)
        assert await other.load(sidecar.upload_id) == sidecar
        async with writing(store, sidecar.upload_id) as writer:
            tombstone = ended(sidecar)
            await writer.bury(tombstone)
        assert await other.load(sidecar.upload_id) == tombstone
        with pytest.raises(UploadNotFound):
            await other.load(new_id())

    # Chunks.

    async def test_a_chunk_is_there_once_it_is_committed(
        self, store: BlobStore, other: BlobStore
    ) -> None:
        """Out of order, of any size, and seen by everybody; what is discarded is nothing."""
        sidecar = new_sidecar()
        await store.create(sidecar)
        bodies = {7: pattern(9000), 0: b"", 3: pattern(10, 1)}
        for index, body in bodies.items():
            done = await committed(store, sidecar.upload_id, index, body)
            assert (done.index, done.size) == (index, len(body))
            assert done.digest == hashlib.sha256(body).hexdigest()
        for size in (10, 9000):
            staged = await store.stage(sidecar.upload_id)
            await staged.write([pattern(size)])
            assert len(await other.chunks(sidecar.upload_id)) == 3
            await staged.discard()
            await staged.discard()  # does nothing
        found = await other.chunks(sidecar.upload_id)
        assert [(one.index, one.size) for one in found] == [(0, 0), (3, 10), (7, 9000)]
        assert await other.chunks(new_id()) == []
        assert (await other.read(sidecar.upload_id)).offset == 0

    async def test_the_first_chunk_for_a_place_stays(
        self, store: BlobStore, other: BlobStore
    ) -> None:
        """A repeated chunk changes nothing; another one is told who has the place."""
        sidecar = new_sidecar()
        await store.create(sidecar)
        first = await committed(store, sidecar.upload_id, 1, b"first")
        for body in (b"first", b"second", pattern(9000)):
            assert await committed(other, sidecar.upload_id, 1, body) == first
        assert await store.chunks(sidecar.upload_id) == [first]

    async def test_equal_chunks_that_come_together_are_one(
        self, store: BlobStore, other: BlobStore
    ) -> None:
        """Repeats in parallel leave one chunk a place, and all are told the same."""
        sidecar = new_sidecar()
        await store.create(sidecar)
        done = await asyncio.gather(
            *(
                committed(view, sidecar.upload_id, index, pattern(300, index))
                for view in [store, other] * 2
                for index in range(3)
            )
        )
        found = await store.chunks(sidecar.upload_id)
        assert [one.index for one in found] == [0, 1, 2]
        assert {(one.index, one.digest) for one in done} == {
            (one.index, one.digest) for one in found
        }

    @pytest.mark.parametrize("before", [b"", b"before"])
    @pytest.mark.parametrize("size", [0, 100, 9000])
    async def test_an_uncommitted_chunk_is_taken(
        self, store: BlobStore, size: int, before: bytes
    ) -> None:
        """Its bytes follow those that are there, and nothing of it stays."""
        sidecar = new_sidecar()
        await store.create(sidecar)
        staged = await store.stage(sidecar.upload_id)
        await staged.write([pattern(size)])
        async with writing(store, sidecar.upload_id) as writer:
            await writer.write([before])
            await writer.take(staged)
            assert writer.offset == len(before) + size
            await writer.sync()
            await writer.write([b"after"])
            await writer.finish(finished(sidecar))
        assert await content(store, sidecar.upload_id) == before + pattern(size) + b"after"
        assert await store.chunks(sidecar.upload_id) == []

    async def test_chunks_are_joined(self, store: BlobStore, other: BlobStore) -> None:
        """In the order given, instead of what was there, and again after a crash."""
        sidecar = new_sidecar()
        await store.create(sidecar)
        sizes = [1000, 1, 9000, 0, 5000, 3, 3, 3, 800]
        for index in reversed(range(len(sizes))):
            await committed(store, sidecar.upload_id, index, pattern(sizes[index], index))
        whole = b"".join(pattern(size, index) for index, size in enumerate(sizes))
        for view in (store, other):
            async with writing(view, sidecar.upload_id) as writer:
                await writer.join_chunks(await view.chunks(sidecar.upload_id))
                assert (writer.offset, writer.visible) == (len(whole), False)
        assert (await store.read(sidecar.upload_id)).offset == len(whole)
        assert await content(store, sidecar.upload_id) == whole
        async with writing(store, sidecar.upload_id) as writer:
            await writer.finish(finished(sidecar))
        assert await content(other, sidecar.upload_id) == whole
        assert await other.chunks(sidecar.upload_id) == []

    # Joining uploads.

    async def test_uploads_are_joined(self, store: BlobStore) -> None:
        """One may be named twice; they stay as they are."""
        bodies = [pattern(size, size) for size in (9000, 10, 0, 5000)]
        ids = [(await stored_file(store, body)).upload_id for body in bodies]
        final = new_sidecar()
        await store.create(final)
        async with writing(store, final.upload_id) as writer:
            for _ in range(2):
                await writer.join_uploads([*ids, ids[0], ids[1]])
            await writer.finish(finished(final))
        assert await content(store, final.upload_id) == b"".join(
            [*bodies, bodies[0], bodies[1]]
        )
        for upload_id, body in zip(ids, bodies, strict=True):
            assert await content(store, upload_id) == body

    async def test_only_finished_uploads_are_joined(self, store: BlobStore) -> None:
        """What is missing or still grows is no part of a file."""
        live, final = new_sidecar(), new_sidecar()
        await store.create(live)
        await store.create(final)
        done = await stored_file(store, b"done")
        async with writing(store, final.upload_id) as writer:
            for missing in (live.upload_id, new_id()):
                with pytest.raises(UploadNotFound):
                    await writer.join_uploads([done.upload_id, missing])
                with pytest.raises(UploadNotFound):
                    await writer.share(missing)
        assert not (await store.read(final.upload_id)).visible

    @pytest.mark.parametrize("size", [0, 10, 9000])
    async def test_shared_bytes_outlive_the_original(
        self, store: BlobStore, other: BlobStore, size: int
    ) -> None:
        """Whichever of the two is deleted, the other one keeps its bytes."""
        body = pattern(size)
        for first_goes in (True, False):
            original, copy = await stored_file(store, body), new_sidecar()
            await store.create(copy)
            async with writing(store, copy.upload_id) as writer:
                await writer.share(original.upload_id)
                assert writer.offset == size
                await writer.finish(finished(copy))
            gone, kept = (original, copy) if first_goes else (copy, original)
            async with writing(other, gone.upload_id) as writer:
                await writer.bury(ended(writer.sidecar))
            with pytest.raises(UploadNotFound):
                await store.read(gone.upload_id)
            assert (await store.read(kept.upload_id)).offset == size
            assert await content(store, kept.upload_id) == body

    # All of them.

    async def test_a_walk_finds_each_upload(self, store: BlobStore) -> None:
        """Once each, without tombstones; those that are not visible on their own, too."""
        live = new_sidecar()
        await store.create(live)
        async with writing(store, live.upload_id) as writer:
            await writer.write([b"12345"])
            await writer.sync()
        done = await stored_file(store, b"done")
        buried = new_sidecar()
        await store.create(buried)
        async with writing(store, buried.upload_id) as writer:
            await writer.bury(ended(buried))
        found = {one.sidecar.upload_id: one async for one in store.walk()}
        assert found.keys() == {live.upload_id, done.upload_id}
        assert (found[live.upload_id].offset, found[live.upload_id].visible) == (5, False)
        assert (found[done.upload_id].offset, found[done.upload_id].visible) == (4, True)
        unfinished = [one.sidecar.upload_id async for one in store.walk(unfinished=True)]
        assert unfinished == [live.upload_id]

    async def test_leftovers_are_swept(self, store: BlobStore, other: BlobStore) -> None:
        """Only what is old goes, only when it is meant, and nothing that anybody owns."""
        live = new_sidecar()
        await store.create(live)
        kept = await committed(store, live.upload_id, 0, pattern(9000))
        async with writing(store, live.upload_id) as writer:
            await writer.write([pattern(9000)])
            await writer.sync()
        done = await stored_file(store, pattern(9000))
        for upload_id in (live.upload_id, new_id()):
            staged = await store.stage(upload_id)
            await staged.write([pattern(9000)])  # and then its process is killed
            await staged.write([pattern(9000)])

        assert await other.sweep_leftovers(older_than_s=60, dry_run=False) == []
        told = await other.sweep_leftovers(older_than_s=0, dry_run=True)
        assert len(told) == 2
        assert await other.sweep_leftovers(older_than_s=0, dry_run=False) == told
        assert await other.sweep_leftovers(older_than_s=0, dry_run=True) == []
        assert await store.chunks(live.upload_id) == [kept]
        assert (await store.read(live.upload_id)).offset == 9000
        assert await content(store, done.upload_id) == pattern(9000)

    async def test_a_note_is_replaced(self, store: BlobStore, other: BlobStore) -> None:
        """Everybody reads the last text; before there is one it is empty."""
        assert await store.note("epoch") == ""
        for text in ("one", "two: \u00fc", ""):
            await store.write_note("epoch", text)
            assert await other.note("epoch") == text

    async def test_a_failed_upload_keeps_its_record(
        self, store: BlobStore, other: BlobStore
    ) -> None:
        """Its bytes are gone and no more are taken; why it failed can still be read."""
        sidecar = new_sidecar()
        await store.create(sidecar)
        event = UploadFailed(
            upload_id=sidecar.upload_id,
            seq=2,
            at=now_ms(),
            upload=FACTS,
            offset=5,
            error_code="HASH_MISMATCH",
            error_message="The bytes are not those that were announced.",
        )
        async with writing(store, sidecar.upload_id) as writer:
            await writer.write([pattern(9000)])
            await writer.sync()
            failed = sidecar.after("failed", event)
            await writer.bury(failed)
        stored = await other.read(sidecar.upload_id)
        assert (stored.sidecar, stored.offset, stored.visible) == (failed, 0, False)
        with pytest.raises(UploadNotFound):
            await content(other, sidecar.upload_id, 0, 1)
        with pytest.raises(UploadNotFound):
            await other.acquire(sidecar.upload_id)

    async def test_writes_and_syncs_of_any_size_add_up(self, store: BlobStore) -> None:
        """However they are mixed within and across turns, no byte is lost or doubled."""
        order = random.Random(3)
        body = pattern(40_000)
        sidecar = new_sidecar()
        await store.create(sidecar)
        at = 0
        while at < len(body):
            async with writing(store, sidecar.upload_id) as writer:
                assert writer.offset == at
                for _ in range(order.randrange(1, 5)):
                    for _ in range(order.randrange(1, 4)):
                        size = order.choice((1, 300, 3000, 9000))
                        await writer.write([body[at : at + size]])
                        at = min(at + size, len(body))
                    await writer.sync()
                    assert writer.offset == at
        async with writing(store, sidecar.upload_id) as writer:
            await writer.finish(finished(sidecar))
        assert await content(store, sidecar.upload_id) == body
