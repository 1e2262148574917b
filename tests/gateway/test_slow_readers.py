"""Five of five hundred never read: the others notice nothing, and memory stays flat."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from tests.gateway.conftest import StartGateway
from tests.gateway.crowd import crowd
from tests.gateway.feed import Feed
from tests.gateway.metrics import metric
from tests.gateway.raw_socket import PING, RawSocket, frame
from tests.gateway.samples import Told, principal
from tests.processes import ServiceProcess
from tests.shared.waiting import eventually

SLOW: Final = 5
QUICK: Final = 495
ROUNDS: Final = 40
POSITIONS: Final = 5
"""Positions in each round, between two lifecycle events."""
STALL_S: Final = 7
FLOOD: Final = 40_000
"""Positions that pile up, if anything does: some 40 MB, in five queues without a bound."""
MOST_GROWTH: Final = 12 * 1024 * 1024
"""Bytes that the process may grow by."""


class Writer:
    """Tells of one upload, ever further."""

    def __init__(self, feed: Feed) -> None:
        self.told: Final = Told(owner=principal("local", "local"), size=2**40)
        self._feed: Final = feed
        self._offset = 0

    async def tell_positions(self, count: int) -> None:
        """Put so many new positions on the stream."""
        first = self._offset + 1
        self._offset += count
        await self._feed.tell_together(*map(self.told.position, range(first, first + count)))

    async def tell_lifecycle(self) -> int:
        """Put a lifecycle event on the stream; return the bytes that tell it from others.

        An upload is created once; that this one is created again and again gives lifecycle
        events between positions, as jobs give them in other dialects.
        """
        self._offset += 1
        await self._feed.tell(self.told.created(offset=self._offset))
        return self._offset


def descriptors(service: ServiceProcess) -> int:
    """Return how many files and sockets a process has open."""
    return len(os.listdir(f"/proc/{service.pid}/fd"))


async def stuck(
    stack: AsyncExitStack, service: ServiceProcess, path: str, writer: Writer
) -> list[RawSocket]:
    """Open the sockets that never read, and write until nothing goes out to them any more."""
    slow = [
        await stack.enter_async_context(
            RawSocket.opened(service.port, path, receive_buffer=4096)
        )
        for _ in range(SLOW)
    ]

    async def all_stalled() -> bool:
        for _ in range(20):  # one by one: what comes in one turn goes out as one frame
            await writer.tell_positions(1)
        return await metric(service, "gateway_stalled") == SLOW

    await eventually(all_stalled, "nothing goes out to them", limit_s=30)
    return slow


async def test_slow_readers(start_gateway: StartGateway, feed: Feed) -> None:
    """All others get each lifecycle event, in order; those who never read are closed."""
    service = start_gateway(AUTH_MODE="open", WEBSOCKET_STALL_TIMEOUT=str(STALL_S))
    writer = Writer(feed)
    await writer.tell_lifecycle()
    path = f"/api/v1/ws/{writer.told.id}"
    async with AsyncExitStack() as stack:
        slow = await stuck(stack, service, path, writer)
        before = service.memory()
        for _ in range(FLOOD // 1000):
            await writer.tell_positions(1000)
        assert service.memory() - before < MOST_GROWTH
        quick = await stack.enter_async_context(crowd(service.port, path, QUICK))
        assert await metric(service, "gateway_sockets") == SLOW + QUICK
        opened = descriptors(service)
        before = service.memory()
        most, expected = before, []
        for _ in range(ROUNDS):
            expected.append(("created", await writer.tell_lifecycle()))
            for _ in range(POSITIONS):
                await writer.tell_positions(1)
                await asyncio.sleep(0.02)
            most = max(most, service.memory())
        too_slow = partial(metric, service, 'gateway_closed_total{code="1013"}')
        await eventually(lambda: _is(too_slow(), SLOW), "they are closed", limit_s=3 * STALL_S)
        await feed.tell(writer.told.completed())
        expected.append(("complete", 2**40))
        await eventually(
            lambda: all(one.lifecycle[-1][0] == "complete" for one in quick), "the end"
        )
        for one in quick:
            assert one.faults == []
            assert not one.lost
            assert one.lifecycle == expected
            assert one.progress > ROUNDS
        most = max(most, service.memory())
        assert most - before < MOST_GROWTH
        # Two more: a client of Redis connects again when it needs another connection.
        await eventually(lambda: descriptors(service) <= opened - SLOW + 2, "they are cut")
        assert await metric(service, "gateway_sockets") == QUICK
        for peer in slow:
            assert await peer.end() in {1013, None}


async def _is(found: object, expected: float) -> bool:
    return bool(await found == expected)  # type: ignore[misc]


async def test_who_talks_but_never_reads(start_gateway: StartGateway) -> None:
    """Signs of life are no excuse: who only sends pings and reads no pong is closed in time."""
    service = start_gateway(WEBSOCKET_STALL_TIMEOUT="1")
    loop = asyncio.get_running_loop()
    async with RawSocket.opened(
        service.port, "/ws/upload-progress", receive_buffer=4096
    ) as peer:
        pings = frame(PING, b"x" * 125) * 100

        async def pour() -> None:
            while True:
                await loop.sock_sendall(peer.socket, pings)

        pouring = asyncio.ensure_future(pour())
        by_time = partial(metric, service, 'gateway_slow_total{bound="time"}')
        await eventually(lambda: _is(by_time(), 1), "it is too slow", limit_s=15)
        await eventually(pouring.done, "it is cut")
        assert isinstance(pouring.exception(), ConnectionError)
