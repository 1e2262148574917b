"""What a socket is owed that does not drain: nothing lost, nothing twice, and few bytes."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.dialects import Dialect
from services.gateway.dialects.dashboard import Dashboard
from services.gateway.dialects.events import EventsJson
from services.gateway.dialects.pipeline import Pipeline
from services.gateway.folding import fold
from services.gateway.hub import Hub
from services.gateway.state import Change, ProgressState
from shared.events import LifecycleEvent
from tests.gateway.audience import Audience, Sink
from tests.gateway.samples import Told
from tests.shared.waiting import eventually

UPLOADS: Final = 1_000
MOST: Final = 128 * 1024
"""Bytes a socket in the process; the kernel has some 40 KiB besides."""
SINCE: Final = "1735732800000-0-7"


async def unknown(upload_id: str) -> ProgressState | None:
    """Know nothing."""
    return None


def recorded(told: Told) -> ProgressState:
    """Return the state of an upload that was just made."""
    state = fold(None, told.created())
    assert state is not None
    return state


class Follower:
    """One socket that follows uploads, and what they have told since it began to."""

    def __init__(self, dialect: Dialect | None = None) -> None:
        self.hub: Final = Hub(unknown, since=lambda _: SINCE)
        self.audience: Final = Audience(self.hub)
        self.watcher, self.sink = self.audience.watcher(dialect=dialect)
        self.events: list[tuple[str, str]] = []

    def tell(self, event: LifecycleEvent) -> None:
        """Tell of an event that the socket must get."""
        self.events.append((event.upload_id, type(event).__name__))
        self.hub.publish(event, f"1735732800000-{len(self.events)}-7")

    async def drained(self, sink: Sink) -> None:
        """Have it read, and all that is owed to it written."""
        sink.stuck = False
        await eventually(lambda: not self.audience.flusher.stalled, "drained")


NAMES: Final = {
    Change.COMPLETED.value: "UploadCompleted",
    Change.STORED.value: "FileStored",
    Change.JOB_QUEUED.value: "JobQueued",
    Change.JOB_STARTED.value: "JobStarted",
    Change.JOB_COMPLETED.value: "JobCompleted",
}
STEPS: Final = ("position", "stall", "completed", "stored", "queued", "started", "job", "done")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(STEPS)), max_size=30))
def test_every_event_once_and_in_order(steps: list[tuple[int, str]]) -> None:
    """Whenever a socket stalls, each event arrives once, behind all that was before it."""
    asyncio.run(_follow_amidst(steps))


async def _follow_amidst(steps: list[tuple[int, str]]) -> None:
    one = Follower()
    uploads = [Told() for _ in range(3)]
    one.sink.stuck = bool(steps) and steps[0][1] == "stall"
    one.hub.follow(one.watcher, map(recorded, uploads))
    offset = 0
    for n, what in steps:
        told, offset = uploads[n], offset + 1_000
        match what:
            case "position":
                one.hub.advance(told.position(offset))
            case "job":
                one.hub.advance(told.processing(min(offset / 1_000, 99)))
            case "stall":
                one.sink.stuck = True
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            case "completed" if told.seq == 1:
                one.tell(told.completed())
            case "stored" if told.seq == 2:
                one.tell(told.stored())
            case "queued" if told.job_seq == 0:
                one.tell(told.queued())
            case "started" if told.job_seq == 1:
                one.tell(told.started())
            case "done" if told.job_seq == 2:
                one.tell(told.processed())
    await asyncio.sleep(0)
    await one.drained(one.sink)
    _judge(one, uploads)


def _judge(one: Follower, uploads: list[Told]) -> None:
    messages = one.sink.messages()
    for told in uploads:
        own = [message for message in messages if message["id"] == told.id]
        assert [m["change"] for m in own].count("snapshot") == 1
        assert own[0]["change"] == "snapshot"
        places = [(m["seq"], m["bytes"]) for m in own if not m["change"].startswith("job")]
        assert places == sorted(places)
        state = one.hub.state_of(told.id)
        assert state is not None
        assert places[-1] == (state.seq, state.bytes_uploaded)
        arrived = [NAMES[m["change"]] for m in own if m["change"] in NAMES]
        assert arrived == [name for upload_id, name in one.events if upload_id == told.id]


async def test_newest_state_when_it_leaves() -> None:
    """Who stalls before his first states gets each once, as new as it is when he reads."""
    one = Follower()
    uploads = [Told() for _ in range(50)]
    one.sink.stuck = True
    one.hub.follow(one.watcher, [recorded(Told())])
    await eventually(lambda: one.audience.flusher.stalled, "it stalls")
    one.hub.follow(one.watcher, map(recorded, uploads))
    for offset in (1_000, 2_000, 3_000):
        for told in uploads:
            one.hub.advance(told.position(offset))
    await one.drained(one.sink)
    found = [(m["id"], m["change"], m["bytes"]) for m in one.sink.messages()]
    assert found[1:] == [(told.id, "snapshot", 3_000) for told in uploads]


async def test_a_state_before_an_event_goes_on_before_it() -> None:
    """A state that waits while its upload completes is resumed from before the completion."""
    one = Follower(EventsJson())
    told, quiet = Told(), Told()
    one.sink.stuck = True
    one.hub.follow(one.watcher, map(recorded, (quiet, told)))
    await asyncio.sleep(0)
    one.tell(told.completed())
    await one.drained(one.sink)
    first, second, (event,) = (m.get("events", m) for m in one.sink.messages())
    assert (first["upload_id"], first["since"]) == (quiet.id, SINCE)
    assert (second["upload_id"], second["since"]) == (told.id, SINCE)
    assert second["snapshot"]["status"] == "uploading"
    assert event["id"] == "1735732800000-1-7"


async def test_nothing_of_an_upload_after_it_is_left() -> None:
    """Who may watch an upload no more gets the state from when he could, and none later."""
    one = Follower()
    told, kept = Told(), Told()
    one.sink.stuck = True
    one.hub.follow(one.watcher, map(recorded, (told, kept)))
    other, seen = one.audience.watcher()
    one.hub.follow(other, ())
    one.hub.join(other, recorded(told), show=False)
    await asyncio.sleep(0)
    one.hub.unsubscribe(one.watcher, told.id)
    one.hub.advance(told.position(1_000))
    await asyncio.sleep(0)
    await one.drained(one.sink)
    found = [(m["id"], m["bytes"]) for m in one.sink.messages()]
    assert found == [(told.id, 0), (kept.id, 0)]
    assert [m["bytes"] for m in seen.messages() if m["id"] == told.id][-1] == 1_000


@pytest.mark.parametrize("begun", [False, True], ids=["from the start", "later"])
@pytest.mark.parametrize(
    "dialect", [Dashboard(), EventsJson(), Pipeline()], ids=lambda one: one.name
)
async def test_a_stalled_follower_is_small(dialect: Dialect, begun: bool) -> None:
    """Uploads without end told to who does not read take no frame each, in any dialect."""
    one = Follower(dialect)
    uploads = [Told() for _ in range(UPLOADS)]
    one.hub.follow(one.watcher, map(recorded, uploads))
    for told in uploads:  # a job that begins is told, whatever else waits
        one.hub.advance(told.processing(1))
    await eventually(lambda: one.watcher.outbound.queued == 0, "it has begun")
    stalled, sink = one.audience.watcher(dialect=dialect)
    states = [state for t in uploads if (state := one.hub.state_of(t.id)) is not None]
    gc.collect()
    tracemalloc.start()
    try:
        sink.stuck = not begun
        one.hub.follow(stalled, states)
        if begun:
            await eventually(lambda: stalled.outbound.queued == 0, "it has begun")
            sink._data.clear()
            sink.stuck = True
        for offset in (1_000, 2_000):
            for told in uploads:
                one.hub.advance(told.position(offset))
                one.hub.advance(told.processing(offset / 100))
            await asyncio.sleep(0)
            await eventually(lambda: one.watcher.outbound.queued == 0, "the other one reads")
            one.sink._data.clear()
        assert stalled.outbound.queued >= UPLOADS
        one.hub.forget(stalled)
        before, _ = tracemalloc.get_traced_memory()
        stalled.outbound.give_up("queue")
        after, _ = tracemalloc.get_traced_memory()
        assert before - after < MOST
    finally:
        tracemalloc.stop()
