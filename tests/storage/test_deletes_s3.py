"""Deletes on S3 that are cut at any call."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Final

import pytest
from redis.asyncio import Redis

from services.storage.files import Files
from shared.blobs.s3 import S3Store
from shared.errors import NotFound
from shared.identity import Principal
from shared.lifecycle import background
from shared.outbox import Outbox
from shared.publisher import Publisher
from shared.sidecar import new_id
from tests.processes import ROOT, RedisServer
from tests.s3_servers import MotoServer
from tests.shared.blobs.memory_leases import MemoryLeases, Registry
from tests.shared.waiting import eventually
from tests.storage import delete_once_s3
from tests.storage.stored_files import lifecycle, put_artifact, put_copy, put_file
from tests.storage.stores import s3_options

CONTENT: Final = bytes(range(256)) * 40
LOCAL: Final = Principal("local", "local", "local", frozenset(), None)
STEPS_TRIED: Final = 9
"""More than a delete has; a program that survives its step has done all of them."""


@pytest.fixture
async def store(moto_server: MotoServer) -> AsyncIterator[S3Store]:
    """A place of the test's own."""
    one = S3Store(
        s3_options(moto_server.url),
        prefix=f"deletes/{new_id()}/",
        leases=MemoryLeases(Registry()),
        part_size=delete_once_s3.PART,
    )
    await one.open()
    yield one
    await one.close()


@pytest.fixture
async def outbox(store: S3Store, redis: Redis) -> AsyncIterator[Outbox]:
    """The way from the store to the streams, open."""
    publisher = Publisher(redis, partitions=16, interval_s=0.5)
    one = Outbox(store, publisher, redis, recent_s=60)
    async with background("publisher", publisher.run()):
        yield one
    await one.close()


async def content(store: S3Store, file_id: str) -> bytes:
    """Return all bytes of a file."""
    return b"".join([piece async for piece in store.read_range(file_id, 0, 1 << 30)])


async def named(store: S3Store, file_id: str) -> list[str]:
    """Return the objects that name a file.

    A mark of an event without a record may be that of a creation, and stays for ten minutes.
    """
    listed = await store.client.list_all(store.keys.prefix)
    return [one.key for one in listed if file_id in one.key]


def delete_and_die(arguments: Sequence[str], step: int) -> list[str]:
    """Run the program that deletes a file and dies at a step; return the steps before."""
    program = subprocess.run(
        [sys.executable, delete_once_s3.__file__, *arguments, str(step)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    steps = [one for one in program.stdout.splitlines() if "_object " in one]
    if program.returncode:
        assert (program.returncode, len(steps)) == (-signal.SIGKILL, step - 1)
    return steps


async def test_delete_killed_at_each_call(
    store: S3Store, outbox: Outbox, redis_server: RedisServer
) -> None:
    """Wherever SIGKILL hits, the file is whole or gone for good, and then it is told.

    What was made of it goes with it, and who had the same bytes keeps them.
    """
    files, url = Files(store, outbox), redis_server.url
    slots = asyncio.Semaphore(4)

    async def outcome_at(step: int) -> tuple[str, int]:
        file_id = await put_file(store, CONTENT)
        await put_artifact(store, file_id, CONTENT)
        copy_id = await put_copy(store, file_id)
        arguments = (store.client.options.endpoint_url, store.keys.prefix, url, file_id)
        async with slots:
            steps = await asyncio.to_thread(delete_and_die, arguments, step)
        await outbox.sweep(older_than_s=0)
        assert await content(store, copy_id) == CONTENT
        try:
            await files.find(file_id, LOCAL)
        except NotFound:
            await eventually(lambda: lifecycle(url, file_id), f"it is told after {steps}")
            while set(await named(store, file_id)) - {store.keys.due(file_id, 4)}:
                await asyncio.sleep(0.05)
            assert {event.seq for event in lifecycle(url, file_id)} == {4}
            return "gone", len(steps)
        assert await content(store, file_id) == CONTENT
        assert [one.name for one in await store.artifacts.all(file_id)] == ["thumb.jpg"]
        assert lifecycle(url, file_id) == []
        await files.delete(file_id, LOCAL)
        return "there", len(steps)

    async with asyncio.timeout(60):
        outcomes = await asyncio.gather(*(outcome_at(n) for n in range(1, STEPS_TRIED + 1)))

    kinds = [kind for kind, _ in outcomes]
    assert kinds == sorted(kinds, reverse=True), "a file came back"
    assert set(kinds) == {"there", "gone"}
    assert outcomes[-1][1] < STEPS_TRIED - 1, "a delete has more steps than were tried"
