"""S3 servers for the stores on them: started once, for all tests that need them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.s3_servers import MotoServer, S3Server, SwiftServer, can_run_swift


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoServer]:
    """moto, which takes parts of 256 bytes."""
    server = MotoServer(tmp_path_factory.mktemp("moto"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def swift_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftServer]:
    """Swift with s3api, which takes parts of any size."""
    folder = tmp_path_factory.mktemp("swift")
    if reason := can_run_swift(folder):
        pytest.skip(f"Swift cannot run here: {reason}")
    server = SwiftServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(params=["moto", "swift"])
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Each server that the store must work on."""
    server: S3Server = request.getfixturevalue(f"{request.param}_server")
    return server
