"""Gateways that are told of another number of partitions than those who write to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from shared.streams import connect
from tests.gateway.conftest import EVENT_PARTITIONS, StartGateway
from tests.gateway.feed import Feed
from tests.gateway.samples import Told
from tests.processes import RedisServer, ServiceProcess, running


async def readiness(service: ServiceProcess) -> tuple[int, dict[str, Any]]:
    """Return what a probe gets."""
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{service.internal_url}/readyz") as answer,
    ):
        return answer.status, await answer.json()


@pytest.mark.parametrize(
    ("partitions", "is_degraded"),
    [(EVENT_PARTITIONS // 2, True), (EVENT_PARTITIONS, False)],
    ids=["fewer", "as many"],
)
async def test_streams_that_nobody_reads_are_told_of(
    start_gateway: StartGateway, tmp_path: Path, partitions: int, is_degraded: bool
) -> None:
    """Catches a gateway that hears nothing of half of all uploads, and seems to be well."""
    server = RedisServer(tmp_path / "redis")
    with running(server):
        redis = connect(server.url)
        feed = Feed(redis, partitions=EVENT_PARTITIONS)
        await feed.tell(*(Told(f"upload-{number}").created() for number in range(64)))
        await redis.aclose()
        env = {"REDIS_URL": server.url, "EVENT_PARTITIONS": str(partitions)}
        service = start_gateway(AUTH_MODE="open", **env)
        status, body = await readiness(service)
        warned = "streams_beyond_event_partitions" in service.log.read_text()
    assert status == 200
    assert ("gateway.partitions" in body["degraded"]) is is_degraded
    assert warned is is_degraded
