"""Dialect jobs end to end, and what document 004 lists as its tests (004:97 to 109)."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import pytest

from shared.identity import Principal
from tests.gateway.conftest import StartGateway, bearer, token_of
from tests.gateway.dialects.listening import heard, only
from tests.gateway.dialling import DIALS, Dial
from tests.gateway.feed import Feed
from tests.gateway.raw_socket import TEXT, RawSocket, frame
from tests.gateway.samples import Told, principal
from tests.processes import ServiceProcess

RESULT = {"processed_rows": 1000, "data_quality_score": 98.5}


@pytest.fixture(params=sorted(DIALS))
def dial(request: pytest.FixtureRequest) -> Dial:
    """Each client library."""
    return DIALS[request.param]


async def test_job_lifecycle(
    gateway: ServiceProcess, dial: Dial, feed: Feed, caller: Principal
) -> None:
    """From pending to completed: the current status at once, then each as it comes."""
    told = Told(owner=caller)
    await feed.record(told.created())
    url = f"{gateway.url}/progress/ws/{told.facts.job_id}?token={token_of(caller)}"
    async with dial(url) as peer:
        seen = await heard(peer, 1)
        await feed.tell(told.position(1000), told.completed(), told.queued())
        seen += await heard(peer, 1)
        await feed.tell(told.started())
        seen += await heard(peer, 1)
        await feed.tell(told.processing(40.0, stage="faces", message="Looking"))
        seen += await heard(peer, 1)
        await feed.tell(told.processed(message="Done", result=RESULT))
        seen += await heard(peer, 1)
    assert only(seen, "status", "progress", "message") == [
        ("pending", 0.0, None),
        ("queued", 0.0, None),
        ("in_progress", 0.0, None),
        ("in_progress", 40.0, "Looking"),
        ("completed", 100.0, "Done"),
    ]
    assert {one["job_id"] for one in seen} == {told.facts.job_id}
    assert seen[4]["metadata"]["result"] == RESULT
    async with dial(url) as late:
        newest = await late.hear()
        assert (newest["status"], newest["progress"]) == ("completed", 100.0)
        assert newest["metadata"]["result"] == RESULT


async def test_job_that_fails(
    gateway: ServiceProcess, dial: Dial, feed: Feed, caller: Principal
) -> None:
    """A job that fails, and one whose upload does, end as failed with the reason."""
    one, other = Told(owner=caller), Told(owner=caller)
    await feed.record(one.created(), one.completed(), one.started(), other.created())
    async with dial(f"{gateway.url}/progress/ws/{one.facts.job_id}", bearer(caller)) as peer:
        await peer.say({"type": "subscribe", "job_id": other.facts.job_id})
        assert only(await heard(peer, 3), "status", "type") == [
            ("in_progress", None),
            ("pending", None),
            (None, "subscribed"),
        ]
        await feed.tell(one.broken("No faces"))
        assert only([await peer.hear()], "status", "message") == [("failed", "No faces")]
        await feed.tell(other.cancelled())
        assert only([await peer.hear()], "job_id", "status", "message") == [
            (other.facts.job_id, "failed", "The upload was cancelled.")
        ]


async def test_job_subscriptions(
    gateway: ServiceProcess, dial: Dial, feed: Feed, caller: Principal
) -> None:
    """Jobs are added and left; a bad one, and what is no JSON, are errors and nothing more."""
    one, other = Told(owner=caller), Told(owner=caller)
    foreign = Told(owner=principal("somebody-else"))
    await feed.record(one.created(), other.created(), foreign.created())
    async with dial(f"{gateway.url}/progress/ws/{one.facts.job_id}", bearer(caller)) as peer:
        assert (await peer.hear())["status"] == "pending"
        await peer.say({"type": "ping"})
        assert (await peer.hear())["type"] == "pong"
        refused = [foreign.facts.job_id, "a:b", "no-such-job", other.id]
        for unknown in refused:
            await peer.say({"type": "subscribe", "job_id": unknown})
        errors = only(await heard(peer, 4), "type", "job_id")
        # Each is answered when it is decided: what nobody knows yet is waited for.
        assert sorted(errors) == sorted(("error", unknown) for unknown in refused)
        await peer.say({"type": "subscribe"})
        assert (await peer.hear())["message"] == "job_id must be a string."
        await peer.say({"type": "subscribe", "job_id": other.facts.job_id})
        assert only(await heard(peer, 2), "job_id", "status", "type") == [
            (other.facts.job_id, "pending", None),
            (other.facts.job_id, None, "subscribed"),
        ]
        await feed.tell(other.completed(), other.queued())
        assert (await peer.hear())["status"] == "queued"
        await peer.say({"type": "unsubscribe", "job_id": other.facts.job_id})
        assert (await peer.hear())["type"] == "unsubscribed"
        await feed.tell(other.started(), one.completed(), one.queued())
        assert only([await peer.hear()], "job_id", "status") == [(one.facts.job_id, "queued")]


async def test_malformed_job_message(
    gateway: ServiceProcess, feed: Feed, caller: Principal
) -> None:
    """What is no JSON gets an error with its reason, and the socket lives on (004:103)."""
    told = Told(owner=caller)
    await feed.record(told.created())
    path, headers = f"/progress/ws/{told.facts.job_id}", bearer(caller).items()
    async with RawSocket.opened(gateway.port, path, headers=headers) as peer:
        assert (await peer.hear())["status"] == "pending"
        await peer.send(frame(TEXT, b"{not json"))
        error = await peer.hear()
        assert (error["type"], error["message"]) == ("error", "Expected a JSON object.")
        await peer.say({"type": "ping"})
        assert (await peer.hear())["type"] == "pong"


async def test_unknown_job(gateway: ServiceProcess, feed: Feed, caller: Principal) -> None:
    """A job that nobody knows, or somebody else's, is an error and a close at connection."""
    told, dial = Told(owner=principal("somebody-else")), DIALS["websockets"]
    await feed.record(told.created())
    for job_id, code in (("no-such-job", 4004), (told.facts.job_id, 4003)):
        async with dial(f"{gateway.url}/progress/ws/{job_id}", bearer(caller)) as peer:
            assert (await peer.hear())["type"] == "error"
            assert await peer.end() == code


async def test_a_job_that_is_about_to_be_known(
    gateway: ServiceProcess, dial: Dial, feed: Feed, caller: Principal
) -> None:
    """A client that is faster than the first event of its job is served when it comes."""
    told = Told(owner=caller)
    url = f"{gateway.url}/progress/ws/{told.facts.job_id}"
    async with dial(url, bearer(caller)) as peer:
        await asyncio.sleep(0.2)
        await feed.tell(told.created())
        assert (await peer.hear())["status"] == "pending"


async def test_several_clients_of_a_job(
    gateway: ServiceProcess, dial: Dial, feed: Feed, caller: Principal
) -> None:
    """All clients of a job get its updates; one that leaves takes nothing from the others."""
    told = Told(owner=caller)
    await feed.record(told.created())
    url = f"{gateway.url}/progress/ws/{told.facts.job_id}"
    async with dial(url, bearer(caller)) as stays:
        async with dial(url, bearer(caller)) as leaves:
            for peer in (stays, leaves):
                assert (await peer.hear())["status"] == "pending"
            await feed.tell(told.completed(), told.queued())
            for peer in (stays, leaves):
                assert (await peer.hear())["status"] == "queued"
        await feed.tell(told.started())
        assert (await stays.hear())["status"] == "in_progress"


async def test_heartbeats(start_gateway: StartGateway, feed: Feed) -> None:
    """After a silence, and again after the next, jobs and pipeline beat; the others do not."""
    service = start_gateway(
        WEBSOCKET_HEARTBEAT_INTERVAL="0.3", WEBSOCKET_MAX_CONNECTIONS_PER_USER="9"
    )
    told, dial = Told(owner=principal("local", "local")), DIALS["websockets"]
    await feed.record(told.created())
    async with (
        dial(f"{service.url}/ws") as pipeline,
        dial(f"{service.url}/progress/ws/{told.facts.job_id}") as jobs,
        dial(f"{service.url}/ws/processing/{told.id}/") as processing,
    ):
        beats = await heard(jobs, 3)
        assert only(beats, "type") == [(None,), ("heartbeat",), ("heartbeat",)]
        times = [datetime.fromisoformat(one["timestamp"]) for one in beats[1:]]
        assert times[1] - times[0] >= timedelta(seconds=0.3)
        while (await pipeline.hear())["event_type"] != "heartbeat":
            pass
        assert (await pipeline.hear())["event_type"] == "heartbeat"
        await processing.say({"type": "ping", "timestamp": 7})
        assert only(await heard(processing, 3), "type") == [
            ("authenticated",),
            ("status",),
            ("pong",),
        ]
