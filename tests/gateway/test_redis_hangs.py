"""A Redis that is there and answers nothing, against everything that clients ask for."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Final

import aiohttp

from shared.streams import connect
from tests.gateway.conftest import AUTHENTICATED, EVENT_PARTITIONS, StartGateway, bearer
from tests.gateway.feed import Feed
from tests.gateway.raw_socket import RawSocket
from tests.gateway.samples import Told, admin
from tests.processes import RedisServer, running

PROGRESS: Final = "/v1/dashboard/upload/progress"
MOST_S: Final = 3.0
"""It is one second; the rest is for machines that are busy."""


async def test_nobody_waits_long_for_a_redis_that_hangs(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    """Catches requests and handshakes that pile up behind a Redis that is stopped: each is
    sent away within a second (faults, item 11), and what is watched is answered from memory.
    """
    server = RedisServer(tmp_path / "redis")
    with running(server):
        service = start_gateway(**AUTHENTICATED, REDIS_URL=server.url)
        redis = connect(server.url)
        told = Told()
        await Feed(redis, partitions=EVENT_PARTITIONS).record(told.created())
        await redis.aclose()
        credentials, path = bearer().items(), f"/api/v1/ws/{told.id}"
        opened = RawSocket.opened(service.port, path, headers=credentials)
        async with aiohttp.ClientSession() as http, opened as watching:
            await watching.hear()

            async def status(method: str, path: str, **more: Any) -> int:
                headers = bearer(admin())
                async with http.request(method, path, headers=headers, **more) as answer:
                    return answer.status

            async def code(path: str) -> int | None:
                async with RawSocket.opened(service.port, path, headers=credentials) as peer:
                    return await peer.end()

            base, internal = service.url, service.internal_url
            report = {"type": "queued", "seq": 1}
            jobs = f"{internal}/internal/v1/jobs"
            asked: list[Awaitable[int | None]] = [
                status("GET", f"{base}{PROGRESS}/unknown"),
                status("DELETE", f"{base}{PROGRESS}/unknown"),
                status("GET", f"{base}{PROGRESS}/user/ada/sessions"),
                status("GET", f"{base}{PROGRESS}/stats"),
                status("POST", f"{base}{PROGRESS}/cleanup"),
                status("GET", f"{base}/v1/events?ids=unknown"),
                status("POST", f"{base}/v1/events/ticket"),
                status("POST", f"{jobs}/{told.facts.job_id}/events", json=report),
                code("/api/v1/ws/unknown"),
                code("/progress/ws/unknown"),
            ]
            server.signal(signal.SIGSTOP)
            try:
                began = time.monotonic()
                found = await asyncio.gather(*asked)
                took = time.monotonic() - began
                known = await status("GET", f"{base}{PROGRESS}/{told.id}")
            finally:
                server.signal(signal.SIGCONT)
    assert found == [503] * 8 + [1013] * 2
    assert known == 200
    assert took < MOST_S
