"""Readers of objects on S3, who share connections that they may keep busy for long."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from shared.blobs import s3_body, s3_calls, s3_client
from shared.blobs.s3_client import S3Client
from shared.sidecar import new_id
from tests.s3_servers import MotoServer
from tests.storage.stores import s3_options

CONTENT: Final = random.Random(1).randbytes(16 * 1024 * 1024)
"""More than what lies between a server and a reader that rests."""
LIMIT_S: Final = 60.0


@asynccontextmanager
async def object_at(moto: MotoServer) -> AsyncIterator[tuple[S3Client, str]]:
    """Keep a large object; yield a client, and its key."""
    client, key = S3Client(s3_options(moto.url)), f"streams/{new_id()}"
    await client.open()
    try:
        await client.put(key, CONTENT)
        async with asyncio.timeout(LIMIT_S):
            yield client, key
    finally:
        await client.remove([key])
        await client.close()


async def rest_of(stream: AsyncGenerator[bytes]) -> bytes:
    """Return what a stream has still to give."""
    return b"".join([piece async for piece in stream])


async def test_who_rests_keeps_no_connection(
    moto_server: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More readers than connections may rest: others are served, and each goes on later."""
    monkeypatch.setattr(s3_calls, "CONNECTIONS", 2)
    monkeypatch.setattr(s3_body, "_REST_S", 0.1)
    async with object_at(moto_server) as (client, key):
        readers = [client.stream(key, at, len(CONTENT) - at) for at in (0, 1, 5_000_000)]
        begun = [await anext(one) for one in readers]
        for at, first, reader in zip((0, 1, 5_000_000), begun, readers, strict=True):
            assert first + await rest_of(reader) == CONTENT[at:]


async def test_who_is_slow_keeps_nobody_from_small_calls(
    moto_server: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers that have all connections of readers leave some to records and marks."""
    monkeypatch.setattr(s3_client, "_STREAMS", 1)
    async with object_at(moto_server) as (client, key):
        reader, other = (client.stream(key, 0, len(CONTENT)) for _ in range(2))
        first = await anext(reader)
        waiting = asyncio.ensure_future(anext(other))
        assert len((await client.get(key))[0]) == len(CONTENT)
        assert not waiting.done()
        await reader.aclose()
        assert CONTENT.startswith(first)
        assert await waiting + await rest_of(other) == CONTENT


async def test_a_reader_that_is_cancelled_gives_its_place_back(
    moto_server: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither who waits nor who fails keeps a place that nobody has."""
    monkeypatch.setattr(s3_client, "_STREAMS", 1)
    async with object_at(moto_server) as (client, key):
        reader = client.stream(key, 0, len(CONTENT))
        await anext(reader)
        waiting = asyncio.ensure_future(anext(client.stream(key, 0, 1)))
        await asyncio.sleep(0)
        waiting.cancel()
        await reader.aclose()
        with pytest.raises(s3_calls.NoSuchObject):
            await anext(client.stream(f"{key}-not", 0, 1))
        assert await rest_of(client.stream(key, 7, 3)) == CONTENT[7:10]
