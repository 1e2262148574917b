"""Fixtures that every area uses: real Redis servers, clean for each test."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import settings
from redis.asyncio import Redis

from shared.streams import connect
from tests.processes import RedisServer, debian_redis, running

if TYPE_CHECKING:  # loading botocore takes longer than many a test
    from tests.s3_servers import MotoServer, SwiftServer

# How long one example takes says more about what else the machine does. The same examples each
# time: what fails here fails everywhere, and who looks for new ones asks for them by
# --hypothesis-profile=exploring.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("exploring", deadline=None)
settings.load_profile("repeatable")


_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session", autouse=True)
def plain_tracebacks() -> None:
    """Print tracebacks of what is tested in-process as they are.

    To draw them in colours, with the variables of each frame, takes longer than what is tested:
    on a busy machine it has the event loop stand still for seconds.
    """
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], renderer])


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The server that the project embeds; tests share it, one after another."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    with running(server):
        yield server


@pytest.fixture(scope="session")
def debian_redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Redis 7.0, the oldest server that is supported."""
    binary = debian_redis()
    if binary is None:
        pytest.skip("no redis-server on PATH: make setup-system installs it")
    server = RedisServer(tmp_path_factory.mktemp("redis70"), binary=binary)
    with running(server):
        yield server


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A client of an empty Redis."""
    client = connect(redis_server.url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture(params=["embedded", "redis-7.0"])
async def any_redis_server(request: pytest.FixtureRequest) -> RedisServer:
    """Each server that the bus must work on, empty."""
    name = {"embedded": "redis_server", "redis-7.0": "debian_redis_server"}[request.param]
    server: RedisServer = request.getfixturevalue(name)
    client = connect(server.url)
    await client.flushall()
    await client.aclose()
    return server


@pytest.fixture
async def any_redis(any_redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A client of each server that the bus must work on, empty."""
    client = connect(any_redis_server.url)
    yield client
    await client.aclose()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """An empty data folder."""
    return tmp_path / "data"


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoServer]:
    """moto, which takes parts of 256 bytes."""
    from tests.s3_servers import MotoServer  # noqa: PLC0415

    server = MotoServer(tmp_path_factory.mktemp("moto"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def swift_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftServer]:
    """Swift with s3api, which takes parts of any size."""
    from tests.s3_servers import SwiftServer, can_run_swift  # noqa: PLC0415

    memory = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="swift-") as name:
        folder = Path(name)  # it syncs a lot, and nobody cuts its power
        if can_run_swift(folder):
            folder = tmp_path_factory.mktemp("swift")
        if reason := can_run_swift(folder):
            pytest.skip(f"Swift cannot run here: {reason}")
        server = SwiftServer(folder)
        try:
            server.start()
            yield server
        finally:
            server.kill()


_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{11,12}", re.IGNORECASE)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name tests alike in all processes that run them, whatever ids they made up."""
    if isinstance(val, str) and _UUID.search(val):
        return _UUID.sub("id", val)
    return None
