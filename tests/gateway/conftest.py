"""Gateways as processes of their own, what stands behind them, and who may call them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import jwt
import pytest

from shared.identity import Principal
from shared.sidecar import new_id
from shared.streams import connect
from tests.gateway.feed import Feed
from tests.gateway.samples import ADA, principal
from tests.processes import RedisServer, ServiceProcess, running

SECRET: Final = "a secret of the tests, long enough"
ORIGIN: Final = "https://app.example"
AUTHENTICATED: Final = {"AUTH_MODE": "required", "AUTH_JWT_SECRET": SECRET}
EVENT_PARTITIONS: Final = 16
_FAULTS: Final = ("Traceback", '"level":"error"', '"level":"critical"', "never retrieved")


def token_of(caller: Principal = ADA, *, lives_s: float = 3600, **claims: Any) -> str:
    """Return a token as an issuer makes it."""
    said = {
        "sub": caller.user_id,
        "tenant": caller.tenant,
        "scope": " ".join(caller.scopes),
        "exp": time.time() + lives_s,
    }
    return jwt.encode({**said, **claims}, SECRET, "HS256")


def bearer(caller: Principal = ADA) -> dict[str, str]:
    """Return the header that says who is calling."""
    return {"Authorization": f"Bearer {token_of(caller)}"}


def faults(service: ServiceProcess) -> list[str]:
    """Return the lines of a service's log that tell of an exception or an error."""
    squeezed = (line.replace('": ', '":') for line in service.log.read_text().splitlines())
    return [line for line in squeezed if any(mark in line for mark in _FAULTS)]


@pytest.fixture(scope="session")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that no test empties."""
    server = RedisServer(tmp_path_factory.mktemp("gateway-redis"))
    with running(server):
        yield server


READERS: Final = ("auto", "aiohttp")
"""Who reads sockets: the gateway itself, or aiohttp where that is not possible."""


@pytest.fixture(scope="session")
def socket_reader(request: pytest.FixtureRequest) -> str:
    """Who reads the sockets of the gateways; both in the tests that ask for that."""
    chosen: str = getattr(request, "param", READERS[0])
    return chosen


@pytest.fixture(scope="session")
def gateway(
    bus: RedisServer, tmp_path_factory: pytest.TempPathFactory, socket_reader: str
) -> Iterator[ServiceProcess]:
    """A gateway that many tests share; its log must stay free of errors."""
    env = {
        **AUTHENTICATED,
        "REDIS_URL": bus.url,
        "CORS_ALLOWED_ORIGINS": ORIGIN,
        "WEBSOCKET_AUTH_TIMEOUT": "1",
        "WEBSOCKET_READER": socket_reader,
        "WEBSOCKET_MAX_CONNECTIONS_PER_USER": "1000",
    }
    service = ServiceProcess("gateway", env, tmp_path_factory.mktemp("gateway") / "log")
    with running(service):
        yield service
    assert faults(service) == []


StartGateway = Callable[..., ServiceProcess]


@pytest.fixture
def start_gateway(
    bus: RedisServer, tmp_path: Path, socket_reader: str
) -> Iterator[StartGateway]:
    """Start gateways with settings of the test's own; they end with it, and without errors."""
    services: list[ServiceProcess] = []
    with ExitStack() as stack:

        def start(**env: str) -> ServiceProcess:
            settings = {
                "REDIS_URL": bus.url,
                "WEBSOCKET_READER": socket_reader,
                "WEBSOCKET_DRAIN_WINDOW": "0",
                **env,
            }
            service = ServiceProcess("gateway", settings, tmp_path / f"log{len(services)}")
            services.append(service)
            stack.enter_context(running(service))
            return service

        yield start
    for service in services:
        assert faults(service) == []


@pytest.fixture
async def feed(bus: RedisServer) -> AsyncIterator[Feed]:
    """Puts events on the streams of the shared Redis."""
    redis = connect(bus.url)
    yield Feed(redis, partitions=EVENT_PARTITIONS)
    await redis.aclose()


@pytest.fixture
def caller() -> Principal:
    """Somebody with no uploads yet."""
    return principal(f"user-{new_id()}")
