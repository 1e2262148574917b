"""Who gets a heartbeat and when, by a clock that the test turns."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, Final

from services.gateway.dialects import Dialect
from services.gateway.dialects.jobs import Jobs
from services.gateway.dialects.media import Media
from services.gateway.dialects.pipeline import Pipeline
from services.gateway.flusher import Flusher
from services.gateway.heartbeat import Heartbeat
from services.gateway.outbound import Outbound
from tests.gateway.audience import Sink, settled

PIPELINE = Pipeline()


class Client:
    """A socket to which something was written at some time."""

    def __init__(self, dialect: Dialect = PIPELINE) -> None:
        self.dialect: Final = dialect
        self.written_at = 0.0
        self.beats: Final[list[bytes]] = []

    def beat(self, framed: bytes) -> None:
        """Take a heartbeat."""
        self.beats.append(framed)

    def message(self) -> dict[str, Any]:
        """Return the last heartbeat, without its frame."""
        found: dict[str, Any] = json.loads(self.beats[-1][2:])
        return found


def heartbeat(*clients: Client) -> Heartbeat:
    """Return a heartbeat of 30 s with these clients."""
    found = Heartbeat(interval_s=30)
    for one in clients:
        found.add(one)
    return found


def test_only_silence_is_broken() -> None:
    """A message puts the heartbeat off, and so does a heartbeat."""
    client = Client()
    beats = heartbeat(client)
    client.written_at = 10
    for now in (30, 39.9):
        beats.look(now)
    assert client.beats == []
    beats.look(40)
    assert client.message()["event_type"] == "heartbeat"
    client.written_at = 40
    beats.look(69)
    assert len(client.beats) == 1
    beats.look(70)
    assert len(client.beats) == 2


def test_each_gets_that_of_his_dialect() -> None:
    """A dialect without heartbeats gets none; who has gone neither."""
    pipeline, jobs, media, gone = Client(), Client(Jobs()), Client(Media()), Client()
    beats = heartbeat(pipeline, jobs, media, gone)
    beats.remove(gone)
    beats.remove(media)
    beats.add(media)
    beats.look(30)
    assert pipeline.message()["event_type"] == "heartbeat"
    assert jobs.message()["type"] == "heartbeat"
    assert media.beats == gone.beats == []


def test_the_same_heartbeat_is_made_once() -> None:
    """All sockets of a dialect share the bytes."""
    one, other = Client(), Client()
    heartbeat(one, other).look(30)
    assert one.beats[0] is other.beats[0]


def test_ten_thousand_that_hear_something_cost_little() -> None:
    """A look at as many sockets as a process has takes a hundredth of the second it is for."""
    beats = heartbeat(*(Client() for _ in range(10_000)))
    took = []
    for _ in range(5):
        started = time.perf_counter()
        beats.look(29)
        took.append(time.perf_counter() - started)
    assert min(took) < 0.01


async def test_the_clock_of_a_socket() -> None:
    """Silence is counted from what was really written, not from what still waits."""
    sink = Sink()
    flusher = Flusher(asyncio.get_running_loop(), stall_limit_s=30)
    out = Outbound(sink, flusher, lambda: None, Media())
    begun = out.written_at
    sink.stuck = True
    out.put(b"\x81\x02{}")
    await settled()
    assert out.written_at == begun
    sink.stuck = False
    await asyncio.sleep(0.1)
    assert out.written_at > begun
