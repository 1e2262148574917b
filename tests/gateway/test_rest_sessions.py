"""Lists, removal, statistics and cleaning up over HTTP (000:134 to 173, and line 60)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import msgspec
import pytest
from yarl import URL

from shared.identity import Principal
from shared.sidecar import new_id
from shared.streams import connect
from tests.gateway.conftest import (
    AUTHENTICATED,
    EVENT_PARTITIONS,
    StartGateway,
    bearer,
    faults,
)
from tests.gateway.feed import Feed
from tests.gateway.raw_socket import RawSocket
from tests.gateway.samples import SIZE, START, Told, admin, principal
from tests.processes import RedisServer, ServiceProcess, running
from tests.shared.waiting import eventually

PATH: Final = "/v1/dashboard/upload/progress"


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client."""
    async with aiohttp.ClientSession() as session:
        yield session


class Caller:
    """Somebody who asks a gateway."""

    def __init__(
        self, http: aiohttp.ClientSession, service: ServiceProcess, who: Principal
    ) -> None:
        self.http = http
        self.service = service
        self.who = who

    async def ask(self, method: str, path: str, **more: Any) -> tuple[int, Any, Any]:
        """Return status, body and headers."""
        url = URL(f"{self.service.url}{PATH}/{path}", encoded=True)
        headers = {**bearer(self.who), **more.pop("headers", {})}
        async with self.http.request(method, url, headers=headers, **more) as answer:
            body = await answer.json() if answer.content_type.endswith("json") else None
            return answer.status, body, answer.headers

    async def sessions(self, query: str = "", of: str | None = None) -> tuple[int, Any, Any]:
        """Ask for a list."""
        user_id = quote(of if of is not None else self.who.user_id, safe="")
        return await self.ask("GET", f"user/{user_id}/sessions{query}")

    async def is_there(self, session_id: str) -> bool:
        """Whether a session can be read."""
        return (await self.ask("GET", session_id))[0] == 200

    async def delete(self, session_id: str) -> tuple[int, str | None]:
        """Return status and error code of a removal."""
        status, body, _ = await self.ask("DELETE", session_id)
        return status, body and body["error_code"]


@pytest.fixture
def owner(http: aiohttp.ClientSession, gateway: ServiceProcess, caller: Principal) -> Caller:
    """Somebody with no uploads yet."""
    return Caller(http, gateway, caller)


@pytest.fixture
def root(http: aiohttp.ClientSession, gateway: ServiceProcess) -> Caller:
    """The admin of a tenant that has nothing yet."""
    return Caller(http, gateway, admin(f"tenant-{new_id()}"))


async def told_all(owner: Caller, *uploads: Told) -> None:
    """Wait until the gateway lists uploads that have been told of."""

    async def listed() -> bool:
        _, body, _ = await owner.sessions("?limit=200")
        return {one.id for one in uploads} <= {one["session_id"] for one in body["sessions"]}

    await eventually(listed, "all are listed")


async def test_list(owner: Caller, feed: Feed) -> None:
    """All fields as 000:135 to 158 has them; cancelled sessions count in the total only."""
    who = owner.who
    uploads = [Told(owner=who, at=START + 60_000 * n) for n in range(4)]
    done, bad, off, running = uploads
    await feed.tell(*(one.created() for one in uploads))
    await feed.tell(done.completed(), bad.failed(), off.cancelled())
    await feed.tell(running.position(SIZE // 2, at=START + 181_000))
    await told_all(owner, *uploads)

    async def moved() -> Any:
        status, body, headers = await owner.sessions()
        assert (status, headers["Cache-Control"]) == (200, "no-store")
        return body if body["sessions"][0]["percentage"] else None

    body = await eventually(moved, "the position")
    assert body.keys() == {
        *("user_id", "total_sessions", "active_sessions", "completed_sessions"),
        *("error_sessions", "sessions", "next_cursor"),
    }
    assert [body[key] for key in list(body)[:5]] == [who.user_id, 4, 1, 1, 1]
    assert body["next_cursor"] is None
    assert body["sessions"][0] == {
        "session_id": running.id,
        "status": "uploading",
        "percentage": 50.0,
        "filename": "test_video.mp4",
        "started_at": "2025-01-01T12:03:00Z",
        "last_updated": "2025-01-01T12:03:01Z",
        "is_completed": False,
        "has_error": False,
    }
    shown = [
        (one["session_id"], one["status"], one["is_completed"], one["has_error"])
        for one in body["sessions"][1:]
    ]
    assert shown == [
        (off.id, "cancelled", False, False),
        (bad.id, "error", False, True),
        (done.id, "completed", True, False),
    ]


async def test_pages_while_sessions_come_and_go(owner: Caller, feed: Feed) -> None:
    """Following `Link` leads over every session that stays once, whatever happens meanwhile."""
    uploads = [Told(owner=owner.who, at=START + 1000 * (n // 3)) for n in range(25)]
    await feed.tell(*(one.created() for one in uploads))
    await told_all(owner, *uploads)
    seen, query, pages = [], "?limit=7", 0
    while query:
        status, body, headers = await owner.sessions(query)
        assert status == 200
        assert body["total_sessions"] == body["active_sessions"] == 25 + 2 * pages
        seen += [one["session_id"] for one in body["sessions"]]
        coming = [Told(owner=owner.who, at=START + 10**6 * (n + 1)) for n in range(2)]
        await feed.tell(*(one.created() for one in coming))
        await told_all(owner, *coming)
        pages += 1
        link = headers.get("Link", "")
        assert (body["next_cursor"] is None) == (not link)
        query = link[1:].partition(">")[0]
        assert not link or link.endswith('>; rel="next"')
    newest_first = sorted(uploads, key=lambda o: (o.facts.created_at, o.id), reverse=True)
    assert (seen, pages) == ([one.id for one in newest_first], 4)


@pytest.mark.parametrize(
    "query",
    [
        "?limit=0",
        "?limit=201",
        "?limit=-1",
        "?limit=",
        "?limit=%C2%B2",
        "?cursor=",
        "?cursor=x",
    ],
)
async def test_bad_pages(owner: Caller, query: str) -> None:
    """What cannot be a page is the client's mistake."""
    status, body, _ = await owner.sessions(query)
    assert (status, body["error_code"]) == (400, "INVALID_REQUEST")


async def test_who_may_list(owner: Caller, feed: Feed) -> None:
    """Oneself and the tenant's admins; each sees the own tenant only, so also in one's list."""
    mine = Told(owner=owner.who)
    namesake = principal(owner.who.user_id, "other")
    theirs = Told(owner=namesake)
    await feed.tell(mine.created(), theirs.created())
    await told_all(owner, mine)
    as_namesake = Caller(owner.http, owner.service, namesake)
    await told_all(as_namesake, theirs)
    as_admin = Caller(owner.http, owner.service, admin())
    for who in (owner, as_admin):
        _, body, _ = await who.sessions(of=owner.who.user_id)
        assert [one["session_id"] for one in body["sessions"]] == [mine.id]
    as_stranger = Caller(owner.http, owner.service, principal("mallory"))
    status, body, _ = await as_stranger.sessions(of=owner.who.user_id)
    assert (status, body["error_code"]) == (403, "UNAUTHORIZED_ACCESS")
    assert body["details"]["user_id"] == "mallory"
    status, body, _ = await as_admin.sessions(of="nobody")
    assert (status, body["total_sessions"], body["sessions"]) == (200, 0, [])


async def test_a_user_of_an_odd_name(owner: Caller, feed: Feed) -> None:
    """Ids of users may hold what means something in paths and keys."""
    who = principal(f"a:b/{{c}}?é {new_id()}".replace(" ", "+"))
    told = Told(owner=who)
    odd = Caller(owner.http, owner.service, who)
    await feed.tell(told.created(), told.failed())
    await told_all(odd, told)
    assert await odd.delete(told.id) == (204, None)
    assert (await odd.sessions())[1]["total_sessions"] == 0


async def test_delete(
    owner: Caller, feed: Feed, start_gateway: StartGateway, http: aiohttp.ClientSession
) -> None:
    """Gone on every gateway at once; nothing told later brings it back; sockets stay open."""
    elsewhere = Caller(http, start_gateway(**AUTHENTICATED), owner.who)
    told = Told(owner=owner.who, session_id="my.video")
    story = [told.created(), told.completed()]
    await feed.tell(*story)
    await told_all(owner, told)
    headers = list(bearer(owner.who).items())
    async with (
        RawSocket.opened(owner.service.port, f"/api/v1/ws/{told.id}", headers=headers) as near,
        RawSocket.opened(
            elsewhere.service.port, f"/api/v1/ws/{told.id}", headers=headers
        ) as far,
    ):
        for socket in (near, far):
            assert (await socket.hear())["type"] == "complete"
        assert await owner.delete(told.id) == (204, None)
        await feed.tell(*story, told.stored(), told.queued())
        for who in (owner, elsewhere):
            assert await who.delete(told.id) == (404, "PROGRESS_NOT_FOUND")
            asked = [who.is_there(told.id), who.is_there("my.video")]
            assert not any(await asyncio.gather(*asked))
            assert (await who.sessions())[1]["total_sessions"] == 0
            path = f"/api/v1/ws/{told.id}"
            async with RawSocket.opened(who.service.port, path, headers=headers) as late:
                assert (await late.hear())["type"] == "error"
            path = "/ws/upload-progress"
            async with RawSocket.opened(who.service.port, path, headers=headers) as follower:
                await follower.say({"type": "ping"})
                assert (await follower.hear())["event_type"] == "pong"
        for socket in (near, far):
            await socket.say({"type": "ping"})
            assert (await socket.hear())["type"] == "pong"


async def test_delete_refused(owner: Caller, feed: Feed) -> None:
    """400 while uploading, 403 for others, 404 for what is not there; nothing changes by it."""
    running, done = Told(owner=owner.who, session_id="mine"), Told(owner=owner.who)
    await feed.tell(running.created(), done.created(), done.completed())
    await told_all(owner, running, done)
    for name in (running.id, "mine"):
        status, body, _ = await owner.ask("DELETE", name)
        assert (status, body["error_code"]) == (400, "INVALID_STATUS")
        assert body["title"] == "Invalid status for deletion"
        assert body["details"]["session_id"] == name
        assert body["details"]["user_id"] == owner.who.user_id
    for who in (principal("mallory"), principal(owner.who.user_id, "x"), admin("x")):
        stranger = Caller(owner.http, owner.service, who)
        assert await stranger.delete(done.id) == (403, "UNAUTHORIZED_ACCESS")
    assert await owner.delete("unknown") == (404, "PROGRESS_NOT_FOUND")
    assert await owner.is_there(running.id)
    assert await owner.is_there(done.id)
    assert await Caller(owner.http, owner.service, admin()).delete(done.id) == (204, None)


async def test_delete_by_name(owner: Caller, feed: Feed) -> None:
    """The client's own name is as good as the id; afterwards it can be given again."""
    old = Told(owner=owner.who, session_id="video-1")
    await feed.tell(old.created(), old.cancelled())
    await told_all(owner, old)

    async def removed() -> bool:
        return await owner.delete("video-1") == (204, None)

    await eventually(removed, "it could be removed")
    assert not await owner.is_there(old.id)
    new = Told(owner=owner.who, session_id="video-1")
    await feed.tell(new.created())
    assert await owner.is_there("video-1")


async def test_delete_twice_at_once(owner: Caller, feed: Feed) -> None:
    """Of several that remove a session at the same time one has done it."""
    told = Told(owner=owner.who)
    await feed.tell(told.created(), told.failed())
    await told_all(owner, told)

    async def ended() -> bool:
        return bool((await owner.sessions())[1]["error_sessions"])

    await eventually(ended, "it has failed")
    found = await asyncio.gather(*(owner.delete(told.id) for _ in range(5)))
    assert sorted(status for status, _ in found) == [204, 404, 404, 404, 404]


async def test_stats(root: Caller, feed: Feed) -> None:
    """Figures of the admin's tenant, of nobody else's."""
    who = principal("ada", root.who.tenant)
    running, slow, rests, done, off = (Told(owner=who) for _ in range(5))
    other = Told(owner=principal("ada", "other"))
    every = (running, slow, rests, done, off)
    await feed.tell(*(one.created() for one in every), other.created())
    await feed.tell(done.completed(), off.cancelled())
    await feed.tell(running.position(2000, speed=300.0), slow.position(1000, speed=100.0))
    ada = Caller(root.http, root.service, who)
    await told_all(ada, *every)

    async def moved() -> Any:
        status, body, _ = await root.ask("GET", "stats")
        assert status == 200
        return body if body["bytes_uploaded"] == 3000 else None

    headers = list(bearer(who).items())
    path = "/ws/upload-progress"
    async with RawSocket.opened(root.service.port, path, headers=headers) as socket:
        await socket.hear()
        body = await eventually(moved, "the positions")
    assert body.pop("timestamp").endswith("Z")
    assert body == {
        "tenant": who.tenant,
        "total_sessions": 5,
        "active_sessions": 3,
        "completed_sessions": 1,
        "error_sessions": 0,
        "cancelled_sessions": 1,
        "measured_sessions": 3,
        "bytes_uploaded": 3000,
        "total_bytes": 3 * SIZE,
        "upload_speed": 400.0,
        "average_speed": 200.0,
        "open_sockets": 1,
    }


async def test_cleanup_on_two_gateways(
    root: Caller, feed: Feed, start_gateway: StartGateway, http: aiohttp.ClientSession
) -> None:
    """Two that are asked at once share the work: each session is removed by one of them."""
    elsewhere = Caller(http, start_gateway(**AUTHENTICATED), root.who)
    ada = Caller(http, root.service, principal(f"ada-{new_id()}", root.who.tenant))
    uploads = [Told(owner=ada.who) for _ in range(60)]
    running = Told(owner=ada.who)
    await feed.tell(running.created(), *(one.created() for one in uploads))
    await feed.tell(*(one.completed() for one in uploads))

    async def ended() -> bool:
        return bool((await root.ask("GET", "stats"))[1]["completed_sessions"] == 60)

    await eventually(ended, "all have ended")
    status, body, _ = await root.ask("POST", "cleanup", json={"older_than_seconds": 3000})
    assert (status, body["removed_sessions"], body["remaining"]) == (200, 0, 0)
    answers = await asyncio.gather(
        *(
            one.ask("POST", "cleanup", json={"older_than_seconds": 0})
            for one in (root, elsewhere)
        )
    )
    bodies = [body for _, body, _ in answers]
    assert sum(one["removed_sessions"] for one in bodies) == 60
    assert bodies[0].keys() == {
        *("removed_sessions", "stale_entries", "remaining", "timestamp"),
    }
    _, body, _ = await ada.sessions()
    assert [one["session_id"] for one in body["sessions"]] == [running.id]
    assert body["total_sessions"] == 1


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b"\xff", b'{"older_than_seconds":-1}', b"[" * 99_999, b"null"]
)
async def test_bad_cleanups(root: Caller, body: bytes) -> None:
    """A body that is not as described is refused, and nothing is cleaned up."""
    status, answer, _ = await root.ask("POST", "cleanup", data=body)
    assert (status, answer["error_code"]) == (400, "INVALID_REQUEST")


async def test_the_local_user_is_admin(start_gateway: StartGateway) -> None:
    """With AUTH_MODE=open both work at once, but not for a page of somebody else."""
    service = start_gateway(AUTH_MODE="open")
    url = f"{service.url}/v1/dashboard/upload/progress"
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{url}/stats") as answer:
            assert (answer.status, (await answer.json())["tenant"]) == (200, "local")
        for origin, status in ((None, 200), (service.url, 200), ("https://evil.example", 403)):
            headers = {} if origin is None else {"Origin": origin}
            async with http.post(f"{url}/cleanup", headers=headers) as answer:
                assert answer.status == status


async def test_only_admins(owner: Caller) -> None:
    """Statistics and cleaning up are not for everybody, and are no names of sessions."""
    for method, path in (("GET", "stats"), ("POST", "cleanup")):
        status, body, _ = await owner.ask(method, path)
        assert (status, body["error_code"]) == (403, "UNAUTHORIZED_ACCESS")
        assert body["details"]["user_id"] == owner.who.user_id
    as_admin = msgspec.structs.replace(owner.who, scopes=frozenset({"admin"}))
    elevated = Caller(owner.http, owner.service, as_admin)
    status, body, _ = await elevated.ask("POST", "cleanup")  # no body is fine
    assert (status, body["removed_sessions"]) == (200, 0)


async def test_it_cleans_up_by_itself(tmp_path: Path) -> None:
    """`PROGRESS_CLEANUP_INTERVAL`: what Redis has dropped leaves the lists of its user."""
    redis = RedisServer(tmp_path / "redis")
    settings = {
        "REDIS_URL": redis.url,
        "PROGRESS_TTL_SECONDS": "2",
        "PROGRESS_CLEANUP_INTERVAL": "0.2",
        "PROGRESS_BATCH_SIZE": "3",
    }
    service = ServiceProcess("gateway", {**AUTHENTICATED, **settings}, tmp_path / "log")
    kept, gone = Told(), [Told() for _ in range(8)]
    names = {one.id.encode() for one in gone}
    with running(redis, service):
        client = connect(redis.url)
        feed = Feed(client, partitions=EVENT_PARTITIONS)
        await feed.tell(kept.created(), *(one.created() for one in gone))

        async def members() -> set[Any]:
            found: set[Any] = await client.smembers("upload_progress:user:ada")
            return found

        async def listed() -> bool:
            return names < await members()

        await eventually(listed, "they are listed")
        offset = 0

        async def cleaned() -> bool:
            nonlocal offset
            offset += 1  # keeps one upload, and so the sets, alive
            await feed.tell(kept.position(offset, at=START + 1000 + offset))
            return not names & await members()

        await eventually(cleaned, "what has run out is not listed any more")
        assert kept.id.encode() in await members()
        await client.aclose()
    assert faults(service) == []


async def test_redis_away(
    tmp_path: Path, http: aiohttp.ClientSession, caller: Principal
) -> None:
    """Without Redis each of them is 503 with a time to retry, and works when it is back."""
    redis = RedisServer(tmp_path / "redis")
    env = {**AUTHENTICATED, "REDIS_URL": redis.url, "PROGRESS_CLEANUP_INTERVAL": "0.05"}
    service = ServiceProcess("gateway", env, tmp_path / "log")
    told = Told(owner=caller)
    with running(redis, service):
        owner = Caller(http, service, caller)
        root = Caller(http, service, admin())
        client = connect(redis.url)
        await Feed(client, partitions=EVENT_PARTITIONS).tell(told.created(), told.failed())
        assert await owner.is_there(told.id)
        redis.kill()
        asks = (
            (owner, "DELETE", told.id),
            (owner, "GET", f"user/{caller.user_id}/sessions"),
            (root, "GET", "stats"),
            (root, "POST", "cleanup"),
        )
        for who, method, path in asks:
            status, body, headers = await who.ask(method, path)
            assert (status, body["error_code"]) == (503, "SERVICE_UNAVAILABLE")
            assert int(headers["Retry-After"]) >= 1
        redis.start()
        await client.connection_pool.disconnect()
        told.seq = 0
        feed = Feed(client, partitions=EVENT_PARTITIONS)
        await feed.tell(told.created(), told.failed())

        async def removed() -> bool:
            return (await owner.delete(told.id))[0] == 204

        await eventually(removed, "it can be removed")
        assert (await root.ask("GET", "stats"))[0] == 200
        await client.aclose()
    assert faults(service) == []
