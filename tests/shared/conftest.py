"""Redis servers that one test may kill, hang and restart, and clients that end with it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest
from redis.asyncio import Redis

from shared.streams import connect
from tests.processes import RedisServer, debian_redis, running

StartRedis = Callable[..., RedisServer]
ConnectTo = Callable[[str], Redis]

_MEMORY = Path("/dev/shm")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, in memory where that can be had.

    The tests here sync a lot; a disk that is busy with something else must not slow them.
    """
    if not os.access(_MEMORY, os.W_OK):
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(dir=_MEMORY, prefix="uploads-test-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def data_dir(folder: Path) -> Path:
    """An empty data folder."""
    return folder / "data"


@pytest.fixture(params=["embedded", "redis-7.0"])
def start_redis(request: pytest.FixtureRequest, folder: Path) -> Iterator[StartRedis]:
    """Start a server of the test's own: ``start_redis(aof=True)`` keeps its data."""
    binary = None if request.param == "embedded" else debian_redis()
    if request.param == "redis-7.0" and binary is None:
        pytest.skip("no redis-server on PATH: make setup-system installs it")
    with ExitStack() as stack:

        def start(*, aof: bool) -> RedisServer:
            server = RedisServer(folder / "redis", binary=binary, aof=aof)
            stack.enter_context(running(server))
            return server

        yield start


@pytest.fixture
async def connect_to() -> AsyncIterator[ConnectTo]:
    """Return clients of servers by URL; they are closed after the test."""
    async with AsyncExitStack() as stack:

        def client_of(url: str) -> Redis:
            client = connect(url)
            stack.push_async_callback(client.aclose)
            return client

        yield client_of
