"""``GET /v1/events``: Server-Sent Events, parsed as browsers do (HTML, section 9.2.6)."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import socket
import struct
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import pytest

from shared.api_keys import new_key
from shared.identity import Principal
from shared.sidecar import new_id
from tests.gateway.conftest import AUTHENTICATED, ORIGIN, StartGateway, bearer, token_of
from tests.gateway.feed import Feed
from tests.gateway.metrics import metric
from tests.gateway.samples import EVE, Told, principal
from tests.processes import ServiceProcess
from tests.shared.waiting import eventually

LIMIT_S: Final = 10.0
LOCAL = principal("local", "local")
OPEN = {"AUTH_MODE": "open"}


class Sent(NamedTuple):
    """One block of a stream."""

    id: str
    event: str
    data: dict[str, Any]


class Source:
    """What ``EventSource`` is in a browser."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer: Final = answer
        self.last_id = ""
        self.retry = 0
        self.comments = 0

    async def block(self) -> Sent | None:
        """Return the next event; ``None`` at the end of the stream."""
        kind, data, event_id = "message", "", ""
        while True:
            async with asyncio.timeout(LIMIT_S):
                line = (await self.answer.content.readline()).decode()
            if not line:
                return None
            name, _, value = line.rstrip("\n").partition(":")
            value = value.removeprefix(" ")
            if line == "\n" and data:
                return Sent(event_id, kind, json.loads(data))
            match name:
                case "event":
                    kind = value
                case "data":
                    data += value
                case "id":
                    self.last_id = event_id = value
                case "retry":
                    self.retry = int(value)
                case "" if line != "\n":
                    self.comments += 1

    async def until(self, kind: str) -> list[Sent]:
        """Return all up to the first of a kind."""
        found: list[Sent] = []
        while not found or found[-1].event != kind:
            one = await self.block()
            assert one is not None, found
            found.append(one)
        return found


@asynccontextmanager
async def listening(
    service: ServiceProcess,
    caller: Principal | None,
    query: Mapping[str, str] = {},
    *,
    headers: Mapping[str, str] = {},
) -> AsyncIterator[Source]:
    """Yield a stream, or whatever the answer is."""
    own = bearer(caller) if caller is not None else {}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session,
        session.get(
            f"{service.url}/v1/events", params=query, headers={**own, **headers}
        ) as one,
    ):
        yield Source(one)


async def is_open(service: ServiceProcess, count: int) -> bool:
    """Tell whether so many sockets are open."""
    return await metric(service, "gateway_sockets") == count


def events(sent: list[Sent]) -> list[str]:
    """Return what kinds they are."""
    return [one.event for one in sent]


async def test_stream(gateway: ServiceProcess, feed: Feed, caller: Principal) -> None:
    """The state comes first and bears no id; events bear theirs; positions none."""
    told = Told(owner=caller)
    await feed.record(told.created())
    async with listening(gateway, caller, {"ids": told.id}) as source:
        assert source.answer.status == 200
        assert source.answer.headers["Content-Type"] == "text/event-stream"
        assert source.answer.headers["Cache-Control"] == "no-store"
        assert source.answer.headers["X-Accel-Buffering"] == "no"
        snapshot, subscribed = await source.until("subscribed")
        assert (snapshot.id, snapshot.event) == ("", "snapshot")
        assert snapshot.data["snapshot"]["session_id"] == told.id
        assert subscribed.data["ids"] == [told.id]
        assert 1_000 <= source.retry <= 4_000
        await feed.tell(told.position(1_000))
        (moved,) = await source.until("upload.progress")
        assert (moved.id, moved.data["offset"]) == ("", 1_000)
        (entry,) = await feed.tell(told.completed())
        (done,) = await source.until("upload.completed")
        assert done.id == done.data["id"]
        assert done.id.startswith(f"{entry.decode()}-")


@pytest.mark.parametrize("where", ["header", "query", "both"])
async def test_resume(
    gateway: ServiceProcess, feed: Feed, caller: Principal, where: str
) -> None:
    """What was missed comes again; what a browser has got goes before what its URL says."""
    told = Told(owner=caller)
    await feed.record(told.created())
    async with listening(gateway, caller, {"ids": told.id}) as source:
        await source.until("subscribed")
        await feed.tell(told.completed(), told.stored())
        await source.until("upload.completed")
        older = source.last_id
        await source.until("file.stored")
    await feed.record(told.queued())
    query = {"ids": told.id}
    if where != "header":
        query["since"] = older if where == "both" else source.last_id
    headers = {"Last-Event-ID": source.last_id} if where != "query" else {}
    async with listening(gateway, caller, query, headers=headers) as source:
        assert events(await source.until("subscribed")) == ["job.queued", "subscribed"]


async def test_follow(gateway: ServiceProcess, feed: Feed, caller: Principal) -> None:
    """Without ids all that is the caller's comes, also what is new, and what was missed."""
    old, new = Told(owner=caller), Told(owner=caller)
    await feed.record(old.created(), Told(owner=EVE).created())
    async with listening(gateway, caller) as source:
        assert events(await source.until("subscribed")) == ["snapshot", "subscribed"]
        await feed.tell(new.created())
        (created,) = await source.until("upload.created")
        assert created.data["upload_id"] == new.id
    await feed.record(new.completed(), old.completed())
    again = {"Last-Event-ID": source.last_id}
    async with listening(gateway, caller, headers=again) as source:
        missed = await source.until("subscribed")
        assert events(missed) == ["upload.completed"] * 2 + ["subscribed"]
        assert {one.data["upload_id"] for one in missed[:2]} == {new.id, old.id}


async def test_some_refused(gateway: ServiceProcess, feed: Feed, caller: Principal) -> None:
    """What is somebody else's, or unknown, is refused by name and ends nothing else."""
    mine, foreign, unknown = Told(owner=caller), Told(owner=EVE), new_id()
    await feed.record(mine.created(), foreign.created())
    query = {"ids": f"{foreign.id},{mine.id},{unknown}"}
    async with listening(gateway, caller, query) as source:
        found = await source.until("subscribed")
        assert sorted(events(found)) == ["refused", "snapshot", "subscribed"]
        (refused,) = [one.data for one in found if one.event == "refused"]
        assert refused["id"] == foreign.id
        (late,) = await source.until("refused")
        assert (late.data["id"], late.data["message"]) == (unknown, "There is no such upload.")


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ({"ids": ""}, {}, 400),
        ({"ids": ",".join(["x"] * 101)}, {}, 400),
        ({"since": "yesterday"}, {}, 400),
        ({}, {"Last-Event-ID": "1-2"}, 400),
        ({"ids": "unheard-of"}, {}, 404),
        ({}, {"Origin": "https://evil.example"}, 403),
    ],
)
async def test_refused(
    gateway: ServiceProcess,
    caller: Principal,
    query: dict[str, str],
    headers: dict[str, str],
    status: int,
) -> None:
    """A request that cannot become a stream is refused as any other is."""
    async with listening(gateway, caller, query, headers=headers) as source:
        assert source.answer.status == status
        assert source.answer.content_type == "application/problem+json"


async def test_access(gateway: ServiceProcess, feed: Feed, caller: Principal) -> None:
    """Only the owner gets a stream, and only with credentials."""
    told = Told(owner=caller)
    await feed.record(told.created())
    for other, status in ((EVE, 403), (None, 401)):
        async with listening(gateway, other, {"ids": told.id}) as source:
            assert source.answer.status == status


async def test_credentials_in_the_url(
    start_gateway: StartGateway, feed: Feed, caller: Principal, tmp_path: Path
) -> None:
    """All that a handshake takes from its query a stream takes too, and nothing else."""
    key, line = new_key(caller.tenant, [])
    (tmp_path / "keys").write_text(f"{line}\n")
    service = start_gateway(
        **AUTHENTICATED,
        AUTH_API_KEYS_FILE=str(tmp_path / "keys"),
        CORS_ALLOWED_ORIGINS=ORIGIN,
    )
    told = Told(owner=caller)
    await feed.record(told.created())

    async def ticket(origin: str | None) -> str:
        headers = {**bearer(caller), **({"Origin": origin} if origin else {})}
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{service.url}/v1/events/ticket", headers=headers) as answer,
        ):
            return str((await answer.json())["ticket"])

    token, foreign, page = token_of(caller), token_of(EVE), {"Origin": ORIGIN}
    own, bound = await ticket(None), await ticket(ORIGIN)
    mine = {"api_key": key, "username": caller.user_id}
    table: list[tuple[dict[str, str], dict[str, str], int]] = [
        ({"token": token}, {}, 200),
        ({"token": token}, page, 200),
        ({"token": foreign}, {}, 403),
        ({"token": token_of(caller, lives_s=-60)}, {}, 401),
        ({"token": f"{token[:-4]}AAAA"}, {}, 401),
        ({"token": ""}, {}, 401),
        ({"token": token}, bearer(caller), 401),
        ({"token": token, **mine}, {}, 401),
        ({"access_token": token}, {}, 401),
        ({}, {"Sec-WebSocket-Protocol": f"bearer, {token}"}, 401),
        (mine, {}, 200),
        ({"api_key": key}, {}, 401),
        ({**mine, "api_key": f"{key[:-4]}0000"}, {}, 401),
        ({"ticket": own, "token": token}, {}, 401),
        ({"ticket": own}, {}, 200),
        ({"ticket": own}, {}, 401),
        ({"ticket": bound}, {"Origin": "https://evil.example"}, 401),
        ({"ticket": bound}, page, 401),
        ({"ticket": await ticket(ORIGIN)}, page, 200),
        ({"ticket": "made-up"}, {}, 401),
        ({"ticket": ""}, {}, 401),
    ]
    found = []
    for query, headers, _ in table:
        async with listening(service, None, {"ids": told.id, **query}, headers=headers) as one:
            found.append((query, headers, one.answer.status))
            if one.answer.status == 200:
                await one.until("subscribed")
    assert found == table
    said = service.log.read_text()
    assert not any(secret in said for secret in (token, foreign, key, own, bound))


async def test_other_names(gateway: ServiceProcess, feed: Feed, caller: Principal) -> None:
    """A job's id and the client's own name stand for the upload."""
    told = Told(owner=caller, session_id=f"mine-{new_id()}")
    await feed.record(told.created())
    for name in (told.facts.job_id, told.facts.session_id):
        async with listening(gateway, caller, {"ids": name}) as source:
            snapshot, subscribed = await source.until("subscribed")
            assert snapshot.data["upload_id"] == told.id
            assert subscribed.data["ids"] == [name]


async def test_origin(gateway: ServiceProcess, caller: Principal) -> None:
    """A page that may reads the stream."""
    async with listening(gateway, caller, headers={"Origin": ORIGIN}) as source:
        assert source.answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        await source.until("subscribed")


async def test_end_of_token(gateway: ServiceProcess, caller: Principal) -> None:
    """The stream ends with the token."""
    headers = {"Authorization": f"Bearer {token_of(caller, lives_s=3)}"}
    async with listening(gateway, None, headers=headers) as source:
        await source.until("subscribed")
        assert await source.block() is None


async def test_http_1_0(gateway: ServiceProcess, feed: Feed, caller: Principal) -> None:
    """Behind a proxy that speaks HTTP/1.0 the body comes as it is, not in chunks."""
    told = Told(owner=caller)
    await feed.record(told.created())
    loop = asyncio.get_running_loop()
    with contextlib.closing(socket.socket()) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", gateway.port))
        lines = [f"{name}: {value}\r\n" for name, value in bearer(caller).items()]
        head = f"GET /v1/events?ids={told.id} HTTP/1.0\r\nHost: x\r\n{''.join(lines)}\r\n"
        await loop.sock_sendall(sock, head.encode())
        data = b""
        async with asyncio.timeout(LIMIT_S):
            while b"event: subscribed" not in data or not data.endswith(b"\n\n"):
                data += await loop.sock_recv(sock, 65_536)
    _, _, body = data.partition(b"\r\n\r\n")
    assert body.startswith(b"retry: ")
    assert b"\n\nevent: snapshot\ndata: {" in body


async def test_heartbeat_and_end(start_gateway: StartGateway, feed: Feed) -> None:
    """A silent stream is kept alive by comments, and ends in order when the gateway does."""
    service = start_gateway(**OPEN, WEBSOCKET_PING_INTERVAL="0.2")
    async with listening(service, None) as source:
        await source.until("subscribed")
        ending = asyncio.ensure_future(source.block())
        await eventually(lambda: source.comments >= 3, "it is kept alive")
        code = await asyncio.to_thread(service.terminate)
        assert await ending is None
        assert code == 0


async def test_full_and_gone(start_gateway: StartGateway, feed: Feed) -> None:
    """Streams count as sockets: over the limit none is let in, and who goes makes room."""
    service = start_gateway(**OPEN, WEBSOCKET_MAX_CONNECTIONS_TOTAL="1")
    async with listening(service, None) as source:
        await source.until("subscribed")
        async with listening(service, None) as another:
            assert another.answer.status == 503
            assert "Retry-After" in another.answer.headers
    await eventually(partial(is_open, service, 0), "it is gone")
    async with listening(service, None) as source:
        await source.until("subscribed")


async def test_slow_reader(start_gateway: StartGateway, feed: Feed) -> None:
    """Who does not read is cut, and little is kept for it until then."""
    service = start_gateway(**OPEN, WEBSOCKET_STALL_TIMEOUT="1")
    told = [Told(owner=LOCAL) for _ in range(20)]
    await feed.record(*(one.created() for one in told))
    loop = asyncio.get_running_loop()
    with contextlib.closing(socket.socket()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", service.port))
        await loop.sock_sendall(sock, b"GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await eventually(partial(is_open, service, 1), "it is there")

        async def cut() -> bool:
            await feed.tell(*(one.started(message="." * 1000) for one in told))
            return await is_open(service, 0)

        await eventually(cut, "it is cut")
    assert await metric(service, 'gateway_closed_total{code="1013"}') == 1


def vanish(source: Source) -> None:
    """Let nothing reach a client any more, as when its network is gone: nobody is told."""
    connection = source.answer.connection
    assert connection is not None
    assert connection.transport is not None
    # struct sock_filter {BPF_RET | BPF_K, 0, 0, 0}: no byte of any packet is let through.
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    program = struct.pack("HL", 1, ctypes.addressof(drop_all))
    so_attach_filter = 26
    own = connection.transport.get_extra_info("socket")
    own.setsockopt(socket.SOL_SOCKET, so_attach_filter, program)


@pytest.mark.skipif(sys.platform != "linux", reason="socket filters are Linux's")
async def test_a_client_whose_network_is_gone(start_gateway: StartGateway) -> None:
    """Catches streams that hold their place for a quarter of an hour, as long as the kernel
    sends comments again and again to a client that is not there.
    """
    times = {"PING_INTERVAL": "0.2", "PING_TIMEOUT": "0.5", "STALL_TIMEOUT": "1"}
    service = start_gateway(**OPEN, **{f"WEBSOCKET_{name}": s for name, s in times.items()})
    async with listening(service, None) as gone, listening(service, None) as other:
        for one in (gone, other):
            await one.until("subscribed")
        vanish(gone)
        await eventually(partial(is_open, service, 1), "its place is free")
        before = other.comments
        while other.comments == before:  # who is there and only listens is left alone
            async with asyncio.timeout(LIMIT_S):
                assert not other.answer.content.at_eof()
                line = await other.answer.content.readline()
                other.comments += line.startswith(b":")
