"""Redis servers that belong to one test, which may kill, hang and restart them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.processes import RedisServer, debian_redis, running

StartRedis = Callable[..., RedisServer]


@pytest.fixture(params=["embedded", "redis-7.0"])
def start_redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StartRedis]:
    """Start a server of the test's own: ``start_redis(aof=True)`` keeps its data."""
    binary = None if request.param == "embedded" else debian_redis()
    if request.param == "redis-7.0" and binary is None:
        pytest.skip("no redis-server on PATH: make setup-system installs it")
    with ExitStack() as stack:

        def start(*, aof: bool) -> RedisServer:
            folder = tmp_path / f"own-redis-{len(list(tmp_path.glob('own-redis-*')))}"
            server = RedisServer(folder, binary=binary, aof=aof)
            stack.enter_context(running(server))
            return server

        yield start
