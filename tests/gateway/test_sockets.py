"""Both dialects end to end: events on the streams in, messages of the documents out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shared.identity import Principal
from tests.gateway.conftest import StartGateway, bearer, token_of
from tests.gateway.dialling import DIALS, Dial, Peer
from tests.gateway.feed import Feed
from tests.gateway.raw_socket import RawSocket
from tests.gateway.samples import SIZE, START, Told, admin, principal
from tests.processes import ServiceProcess

DASHBOARD = "/ws/upload-progress"


@pytest.fixture(params=sorted(DIALS))
def dial(request: pytest.FixtureRequest) -> Dial:
    """Each client library."""
    return DIALS[request.param]


async def test_media(
    gateway: ServiceProcess, dial: Dial, feed: Feed, caller: Principal
) -> None:
    """A client of document 001 gets each of its messages, exactly and in order."""
    told = Told(owner=caller)
    await feed.tell(told.created())
    url = f"{gateway.url}/api/v1/ws/{told.id}?token={token_of(caller)}"

    def message(kind: str, status: str, progress: float, sent: int) -> dict[str, Any]:
        counts = {"progress": progress, "bytes_sent": sent, "total_size": SIZE}
        return {"type": kind, "upload_id": told.id, "status": status, **counts}

    async with dial(url) as peer:
        assert await peer.hear() == message("created", "created", 0.0, 0)
        await feed.tell(told.position(SIZE // 2))
        assert await peer.hear() == message("progress", "uploading", 50.0, SIZE // 2)
        await feed.tell(told.completed(), told.stored())
        assert await peer.hear() == message("complete", "completed", 100.0, SIZE)
        await feed.tell(told.deleted())
        assert await peer.hear() == {
            **message("error", "failed", 100.0, SIZE),
            "message": "The file was deleted.",
        }
    async with dial(url) as late:
        assert (await late.hear())["type"] == "error"
        assert await late.end() == 4004


async def test_dashboard_session(
    gateway: ServiceProcess, dial: Dial, feed: Feed, caller: Principal
) -> None:
    """A client of document 000 gets the events of one session, exactly and in order."""
    told = Told(owner=caller)
    await feed.tell(told.created())
    url = f"{gateway.url}{DASHBOARD}/{told.id}"
    async with dial(url, bearer(caller)) as peer:
        await peer.hear()
        await feed.tell(told.position(SIZE // 2, at=START + 500, speed=SIZE / 2))
        assert await peer.hear() == {
            "event_type": "upload_progress",
            "session_id": told.id,
            "user_id": caller.user_id,
            "data": {
                "percentage": 50.0,
                "bytes_uploaded": SIZE // 2,
                "total_bytes": SIZE,
                "upload_speed": SIZE / 2,
                "estimated_completion": "2025-01-01T12:00:01.500Z",
            },
            "timestamp": "2025-01-01T12:00:00.500Z",
        }
        await feed.tell(told.failed("Disk on fire"))
        failed = await peer.hear()
        assert failed["event_type"] == "upload_error"
        assert failed["data"]["error_message"] == "Disk on fire"


async def test_the_callers_own_name(
    gateway: ServiceProcess, dial: Dial, feed: Feed, caller: Principal
) -> None:
    """A socket watches a session by the name that its client gave it, in path and message."""
    told = Told(owner=caller, session_id="my.film")
    await feed.tell(told.created())
    async with dial(f"{gateway.url}{DASHBOARD}/my.film", bearer(caller)) as peer:
        assert (await peer.hear())["session_id"] == told.id
    async with dial(f"{gateway.url}{DASHBOARD}/{told.id}", bearer(caller)) as peer:
        await peer.hear()
        await peer.say({"type": "unsubscribe_session", "session_id": told.id})
        assert (await peer.hear())["event_type"] == "unsubscribed"
        await peer.say({"type": "subscribe_session", "session_id": "my.film"})
        assert [(await peer.hear())["event_type"] for _ in range(2)] == [
            "upload_progress",
            "subscribed",
        ]
        await peer.say({"type": "unsubscribe_session", "session_id": "my.film"})
        assert (await peer.hear())["event_type"] == "unsubscribed"
        await feed.tell(told.failed())
        await peer.say({"type": "ping"})
        assert (await peer.hear())["event_type"] == "pong"


async def test_dashboard_follows_the_caller(
    gateway: ServiceProcess, dial: Dial, feed: Feed, caller: Principal
) -> None:
    """Without a session in its path the socket gets all of the caller's, also new ones."""
    old, new, foreign = Told(owner=caller), Told(owner=caller), Told(owner=principal("x"))
    await feed.tell(old.created())
    async with dial(f"{gateway.url}{DASHBOARD}", bearer(caller)) as peer:
        assert (await peer.hear())["session_id"] == old.id
        await feed.tell(foreign.created(), new.created())
        assert (await peer.hear())["session_id"] == new.id
        await feed.tell(new.completed())
        complete = await peer.hear()
        assert complete["event_type"] == "upload_complete"
        assert complete["data"]["redirect_url"] == f"/dashboard/videos/{new.id}/results"
        assert complete["data"]["video_id"] == new.id
        assert complete["data"]["analysis_id"] == new.facts.job_id


async def replies(peer: Peer, *messages: dict[str, Any]) -> list[dict[str, Any]]:
    """Say the messages one by one; return the reply to each."""
    found = []
    for message in messages:
        await peer.say(message)
        found.append(await peer.hear())
    return found


async def test_dashboard_requests(
    gateway: ServiceProcess, dial: Dial, feed: Feed, caller: Principal
) -> None:
    """Ping, statistics, subscriptions and their end, each answered in the envelope."""
    told, boss = Told(owner=caller), principal(f"boss-{caller.user_id}", "acme", "admin")
    await feed.tell(told.created())
    async with dial(f"{gateway.url}{DASHBOARD}", bearer(boss)) as peer:
        pong, stats = await replies(peer, {"type": "ping"}, {"type": "get_stats"})
        assert (pong["event_type"], pong["user_id"]) == ("pong", boss.user_id)
        assert stats["data"] == {"subscriptions": 0}
        await peer.say({"type": "subscribe_session", "session_id": told.id})
        kinds = [(await peer.hear())["event_type"] for _ in range(2)]
        assert kinds == ["upload_progress", "subscribed"]
        (stats,) = await replies(peer, {"type": "get_stats"})
        assert stats["data"] == {"subscriptions": 1}
        await feed.tell(told.position(5))
        assert (await peer.hear())["data"]["bytes_uploaded"] == 5
        gone, stats = await replies(
            peer,
            {"type": "unsubscribe_session", "session_id": told.id},
            {"type": "get_stats"},
        )
        assert (gone["event_type"], gone["session_id"]) == ("unsubscribed", told.id)
        assert stats["data"] == {"subscriptions": 0}
        await feed.tell(told.completed())
        (pong,) = await replies(peer, {"type": "ping"})
        assert pong["event_type"] == "pong"


async def test_a_refused_subscription_costs_nothing_else(
    gateway: ServiceProcess, dial: Dial, feed: Feed, caller: Principal
) -> None:
    """Asking for somebody else's session is an error; the socket lives on."""
    foreign = Told(owner=principal("somebody-else"))
    await feed.tell(foreign.created())
    async with dial(f"{gateway.url}{DASHBOARD}", bearer(caller)) as peer:
        error, pong = await replies(
            peer,
            {"type": "subscribe_session", "session_id": foreign.id},
            {"type": "ping"},
        )
        assert (error["event_type"], error["session_id"]) == ("error", foreign.id)
        assert error["data"]["error_message"] == "Access denied to this upload"
        assert pong["event_type"] == "pong"


async def test_unknown_sessions_hold_nothing_up(
    gateway: ServiceProcess, caller: Principal, feed: Feed
) -> None:
    """While unknown sessions are waited for, known ones are granted and pings answered."""
    told = Told(owner=caller)
    async with RawSocket.opened(
        gateway.port, DASHBOARD, headers=bearer(caller).items()
    ) as peer:
        await feed.tell(told.created())
        assert (await peer.hear())["session_id"] == told.id
        for n in range(5):
            await peer.say({"type": "subscribe_session", "session_id": f"unknown-{n}"})
        await peer.say({"type": "subscribe_session", "session_id": told.id})
        await peer.say({"type": "ping"})
        heard = [await peer.hear() for _ in range(7)]
        kinds = [one["event_type"] for one in heard]
        assert kinds[:2] == ["subscribed", "pong"]
        assert kinds[2:] == ["error"] * 5
        assert {one["session_id"] for one in heard[2:]} == {f"unknown-{n}" for n in range(5)}


async def test_change_of_mind(gateway: ServiceProcess, caller: Principal, feed: Feed) -> None:
    """A session that is unsubscribed from before it is known is not watched later."""
    told, boss = Told(owner=caller), principal(f"boss-{caller.user_id}", "acme", "admin")
    async with RawSocket.opened(gateway.port, DASHBOARD, headers=bearer(boss).items()) as peer:
        await peer.say({"type": "subscribe_session", "session_id": told.id})
        await peer.say({"type": "unsubscribe_session", "session_id": told.id})
        assert (await peer.hear())["event_type"] == "unsubscribed"
        await feed.tell(told.created(), told.position(1))
        await asyncio.sleep(0.1)
        await peer.say({"type": "get_stats"})
        stats = await peer.hear()
        assert (stats["event_type"], stats["data"]) == ("stats", {"subscriptions": 0})


@pytest.mark.parametrize("path", ["/api/v1/ws/{}", "/ws/upload-progress/{}"])
async def test_somebody_elses_upload(
    gateway: ServiceProcess, dial: Dial, feed: Feed, caller: Principal, path: str
) -> None:
    """A stranger gets an error in the dialect, then the close code 4003."""
    told = Told(owner=caller)
    await feed.tell(told.created())
    for stranger in (principal("stranger"), principal(caller.user_id, "other")):
        async with dial(gateway.url + path.format(told.id), bearer(stranger)) as peer:
            error = await peer.hear()
            assert "Access denied to this upload" in str(error)
            assert await peer.end() == 4003
    async with dial(gateway.url + path.format(told.id), bearer(admin())) as peer:
        assert "error" not in str(await peer.hear())


@pytest.mark.parametrize("upload_id", ["unknown", "user:ada", "..%2f..", "%00", "x" * 200])
async def test_unknown_upload(
    gateway: ServiceProcess, caller: Principal, upload_id: str
) -> None:
    """An id that nobody knows, or that can be none, ends the socket with 4004."""
    path, headers = f"/api/v1/ws/{upload_id}", bearer(caller).items()
    async with RawSocket.opened(gateway.port, path, headers=headers) as peer:
        assert (await peer.hear())["type"] == "error"
        assert await peer.end() == 4004


async def test_no_gap_after_creation(
    gateway: ServiceProcess, dial: Dial, feed: Feed, caller: Principal
) -> None:
    """A client that is faster than the first event is served when it comes."""
    told = Told(owner=caller)
    async with dial(f"{gateway.url}/api/v1/ws/{told.id}", bearer(caller)) as peer:
        await asyncio.sleep(0.3)
        await feed.tell(told.created())
        assert (await peer.hear())["type"] == "created"
        await feed.tell(told.completed())
        assert (await peer.hear())["type"] == "complete"


async def test_everything_open(start_gateway: StartGateway, feed: Feed) -> None:
    """With AUTH_MODE=open nobody needs a token, and one that is sent does no harm."""
    service = start_gateway(AUTH_MODE="open")
    told = Told(owner=principal("local", "local"))
    await feed.tell(told.created())
    path = f"/api/v1/ws/{told.id}?token=whatever"
    async with RawSocket.opened(service.port, path) as peer:
        assert (await peer.hear())["type"] == "created"
        await peer.say({"type": "x", "token": "another"})
        assert (await peer.hear())["type"] == "authenticated"


async def test_sockets_can_be_switched_off(start_gateway: StartGateway) -> None:
    """With WEBSOCKET_ENABLED=false there is no such path."""
    service = start_gateway(WEBSOCKET_ENABLED="false")
    async with RawSocket.opened(service.port, DASHBOARD) as peer:
        assert peer.status == 404


async def test_many_sockets_of_one_upload(
    gateway: ServiceProcess, feed: Feed, caller: Principal
) -> None:
    """A hundred sockets that come one after another amid events all end up to date."""
    told = Told(owner=caller)
    await feed.tell(told.created())

    async def watch(delay_s: float) -> list[int]:
        await asyncio.sleep(delay_s)
        headers = bearer(caller).items()
        path = f"/api/v1/ws/{told.id}"
        async with RawSocket.opened(gateway.port, path, headers=headers) as peer:
            sizes = []
            while True:
                message = await peer.hear()
                sizes.append(message["bytes_sent"])
                if message["type"] == "complete":
                    return sizes

    async def write() -> None:
        for step in range(1, 60):
            await feed.tell(told.position(step * 1000))
            await asyncio.sleep(0.01)
        await feed.tell(told.completed())

    *seen, _ = await asyncio.gather(*(watch(n * 0.006) for n in range(100)), write())
    for sizes in seen:
        assert sizes is not None
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == SIZE
