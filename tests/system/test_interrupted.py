"""Uploads over connections that break: nothing is lost, and hardly a byte is sent twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import socket
import struct
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from shared.events import UploadCompleted
from tests.fault_proxy import Fault, FaultProxy, Kind
from tests.storage.stored_files import lifecycle
from tests.system.parts import (
    CHUNK,
    COLLECTION,
    MiB,
    System,
    assert_told_in_order,
    download,
    lines_of,
    watching,
)

SIZE: Final = 48 * MiB + 4321
CUTS: Final = 20
HEAD_BYTES: Final = 1024
"""More than the request line and the headers of one request take."""
BUFFERED_BYTES: Final = 512 * 1024
"""More than ingest has read, and not yet taken in, of a body that a new request cuts short."""


@pytest.fixture
def dice() -> random.Random:
    """Randomness that a failed test shows how to repeat."""
    seed = int(os.environ.get("FAULT_SEED", "") or random.SystemRandom().randrange(2**32))
    sys.stdout.write(f"to repeat: FAULT_SEED={seed}\n")
    return random.Random(seed)


@pytest.fixture
def source(tmp_path: Path, dice: random.Random) -> Path:
    """A file to send."""
    path = tmp_path / "source.bin"
    path.write_bytes(dice.randbytes(SIZE))
    return path


def gaps(dice: random.Random, count: int) -> list[int]:
    """Return the bytes between one fault and the next; all of them strike within a file."""
    points = sorted(dice.sample(range(1, SIZE - 1), count))
    return [b - a for a, b in zip([0, *points], points, strict=False)]


async def send_with_tus_js(
    command: list[str], system: System, port: int, source: Path, **options: object
) -> tuple[str, list[dict[str, Any]]]:
    """Send a file with tus-js-client, watched by a socket.

    Returns the upload's id, and what the client told on the way.
    """
    endpoint = f"http://127.0.0.1:{port}{COLLECTION}"
    told: list[dict[str, Any]] = []
    upload_id, watcher = "", None
    async with AsyncExitStack() as stack:
        client = lines_of(*command, endpoint, str(source), json.dumps(options))
        async for text in await stack.enter_async_context(client):
            told.append(json.loads(text))
            if watcher is None and "url" in told[-1]:
                upload_id = told[-1]["url"].rpartition("/")[2]
                url = system.media_url(upload_id)
                watcher = await stack.enter_async_context(watching(url))
        assert told[-1] == {"done": SIZE}, told[-5:]
        assert watcher is not None
        await watcher.until_complete()
        assert_told_in_order(watcher.messages, SIZE)
    return upload_id, told


async def assert_same(system: System, upload_id: str, source: Path) -> None:
    """Check that the file which came out is the one that went in."""
    expected = hashlib.sha256(source.read_bytes()).hexdigest()
    got = await asyncio.to_thread(download, system.file_url(upload_id))
    assert got == (SIZE, expected)


async def test_cut_twenty_times(
    shared_system: System, tus_js: list[str], source: Path, dice: random.Random
) -> None:
    """A cut costs what was in flight, and never what had arrived before."""
    faults = [Fault(after, "fin") for after in gaps(dice, CUTS)]
    async with FaultProxy(shared_system.ingest.port, faults) as proxy:
        upload_id, lines = await send_with_tus_js(tus_js, shared_system, proxy.port, source)

    assert proxy.struck == faults
    retries = [line for line in lines if "retry" in line]
    assert len(retries) >= CUTS
    heads = HEAD_BYTES * 2 * (len(retries) + 1)  # a try is a HEAD and a PATCH at most
    assert 0 <= proxy.sent - SIZE <= heads + BUFFERED_BYTES * CUTS
    await assert_same(shared_system, upload_id, source)


async def test_everything_that_can_happen(
    shared_system: System, tus_js: list[str], source: Path, dice: random.Random
) -> None:
    """Resets and lost answers, too, are survived with every byte in its place."""
    kinds: list[Kind] = [
        *("fin", "rst", "lose-answer"),
        *dice.choices(("rst", "lose-answer"), k=CUTS - 3),
    ]
    faults = [Fault(after, kind) for after, kind in zip(gaps(dice, CUTS), kinds, strict=True)]
    async with FaultProxy(shared_system.ingest.port, faults) as proxy:
        upload_id, _ = await send_with_tus_js(
            tus_js, shared_system, proxy.port, source, chunkSize=2 * MiB
        )

    assert proxy.struck == faults
    await assert_same(shared_system, upload_id, source)


async def begin_patch(port: int, upload_id: str, length: int, body: bytes) -> Any:
    """Send the head of a PATCH from byte 0, and the first bytes of its body."""
    headers = {**CHUNK, "Host": "127.0.0.1", "Upload-Offset": "0", "Content-Length": length}
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join([f"PATCH {COLLECTION}/{upload_id} HTTP/1.1", *lines, "", ""]).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head + body)
    await writer.drain()
    return reader, writer


async def received(system: System, upload_id: str, count: int) -> None:
    """Wait until the server has so many bytes."""
    async with asyncio.timeout(20):
        while await asyncio.to_thread(system.received, upload_id) < count:
            await asyncio.sleep(0.02)


async def test_reset_keeps_what_had_arrived(shared_system: System, dice: random.Random) -> None:
    """After a reset the offset is where the bytes ended."""
    body = dice.randbytes(3 * MiB)
    upload_id = await asyncio.to_thread(shared_system.create, len(body) * 2)
    _, writer = await begin_patch(shared_system.ingest.port, upload_id, len(body) * 2, body)
    await received(shared_system, upload_id, len(body))

    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()

    assert await asyncio.to_thread(shared_system.offset, upload_id) == len(body)


async def test_takeover_from_a_stalled_connection(
    shared_system: System, dice: random.Random
) -> None:
    """A client whose connection died without a word goes on at once over a new one."""
    body = dice.randbytes(3 * MiB)
    upload_id = await asyncio.to_thread(shared_system.create, len(body))
    half = len(body) // 2
    async with FaultProxy(shared_system.ingest.port, [Fault(half, "stall")]) as proxy:
        _, writer = await begin_patch(proxy.port, upload_id, len(body), body)
        async with watching(shared_system.media_url(upload_id)) as watcher:
            async with asyncio.timeout(20):
                while not proxy.struck:
                    await asyncio.sleep(0.02)
            started = asyncio.get_running_loop().time()

            offset = await asyncio.to_thread(shared_system.offset, upload_id)

            assert asyncio.get_running_loop().time() - started < 5
            assert half - HEAD_BYTES <= offset <= half
            answer = await asyncio.to_thread(
                shared_system.patch, upload_id, offset, body[offset:]
            )
            assert (answer.status, answer.offset) == (204, len(body))
            await watcher.until_complete()
            assert_told_in_order(watcher.messages, len(body))
        writer.transport.abort()

    expected = (len(body), hashlib.sha256(body).hexdigest())
    got = await asyncio.to_thread(download, shared_system.file_url(upload_id))
    assert got == expected


async def test_lost_last_answer(shared_system: System, dice: random.Random) -> None:
    """A client that never saw the last answer learns that it is done, and it is done once."""
    body = dice.randbytes(MiB)
    upload_id = await asyncio.to_thread(shared_system.create, len(body))
    fault = Fault(len(body), "lose-answer")
    async with FaultProxy(shared_system.ingest.port, [fault]) as proxy:
        reader, writer = await begin_patch(proxy.port, upload_id, len(body), body)
        assert await reader.read() == b""
        writer.close()

    assert await asyncio.to_thread(shared_system.offset, upload_id) == len(body)
    again = await asyncio.to_thread(shared_system.patch, upload_id, 0, body)

    assert again.status == 409
    size, digest = await asyncio.to_thread(download, shared_system.file_url(upload_id))
    assert (size, digest) == (len(body), hashlib.sha256(body).hexdigest())
    async with watching(shared_system.media_url(upload_id)) as watcher:
        await watcher.until_complete()
    told = lifecycle(shared_system.redis.url, upload_id)
    assert [type(event) for event in told].count(UploadCompleted) == 1
