"""Clients that this project did not write, using concatenation and checksums, end to end."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import redis
from tusclient.client import TusClient

from shared import events
from shared.streams import event_stream
from tests.processes import ROOT, wait_until
from tests.system.parts import COLLECTION, MiB, System, ask, download, lines_of

SIZE: Final = 40 * MiB + 12_345
PARTS: Final = 4


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A file of random bytes, and its SHA-256."""
    path = tmp_path_factory.mktemp("source") / "parallel.bin"
    content = os.urandom(SIZE)
    path.write_bytes(content)
    yield path, hashlib.sha256(content).hexdigest()
    path.unlink()


@pytest.fixture(scope="session")
def uppy(tus_js: list[str]) -> list[str]:
    """The command that uploads with Uppy: ENDPOINT FILE [OPTIONS] follow."""
    script = ROOT / "tests" / "clients" / "uppy.mjs"
    if not (script.parent / "node_modules" / "@uppy" / "tus").is_dir():
        pytest.skip("Uppy is missing: make setup installs it")
    return [tus_js[0], "--no-warnings", str(script)]


def completions(system: System) -> list[events.UploadCompleted]:
    """Return what the streams tell of completed uploads."""
    client: Any = redis.Redis.from_url(system.redis.url)
    with client:
        entries = [one for p in range(16) for one in client.xrange(event_stream(p))]
    told = [events.decode(fields[b"d"]) for _, fields in entries]
    return [event for event in told if isinstance(event, events.UploadCompleted)]


async def run(system: System, command: list[str], file: Path, options: object) -> list[Any]:
    """Upload a file with a client; return what it prints."""
    endpoint = f"{system.ingest.url}{COLLECTION}"
    async with lines_of(*command, endpoint, str(file), json.dumps(options)) as lines:
        return [json.loads(line) async for line in lines]


class Uploaded:
    """What has been completed since this was made."""

    def __init__(self, system: System) -> None:
        self._system: Final = system
        self._before: Final = {event.upload_id for event in completions(system)}

    def _new(self, *, partial: bool) -> list[events.UploadCompleted]:
        return [
            event
            for event in completions(self._system)
            if event.upload_id not in self._before and event.upload.partial is partial
        ]

    def file(self) -> str:
        """Return the id of the one file that was announced."""
        wait_until(lambda: self._new(partial=False), "a file is announced")
        [event] = self._new(partial=False)
        assert event.offset == SIZE
        return event.upload_id

    def parts(self) -> list[str]:
        """Return the ids of the parts."""
        return [event.upload_id for event in self._new(partial=True)]


def assert_one_file(system: System, uploaded: Uploaded, sha256: str, *, parts: int) -> str:
    """Check that there is one file with the right bytes, and its parts are none."""
    file_id = uploaded.file()
    assert download(system.file_url(file_id)) == (SIZE, sha256)
    assert len(uploaded.parts()) == parts
    for part_id in uploaded.parts():
        assert ask("GET", system.file_url(part_id)).status == 404
        assert ask("DELETE", system.file_url(part_id)).status == 404
    return file_id


async def test_tus_js_client_in_parallel(
    shared_system: System, source: tuple[Path, str], tus_js: list[str]
) -> None:
    """tus-js-client's four parts would not become one file with the bytes of the source."""
    path, sha256 = source
    uploaded = Uploaded(shared_system)
    lines = await run(shared_system, tus_js, path, {"parallelUploads": PARTS})
    assert lines[-1] == {"done": SIZE}, lines
    await asyncio.to_thread(assert_one_file, shared_system, uploaded, sha256, parts=PARTS)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, 0),
        ({"chunkSize": 7 * MiB, "uploadDataDuringCreation": True}, 0),
        ({"parallelUploads": PARTS, "chunkSize": 3 * MiB}, PARTS),
    ],
)
async def test_uppy(
    shared_system: System,
    source: tuple[Path, str],
    uppy: list[str],
    options: dict[str, int],
    parts: int,
) -> None:
    """Uppy would not get a file through: whole, in chunks, or in parts at the same time."""
    path, sha256 = source
    uploaded = Uploaded(shared_system)
    [line] = await run(shared_system, uppy, path, options)
    assert line["done"] == SIZE, line
    file_id = await asyncio.to_thread(
        assert_one_file, shared_system, uploaded, sha256, parts=parts
    )
    assert urlsplit(line["url"]).path == f"{COLLECTION}/{file_id}"


async def test_tuspy_with_checksums(shared_system: System, source: tuple[Path, str]) -> None:
    """tuspy's chunks, each with its SHA-1, would be refused, or joined wrongly."""
    path, sha256 = source
    uploaded = Uploaded(shared_system)
    client = TusClient(f"{shared_system.ingest.url}{COLLECTION}")
    with path.open("rb") as file:
        uploader = client.uploader(file_stream=file, chunk_size=6 * MiB, upload_checksum=True)
        await asyncio.to_thread(uploader.upload)
    await asyncio.to_thread(assert_one_file, shared_system, uploaded, sha256, parts=0)
