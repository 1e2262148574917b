"""The stores that storage serves from, as fixtures: a file system, and S3 at moto."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.storage.settings import Settings
from shared.blobs.opening import make_store
from shared.blobs.s3_calls import S3Options
from shared.blobs.store import BlobStore
from shared.sidecar import new_id
from tests.processes import RedisServer
from tests.s3_servers import BUCKET, MotoServer
from tests.shared.blobs.memory_leases import MemoryLeases, Registry
from tests.storage.stored_files import SECRET

__all__ = ["LINK_SECRET", "opened", "s3_options", "s3_settings"]

LINK_SECRET = "a secret for links with 32 characters at least"


def s3_settings(moto: MotoServer) -> dict[str, str]:
    """Return what points a service at a place of its own at moto."""
    return {
        "blob_store": f"s3://{BUCKET}/{new_id()}",
        "s3_endpoint_url": moto.url,
        "s3_access_key_id": moto.access_key_id,
        "s3_secret_access_key": moto.secret_access_key,
    }


def s3_options(endpoint: str) -> S3Options:
    """Return how a store reaches moto's bucket."""
    return S3Options(
        bucket=BUCKET,
        endpoint_url=endpoint,
        access_key_id=MotoServer.access_key_id,
        secret_access_key=MotoServer.secret_access_key,
    )


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[BlobStore]:
    """Open the store of a service, without waiting for Redis to grant leases."""
    is_s3 = settings.blob_store.startswith("s3:")
    store = make_store(settings, leases=MemoryLeases(Registry()) if is_s3 else None)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(params=["filesystem", "s3"])
def settings(
    request: pytest.FixtureRequest, data_dir: Path, redis_server: RedisServer
) -> Settings:
    """Settings of a storage for callers with tokens, on each store."""
    place: dict[str, Any] = {}
    if request.param == "s3":
        place = s3_settings(request.getfixturevalue("moto_server"))
    return Settings(
        redis_url=redis_server.url,
        data_dir=data_dir,
        auth_jwt_secret=SECRET,
        link_secrets=(LINK_SECRET,),
        **place,
    )


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[BlobStore]:
    """What keeps the files that are served."""
    async with opened(settings) as one:
        yield one
