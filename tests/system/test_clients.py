"""Clients that this project did not write, with large files, from the upload to the delete."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from tusclient.client import TusClient

from tests.system.parts import (
    COLLECTION,
    MiB,
    System,
    Watcher,
    ask,
    assert_told_in_order,
    download,
    lines_of,
    watching,
)

SIZE: Final = 200 * MiB + 12_345
MIDDLE: Final = (SIZE // 2 - 1000, SIZE // 2 + 5000)
"""First and last byte of the part that is fetched by itself."""


@dataclass(frozen=True)
class Source:
    """A file to send."""

    path: Path
    sha256: str
    middle: bytes


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """A large file of random bytes."""
    path = tmp_path_factory.mktemp("source") / "large.bin"
    seen = hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, SIZE, MiB):
            block = os.urandom(min(MiB, SIZE - start))
            seen.update(block)
            file.write(block)
    with path.open("rb") as file:
        file.seek(MIDDLE[0])
        middle = file.read(MIDDLE[1] - MIDDLE[0] + 1)
    yield Source(path, seen.hexdigest(), middle)
    path.unlink()


class Story:
    """What the sockets are told of one upload, while a client sends it."""

    def __init__(self, system: System, dashboard: Watcher, stack: AsyncExitStack) -> None:
        self._system: Final = system
        self._dashboard: Final = dashboard
        self._stack: Final = stack
        self.upload_id = ""

    async def begin(self, location: str) -> None:
        """Watch the upload as soon as its URL is known."""
        self.upload_id = location.rstrip("/").rpartition("/")[2]
        url = self._system.media_url(self.upload_id)
        self._media = await self._stack.enter_async_context(watching(url))

    async def assert_whole(self) -> None:
        """Wait for the end; check what both sockets were told on the way."""
        await self._media.until_complete()
        assert_told_in_order(self._media.messages, SIZE)
        await self._dashboard.until(
            lambda seen: seen and seen[-1]["event_type"] == "upload_complete", "complete"
        )
        *before, end = self._dashboard.messages
        assert {one["session_id"] for one in (*before, end)} == {self.upload_id}
        assert end["data"]["percentage"] == 100.0
        assert end["data"]["video_id"] == self.upload_id
        positions = [one["data"]["bytes_uploaded"] for one in before]
        assert positions == sorted(positions)
        assert any(0 < one < SIZE for one in positions), positions


@asynccontextmanager
async def told(system: System) -> AsyncIterator[Story]:
    """Follow the caller's uploads on a dashboard, and the one that begins in detail."""
    async with AsyncExitStack() as stack:
        dashboard = await stack.enter_async_context(watching(system.dashboard_url))
        yield Story(system, dashboard, stack)


def fetch_and_delete(system: System, upload_id: str, source: Source) -> None:
    """Get the file back, whole and in part, then delete it and look that all is gone."""
    url = system.file_url(upload_id)
    assert download(url) == (SIZE, source.sha256)
    part = ask("GET", url, {"Range": f"bytes={MIDDLE[0]}-{MIDDLE[1]}"})
    assert (part.status, part.body) == (206, source.middle)
    assert part.headers["Content-Range"] == f"bytes {MIDDLE[0]}-{MIDDLE[1]}/{SIZE}"
    assert ask("DELETE", url).status == 204
    assert ask("DELETE", url).status == 404
    system.assert_gone(upload_id)


async def test_tus_js_client(shared_system: System, source: Source, tus_js: list[str]) -> None:
    """tus-js-client sends a file in one request, and everyone sees it arrive."""
    endpoint = f"{shared_system.ingest.url}{COLLECTION}"
    async with told(shared_system) as story:
        async with lines_of(*tus_js, endpoint, str(source.path)) as lines:
            await story.begin(json.loads(await lines.readline())["url"])
            assert [json.loads(line) async for line in lines] == [{"done": SIZE}]
        await story.assert_whole()

    await asyncio.to_thread(fetch_and_delete, shared_system, story.upload_id, source)


async def test_tuspy(shared_system: System, source: Source) -> None:
    """tuspy sends a file in many requests, and everyone sees it arrive."""
    client = TusClient(f"{shared_system.ingest.url}{COLLECTION}")
    async with told(shared_system) as story:
        with source.path.open("rb") as file:
            uploader = client.uploader(
                file_stream=file, chunk_size=16 * MiB, metadata={"filename": "large.bin"}
            )
            location = await asyncio.to_thread(uploader.create_url)
            uploader.set_url(location)
            await story.begin(location)
            await asyncio.to_thread(uploader.upload)
        await story.assert_whole()

    await asyncio.to_thread(fetch_and_delete, shared_system, story.upload_id, source)


async def curl(*arguments: str) -> str:
    """Run curl; return what it prints."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is missing: make setup-system installs it")
    async with lines_of(program, "--silent", "--show-error", "--fail", *arguments) as lines:
        return (await lines.read()).decode()


async def test_curl(shared_system: System, source: Source, tmp_path: Path) -> None:
    """curl sends a file with two requests, and fetches it in two parts."""
    tus = ("--header", "Tus-Resumable: 1.0.0")
    endpoint = f"{shared_system.ingest.url}{COLLECTION}"
    async with told(shared_system) as story:
        location = await curl(
            *("--request", "POST", endpoint, *tus, "--header", f"Upload-Length: {SIZE}"),
            *("--output", os.devnull, "--write-out", "%header{location}"),
        )
        await story.begin(location)
        offset = await curl(
            *("--request", "PATCH", location, "--upload-file", str(source.path), *tus),
            *("--header", "Content-Type: application/offset+octet-stream"),
            *("--header", "Upload-Offset: 0", "--write-out", "%header{upload-offset}"),
        )
        assert int(offset) == SIZE
        await story.assert_whole()

    copy = tmp_path / "copy"
    url = shared_system.file_url(story.upload_id)
    await curl("--range", f"0-{SIZE // 3}", "--output", str(copy), url)
    await curl("--continue-at", "-", "--output", str(copy), url)
    with copy.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == source.sha256
    copy.unlink()
    await asyncio.to_thread(fetch_and_delete, shared_system, story.upload_id, source)
