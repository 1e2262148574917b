"""Cross-origin requests as a browser sends them, to a real application."""

from __future__ import annotations

from typing import Any, Final

import pytest
from aiohttp import ClientResponse, WSServerHandshakeError, web
from aiohttp.test_utils import TestClient, make_mocked_request
from pytest_aiohttp import AiohttpClient

from shared.authenticator import IdentitySettings, authenticator
from shared.cors import (
    ALLOWED_HEADERS,
    EXPOSED_HEADERS,
    CorsSettings,
    answer_preflights,
    check_origins,
    origin_allowed,
    share_responses,
)
from shared.errors import PayloadTooLarge, StartupError
from shared.identity import identify, public
from shared.web import create_application

APP: Final = "https://app.example.com"
LISTED: Final = CorsSettings((APP, "http://localhost:5173"))
ANYBODY: Final = CorsSettings(("*",))
PREFLIGHT: Final = {
    "Origin": APP,
    "Access-Control-Request-Method": "PATCH",
    "Access-Control-Request-Headers": "authorization,tus-resumable",
}
Client = TestClient[web.Request, web.Application]

ITEM_103: Final = (
    *("Tus-Resumable", "Upload-Length", "Upload-Offset", "Upload-Metadata", "Upload-Concat"),
    *("Upload-Defer-Length", "Upload-Checksum", "Content-Type", "X-HTTP-Method-Override"),
    *("X-Requested-With", "X-Request-ID", "Authorization"),
    *("Upload-Complete", "Upload-Draft-Interop-Version", "Content-Disposition"),
    *("Repr-Digest", "Content-Digest", "Want-Repr-Digest"),
)
ITEM_104: Final = (
    *("Location", "Upload-Offset", "Upload-Length", "Upload-Metadata", "Upload-Defer-Length"),
    *("Upload-Concat", "Upload-Expires", "Tus-Version", "Tus-Resumable", "Tus-Max-Size"),
    *("Tus-Extension", "Tus-Checksum-Algorithm", "Upload-Complete", "Upload-Limit"),
    *("Upload-Incomplete", "Accept-Patch", "Repr-Digest"),
)


@public
async def fail(request: web.Request) -> web.StreamResponse:
    """Fail in the way that the path asks for."""
    match request.match_info["how"]:
        case "413":
            raise PayloadTooLarge("Too large.")
        case "460":
            return web.Response(status=460, reason="Checksum Mismatch")
        case "507":
            raise web.HTTPInsufficientStorage
        case _:
            raise RuntimeError("a fault of ours")


async def discover(_request: web.Request) -> web.StreamResponse:
    """Answer as a tus server tells its abilities."""
    return web.Response(status=204, headers={"Tus-Version": "1.0.0", "Vary": "Accept, Origin"})


@public
async def stream(request: web.Request) -> web.StreamResponse:
    """Answer in pieces, with a Vary of its own."""
    response = web.StreamResponse(headers={"Vary": "Accept-Encoding"})
    await response.prepare(request)
    await response.write(b"x")
    return response


def application(settings: CorsSettings = LISTED, **options: Any) -> web.Application:
    """Build an application that requires tokens, with CORS around it."""
    auth = authenticator(IdentitySettings(auth_mode="required", auth_jwt_secret="s" * 32))
    app = create_application(answer_preflights(), identify(auth))
    app.on_response_prepare.append(share_responses(settings, **options))

    @public
    async def socket(request: web.Request) -> web.StreamResponse:
        """Open a WebSocket for pages that may."""
        if not origin_allowed(settings, request):
            raise web.HTTPForbidden
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await ws.close()
        return ws

    app.router.add_get("/fail/{how}", fail)
    app.router.add_get("/stream", stream)
    app.router.add_get("/ws", socket)
    app.router.add_post("/api/v1/uploads", fail)
    app.router.add_options("/api/v1/uploads", discover)
    return app


@pytest.fixture
async def client(aiohttp_client: AiohttpClient) -> Client:
    """Talk to the application whose list of origins has two entries."""
    return await aiohttp_client(application())


def cors_headers(response: ClientResponse) -> dict[str, str]:
    """Return the headers that a browser looks at before it lets the page read."""
    return {k: v for k, v in response.headers.items() if k.startswith("Access-Control-")}


@pytest.mark.parametrize("path", ["/api/v1/uploads", "/api/v1/uploads/abc", "/nowhere"])
async def test_preflight(client: Client, path: str) -> None:
    """A preflight is answered without credentials, on every path, with all that is allowed."""
    async with client.options(path, headers=PREFLIGHT) as response:
        assert response.status == 204
        assert await response.read() == b""
        assert response.headers["Access-Control-Allow-Origin"] == APP
        methods = set(response.headers["Access-Control-Allow-Methods"].split(", "))
        headers = set(response.headers["Access-Control-Allow-Headers"].split(", "))
        assert methods == {"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"}
        assert headers == set(ALLOWED_HEADERS) >= {*ITEM_103, "X-API-KEY", "X-Username"}
        assert int(response.headers["Access-Control-Max-Age"]) > 0
        assert response.headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Credentials" not in response.headers
        assert "Tus-Version" not in response.headers


async def test_preflight_of_a_stranger(client: Client) -> None:
    """Another origin's preflight is answered too, without the header that would let it on."""
    headers = PREFLIGHT | {"Origin": "https://evil.example"}
    async with client.options("/api/v1/uploads", headers=headers) as response:
        assert response.status == 204
        assert "Access-Control-Allow-Origin" not in response.headers
        assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize(
    "headers", [{}, {"Origin": APP}, {"Access-Control-Request-Method": "GET"}]
)
async def test_plain_options(client: Client, headers: dict[str, str]) -> None:
    """OPTIONS that is no preflight reaches its handler, as tus discovery needs."""
    async with client.options("/api/v1/uploads", headers=headers) as response:
        assert response.status == 204
        assert response.headers["Tus-Version"] == "1.0.0"
        assert response.headers.getall("Vary") == ["Accept, Origin"]
        assert "Access-Control-Allow-Methods" not in response.headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/fail/413", 413),
        ("GET", "/fail/460", 460),
        ("GET", "/fail/500", 500),
        ("GET", "/fail/507", 507),
        ("GET", "/nowhere", 401),
        ("DELETE", "/api/v1/uploads", 401),
        ("POST", "/api/v1/uploads/none", 401),
        ("GET", "/stream", 200),
    ],
)
async def test_every_response_is_shared(
    client: Client, method: str, path: str, status: int
) -> None:
    """A page can read errors as well, those that no handler of ours made included."""
    async with client.request(method, path, headers={"Origin": APP}) as response:
        assert response.status == status
        assert cors_headers(response) == {
            "Access-Control-Allow-Origin": APP,
            "Access-Control-Expose-Headers": ", ".join(EXPOSED_HEADERS),
        }
        assert "Origin" in response.headers["Vary"].split(", ")


def test_exposed_headers() -> None:
    """The headers of tus and of the IETF protocol are exposed, and no others by default."""
    assert set(EXPOSED_HEADERS) == set(ITEM_104)


async def test_unrouted_errors_are_shared(aiohttp_client: AiohttpClient) -> None:
    """The 404 and 405 that aiohttp itself makes can be read by the page."""
    app = web.Application()
    app.on_response_prepare.append(share_responses(LISTED))
    app.router.add_get("/x", discover)
    client = await aiohttp_client(app)
    for path, status in (("/x", 405), ("/y", 404)):
        async with client.post(path, headers={"Origin": APP}) as response:
            assert response.status == status
            assert response.headers["Access-Control-Allow-Origin"] == APP


async def test_vary_is_kept(client: Client) -> None:
    """A Vary of the handler's own stays, and caches learn of Origin without any being sent."""
    async with client.get("/stream") as response:
        assert response.headers.getall("Vary") == ["Accept-Encoding, Origin"]
        assert cors_headers(response) == {}


async def test_more_exposed_headers(aiohttp_client: AiohttpClient) -> None:
    """A service can expose headers of its own."""
    client = await aiohttp_client(application(also_expose=("ETag", "Content-Range")))
    async with client.get("/stream", headers={"Origin": APP}) as response:
        exposed = response.headers["Access-Control-Expose-Headers"].split(", ")
    assert exposed[-2:] == ["ETag", "Content-Range"]


async def test_wildcard(aiohttp_client: AiohttpClient) -> None:
    """The wildcard is sent as such, whoever asks, and never with credentials."""
    client = await aiohttp_client(application(ANYBODY))
    for origin in ({}, {"Origin": APP}, {"Origin": "null"}):
        async with client.get("/stream", headers=origin) as response:
            assert response.headers["Access-Control-Allow-Origin"] == "*"
            assert "Access-Control-Allow-Credentials" not in response.headers
    async with client.options("/api/v1/uploads", headers=PREFLIGHT) as response:
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert "Authorization" in response.headers["Access-Control-Allow-Headers"]


NOT_LISTED: Final = (
    "null",
    "",
    "*",
    "https://app.example.com.evil.example",
    "https://evil.example/app.example.com",
    "https://evilapp.example.com",
    "https://app.example.co",
    "https://app.example.com:443",
    "https://app.example.com:8443",
    "https://app.example.com/",
    "https://app.example.com@evil.example",
    "https://app.example.com#",
    "https://APP.example.com",
    "HTTPS://app.example.com",
    "http://app.example.com",
    "app.example.com",
    "//app.example.com",
    "https://app.example.com, https://evil.example",
    "https://app.example.com https://evil.example",
    "https://аpp.example.com",  # noqa: RUF001 - a Cyrillic letter
    "https://xn--pp-6kc.example.com",
    "http://localhost",
    "http://localhost:51730",
)


@pytest.mark.parametrize("origin", NOT_LISTED)
async def test_near_misses(client: Client, origin: str) -> None:
    """Nothing but the very bytes of an entry is allowed, for requests and for sockets."""
    async with client.get("/stream", headers={"Origin": origin}) as response:
        assert cors_headers(response) == {}
    with pytest.raises(WSServerHandshakeError) as refused:
        await client.ws_connect("/ws", headers={"Origin": origin})
    assert refused.value.status == 403


@pytest.mark.parametrize("origin", [None, *LISTED.allowed_origins])
async def test_allowed_sockets(client: Client, origin: str | None) -> None:
    """Programs, which send no Origin, and listed pages may open a WebSocket."""
    headers = {"Origin": origin} if origin else {}
    async with client.ws_connect("/ws", headers=headers) as ws:
        await ws.receive()


async def test_socket_of_the_own_origin(client: Client) -> None:
    """A page that the service itself serves may open a WebSocket, on any address of it."""
    own = f"http://{client.host}:{client.port}"
    async with client.ws_connect("/ws", headers={"Origin": own}) as ws:
        await ws.receive()
    for other in (
        f"http://{client.host}",
        f"http://{client.host}:1",
        f"http://evil:{client.port}",
    ):
        with pytest.raises(WSServerHandshakeError):
            await client.ws_connect("/ws", headers={"Origin": other})


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("up.example", "https://up.example", True),
        ("up.example", "http://up.example", True),
        ("UP.example", "https://up.example", True),
        ("up.example:443", "https://up.example", True),
        ("up.example:80", "http://up.example", True),
        ("up.example:80", "https://up.example", False),
        ("up.example:8443", "https://up.example:8443", True),
        ("up.example:8443", "https://up.example", False),
        ("up.example", "https://up.example:8443", False),
        ("[::1]:8080", "http://[::1]:8080", True),
        ("up.example", "ftp://up.example", False),
        ("up.example", "https://up.example.evil", False),
        ("up.example", "https://UP.example", False),
        ("up.example", "null", False),
        ("null", "null", False),
        ("", "https://", False),
        ("", "", False),
        (":443", "https://", False),
    ],
)
def test_own_origin(host: str, origin: str, expected: bool) -> None:
    """The own origin is the host and port that the client asked for, under http or https."""
    request = make_mocked_request("GET", "/ws", headers={"Host": host, "Origin": origin})
    assert origin_allowed(CorsSettings(), request) is expected


def test_own_origin_on_tls() -> None:
    """Where the connection itself is encrypted, a page of plain http is another origin."""
    for scheme, expected in (("https", True), ("http", False)):
        headers = {"Host": "up.example", "Origin": f"{scheme}://up.example"}
        request = make_mocked_request("GET", "/ws", headers=headers).clone(scheme="https")
        assert origin_allowed(CorsSettings(), request) is expected


async def test_two_origins(client: Client) -> None:
    """A request with two Origin lines is nobody's."""
    twice = [("Origin", APP), ("Origin", "https://evil.example")]
    async with client.get("/stream", headers=twice) as response:
        assert cors_headers(response) == {}
    with pytest.raises(WSServerHandshakeError):
        await client.ws_connect("/ws", headers=twice)


async def test_wildcard_sockets(aiohttp_client: AiohttpClient) -> None:
    """With the wildcard every page may open a WebSocket."""
    client = await aiohttp_client(application(ANYBODY))
    for origin in ("https://evil.example", "null"):
        async with client.ws_connect("/ws", headers={"Origin": origin}) as ws:
            await ws.receive()


@pytest.mark.parametrize(
    "origin",
    [
        *("*", APP, "http://localhost:5173", "http://127.0.0.1:8080", "http://[::1]:8080"),
        *("tauri://localhost", "chrome-extension://abcdef", "https://xn--bcher-kva.example"),
    ],
)
def test_usable_entries(origin: str) -> None:
    """Origins as browsers and app shells write them can be listed."""
    check_origins(CorsSettings((origin,)))


@pytest.mark.parametrize(
    "origin",
    [
        *("", "null", "app.example.com", "https://app.example.com/", "https://*.example.com"),
        *(
            "https://APP.example.com",
            "https://app.example.com:443",
            "http://a:80",
            "https://a:0",
        ),
        *("https://bücher.example", "https://a b", "https://u@a", "https://a?b", "https://a\n"),
        *("https://a,https://b", "https://"),
    ],
)
def test_unusable_entries(origin: str) -> None:
    """An entry that no browser sends would match nothing, so it stops the start."""
    with pytest.raises(StartupError, match="CORS_ALLOWED_ORIGINS") as refused:
        check_origins(CorsSettings((APP, origin)))
    assert "\n" not in str(refused.value)
