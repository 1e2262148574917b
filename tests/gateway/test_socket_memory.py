"""What sockets cost while nothing happens on them, and while nobody reads them."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.gateway.conftest import StartGateway
from tests.gateway.crowd import crowd
from tests.gateway.feed import Feed
from tests.gateway.metrics import metric
from tests.gateway.raw_socket import RawSocket
from tests.gateway.samples import Told, principal
from tests.processes import ServiceProcess
from tests.shared.waiting import eventually

IDLE: Final = 10_000
MOST_IDLE: Final = 16 * 1024
"""Bytes of the process that an idle socket may cost."""
STALLED: Final = 20
MOST_STALLED: Final = 256 * 1024
"""Bytes that a client who reads nothing may cost, in the process and in the kernel."""


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process, and those it starts, have enough files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = IDLE + 500
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"no more than {hard} open files are allowed here; {needed} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
async def test_ten_thousand_idle_sockets(
    start_gateway: StartGateway, feed: Feed, record_property: Callable[[str, object], None]
) -> None:
    """Each costs a few KiB, all get what is told, and nothing is left of them afterwards."""
    service = start_gateway(AUTH_MODE="open", WEBSOCKET_MAX_CONNECTIONS_TOTAL=str(IDLE + 100))
    told = Told(owner=principal("local", "local"))
    await feed.tell(told.created())
    path = f"/api/v1/ws/{told.id}"
    async with crowd(service.port, path, 50):
        pass  # what the first sockets bring into memory is not theirs
    before = service.memory()
    async with crowd(service.port, path, IDLE) as members:
        each = (service.memory() - before) / IDLE
        record_property("bytes_per_idle_socket", round(each))
        sys.stdout.write(f"{each / 1024:.1f} KiB for each of {IDLE:,} idle sockets\n")
        await feed.tell(told.position(5))
        await eventually(lambda: all(one.progress for one in members), "all are told")
        assert [one.faults for one in members if one.lost or one.faults] == []
    sockets = partial(metric, service, "gateway_sockets")
    await eventually(lambda: _is(sockets(), 0), "all are gone")
    assert each < MOST_IDLE


def sent_by_kernel(service: ServiceProcess) -> list[int]:
    """Return how many bytes the kernel keeps for each client, as it is not rid of them."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    ours = f":{service.port:04X}"
    fields = [line.split() for line in lines]
    open_ones = [one for one in fields if one[1].endswith(ours) and one[3] == "01"]
    return [int(one[4].partition(":")[0], 16) for one in open_ones]


async def test_clients_that_read_nothing(start_gateway: StartGateway, feed: Feed) -> None:
    """However much they are owed, it costs little until they are closed for that."""
    service = start_gateway(AUTH_MODE="open")
    told = Told(owner=principal("local", "local"), size=2**40)
    await feed.tell(told.created())
    offset = 0
    async with AsyncExitStack() as stack:
        opened = [
            RawSocket.opened(service.port, f"/api/v1/ws/{told.id}", receive_buffer=4096)
            for _ in range(STALLED)
        ]
        before = service.memory()
        for one in opened:
            await stack.enter_async_context(one)
        most = kernel = 0
        while await metric(service, 'gateway_closed_total{code="1013"}') < STALLED:
            for _ in range(40):
                offset += 1
                await feed.tell(told.created(offset=offset))
            assert offset < 5000, "they are never closed"
            kernel = max(kernel, *sent_by_kernel(service), 0)
            most = max(most, (service.memory() - before) // STALLED + kernel)
    sys.stdout.write(f"{most / 1024:.0f} KiB, {kernel / 1024:.0f} of it in the kernel\n")
    assert kernel > 1000
    assert most < MOST_STALLED


async def _is(found: object, expected: float) -> bool:
    return bool(await found == expected)  # type: ignore[misc]
