"""What a socket learns of a job while it reads slowly, or not at all for a while."""

from __future__ import annotations

from typing import Any, Final

from services.gateway.dialects import Dialect
from services.gateway.dialects.jobs import Jobs
from services.gateway.dialects.processing import Processing
from services.gateway.folding import fold
from services.gateway.hub import Hub
from services.gateway.state import ProgressState
from shared.events import JobProgress, LifecycleEvent
from tests.gateway.audience import Audience, settled
from tests.gateway.samples import Told
from tests.shared.waiting import eventually


class Watched:
    """A hub, and a socket in a dialect that watches an upload whose bytes are there."""

    def __init__(self, dialect: Dialect) -> None:
        self.told: Final = Told()
        self._state: ProgressState | None = None
        for event in (self.told.created(), self.told.completed()):
            self._state = fold(self._state, event)
        self.hub: Final = Hub(self._load)
        self._audience: Final = Audience(self.hub)
        self._watcher, self._sink = self._audience.watcher(dialect=dialect)

    async def _load(self, _: str) -> ProgressState | None:
        return self._state

    async def begin(self) -> None:
        """Watch."""
        await self.hub.subscribe(self._watcher, self.told.id)
        await settled()

    async def heard_after(self, *told: LifecycleEvent | JobProgress) -> list[dict[str, Any]]:
        """Return what somebody finds who reads on after all that was told."""
        before = len(self._sink.messages())
        self._sink.stuck = True
        for one in told:
            if isinstance(one, JobProgress):
                self.hub.advance(one)
            else:
                self.hub.publish(one)
            await settled()
        self._sink.stuck = False
        await eventually(lambda: not self._audience.flusher.stalled, "all is read")
        return self._sink.messages()[before:]


async def test_a_stage_is_never_conflated() -> None:
    """Of numbers only the newest is kept for a slow reader; each stage reaches it, in order."""
    watched = Watched(Processing())
    await watched.begin()
    told = watched.told
    news = (
        told.started(stage="validating"),
        told.processing(10.0),
        told.processing(20.0),
        told.processing(30.0, stage="rows"),
        told.processing(40.0),
        told.processing(50.0),
        told.processing(60.0, stage="saving"),
        told.processing(70.0),
        told.processing(80.0),
    )
    heard = await watched.heard_after(*news)
    shown = [(one["type"], one["stage"], one.get("percent")) for one in heard]
    assert shown == [
        ("status", "validating", None),
        ("status", "rows", None),
        ("progress", "rows", 30.0),
        ("status", "saving", None),
        ("progress", "saving", 60.0),
        ("progress", "saving", 80.0),
    ]


async def test_two_messages_of_one_change_stay_together() -> None:
    """The last status and the results come in that order, with nothing between them."""
    watched = Watched(Processing())
    await watched.begin()
    told = watched.told
    heard = await watched.heard_after(
        told.started(), told.processing(99.0), told.processed(result={"rows": 1})
    )
    assert [(one["type"], one.get("status")) for one in heard] == [
        ("status", "processing"),
        ("status", "completed"),
        ("complete", None),
    ]


async def test_what_ends_the_upload_ends_its_job() -> None:
    """A file that is deleted before it was processed leaves nobody waiting for a result."""
    watched = Watched(Jobs())
    await watched.begin()
    told = watched.told
    heard = await watched.heard_after(told.stored(), told.queued(), told.deleted())
    assert [one["status"] for one in heard] == ["queued", "failed"]
