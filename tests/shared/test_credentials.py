"""Which credentials a request may show, and where: a real application, real requests."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any, Final

import jwt
import pytest
from aiohttp import WSServerHandshakeError, web
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

from shared.authenticator import IdentitySettings, authenticator
from shared.errors import Unauthorized
from shared.identity import (
    TICKETS,
    Principal,
    credentials_in_url,
    identify,
    principal_of,
)
from shared.web import create_application

SECRET: Final = "0123456789abcdef0123456789abcdef"
KEY: Final = "upl1_" + SECRET * 2
TICKET: Final = "a-ticket"
TOKEN: Final = jwt.encode({"sub": "token-user", "exp": time.time() + 3600}, SECRET, "HS256")
BEARER: Final = {"Authorization": f"Bearer {TOKEN}"}
BY_KEY: Final = {"X-API-KEY": KEY, "X-Username": "key-user"}
KEY_IN_URL: Final = {"api_key": KEY, "username": "key-user"}

Client = TestClient[web.Request, web.Application]
Way = dict[str, Any]


class OneTicket:
    """Takes one ticket, any number of times."""

    async def redeem(self, ticket: str, _request: web.Request) -> Principal:
        """Compare it."""
        if ticket != TICKET:
            raise Unauthorized("no")
        return Principal("ticket-user", "acme", "t", frozenset(), None)


async def who(request: web.Request) -> web.StreamResponse:
    """Say who is calling."""
    return web.json_response(principal_of(request).user_id)


@credentials_in_url
async def stream(request: web.Request) -> web.StreamResponse:
    """Say it to an ``EventSource``."""
    return await who(request)


async def socket(request: web.Request) -> web.StreamResponse:
    """Say it on a WebSocket."""
    ws = web.WebSocketResponse(protocols=("bearer",))
    await ws.prepare(request)
    await ws.send_str(principal_of(request).user_id)
    await ws.close()
    return ws


@pytest.fixture
async def client(aiohttp_client: AiohttpClient, tmp_path: Path) -> Client:
    """Talk to an application that takes tokens, keys and tickets."""
    file = tmp_path / "keys"
    file.write_text(f"upl1 {hashlib.sha256((SECRET * 2).encode()).hexdigest()} acme")
    settings = IdentitySettings(
        auth_mode="required", auth_jwt_secret=SECRET, auth_api_keys_file=file
    )
    app = create_application(identify(authenticator(settings)))
    app[TICKETS] = OneTicket()
    app.router.add_get("/who", who)
    app.router.add_post("/who", who)
    app.router.add_get("/ws", socket)
    app.router.add_get("/stream", stream)
    app.router.add_post("/stream", stream)
    return await aiohttp_client(app)


async def asked(client: Client, path: str, way: Way, method: str = "GET") -> tuple[int, Any]:
    """Return status and body of a request."""
    async with client.request(method, path, **way) as answer:
        return answer.status, await answer.json(content_type=None)


HEADERS: Final[dict[str, tuple[Way, str]]] = {
    "token": ({"headers": BEARER}, "token-user"),
    "key": ({"headers": BY_KEY}, "key-user"),
    "key, other case": ({"headers": {"x-api-key": KEY, "X-USERNAME": "ada"}}, "ada"),
    "token and a name": ({"headers": {**BEARER, "X-Username": "eve"}}, "token-user"),
}
URLS: Final[dict[str, tuple[Way, str]]] = {
    "token in the URL": ({"params": {"token": TOKEN}}, "token-user"),
    "key in the URL": ({"params": KEY_IN_URL}, "key-user"),
    "ticket": ({"params": {"ticket": TICKET}}, "ticket-user"),
}


@pytest.mark.parametrize("kind", HEADERS)
async def test_headers(client: Client, kind: str) -> None:
    """Tokens and keys are good in the headers of any request."""
    way, user = HEADERS[kind]
    for method, path in (("GET", "/who"), ("POST", "/who"), ("GET", "/stream")):
        assert await asked(client, path, way, method) == (200, user)
    async with client.ws_connect("/ws", **way) as ws:
        assert await ws.receive_str() == user


@pytest.mark.parametrize("kind", URLS)
async def test_security_item_24_urls(client: Client, kind: str) -> None:
    """In a URL they are good where browsers can set no headers, and nowhere else."""
    way, user = URLS[kind]
    assert await asked(client, "/stream", way) == (200, user)
    async with client.ws_connect("/ws", **way) as ws:
        assert await ws.receive_str() == user
    for method, path in (("GET", "/who"), ("POST", "/who"), ("POST", "/stream")):
        status, problem = await asked(client, path, way, method)
        assert (status, problem["error_code"]) == (401, "UNAUTHORIZED")


BAD: Final[dict[str, Way]] = {
    "key without a name": {"headers": {"X-API-KEY": KEY}},
    "name without a key": {"headers": {"X-Username": "ada"}},
    "empty key": {"headers": {"X-API-KEY": "", "X-Username": "ada"}},
    "empty name": {"headers": {"X-API-KEY": KEY, "X-Username": ""}},
    "two keys": {"headers": [*BY_KEY.items(), ("X-API-KEY", KEY)]},
    "two names": {"headers": [*BY_KEY.items(), ("X-Username", "eve")]},
    "key as a bearer token": {"headers": {"Authorization": f"Bearer {KEY}"}},
    "token as a key": {"headers": {"X-API-KEY": TOKEN, "X-Username": "token-user"}},
    "token and key": {"headers": {**BEARER, **BY_KEY}},
    "good token, bad key": {"headers": {**BEARER, "X-API-KEY": "x", "X-Username": "ada"}},
    "bad token, good key": {"headers": {**BY_KEY, "Authorization": "Bearer x.y.z"}},
    "Basic and a key": {"headers": {**BY_KEY, "Authorization": "Basic dTpw"}},
}
BAD_IN_URL: Final[dict[str, Way]] = {
    "key without a name": {"params": {"api_key": KEY}},
    "name without a key": {"params": {"username": "ada"}},
    "key in the URL, name in a header": {
        "params": {"api_key": KEY},
        "headers": {"X-Username": "ada"},
    },
    "two tokens": {"params": [("token", TOKEN), ("token", TOKEN)]},
    "two tickets": {"params": [("ticket", TICKET), ("ticket", TICKET)]},
    "two keys": {"params": [*KEY_IN_URL.items(), ("api_key", KEY)]},
    "two names": {"params": [*KEY_IN_URL.items(), ("username", "eve")]},
    "token and ticket": {"params": {"token": TOKEN, "ticket": TICKET}},
    "token and key": {"params": {"token": TOKEN, **KEY_IN_URL}},
    "ticket and key": {"params": {"ticket": TICKET, **KEY_IN_URL}},
    "token twice, in header and URL": {"params": {"token": TOKEN}, "headers": BEARER},
    "key twice, in headers and URL": {"params": KEY_IN_URL, "headers": BY_KEY},
    "bad ticket, good token": {"params": {"ticket": "x"}, "headers": BEARER},
    "empty ticket": {"params": {"ticket": ""}},
    "empty token": {"params": {"token": ""}},
    "token as a ticket": {"params": {"ticket": TOKEN}},
    "ticket as a token": {"params": {"token": TICKET}},
}


@pytest.mark.parametrize("kind", BAD)
async def test_security_item_23_bad_headers(client: Client, kind: str) -> None:
    """Anything but exactly one good credential is refused, with a challenge."""
    async with client.get("/who", **BAD[kind]) as answer:
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    with pytest.raises(WSServerHandshakeError) as refused:
        await client.ws_connect("/ws", **BAD[kind])
    assert refused.value.status == 401


@pytest.mark.parametrize("kind", BAD_IN_URL)
async def test_security_item_24_bad_urls(client: Client, kind: str) -> None:
    """So it is in URLs; a good credential in a header does not make up for them."""
    assert (await asked(client, "/stream", BAD_IN_URL[kind]))[0] == 401
    with pytest.raises(WSServerHandshakeError) as refused:
        await client.ws_connect("/ws", **BAD_IN_URL[kind])
    assert refused.value.status == 401


async def test_subprotocol_and_another(client: Client) -> None:
    """A token among the subprotocols counts as one of two as well."""
    async with client.ws_connect("/ws", protocols=("bearer", TOKEN)) as ws:
        assert await ws.receive_str() == "token-user"
    ways: list[Way] = [{"headers": BY_KEY}, {"params": {"ticket": TICKET}}, {"headers": BEARER}]
    for way in ways:
        with pytest.raises(WSServerHandshakeError):
            await client.ws_connect("/ws", protocols=("bearer", TOKEN), **way)


async def test_tickets_elsewhere(aiohttp_client: AiohttpClient) -> None:
    """A service that makes no tickets takes none."""
    settings = IdentitySettings(auth_mode="required", auth_jwt_secret=SECRET)
    app = create_application(identify(authenticator(settings)))
    app.router.add_get("/stream", stream)
    client = await aiohttp_client(app)
    assert (await asked(client, "/stream", {"params": {"ticket": TICKET}}))[0] == 401


async def test_names_beyond_ascii(client: Client) -> None:
    """A name in UTF-8 arrives as it was meant, in a header and in a URL."""
    for way in (
        {"headers": {"X-API-KEY": KEY, "X-Username": "Zoë"}},
        {"params": {"api_key": KEY, "username": "Zoë"}},
    ):
        assert await asked(client, "/stream", way) == (200, "Zoë")
