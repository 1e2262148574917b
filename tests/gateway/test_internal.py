"""Who may report on jobs: tokens, the mesh, loopback; and how often."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from openapi_spec_validator import OpenAPIV31SpecValidator

from services.gateway import internal
from services.gateway.app import create_app
from services.gateway.internal import ServiceTokens, create_reports_application
from services.gateway.settings import Settings
from shared.errors import StartupError
from shared.serve import INTERNAL
from shared.settings import load
from tests.gateway.conftest import AUTHENTICATED, StartGateway, faults
from tests.gateway.feed import Feed
from tests.gateway.samples import Told
from tests.processes import ServiceProcess

TOKEN: Final = "a-token-of-the-tests-long-enough"
OTHER: Final = "another-one"
JSON: Final = {"Content-Type": "application/json"}
REPORT: Final = {"type": "queued", "seq": 1}
Client = TestClient[web.Request, web.Application]


def entry_of(name: str, token: str) -> str:
    """Return a token as the setting has it."""
    return f"{name}:{hashlib.sha256(token.encode()).hexdigest()}"


TOKENS: Final = f"{entry_of('old', OTHER)}, {entry_of('worker', TOKEN)}"


def bearer(token: str) -> dict[str, str]:
    """Return the header that shows a token."""
    return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def listener(**env: str) -> AsyncIterator[Client]:
    """Serve the internal part of a gateway that is about to end."""
    settings = load(Settings, {"INTERNAL_BIND": "0.0.0.0:9090", **env})
    app = create_reports_application(settings, lambda: None)
    async with TestClient(TestServer(app)) as client:
        yield client


async def status_of(client: Client, headers: dict[str, str] | None = None) -> int:
    """Return how a report is answered; 503 is as far as one can get."""
    async with client.post("/v1/jobs/one/events", json=REPORT, headers=headers) as answer:
        assert answer.content_type == "application/problem+json"
        return answer.status


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("wrong"),
        bearer(""),
        bearer(TOKEN + "="),
        bearer(TOKEN[:-1]),
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        bearer(hashlib.sha256(OTHER.encode()).hexdigest()),
    ],
)
@pytest.mark.parametrize("mode", ["auto", "token"])
async def test_bad_credentials(mode: str, headers: dict[str, str]) -> None:
    """Without one of the tokens nothing is read of a request, and the answer says how."""
    async with listener(INTERNAL_AUTH=mode, INTERNAL_TOKENS=TOKENS) as client:
        async with client.post("/v1/jobs/one/events", data=b"{", headers=headers) as answer:
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            assert (await answer.json())["error_code"] == "UNAUTHORIZED"
        async with client.get("/openapi.json", headers=headers) as answer:
            assert answer.status == 401


@pytest.mark.parametrize("bind", ["0.0.0.0:9090", "127.0.0.1:9090"])
async def test_good_tokens(bind: str) -> None:
    """Each of the tokens lets in, so that one can take the place of another."""
    async with listener(INTERNAL_BIND=bind, INTERNAL_TOKENS=TOKENS) as client:
        assert await status_of(client, bearer(TOKEN)) == 503
        assert await status_of(client, bearer(OTHER)) == 503
        assert await status_of(client) == 401


async def test_without_tokens() -> None:
    """Where others can reach the listener and there are no tokens, nobody is let in."""
    async with listener() as client:
        assert await status_of(client) == 401
        assert await status_of(client, bearer("")) == 401


@pytest.mark.parametrize("bind", ["127.0.0.1:9090", "localhost:9090", "[::1]:9090", "off"])
async def test_loopback(bind: str) -> None:
    """On one machine none is needed, but a page whose name leads here stays out."""
    async with listener(INTERNAL_BIND=bind) as client:
        assert await status_of(client) == 503
        assert await status_of(client, {"Host": "evil.example"}) == 403


async def test_mesh() -> None:
    """Where the mesh decides, whoever gets here is let in, under any name of the host."""
    async with listener(INTERNAL_AUTH="mesh", INTERNAL_TOKENS=TOKENS) as client:
        assert await status_of(client) == 503
        assert await status_of(client, {"Host": "gateway.uploads.svc"}) == 503


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"INTERNAL_AUTH": "token"}, "INTERNAL_AUTH=token: set INTERNAL_TOKENS"),
        ({"INTERNAL_AUTH": "none"}, "INTERNAL_AUTH='none'"),
        ({"INTERNAL_TOKENS": TOKEN}, r"INTERNAL_TOKENS=\*\*\*"),
        ({"INTERNAL_TOKENS": "worker:" + "A" * 64}, r"INTERNAL_TOKENS=\*\*\*"),
        ({"RATE_LIMIT_JOBS": "often"}, "RATE_LIMIT_JOBS='often'"),
    ],
)
def test_settings_that_cannot_be(env: dict[str, str], reason: str) -> None:
    """A wrong setting ends the start, names the variable, and shows no token."""
    with pytest.raises(StartupError, match=reason):
        create_app(load(Settings, {"AUTH_MODE": "open", **env}))


def test_names_of_tokens() -> None:
    """A token is known by its digest alone, whatever else is known."""
    tokens = ServiceTokens(TOKENS.split(", "))
    assert (tokens.name_of(TOKEN), tokens.name_of(OTHER)) == ("worker", "old")
    assert tokens.name_of("") is None
    assert not ServiceTokens(())


async def test_how_often(
    start_gateway: StartGateway, feed: Feed, http: aiohttp.ClientSession
) -> None:
    """Each token has a bucket of its own; guessing tokens is limited by address."""
    service = start_gateway(
        **AUTHENTICATED,
        INTERNAL_TOKENS=TOKENS,
        RATE_LIMIT_JOBS="1/s burst 3",
        RATE_LIMIT_LOGIN="1/s burst 2",
    )
    told = Told(at=None)
    await feed.tell(told.created(), told.completed())

    async def answers(token: str, count: int) -> list[int]:
        url = f"{service.internal_url}/internal/v1/jobs/{told.facts.job_id}/events"
        found = []
        for _ in range(count):
            async with http.post(url, json=REPORT, headers=bearer(token)) as answer:
                found.append(answer.status)
                if answer.status == 429:
                    assert int(answer.headers["Retry-After"]) >= 1
                    assert (await answer.json())["error_code"] == "RATE_LIMITED"
                elif answer.status == 202:
                    assert answer.headers["RateLimit-Policy"] == '"jobs";q=3;w=3'
        return found

    first = await answers(TOKEN, 8)
    assert (first[:3], 429 in first) == ([202] * 3, True)
    assert await answers(OTHER, 1) == [202]
    guessed = await answers("a-guess", 6)
    assert (guessed[:2], 429 in guessed) == ([401] * 2, True)
    # What others ask of the platform is not counted.
    async with http.get(f"{service.internal_url}/readyz") as answer:
        assert answer.status == 200
    assert TOKEN not in service.log.read_text()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client."""
    async with aiohttp.ClientSession() as session:
        yield session


async def test_its_description(gateway: ServiceProcess, http: aiohttp.ClientSession) -> None:
    """The listener describes itself: a valid document of just the routes that it has."""
    async with http.get(f"{gateway.internal_url}/internal/openapi.json") as answer:
        assert answer.status == 200
        document: dict[str, Any] = await answer.json()
    OpenAPIV31SpecValidator(document).validate()
    assert list(document["paths"]) == ["/internal/v1/jobs/{job_id}/events"]
    settings = load(Settings, {"AUTH_MODE": "open"})
    (prefix, part), *more = create_app(settings)[INTERNAL].items()
    routes = {f"{prefix}{one.canonical}" for one in part.router.resources()}
    assert more == []
    assert routes - {"/internal/openapi.json"} == set(document["paths"])


async def test_a_slow_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that stops coming is waited for only so long."""
    monkeypatch.setattr(internal, "_BODY_S", 0.1)
    never = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield b"{"
        await never.wait()

    async with (
        listener(INTERNAL_AUTH="mesh") as client,
        client.post("/v1/jobs/one/events", data=stalling(), headers=JSON) as answer,
    ):
        assert answer.status == 400
        assert (await answer.json())["detail"] == "The body did not come in time."


@pytest.mark.parametrize(
    "rest", [b"Content-Length: 9\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"]
)
async def test_a_broken_body(gateway: ServiceProcess, rest: bytes) -> None:
    """A body that breaks off, or is no body, is the sender's fault: the log stays clean."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.internal_port)
    path = b"POST /internal/v1/jobs/one/events HTTP/1.1\r\nHost: localhost\r\n"
    writer.write(path + b"Content-Type: application/json\r\n" + rest)
    writer.write_eof()
    answer = await reader.read()
    assert answer == b"" or b" 400 " in answer.splitlines()[0]
    writer.close()
    await writer.wait_closed()
    assert faults(gateway) == []
