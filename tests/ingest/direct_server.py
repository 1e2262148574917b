"""A server that receives bodies directly, in the test's own loop, and a client of it."""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from aiohttp import web

from services.ingest import receive, request_body
from services.ingest.direct_body import DIRECT, DirectBody
from services.ingest.receive import Ended
from services.ingest.request_body import RequestBody
from services.ingest.writers import Lease, Writers
from shared.blobs.filesystem import FilesystemStore
from shared.events import UploadCreated, UploadFacts
from shared.sidecar import Sidecar, new_id
from tests.ingest.wire import Cut
from tests.processes import free_port
from tests.shared.waiting import eventually

__all__ = ["Client", "Served", "connected", "served"]


@dataclass
class Served:
    """A server that receives each body into an upload of its own, and how that went."""

    store: FilesystemStore
    port: int = field(default_factory=free_port)
    idle_s: float = 10.0
    uploads: list[str] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)
    ends: list[Ended | OSError] = field(default_factory=list)
    taken: list[DirectBody] = field(default_factory=list)
    """Those that were taken directly."""

    async def handle(self, request: web.Request) -> web.Response:
        """Receive a body; say how it ended."""
        upload_id = new_id()
        facts = UploadFacts(user_id="u", tenant="t", created_at=1, job_id=new_id())
        event = UploadCreated(upload_id=upload_id, seq=1, at=1, upload=facts)
        await self.store.create(
            Sidecar(upload_id=upload_id, status="created", facts=facts, outbox=(event,))
        )
        self.uploads.append(upload_id)
        async with Writers(self.store).writing(upload_id) as lease:
            self.leases.append(lease)
            try:
                end: Ended | OSError = await receive.receive(
                    RequestBody(request),
                    lease,
                    room=None,
                    idle_s=self.idle_s,
                    on_progress=lambda _: None,
                )
            except OSError as exc:
                end = exc
        self.ends.append(end)
        return web.Response(text=end.name if isinstance(end, Ended) else "refused")

    async def echo(self, request: web.Request) -> web.Response:
        """Say what was asked."""
        return web.Response(text=request.query_string)

    def content(self, number: int = 0) -> bytes:
        """Return what is in the file of a body."""
        if number >= len(self.uploads):
            return b""
        path = self.store.path(self.uploads[number], ".part")
        return path.read_bytes() if path.exists() else b""

    async def takes(self, count: int) -> None:
        """Wait until so many bodies were taken, so that what is sent then is drawn."""
        await eventually(lambda: len(self.taken) >= count, f"{count} bodies are taken")

    async def holds(self, size: int) -> None:
        """Wait until so many bytes are in the first file."""
        await eventually(lambda: len(self.content()) >= size, f"{size} bytes are written")


@asynccontextmanager
async def served(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, directly: bool = True
) -> AsyncIterator[Served]:
    """Serve; bodies are taken directly after their first bytes, however few and slow."""
    monkeypatch.setattr(receive, "_FAST", 1)
    monkeypatch.setattr(receive, "_FAST_S", math.inf)
    monkeypatch.setattr(request_body, "_LEAST", 1)
    one = Served(FilesystemStore(folder / "blobs"))
    take = DirectBody.take

    def noted(request: web.Request, *, least: int) -> DirectBody | None:
        body = take(request, least=least)
        if body is not None:
            one.taken.append(body)
        return body

    monkeypatch.setattr(DirectBody, "take", noted)
    served = web.Application()
    served[DIRECT] = directly
    served.router.add_patch("/", one.handle)
    served.router.add_get("/", one.echo)
    runner = web.AppRunner(
        served, auto_decompress=False, lingering_time=0.5, shutdown_timeout=0.5
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", one.port).start()
    try:
        yield one
    finally:
        await runner.cleanup()
        await one.store.close()


class Client:
    """One connection; each ``send`` is a segment, as far as a client can tell."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader: Final = reader
        self._writer: Final = writer

    async def send(self, *segments: bytes) -> None:
        """Send; let the server read in between."""
        for one in segments:
            self._writer.write(one)
            await self._writer.drain()
            for _ in range(3):
                await asyncio.sleep(0)

    async def answer(self) -> tuple[int, str]:
        """Return the status and the text of the next answer."""
        async with asyncio.timeout(15):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.split("content-length: ")[1].split("\r\n")[0])
            return int(head.split(" ")[1]), (await self._reader.readexactly(length)).decode()

    async def closed(self) -> bytes:
        """Return what the server says until it closes."""
        async with asyncio.timeout(15):
            try:
                return await self._reader.read()
            except ConnectionError:
                return b""

    def cut(self, how: Cut) -> None:
        """End the connection from this side."""
        if how == "half-close":
            self._writer.write_eof()
            return
        if how == "rst":
            raw = self._writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.close()


@asynccontextmanager
async def connected(server: Served) -> AsyncIterator[Client]:
    """Connect; closed at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=2**20)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
