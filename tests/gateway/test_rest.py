"""Progress over HTTP, field for field as document 000 has it (000:106 to 136)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import pytest

from shared.identity import Principal
from shared.streams import connect
from tests.gateway.conftest import AUTHENTICATED, EVENT_PARTITIONS, bearer, faults
from tests.gateway.feed import Feed
from tests.gateway.raw_socket import RawSocket
from tests.gateway.samples import SIZE, START, Told, admin, principal
from tests.processes import RedisServer, ServiceProcess, running
from tests.shared.waiting import eventually

PATH: Final = "/v1/dashboard/upload/progress"
JOB_FIELDS: Final = (
    *("job_status", "stage", "job_progress", "message", "current", "total", "result"),
)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client."""
    async with aiohttp.ClientSession() as session:
        yield session


async def read(
    http: aiohttp.ClientSession, service: ServiceProcess, session_id: str, caller: Principal
) -> tuple[int, Any]:
    """Return status and body."""
    url = f"{service.url}{PATH}/{session_id}"
    async with http.get(url, headers=bearer(caller)) as answer:
        return answer.status, await answer.json()


async def read_until(
    http: aiohttp.ClientSession,
    service: ServiceProcess,
    told: Told,
    caller: Principal,
    state: str | int,
) -> Any:
    """Return the body once its status, or that of the answer, is the expected one."""

    async def found() -> Any:
        status, body = await read(http, service, told.id, caller)
        return body if state in {status, body["status"]} else None

    return await eventually(found, f"the status {state}")


async def test_uploading(
    gateway: ServiceProcess, http: aiohttp.ClientSession, feed: Feed, caller: Principal
) -> None:
    """Under way: all fields are there, those of the end are null (000:114 to 131)."""
    told = Told(owner=caller)
    await feed.tell(told.created())
    await feed.tell(told.position(1_024_000, at=START + 1000, speed=102_400.0))

    async def progress() -> Any:
        status, body = await read(http, gateway, told.id, caller)
        assert status == 200
        return body if body["bytes_uploaded"] else None

    assert await eventually(progress, "the position") == {
        "session_id": told.id,
        "percentage": 45.51,
        "bytes_uploaded": 1_024_000,
        "total_bytes": SIZE,
        "upload_speed": 102400.0,
        "estimated_completion": "2025-01-01T12:00:12.972Z",
        "status": "uploading",
        "filename": "test_video.mp4",
        "video_id": None,
        "analysis_id": None,
        "redirect_url": None,
        "error_message": None,
        "error_code": None,
        "started_at": "2025-01-01T12:00:00Z",
        "last_updated": "2025-01-01T12:00:01Z",
        "completed_at": None,
        "job_id": told.facts.job_id,
        **dict.fromkeys(JOB_FIELDS),
    }


async def test_completed(
    gateway: ServiceProcess, http: aiohttp.ClientSession, feed: Feed, caller: Principal
) -> None:
    """Complete: the ids, where to go, and when it was (000:122 to 124, 130)."""
    told = Told(owner=caller)
    await feed.tell(told.created(), told.completed())
    body = await read_until(http, gateway, told, caller, "completed")
    assert body["percentage"] == 100.0
    assert (body["video_id"], body["analysis_id"]) == (told.id, told.facts.job_id)
    assert body["redirect_url"] == f"/dashboard/videos/{told.id}/results"
    assert body["completed_at"] == "2025-01-01T12:00:01Z"
    assert body["estimated_completion"] is None


async def test_processing(
    gateway: ServiceProcess, http: aiohttp.ClientSession, feed: Feed, caller: Principal
) -> None:
    """What the worker tells stands beside the upload, to its end (contract/4)."""
    told = Told(owner=caller)
    await feed.tell(told.created(), told.completed(), told.queued())
    await feed.tell(told.started(stage="validating"))
    await feed.tell(told.processing(40, message="rows", current=4, total=10))

    async def processing(status: str, progress: float) -> Any:
        _, body = await read(http, gateway, told.id, caller)
        reached = (body["job_status"], body["job_progress"]) == (status, progress)
        return {name: body[name] for name in JOB_FIELDS} if reached else None

    under_way = partial(processing, "in_progress", 40.0)
    assert await eventually(under_way, "the position") == {
        "job_status": "in_progress",
        "stage": "validating",
        "job_progress": 40.0,
        "message": "rows",
        "current": 4,
        "total": 10,
        "result": None,
    }
    await feed.tell(told.processed(result={"rows": 10}))
    done = await eventually(partial(processing, "completed", 100.0), "the end")
    assert done["result"] == {"rows": 10}


@pytest.mark.parametrize("end", ["failed", "cancelled", "expired"])
async def test_ended(
    gateway: ServiceProcess,
    http: aiohttp.ClientSession,
    feed: Feed,
    caller: Principal,
    end: str,
) -> None:
    """Ended without success: the status says how, and why if there is a reason."""
    told = Told(owner=caller)
    await feed.tell(told.created(), getattr(told, end)())
    status, *why = {
        "failed": ("error", "CHECKSUM_MISMATCH", "Upload failed"),
        "cancelled": ("cancelled", None, None),
        "expired": ("error", "SESSION_EXPIRED", "The upload was not continued in time."),
    }[end]
    body = await read_until(http, gateway, told, caller, str(status))
    assert [body["error_code"], body["error_message"]] == why


async def test_not_to_be_cached(
    gateway: ServiceProcess, http: aiohttp.ClientSession, feed: Feed, caller: Principal
) -> None:
    """Progress is never kept by a cache on the way."""
    told = Told(owner=caller)
    await feed.tell(told.created())
    url = f"{gateway.url}{PATH}/{told.id}"
    async with http.get(url, headers=bearer(caller)) as answer:
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.content_type == "application/json"


def refusal(body: dict[str, Any]) -> tuple[str, str, str]:
    """Return code and details of an error in the form of document 000 (000:281 to 288)."""
    assert body["error_message"]
    assert body["details"]["timestamp"].endswith("Z")
    return body["error_code"], body["details"]["session_id"], body["details"]["user_id"]


async def test_somebody_elses(
    gateway: ServiceProcess, http: aiohttp.ClientSession, feed: Feed, caller: Principal
) -> None:
    """Somebody else's session is 403, of any tenant; an admin of the tenant may read it."""
    told = Told(owner=caller)
    await feed.tell(told.created())
    strangers = [principal("x"), principal(caller.user_id, "other"), admin("other")]
    for stranger in strangers:
        status, body = await read(http, gateway, told.id, stranger)
        assert status == 403
        assert refusal(body) == ("UNAUTHORIZED_ACCESS", told.id, stranger.user_id)
    assert (await read(http, gateway, told.id, admin()))[0] == 200


@pytest.mark.parametrize("session_id", ["unknown", "user:ada", "user%3Aada", "x" * 200, "%00"])
async def test_unknown(
    gateway: ServiceProcess, http: aiohttp.ClientSession, caller: Principal, session_id: str
) -> None:
    """An id that nobody knows, or that can be none, is 404."""
    status, body = await read(http, gateway, session_id, caller)
    assert (status, refusal(body)[0]) == (404, "PROGRESS_NOT_FOUND")


async def test_the_users_key_is_no_session(
    gateway: ServiceProcess, http: aiohttp.ClientSession, feed: Feed, caller: Principal
) -> None:
    """The key of a user's sessions cannot be asked for as if it were a session."""
    told = Told(owner=caller)
    await feed.tell(told.created())
    await read(http, gateway, told.id, caller)
    status, body = await read(http, gateway, f"user:{caller.user_id}", caller)
    assert (status, body["error_code"]) == (404, "PROGRESS_NOT_FOUND")


async def test_deleted(
    gateway: ServiceProcess, http: aiohttp.ClientSession, feed: Feed, caller: Principal
) -> None:
    """A deleted upload has no progress any more."""
    told = Told(owner=caller)
    await feed.tell(told.created(), told.completed(), told.deleted())
    body = await read_until(http, gateway, told, caller, 404)
    assert body["error_code"] == "PROGRESS_NOT_FOUND"


async def test_no_gap_after_creation(
    gateway: ServiceProcess, http: aiohttp.ClientSession, feed: Feed, caller: Principal
) -> None:
    """A client that asks before the first event has come through waits for it."""
    told = Told(owner=caller)
    reading = asyncio.ensure_future(read(http, gateway, told.id, caller))
    await asyncio.sleep(0.3)
    await feed.tell(told.created())
    assert (await reading)[0] == 200


async def test_without_credentials(
    gateway: ServiceProcess, http: aiohttp.ClientSession
) -> None:
    """Nobody reads anything without showing who he is, and is told how to."""
    for headers in ({}, {"Authorization": "Bearer x"}):
        async with http.get(f"{gateway.url}{PATH}/any", headers=headers) as answer:
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_wrong_method(
    gateway: ServiceProcess, http: aiohttp.ClientSession, caller: Principal
) -> None:
    """Other methods are refused as a client's mistake."""
    url = f"{gateway.url}{PATH}/any"
    async with http.put(url, headers=bearer(caller)) as answer:
        assert answer.status == 405


async def test_redis_away(
    tmp_path: Path, http: aiohttp.ClientSession, caller: Principal
) -> None:
    """Without Redis progress is 503 with a time to retry, and 200 again when it is back."""
    redis = RedisServer(tmp_path / "redis")
    env = {**AUTHENTICATED, "REDIS_URL": redis.url}
    service = ServiceProcess("gateway", env, tmp_path / "log")
    told, watched = Told(owner=caller), Told(owner=caller)
    with running(redis, service):
        client = connect(redis.url)
        await Feed(client, partitions=EVENT_PARTITIONS).tell(told.created(), watched.created())
        assert (await read(http, service, told.id, caller))[0] == 200
        headers = list(bearer(caller).items())
        path = f"/api/v1/ws/{watched.id}"
        async with RawSocket.opened(service.port, path, headers=headers) as peer:
            await peer.hear()
            redis.kill()
            url = f"{service.url}{PATH}/{told.id}"
            for _ in range(3):
                async with http.get(url, headers=bearer(caller)) as answer:
                    assert answer.status == 503
                    assert int(answer.headers["Retry-After"]) >= 1
                    assert (await answer.json())["error_code"] == "SERVICE_UNAVAILABLE"
            # What somebody watches here is known without Redis.
            assert (await read(http, service, watched.id, caller))[0] == 200
            # A socket that cannot have its state is told to come back; others stay open.
            path = f"/api/v1/ws/{told.id}"
            async with RawSocket.opened(service.port, path, headers=headers) as refused:
                assert await refused.end() == 1013
            await eventually(lambda: _degraded(http, service), "it says so")
            redis.start()
            await client.connection_pool.disconnect()
            feed = Feed(client, partitions=EVENT_PARTITIONS)
            watched.seq = 0
            await feed.tell(told.created(), watched.created(), watched.completed())

            async def is_back() -> bool:
                return (await read(http, service, told.id, caller))[0] == 200

            await eventually(is_back, "progress can be read again")
            assert (await peer.hear())["type"] == "complete"
        await client.aclose()
    assert faults(service) == []


async def _degraded(http: aiohttp.ClientSession, service: ServiceProcess) -> bool:
    """Whether a gateway is ready, but says that something is amiss (and stays ready)."""
    async with http.get(f"{service.internal_url}/readyz") as answer:
        assert answer.status == 200
        return "gateway.redis" in await answer.text()


async def test_the_callers_own_name(
    gateway: ServiceProcess, http: aiohttp.ClientSession, feed: Feed, caller: Principal
) -> None:
    """Contract: the name a client gave its session is good wherever an id is, for it alone."""
    told = Told(owner=caller, session_id="my.video-1")
    reading = asyncio.ensure_future(read(http, gateway, "my.video-1", caller))
    await asyncio.sleep(0.3)
    await feed.tell(told.created())
    status, body = await reading
    assert (status, body["session_id"]) == (200, told.id)
    neighbour = msgspec.structs.replace(caller, user_id=f"{caller.user_id}x")
    stranger = msgspec.structs.replace(caller, tenant=f"{caller.tenant}x")
    for one in (neighbour, stranger):
        assert (await read(http, gateway, "my.video-1", one))[0] == 404
    again = Told(owner=caller, session_id="my.video-1")
    await feed.tell(told.cancelled(), again.created())

    async def moved() -> bool:
        return bool(
            (await read(http, gateway, "my.video-1", caller))[1]["session_id"] == again.id
        )

    await eventually(moved, "the name stands for the new session")
