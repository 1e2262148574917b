"""Fixtures of ingest's tests: one process that many tests share, and what stands behind it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ingest.evidence import tracebacks
from tests.ingest.tus_client import Tus
from tests.processes import RedisServer, ServiceProcess, running, wait_until


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


LARGEST = 64 * 1024 * 1024
"""Bytes that one upload to the shared process may have."""


def prepare(redis: RedisServer, data_dir: Path, log: Path, **env: str) -> Ingest:
    """Return an ingest process that is not started yet."""
    settings = {"REDIS_URL": redis.url, "DATA_DIR": str(data_dir), **env}
    return Ingest(ServiceProcess("ingest", settings, log), redis, data_dir)


@contextmanager
def started(*processes: Ingest) -> Iterator[None]:
    """Run the processes, and let them find out first that their Redis does not know them.

    Until then they publish all events once more, for a Redis that may have lost them.
    """
    with running(*(one.service for one in processes)):
        for one in processes:
            epoch = one.data_dir / "blobs" / "epoch"
            wait_until(
                lambda epoch=epoch: epoch.exists(), "the epoch is known", one.service.tail
            )
        yield


@pytest.fixture(scope="session")
def ingest(bus: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingest]:
    """An ingest process that nobody kills; its log must stay free of tracebacks."""
    folder = tmp_path_factory.mktemp("ingest")
    size = str(LARGEST)
    one = prepare(bus, folder / "data", folder / "log", UPLOAD_MAX_FILE_SIZE=size)
    with started(one):
        yield one
    assert tracebacks(one.service) == []


@pytest.fixture
def tus(ingest: Ingest) -> Tus:
    """A client of the shared process."""
    return ingest.tus


@pytest.fixture(scope="module")
def mortal(bus: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingest]:
    """An ingest process that tests may kill, if they start it again."""
    folder = tmp_path_factory.mktemp("mortal")
    one = prepare(bus, folder / "data", folder / "log")
    with started(one):
        yield one


@pytest.fixture(scope="module")
def pair(
    bus: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Ingest, Ingest]]:
    """Two processes on one data folder and one Redis."""
    folder = tmp_path_factory.mktemp("pair")
    one = prepare(bus, folder / "data", folder / "log1")
    other = prepare(bus, folder / "data", folder / "log2")
    with started(one, other):
        yield one, other


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
            one = prepare(redis, folder, tmp_path / f"log{count}", **env)
            stack.enter_context(started(one))
            return one

        yield start


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
