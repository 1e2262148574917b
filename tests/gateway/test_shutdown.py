"""SIGTERM: all sockets are told to come back, in time, and nobody can hold the end up."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Literal

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
from tests.gateway.raw_socket import CLOSE, RawSocket, frame
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
    assert took < 10


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
    assert took < 12


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
    assert took < 10


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
    assert max(both) < 12


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


async def test_who_is_let_in_while_the_others_go(
    aiohttp_client: AiohttpClient,
    redis_server: RedisServer,
    redis: Redis,
    socket_reader: Literal["auto", "aiohttp"],
) -> None:
    """A handshake that was being looked up when all were told is answered, and told as well."""
    settings = Settings(
        redis_url=redis_server.url,
        auth_mode="open",
        websocket_reader=socket_reader,
        websocket_max_connections_per_user=5,
    )
    client = await aiohttp_client(create_app(settings))
    assert client.app is not None
    sockets = client.app[SOCKETS]
    await redis.client_pause(1_000)
    opening = asyncio.ensure_future(client.ws_connect("/ws/upload-progress"))
    await eventually(lambda: sockets.admission._undecided, "its place is asked for")
    await sockets.close_all()
    async with await opening as ws:
        await ws.receive(timeout=10)
        assert ws.close_code == 1012


WINDOW_S = 2.5


async def asked(port: int, path: str) -> tuple[int, str]:
    """Return status and text of a GET on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    text = (await reader.read()).decode()
    writer.close()
    return int(text.split()[1]), text


async def test_the_end_is_spread_over_the_window(
    start_gateway: StartGateway, feed: Feed
) -> None:
    """Sockets end at moments of their own; whoever is still there is served until then."""
    service = start_gateway(WEBSOCKET_DRAIN_WINDOW=str(WINDOW_S))
    told = Told(owner=LOCAL)
    await feed.tell(told.created())
    async with AsyncExitStack() as stack:
        peers = await opened(stack, service, told, 60)
        started = time.monotonic()
        got: list[bool] = []
        times: list[float] = []

        async def until_the_end(peer: RawSocket) -> None:
            frames = []
            while (found := await peer.frame()) is not None:
                frames.append(found)
                if found.opcode == CLOSE:
                    times.append(time.monotonic() - started)
                    await peer.send(frame(CLOSE, found.payload))
            assert int.from_bytes(frames[-1].payload[:2]) == 1012
            got.append(len(frames) == 2 and b"complete" in frames[0].payload)

        reading = asyncio.gather(*map(until_the_end, peers))
        ending = asyncio.ensure_future(ended(service))
        await eventually(lambda: times, "the first one is told")
        status, text = await asked(service.internal_port, "/readyz")
        assert status == 503
        assert '"draining":true' in text
        assert (await asked(service.internal_port, "/healthz"))[0] == 200
        async with RawSocket.opened(service.port, "/ws/upload-progress") as late:
            assert late.status == 503
            assert int(late.headers["Retry-After"]) >= 1
        path = f"/v1/dashboard/upload/progress/{told.id}"
        assert (await asked(service.port, path))[0] == 200
        left = 60 - len(times)
        await feed.tell(told.completed())
        await reading
        took = await ending
    assert sum(got) >= left - 10  # some were told goodbye while the event was under way
    assert max(times) > 0.7 * WINDOW_S
    assert len({int(10 * one) for one in times}) > 8  # a busy machine keeps some together
    assert max(times) < WINDOW_S + 5
    assert took < WINDOW_S + 10  # the process ends a little later, on a busy machine more


async def test_the_window_ends_within_the_limit(
    start_gateway: StartGateway, feed: Feed
) -> None:
    """However long the window is, SHUTDOWN_TIMEOUT holds; with no sockets nobody waits."""
    env = {"WEBSOCKET_DRAIN_WINDOW": "600", "SHUTDOWN_TIMEOUT": "4"}
    crowded, idle = start_gateway(**env), start_gateway(**env)
    told = Told(owner=LOCAL)
    await feed.tell(told.created())
    async with AsyncExitStack() as stack:
        peers = await opened(stack, crowded, told, 20)
        rude = await opened(stack, crowded, told, 5)
        ends = asyncio.gather(
            *(one.end() for one in peers), *(one.end(answers=False) for one in rude)
        )
        took, at_once, codes = await asyncio.gather(ended(crowded), ended(idle), ends)
    assert codes == [1012] * 25
    assert took < 4 + 20  # and not 600; a busy machine ends a process late
    assert at_once < took
