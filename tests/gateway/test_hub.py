"""Who learns of what, and in which order, whatever happens at the same time."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.folding import fold, move
from services.gateway.hub import Hub
from services.gateway.state import Change, ProgressState
from shared.errors import Forbidden, NotFound
from shared.events import FileDeleted, LifecycleEvent, UploadProgress
from tests.gateway.audience import Audience, Plain, Sink, settled
from tests.gateway.samples import EVE, Told, admin, principal


class Records:
    """What is recorded, for a hub to load; reading takes some turns of the loop."""

    def __init__(self) -> None:
        self.states: dict[str, ProgressState] = {}
        self.turns = 1
        self.reads = 0

    async def load(self, upload_id: str) -> ProgressState | None:
        """Read, slowly."""
        self.reads += 1
        for _ in range(self.turns):
            await asyncio.sleep(0)
        return self.states.get(upload_id)

    def record(self, *told: LifecycleEvent | UploadProgress) -> ProgressState:
        """Fold events into what is recorded."""
        for one in told:
            state = self.states.get(one.upload_id)
            if isinstance(one, UploadProgress):
                after = move(state, one) if state is not None else None
            else:
                after = fold(state, one)
            self.states[one.upload_id] = after or self.states[one.upload_id]
        return self.states[told[0].upload_id]


class Stage:
    """A hub with records and an audience."""

    def __init__(self) -> None:
        self.records = Records()
        self.hub = Hub(self.records.load)
        self.audience = Audience(self.hub)
        self.watcher = self.audience.watcher

    def tell(self, *told: LifecycleEvent | UploadProgress) -> None:
        """Give events to the hub, as they come from the streams."""
        for one in told:
            if isinstance(one, UploadProgress):
                self.hub.advance(one)
            else:
                self.hub.publish(one)


def changes(sink: Sink) -> list[tuple[str, int]]:
    """Return what has come, as pairs of change and seq."""
    return [(one["change"], one["seq"]) for one in sink.messages()]


async def test_snapshot_first_then_what_is_newer() -> None:
    """The recorded state comes first, then each event that it does not have yet."""
    stage, told = Stage(), Told()
    stage.records.record(told.created(), told.position(500))
    watcher, sink = stage.watcher()
    assert await stage.hub.subscribe(watcher, told.id)
    stage.tell(told.position(400), told.position(700), told.completed())
    await settled()
    assert changes(sink) == [("snapshot", 1), ("completed", 2)]
    assert sink.messages()[0]["bytes"] == 500


async def test_progress_between_turns() -> None:
    """Positions that come in different turns are each told, if they are further."""
    stage, told = Stage(), Told()
    stage.records.record(told.created())
    watcher, sink = stage.watcher()
    await stage.hub.subscribe(watcher, told.id)
    for offset in (1, 3, 2, 3, 4):
        stage.tell(told.position(offset))
        await settled()
    assert [one["bytes"] for one in sink.messages()] == [0, 1, 3, 4]


async def test_repeated_and_late_events() -> None:
    """An event that comes again, or after a newer one, is not told."""
    stage, told = Stage(), Told()
    first, second, third = told.created(), told.completed(), told.deleted()
    stage.records.record(first)
    watcher, sink = stage.watcher()
    await stage.hub.subscribe(watcher, told.id)
    stage.tell(first, second, second, third, second, third, told.position(5))
    await settled()
    assert changes(sink) == [("snapshot", 1), ("completed", 2), ("deleted", 3)]


async def test_one_encoding_for_all() -> None:
    """An event is encoded once for each dialect, however many sockets speak it."""
    stage, told = Stage(), Told()
    stage.records.record(told.created())
    other = Plain()
    pairs = [stage.watcher() for _ in range(50)]
    pairs += [stage.watcher(dialect=other) for _ in range(50)]
    for watcher, _ in pairs:
        await stage.hub.subscribe(watcher, told.id)
    before = (stage.audience.dialect.encoded, other.encoded)
    stage.tell(told.position(5), told.completed())
    await settled()
    assert (stage.audience.dialect.encoded, other.encoded) == (before[0] + 2, before[1] + 2)
    assert all(changes(sink)[-1] == ("completed", 2) for _, sink in pairs)


async def test_one_encoding_for_all_who_begin() -> None:
    """A state is encoded once for all who begin to watch while it lasts, and no longer."""
    stage, told = Stage(), Told()
    stage.records.record(told.created())
    first, first_sink = stage.watcher()
    await stage.hub.subscribe(first, told.id)
    for _ in range(20):
        await stage.hub.subscribe(stage.watcher()[0], told.id)
    assert stage.audience.dialect.encoded == 1
    stage.tell(told.position(5))
    later, later_sink = stage.watcher()
    await stage.hub.subscribe(later, told.id)
    await settled()
    assert stage.audience.dialect.encoded == 3
    assert [one["bytes"] for one in later_sink.messages()] == [5]
    assert [one["bytes"] for one in first_sink.messages()] == [0, 5]


async def test_who_is_too_slow_does_not_disturb_others() -> None:
    """A socket that is given up amid a delivery leaves at once; all others get the event."""
    stage, told = Stage(), Told()
    stage.records.record(told.created())
    pairs = [stage.watcher() for _ in range(3)] + [stage.watcher(dialect=Plain())]
    for watcher, _ in pairs:
        await stage.hub.subscribe(watcher, told.id)
    await settled()
    for _, sink in (pairs[1], pairs[3]):
        sink.stuck = True
    stage.tell(told.position(1))
    await settled()
    for _ in range(1100):
        stage.tell(told.created())
    await settled()
    assert [len(watcher.topics) for watcher, _ in pairs] == [1, 0, 1, 0]
    assert [len(changes(sink)) for _, sink in (pairs[0], pairs[2])] == [1102, 1102]


@settings(max_examples=300)
@given(st.data())
def test_no_seam_between_snapshot_and_events(data: st.DataObject) -> None:
    """Events published at any await point of a subscription arrive, each once, in order."""
    told = Told()
    story: list[LifecycleEvent | UploadProgress] = [told.created(), told.position(10)]
    story += [told.position(20), told.completed(), told.stored(), told.deleted()]
    story = story[: data.draw(st.integers(1, len(story)), "length of the story")]
    turns = data.draw(st.integers(0, 4), "turns that reading takes")
    recorded = data.draw(st.integers(0, len(story)), "events that are recorded")
    times = st.lists(st.integers(0, turns + 3), min_size=len(story), max_size=len(story))
    steps = sorted(data.draw(times, "when each is published"))
    # What was told before anybody asked is known to the relay, and so to who loads.
    recorded = max(recorded, steps.count(0))
    asyncio.run(_subscribe_amidst(story, turns, recorded, steps))


async def _subscribe_amidst(
    story: list[LifecycleEvent | UploadProgress], turns: int, recorded: int, steps: list[int]
) -> None:
    stage = Stage()
    stage.records.turns = turns
    if recorded:
        stage.records.record(*story[:recorded])
    watcher, sink = stage.watcher()
    subscribing = asyncio.ensure_future(stage.hub.subscribe(watcher, story[0].upload_id))
    for step in range(max(steps) + 1):
        stage.tell(*(one for one, at in zip(story, steps, strict=True) if at == step))
        await asyncio.sleep(0)
    try:
        await asyncio.wait_for(subscribing, 5)
    except NotFound:
        assert isinstance(story[-1], FileDeleted)
        assert not stage.hub.watched
        return
    await settled()
    messages = sink.messages()
    newest = [one for one in story if not isinstance(one, UploadProgress)][-1]
    assert messages[0]["change"] == "snapshot"
    assert all(one["change"] != "snapshot" for one in messages[1:])
    told_of = [one["seq"] for one in messages if one["change"] != "progress"]
    assert told_of == list(range(told_of[0], newest.seq + 1))
    sizes = [one["bytes"] for one in messages]
    assert sizes == sorted(sizes)
    assert sizes[-1] == max(getattr(one, "offset", 0) for one in story)


async def test_somebody_elses_upload() -> None:
    """A stranger is refused, and so is a namesake of another tenant; an admin is not."""
    stage, told = Stage(), Told()
    stage.records.record(told.created())
    for caller in (EVE, principal("ada", "other"), admin("other")):
        watcher, sink = stage.watcher(caller)
        with pytest.raises(Forbidden, match="Access denied to this upload"):
            await stage.hub.subscribe(watcher, told.id)
        stage.tell(told.position(5))
        await settled()
        assert sink.messages() == []
    assert not stage.hub.watched
    watcher, sink = stage.watcher(admin())
    assert await stage.hub.subscribe(watcher, told.id)


async def test_unknown_id() -> None:
    """An id that nobody knows is waited for, two seconds long, and then unknown."""
    stage = Stage()
    watcher, _ = stage.watcher()
    started = time.monotonic()
    with pytest.raises(NotFound):
        await stage.hub.subscribe(watcher, "nobody-knows-me")
    assert 1.9 < time.monotonic() - started < 10
    assert stage.records.reads < 20
    assert not stage.hub.watched


@pytest.mark.parametrize("text", ["", "user:ada", "a/b", "x" * 129, "ä", "a\n", "a b", "\x00"])
async def test_what_cannot_be_an_id(text: str) -> None:
    """Text that can be no id is unknown at once; nothing is read for it."""
    stage = Stage()
    watcher, _ = stage.watcher()
    with pytest.raises(NotFound):
        await stage.hub.subscribe(watcher, text)
    with pytest.raises(NotFound):
        await stage.hub.find(text)
    assert stage.records.reads == 0
    assert not stage.hub.watched


async def test_created_while_waited_for() -> None:
    """The first event of an id that is waited for grants the subscription at once."""
    stage, told = Stage(), Told()
    watcher, sink = stage.watcher()
    subscribing = asyncio.ensure_future(stage.hub.subscribe(watcher, told.id))
    await asyncio.sleep(0.05)
    reads = stage.records.reads
    stage.tell(told.created(), told.position(7))
    assert await asyncio.wait_for(subscribing, 5)
    assert stage.records.reads <= reads + 1
    await settled()
    assert changes(sink) == [("snapshot", 1)]
    assert sink.messages()[0]["bytes"] == 7


async def test_recorded_while_waited_for() -> None:
    """An upload whose events came by before is found as soon as it is recorded."""
    stage, told = Stage(), Told()
    watcher, sink = stage.watcher()
    subscribing = asyncio.ensure_future(stage.hub.subscribe(watcher, told.id))
    await asyncio.sleep(0.05)
    stage.records.record(told.created())
    assert await asyncio.wait_for(subscribing, 5)
    await settled()
    assert changes(sink) == [("snapshot", 1)]


async def test_records_that_cannot_be_read() -> None:
    """What keeps a state from being read reaches who asks, and leaves nothing behind."""

    async def load(_upload_id: str) -> ProgressState | None:
        raise ConnectionError("away")

    hub = Hub(load)
    watcher, _ = Audience(hub).watcher()
    with pytest.raises(ConnectionError):
        await hub.subscribe(watcher, "one")
    with pytest.raises(ConnectionError):
        await hub.find("one")
    assert not hub.watched
    assert not watcher.asked


async def test_watching_twice() -> None:
    """A second subscription of a socket to one upload changes nothing."""
    stage, told = Stage(), Told()
    stage.records.record(told.created())
    watcher, sink = stage.watcher()
    granted = await asyncio.gather(*(stage.hub.subscribe(watcher, told.id) for _ in range(3)))
    stage.tell(told.completed())
    await settled()
    assert granted == [True, True, True]
    assert changes(sink) == [("snapshot", 1), ("completed", 2)]


async def test_unsubscribe() -> None:
    """After it nothing comes, and nothing is kept."""
    stage, told = Stage(), Told()
    stage.records.record(told.created())
    watcher, sink = stage.watcher()
    await stage.hub.subscribe(watcher, told.id)
    stage.hub.unsubscribe(watcher, told.id)
    stage.hub.unsubscribe(watcher, told.id)
    stage.hub.unsubscribe(watcher, "never-asked-for")
    stage.tell(told.completed())
    await settled()
    assert changes(sink) == [("snapshot", 1)]
    assert not stage.hub.watched


@pytest.mark.parametrize("how", ["unsubscribe", "drop"])
async def test_change_of_mind_while_waiting(how: str) -> None:
    """Who leaves before his subscription is granted gets nothing, and nothing is kept."""
    stage, told = Stage(), Told()
    watcher, sink = stage.watcher()
    subscribing = asyncio.ensure_future(stage.hub.subscribe(watcher, told.id))
    await asyncio.sleep(0.05)
    if how == "drop":
        stage.hub.drop(watcher)
    else:
        stage.hub.unsubscribe(watcher, told.id)
    stage.tell(told.created())
    assert not await asyncio.wait_for(subscribing, 5)
    await settled()
    assert sink.messages() == []
    assert not stage.hub.watched


async def test_followers() -> None:
    """Who follows gets his sessions as they are, then all news of them, and nobody else's."""
    stage = Stage()
    old, new = Told(), Told()
    watcher, sink = stage.watcher()
    stage.hub.follow(watcher, [stage.records.record(old.created(), old.position(5))])
    for stranger in (EVE, principal("ada", "other")):
        stage.tell(Told(owner=stranger).created())
    stage.tell(new.created())
    await settled()
    stage.tell(new.position(9), old.completed(), old.completed())
    await settled()
    told = [(one["id"] == new.id, one["change"], one["bytes"]) for one in sink.messages()]
    assert told == [
        (False, "snapshot", 5),
        (True, "snapshot", 0),
        (True, "progress", 9),
        (False, "completed", 2_250_000),
        (False, "completed", 2_250_000),
    ]


async def test_first_news_of_an_upload_are_never_silent() -> None:
    """A follower whose dialect says nothing of an event still learns of the upload by it."""
    stage, told = Stage(), Told()
    watcher, sink = stage.watcher(dialect=Plain(silent=frozenset({Change.STORED})))
    stage.hub.follow(watcher, [])
    told.created(), told.completed()
    stage.tell(told.stored(), told.deleted())
    await settled()
    assert changes(sink) == [("snapshot", 3), ("deleted", 4)]


async def test_declined_uploads_are_not_followed() -> None:
    """A follower that unsubscribes from an upload gets no more of it, until it subscribes."""
    stage, told = Stage(), Told()
    watcher, sink = stage.watcher()
    stage.hub.follow(watcher, [stage.records.record(told.created())])
    stage.hub.unsubscribe(watcher, told.id)
    stage.tell(told.position(5), told.completed(), told.deleted())
    await settled()
    assert changes(sink) == [("snapshot", 1)]
    assert not stage.hub.watched


async def test_declined_and_asked_for_again() -> None:
    """A subscription takes a refusal back."""
    stage, told = Stage(), Told()
    watcher, sink = stage.watcher()
    stage.hub.follow(watcher, [stage.records.record(told.created())])
    stage.hub.unsubscribe(watcher, told.id)
    assert await stage.hub.subscribe(watcher, told.id)
    stage.tell(told.completed())
    await settled()
    assert changes(sink) == [("snapshot", 1), ("snapshot", 1), ("completed", 2)]


async def test_drop_leaves_nothing_behind() -> None:
    """A socket that goes takes its topics and its following with it, and nobody else's."""
    stage = Stage()
    told, shared = Told(), Told()
    states = [stage.records.record(one.created()) for one in (told, shared)]
    going, _ = stage.watcher()
    staying, sink = stage.watcher()
    stage.hub.follow(going, states)
    await stage.hub.subscribe(staying, shared.id)
    stage.hub.drop(going)
    stage.hub.drop(going)
    assert list(stage.hub.watched) == [shared.id]
    stage.tell(Told().created(), shared.completed())
    await settled()
    assert changes(sink) == [("snapshot", 1), ("completed", 2)]
    stage.hub.drop(staying)
    assert not stage.hub.watched
    assert not going.topics
    assert not staying.topics
    assert not stage.hub._followers


async def test_who_has_gone_joins_nothing() -> None:
    """What was being looked up for a socket as it went makes it no follower, nor a watcher."""
    stage, told = Stage(), Told()
    watcher, sink = stage.watcher()
    stage.hub.forget(watcher)
    stage.hub.follow(watcher, [])
    assert not stage.hub.followers
    stage.hub.join(watcher, Stage().records.record(Told().created()), show=True)
    assert not stage.hub.watched
    stage.tell(told.created())
    subscribing = asyncio.ensure_future(stage.hub.subscribe(watcher, told.id))
    await asyncio.sleep(0.05)
    stage.tell(told.created())
    assert not await asyncio.wait_for(subscribing, 5)
    await settled()
    assert sink.messages() == []
    assert not stage.hub.watched


async def test_deleted() -> None:
    """A deletion is told to who watches; who comes later is told that there is nothing."""
    stage, told = Stage(), Told()
    stage.records.record(told.created(), told.completed())
    watcher, sink = stage.watcher()
    await stage.hub.subscribe(watcher, told.id)
    deleted = told.deleted()
    stage.tell(deleted)
    stage.records.record(deleted)
    late, nothing = stage.watcher()
    with pytest.raises(NotFound):
        await stage.hub.subscribe(late, told.id)
    with pytest.raises(NotFound):
        await stage.hub.find(told.id)
    stage.hub.drop(watcher)
    with pytest.raises(NotFound):
        await stage.hub.find(told.id)
    await settled()
    assert changes(sink) == [("snapshot", 2), ("deleted", 3)]
    assert nothing.messages() == []


async def test_find_swallows_nothing() -> None:
    """Reading a state that is ahead of the events takes no event from who watches."""
    stage, told = Stage(), Told()
    created, completed = told.created(), told.completed()
    stage.records.record(created)
    stage.records.turns = 3
    watcher, sink = stage.watcher()
    subscribing = asyncio.ensure_future(stage.hub.subscribe(watcher, told.id))
    await asyncio.sleep(0)
    stage.records.turns = 6
    finding = asyncio.ensure_future(stage.hub.find(told.id))
    await subscribing
    stage.records.record(completed)
    found = await finding
    assert found.status == "completed"
    stage.tell(completed)
    await settled()
    assert changes(sink) == [("snapshot", 1), ("completed", 2)]


async def test_find_of_a_watched_upload_reads_nothing() -> None:
    """What is watched here is current here."""
    stage, told = Stage(), Told()
    stage.records.record(told.created())
    watcher, _ = stage.watcher()
    await stage.hub.subscribe(watcher, told.id)
    stage.tell(told.position(5))
    reads = stage.records.reads
    assert (await stage.hub.find(told.id)).bytes_uploaded == 5
    assert stage.records.reads == reads


async def test_correct() -> None:
    """After missed events who watches gets the recorded state, if it is ahead, and once."""
    stage, told = Stage(), Told()
    stage.records.record(told.created())
    watcher, sink = stage.watcher()
    await stage.hub.subscribe(watcher, told.id)
    stage.tell(told.position(900))
    await settled()
    behind = stage.records.record(told.position(500))
    stage.hub.correct(behind)
    ahead = stage.records.record(told.failed())
    assert ahead.bytes_uploaded == 500
    stage.hub.correct(ahead)
    stage.hub.correct(ahead)
    stage.hub.correct(Records().record(Told().created()))
    await settled()
    seen = [(one["change"], one["bytes"]) for one in sink.messages()]
    assert seen == [("snapshot", 0), ("progress", 900), ("snapshot", 900)]


async def test_unfinished() -> None:
    """Uploads whose upload or job may go on can be read again, all or the silent ones."""
    stage = Stage()
    quiet, busy, failed, whole, begun, over = (Told() for _ in range(6))
    for one in (quiet, busy, failed, whole, begun, over):
        stage.records.record(one.created())
        watcher, _ = stage.watcher()
        await stage.hub.subscribe(watcher, one.id)
    newest, begins = busy.position(5), begun.queued()
    stage.tell(newest, failed.failed(), whole.completed(), begun.completed(), begins)
    stage.tell(over.completed(), over.processed())
    assert set(stage.hub.unfinished()) == {quiet.id, busy.id, whole.id, begun.id}
    assert stage.hub.unfinished(before=newest.at) == [quiet.id]
    assert set(stage.hub.unfinished(before=begins.at)) == {quiet.id, busy.id}
    assert set(stage.hub.unfinished(before=begins.at + 1)) == {quiet.id, busy.id, begun.id}


async def test_followers_let_finished_uploads_go() -> None:
    """Uploads that were over long ago are not followed for ever; subscriptions stay."""
    stage = Stage()
    going, kept, open_one = Told(), Told(), Told()
    follower, _ = stage.watcher()
    subscriber, _ = stage.watcher()
    states = [stage.records.record(one.created()) for one in (going, kept, open_one)]
    stage.hub.follow(follower, states)
    await stage.hub.subscribe(subscriber, kept.id)
    end = going.completed()
    stage.tell(end, kept.completed())
    stage.hub.let_go(before=end.at)
    assert len(stage.hub.watched) == 3
    stage.hub.let_go(before=end.at + 1)
    assert set(stage.hub.watched) == {kept.id, open_one.id}
    assert {one.upload_id for one in follower.topics} == {open_one.id}
    assert {one.upload_id for one in subscriber.topics} == {kept.id}


async def test_recheck() -> None:
    """When a caller's rights shrink, what he may not see any more is taken from him."""
    stage = Stage()
    own, others = Told(owner=principal("root")), Told()
    for one in (own, others):
        stage.records.record(one.created())
    watcher, sink = stage.watcher(admin())
    for one in (own, others):
        await stage.hub.subscribe(watcher, one.id)
    watcher.caller = principal("root")
    assert stage.hub.recheck(watcher) == [others.id]
    stage.tell(own.completed(), others.completed())
    await settled()
    finished = [one["id"] for one in sink.messages() if one["change"] == "completed"]
    assert finished == [own.id]
    assert list(stage.hub.watched) == [own.id]


async def test_many_uploads_and_watchers_at_once() -> None:
    """Hundreds of subscriptions and their events, mixed, end with everybody up to date."""
    stage = Stage()
    uploads = [Told() for _ in range(10)]
    for one in uploads:
        stage.records.record(one.created())
    pairs: list[Any] = [stage.watcher() for _ in range(30)]

    async def busy(one: Told) -> None:
        for offset in range(1, 30):
            stage.tell(one.position(offset))
            await asyncio.sleep(0)
        stage.tell(one.completed())

    async with asyncio.TaskGroup() as group:
        for one in uploads:
            group.create_task(busy(one))
            for watcher, _ in pairs:
                group.create_task(stage.hub.subscribe(watcher, one.id))
    await settled()
    for _, sink in pairs:
        for one in uploads:
            seen = [m for m in sink.messages() if m["id"] == one.id]
            assert seen[0]["change"] == "snapshot"
            assert [m["change"] for m in seen].count("snapshot") == 1
            assert seen[-1]["seq"] == 2
            assert [m["bytes"] for m in seen] == sorted(m["bytes"] for m in seen)
