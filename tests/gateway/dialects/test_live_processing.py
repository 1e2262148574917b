"""Dialect processing end to end, and what document 003 lists as its tests (003:94 to 127)."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from shared.identity import Principal
from tests.gateway.conftest import bearer, token_of
from tests.gateway.dialects.listening import heard, only
from tests.gateway.dialling import DIALS, Dial
from tests.gateway.feed import Feed
from tests.gateway.raw_socket import RawSocket
from tests.gateway.samples import Told, admin, principal
from tests.processes import ServiceProcess

RESULT = {"processed_rows": 1000, "data_quality_score": 98.5}


@pytest.fixture(params=sorted(DIALS))
def dial(request: pytest.FixtureRequest) -> Dial:
    """Each client library."""
    return DIALS[request.param]


@pytest.mark.parametrize("slash", ["", "/"])
async def test_processing_lifecycle(
    gateway: ServiceProcess, dial: Dial, feed: Feed, caller: Principal, slash: str
) -> None:
    """pending, validating, processing, completed; then the results, for a late client too."""
    told = Told(owner=caller)
    await feed.record(told.created())
    url = f"{gateway.url}/ws/processing/{told.id}{slash}?token={token_of(caller)}"
    async with dial(url) as peer:
        seen = await heard(peer, 2)
        await feed.tell(told.completed(), told.started(stage="validating", message="Loading"))
        seen += await heard(peer, 1)
        await feed.tell(told.processing(45.2, stage="rows", message="Rows", current=4, total=9))
        seen += await heard(peer, 2)
        await feed.tell(told.processing(50.0, stage="rows", message="Rows", current=5, total=9))
        seen += await heard(peer, 1)
        await feed.tell(told.processed(message="Complete!", result=RESULT))
        seen += await heard(peer, 2)
    assert only(seen, "type", "status", "progress", "percent") == [
        ("authenticated", None, None, None),
        ("status", "pending", 0.0, None),
        ("status", "validating", 0.0, None),
        ("status", "processing", 45.2, None),
        ("progress", None, None, 45.2),
        ("progress", None, None, 50.0),
        ("status", "completed", 100.0, None),
        ("complete", None, None, None),
    ]
    assert seen[3]["rows_processed"] == 4
    assert (seen[5]["current"], seen[5]["total"], seen[5]["message"]) == (5, 9, "Rows")
    assert seen[7]["results"] == {"upload_id": told.id, **RESULT}
    async with dial(url) as late:
        *_, status, complete = await heard(late, 3)
        assert (status["type"], status["status"], complete) == ("status", "completed", seen[7])


async def test_processing_login_by_message(
    gateway: ServiceProcess, dial: Dial, feed: Feed, caller: Principal
) -> None:
    """``authenticate`` is answered, the status follows at once, and pings get their time."""
    told = Told(owner=caller)
    await feed.record(told.created())
    async with dial(f"{gateway.url}/ws/processing/{told.id}/") as peer:
        await peer.say({"type": "authenticate", "token": token_of(caller)})
        assert await peer.hear() == {
            "type": "authenticated",
            "message": "Authentication successful",
        }
        assert (await peer.hear())["type"] == "status"
        await peer.say({"type": "ping", "timestamp": 1_704_484_800})
        assert await peer.hear() == {"type": "pong", "timestamp": 1_704_484_800}
        await peer.say({"type": "dance"})
        assert only([await peer.hear()], "type", "message") == [
            ("error", "Unknown message type.")
        ]


async def test_processing_error(
    gateway: ServiceProcess, dial: Dial, feed: Feed, caller: Principal
) -> None:
    """A failure reaches the client as the error of the document, with what went wrong."""
    told = Told(owner=caller)
    await feed.record(told.created(), told.completed(), told.started())
    async with dial(f"{gateway.url}/ws/processing/{told.id}/", bearer(caller)) as peer:
        await heard(peer, 2)
        await feed.tell(told.broken("Invalid column mapping for 'fecha'"))
        assert only(await heard(peer, 2), "type", "message") == [
            ("status", "Invalid column mapping for 'fecha'"),
            ("error", "Invalid column mapping for 'fecha'"),
        ]


async def test_processing_is_the_companys(
    gateway: ServiceProcess, dial: Dial, feed: Feed, caller: Principal
) -> None:
    """A colleague may watch; another company gets the error of the document, and 4003."""
    told = Told(owner=caller)
    await feed.record(told.created())
    url = f"{gateway.url}/ws/processing/{told.id}/"
    async with dial(url, bearer(principal("colleague", caller.tenant))) as peer:
        assert only(await heard(peer, 2), "type") == [("authenticated",), ("status",)]
    for stranger in (principal(caller.user_id, "other"), admin("other")):
        async with dial(url, bearer(stranger)) as peer:
            assert (await peer.hear())["type"] == "authenticated"
            assert only([await peer.hear()], "type", "message") == [
                ("error", "Access denied to this upload")
            ]
            assert await peer.end() == 4003


async def test_processing_needs_a_token(
    gateway: ServiceProcess, dial: Dial, feed: Feed, caller: Principal
) -> None:
    """A bad token, in the query or in a message, and none at all: an error, then 4001."""
    told = Told(owner=caller)
    await feed.record(told.created())
    url = f"{gateway.url}/ws/processing/{told.id}/"
    async with dial(f"{url}?token=bad") as peer:
        assert (await peer.hear())["type"] == "error"
        assert await peer.end() == 4001
    for first in ({"type": "authenticate", "token": "bad"}, {"type": "ping", "timestamp": 1}):
        async with dial(url) as peer:
            await peer.say(first)
            assert (await peer.hear())["type"] == "error"
            assert await peer.end() == 4001


@pytest.mark.parametrize("upload_id", ["999999", "nobody-knows"])
async def test_processing_of_nothing(
    gateway: ServiceProcess, caller: Principal, upload_id: str
) -> None:
    """An id of no upload, a number as in the document or not, is an error, then 4004."""
    url = f"{gateway.url}/ws/processing/{upload_id}/"
    async with DIALS["websockets"](url, bearer(caller)) as peer:
        assert only(await heard(peer, 2), "type") == [("authenticated",), ("error",)]
        assert await peer.end() == 4004


async def test_processing_of_a_numbered_upload(
    gateway: ServiceProcess, dial: Dial, feed: Feed, caller: Principal
) -> None:
    """Ids that are numbers, as the document has them, are ids like others."""
    told = Told(str(hash(caller.user_id) % 10**12), owner=caller)
    await feed.record(told.created())
    async with dial(f"{gateway.url}/ws/processing/{told.id}/", bearer(caller)) as peer:
        assert only(await heard(peer, 2), "type") == [("authenticated",), ("status",)]


async def test_rapid_updates_to_many_clients(
    gateway: ServiceProcess, feed: Feed, caller: Principal
) -> None:
    """Of 100 updates in a row each of ten clients gets the last, none out of order or twice."""
    told = Told(owner=caller)
    await feed.record(told.created(), told.completed(), told.started())
    path, headers = f"/ws/processing/{told.id}/", bearer(caller).items()
    async with AsyncExitStack() as stack:
        peers = [
            await stack.enter_async_context(
                RawSocket.opened(gateway.port, path, headers=headers)
            )
            for _ in range(11)
        ]
        for peer in peers:
            assert [(await peer.hear())["type"] for _ in range(2)] == [
                "authenticated",
                "status",
            ]
        *others, gone = peers
        for step in range(1, 101):
            await feed.tell(told.processing(float(step), current=step, total=100))
            if step == 50:
                gone.socket.close()
        await feed.tell(told.processed(result=RESULT))
        for peer in others:
            percents = []
            while (message := await peer.hear())["type"] == "progress":
                percents.append(message["percent"])
            assert percents == sorted(set(percents))
            assert percents[0] < 100.0
            assert only([message, await peer.hear()], "type") == [("status",), ("complete",)]
