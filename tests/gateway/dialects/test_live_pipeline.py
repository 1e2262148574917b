"""Dialect pipeline end to end: a gateway, Redis, and clients of document 002."""

from __future__ import annotations

import pytest

from shared.identity import Principal
from tests.gateway.conftest import bearer, token_of
from tests.gateway.dialects.listening import heard, only
from tests.gateway.dialling import DIALS, Dial
from tests.gateway.feed import Feed
from tests.gateway.samples import SIZE, Told, principal
from tests.processes import ServiceProcess

RESULT = {"processed_rows": 1000, "data_quality_score": 98.5}


@pytest.fixture(params=sorted(DIALS))
def dial(request: pytest.FixtureRequest) -> Dial:
    """Each client library."""
    return DIALS[request.param]


async def test_pipeline(
    gateway: ServiceProcess, dial: Dial, feed: Feed, caller: Principal
) -> None:
    """One socket gets the whole way of the caller's uploads, and nobody else's (002:208)."""
    told, foreign = Told(owner=caller), Told(owner=principal("somebody-else"))
    async with dial(f"{gateway.url}/ws?token={token_of(caller)}") as peer:
        await peer.say({"type": "ping"})
        assert (await peer.hear())["event_type"] == "pong"
        await feed.tell(foreign.created(), told.created())
        seen = await heard(peer, 1)
        await feed.tell(told.position(SIZE // 2))
        seen += await heard(peer, 1)
        await feed.tell(told.completed(), told.stored(), told.queued(), told.started())
        seen += await heard(peer, 2)
        await feed.tell(told.processing(25.0, stage="frames", message="A quarter"))
        seen += await heard(peer, 1)
        await feed.tell(told.processed(result=RESULT))
        seen += await heard(peer, 1)
        assert only(seen, "event_type", "progress_percentage") == [
            ("upload_started", 0.0),
            ("upload_progress", 50.0),
            ("upload_completed", 100.0),
            ("processing_initiated", 0.0),
            ("processing_progress", 25.0),
            ("processing_completed", 100.0),
        ]
        assert {one["session_id"] for one in seen} == {told.id}
        assert (seen[4]["stage"], seen[4]["message"]) == ("frames", "A quarter")
        assert seen[5]["result"] == RESULT
    async with dial(f"{gateway.url}/ws", bearer(caller)) as late:
        newest = await late.hear()
        assert (newest["event_type"], newest["result"]) == ("processing_completed", RESULT)


async def test_pipeline_ends(
    gateway: ServiceProcess, dial: Dial, feed: Feed, caller: Principal
) -> None:
    """Each way in which an upload can end without processing has its event (002:216 to 227)."""
    ends = [Told(owner=caller) for _ in range(5)]
    failed, cancelled, expired, duplicate, deleted = ends
    async with dial(f"{gateway.url}/ws", bearer(caller)) as peer:
        await feed.tell(*(one.created() for one in ends))
        begun = await heard(peer, 5)
        assert {one["event_type"] for one in begun} == {"upload_started"}
        for event in (
            failed.failed("Disk on fire"),
            cancelled.cancelled(),
            expired.expired(),
            duplicate.duplicate(cached_result=RESULT),
            deleted.completed(),
            deleted.deleted(),
        ):
            await feed.tell(event)
        told = {(one["session_id"], one["event_type"]): one for one in await heard(peer, 6)}
        assert told[failed.id, "upload_failed"]["error_message"] == "Disk on fire"
        assert told[cancelled.id, "upload_failed"]["error_code"] == "UPLOAD_CANCELLED"
        assert told[expired.id, "session_expired"]["error_code"] == "SESSION_EXPIRED"
        assert told[duplicate.id, "duplicate_detected"]["cached_result"] == RESULT
        assert told[deleted.id, "error"]["error_message"] == "The file was deleted."
