"""The S3 servers that the stores are tested on."""

from __future__ import annotations

import pytest

from tests.s3_servers import S3Server


@pytest.fixture(params=["moto", "swift"])
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Each server that the store must work on."""
    server: S3Server = request.getfixturevalue(f"{request.param}_server")
    return server
