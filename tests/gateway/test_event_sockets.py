"""Dialect *events* on a real socket: what is watched, what is told again, what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from shared.identity import Principal
from shared.sidecar import new_id
from tests.gateway.conftest import bearer, token_of
from tests.gateway.feed import Feed
from tests.gateway.samples import EVE, Told
from tests.processes import ServiceProcess

LIMIT_S = 10.0
JSON = "events.v1.json"
MSGPACK = "events.v1.msgpack"
ANSWERS = {
    "subscribe": "subscribed",
    "unsubscribe": "unsubscribed",
    "authenticate": "authenticated",
    "refresh": "refreshed",
    "ping": "pong",
}


class Peer:
    """A client; what comes in one frame it takes apart."""

    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws
        self._packed = ws.subprotocol == MSGPACK
        self._waiting: list[dict[str, Any]] = []

    async def say(self, kind: str, **more: Any) -> None:
        message = {"type": kind, **more}
        packed = msgspec.msgpack.encode(message)
        await self.ws.send(packed if self._packed else json.dumps(message))

    async def frame(self) -> dict[str, Any]:
        async with asyncio.timeout(LIMIT_S):
            data = await self.ws.recv()
        assert isinstance(data, bytes) == self._packed
        if isinstance(data, bytes):
            found: dict[str, Any] = msgspec.msgpack.decode(data)
        else:
            found = json.loads(data)
        return found

    async def hear(self) -> dict[str, Any]:
        """Return the next event or answer."""
        if not self._waiting:
            message = await self.frame()
            self._waiting = message.get("events", [message])
        return self._waiting.pop(0)

    async def ask(self, kind: str, **more: Any) -> list[dict[str, Any]]:
        """Say it; return what comes until all of it is answered."""
        await self.say(kind, **more)
        left, found = set(more.get("ids", ())), []
        while True:
            found.append(await self.hear())
            if found[-1]["type"] in {ANSWERS[kind], "error"}:
                left -= {*found[-1].get("ids", ()), found[-1].get("id")}
                if not left or not {"ids", "id"} & found[-1].keys():
                    return found


@asynccontextmanager
async def dialled(
    gateway: ServiceProcess, caller: Principal, protocol: str | None = None
) -> AsyncIterator[Peer]:
    """Yield a client of somebody."""
    url = f"ws://127.0.0.1:{gateway.port}/v1/events/ws"
    offered = [Subprotocol(protocol)] if protocol else None
    async with connect(url, additional_headers=bearer(caller), subprotocols=offered) as ws:
        yield Peer(ws)


def types(messages: list[dict[str, Any]]) -> list[str]:
    return [one["type"] for one in messages]


@pytest.mark.parametrize("protocol", [None, JSON, MSGPACK])
async def test_watch(
    gateway: ServiceProcess, feed: Feed, caller: Principal, protocol: str | None
) -> None:
    """State first, then each event with its id, positions without; in both encodings."""
    told = Told(owner=caller)
    await feed.tell(told.created())
    async with dialled(gateway, caller, protocol) as peer:
        snapshot, subscribed = await peer.ask("subscribe", ids=[told.id])
        assert (snapshot["type"], snapshot["upload_id"]) == ("snapshot", told.id)
        assert snapshot["snapshot"]["status"] == "uploading"
        assert subscribed == {"type": "subscribed", "ids": [told.id]}
        await feed.tell(told.position(1000))
        progress = await peer.hear()
        assert (progress["type"], progress["offset"]) == ("upload.progress", 1000)
        assert "id" not in progress
        (entry,) = await feed.tell(told.completed())
        done = await peer.hear()
        assert (done["type"], done["upload_id"]) == ("upload.completed", told.id)
        assert done["id"].startswith(entry.decode() + "-")


async def test_resume(gateway: ServiceProcess, feed: Feed, caller: Principal) -> None:
    """What was told meanwhile comes again, each once, before what is new."""
    told = Told(owner=caller)
    await feed.tell(told.created())
    async with dialled(gateway, caller) as peer:
        await peer.ask("subscribe", ids=[told.id])
        await feed.tell(told.completed())
        last = (await peer.hear())["id"]
    await feed.tell(told.stored(), told.queued())
    async with dialled(gateway, caller) as peer:
        again = await peer.ask("subscribe", ids=[told.id], since=last)
        assert types(again) == ["file.stored", "job.queued", "subscribed"]
        await feed.tell(told.started())
        assert (await peer.hear())["type"] == "job.started"
    async with dialled(gateway, caller) as peer:
        again = await peer.ask("subscribe", ids=[told.id], since={told.id: again[0]["id"]})
        assert types(again) == ["job.queued", "job.started", "subscribed"]


async def test_resume_by_one_id(gateway: ServiceProcess, feed: Feed, caller: Principal) -> None:
    """One id tells for all uploads what is missing; it comes in the order of its telling."""
    uploads = [Told(owner=caller) for _ in range(5)]
    ids = [one.id for one in uploads]
    await feed.tell(*(one.created() for one in uploads))
    async with dialled(gateway, caller) as peer:
        await peer.ask("subscribe", ids=ids)
        await feed.tell(*(one.completed() for one in uploads))
        last = [await peer.hear() for _ in uploads][-1]
    for told in (uploads[3], uploads[0], uploads[4]):
        await feed.tell(told.stored())
        await asyncio.sleep(0.002)  # or nothing orders them
    async with dialled(gateway, caller) as peer:
        again = await peer.ask("subscribe", ids=ids, since=last["id"])
        stored = [one["upload_id"] for one in again if one["type"] == "file.stored"]
        assert stored == [uploads[3].id, uploads[0].id, uploads[4].id]


async def test_resume_following(gateway: ServiceProcess, feed: Feed, caller: Principal) -> None:
    """Who follows gets the events of what is new, and later those that were missed of all."""
    old, new, unseen = (Told(owner=caller) for _ in range(3))
    await feed.tell(old.created(), Told(owner=EVE).created())
    async with dialled(gateway, caller) as peer:
        snapshot, answer = await peer.ask("subscribe")
        assert (snapshot["type"], answer["ids"]) == ("snapshot", [old.id])
        await feed.tell(new.created())
        created = await peer.hear()
        assert (created["type"], created["upload_id"]) == ("upload.created", new.id)
    await feed.tell(unseen.created(), new.completed(), old.completed(), old.deleted())
    async with dialled(gateway, caller) as peer:
        *again, answer = await peer.ask("subscribe", since=created["id"])
        found = {(one["type"], one["upload_id"]) for one in again}
        assert found == {
            ("upload.created", unseen.id),
            ("upload.completed", new.id),
            ("upload.completed", old.id),
            ("file.deleted", old.id),
        }
        assert len(again) == len(found)
        assert set(answer["ids"]) == {new.id, unseen.id}


async def test_end_is_told_of_what_is_gone(
    gateway: ServiceProcess, feed: Feed, caller: Principal
) -> None:
    """Who was away when the file was deleted is told so; who comes anew finds nothing."""
    told = Told(owner=caller)
    await feed.tell(told.created())
    async with dialled(gateway, caller) as peer:
        await peer.ask("subscribe", ids=[told.id])
        await feed.tell(told.completed())
        last = (await peer.hear())["id"]
    await feed.tell(told.deleted())
    async with dialled(gateway, caller) as peer:
        again = await peer.ask("subscribe", ids=[told.id], since=last)
        assert types(again) == ["file.deleted", "subscribed"]
    async with dialled(gateway, caller) as peer:
        (error,) = await peer.ask("subscribe", ids=[told.id])
        assert error == {"type": "error", "id": told.id, "message": "There is no such upload."}


async def test_gap(gateway: ServiceProcess, feed: Feed, caller: Principal) -> None:
    """Where the log is gone, the state says so, once; and then come events again."""
    told, kept = Told(owner=caller), Told(owner=caller)
    await feed.tell(told.created(), kept.created())
    async with dialled(gateway, caller) as peer:
        await peer.ask("subscribe", ids=[told.id, kept.id])
        await feed.tell(told.completed())
        last = (await peer.hear())["id"]
    # More than the gateway remembers of one upload, or its log keeps.
    for _ in range(140):
        await feed.tell(told.started())
    await feed.tell(kept.completed())
    async with dialled(gateway, caller) as peer:
        missed, gap, answer = await peer.ask("subscribe", ids=[told.id, kept.id], since=last)
        assert (missed["type"], missed["upload_id"]) == ("upload.completed", kept.id)
        assert (gap["type"], gap["upload_id"]) == ("gap", told.id)
        assert gap["snapshot"]["job_seq"] == 140
        assert set(answer["ids"]) == {told.id, kept.id}
        await feed.tell(told.processed())
        assert (await peer.hear())["type"] == "job.completed"
    async with dialled(gateway, caller) as peer:
        again = await peer.ask("subscribe", ids=[told.id], since=gap["since"])
        assert types(again) == ["job.completed", "subscribed"]


async def test_other_names(gateway: ServiceProcess, feed: Feed, caller: Principal) -> None:
    """Uploads go by their jobs and by the caller's own names, also when they are let go."""
    told = Told(owner=caller, session_id=f"mine-{new_id()}")
    await feed.tell(told.created())
    for name in (told.facts.session_id, told.facts.job_id):
        async with dialled(gateway, caller) as peer:
            snapshot, answer = await peer.ask("subscribe", ids=[name])
            assert snapshot["upload_id"] == told.id
            assert answer["ids"] == [name]
            assert (await peer.ask("unsubscribe", ids=[name]))[-1]["ids"] == [name]
            await feed.tell(told.position(1000))
            assert await peer.ask("ping", data=1) == [{"type": "pong", "data": 1}]


async def test_names_are_forgotten(
    gateway: ServiceProcess, feed: Feed, caller: Principal
) -> None:
    """Catches sockets that grow with every job and session that was ever watched on them: a
    name stands for something only as long as that is watched by it.
    """
    told = Told(owner=caller)
    await feed.tell(told.created())
    name = told.facts.job_id
    async with dialled(gateway, caller) as peer:
        for all_or_one in ({"ids": [name]}, {}):
            await peer.ask("subscribe", ids=[name])
            await peer.ask("unsubscribe", **all_or_one)
        await peer.ask("subscribe", ids=[told.id])
        await peer.ask("unsubscribe", ids=[name])
        await feed.tell(told.completed())
        assert (await peer.hear())["type"] == "upload.completed"


async def test_some_are_refused(gateway: ServiceProcess, feed: Feed, caller: Principal) -> None:
    """Each that cannot be watched is refused by name; nothing else waits for it."""
    mine, foreign, late = Told(owner=caller), Told(owner=EVE), Told(owner=caller)
    unknown = new_id()
    await feed.tell(mine.created(), foreign.created())
    async with dialled(gateway, caller) as peer:
        await peer.say("subscribe", ids=[mine.id, foreign.id, unknown, late.id, "a:b"])
        first = [await peer.hear() for _ in range(4)]
        assert types(first) == ["snapshot", "subscribed", "error", "error"]
        assert first[1]["ids"] == [mine.id]
        assert {one["id"] for one in first[2:]} == {foreign.id, "a:b"}
        await feed.tell(late.created())
        assert types([await peer.hear(), await peer.hear()]) == ["snapshot", "subscribed"]
        assert (await peer.hear())["id"] == unknown


async def test_no_id(gateway: ServiceProcess, feed: Feed, caller: Principal) -> None:
    """What is no id of an event is refused, and nothing is watched."""
    told = Told(owner=caller)
    await feed.tell(told.created())
    async with dialled(gateway, caller) as peer:
        (error,) = await peer.ask("subscribe", ids=[told.id], since="tomorrow")
        assert "since" in error["message"]
        await feed.tell(told.completed())
        assert await peer.ask("ping") == [{"type": "pong"}]


async def test_id_of_the_future(gateway: ServiceProcess, feed: Feed, caller: Principal) -> None:
    """Catches clients that are turned away because a clock goes wrong, or Redis has lost what
    it told: each upload's state is sent, and what happens then.
    """
    told = [Told(owner=caller) for _ in range(4)]  # on several streams, mostly
    await feed.tell(*(one.created() for one in told))
    ids = [one.id for one in told]
    async with dialled(gateway, caller) as peer:
        *gaps, subscribed = await peer.ask("subscribe", ids=ids, since="99999999999999-0-1")
        assert types(gaps) == ["gap"] * 4
        assert set(subscribed["ids"]) == set(ids)
        await feed.tell(told[0].completed())
        assert (await peer.hear())["type"] == "upload.completed"


async def test_leave_all(gateway: ServiceProcess, feed: Feed, caller: Principal) -> None:
    """Who leaves all gets nothing more, also of what is new, and may come again."""
    told = Told(owner=caller)
    await feed.tell(told.created())
    async with dialled(gateway, caller) as peer:
        await peer.ask("subscribe")
        assert await peer.ask("unsubscribe") == [{"type": "unsubscribed", "ids": []}]
        await feed.tell(told.completed(), Told(owner=caller).created())
        assert await peer.ask("ping") == [{"type": "pong"}]
        assert len(await peer.ask("subscribe")) == 3


async def test_refresh(gateway: ServiceProcess, caller: Principal) -> None:
    """A newer token is good for longer, and the answer says until when."""
    async with dialled(gateway, caller) as peer:
        token = token_of(caller, lives_s=600, exp=4_102_444_800)
        (answer,) = await peer.ask("refresh", token=token)
        assert answer == {"type": "refreshed", "expires_at": "2100-01-01T00:00:00Z"}
        assert await peer.ask("authenticate", token=token) == [
            {"type": "authenticated", "message": "Authentication successful"}
        ]


async def test_much_was_missed(gateway: ServiceProcess, feed: Feed, caller: Principal) -> None:
    """More than goes out at once comes in parts, with what is told meanwhile, each once."""
    uploads = [Told(owner=caller) for _ in range(30)]
    ids = [one.id for one in uploads]
    await feed.tell(*(one.created() for one in uploads))
    async with dialled(gateway, caller) as peer:
        await peer.ask("subscribe", ids=ids)
        await feed.tell(uploads[0].completed())
        last = (await peer.hear())["id"]
    for _ in range(40):
        await feed.tell(*(one.started(message="." * 300) for one in uploads))
    async with dialled(gateway, caller) as peer:
        await peer.say("subscribe", ids=ids, since=last)
        await feed.tell(*(one.processed() for one in uploads))
        found: list[dict[str, Any]] = []
        while sum(one["type"] == "job.completed" for one in found) < len(ids):
            found.append(await peer.hear())
        counters = [(o["upload_id"], o["seq"]) for o in found if o["type"].startswith("job.")]
        assert len(counters) == len(set(counters)) == 41 * len(ids)
        for one in ids:
            assert [seq for name, seq in counters if name == one] == list(range(1, 42))
