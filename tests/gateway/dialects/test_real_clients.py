"""Clients that this project did not write, on every dialect: Python, Node, and a browser.

Each watches one upload from its creation to the end of its processing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from shared.identity import Principal
from tests.gateway.conftest import AUTHENTICATED, StartGateway, token_of
from tests.gateway.dialects.programs import CLIENTS, Program, chromium, node, running_program
from tests.gateway.dialling import DIALS, Peer
from tests.gateway.feed import Feed
from tests.gateway.samples import SIZE, Told, principal
from tests.processes import ServiceProcess, free_port

RESULT: Final = {"rows": 3}
LOCAL: Final = principal("local", "local")

Seen = list[tuple[str, dict[str, Any]]]
"""Who has got what, in the order in which it came."""
Until = Callable[[Callable[[], bool]], Awaitable[None]]


def sockets(base: str, told: Told, token: str) -> dict[str, str]:
    """Return a URL for each dialect."""
    paths = {
        "dashboard": f"/ws/upload-progress/{told.id}",
        "media": f"/api/v1/ws/{told.id}",
        "pipeline": "/ws",
        "processing": f"/ws/processing/{told.id}/",
        "jobs": f"/progress/ws/{told.facts.job_id}",
    }
    return {name: f"{base}{path}?token={token}" for name, path in paths.items()}


WHOLE_STORY: Final[dict[str, list[tuple[str, float | None]]]] = {
    "dashboard": [
        *(("upload_progress", 0.0), ("upload_progress", 50.0)),
        ("upload_complete", 100.0),
    ],
    "media": [("created", 0.0), ("progress", 50.0), ("complete", 100.0)],
    "pipeline": [
        *(("upload_started", 0.0), ("upload_progress", 50.0), ("upload_completed", 100.0)),
        *(("processing_initiated", 0.0), ("processing_progress", 25.0)),
        ("processing_completed", 100.0),
    ],
    "processing": [
        *(("authenticated", None), ("status", 0.0), ("status", 0.0), ("status", 0.0)),
        *(("status", 25.0), ("progress", 25.0), ("status", 100.0), ("complete", None)),
    ],
    "jobs": [
        *(("pending", 0.0), ("queued", 0.0), ("in_progress", 0.0), ("in_progress", 25.0)),
        ("completed", 100.0),
    ],
}
"""What each dialect tells of it: the kind of each message, and its percentage."""


def summary(name: str, message: dict[str, Any]) -> tuple[str, float | None]:
    """Return the kind of a message, and the percentage in it."""
    if name == "dashboard":
        return message["event_type"], message["data"].get("percentage")
    if name == "pipeline":
        return message["event_type"], message["progress_percentage"]
    if name == "jobs":
        return message["status"], message["progress"]
    return message["type"], message.get("percent", message.get("progress"))


async def tell_story(feed: Feed, told: Told, seen: Seen, until: Until) -> None:
    """Tell it step by step, each when the one before has come through everywhere."""
    first = {"processing": 2}

    def all_have_begun() -> bool:
        counts = {name: sum(one == name for one, _ in seen) for name in WHOLE_STORY}
        return all(count >= first.get(name, 1) for name, count in counts.items())

    def at_the_end() -> bool:
        return len(seen) >= sum(len(one) for one in WHOLE_STORY.values())

    def passed(kind: str) -> Callable[[], bool]:
        return lambda: (
            ("pipeline", kind) in [(name, summary(name, one)[0]) for name, one in seen]
        )

    await until(all_have_begun)
    await feed.tell(told.position(SIZE // 2))
    await until(passed("upload_progress"))
    await feed.tell(told.completed(), told.stored(), told.queued(), told.started())
    await until(passed("processing_initiated"))
    await feed.tell(told.processing(25.0, stage="rows"))
    await until(passed("processing_progress"))
    await feed.tell(told.processed(result=RESULT))
    await until(at_the_end)
    heard: dict[str, list[tuple[str, float | None]]] = {name: [] for name in WHOLE_STORY}
    for name, message in seen:
        heard[name].append(summary(name, message))
    assert heard == WHOLE_STORY


@asynccontextmanager
async def dialled(urls: dict[str, str]) -> AsyncIterator[dict[str, Peer]]:
    """Open a socket for each, with the package websockets."""
    async with AsyncExitStack() as stack:
        dial = DIALS["websockets"]
        yield {name: await stack.enter_async_context(dial(url)) for name, url in urls.items()}


async def test_python_websockets(
    gateway: ServiceProcess, feed: Feed, caller: Principal
) -> None:
    """The package of the documents' Python clients gets every message of every dialect."""
    told, news = Told(owner=caller), asyncio.Condition()
    seen: Seen = []
    await feed.tell(told.created())

    async def listen(name: str, peer: Peer) -> None:
        for _ in WHOLE_STORY[name]:
            message = await peer.hear()
            async with news:
                seen.append((name, message))
                news.notify_all()

    async def until(enough: Callable[[], bool]) -> None:
        async with asyncio.timeout(20), news:
            await news.wait_for(enough)

    async with dialled(sockets(gateway.url, told, token_of(caller))) as peers:
        listeners = (listen(name, peer) for name, peer in peers.items())
        await asyncio.gather(*listeners, tell_story(feed, told, seen, until))


async def test_node_ws(gateway: ServiceProcess, feed: Feed, caller: Principal) -> None:
    """The usual client of Node gets every message of every dialect."""
    program, told = node("ws"), Told(owner=caller)
    await feed.tell(told.created())
    urls = sockets(gateway.url.replace("http:", "ws:"), told, token_of(caller))
    opened = json.dumps([{"name": name, "url": url} for name, url in urls.items()])
    seen: Seen = []
    async with running_program(program, str(CLIENTS / "sockets.mjs"), opened) as client:

        async def until(enough: Callable[[], bool]) -> None:
            def is_enough(lines: list[Any]) -> bool:
                seen[:] = [(one["name"], one["message"]) for one in lines]
                return enough()

            await client.until(is_enough)

        await tell_story(feed, told, seen, until)


async def test_node_ws_is_turned_away(
    gateway: ServiceProcess, feed: Feed, caller: Principal
) -> None:
    """It says who it is in a message, gets the errors as messages, and sees the close codes."""
    program, told = node("ws"), Told(owner=caller)
    await feed.tell(told.created())
    base = gateway.url.replace("http:", "ws:")
    good = {"type": "authenticate", "token": token_of(caller)}
    bad = {"type": "authenticate", "token": "bad"}
    other = {"type": "authenticate", "token": token_of(principal("eve", "other"))}
    here = f"{base}/ws/processing/{told.id}/"
    wanted = [
        {"name": "good", "url": here, "say": [good, {"type": "ping", "timestamp": 7}]},
        {"name": "bad", "url": here, "say": [bad]},
        {"name": "other", "url": here, "say": [other]},
        {"name": "unknown", "url": f"{base}/progress/ws/no-such-job", "say": [good]},
    ]
    command = (program, str(CLIENTS / "sockets.mjs"), json.dumps(wanted))
    async with running_program(*command) as client:
        await client.until(lambda lines: sum("closed" in one for one in lines) == 3)
        await client.until(lambda lines: sum(one["name"] == "good" for one in lines) == 3)
        closed = {one["name"]: one["closed"] for one in client.seen if "closed" in one}
        assert closed == {"bad": 4001, "other": 4003, "unknown": 4004}
        said = [one["message"]["type"] for one in client.seen if one["name"] == "good"]
        assert said == ["authenticated", "status", "pong"]


@asynccontextmanager
async def page_in_browser(port: int, script: str, **settings: str) -> AsyncIterator[Program]:
    """Run a script in Chromium, on a page whose origin is this machine's at the port."""
    command = (node("playwright-core"), str(CLIENTS / "browser.mjs"), chromium(), str(port))
    scripts = (json.dumps(settings), str(CLIENTS / script))
    async with running_program(*command, *scripts) as page:
        yield page


async def test_the_documents_in_a_browser(start_gateway: StartGateway, feed: Feed) -> None:
    """The documents' own scripts run in Chromium as they are, on a page of another origin."""
    port = free_port()
    gateway = start_gateway(
        CORS_ALLOWED_ORIGINS=f"http://127.0.0.1:{port}",
        WEBSOCKET_MAX_CONNECTIONS_PER_USER="9",
    )
    told, same = Told(owner=LOCAL), Told(owner=LOCAL)
    await feed.tell(told.created())
    settings = {
        "host": f"127.0.0.1:{gateway.port}",
        "uploadId": told.id,
        "jobId": told.facts.job_id,
        "token": "any",
    }
    async with page_in_browser(port, "documents.js", **settings) as page:
        await page.until(lambda seen: sum(one[1] == "open" for one in seen) == 6)
        await page.until(lambda seen: ["000", "pong"] in [one[:2] for one in seen])
        await page.has(
            ["003", "received", "status"],
            ["004", "log", "Status: pending, Progress: 0%"],
            ["hook", "setStatus", "pending"],
        )
        await feed.tell(told.position(SIZE // 2))
        await page.has(["001", "updateProgressBar", 50], ["002", "updateProgressBar", 50])
        await feed.tell(told.completed(), told.started(stage="validating"))
        await page.has(["hook", "setStatus", "validating"])
        await feed.tell(told.processing(25.0, stage="rows"))
        await page.has(["003", "updateProgressBar", 25], ["hook", "setProgress", 25])
        await feed.tell(told.processed(result=RESULT))
        results = {"upload_id": told.id, **RESULT}
        await page.has(
            ["002", "displayResults", RESULT],
            ["003", "showSuccess", results],
            ["hook", "setStatus", "completed"],
            ["hook", "setResults", results],
            ["004", "log", "Status: completed, Progress: 100%"],
            ["000", "upload_complete", 100],
        )
        await feed.tell(same.created(), same.duplicate(cached_result=RESULT))
        await page.has(["002", "showDuplicateMessage", RESULT])
        assert not [one for one in page.seen if one[1] in {"failed", "showError", "setError"}]


async def test_a_browser_says_who_it_is(
    gateway: ServiceProcess, start_gateway: StartGateway, feed: Feed, caller: Principal
) -> None:
    """A page logs in without a token in a URL, and sees why it is refused by the close code."""
    port, told = free_port(), Told(owner=caller)
    secured = start_gateway(**AUTHENTICATED, CORS_ALLOWED_ORIGINS=f"http://127.0.0.1:{port}")
    await feed.tell(told.created())
    settings = {
        "secured": f"127.0.0.1:{secured.port}",
        "elsewhere": f"127.0.0.1:{gateway.port}",
        "ownId": told.id,
        "ownToken": token_of(caller),
        "foreignToken": token_of(principal("eve", "other")),
    }
    async with page_in_browser(port, "logins.js", **settings) as page:
        await page.has(
            ["subprotocol", "opened", "bearer"],
            ["subprotocol", "message", "status"],
            ["message", "opened", ""],
            ["message", "message", "authenticated"],
            ["message", "message", "status"],
            ["bad token", "message", "error"],
            ["bad token", "closed", 4001],
            ["another company", "message", "error"],
            ["another company", "closed", 4003],
            ["another origin", "closed", 1006],
        )
        assert not [one for one in page.seen if one[:2] == ["another origin", "opened"]]


async def test_events_in_a_browser(start_gateway: StartGateway, feed: Feed) -> None:
    """EventSource goes on by itself when the gateway comes back, and misses nothing."""
    port, told = free_port(), Told(owner=LOCAL)
    gateway = start_gateway(CORS_ALLOWED_ORIGINS=f"http://127.0.0.1:{port}")
    await feed.record(told.created())
    settings = {"host": f"127.0.0.1:{gateway.port}", "id": told.id, "token": "any"}
    async with page_in_browser(port, "events.js", **settings) as page:
        await page.has(
            ["stream", "subscribed", False, None],
            ["socket", "opened", "events.v1.json"],
            ["socket", "subscribed"],
        )
        await feed.tell(told.completed())
        await page.has(
            ["stream", "upload.completed", True, told.id],
            ["socket", "upload.completed", "string"],
        )
        await asyncio.to_thread(gateway.kill)
        await page.has(["stream", "broken"])
        await feed.tell(told.processed(result=RESULT))
        await asyncio.to_thread(gateway.start)
        await page.has(["stream", "job.completed", True, told.id])
        heard = [one for one in page.seen if one[:2] == ["stream", "upload.completed"]]
        assert len(heard) == 1


async def test_events_by_node_ws(
    gateway: ServiceProcess, feed: Feed, caller: Principal
) -> None:
    """The usual client of Node subscribes, and after a break gets what it missed, once."""
    program, told = node("ws"), Told(owner=caller)
    await feed.record(told.created())
    url = f"{gateway.url.replace('http:', 'ws:')}/v1/events/ws?token={token_of(caller)}"

    def opened(**more: str) -> tuple[str, ...]:
        say = [{"type": "subscribe", "ids": [told.id], **more}]
        wanted = json.dumps([{"name": "events", "url": url, "say": say}])
        return program, str(CLIENTS / "sockets.mjs"), wanted

    def events_in(lines: list[Any]) -> list[dict[str, Any]]:
        return [one for line in lines for one in line["message"].get("events", [])]

    async with running_program(*opened()) as client:
        await client.until(
            lambda lines: any(one["message"].get("type") == "subscribed" for one in lines)
        )
        await feed.tell(told.completed())
        await client.until(lambda lines: len(events_in(lines)) == 1)
        last = events_in(client.seen)[0]["id"]
    await feed.tell(told.queued(), told.started())
    async with running_program(*opened(since=last)) as client:
        await client.until(lambda lines: len(events_in(lines)) == 2)
        assert [one["type"] for one in events_in(client.seen)] == ["job.queued", "job.started"]
