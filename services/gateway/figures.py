"""What operators scale gateways by, as far as it is found out when somebody asks.

Each figure is of the newest gateway of the process; there is but one outside of tests. What is
counted as it happens stands where it happens.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import Final, Protocol

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from services.gateway.dialects.protocol import Dialect
from services.gateway.hub import Hub
from shared.times import now_ms

__all__ = ["Ages", "Figures", "Queues", "watch_loop"]

_LAG_EVERY_S: Final = 0.25

OPEN: Final = Gauge("gateway_sockets", "Open sockets, by dialect.", ["dialect"])
SUBSCRIPTIONS: Final = Gauge(
    "gateway_subscriptions", "Pairs of a socket and an upload that it watches."
)
STALLED: Final = Gauge("gateway_stalled", "Open sockets that do not drain.")
QUEUED: Final = Gauge("gateway_queued_frames", "Frames that wait for sockets to drain.")
LONGEST: Final = Gauge("gateway_queued_frames_most", "Frames of the socket with the most.")
WANTED: Final = Counter(
    "gateway_events_wanted_total", "Events read that somebody here watches.", ["family"]
)
LAG: Final = Histogram(
    "gateway_loop_lag_seconds",
    "How late the event loop gets to what is due, looked at four times a second.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
)


class Queues(Protocol):
    """What waits for sockets to drain."""

    @property
    def stalled(self) -> int:
        """Sockets that wait for their reader."""

    def queued(self) -> list[int]:
        """Return how many frames wait for each of them."""


class Figures:
    """What is open and what waits, of one gateway.

    Args:
        hub: Knows who watches what.
        queues: Knows who does not drain.

    """

    def __init__(self, hub: Hub, queues: Queues) -> None:
        self._open: Final[dict[str, int]] = {}
        SUBSCRIPTIONS.set_function(lambda: hub.subscriptions)
        STALLED.set_function(lambda: queues.stalled)
        QUEUED.set_function(lambda: sum(queues.queued()))
        LONGEST.set_function(lambda: max(queues.queued(), default=0))

    def opened(self, dialect: Dialect) -> None:
        """Count a socket in."""
        self._count(dialect.name, 1)

    def gone(self, dialect: Dialect) -> None:
        """Count it out."""
        self._count(dialect.name, -1)

    def _count(self, name: str, change: int) -> None:
        self._open[name] = self._open.get(name, 0) + change
        OPEN.labels(name).set(self._open[name])


class AgeHistogram(Collector):
    """``gateway_event_age_seconds``, in plain numbers: a thousand may be noted in a turn."""

    _BOUNDS_MS: Final = (1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 5000, 30_000)

    def __init__(self) -> None:
        self._counts: Final = [0] * (len(self._BOUNDS_MS) + 1)
        self._sum_ms = 0

    def observe(self, age_ms: int) -> None:
        """Count an event in."""
        self._counts[bisect_left(self._BOUNDS_MS, age_ms)] += 1
        self._sum_ms += age_ms

    def collect(self) -> Iterator[Metric]:
        """Return how many there were, by their age."""
        names = [*(str(bound / 1000) for bound in self._BOUNDS_MS), "+Inf"]
        yield HistogramMetricFamily(
            "gateway_event_age_seconds",
            "From the making of an event to its write; to sockets that do not drain it comes "
            "later.",
            buckets=list(zip(names, accumulate(self._counts), strict=True)),
            sum_value=self._sum_ms / 1000,
        )


AGE: Final = AgeHistogram()
REGISTRY.register(AGE)


class Ages:
    """When the events were made that go out at the end of this turn of the loop."""

    def __init__(self) -> None:
        self._made: Final[list[int]] = []
        self._wanted: Final[dict[str, int]] = {}

    def note(self, family: str, made_at: int) -> None:
        """Note an event that somebody here watches; ``made_at``: UTC, ms."""
        self._wanted[family] = self._wanted.get(family, 0) + 1
        self._made.append(made_at)

    def tell(self) -> None:
        """Tell how old they are, now that they are written."""
        if self._made:
            now = now_ms()
            for made_at in self._made:
                AGE.observe(max(now - made_at, 0))
            for family, count in self._wanted.items():
                WANTED.labels(family).inc(count)
            self._made.clear()
            self._wanted.clear()


async def watch_loop() -> None:
    """Tell how late the event loop is, forever."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LAG_EVERY_S
        await asyncio.sleep(_LAG_EVERY_S)
        LAG.observe(max(loop.time() - due, 0))
