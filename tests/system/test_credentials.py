"""Every way of saying who is calling, at every service; and what their logs keep of it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest

from tests.gateway.raw_socket import RawSocket
from tests.processes import ROOT, RedisServer, ServiceProcess, free_port, running, wait_until
from tests.shared.signing import Issuer, forged, rsa_issuer
from tests.system.parts import Answer, ask

SECRET: Final = "0123456789abcdef" * 4
KEY: Final = f"upl1_{SECRET}"
LINE: Final = f"upl1 {hashlib.sha256(SECRET.encode()).hexdigest()} acme write"
BY_KEY: Final = {"X-API-KEY": KEY, "X-Username": "ada"}
ISSUER: Final = rsa_issuer()
STORAGE: Final = "/api/v1/storage/6f9619ff-8b86-4011-b42d-00c04fc964ff"
PROBES: Final = {
    "ingest": (
        "GET",
        "/api/v1/uploads/meta/6f9619ff-8b86-4011-b42d-00c04fc964ff/status",
        404,
    ),
    "gateway": ("POST", "/v1/events/ticket", 201),
    "storage": ("GET", STORAGE, 404),
}
"""By service: method, path, and what good credentials get."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all of it keeps."""
    return tmp_path_factory.mktemp("credentials")


@pytest.fixture(scope="module")
def redis(folder: Path) -> Iterator[RedisServer]:
    """The bus."""
    server = RedisServer(folder / "redis")
    with running(server):
        yield server


@pytest.fixture(scope="module")
def key_set() -> Iterator[str]:
    """The URL at which the issuer publishes its keys."""

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"keys": [ISSUER.jwk()]}).encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Keys) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/keys"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def keys_file(folder: Path) -> Path:
    """The file of API keys."""
    file = folder / "keys"
    file.write_text(LINE + "\n")
    return file


Services = Mapping[str, ServiceProcess]


@pytest.fixture(scope="module")
def services(
    folder: Path, redis: RedisServer, key_set: str, keys_file: Path
) -> Iterator[Services]:
    """All services, as talkative as they can be, with keys at a URL and in a file."""
    env = {
        "REDIS_URL": redis.url,
        "DATA_DIR": str(folder / "data"),
        "AUTH_MODE": "required",
        "AUTH_JWKS_URL": key_set,
        "AUTH_API_KEYS_FILE": str(keys_file),
        "LOG_LEVEL": "debug",
    }
    found = {
        name: ServiceProcess(name, env, folder / f"{name}.log")
        for name in ("ingest", "gateway", "storage")
    }
    with running(*found.values()):
        yield found
    for one in found.values():
        assert "Traceback" not in one.log.read_text()


def probed(
    services: Services, name: str, headers: Mapping[str, str] = {}, query: str = ""
) -> Answer:
    """Return how a service answers a request with these credentials."""
    method, path, _ = PROBES[name]
    return ask(method, f"{services[name].url}{path}?{query}", headers)


@pytest.mark.parametrize("name", PROBES)
def test_tokens_and_keys_everywhere(services: Services, name: str) -> None:
    """Each service takes tokens of the issuer and API keys, and refuses forged ones."""
    token = {"Authorization": f"Bearer {ISSUER.named_token()}"}
    stranger = rsa_issuer(number=9).token({"kid": ISSUER.kid})
    public = forged({"alg": "HS256", "kid": ISSUER.kid}, ISSUER.pem.encode())
    for good in (token, BY_KEY):
        assert probed(services, name, good).status == PROBES[name][2]
    bad: list[dict[str, str]] = [
        {},
        {"Authorization": f"Bearer {stranger}"},
        {"Authorization": f"Bearer {public}"},
        {**BY_KEY, "X-API-KEY": KEY[:-1]},
        {"X-API-KEY": KEY},
        {**token, **BY_KEY},
    ]
    for headers in bad:
        answer = probed(services, name, headers)
        assert (answer.status, answer.headers["WWW-Authenticate"][:6]) == (401, "Bearer")


def test_key_and_token_are_one_user(services: Services) -> None:
    """What somebody uploads by key is the same user's by token, in the tenant of the key."""
    url = services["ingest"].url
    zoe = {**BY_KEY, "X-Username": "zoe"}
    made = ask("POST", f"{url}/api/v1/uploads", zoe, b"hello")
    assert made.status in {200, 201}
    upload_id = json.loads(made.body)["upload_id"]
    status = f"{url}/api/v1/uploads/meta/{upload_id}/status"
    for claims, code in (
        ({"sub": "zoe", "tenant": "acme"}, 200),
        ({"sub": "zoe", "tenant": "other"}, 403),
        ({"sub": "eve", "tenant": "acme"}, 403),
    ):
        token = ISSUER.named_token(**claims)
        assert ask("GET", status, {"Authorization": f"Bearer {token}"}).status == code


WAYS: Final[dict[str, Callable[[str], dict[str, Any]]]] = {
    "token": lambda _: {"headers": [("Authorization", f"Bearer {ISSUER.named_token()}")]},
    "token in the URL": lambda _: {"query": f"?token={ISSUER.named_token()}"},
    "subprotocol": lambda _: {
        "headers": [("Sec-WebSocket-Protocol", f"bearer, {ISSUER.named_token()}")]
    },
    "first message": lambda _: {
        "first": {"type": "authenticate", "token": ISSUER.named_token()}
    },
    "key": lambda _: {"headers": list(BY_KEY.items())},
    "key in the URL": lambda _: {"query": f"?api_key={KEY}&username=ada"},
    "ticket": lambda ticket: {"query": f"?ticket={ticket}"},
}


async def on_socket(
    service: ServiceProcess,
    *,
    query: str = "",
    headers: Iterable[tuple[str, str]] = (),
    first: Mapping[str, str] | None = None,
) -> str | int | None:
    """Return how a socket that is let in answers, the close code of another one."""
    path = f"/ws/upload-progress{query}"
    async with RawSocket.opened(service.port, path, headers=headers) as peer:
        await peer.say(first or {"type": "ping"})
        told = str((await peer.hear())["event_type"])
        return await peer.end() if told == "error" else told


@pytest.mark.parametrize("way", WAYS)
async def test_every_way_into_a_socket(services: Services, way: str) -> None:
    """A socket takes each of them in its handshake, and a token in its first message."""
    made = ask("POST", f"{services['gateway'].url}/v1/events/ticket", BY_KEY)
    told = await on_socket(services["gateway"], **WAYS[way](json.loads(made.body)["ticket"]))
    assert told == ("authenticated" if way == "first message" else "pong")


async def test_bad_key_on_a_socket(services: Services) -> None:
    """A bad key ends the socket with the code for bad credentials."""
    for query in (f"?api_key={KEY[:-1]}&username=ada", f"?api_key={KEY}", f"?ticket={KEY}"):
        assert await on_socket(services["gateway"], query=query) == 4001


async def test_issuer_away(folder: Path, redis: RedisServer) -> None:
    """Before the issuer has answered nobody gets in, and all are told to try again."""
    env = {
        "REDIS_URL": redis.url,
        "AUTH_MODE": "required",
        "AUTH_JWKS_URL": f"http://127.0.0.1:{free_port()}/keys",
    }
    service = ServiceProcess("gateway", env, folder / "away.log")
    with running(service):
        token = {"Authorization": f"Bearer {ISSUER.named_token()}"}
        answer = ask("POST", f"{service.url}/v1/events/ticket", token)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        for way in ("token", "first message"):
            assert await on_socket(service, **WAYS[way]("")) == 1013
    assert "Traceback" not in service.log.read_text()


async def test_security_item_24_nothing_secret_in_logs(services: Services) -> None:
    """After every way of putting credentials into a URL, no log holds any part of them."""
    gateway = services["gateway"]
    token = ISSUER.named_token()
    made = ask("POST", f"{gateway.url}/v1/events/ticket", BY_KEY)
    assert made.status == 201
    ticket = json.loads(made.body)["ticket"]
    bad_token, bad_key = f"{token[:-4]}AAAA", f"upl1_{'f' * 64}"
    queries = [
        *(f"token={one}" for one in (token, bad_token)),
        *(f"api_key={one}&username=ada" for one in (KEY, bad_key)),
        *(f"ticket={one}" for one in (ticket, ticket, ticket[::-1])),
        f"token={token}&ticket={ticket}",
        f"token={quote(token, safe='').replace('.', '%2E')}",
        f"token={token}%00%0a",
        f"token={token}\\",
    ]
    paths = ["/ws/upload-progress", "/api/v1/ws/nothing", "/nowhere", "/v1/events/ticket"]
    for query in queries:
        for path in paths:
            async with RawSocket.opened(gateway.port, f"{path}?{query}"):
                pass
        for name, one in services.items():
            assert probed(services, name, query=query).status == 401
            ask("POST", f"{one.url}/v1/events/ticket?{query}")
            ask("GET", f"{one.url}/docs?{query}")
    for headers in (BY_KEY, {"X-API-KEY": bad_key, "X-Username": "ada"}):
        probed(services, "gateway", headers)
    for request in (f"GET /?{queries[0]} HTTP/9.9", f"G\x01T /?{queries[0]} HTTP/1.1"):
        async with RawSocket.opened(gateway.port, "/nowhere") as peer:
            await peer.send(f"{request}\r\nHost: x\r\n\r\n".encode())
    parts = [token.split(".")[2], bad_token.split(".")[1], SECRET, "f" * 64, ticket]
    for one in services.values():
        log = one.log.read_text()
        assert "request_handled" in log
        assert [part for part in [*parts, ticket[::-1]] if part in log] == []


def test_security_item_23_key_is_withdrawn(services: Services, keys_file: Path) -> None:
    """Taking a line out of the file ends its key within moments, in running processes."""
    good = {name: status for name, (_, _, status) in PROBES.items()}

    def are(expected: Mapping[str, int]) -> Callable[[], bool]:
        return lambda: (
            expected == {name: probed(services, name, BY_KEY).status for name in services}
        )

    assert are(good)()
    keys_file.write_text("# nobody\n")
    wait_until(are(dict.fromkeys(services, 401)), "all refuse the key", limit_s=5)
    keys_file.write_text(LINE + "\n")
    wait_until(are(good), "all take the key again", limit_s=5)


def said(env: Mapping[str, str], folder: Path) -> str:
    """Start the gateway, which must refuse; return the one line that says why."""
    done = subprocess.run(
        [sys.executable, "-m", "services.gateway"],
        cwd=ROOT,
        env={
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "REDIS_URL": "redis://127.0.0.1:1/0",
            "DATA_DIR": str(folder / "data"),
            "AUTH_MODE": "required",
            "PUBLIC_BIND": f"127.0.0.1:{free_port()}",
            "INTERNAL_BIND": "off",
            **env,
        },
        capture_output=True,
        timeout=30,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({}, "AUTH_MODE=required needs"),
        ({"AUTH_API_KEYS_FILE": "{broken}"}, "line 3"),
        (
            {"AUTH_JWKS_URL": "https://id.example/", "AUTH_JWT_SECRET": SECRET},
            "AUTH_JWT_SECRET and AUTH_JWKS_URL",
        ),
    ],
    ids=["nothing", "broken file", "two sources"],
)
def test_refusals_to_start(folder: Path, env: dict[str, str], reason: str) -> None:
    """Settings that cannot be meant end the start with one line that names the variable."""
    broken = folder / "broken"
    broken.write_text(f"{LINE}\n\nupl2 abc acme\n")
    line = said({name: value.format(broken=broken) for name, value in env.items()}, folder)
    assert reason in line
    assert SECRET not in line


def test_all_in_one(folder: Path, redis: RedisServer) -> None:
    """The whole in one process takes keys of a file and API keys too, and makes tickets."""
    pem, file = folder / "keys.pem", folder / "more-keys"
    other: Issuer = rsa_issuer(number=2)
    pem.write_text(ISSUER.pem + other.pem)
    file.write_text(LINE)
    env = {
        "REDIS_URL": redis.url,
        "DATA_DIR": str(folder / "all"),
        "AUTH_MODE": "required",
        "AUTH_JWT_PUBLIC_KEY_FILE": str(pem),
        "AUTH_API_KEYS_FILE": str(file),
    }
    service = ServiceProcess("__main__", env, folder / "all.log")
    with running(service):
        for issuer in (ISSUER, other):
            headers = {"Authorization": f"Bearer {issuer.token()}"}
            assert ask("GET", service.url + STORAGE, headers).status == 404
        assert ask("POST", f"{service.url}/v1/events/ticket", BY_KEY).status == 201
        assert ask("GET", service.url + STORAGE).status == 401
