"""Session records in Redis: what they say, and that nothing old overwrites them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from services.ingest import progress as progress_module
from services.ingest import records as records_module
from services.ingest.progress import ProgressReporter
from services.ingest.records import SessionRecords, record_of
from shared.events import (
    FileDeleted,
    UploadCancelled,
    UploadCompleted,
    UploadCreated,
    UploadFacts,
    UploadProgress,
    encode,
)
from shared.lifecycle import background
from shared.publisher import Publisher
from shared.sidecar import Sidecar, new_id
from shared.stream_group import GroupEntry
from shared.streams import command, progress_stream, read_ids
from tests.shared.unpacking import unpack_positions

FACTS = UploadFacts(
    user_id="u",
    tenant="t",
    created_at=1000,
    job_id="j",
    size=1000,
    filename="a.mp4",
    content_type="video/mp4",
    metadata={"filename": "a.mp4"},
)


def created() -> Sidecar:
    """Return the record of a new upload of 1000 bytes."""
    one = new_id()
    event = UploadCreated(upload_id=one, seq=1, at=1000, upload=FACTS)
    return Sidecar(
        upload_id=one, status="created", facts=FACTS, username="Ursula", outbox=(event,)
    )


def completed(before: Sidecar) -> Sidecar:
    """Return the record of an upload that is complete."""
    event = UploadCompleted(upload_id=before.upload_id, seq=2, at=3000, upload=FACTS)
    return before.after("completed", event, completed_at=3000)


def cancelled(before: Sidecar) -> Sidecar:
    """Return the tombstone of an upload."""
    event = UploadCancelled(upload_id=before.upload_id, seq=2, at=3000, upload=FACTS)
    return before.after("cancelled", event)


async def until(check: Callable[[], object]) -> None:
    """Wait until a coroutine function returns something true."""
    async with asyncio.timeout(10):
        while not await check():  # type: ignore[misc]
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("sidecar", "offset", "expected"),
    [
        (created(), 0, ("created", "0.0", "0", "1970-01-01T00:00:02Z", "")),
        (created(), 500, ("uploading", "50.0", "500", "1970-01-01T00:00:02Z", "")),
        (
            completed(created()),
            1000,
            ("completed", "100.0", "1000", "1970-01-01T00:00:02Z", "1970-01-01T00:00:03Z"),
        ),
        (cancelled(created()), 500, ("cancelled", "50.0", "500", "1970-01-01T00:00:02Z", "")),
    ],
    ids=lambda value: getattr(value, "status", None),
)
def test_fields(sidecar: Sidecar, offset: int, expected: tuple[str, ...]) -> None:
    """A record tells the state, the position, the times and the facts, all as text."""
    record = record_of(sidecar, offset, 2000)
    names = ("status", "progress", "offset", "updated_at", "completed_at")
    assert tuple(record[name] for name in names) == expected
    assert record["created_at"] == "1970-01-01T00:00:01Z"
    assert (record["user_id"], record["tenant"], record["username"]) == ("u", "t", "Ursula")
    assert (record["filename"], record["content_type"]) == ("a.mp4", "video/mp4")
    assert (record["size"], record["upload_options"]) == ("1000", '{"filename":"a.mp4"}')


def test_deferred_length_is_empty() -> None:
    """A length that is not known yet is empty."""
    sidecar = created()
    deferred = replace(sidecar, facts=replace(FACTS, size=None))
    assert record_of(deferred, 5, 2000)["size"] == ""


@pytest.fixture
async def records(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[SessionRecords]:
    """Records of one process, being written."""
    monkeypatch.setattr(records_module, "_TICK_S", 0.02)
    one = SessionRecords(redis, ttl_s=100)
    async with background("records", one.run()):
        yield one


async def field(redis: Redis, sidecar: Sidecar, name: str) -> str:
    """Return one field of a record in Redis; empty if it is not there."""
    found = await command(redis, "HGET", f"upload:{sidecar.upload_id}", name)
    return found.decode() if found else ""


async def written(redis: Redis, records: SessionRecords) -> None:
    """Wait until all that was noted so far has been dealt with."""
    last = created()
    records.note(last, 7)

    async def there() -> bool:
        return await field(redis, last, "offset") == "7"

    await until(there)


async def test_newest_wins(redis: Redis, records: SessionRecords) -> None:
    """Of several notes of one process the last one is written, and it expires."""
    sidecar = created()
    for offset in (0, 100, 200):
        records.note(sidecar, offset)
    await written(redis, records)
    assert await field(redis, sidecar, "offset") == "200"
    ttl = await command(redis, "TTL", f"upload:{sidecar.upload_id}")
    assert 90 < ttl <= 100


@pytest.mark.parametrize("end", [completed, cancelled])
async def test_old_news_is_dropped(
    redis: Redis, records: SessionRecords, end: Callable[[Sidecar], Sidecar]
) -> None:
    """What another process knew before the end does not come back after it."""
    sidecar, elsewhere = created(), SessionRecords(redis, ttl_s=100)
    records.note(end(sidecar), 1000)
    await written(redis, records)
    async with background("elsewhere", elsewhere.run()):
        elsewhere.note(sidecar, 300)
        await written(redis, elsewhere)
    assert await field(redis, sidecar, "status") == end(sidecar).status
    assert await field(redis, sidecar, "offset") == "1000"


async def test_position_does_not_go_back(redis: Redis, records: SessionRecords) -> None:
    """A smaller offset of the same state is old news too; the same one may be told again."""
    sidecar = created()
    for offset in (500, 300, 500, 600):
        records.note(sidecar, offset)
        await written(redis, records)
        assert await field(redis, sidecar, "offset") == str(max(offset, 500))


async def test_gone_uploads_go(redis: Redis, records: SessionRecords) -> None:
    """The record of an upload that has ended without a file stays for a minute only."""
    sidecar = created()
    records.note(sidecar, 300)
    records.note(cancelled(sidecar), 300)
    await written(redis, records)
    assert 0 < await command(redis, "TTL", f"upload:{sidecar.upload_id}") <= 60


async def test_deleted_files_go(redis: Redis, records: SessionRecords) -> None:
    """When storage has deleted a file its record goes; other events do not matter."""
    kept, gone = completed(created()), completed(created())
    records.note(kept, 1000)
    records.note(gone, 1000)
    await written(redis, records)
    event = FileDeleted(upload_id=gone.upload_id, seq=4, at=1, upload=FACTS)
    payloads = [encode(kept.outbox[1]), encode(event)]
    entries = [GroupEntry("events:{p00}", b"1-1", {b"d": one}) for one in payloads]
    await records.handle(entries)
    assert await field(redis, gone, "status") == ""
    assert await field(redis, kept, "status") == "completed"


async def test_survives_an_outage_and_a_flush(redis: Redis, records: SessionRecords) -> None:
    """A Redis that has forgotten the script as well gets it, and finished uploads, again."""
    sidecar = completed(created())
    records.note(sidecar, 1000)
    await written(redis, records)
    await command(redis, "FLUSHALL")
    await command(redis, "SCRIPT", "FLUSH")
    records.note(sidecar, 1000)
    await written(redis, records)
    assert await field(redis, sidecar, "progress") == "100.0"


async def positions(redis: Redis, sidecar: Sidecar) -> list[UploadProgress]:
    """Return the positions of an upload that are on the stream, oldest first."""
    entries = await command(redis, "XRANGE", progress_stream(0), "-", "+")
    found = []
    for _, flat in entries:
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        found += unpack_positions(read_ids(fields))
    return [one for one in found if one.upload_id == sidecar.upload_id]


@pytest.fixture
async def reporter(redis: Redis, records: SessionRecords) -> AsyncIterator[ProgressReporter]:
    """A reporter of one process, on a single partition."""
    publisher = Publisher(redis, partitions=1, interval_s=0.05)
    async with background("publisher", publisher.run()):
        yield ProgressReporter(publisher, records)


async def test_rest_is_reported(
    redis: Redis, reporter: ProgressReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload that nobody continues is reported with speed 0 after a while, once."""
    monkeypatch.setattr(progress_module, "_REST_S", 0.3)
    sidecar = created()
    reporter.begin(sidecar, 0)
    await asyncio.sleep(0.15)
    reporter.advance(sidecar, 400)
    reporter.pause(sidecar, 500)

    async def resting() -> bool:
        found = await positions(redis, sidecar)
        return bool(found) and found[-1].speed == 0.0

    await until(resting)
    found = await positions(redis, sidecar)
    assert found[-1].offset == 500
    assert found[0].speed > 0
    assert [one.speed for one in found].count(0.0) == 1


async def test_next_request_keeps_the_speed(
    redis: Redis, reporter: ProgressReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The speed is measured over requests that follow one another, without a rest between."""
    monkeypatch.setattr(progress_module, "_REST_S", 0.3)
    sidecar = created()
    for offset in range(0, 1000, 100):
        reporter.begin(sidecar, offset)
        await asyncio.sleep(0.1)
        reporter.pause(sidecar, offset + 100)
    found = await positions(redis, sidecar)
    assert len(found) >= 3
    assert all(one.speed > 100 for one in found[1:])


async def test_speed_of_forms_that_name_their_session_last(
    redis: Redis, reporter: ProgressReporter
) -> None:
    """Catches chunks whose fields come behind the file being told with speed 0, all of them."""
    sidecar = created()
    for offset in (100, 200, 300):
        reporter.pause(sidecar, offset)
        await asyncio.sleep(0.15)

    async def measured() -> bool:
        found = await positions(redis, sidecar)
        return bool(found) and found[-1].speed > 0

    await until(measured)


async def test_nothing_is_reported_after_the_end(
    redis: Redis, reporter: ProgressReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once an upload has ended, no rest of it is reported."""
    monkeypatch.setattr(progress_module, "_REST_S", 0.1)
    sidecar = created()
    reporter.begin(sidecar, 0)
    reporter.pause(sidecar, 500)
    reporter.changed(completed(sidecar), 1000)
    reporter.pause(completed(sidecar), 1000)
    await asyncio.sleep(0.4)
    assert [one.offset for one in await positions(redis, sidecar)] in ([], [500])
