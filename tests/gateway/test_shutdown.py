"""SIGTERM: all sockets are told at once to come back, and nobody can hold the end up."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest
from pytest_aiohttp import AiohttpClient
from redis.asyncio import Redis

from services.gateway.app import create_app
from services.gateway.settings import Settings
from services.gateway.sockets import SOCKETS
from tests.gateway.conftest import READERS, StartGateway
from tests.gateway.dialling import DIALS
from tests.gateway.feed import Feed
from tests.gateway.metrics import metric
from tests.gateway.raw_socket import RawSocket
from tests.gateway.samples import Told, principal
from tests.processes import RedisServer, ServiceProcess
from tests.shared.waiting import eventually

LOCAL = principal("local", "local")
HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let both readers of sockets pass every test that has a gateway."""
    if "socket_reader" in metafunc.fixturenames:
        metafunc.parametrize("socket_reader", READERS, indirect=True, scope="session")


async def ended(service: ServiceProcess) -> float:
    """Send SIGTERM; return how long it took to exit, with 0."""
    started = time.monotonic()
    code = await asyncio.to_thread(service.terminate, 20)
    assert code == 0
    return time.monotonic() - started


async def opened(
    stack: AsyncExitStack, service: ServiceProcess, told: Told, count: int
) -> list[RawSocket]:
    """Open sockets that watch an upload and have their snapshot."""
    path = f"/api/v1/ws/{told.id}"
    found = []
    for _ in range(count):
        peer = await stack.enter_async_context(RawSocket.opened(service.port, path))
        await peer.hear()
        found.append(peer)
    return found


async def test_all_are_told(start_gateway: StartGateway, feed: Feed) -> None:
    """Each socket gets 1012, in both libraries, and the process ends with 0."""
    service, told = start_gateway(AUTH_MODE="open"), Told(owner=LOCAL)
    await feed.tell(told.created())
    async with AsyncExitStack() as stack:
        peers = await opened(stack, service, told, 100)
        for dial in DIALS.values():
            url = f"{service.url}/ws/upload-progress/{told.id}"
            peer = await stack.enter_async_context(dial(url))
            await peer.hear()
            peers.append(peer)  # type: ignore[arg-type]
        ends = asyncio.gather(*(one.end() for one in peers))
        took, codes = await asyncio.gather(ended(service), ends)
    assert codes == [1012] * 102
    assert took < 5


async def test_peers_that_do_not_answer(start_gateway: StartGateway, feed: Feed) -> None:
    """Peers that read nothing, or never close, are not waited for one by one."""
    service, told = start_gateway(AUTH_MODE="open"), Told(owner=LOCAL, size=2**40)
    await feed.tell(told.created())
    path = f"/ws/upload-progress/{told.id}"
    async with AsyncExitStack() as stack:
        for _ in range(10):
            stuck = RawSocket.opened(service.port, path, receive_buffer=4096)
            await stack.enter_async_context(stuck)
        good = await opened(stack, service, told, 10)
        rude = await opened(stack, service, told, 10)
        reading = [asyncio.ensure_future(one.end()) for one in good]
        reading += [asyncio.ensure_future(one.end(answers=False)) for one in rude]

        async def all_stuck() -> bool:
            await feed.tell(*(told.position(told.seq * 1000 + n) for n in range(50)))
            told.seq += 1
            return await metric(service, "gateway_stalled") == 10

        await eventually(all_stuck, "they are stuck", limit_s=30)
        took = await ended(service)
        assert [await one for one in reading] == [1012] * 20
    assert took < 8


async def test_what_was_accepted_is_delivered(start_gateway: StartGateway, feed: Feed) -> None:
    """An event that has reached the process before the signal is sent before the goodbye."""
    service, told = start_gateway(AUTH_MODE="open"), Told(owner=LOCAL)
    await feed.tell(told.created())
    async with AsyncExitStack() as stack:
        peers = await opened(stack, service, told, 5)
        await feed.tell(told.completed())
        first = [await one.hear() for one in peers]
        ends = asyncio.gather(*(one.end() for one in peers))
        took, codes = await asyncio.gather(ended(service), ends)
    assert [one["type"] for one in first] == ["complete"] * 5
    assert codes == [1012] * 5
    assert took < 5


async def test_sockets_in_every_phase(start_gateway: StartGateway, feed: Feed) -> None:
    """Sockets that are still logging in or waiting for an upload are told as well."""
    secret = {"AUTH_MODE": "required", "AUTH_JWT_SECRET": "x" * 32}
    login = start_gateway(**secret)
    waiting = start_gateway(AUTH_MODE="open")
    told = Told(owner=LOCAL)
    await feed.tell(told.created())
    async with AsyncExitStack() as stack:
        path = "/ws/upload-progress"
        nobody = await stack.enter_async_context(RawSocket.opened(login.port, path))
        path = "/api/v1/ws/not-yet-known"
        early = await stack.enter_async_context(RawSocket.opened(waiting.port, path))
        both = await asyncio.gather(ended(login), ended(waiting))
        assert await nobody.end() == 1012
        assert await early.end() == 1012
    assert max(both) < 8


async def test_nobody_is_let_in_during_the_end(
    aiohttp_client: AiohttpClient, redis_server: RedisServer, redis: Redis
) -> None:
    """A handshake that comes while the goodbyes are said is sent elsewhere."""
    settings = Settings(redis_url=redis_server.url, auth_mode="open")
    client = await aiohttp_client(create_app(settings))
    async with client.ws_connect("/ws/upload-progress") as ws:
        assert client.app is not None
        await asyncio.gather(client.app[SOCKETS].close_all(), ws.receive())
        assert ws.close_code == 1012
    async with client.get("/ws/upload-progress", headers=HANDSHAKE) as answer:
        assert answer.status == 503
        assert "Retry-After" in answer.headers
