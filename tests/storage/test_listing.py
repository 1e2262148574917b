"""Records and lists in a real Redis: repeated, out of order, and while files come and go."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, Final

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from services.storage.listing import Listing, Page
from services.storage.paging import Query, query_of
from services.storage.record import FileRecord, Owner, list_key, record_key
from services.storage.records import Records
from services.storage.registering import Registrar
from shared import events
from shared.events import FileDeleted, LifecycleEvent, MalformedEvent, UploadCompleted
from shared.sidecar import new_id
from shared.stream_group import GroupEntry
from shared.streams import command

ALICE: Final = Owner("acme", "alice")


def a_file(number: int = 0, **more: Any) -> FileRecord:
    """Return the record of a file of Alice."""
    record = FileRecord(
        file_id=new_id(),
        seq=2,
        tenant=ALICE.tenant,
        user_id=ALICE.user_id,
        filename=f"file {number:06d}.txt",
        content_type="text/plain",
        size=number,
        sha256="",
        created_at=1_700_000_000_000 + number,
        completed_at=1_700_000_000_000 + number,
    )
    return replace(record, **more)


def facts_of(record: FileRecord) -> events.UploadFacts:
    """Return what the events of a file say of it."""
    return events.UploadFacts(
        user_id=record.user_id,
        tenant=record.tenant,
        created_at=record.created_at,
        job_id="job",
        size=record.size,
        filename=record.filename,
        content_type=record.content_type,
    )


@pytest.fixture
def records(redis: Redis) -> Records:
    """An empty Redis."""
    return Records(redis)


@pytest.fixture
def listing(records: Records) -> Listing:
    """Reads what is recorded."""
    return Listing(records)


async def names(listing: Listing, **params: str) -> list[str]:
    """Return the names of Alice's files, from all pages."""
    found: list[str] = []
    while True:
        page = await listing.page(ALICE, query_of(params))
        found += [one.filename for one in page.files]
        if page.next_cursor is None:
            return found
        params["cursor"] = page.next_cursor


async def test_what_was_dropped_stays_dropped(records: Records, listing: Listing) -> None:
    """An event that comes again after the delete must not bring a dead file back."""
    one, unknown = a_file(1), a_file(2)
    await records.register([one])
    await records.register([one])
    assert await names(listing) == [one.filename]

    await records.drop(one.file_id, facts_of(one))
    await records.drop(unknown.file_id, facts_of(unknown))
    await records.drop(one.file_id, facts_of(one))
    await records.register([one, unknown, replace(one, seq=9)])

    assert await names(listing) == []
    assert await records.find(one.file_id) is None
    assert await records.count(ALICE) == 0


async def test_records_never_go_backwards(records: Records, redis: Redis) -> None:
    """Old news must not replace what is known, but a digest that was missing is taken."""
    one = a_file(1, seq=3)
    await records.register([one])
    await records.register([replace(one, seq=2, filename="old")])
    assert await records.find(one.file_id) == one

    hashed = replace(one, sha256="ab" * 32)
    await records.register([hashed])
    await records.register([one])
    assert await records.find(one.file_id) == hashed

    await redis.script_flush()  # a Redis that has forgotten the scripts
    await records.register([replace(hashed, seq=4)])
    assert await records.find(one.file_id) == replace(hashed, seq=4)


async def test_steps_that_a_crash_left_out(
    records: Records, listing: Listing, redis: Redis
) -> None:
    """A record that is not listed is listed when it comes again; a stray is no file."""
    one, other = a_file(1), a_file(2)
    await records.register([one, other])
    for sort in ("created_at", "name", "size"):
        await redis.delete(list_key(ALICE, sort))
    await records.register([one])
    assert await names(listing, sort="size") == [one.filename]

    await records.register([other])
    await redis.delete(record_key(other.file_id))
    for sort in ("created_at", "name", "size"):
        assert await names(listing, sort=sort) == [one.filename]


async def test_owners_are_kept_apart(records: Records, listing: Listing, redis: Redis) -> None:
    """A file is listed for its owner alone, even if it has got into another's list."""
    mine = a_file(1)
    theirs = [
        a_file(2, user_id="bob"),
        a_file(3, tenant="other"),
        a_file(4, tenant="acme/alice", user_id=""),
    ]
    await records.register([mine, *theirs])
    assert await names(listing) == [mine.filename]

    stray = (await command(redis, "ZRANGE", list_key(theirs[0].owner, "name"), 0, -1))[0]
    await command(redis, "ZADD", list_key(ALICE, "name"), 0, stray)
    assert await names(listing, sort="name") == [mine.filename]


async def test_pages_while_files_come_and_go(records: Records, listing: Listing) -> None:
    """Whoever turns the pages sees every file that stays exactly once, in each order."""
    chance = random.Random(7)
    for sort, order in (("created_at", "desc"), ("name", "asc"), ("size", "desc")):
        staying = [a_file(2 * n) for n in range(60)]
        leaving = [a_file(2 * n + 1) for n in range(60)]
        await records.register(staying + leaving)
        params, seen = {"limit": "7", "sort": sort, "order": order}, list[str]()
        while True:
            page = await listing.page(ALICE, query_of(params))
            seen += [one.file_id for one in page.files]
            if page.next_cursor is None:
                break
            params["cursor"] = page.next_cursor
            for one in chance.sample(leaving, min(len(leaving), 6)):
                leaving.remove(one)
                await records.drop(one.file_id, facts_of(one))
            newcomers = [a_file(chance.randrange(130)) for _ in range(5)]
            await records.register(newcomers)
            leaving += newcomers

        assert len(seen) == len(set(seen))
        there = [one for one in seen if one in {each.file_id for each in staying}]
        expected = [one.file_id for one in staying]
        assert there == (expected if order == "asc" else expected[::-1])
        for one in staying + leaving:
            await records.drop(one.file_id, facts_of(one))


async def test_a_short_page_goes_on(
    records: Records, listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter that fits few of many files ends a page early, and misses none in the end."""
    monkeypatch.setattr("services.storage.listing._BATCH", 20)
    monkeypatch.setattr("services.storage.listing._MOST_LOOKED_AT", 40)
    rare = {n for n in range(200) if n % 90 == 5}
    await records.register(
        [a_file(n, content_type="image/png" if n in rare else "text/plain") for n in range(200)]
    )

    first = await listing.page(ALICE, query_of({"type": "image", "order": "asc"}))
    assert [one.size for one in first.files] == [5]
    assert first.next_cursor is not None
    found = await names(listing, type="image", limit="2", order="asc")
    assert found == [a_file(n).filename for n in sorted(rare)]
    assert await names(listing, name="000199.T", sort="size") == ["file 000199.txt"]
    within = {"created_after": "2023-11-14T22:13:20.150Z", "sort": "name"}
    assert len(await names(listing, **within)) == 50
    within["created_before"] = "2023-11-14T22:13:20.160Z"
    assert len(await names(listing, **within)) == 10
    assert len(await names(listing, **{**within, "sort": "created_at"})) == 10


async def test_the_last_page(records: Records, listing: Listing) -> None:
    """A page that is full to the last file is the last one; the total counts all."""
    await records.register([a_file(n) for n in range(6)])

    page = await listing.page(ALICE, Query(limit=6))
    assert (len(page.files), page.next_cursor, page.total) == (6, None, 6)
    page = await listing.page(ALICE, Query(limit=5))
    assert page.next_cursor is not None
    assert await listing.page(Owner("acme", "nobody"), Query()) == Page([], None, 0, False)


async def test_forty_thousand_files(records: Records, listing: Listing) -> None:
    """A page in the middle of a huge list takes milliseconds: it is found, not counted off."""
    for start in range(0, 40_000, 5_000):
        await records.register([a_file(n) for n in range(start, start + 5_000)])
    middle = Query(limit=50, created_before=1_700_000_000_000 + 20_000)

    pages, took = [], []
    for _ in range(20):
        started = time.perf_counter()
        pages.append(await listing.page(ALICE, middle))
        took.append(time.perf_counter() - started)

    assert pages[0].files[0].size == 19_999
    assert pages[0].total == 40_000
    assert min(took) < 0.05  # the others may have waited for the machine
    started = time.perf_counter()
    nothing = await listing.page(ALICE, Query(name="not there"))
    assert nothing.files == []
    assert nothing.next_cursor is not None
    assert time.perf_counter() - started < 10


# From events.


def entry(event: LifecycleEvent | bytes) -> GroupEntry:
    """Return an event as it is read from a stream."""
    payload = event if isinstance(event, bytes) else events.encode(event)
    return GroupEntry("events:{p00}", b"1-1", {b"i": b"", b"d": payload})


@pytest.fixture
def registrar(records: Records) -> Registrar:
    """One that only records: the store is not touched by that."""
    return Registrar(records, None, None)  # type: ignore[arg-type]


async def test_events_say_all(registrar: Registrar, records: Records, listing: Listing) -> None:
    """A file is recorded from one event alone; a piece of a file, or a failure, is none."""
    one, piece = a_file(1), a_file(2)
    completed = UploadCompleted(
        upload_id=one.file_id, seq=2, at=one.completed_at, upload=facts_of(one), offset=1
    )
    partial = replace(
        completed, upload_id=piece.file_id, upload=replace(facts_of(piece), partial=True)
    )
    failed = events.UploadFailed(
        upload_id=piece.file_id, seq=3, at=1, upload=facts_of(piece), error_code="X"
    )
    await registrar.handle([entry(each) for each in (completed, partial, failed)])
    assert await names(listing) == [one.filename]
    assert await records.find(one.file_id) == one

    deleted = FileDeleted(upload_id=one.file_id, seq=4, at=9, upload=facts_of(one))
    await registrar.handle([entry(deleted), entry(completed)])
    await registrar.handle([entry(completed)])
    assert await names(listing) == []


@pytest.mark.parametrize(
    "change",
    [{"at": 10**15}, {"upload": {"created_at": 2**62}}, {"upload": {"size": 2**64}}, None],
)
async def test_bad_events(
    registrar: Registrar, listing: Listing, change: dict[str, Any] | None
) -> None:
    """A number that no answer could show makes the event bad, not every list with it."""
    one = a_file(1)
    event = UploadCompleted(upload_id=one.file_id, seq=2, at=1, upload=facts_of(one))
    if change is None:
        bad = b"{}"
    else:
        upload = replace(facts_of(one), **change.get("upload", {}))
        bad = events.encode(replace(event, upload=upload, at=change.get("at", 1)))

    with pytest.raises(MalformedEvent):
        await registrar.handle([entry(bad)])

    assert await names(listing) == []


async def test_members_that_race(records: Records, listing: Listing) -> None:
    """Two processes that register and drop the same files at once leave none of them listed."""
    files = [a_file(n) for n in range(50)]

    async def drop_all() -> None:
        for one in files:
            await records.drop(one.file_id, facts_of(one))

    async def register_all() -> None:
        for one in files:
            await records.register([one])

    await asyncio.gather(register_all(), drop_all(), register_all())

    assert await names(listing) == []
