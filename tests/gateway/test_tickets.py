"""Tickets: made for a caller and a page, good once, and only while Redis can tell."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from services.gateway.tickets import TicketOffice
from shared.authenticator import IdentitySettings, authenticator
from shared.identity import TICKETS, Principal, credentials_in_url, identify, principal_of
from shared.streams import connect
from shared.web import create_application, json_response
from tests.gateway.conftest import (
    AUTHENTICATED,
    ORIGIN,
    SECRET,
    StartGateway,
    bearer,
    token_of,
)
from tests.gateway.feed import Feed
from tests.gateway.raw_socket import RawSocket
from tests.gateway.samples import ADA, EVE, Told, admin, principal
from tests.processes import RedisServer, ServiceProcess, running

PATH: Final = "/v1/events/ticket"
MEDIA: Final = "/api/v1/ws"
DASHBOARD: Final = "/ws/upload-progress"
OTHER: Final = "https://other.example"


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client."""
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def told(feed: Feed, caller: Principal) -> Told:
    """An upload of the caller."""
    told = Told(owner=caller)
    await feed.tell(told.created())
    return told


async def made(
    http: aiohttp.ClientSession,
    service: ServiceProcess,
    headers: dict[str, str],
    *,
    origin: str | None = None,
    named: str | None = None,
) -> str:
    """Return a ticket, made by a page of an origin or by a server that names one."""
    sent = {**headers, **({"Origin": origin} if origin else {})}
    body = json.dumps({"origin": named}) if named else None
    async with http.post(service.url + PATH, headers=sent, data=body) as answer:
        assert answer.status == 201, await answer.text()
        assert answer.headers["Cache-Control"] == "no-store"
        found = await answer.json()
    assert found == {"ticket": found["ticket"], "expires_in": 30}
    return str(found["ticket"])


async def heard(
    service: ServiceProcess, path: str, ticket: str, origin: str | None = None
) -> dict[str, Any] | int | None:
    """Return the first message of a socket that is let in, the close code of another one."""
    headers = [("Origin", origin)] if origin else []
    target = f"{path}?ticket={ticket}"
    async with RawSocket.opened(service.port, target, headers=headers) as peer:
        assert peer.status == 101
        message = await peer.hear()
        refused = "error" in {message.get("type"), message.get("event_type")}
        return await peer.end() if refused else message


async def test_opens_one_socket(
    gateway: ServiceProcess, http: aiohttp.ClientSession, caller: Principal, told: Told
) -> None:
    """A ticket lets its caller in as the token does, and gets into no log."""
    ticket = await made(http, gateway, bearer(caller))
    assert len(ticket) >= 43  # of 64 letters: 256 bits
    message = await heard(gateway, f"{MEDIA}/{told.id}", ticket)
    assert isinstance(message, dict)
    assert message["type"] == "created"
    assert ticket not in gateway.log.read_text()


async def test_security_item_24_good_once(
    gateway: ServiceProcess, http: aiohttp.ClientSession, caller: Principal, told: Told
) -> None:
    """The second use is refused like any bad credential."""
    ticket = await made(http, gateway, bearer(caller))
    path = f"{MEDIA}/{told.id}"
    assert isinstance(await heard(gateway, path, ticket), dict)
    for _ in range(2):
        assert await heard(gateway, path, ticket) == 4001


async def test_security_item_24_race(
    gateway: ServiceProcess, http: aiohttp.ClientSession, caller: Principal, told: Told
) -> None:
    """Of fifty who use one ticket at the same moment, exactly one is let in."""
    ticket = await made(http, gateway, bearer(caller))
    path = f"{MEDIA}/{told.id}"
    results = await asyncio.gather(*(heard(gateway, path, ticket) for _ in range(50)))
    assert sum(isinstance(one, dict) for one in results) == 1
    assert results.count(4001) == 49


OWN: Final = "http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("by_page", "by_server", "used_by", "let_in"),
    [
        (ORIGIN, None, ORIGIN, True),
        (None, ORIGIN, ORIGIN, True),
        (ORIGIN, ORIGIN, ORIGIN, True),
        (OWN, None, OWN, True),
        (None, None, None, True),
        (None, None, ORIGIN, False),
        (ORIGIN, None, None, False),
        (ORIGIN, None, OWN, False),
        (OWN, None, ORIGIN, False),
        (None, OTHER, ORIGIN, False),
        (None, OTHER, None, False),
        (OWN, None, None, False),
    ],
)
async def test_security_item_24_bound_to_its_origin(
    gateway: ServiceProcess,
    http: aiohttp.ClientSession,
    caller: Principal,
    told: Told,
    by_page: str | None,
    by_server: str | None,
    used_by: str | None,
    let_in: bool,
) -> None:
    """It is good for a page of the origin that it was made for; a wrong one uses it up."""
    page, user = (
        one.format(port=gateway.port) if one is not None else None for one in (by_page, used_by)
    )
    ticket = await made(http, gateway, bearer(caller), origin=page, named=by_server)
    path = f"{MEDIA}/{told.id}"
    result = await heard(gateway, path, ticket, user)
    assert isinstance(result, dict) if let_in else result == 4001
    if OTHER not in {page, by_server}:  # its pages may open no socket at all
        assert await heard(gateway, path, ticket, page or by_server) == 4001


async def test_security_item_25_foreign_page_keeps_it_unused(
    gateway: ServiceProcess, http: aiohttp.ClientSession, caller: Principal, told: Told
) -> None:
    """A page that may open no socket is refused before its ticket is looked at."""
    ticket = await made(http, gateway, bearer(caller), named=OTHER)
    target, headers = f"{MEDIA}/{told.id}?ticket={ticket}", [("Origin", OTHER)]
    async with RawSocket.opened(gateway.port, target, headers=headers) as peer:
        assert peer.status == 403


async def test_security_item_24_bound_to_its_caller(
    gateway: ServiceProcess, http: aiohttp.ClientSession, caller: Principal, told: Told
) -> None:
    """It gives the rights of whoever asked for it, in the tenant and with the scopes."""
    path = f"{MEDIA}/{told.id}"
    rights = [(caller, True), (EVE, False), (admin(), True), (admin("other"), False)]
    rights.append((principal(caller.user_id, "other"), False))
    for who, let_in in rights:
        ticket = await made(http, gateway, bearer(who))
        result = await heard(gateway, path, ticket)
        assert isinstance(result, dict) if let_in else result == 4003


async def test_ends_with_the_token(
    gateway: ServiceProcess, http: aiohttp.ClientSession, caller: Principal, told: Told
) -> None:
    """A ticket outlives its token neither as a socket nor unused."""
    token = {"Authorization": f"Bearer {token_of(caller, lives_s=1.2)}"}
    first, second = await made(http, gateway, token), await made(http, gateway, token)
    path = f"{MEDIA}/{told.id}"
    async with RawSocket.opened(gateway.port, f"{path}?ticket={first}") as peer:
        await peer.hear()
        assert await peer.end() == 4001
    assert await heard(gateway, path, second) == 4001


async def test_what_is_kept(
    gateway: ServiceProcess, http: aiohttp.ClientSession, bus: RedisServer
) -> None:
    """Redis holds a hash of the ticket for 30 seconds at most, under the gateway's prefix."""
    ticket = await made(http, gateway, bearer(ADA))
    redis = connect(bus.url)
    digest = hashlib.sha256(ticket.encode()).hexdigest()
    key = f"upload_progress:ticket:{digest}"
    assert 25_000 < await redis.pttl(key) <= 30_000
    keys = [one.decode() async for one in redis.scan_iter("*")]
    assert not [one for one in keys if ticket in one]
    assert ticket.encode() not in (await redis.get(key) or b"")
    await redis.aclose()


@pytest.mark.parametrize(
    "ticket", ["", "x", "%00", "%F0%9F%8E%AB", "%ED%A0%80", "*", "..%2F..", "x" * 6000]
)
async def test_made_up_tickets(gateway: ServiceProcess, ticket: str) -> None:
    """Nobody gets in with a ticket that was never made, whatever it looks like."""
    assert await heard(gateway, DASHBOARD, ticket) == 4001


async def test_hash_is_no_ticket(gateway: ServiceProcess, http: aiohttp.ClientSession) -> None:
    """Who can read the keys of Redis cannot use what he finds."""
    ticket = await made(http, gateway, bearer(ADA))
    digest = hashlib.sha256(ticket.encode()).hexdigest()
    assert await heard(gateway, DASHBOARD, digest) == 4001


async def test_credentials_are_needed(
    gateway: ServiceProcess, http: aiohttp.ClientSession
) -> None:
    """A ticket costs credentials in a header; none in the URL and no other ticket will do."""
    ticket = await made(http, gateway, bearer(ADA))
    for query in ("", f"?ticket={ticket}", f"?token={token_of(ADA)}"):
        async with http.post(gateway.url + PATH + query) as answer:
            assert answer.status == 401
            assert (await answer.json())["error_code"] == "UNAUTHORIZED"


BAD_BODIES: Final[dict[str, tuple[bytes, int]]] = {
    "no JSON": (b"{", 400),
    "a list": (b"[]", 400),
    "a string": (b'"https://app.example"', 400),
    "another name": (b'{"Origin":"https://app.example"}', 400),
    "a name too many": (b'{"origin":"https://app.example","ttl":9}', 400),
    "a list of origins": (b'{"origin":["https://app.example"]}', 400),
    "not UTF-8": (b'{"origin":"\xff"}', 400),
    "a path": (b'{"origin":"https://app.example/"}', 400),
    "upper case": (b'{"origin":"https://APP.example"}', 400),
    "default port": (b'{"origin":"https://app.example:443"}', 400),
    "the opaque origin": (b'{"origin":"null"}', 400),
    "any origin": (b'{"origin":"*"}', 400),
    "empty": (b'{"origin":""}', 400),
    "deep": (b"[" * 1000, 400),
    "long": (b'{"origin":"https://' + b"a" * 1100 + b'"}', 413),
    "huge": (b" " * 300_000, 413),
}


@pytest.mark.parametrize("kind", BAD_BODIES)
async def test_bad_bodies(
    gateway: ServiceProcess, http: aiohttp.ClientSession, kind: str
) -> None:
    """A body that says something else than an origin is refused, and makes no ticket."""
    body, status = BAD_BODIES[kind]
    for data in (body, _chunks(body)):
        async with http.post(gateway.url + PATH, headers=bearer(ADA), data=data) as answer:
            assert answer.status == status
            assert answer.content_type == "application/problem+json"


async def _chunks(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 100_000):
        yield body[at : at + 100_000]


@pytest.mark.parametrize(
    "origins", [["null"], [""], ["*"], [ORIGIN, OTHER], ["https://app.example/"]]
)
async def test_bad_origins(
    gateway: ServiceProcess, http: aiohttp.ClientSession, origins: list[str]
) -> None:
    """A page without an origin of its own, and a request with two, get no ticket."""
    headers = [*bearer(ADA).items(), *(("Origin", one) for one in origins)]
    async with http.post(gateway.url + PATH, headers=headers) as answer:
        assert answer.status == 400


async def test_pages_ask_for_themselves(
    gateway: ServiceProcess, http: aiohttp.ClientSession
) -> None:
    """A page cannot get a ticket that another page uses."""
    headers, body = {**bearer(ADA), "Origin": ORIGIN}, json.dumps({"origin": OTHER})
    async with http.post(gateway.url + PATH, headers=headers, data=body) as answer:
        assert answer.status == 400


async def test_any_body_that_says_nothing(
    gateway: ServiceProcess, http: aiohttp.ClientSession
) -> None:
    """No body, an empty object and ``null`` make a ticket for programs."""
    for body in (None, b"", b"{}", b'{"origin":null}'):
        async with http.post(gateway.url + PATH, headers=bearer(ADA), data=body) as answer:
            assert answer.status == 201


async def test_other_methods(gateway: ServiceProcess, http: aiohttp.ClientSession) -> None:
    """A GET makes no ticket: it could be sent by a link."""
    async with http.get(gateway.url + PATH, headers=bearer(ADA)) as answer:
        assert answer.status == 405


async def test_page_may_ask(gateway: ServiceProcess, http: aiohttp.ClientSession) -> None:
    """An allowed page can read its ticket, and may send an API key for it."""
    headers = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-api-key,x-username,authorization",
    }
    async with http.options(gateway.url + PATH, headers=headers) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        allowed = answer.headers["Access-Control-Allow-Headers"].lower()
        assert {"x-api-key", "x-username", "authorization"} <= set(allowed.split(", "))


async def test_open_mode(start_gateway: StartGateway, http: aiohttp.ClientSession) -> None:
    """Where everyone is the local user, clients that use tickets work unchanged."""
    service = start_gateway(AUTH_MODE="open")
    ticket = await made(http, service, {})
    async with RawSocket.opened(service.port, f"{DASHBOARD}?ticket={ticket}") as peer:
        await peer.say({"type": "ping"})
        while "pong" not in str(await peer.hear()):  # after what the local user has
            pass


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that the test may kill."""
    server = RedisServer(tmp_path / "redis")
    with running(server):
        yield server


async def test_redis_away(
    own_redis: RedisServer, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    """While Redis is away none is made, and who brings one is sent away to try again."""
    env = {**AUTHENTICATED, "REDIS_URL": own_redis.url}
    service = ServiceProcess("gateway", env, tmp_path / "log")
    with running(service):
        ticket = await made(http, service, bearer(ADA))
        own_redis.kill()
        async with http.post(service.url + PATH, headers=bearer(ADA)) as answer:
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) >= 1
        assert await heard(service, DASHBOARD, ticket) == 1013
        own_redis.start()
        async with asyncio.timeout(20):
            while True:
                async with http.post(service.url + PATH, headers=bearer(ADA)) as answer:
                    if answer.status == 201:
                        ticket = (await answer.json())["ticket"]
                        break
                await asyncio.sleep(0.05)
        async with RawSocket.opened(service.port, f"{DASHBOARD}?ticket={ticket}") as peer:
            await peer.say({"type": "ping"})
            assert "pong" in str(await peer.hear())
    assert "Traceback" not in service.log.read_text()


@credentials_in_url
async def stream(request: web.Request) -> web.Response:
    """Say who reads."""
    return json_response(principal_of(request))


@pytest.fixture
async def reader(bus: RedisServer) -> AsyncIterator[tuple[TestClient[Any, Any], TicketOffice]]:
    """A route for an ``EventSource``, and who makes its tickets."""
    redis = connect(bus.url)
    settings = IdentitySettings(auth_mode="required", auth_jwt_secret=SECRET)
    app = create_application(identify(authenticator(settings)))
    app[TICKETS] = office = TicketOffice(redis, prefix="upload_progress")
    app.router.add_get("/stream", stream)
    async with TestClient(TestServer(app)) as client:
        yield client, office
    await redis.aclose()


async def test_event_source_of_another_origin(
    reader: tuple[TestClient[Any, Any], TicketOffice],
) -> None:
    """Its GET tells the origin, which must be that of the ticket; it is good once."""
    client, office = reader
    for origin, status in ((ORIGIN, 200), (OTHER, 401)):
        ticket = await office.make(ADA, ORIGIN)
        target, headers = f"/stream?ticket={ticket}", {"Origin": origin}
        assert (await client.get(target, headers=headers)).status == status
        assert (await client.get(target, headers={"Origin": ORIGIN})).status == 401


async def test_event_source_of_our_own_pages(
    reader: tuple[TestClient[Any, Any], TicketOffice],
) -> None:
    """Browsers send no origin with a GET to their own, which a ticket for it allows for."""
    client, office = reader
    own = f"http://127.0.0.1:{client.port}"
    for origin, status in ((own, 200), (None, 200), (ORIGIN, 401)):
        ticket = await office.make(ADA, origin)
        assert (await client.get(f"/stream?ticket={ticket}")).status == status


async def test_race_of_event_sources(
    reader: tuple[TestClient[Any, Any], TicketOffice],
) -> None:
    """Of fifty readers with one ticket exactly one gets the stream."""
    client, office = reader
    ticket = await office.make(ADA, None)
    answers = await asyncio.gather(*(client.get(f"/stream?ticket={ticket}") for _ in range(50)))
    assert sorted(one.status for one in answers) == [200] + [401] * 49


async def test_rights_arrive_whole(
    reader: tuple[TestClient[Any, Any], TicketOffice],
) -> None:
    """Everything that is known of the caller comes back from Redis."""
    client, office = reader
    who = Principal("a/ü:{b}", "t{1}", "Ada L", frozenset({"read", "admin"}), time.time() + 9)
    ticket = await office.make(who, None)
    answer = await client.get(f"/stream?ticket={ticket}")
    assert msgspec.json.decode(await answer.read(), type=Principal) == who
