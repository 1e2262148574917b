"""Parts of the system that die in the middle of an upload, and what nobody may notice of it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from aiohttp import ClientError, ClientSession

from shared.events import UploadCompleted
from tests.processes import wait_until
from tests.storage.stored_files import lifecycle
from tests.system.parts import (
    CHUNK,
    MiB,
    System,
    Watcher,
    assert_told_in_order,
    download,
    running_system,
    watching,
)

SIZE: Final = 24 * MiB
CHUNKS: Final = 12
STEP: Final = SIZE // CHUNKS


def run(job: Callable[..., Any], *args: Any) -> Coroutine[Any, Any, Any]:
    """Do something that blocks, beside the sockets that watch."""
    return asyncio.to_thread(job, *args)


@pytest.fixture(scope="module")
def content() -> bytes:
    """What is uploaded."""
    return os.urandom(SIZE)


async def send(system: System, upload_id: str, content: bytes, chunks: range) -> None:
    """Send some of the chunks; each one must be accepted."""
    for number in chunks:
        start = number * STEP
        answer = await run(system.patch, upload_id, start, content[start : start + STEP])
        assert (answer.status, answer.offset) == (204, start + STEP), answer


async def stream(url: str, offset: int, content: bytes, gate: asyncio.Event) -> int:
    """PATCH the rest in one request whose second half waits for the gate.

    Returns the status, 0 if the connection ended before the answer.
    """
    half = (offset + len(content)) // 2

    async def body() -> AsyncIterator[bytes]:
        yield content[offset:half]
        await gate.wait()
        yield content[half:]

    length = str(len(content) - offset)
    headers = {**CHUNK, "Upload-Offset": str(offset), "Content-Length": length}
    try:
        async with (
            ClientSession() as session,
            session.patch(url, data=body(), headers=headers) as answer,
        ):
            return answer.status
    except ClientError:
        return 0


async def assert_whole(system: System, upload_id: str, content: bytes) -> None:
    """Check the file, and that its completion was told once."""
    expected = (len(content), hashlib.sha256(content).hexdigest())
    assert await run(download, system.file_url(upload_id)) == expected
    told = await run(lifecycle, system.redis.url, upload_id)
    assert len({e.seq for e in told if isinstance(e, UploadCompleted)}) == 1
    status = await run(system.progress_status, upload_id)
    assert status == (200, "completed")


async def at_least(watcher: Watcher, count: int) -> None:
    """Wait until a socket was told of so many bytes."""
    await watcher.until(
        lambda seen: any(one["bytes_sent"] >= count for one in seen), f"{count} bytes are told"
    )


async def test_ingest_is_killed(system: System, content: bytes) -> None:
    """Ingest dies in the middle of a PATCH: what was acknowledged is there, and it goes on."""
    upload_id = await run(system.create, SIZE)
    async with watching(system.media_url(upload_id)) as watcher:
        await send(system, upload_id, content, range(3))
        acknowledged = 3 * STEP
        cut = asyncio.ensure_future(
            stream(system.upload_url(upload_id), acknowledged, content, asyncio.Event())
        )
        await at_least(watcher, acknowledged + STEP)

        system.ingest.kill()

        assert await cut == 0
        await run(system.ingest.start)
        offset = await run(system.offset, upload_id)
        assert acknowledged <= offset < SIZE
        answer = await run(system.patch, upload_id, offset, content[offset:])
        assert (answer.status, answer.offset) == (204, SIZE)
        await watcher.until_complete()
        assert_told_in_order(watcher.messages, SIZE)
    await assert_whole(system, upload_id, content)


async def test_gateway_is_killed(system: System, content: bytes) -> None:
    """The gateway dies while somebody watches: a new socket is told all that matters."""
    upload_id = await run(system.create, SIZE)
    async with watching(system.media_url(upload_id)) as watcher:
        await send(system, upload_id, content, range(4))
        await at_least(watcher, STEP)
        system.gateway.kill()
        await watcher.until_closed()
    await send(system, upload_id, content, range(4, 6))
    await run(system.gateway.start)

    async with watching(system.media_url(upload_id)) as watcher:
        # What nobody had recorded when it died follows the state at once.
        await at_least(watcher, STEP)
        assert watcher.messages[-1]["type"] == "progress"
        await send(system, upload_id, content, range(6, CHUNKS))
        await watcher.until_complete()
        assert_told_in_order(watcher.messages, SIZE)
    await assert_whole(system, upload_id, content)


async def test_gateway_is_away_at_the_end(system: System, content: bytes) -> None:
    """What ended while no gateway ran is told to the first one who asks."""
    upload_id = await run(system.create, SIZE)
    await send(system, upload_id, content, range(1))
    system.gateway.kill()
    await send(system, upload_id, content, range(1, CHUNKS))
    await run(system.gateway.start)

    async with watching(system.media_url(upload_id)) as watcher:
        await watcher.until_complete()
        assert_told_in_order(watcher.messages, SIZE)
    await assert_whole(system, upload_id, content)


async def test_redis_is_killed(system: System, content: bytes) -> None:
    """Redis dies and comes back with its log: no upload fails, and watchers learn the end."""
    going_on, ending = await run(system.create, SIZE), await run(system.create, SIZE)
    await send(system, ending, content, range(CHUNKS - 2))
    await send(system, going_on, content, range(4))
    async with (
        watching(system.media_url(going_on)) as watcher,
        watching(system.media_url(ending)) as other,
    ):
        await at_least(other, STEP)
        gate = asyncio.Event()
        streaming = asyncio.ensure_future(
            stream(system.upload_url(going_on), 4 * STEP, content, gate)
        )
        await at_least(watcher, 5 * STEP)

        system.redis.kill()

        await send(system, ending, content, range(CHUNKS - 2, CHUNKS))
        begun = await run(system.create, SIZE)
        await send(system, begun, content, range(1))
        gate.set()
        assert await streaming == 204
        expected = (SIZE, hashlib.sha256(content).hexdigest())
        assert await run(download, system.file_url(ending)) == expected
        assert (watcher.is_open, other.is_open) == (True, True)
        await run(system.redis.start)
        for one in (watcher, other):
            await one.until_complete()
            assert_told_in_order(one.messages, SIZE)
        await send(system, begun, content, range(1, CHUNKS))
    for upload_id in (going_on, ending, begun):
        await run(wait_for_progress, system, upload_id)
        await assert_whole(system, upload_id, content)


def wait_for_progress(system: System, upload_id: str, status: str = "completed") -> None:
    """Wait until the gateway's REST interface knows the upload in this status."""
    wait_until(
        lambda: system.progress_status(upload_id) == (200, status), f"{upload_id} is {status}"
    )


async def test_redis_forgets_everything(system: System, content: bytes) -> None:
    """Redis is wiped in the middle of an upload: all that clients can ask for comes back."""
    recent, running = await run(system.create, SIZE), await run(system.create, SIZE)
    await send(system, recent, content, range(CHUNKS))
    await send(system, running, content, range(4))
    await run(wait_for_progress, system, recent)
    await run(wait_for_progress, system, running, "uploading")
    async with watching(system.media_url(running)) as watcher:
        await at_least(watcher, STEP)
        gate = asyncio.Event()
        streaming = asyncio.ensure_future(
            stream(system.upload_url(running), 4 * STEP, content, gate)
        )
        await at_least(watcher, 5 * STEP)

        await run(wipe, system)

        await run(wait_for_projection, system, recent, "completed")
        await run(wait_for_projection, system, running, "uploading")
        gate.set()
        assert await streaming == 204
        await watcher.until_complete()
        assert_told_in_order(watcher.messages, SIZE)
    await run(wait_for_projection, system, running, "completed")
    system.gateway.kill()  # what it remembers by itself is no projection
    await run(system.gateway.start)
    for upload_id in (recent, running):
        await assert_whole(system, upload_id, content)
    begun = await run(system.create, SIZE)
    async with watching(system.media_url(begun)) as watcher:
        await send(system, begun, content, range(CHUNKS))
        await watcher.until_complete()


def wipe(system: System) -> None:
    """Empty Redis."""
    with client_of(system) as client:
        client.flushall()


@contextmanager
def client_of(system: System) -> Iterator[Any]:
    """Be connected to Redis."""
    client = redis.Redis.from_url(system.redis.url)
    try:
        yield client
    finally:
        client.close()


def wait_for_projection(system: System, upload_id: str, status: str) -> None:
    """Wait until Redis itself has the upload in this status."""
    key = f"upload_progress:{upload_id}"
    with client_of(system) as client:
        wait_until(lambda: client.hget(key, "status") == status.encode(), f"{key} is {status}")


async def test_resume_after_a_wipe_with_ingest_away(system: System, content: bytes) -> None:
    """Redis is wiped while ingest is down: the next ingest brings it all back."""
    recent, running = await run(system.create, SIZE), await run(system.create, SIZE)
    await send(system, recent, content, range(CHUNKS))
    await send(system, running, content, range(4))
    system.ingest.kill()
    await run(wipe, system)

    await run(system.ingest.start)

    await run(wait_for_projection, system, recent, "completed")
    await run(wait_for_projection, system, running, "uploading")
    assert await run(system.offset, running) == 4 * STEP
    async with watching(system.media_url(running)) as watcher:
        await send(system, running, content, range(4, CHUNKS))
        await watcher.until_complete()
    await assert_whole(system, running, content)


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[System]:
    """A system with two ingest processes."""
    with running_system(tmp_path / "twins", ingests=2) as one:
        yield one


async def test_two_ingest_processes(twins: System, content: bytes) -> None:
    """One upload through two processes, chunk by chunk in turn, is one story."""
    first, second = twins.ingest, twins.started[-1]
    upload_id = await run(twins.create, SIZE)
    async with watching(twins.media_url(upload_id)) as watcher:
        for number in range(CHUNKS):
            here, there = (first, second) if number % 2 else (second, first)
            start = number * STEP

            def patch(start: int = start, at: Any = here) -> Any:
                return twins.patch(upload_id, start, content[start : start + STEP], at=at)

            answer = await run(patch)
            assert (answer.status, answer.offset) == (204, start + STEP), answer
            offset = await asyncio.to_thread(twins.offset, upload_id, at=there)
            assert offset == start + STEP
        await watcher.until_complete()
        assert_told_in_order(watcher.messages, SIZE)
    await assert_whole(twins, upload_id, content)


async def test_takeover_between_processes(twins: System, content: bytes) -> None:
    """A request that hangs in one process gives way to a client that asks the other."""
    upload_id = await run(twins.create, SIZE)
    gate = asyncio.Event()
    hanging = asyncio.ensure_future(stream(twins.upload_url(upload_id), 0, content, gate))
    async with watching(twins.media_url(upload_id)) as watcher:
        await at_least(watcher, STEP)

        offset = await asyncio.to_thread(twins.offset, upload_id, at=twins.started[-1])

        assert STEP <= offset <= SIZE // 2
        rest = content[offset:]
        answer = await run(twins.patch, upload_id, offset, rest)
        assert (answer.status, answer.offset) == (204, SIZE), answer
        await watcher.until_complete()
        assert_told_in_order(watcher.messages, SIZE)
    gate.set()
    assert await hanging in {0, 423}
    await assert_whole(twins, upload_id, content)
