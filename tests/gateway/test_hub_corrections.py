"""What sockets are told once it is noticed that events were missed."""

from __future__ import annotations

from typing import Any, Final

import pytest

from services.gateway.dialects import Dialect
from services.gateway.dialects.dashboard import Dashboard
from services.gateway.dialects.events import EventsJson
from services.gateway.dialects.jobs import Jobs
from services.gateway.dialects.media import Media
from services.gateway.dialects.pipeline import Pipeline
from services.gateway.dialects.processing import Processing
from services.gateway.folding import fold, move
from services.gateway.hub import Hub
from services.gateway.state import ProgressState
from shared.events import LifecycleEvent
from tests.gateway.audience import Audience, Sink, settled
from tests.gateway.samples import Told
from tests.shared.waiting import eventually


class Corrected:
    """A hub that hears nothing, and is told what is recorded instead."""

    def __init__(self) -> None:
        self.told: Final = Told()
        self._recorded: ProgressState | None = None
        self.hub: Final = Hub(self._load)
        self._audience: Final = Audience(self.hub)

    async def _load(self, _: str) -> ProgressState | None:
        return self._recorded

    async def watch(self, dialect: Dialect) -> Sink:
        """Let one more socket watch the upload."""
        watcher, sink = self._audience.watcher(dialect=dialect)
        await self.hub.subscribe(watcher, self.told.id)
        return sink

    def record(self, *missed: LifecycleEvent) -> ProgressState:
        """Record events of which the hub hears nothing."""
        for one in missed:
            self._recorded = fold(self._recorded, one) or self._recorded
        assert self._recorded is not None
        return self._recorded

    async def correct(self, *missed: LifecycleEvent) -> None:
        """Have the hub told what has come of the events that it has missed."""
        self.hub.correct(self.record(*missed))
        await settled()


def _kinds(messages: list[dict[str, Any]]) -> list[str]:
    named = ("event_type", "status", "type")
    return [next(one[name] for name in named if name in one) for one in messages]


@pytest.mark.parametrize(
    ("dialect", "end"),
    [
        pytest.param(Dashboard(), ["upload_complete"], id="dashboard"),
        pytest.param(Media(), ["completed"], id="media"),
        pytest.param(Pipeline(), ["processing_completed"], id="pipeline"),
        pytest.param(Processing(), ["completed", "complete"], id="processing"),
        pytest.param(Jobs(), ["completed"], id="jobs"),
    ],
)
async def test_nothing_ends_twice(dialect: Dialect, end: list[str]) -> None:
    """Catches an end told anew because something else was missed, which a client counts as
    another end: what is recorded is told where it says more than was told before.
    """
    corrected = Corrected()
    told = corrected.told
    corrected.record(told.created())
    sink = await corrected.watch(dialect)
    before = len(sink.messages())
    await corrected.correct(told.completed())
    await corrected.correct(told.queued(), told.started(), told.processed(result={"rows": 1}))
    await corrected.correct(told.stored())
    heard = _kinds(sink.messages()[before:])
    assert heard[-len(end) :] == end
    assert len(set(heard)) == len(heard)


class Stalled:
    """A socket that does not read, and is owed the state of the upload besides another's."""

    def __init__(self, corrected: Corrected, dialect: Dialect) -> None:
        self.hub: Final = corrected.hub
        self._audience: Final = Audience(corrected.hub)
        self._watcher, self.sink = self._audience.watcher(dialect=dialect)
        self.sink.stuck = True

    async def join(self, state: ProgressState) -> None:
        """Watch the upload."""
        other = fold(None, Told().created())
        assert other is not None
        for one in (other, state):  # the first one waits below, the second one is owed
            self.hub.join(self._watcher, one, show=True)
            await settled()

    async def read(self) -> list[dict[str, Any]]:
        """Read again; return all messages."""
        self.sink.stuck = False
        await eventually(lambda: not self._audience.flusher.stalled, "it has got all")
        return self.sink.messages()


async def test_who_is_still_owed_a_state_gets_one_end() -> None:
    """Catches an end told twice: by the first state, which had not left, and by what came."""
    corrected = Corrected()
    stalled = Stalled(corrected, Media())
    await stalled.join(corrected.record(corrected.told.created()))
    await corrected.correct(corrected.told.completed())
    heard = [one["type"] for one in await stalled.read()]
    assert heard == ["created", "created", "complete"]


async def test_a_gap_is_as_new_as_what_follows_it() -> None:
    """Catches progress that was dropped for a state which then comes before an older one."""
    corrected = Corrected()
    told = corrected.told
    stalled = Stalled(corrected, EventsJson())
    state = corrected.record(told.created())
    await stalled.join(state)
    before = move(state, told.position(200))
    assert before is not None
    corrected.hub.correct(before)
    corrected.hub.advance(told.position(900))
    _, last = await stalled.read()
    assert (last["type"], last["snapshot"]["bytes_uploaded"]) == ("gap", 900)


async def test_who_can_resume_is_told_of_each_gap() -> None:
    """Catches a gap that is hidden from those who get the events themselves."""
    corrected = Corrected()
    told = corrected.told
    corrected.record(told.created())
    sink = await corrected.watch(EventsJson())
    await corrected.correct(told.completed())
    await corrected.correct(told.stored())
    gaps = [one for one in sink.messages() if one["type"] == "gap"]
    assert [one["snapshot"]["seq"] for one in gaps] == [2, 3]


async def test_an_upload_is_followed_while_its_job_goes_on() -> None:
    """Catches followers that hear no more of a job that takes longer than uploads are kept."""
    corrected = Corrected()
    told = corrected.told
    corrected.record(told.created(), told.completed())
    begun, middle = told.started(), told.processing(50.0)
    state = corrected.record(begun)
    watcher, sink = Audience(corrected.hub).watcher(dialect=Pipeline())
    corrected.hub.follow(watcher, [state])
    corrected.hub.let_go(before=begun.at)
    corrected.hub.advance(middle)
    await settled()
    assert _kinds(sink.messages()) == ["processing_initiated", "processing_progress"]
    corrected.hub.let_go(before=middle.at + 1)
    assert not corrected.hub.watched
