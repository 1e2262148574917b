"""The S3 servers that the stores are tested on, as they are and behind a proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.s3_proxy import S3Proxy
from tests.s3_servers import MotoServer, S3Server
from tests.shared.blobs.s3_bench import Bench


@pytest.fixture(params=["moto", "swift"])
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Each server that the store must work on."""
    server: S3Server = request.getfixturevalue(f"{request.param}_server")
    return server


@pytest.fixture
async def bench(s3_server: S3Server) -> AsyncIterator[Bench]:
    """A place of the test's own on each server."""
    async with S3Proxy(
        s3_server.url,
        access_key_id=s3_server.access_key_id,
        secret_access_key=s3_server.secret_access_key,
    ) as proxy:
        yield Bench(s3_server, proxy)


@pytest.fixture
async def moto_bench(moto_server: MotoServer) -> AsyncIterator[Bench]:
    """A place of the test's own on the faster server."""
    async with S3Proxy(
        moto_server.url,
        access_key_id=moto_server.access_key_id,
        secret_access_key=moto_server.secret_access_key,
    ) as proxy:
        yield Bench(moto_server, proxy)
