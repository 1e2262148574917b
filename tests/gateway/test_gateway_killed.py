"""Gateways that are killed while sockets watch: who comes back misses no end of an upload."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from tests.gateway.conftest import StartGateway
from tests.gateway.feed import Feed
from tests.gateway.raw_socket import RawSocket
from tests.gateway.samples import Told, principal
from tests.processes import ServiceProcess

LOCAL = principal("local", "local")
OPEN = {"AUTH_MODE": "open"}
UPLOADS = 20


async def watched(
    stack: AsyncExitStack, service: ServiceProcess, uploads: list[Told]
) -> list[RawSocket]:
    """Open a socket for each upload."""
    paths = (f"/api/v1/ws/{one.id}" for one in uploads)
    opening = (stack.enter_async_context(RawSocket.opened(service.port, p)) for p in paths)
    return [await one for one in opening]


async def told_until(peer: RawSocket, kind: str) -> list[dict[str, object]]:
    """Return the messages up to the first of a kind."""
    found = [await peer.hear()]
    while found[-1]["type"] != kind:
        found.append(await peer.hear())
    return found


async def created(feed: Feed, count: int = UPLOADS) -> list[Told]:
    """Return new uploads, under way."""
    uploads = [Told(owner=LOCAL) for _ in range(count)]
    await feed.tell(*(one.created() for one in uploads))
    await feed.tell(*(one.position(1000) for one in uploads))
    return uploads


@pytest.mark.parametrize("when", ["while it is down", "when it is back"])
async def test_killed_and_restarted(start_gateway: StartGateway, feed: Feed, when: str) -> None:
    """Who reconnects to the restarted gateway learns of the end, whenever it came."""
    service = start_gateway(**OPEN)
    uploads = await created(feed)
    async with AsyncExitStack() as stack:
        peers = await watched(stack, service, uploads)
        for peer in peers:
            await peer.hear()
        service.kill()
        assert [await one.end() for one in peers] == [None] * UPLOADS
        if when == "while it is down":
            await feed.tell(*(one.completed() for one in uploads))
        service.start()
        again = await watched(stack, service, uploads)
        if when == "when it is back":
            await feed.tell(*(one.completed() for one in uploads))
        for peer in again:
            messages = await told_until(peer, "complete")
            assert messages[-1]["progress"] == 100.0


async def test_killed_amid_a_stream(start_gateway: StartGateway, feed: Feed) -> None:
    """Killed again and again amid events, it brings each upload to its end, never backwards."""
    service = start_gateway(**OPEN)
    uploads = await created(feed)
    over = asyncio.Event()

    async def write() -> None:
        for step in range(2, 130):
            await feed.tell(*(one.position(step * 1000) for one in uploads))
            await asyncio.sleep(0.01)
        await feed.tell(*(one.completed() for one in uploads))
        over.set()

    async def watch(told: Told) -> list[int]:
        sizes: list[int] = []
        path = f"/api/v1/ws/{told.id}"
        while True:
            try:
                async with RawSocket.opened(service.port, path) as peer:
                    while True:
                        message = await peer.hear()
                        sizes.append(message["bytes_sent"])
                        if message["type"] == "complete":
                            return sizes
            except (OSError, AssertionError):
                await asyncio.sleep(0.05)

    writing = asyncio.ensure_future(write())
    watching = [asyncio.ensure_future(watch(one)) for one in uploads]
    while not over.is_set():
        await asyncio.sleep(0.4)
        service.kill()
        await asyncio.to_thread(service.start)
    await writing
    async with asyncio.timeout(30):
        for sizes in await asyncio.gather(*watching):
            # What a killed gateway had told of positions may be ahead of what is recorded;
            # each socket by itself only goes forward, and all end at the end.
            assert sizes[-1] == 2_250_000


async def test_two_gateways(start_gateway: StartGateway, feed: Feed) -> None:
    """One of two is killed: the sockets of the other notice nothing, and take in the rest."""
    first, second = start_gateway(**OPEN), start_gateway(**OPEN)
    uploads = await created(feed)
    async with AsyncExitStack() as stack:
        of_first = await watched(stack, first, uploads)
        of_second = await watched(stack, second, uploads)
        for peer in (*of_first, *of_second):
            await peer.hear()
        await feed.tell(*(one.position(2000) for one in uploads))
        first.kill()
        await feed.tell(*(one.completed() for one in uploads))
        await feed.tell(*(one.stored() for one in uploads))
        moved = await watched(stack, second, uploads)
        for peer in (*of_second, *moved):
            assert (await told_until(peer, "complete"))[-1]["progress"] == 100.0
        assert [await one.end() for one in of_first] == [None] * UPLOADS


async def test_both_gateways_tell_the_same(start_gateway: StartGateway, feed: Feed) -> None:
    """Sockets of two gateways get the same lifecycle events, whoever records them."""
    gateways = [start_gateway(**OPEN), start_gateway(**OPEN)]
    uploads = await created(feed)
    async with AsyncExitStack() as stack:
        peers = [await watched(stack, one, uploads) for one in gateways]
        for peer in (*peers[0], *peers[1]):
            await peer.hear()
        for one in uploads:
            await feed.tell(one.completed(), one.stored(), one.queued(), one.deleted())
        for peer in (*peers[0], *peers[1]):
            await told_until(peer, "complete")
            last = await peer.hear()
            assert (last["type"], last["message"]) == ("error", "The file was deleted.")
