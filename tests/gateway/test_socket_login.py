"""Who is let in, how they say who they are, and when they must go again."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable

import pytest

from shared.identity import Principal
from tests.gateway.conftest import ORIGIN, StartGateway, bearer, token_of
from tests.gateway.dialling import DIALS, Dial
from tests.gateway.feed import Feed
from tests.gateway.raw_socket import BINARY, PING, RawSocket, frame
from tests.gateway.samples import Told, admin, principal
from tests.processes import ServiceProcess

DASHBOARD = "/ws/upload-progress"
MEDIA = "/api/v1/ws"


@pytest.fixture(params=sorted(DIALS))
def dial(request: pytest.FixtureRequest) -> Dial:
    """Each client library."""
    return DIALS[request.param]


@pytest.fixture
async def told(feed: Feed, caller: Principal) -> Told:
    """An upload of the caller."""
    told = Told(owner=caller)
    await feed.tell(told.created())
    return told


async def test_by_header(
    gateway: ServiceProcess, dial: Dial, caller: Principal, told: Told
) -> None:
    """A program sends its token in the header."""
    async with dial(f"{gateway.url}{MEDIA}/{told.id}", bearer(caller)) as peer:
        assert (await peer.hear())["type"] == "created"


async def test_security_item_24_by_query(
    gateway: ServiceProcess, dial: Dial, caller: Principal, told: Told
) -> None:
    """A page may put it into the URL (000:174); it does not get into the log."""
    token = token_of(caller)
    async with dial(f"{gateway.url}{MEDIA}/{told.id}?token={token}") as peer:
        assert (await peer.hear())["type"] == "created"
    assert token not in gateway.log.read_text()
    assert token.split(".")[2] not in gateway.log.read_text()


async def test_by_subprotocol(
    gateway: ServiceProcess, dial: Dial, caller: Principal, told: Told
) -> None:
    """A page may offer it as a subprotocol; the server chooses ``bearer``, never the token."""
    offered = ("bearer", token_of(caller))
    async with dial(f"{gateway.url}{MEDIA}/{told.id}", protocols=offered) as peer:
        assert peer.subprotocol == "bearer"
        assert (await peer.hear())["type"] == "created"


@pytest.mark.parametrize(
    "message",
    [{"token": "{}"}, {"type": "authenticate", "token": "{}"}],
    ids=["bare", "typed"],
)
@pytest.mark.parametrize("path", [MEDIA, DASHBOARD])
async def test_by_first_message(
    gateway: ServiceProcess,
    dial: Dial,
    caller: Principal,
    told: Told,
    path: str,
    message: dict[str, str],
) -> None:
    """It may come in the first message (000:182); it is answered, then the state comes."""
    async with dial(f"{gateway.url}{path}/{told.id}") as peer:
        await peer.say({**message, "token": token_of(caller)})
        kinds = [next(iter((await peer.hear()).values())) for _ in range(2)]
        first = "created" if path == MEDIA else "upload_progress"
        assert kinds == ["authenticated", first]


async def test_first_message_that_asks_for_more(
    gateway: ServiceProcess, dial: Dial, caller: Principal, told: Told
) -> None:
    """A first message with a token may subscribe in the same breath (000:179 to 183)."""
    async with dial(f"{gateway.url}{DASHBOARD}") as peer:
        await peer.say(
            {"type": "subscribe_session", "session_id": told.id, "token": token_of(caller)}
        )
        kinds = [(await peer.hear())["event_type"] for _ in range(2)]
        assert kinds == ["upload_progress", "subscribed"]


async def test_no_token_in_time(gateway: ServiceProcess, dial: Dial, told: Told) -> None:
    """Who says nothing within the limit is told why, and closed with 4001."""
    started = time.monotonic()
    async with dial(f"{gateway.url}{MEDIA}/{told.id}") as peer:
        error = await peer.hear()
        assert (error["type"], error["message"]) == ("error", "Authentication is required.")
        assert await peer.end() == 4001
    assert 0.9 < time.monotonic() - started < 8


async def test_noise_is_no_token(gateway: ServiceProcess, told: Told) -> None:
    """Pings and binary messages do not prolong the time to say who is calling."""
    started = time.monotonic()
    async with RawSocket.opened(gateway.port, f"{MEDIA}/{told.id}") as peer:

        async def make_noise() -> None:
            while True:
                await peer.send(frame(PING) + frame(BINARY, b"x"))
                await asyncio.sleep(0.1)

        noise = asyncio.ensure_future(make_noise())
        assert await peer.end() == 4001
        noise.cancel()
        await asyncio.wait({noise})
    assert time.monotonic() - started < 8


@pytest.mark.parametrize("message", ["{", "[]", '{"type":"ping"}', '{"type":[]}', "\x00"])
async def test_first_message_without_token(
    gateway: ServiceProcess, told: Told, message: str
) -> None:
    """Anything but a token as the first message ends the socket, with the reason."""
    for path in (MEDIA, DASHBOARD):
        async with RawSocket.opened(gateway.port, f"{path}/{told.id}") as peer:
            await peer.say(message)
            assert "Authentication is required." in str(await peer.hear())
            assert await peer.end() == 4001


def _unsigned(caller: Principal) -> str:
    parts = ({"alg": "none"}, {"sub": caller.user_id, "exp": time.time() + 60})
    encoded = [base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=") for one in parts]
    return b".".join([*encoded, b"x"]).decode()


BAD_TOKENS: dict[str, Callable[[Principal], str]] = {
    "garbage": lambda _: "garbage",
    "expired": lambda caller: token_of(caller, lives_s=-120),
    "unsigned": _unsigned,
    "cut": lambda caller: token_of(caller)[:-4],
    "without sub": lambda caller: token_of(caller, sub=None),
    "long": lambda _: "x" * 7000,
}


@pytest.mark.parametrize("kind", BAD_TOKENS)
@pytest.mark.parametrize("way", ["header", "query", "subprotocol", "message"])
async def test_bad_tokens(
    gateway: ServiceProcess, caller: Principal, told: Told, kind: str, way: str
) -> None:
    """A token that is no good, whichever way it comes, ends the socket with 4001."""
    token, path, headers = BAD_TOKENS[kind](caller), f"{MEDIA}/{told.id}", []
    if way == "header":
        headers = [("Authorization", f"Bearer {token}")]
    elif way == "query":
        path += f"?token={token}"
    elif way == "subprotocol":
        headers = [("Sec-WebSocket-Protocol", f"bearer, {token}")]
    async with RawSocket.opened(gateway.port, path, headers=headers) as peer:
        assert peer.status == 101
        if way == "message":
            await peer.say({"token": token})
        assert (await peer.hear())["type"] == "error"
        assert await peer.end() == 4001
    assert token not in gateway.log.read_text()


async def test_expiry_ends_the_socket(
    gateway: ServiceProcess, dial: Dial, caller: Principal, told: Told
) -> None:
    """When the token ends, so does the socket, with 4001."""
    token = token_of(caller, lives_s=1.2)
    started = time.monotonic()
    async with dial(f"{gateway.url}{MEDIA}/{told.id}?token={token}") as peer:
        await peer.hear()
        assert await peer.end() == 4001
    assert 0.5 < time.monotonic() - started < 8


async def test_refresh(
    gateway: ServiceProcess, dial: Dial, caller: Principal, told: Told, feed: Feed
) -> None:
    """A newer token keeps the socket; events go on past the end of the older one."""
    token = token_of(caller, lives_s=1.5)
    async with dial(f"{gateway.url}{MEDIA}/{told.id}?token={token}") as peer:
        await peer.hear()
        await peer.say({"type": "authenticate", "token": token_of(caller)})
        assert (await peer.hear())["type"] == "authenticated"
        await asyncio.sleep(1.7)
        await feed.tell(told.completed())
        assert (await peer.hear())["type"] == "complete"


async def test_refresh_that_shortens(
    gateway: ServiceProcess, dial: Dial, caller: Principal, told: Told
) -> None:
    """The newest token counts, also if it ends sooner."""
    async with dial(f"{gateway.url}{MEDIA}/{told.id}", bearer(caller)) as peer:
        await peer.hear()
        await peer.say({"token": token_of(caller, lives_s=0.5)})
        assert (await peer.hear())["type"] == "authenticated"
        assert await peer.end() == 4001


@pytest.mark.parametrize(
    ("make_token", "code"),
    [
        (lambda: "garbage", 4001),
        (lambda: token_of(principal("somebody-else")), 4003),
        (lambda: token_of(lives_s=-120), 4001),
    ],
    ids=["garbage", "somebody else's", "expired"],
)
async def test_security_item_26_bad_refresh(
    gateway: ServiceProcess,
    dial: Dial,
    caller: Principal,
    told: Told,
    make_token: Callable[[], str],
    code: int,
) -> None:
    """A refresh that fails drops the rights that there were (security item 26)."""
    async with dial(f"{gateway.url}{DASHBOARD}/{told.id}", bearer(caller)) as peer:
        await peer.hear()
        await peer.say({"type": "ping", "token": make_token()})
        assert (await peer.hear())["event_type"] == "error"
        assert await peer.end() == code


async def test_refresh_with_fewer_rights(
    gateway: ServiceProcess, dial: Dial, told: Told, feed: Feed
) -> None:
    """Whoever is no admin any more loses what only an admin may see."""
    boss = admin()
    plain = principal(boss.user_id, boss.tenant)
    async with dial(f"{gateway.url}{DASHBOARD}/{told.id}", bearer(boss)) as peer:
        assert (await peer.hear())["event_type"] == "upload_progress"
        await peer.say({"token": token_of(plain)})
        assert "Access denied to this upload" in str(await peer.hear())
        assert await peer.end() == 4003
    async with dial(f"{gateway.url}{DASHBOARD}", bearer(boss)) as peer:
        await peer.say({"type": "subscribe_session", "session_id": told.id})
        assert [(await peer.hear())["event_type"] for _ in range(2)][1] == "subscribed"
        await peer.say({"token": token_of(plain)})
        kinds = [(await peer.hear())["event_type"] for _ in range(2)]
        assert kinds == ["error", "authenticated"]
        await feed.tell(told.completed())
        await peer.say({"type": "get_stats"})
        assert (await peer.hear())["data"] == {"subscriptions": 0}


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "https://app.example.evil.example",
        "https://app.example:8443",
        "http://app.example",
        "HTTPS://APP.EXAMPLE",
        "https://app.example/",
        "null",
        "",
    ],
)
async def test_security_item_25_foreign_pages(
    gateway: ServiceProcess, caller: Principal, told: Told, origin: str
) -> None:
    """A page that may not is refused before the handshake, token or not (security item 25)."""
    headers = [*bearer(caller).items(), ("Origin", origin)]
    path = f"{MEDIA}/{told.id}"
    async with RawSocket.opened(gateway.port, path, headers=headers) as peer:
        assert peer.status == 403
        assert (await peer.body())["error_code"] == "UNAUTHORIZED_ACCESS"


async def test_allowed_pages(gateway: ServiceProcess, caller: Principal, told: Told) -> None:
    """A page on the list, and one of the gateway's own origin, are let in."""
    own = f"http://127.0.0.1:{gateway.port}"
    for origin in (ORIGIN, own):
        headers = [*bearer(caller).items(), ("Origin", origin)]
        path = f"{MEDIA}/{told.id}"
        async with RawSocket.opened(gateway.port, path, headers=headers) as peer:
            assert peer.status == 101
            assert (await peer.hear())["type"] == "created"


async def test_security_item_25_two_origins(
    gateway: ServiceProcess, caller: Principal, told: Told
) -> None:
    """Two ``Origin`` headers are refused, even if one of them is allowed."""
    headers = [*bearer(caller).items(), ("Origin", ORIGIN), ("Origin", "https://evil.example")]
    async with RawSocket.opened(gateway.port, f"{MEDIA}/{told.id}", headers=headers) as peer:
        assert peer.status in {400, 403}


async def test_full(start_gateway: StartGateway, feed: Feed) -> None:
    """A full process refuses before the handshake, with a time to come back; then has room."""
    service = start_gateway(WEBSOCKET_MAX_CONNECTIONS_TOTAL="2", AUTH_MODE="open")
    told = Told(owner=principal("local", "local"))
    await feed.tell(told.created())
    path = f"{MEDIA}/{told.id}"
    async with RawSocket.opened(service.port, path) as first:
        async with RawSocket.opened(service.port, path) as second:
            await second.hear()
            refused = [RawSocket.opened(service.port, path) for _ in range(5)]
            for one in refused:
                async with one as third:
                    assert third.status == 503
                    assert int(third.headers["Retry-After"]) >= 1
                    assert (await third.body())["error_code"] == "SERVICE_UNAVAILABLE"
        async with asyncio.timeout(10):
            status = 503
            while status == 503:
                async with RawSocket.opened(service.port, path) as again:
                    status = again.status
        assert status == 101
        await first.hear()


async def test_no_race_for_the_last_place(start_gateway: StartGateway) -> None:
    """However many handshakes come at once, no more than the limit get in."""
    service = start_gateway(WEBSOCKET_MAX_CONNECTIONS_TOTAL="5", AUTH_MODE="open")
    done = asyncio.Event()
    statuses: list[int] = []

    async def knock() -> None:
        async with RawSocket.opened(service.port, DASHBOARD) as one:
            statuses.append(one.status)
            await done.wait()

    knocking = [asyncio.ensure_future(knock()) for _ in range(40)]
    async with asyncio.timeout(10):
        while len(statuses) < 40:
            await asyncio.sleep(0.01)
    done.set()
    await asyncio.wait(knocking)
    assert statuses.count(101) == 5
    assert statuses.count(503) == 35


async def test_no_handshake(gateway: ServiceProcess, caller: Principal, told: Told) -> None:
    """A plain GET of a socket's path is an error of the client, and needs credentials."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    credentials = f"Authorization: {bearer(caller)['Authorization']}\r\n"
    for extra, status in (("", b"401"), (credentials, b"426")):
        request = f"GET {MEDIA}/{told.id} HTTP/1.1\r\nHost: 127.0.0.1\r\n{extra}\r\n"
        writer.write(request.encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert head.split()[1] == status
        length = next(
            line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        await reader.readexactly(int(length.split(b":")[1]))
    writer.close()
    await writer.wait_closed()
