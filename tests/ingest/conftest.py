"""Fixtures of ingest's tests: one process that many tests share, and what stands behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ingest.evidence import tracebacks
from tests.ingest.tus_client import Tus
from tests.processes import RedisServer, ServiceProcess, running


@dataclass(frozen=True)
class Ingest:
    """An ingest process with its Redis and its data folder."""

    service: ServiceProcess
    redis: RedisServer
    data_dir: Path

    @property
    def tus(self) -> Tus:
        """A client of it."""
        return Tus(self.service.port)


@pytest.fixture(scope="session")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that no test of another area empties."""
    server = RedisServer(tmp_path_factory.mktemp("ingest-redis"))
    with running(server):
        yield server


@pytest.fixture(scope="session")
def ingest(bus: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingest]:
    """An ingest process that nobody kills; its log must stay free of tracebacks."""
    folder = tmp_path_factory.mktemp("ingest")
    env = {
        "REDIS_URL": bus.url,
        "DATA_DIR": str(folder / "data"),
        "UPLOAD_MAX_FILE_SIZE": str(LARGEST),
    }
    service = ServiceProcess("ingest", env, folder / "log")
    with running(service):
        yield Ingest(service, bus, folder / "data")
    assert tracebacks(service) == []


LARGEST = 64 * 1024 * 1024
"""Bytes that one upload to the shared process may have."""

Starter = Callable[..., Ingest]


@pytest.fixture
def start_ingest(bus: RedisServer, tmp_path: Path) -> Iterator[Starter]:
    """Start an ingest process with settings of the test's own; it ends with the test."""
    with ExitStack() as stack:
        count = 0

        def start(redis: RedisServer = bus, data_dir: Path | None = None, **env: str) -> Ingest:
            nonlocal count
            count += 1
            folder = data_dir or tmp_path / f"data{count}"
            settings = {"REDIS_URL": redis.url, "DATA_DIR": str(folder), **env}
            service = ServiceProcess("ingest", settings, tmp_path / f"log{count}")
            stack.enter_context(running(service))
            return Ingest(service, redis, folder)

        yield start
