"""Who gets in, seen from the wire: a real application, real sockets, tokens of every kind."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any, Final

import jwt
import pytest
import structlog
from aiohttp import WSServerHandshakeError, web
from aiohttp.test_utils import TestServer
from aiohttp.typedefs import Handler
from pytest_aiohttp import AiohttpClient, AiohttpServer

from shared.authenticator import IdentitySettings, authenticator
from shared.credentials import credentials
from shared.errors import StartupError, Unauthorized
from shared.identity import (
    BEARER_SUBPROTOCOL,
    PRINCIPAL,
    Principal,
    authenticates_itself,
    identify,
    overridable,
    principal_from,
    principal_of,
    public,
)
from shared.loopback import require_loopback
from shared.web import create_application

SECRET: Final = "0123456789abcdef0123456789abcdef"
OTHER_SECRET: Final = "fedcba9876543210fedcba9876543210"
PUBLIC_PEM: Final = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----\n"
INVALID: Final = 'Bearer error="invalid_token"'
REQUIRED: Final = IdentitySettings(
    auth_mode="required",
    auth_jwt_secret=SECRET,
    auth_jwt_audience="uploads",
    auth_jwt_issuer="https://id.example",
)
CALLS: Final = web.AppKey("calls", list[str])


def claims(**changes: object) -> dict[str, Any]:
    """Return good claims for ``REQUIRED``, changed; ``...`` removes one."""
    good: dict[str, object] = {
        "sub": "u-1",
        "aud": "uploads",
        "iss": "https://id.example",
        "exp": time.time() + 60,
    }
    return {name: value for name, value in (good | changes).items() if value is not ...}


def token(**changes: object) -> str:
    """Return a well signed token."""
    return jwt.encode(claims(**changes), SECRET, "HS256")


def _part(value: bytes) -> str:
    """Return one segment of a token."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def forged(
    header: object, body: object = None, *, secret: str = SECRET, sign: bool = True
) -> str:
    """Return a token with any header, signed with HMAC-SHA-256 whatever the header says.

    ``body`` becomes JSON, unless it is bytes.
    """
    payload = claims() if body is None else body
    texts = [p if isinstance(p, bytes) else json.dumps(p).encode() for p in (header, payload)]
    signed = ".".join(_part(text) for text in texts)
    mac = hmac.digest(secret.encode(), signed.encode(), hashlib.sha256) if sign else b""
    return f"{signed}.{_part(mac)}"


def logged_as() -> str | None:
    """Return the user that a log line written now would name."""
    user_id: str | None = structlog.contextvars.get_contextvars().get("user_id")
    return user_id


@web.middleware
async def user_told(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Say in a header whom the log context names once the request is handled."""
    response = await handler(request)
    if not response.prepared:
        response.headers["X-User"] = str(logged_as())
    return response


async def whoami(request: web.Request) -> web.StreamResponse:
    """Tell the caller who he is and what the log context holds."""
    request.app[CALLS].append("whoami")
    who = principal_of(request)
    return web.json_response(
        {
            "user_id": who.user_id,
            "tenant": who.tenant,
            "username": who.username,
            "scopes": sorted(who.scopes),
            "expires_at": who.expires_at,
            "logged_as": logged_as(),
        }
    )


@public
async def health(_request: web.Request) -> web.StreamResponse:
    """Answer anyone, with the user that the log context names."""
    return web.json_response(logged_as())


async def socket(request: web.Request) -> web.StreamResponse:
    """Open a WebSocket that says whose it is."""
    ws = web.WebSocketResponse(protocols=("events.v1.json", BEARER_SUBPROTOCOL))
    await ws.prepare(request)
    await ws.send_str(principal_of(request).user_id)
    await ws.close()
    return ws


@authenticates_itself
async def late_socket(request: web.Request) -> web.StreamResponse:
    """Open a WebSocket that has no principal yet."""
    request.app[CALLS].append("late_socket")
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    with pytest.raises(Unauthorized):
        principal_of(request)
    await ws.close(code=4001)
    return ws


async def told_who(request: web.Request) -> web.Response:
    """Say whether there is a principal."""
    return web.json_response(PRINCIPAL in request)


def application(settings: IdentitySettings = REQUIRED) -> web.Application:
    """Build an application with one route of each kind."""
    app = create_application(user_told, identify(authenticator(settings)))
    app[CALLS] = []
    app.router.add_get("/whoami", whoami)
    app.router.add_post("/whoami", whoami)
    app.router.add_options("/whoami", whoami)
    app.router.add_options("/discovery", health)
    app.router.add_get("/health", health)
    app.router.add_get("/healthz-private", whoami)
    app.router.add_route("*", "/override", overridable(told_who))
    app.router.add_get("/ws", socket)
    app.router.add_get("/ws/late", late_socket)
    return app


async def exchange(server: TestServer, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send raw bytes on a new connection; return the status, headers and body of the answer."""
    assert server.port is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(request)
        async with asyncio.timeout(5):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {
                name.lower(): value
                for name, _, value in (line.partition(": ") for line in head[1:] if line)
            }
            body = await reader.readexactly(int(headers.get("content-length", 0)))
    finally:
        writer.close()
        await writer.wait_closed()
    return int(head[0].split()[1]), headers, body


def get(*authorizations: bytes, path: bytes = b"/whoami", rest: bytes = b"") -> bytes:
    """Return the bytes of a GET with these ``Authorization`` lines."""
    lines = b"".join(b"Authorization: " + value + b"\r\n" for value in authorizations)
    return b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n" + lines + rest + b"\r\n"


@pytest.fixture
async def server(aiohttp_server: AiohttpServer) -> TestServer:
    """Serve the application that requires tokens, with room for headers over the limit."""
    return await aiohttp_server(application(), max_field_size=65536, max_line_size=65536)


BAD_TOKENS: Final[dict[str, Callable[[], str]]] = {
    "alg none": lambda: forged({"alg": "none"}, sign=False),
    "alg none with an HMAC": lambda: forged({"alg": "none"}),
    "alg none, PyJWT": lambda: jwt.encode(claims(), None, "none"),  # type: ignore[arg-type]
    "alg None": lambda: forged({"alg": "None"}, sign=False),
    "alg nOnE": lambda: forged({"alg": "nOnE"}),
    "alg NONE": lambda: forged({"alg": "NONE"}),
    "alg hs256": lambda: forged({"alg": "hs256"}),
    "alg HS512": lambda: jwt.encode(claims(), SECRET * 2, "HS512"),
    "alg RS256 with an HMAC": lambda: forged({"alg": "RS256"}),
    "HS256 with a public key": lambda: forged({"alg": "HS256"}, secret=PUBLIC_PEM),
    "no alg": lambda: forged({"typ": "JWT"}),
    "alg null": lambda: forged({"alg": None}),
    "alg a list": lambda: forged({"alg": ["HS256"]}),
    "alg an object": lambda: forged({"alg": {"HS256": 1}}),
    "header a list": lambda: forged(["HS256"]),
    "header deeply nested": lambda: _part(b"[" * 5000) + ".e30.e30",
    "header not JSON": lambda: _part(b"\xff{") + ".e30.e30",
    "wrong key": lambda: jwt.encode(claims(), OTHER_SECRET, "HS256"),
    "signature cut": lambda: token()[:-3],
    "claims changed": lambda: ".".join(
        [token().split(".")[0], token(sub="root").split(".")[1], token().split(".")[2]]
    ),
    "crit with CRLF": lambda: forged({"alg": "HS256", "crit": ["a\r\nX-Evil: 1"]}),
    "crit b64": lambda: forged({"alg": "HS256", "crit": ["b64"], "b64": True}),
    "b64 false": lambda: forged({"alg": "HS256", "crit": ["b64"], "b64": False}),
    "crit empty": lambda: forged({"alg": "HS256", "crit": []}),
    "jku": lambda: forged({"alg": "HS256", "jku": "http://127.0.0.1:1/keys"}),
    "x5u": lambda: forged({"alg": "HS256", "x5u": "http://127.0.0.1:1/cert"}),
    "x5c": lambda: forged({"alg": "HS256", "x5c": ["MII"]}),
    "jwk": lambda: forged({"alg": "HS256", "jwk": {"kty": "oct", "k": "AA"}}),
    "kid a number": lambda: forged({"alg": "HS256", "kid": 7}),
    "typ of another token": lambda: forged({"alg": "HS256", "typ": "logout+jwt"}),
    "typ null": lambda: forged({"alg": "HS256", "typ": None}),
    "expired": lambda: token(exp=time.time() - 31),
    "expired long ago": lambda: token(exp=1),
    "expired, wrong audience": lambda: token(exp=time.time() - 5, aud="billing"),
    "expired, wrong issuer": lambda: token(exp=time.time() - 5, iss="https://evil.example"),
    "nbf ahead": lambda: token(nbf=time.time() + 40),
    "iat ahead": lambda: token(iat=time.time() + 40),
    "nbf not a number": lambda: token(nbf="soon"),
    "no exp": lambda: token(exp=...),
    "exp null": lambda: token(exp=None),
    "exp a string": lambda: token(exp=str(int(time.time()) + 60)),
    "exp true": lambda: token(exp=True),
    "exp infinite": lambda: token(exp=float("inf")),
    "exp NaN": lambda: token(exp=float("nan")),
    "exp in milliseconds": lambda: token(exp=int(time.time() * 1000)),
    "exp of 4000 digits": lambda: token(exp=10**4000),
    "exp negative": lambda: token(exp=-1),
    "exp a list": lambda: token(exp=[1]),
    "no sub": lambda: token(sub=...),
    "sub null": lambda: forged({"alg": "HS256"}, claims(sub=None)),
    "sub a number": lambda: token(sub=7),
    "sub empty": lambda: token(sub=""),
    "sub a list": lambda: token(sub=["u-1"]),
    "sub with a space": lambda: token(sub="u 1"),
    "sub with CRLF": lambda: token(sub="u\r\nX: 1"),
    "sub with NUL": lambda: token(sub="u\0"),
    "sub with a bidi override": lambda: token(sub="u\u202e1"),
    "sub with a lone surrogate": lambda: token(sub="u\ud800"),
    "sub too long": lambda: token(sub="u" * 129),
    "tenant empty": lambda: token(tenant=""),
    "tenant null": lambda: token(tenant=None),
    "tenant a number": lambda: token(tenant=7),
    "tenant too long": lambda: token(tenant="t" * 129),
    "company with a newline": lambda: token(company="t\n"),
    "tenant bad, company good": lambda: token(tenant="a b", company="acme"),
    "scope a number": lambda: token(scope=7),
    "scope of numbers": lambda: token(scope=["read", 7]),
    "no aud": lambda: token(aud=...),
    "other aud": lambda: token(aud="billing"),
    "aud with a prefix": lambda: token(aud="uploads-admin"),
    "aud an object": lambda: token(aud={"uploads": 1}),
    "no iss": lambda: forged({"alg": "HS256"}, claims(iss=...)),
    "part of iss": lambda: token(iss="https://id"),
    "iss a list": lambda: forged({"alg": "HS256"}, claims(iss=["https://id.example"])),
    "claims a list": lambda: forged({"alg": "HS256"}, [1]),
    "claims not JSON": lambda: forged({"alg": "HS256"}, b"{"),
    "two segments": lambda: "e30.e30",
    "four segments": lambda: token() + ".e30",
    "five segments": lambda: "e30.e30.e30.e30.e30",
    "empty signature": lambda: token().rsplit(".", 1)[0] + ".",
    "padding": lambda: token() + "=",
    "plus and slash": lambda: "a+/.b+/.c+/",
    "quoted": lambda: f'"{token()}"',
    "percent encoded": lambda: token().replace(".", "%2E"),
    "8193 characters": lambda: token(pad="x" * 9000)[:8193],
    "well signed but huge": lambda: token(pad="x" * 9000),
    "garbage": lambda: "garbage",
}


@pytest.mark.parametrize("make", BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
async def test_security_item_22_bad_token(
    server: TestServer,
    make: Callable[[], str],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A bad token gets 401 with the challenge, reaches no handler and leaves no traceback."""
    bad = make()
    status, headers, body = await exchange(server, get(b"Bearer " + bad.encode()))
    assert (status, headers["www-authenticate"]) == (401, INVALID)
    assert json.loads(body)["detail"] in {
        "The token is not valid.",
        "The token has expired.",
        "The token's claims are not valid.",
    }
    logged = caplog.text + "".join(capsys.readouterr())
    assert server.app[CALLS] == []
    assert "Traceback" not in logged
    assert bad not in logged
    assert not [record for record in caplog.records if record.exc_info]


BAD_AUTHORIZATIONS: Final[dict[str, Callable[[bytes], tuple[bytes, ...]]]] = {
    "BearerXYZ": lambda good: (b"BearerXYZ " + good,),
    "XBearer": lambda good: (b"XBearer " + good,),
    "no scheme": lambda good: (good,),
    "no space": lambda good: (b"Bearer" + good,),
    "scheme alone": lambda _: (b"Bearer",),
    "empty": lambda _: (b"",),
    "Basic": lambda _: (b"Basic dTpw",),
    "Basic with the token": lambda good: (b"Basic " + good,),
    "two tokens": lambda good: (b"Bearer " + good + b" " + good,),
    "two tokens, comma": lambda good: (b"Bearer " + good + b", Bearer " + good,),
    "two lines": lambda good: (b"Bearer " + good, b"Bearer " + good),
    "bad line first": lambda good: (b"Basic dTpw", b"Bearer " + good),
    "tab": lambda good: (b"Bearer\t" + good,),
    "tab after the space": lambda good: (b"Bearer \t" + good,),
    "not UTF-8": lambda _: (b"Bearer \xff\xfe.\x80.\x81",),
    "not UTF-8 after the token": lambda good: (b"Bearer " + good + b"\xff",),
    "not UTF-8 scheme": lambda good: (b"B\xe9arer " + good,),
    "Cyrillic letter": lambda good: ("Bеarer ".encode() + good,),  # noqa: RUF001
    "no-break space": lambda good: ("Bearer\xa0".encode() + good,),
}


@pytest.mark.parametrize("make", BAD_AUTHORIZATIONS.values(), ids=BAD_AUTHORIZATIONS.keys())
async def test_bad_authorization(
    server: TestServer,
    make: Callable[[bytes], tuple[bytes, ...]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An Authorization header that isn't exactly one bearer token gets 401, not a guess."""
    status, headers, _ = await exchange(server, get(*make(token().encode())))
    assert (status, headers["www-authenticate"]) == (401, INVALID)
    assert server.app[CALLS] == []
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "scheme", [b"Bearer ", b"bearer ", b"BEARER ", b"Bearer    ", b"  Bearer "]
)
async def test_scheme_spelling(server: TestServer, scheme: bytes) -> None:
    """The scheme has no case and may have several spaces after it (RFC 9110 section 11.4)."""
    status, _, _ = await exchange(server, get(scheme + token().encode() + b"  "))
    assert status == 200


async def test_no_credentials(server: TestServer) -> None:
    """Without credentials the challenge has no error code (RFC 6750 section 3.1)."""
    status, headers, _ = await exchange(server, get())
    assert (status, headers["www-authenticate"]) == (401, 'Bearer realm="uploads"')
    assert server.app[CALLS] == []


@pytest.mark.parametrize("path", [b"/nowhere", b"/health/../whoami", b"/healthz-private"])
async def test_nothing_is_open_by_its_path(server: TestServer, path: bytes) -> None:
    """A path that is unknown, or looks like a public one, needs credentials."""
    status, _, _ = await exchange(server, get(path=path))
    assert status == 401


async def test_body_is_not_read(server: TestServer) -> None:
    """The refusal comes after the request's head, while its body is still unsent."""
    head = b"POST /whoami HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    status, _, _ = await exchange(server, head)
    assert status == 401
    assert server.app[CALLS] == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("default", "u-1", [])),
        ({"tenant": "acme"}, ("acme", "u-1", [])),
        ({"company": "acme"}, ("acme", "u-1", [])),
        ({"tenant": "acme", "company": "other"}, ("acme", "u-1", [])),
        ({"scope": "write admin  read"}, ("default", "u-1", ["admin", "read", "write"])),
        ({"scope": ["write", "admin"]}, ("default", "u-1", ["admin", "write"])),
        ({"name": "Ada Lovelace"}, ("default", "Ada Lovelace", [])),
        ({"preferred_username": "ada", "name": "Ada"}, ("default", "ada", [])),
        ({"preferred_username": "a\nb", "name": "Ada"}, ("default", "Ada", [])),
        ({"preferred_username": 7, "name": "x" * 129}, ("default", "u-1", [])),
        ({"aud": ["billing", "uploads"]}, ("default", "u-1", [])),
    ],
)
async def test_claims_become_a_principal(
    server: TestServer, given: dict[str, object], expected: tuple[str, str, list[str]]
) -> None:
    """Claims name the user, the tenant, the scopes and a name for people to read."""
    exp = int(time.time()) + 50
    status, _, body = await exchange(server, get(b"Bearer " + token(exp=exp, **given).encode()))
    assert status == 200
    assert json.loads(body) == {
        "user_id": "u-1",
        "tenant": expected[0],
        "username": expected[1],
        "scopes": expected[2],
        "expires_at": exp,
        "logged_as": "u-1",
    }


@pytest.mark.parametrize("typ", ["JWT", "jwt", "at+jwt", "application/at+jwt"])
async def test_access_token_types(server: TestServer, typ: str) -> None:
    """The types of access tokens are accepted in any case (RFC 9068 section 2.1)."""
    good = forged({"alg": "HS256", "typ": typ, "kid": "k1"})
    status, _, _ = await exchange(server, get(b"Bearer " + good.encode()))
    assert status == 200


async def test_leeway(server: TestServer) -> None:
    """A token within the leeway is good, and still names its own end."""
    now = time.time()
    late = token(exp=int(now) - 10, nbf=now + 10, iat=now + 10)
    status, _, body = await exchange(server, get(b"Bearer " + late.encode()))
    assert status == 200
    assert json.loads(body)["expires_at"] == int(now) - 10


async def test_ids_of_128_characters(server: TestServer) -> None:
    """The longest ids pass, with every sign that identity providers put in."""
    longest = "auth0|a:b/c@d.e{f}" + "ß" * 110
    status, _, body = await exchange(
        server, get(b"Bearer " + token(sub=longest, tenant=longest).encode())
    )
    assert status == 200
    assert json.loads(body)["user_id"] == longest


async def test_log_context_ends_with_the_request(aiohttp_client: AiohttpClient) -> None:
    """Outer middlewares see the user, and the next request on the connection doesn't."""
    client = await aiohttp_client(application())
    mine = {"Authorization": f"Bearer {token()}"}
    async with client.get("/whoami", headers=mine) as response:
        assert (await response.json())["logged_as"] == "u-1"
        assert response.headers["X-User"] == "u-1"
    async with client.get("/health") as response:
        assert await response.json() is None


async def test_public_route(server: TestServer) -> None:
    """A public route answers anyone, even with bad credentials."""
    for request in (get(path=b"/health"), get(b"Bearer x.y.z", path=b"/health")):
        status, _, _ = await exchange(server, request)
        assert status == 200


async def test_options_has_no_principal(aiohttp_client: AiohttpClient) -> None:
    """OPTIONS passes without credentials, and never carries a principal to a handler."""
    client = await aiohttp_client(application())
    async with client.options("/discovery") as response:
        assert response.status == 200
    for headers in ({}, {"Authorization": f"Bearer {token()}"}):
        async with client.options("/whoami", headers=headers) as response:
            assert response.status == 401


@pytest.mark.parametrize(
    ("real", "told", "status"),
    [
        ("POST", "OPTIONS", 200),
        ("GET", "options", 200),
        ("OPTIONS", None, 200),
        ("OPTIONS", "DELETE", 401),
        ("OPTIONS", "", 401),
        ("POST", None, 401),
        ("POST", "OPTIONS,POST", 401),
    ],
)
async def test_overridden_method(
    aiohttp_client: AiohttpClient, real: str, told: str | None, status: int
) -> None:
    """Where the method is overridden, the real one would let in, or keep out, who asks."""
    client = await aiohttp_client(application())
    headers = {} if told is None else {"X-HTTP-Method-Override": told}
    async with client.request(real, "/override", headers=headers) as response:
        assert response.status == status
    async with client.request("POST", "/whoami", headers=headers) as response:
        assert response.status == 401  # the mark, not the header, makes it count


async def test_open_mode(aiohttp_client: AiohttpClient) -> None:
    """In open mode everyone is the local user, who is an admin, whatever they show."""
    client = await aiohttp_client(application(IdentitySettings(auth_mode="open")))
    for headers in ({}, {"Authorization": "Basic x"}, {"Authorization": "Bearer x"}):
        async with client.get("/whoami", headers=headers) as response:
            assert response.status == 200
            assert await response.json() == {
                "user_id": "local",
                "tenant": "local",
                "username": "local",
                "scopes": ["admin"],
                "expires_at": None,
                "logged_as": "local",
            }


async def test_socket_credentials(aiohttp_client: AiohttpClient) -> None:
    """A handshake may bring its token as a header, in the query or as a subprotocol."""
    client = await aiohttp_client(application())
    good = token()
    ways: list[dict[str, Any]] = [
        {"headers": {"Authorization": f"Bearer {good}"}},
        {"params": {"token": good}},
        {"protocols": ("bearer", good)},
        {"protocols": ("events.v1.json", "bearer", good)},
    ]
    for way in ways:
        async with client.ws_connect("/ws", **way) as ws:
            assert await ws.receive_str() == "u-1"
            assert ws.protocol in {None, "bearer", "events.v1.json"}


async def test_bad_socket_credentials(aiohttp_client: AiohttpClient) -> None:
    """A handshake whose first credentials are bad is refused, even if others are good."""
    client = await aiohttp_client(application())
    good = token()
    ways: list[dict[str, Any]] = [
        {},
        {"params": {"token": ""}},
        {"params": {"token": "x.y.z"}},
        {"params": [("token", good), ("token", good)]},
        {"params": {"token": good}, "headers": {"Authorization": "Bearer x.y.z"}},
        {"params": {"token": "x.y.z"}, "protocols": ("bearer", good)},
        {"protocols": ("bearer",)},
        {"protocols": (good, "bearer")},
        {"protocols": (good,)},
        {"protocols": ("Bearer", good)},
    ]
    for way in ways:
        with pytest.raises(WSServerHandshakeError) as refused:
            await client.ws_connect("/ws", **way)
        assert refused.value.status == 401, way


async def test_security_item_24_query_token_is_for_sockets_only(server: TestServer) -> None:
    """Other requests can send headers, so a token in their URL is not looked at."""
    path = b"/whoami?token=" + token().encode()
    upgrade = b"Connection: upgrade\r\nUpgrade: websocket\r\n"
    for request in (get(path=path), get(path=path, rest=upgrade).replace(b"GET", b"POST", 1)):
        status, headers, _ = await exchange(server, request)
        assert (status, headers["www-authenticate"]) == (401, 'Bearer realm="uploads"')


async def test_socket_that_authenticates_itself(
    aiohttp_client: AiohttpClient, server: TestServer
) -> None:
    """Such a route takes any handshake, but no other request without credentials."""
    client = await aiohttp_client(application())
    async with client.ws_connect("/ws/late") as ws:
        await ws.receive()
        assert ws.close_code == 4001
    status, _, _ = await exchange(server, get(path=b"/ws/late"))
    assert status == 401
    assert server.app[CALLS] == []


async def test_principal_from(aiohttp_client: AiohttpClient) -> None:
    """A route without a principal of its own can ask for it: none, bad and good differ."""
    auth = authenticator(REQUIRED)

    @public
    async def ask(request: web.Request) -> web.StreamResponse:
        """Tell who asks, and whether he showed credentials."""
        who = await principal_from(auth, request)
        return web.json_response([who and who.user_id, credentials(request) is not None])

    app = application()
    app.router.add_get("/ask", ask)
    client = await aiohttp_client(app)
    async with client.get("/ask") as response:
        assert await response.json() == [None, False]
    async with client.get("/ask", headers={"Authorization": f"Bearer {token()}"}) as response:
        assert await response.json() == ["u-1", True]
    async with client.get("/ask", headers={"Authorization": "Bearer x.y.z"}) as response:
        assert response.status == 401


async def test_token_in_a_message() -> None:
    """A token may also come without a request, and the open mode takes any."""
    who = await authenticator(REQUIRED).from_token(token(tenant="acme"))
    assert (who.user_id, who.tenant) == ("u-1", "acme")
    for bad in ("", "é.é.é", "\ud800", "a.b.c\n", token() + "\n"):
        with pytest.raises(Unauthorized):
            await authenticator(REQUIRED).from_token(bad)
    assert (await authenticator(IdentitySettings(auth_mode="open")).from_token("")) is not None


def test_owns() -> None:
    """A thing is the owner's, and the admin's of the same tenant; ids alone don't cross."""
    user = Principal("u", "t", "u", frozenset({"read"}), None)
    admin = Principal("a", "t", "a", frozenset({"admin"}), None)
    assert user.owns(user_id="u", tenant="t")
    assert not user.owns(user_id="v", tenant="t")
    assert not user.owns(user_id="u", tenant="other")
    assert admin.owns(user_id="u", tenant="t")
    assert not admin.owns(user_id="a", tenant="other")
    assert (user.is_admin, admin.is_admin) == (False, True)


def test_settings_hide_the_secret() -> None:
    """The secret is in no representation of the settings."""
    assert SECRET not in f"{REQUIRED!r} {REQUIRED}"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.255.0.9", "::1", "[::1]", "localhost", "LOCALHOST"]
)
def test_open_mode_on_loopback(host: str) -> None:
    """The open mode starts on a listener that only this machine reaches."""
    require_loopback("open", host)


@pytest.mark.parametrize(
    "host",
    [
        *("0.0.0.0", "::", "", None, "10.0.0.1", "192.168.1.2", "128.0.0.1", "example"),
        *(
            "localhost.evil.example",
            "127.0.0.1.nip.io",
            "::ffff:10.0.0.1",
            "2130706433",
            "127.1",
        ),
    ],
)
def test_open_mode_elsewhere(host: str | None) -> None:
    """The open mode refuses any other listener with one line that says what to do."""
    with pytest.raises(StartupError) as refused:
        require_loopback("open", host)
    text = str(refused.value)
    assert "AUTH_MODE" in text
    assert "PUBLIC_BIND" in text
    assert "\n" not in text


def test_required_mode_anywhere() -> None:
    """With authentication any listener will do."""
    require_loopback("required", "0.0.0.0")
