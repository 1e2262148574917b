"""What a gateway tells operators: every figure is there, and moves when it should."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

import pytest
from prometheus_client import REGISTRY

from services.gateway.figures import Ages
from tests.gateway.conftest import ORIGIN, StartGateway
from tests.gateway.feed import Feed
from tests.gateway.metrics import metric, scraped, value_in
from tests.gateway.raw_socket import CLOSE, RawSocket, frame
from tests.gateway.samples import Told, principal
from tests.processes import RedisServer, ServiceProcess
from tests.shared.waiting import eventually

LOCAL: Final = principal("local", "local")
TOLD: Final = {
    "gateway_sockets": "gauge",
    "gateway_subscriptions": "gauge",
    "gateway_topics": "gauge",
    "gateway_stalled": "gauge",
    "gateway_queued_frames": "gauge",
    "gateway_queued_frames_most": "gauge",
    "gateway_events_total": "counter",
    "gateway_events_wanted_total": "counter",
    "gateway_events_delivered_total": "counter",
    "gateway_conflated_total": "counter",
    "gateway_writes_total": "counter",
    "gateway_frames_total": "counter",
    "gateway_bytes_total": "counter",
    "gateway_event_age_seconds": "histogram",
    "gateway_loop_lag_seconds": "histogram",
    "gateway_slow_total": "counter",
    "gateway_refused_total": "counter",
    "gateway_closed_total": "counter",
    "gateway_gaps_total": "counter",
    "gateway_places_local_total": "counter",
}
"""What dashboards and alarms may rely on."""


async def test_every_figure_is_told(gateway: ServiceProcess) -> None:
    """Dashboards find each figure under its name, of its kind, and with what it means."""
    text = await scraped(gateway)
    for name, kind in TOLD.items():
        assert f"# TYPE {name} {kind}" in text
        assert re.search(rf"# HELP {name} [A-Z].*\.", text), name


class Watch:
    """By how much the figures of a gateway have moved."""

    def __init__(self, service: ServiceProcess) -> None:
        self._service: Final = service
        self._before: dict[str, float] = {}

    async def begin(self, *names: str) -> None:
        """Note where they are."""
        self._before = {name: await metric(self._service, name) for name in names}

    async def moved(self, **by: Any) -> None:
        """Wait until each has moved by so much, ``_total`` left out."""
        wanted = {name: by[short] for name in self._before if (short := _short(name)) in by}
        assert len(wanted) == len(by), self._before

        async def is_there() -> bool:
            found = {name: await metric(self._service, name) for name in wanted}
            return all(found[n] - self._before[n] == more for n, more in wanted.items())

        await eventually(is_there, f"{wanted}")


def _short(name: str) -> str:
    return name.removeprefix("gateway_").partition("{")[0].removesuffix("_total")


async def test_they_move(start_gateway: StartGateway, feed: Feed) -> None:
    """Sockets, subscriptions and what goes out to them are counted as they are."""
    service = start_gateway(CORS_ALLOWED_ORIGINS=ORIGIN)
    watch, told, unwanted = Watch(service), Told(owner=LOCAL, at=None), Told()
    await feed.tell(told.created())
    async with AsyncExitStack() as stack:
        paths = [f"/api/v1/ws/{told.id}"] * 3 + [f"/ws/upload-progress/{told.id}"]
        await watch.begin("gateway_sockets", "gateway_subscriptions", "gateway_topics")
        peers = [
            await stack.enter_async_context(RawSocket.opened(service.port, path))
            for path in paths
        ]
        for peer in peers:
            await peer.hear()
        await watch.moved(sockets=4, subscriptions=4, topics=1)
        assert await metric(service, 'gateway_sockets{dialect="media"}') == 3
        assert await metric(service, 'gateway_sockets{dialect="dashboard"}') == 1

        await watch.begin(
            "gateway_events_wanted_total",
            "gateway_events_delivered_total",
            "gateway_writes_total",
            "gateway_frames_total",
            "gateway_bytes_total",
            "gateway_event_age_seconds_count",
        )
        read = await metric(service, 'gateway_events_total{family="events"}')
        await feed.tell(unwanted.created(), told.completed())
        heard = [await peer.frame() for peer in peers]
        size = sum(
            len(one.payload) + (2 if len(one.payload) < 126 else 4) for one in heard if one
        )
        await watch.moved(
            events_wanted=1,
            events_delivered=4,
            writes=4,
            frames=4,
            bytes=size,
            event_age_seconds_count=1,
        )
        assert await metric(service, 'gateway_events_total{family="events"}') >= read + 1
        assert 0 <= await metric(service, "gateway_event_age_seconds_sum") < 5

        await watch.begin("gateway_sockets", "gateway_subscriptions", "gateway_topics")
        await peers[0].send(frame(CLOSE, b"\x03\xe8"))
        await watch.moved(sockets=-1, subscriptions=-1, topics=0)
        lag = await metric(service, "gateway_loop_lag_seconds_count")
        await asyncio.sleep(0.6)
        assert await metric(service, "gateway_loop_lag_seconds_count") >= lag + 2

        name = 'gateway_refused_total{reason="origin"}'
        await watch.begin(name)
        foreign = [("Origin", "https://evil.example")]
        async with RawSocket.opened(service.port, paths[0], headers=foreign) as refused:
            assert refused.status == 403
        await watch.moved(refused=1)


async def test_who_does_not_read_is_seen(start_gateway: StartGateway, feed: Feed) -> None:
    """What waits for a stuck socket is seen; when it reads, all comes in order, and no waste.

    Of the positions only the newest is kept, behind the lifecycle events before it.
    """
    service, told = start_gateway(), Told(owner=LOCAL, size=2**40)
    await feed.tell(told.created())
    path, waiting = f"/api/v1/ws/{told.id}", partial(metric, service, "gateway_queued_frames")
    async with RawSocket.opened(service.port, path, receive_buffer=4096) as peer:
        await peer.hear()
        offset = 0

        async def is_stalled() -> bool:
            nonlocal offset
            await feed.tell(*(told.created(offset=(offset := offset + 1)) for _ in range(50)))
            return await metric(service, "gateway_stalled") == 1

        await eventually(is_stalled, "it is stuck")
        conflated = await metric(service, "gateway_conflated_total")
        for _ in range(10):
            await feed.tell(told.created(offset=(offset := offset + 1)))
            for _ in range(50):
                await feed.tell(told.position(offset := offset + 1))
        last = offset

        async def is_all_there() -> bool:
            moved = await metric(service, "gateway_conflated_total") - conflated
            return moved >= 2 and await waiting() >= 10

        await eventually(is_all_there, "events wait, and positions are conflated")
        text = await scraped(service)
        names = ("gateway_queued_frames", "gateway_queued_frames_most")
        assert value_in(text, names[0]) == value_in(text, names[1]) > 0
        heard: list[dict[str, Any]] = []
        while not heard or heard[-1]["bytes_sent"] < last:
            heard.append(await peer.hear())
        offsets = [one["bytes_sent"] for one in heard]
        assert offsets == sorted(offsets)
        created = [one["bytes_sent"] for one in heard if one["type"] == "created"]
        assert len(set(created)) >= offset - 10 * 50 - 1
        assert len(heard) - len(created) < 60

        async def nothing_waits() -> bool:
            return await waiting() == 0 == await metric(service, "gateway_stalled")

        await eventually(nothing_waits, "nothing waits")
        assert await metric(service, "gateway_slow_total") == 0


async def test_readiness(start_gateway: StartGateway, bus: RedisServer) -> None:
    """A full process takes no more; one with room again does."""
    service = start_gateway(WEBSOCKET_MAX_CONNECTIONS_TOTAL="1")

    async def status(expected: int) -> bool:
        text = await scraped(service, "/readyz")
        return text.startswith(f"HTTP/1.1 {expected} ")

    assert await status(200)
    async with RawSocket.opened(service.port, "/ws/upload-progress") as only:
        assert only.status == 101
        assert await status(503)
        assert '"failed":["gateway.sockets"]' in await scraped(service, "/readyz")
    await eventually(partial(status, 200), "there is room again")


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_ages_are_told_once(count: int) -> None:
    """What was noted in one turn is told at its end, and not again."""
    ages = Ages()
    before = _observed()
    for _ in range(count):
        ages.note("events", 0)
    ages.tell()
    ages.tell()
    assert _observed() - before == count


def _observed() -> float:
    return REGISTRY.get_sample_value("gateway_event_age_seconds_count") or 0
