"""Uploads that are watched while Redis is a cluster, or fails over under Sentinel."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tests.gateway.conftest import faults
from tests.gateway.raw_socket import RawSocket
from tests.ingest.tus_client import Tus, id_of
from tests.processes import ServiceProcess, running, wait_until
from tests.redis_topologies import cluster, sentinels

PIECE = 1_000_000


class Services(NamedTuple):
    """What stands on one Redis."""

    ingest: ServiceProcess
    gateway: ServiceProcess


@contextmanager
def services(url: str, folder: Path, **more: str) -> Iterator[Services]:
    """Run ingest and gateway; neither may log an error."""
    env = {"REDIS_URL": url, "DATA_DIR": str(folder / "data"), **more}
    those = Services(
        ServiceProcess("ingest", env, folder / "ingest.log"),
        ServiceProcess("gateway", env, folder / "gateway.log"),
    )
    with running(*those):
        yield those
    assert [*faults(those.ingest), *faults(those.gateway)] == []


class Upload:
    """An upload of three pieces."""

    def __init__(self, those: Services) -> None:
        self._tus: Final = Tus(those.ingest.port)
        self._path: Final = self._tus.create(3 * PIECE)
        self.watched_at: Final = f"/api/v1/ws/{id_of(self._path)}"
        self.offset = 0

    async def send_piece(self) -> None:
        """Send the next piece, which needs no Redis."""
        piece = os.urandom(PIECE)
        answer = await asyncio.to_thread(self._tus.patch, self._path, self.offset, piece)
        assert answer.status == 204
        self.offset += PIECE


async def heard_bytes(peer: RawSocket, count: int) -> None:
    """Wait until a socket hears that so many bytes are there."""
    while (await peer.hear())["bytes_sent"] != count:
        pass


async def heard_complete(peer: RawSocket) -> None:
    """Wait until a socket hears of the end of its upload."""
    while (message := await peer.hear())["type"] != "complete":
        pass
    assert message["progress"] == 100.0


async def test_a_cluster(tmp_path: Path) -> None:
    """On a cluster an upload is received under a lease, watched and recorded as elsewhere."""
    with ExitStack() as stack:
        redis = stack.enter_context(cluster(tmp_path / "redis"))
        those = stack.enter_context(services(redis.url, tmp_path, UPLOAD_LEASE="redis"))
        for _ in range(4):
            upload = Upload(those)
            async with RawSocket.opened(those.gateway.port, upload.watched_at) as peer:
                for _ in range(2):
                    await upload.send_piece()
                    await heard_bytes(peer, upload.offset)
                await upload.send_piece()
                await heard_complete(peer)
            async with RawSocket.opened(those.gateway.port, upload.watched_at) as late:
                await heard_complete(late)


async def test_a_failover(tmp_path: Path) -> None:
    """The master is killed: nobody is disconnected, and what happens meanwhile arrives."""
    with ExitStack() as stack:
        redis = stack.enter_context(sentinels(tmp_path / "redis"))
        those = stack.enter_context(services(redis.url, tmp_path))
        upload = Upload(those)
        async with RawSocket.opened(those.gateway.port, upload.watched_at) as peer:
            await upload.send_piece()
            await heard_bytes(peer, upload.offset)
            redis.master.kill()
            await upload.send_piece()
            await upload.send_piece()
            await asyncio.to_thread(wait_until, redis.replica_rules, "the replica takes over")
            async with asyncio.timeout(10):
                await heard_complete(peer)
        upload = Upload(those)
        async with RawSocket.opened(those.gateway.port, upload.watched_at) as peer:
            for _ in range(3):
                await upload.send_piece()
            await heard_complete(peer)
