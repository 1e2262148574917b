"""Tests of the scan for malware, with a real daemon: nobody gets what was not cleared."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from services.ingest.clamd import Clamd, ClamdFailed, StreamTooLong
from shared.errors import StartupError
from shared.events import UploadCompleted, UploadFailed
from tests.clamd_server import MALWARE, ClamdServer
from tests.ingest.conftest import Ingest, Starter, prepare, started
from tests.ingest.evidence import (
    blob,
    digest,
    files_of,
    lifecycle,
    no_file_is_left,
    sidecar,
    tracebacks,
)
from tests.ingest.tus_client import Tus, id_of, metadata, path_of
from tests.ingest.wire import Answer, ask
from tests.processes import RedisServer, wait_until

MEGABYTE = 1024 * 1024


@contextmanager
def clamd(server: ClamdServer) -> Iterator[ClamdServer]:
    """Run a daemon."""
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClamdServer]:
    """A daemon that nobody kills."""
    with clamd(ClamdServer(tmp_path_factory.mktemp("clamd"))) as one:
        yield one


@pytest.fixture(scope="module")
def guarded(
    bus: RedisServer, daemon: ClamdServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ingest]:
    """An ingest process that has everything scanned; nobody kills it."""
    folder = tmp_path_factory.mktemp("guarded")
    one = prepare(bus, folder / "data", folder / "log", CLAMD_URL=daemon.url)
    with started(one):
        yield one
    assert tracebacks(one.service) == []


# The client of the daemon.


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    """Yield the parts."""
    for one in parts:
        yield one


@pytest.mark.parametrize("listen", ["tcp", "unix"])
async def test_verdicts(tmp_path: Path, listen: Literal["tcp", "unix"]) -> None:
    """Clean bytes are clean; malware is named, wherever it stands and however it is cut."""
    with clamd(ClamdServer(tmp_path, listen=listen)) as server:
        client = Clamd(server.url, timeout_s=20)
        assert await client.scan(pieces()) == ""
        assert await client.scan(pieces(b"harmless", b"", os.urandom(300_000))) == ""
        assert (await client.scan(pieces(MALWARE))).startswith("Tests.Malware-1")
        behind = os.urandom(3 * MEGABYTE) + MALWARE + os.urandom(100)
        assert (await client.scan(pieces(behind))).startswith("Tests.Malware-1")
        cut = pieces(b"x" * 65_536 + MALWARE[:10], MALWARE[10:])
        assert (await client.scan(cut)).startswith("Tests.Malware-1")


async def test_more_than_the_daemon_takes(tmp_path: Path) -> None:
    """A stream over the daemon's limit is told apart from a daemon that fails."""
    with clamd(ClamdServer(tmp_path, listen="tcp", longest="1M")) as server:
        client = Clamd(server.url, timeout_s=20)
        for _ in range(5):
            with pytest.raises(StreamTooLong):
                await client.scan(pieces(*[os.urandom(MEGABYTE)] * 8))


async def test_no_daemon(tmp_path: Path) -> None:
    """A daemon that is not there, hangs, dies or talks nonsense gives no verdict."""
    for url in ("tcp://127.0.0.1:1", f"unix://{tmp_path}/nothing"):
        with pytest.raises(ClamdFailed):
            await Clamd(url, timeout_s=1).scan(pieces(b"x"))
    for answer in (b"", b"stream: WHAT\0", b"INSTREAM: unknown ERROR\0", b"\xff", None):
        with pytest.raises(ClamdFailed):
            await _scan_at(answer)


async def _scan_at(answer: bytes | None) -> None:
    """Scan with a server that answers this and closes, or never answers."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(65_536):
                if data.endswith(bytes(4)) and answer is not None:
                    connection.sendall(answer)
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        try:
            await Clamd(f"tcp://127.0.0.1:{port}", timeout_s=0.3).scan(pieces(b"x"))
        finally:
            thread.join()


@pytest.mark.parametrize(
    "url", ["tcp://host", "tcp://:3310", "http://h:1", "unix://", "x", "tcp://h:x"]
)
def test_wrong_url(url: str) -> None:
    """A URL that names no daemon ends the start with one line."""
    with pytest.raises(StartupError, match="CLAMD_URL"):
        Clamd(url, timeout_s=1)


# Uploads.


def status(tus: Tus, path: str) -> tuple[str, float]:
    """Return status and percentage, as the status endpoint has them."""
    answer = ask(tus.port, "GET", f"/api/v1/uploads/meta/{id_of(path)}/status", {})
    found = json.loads(answer.body)
    return found["status"], found["progress"]


def completed(ingest: Ingest, path: str) -> None:
    """Wait until an upload is complete."""
    wait_until(lambda: sidecar(ingest.data_dir, path).status == "completed", "it is cleared")


def failed(ingest: Ingest, path: str, code: str) -> None:
    """Wait until an upload has failed, and check that its bytes are gone."""
    wait_until(lambda: sidecar(ingest.data_dir, path).status == "failed", "it is refused")
    wait_until(lambda: len(lifecycle(ingest.redis.url, path)) == 2, "both events are told")
    event = lifecycle(ingest.redis.url, path)[-1]
    assert isinstance(event, UploadFailed)
    assert event.error_code == code
    names = [Path(one).name for one in files_of(ingest.data_dir, path)]
    assert [one for one in names if not one.endswith(".info") and one.count(".") < 2] in (
        [],
        [f"{id_of(path)}.2"],
    )


@pytest.mark.parametrize("size", [0, 10, 5 * MEGABYTE])
def test_clean(guarded: Ingest, size: int) -> None:
    """What is clean completes without anybody asking again."""
    content = os.urandom(size)
    path = guarded.tus.create(size)
    if size:
        assert guarded.tus.patch(path, 0, content).status == 204
    completed(guarded, path)
    assert blob(guarded.data_dir, path) == content
    wait_until(lambda: len(lifecycle(guarded.redis.url, path)) == 2, "both events are told")
    assert isinstance(lifecycle(guarded.redis.url, path)[-1], UploadCompleted)


def test_infected(guarded: Ingest) -> None:
    """Malware never becomes a file: the upload fails, its bytes go."""
    content = os.urandom(MEGABYTE) + MALWARE
    path = guarded.tus.create(len(content))
    assert guarded.tus.patch(path, 0, content).status == 204
    failed(guarded, path, "MALWARE_FOUND")
    assert guarded.tus.head(path).status == 404
    assert guarded.tus.ask("GET", path, {}).headers.get("Location") is None


def test_infected_bytes_are_not_remembered(guarded: Ingest) -> None:
    """Who declares the digest of malware that was refused has to send it, and is refused."""
    content = os.urandom(100) + MALWARE
    told = {"Upload-Metadata": metadata(sha256=digest(content))}
    for _ in range(2):
        path = guarded.tus.create(len(content), told)
        assert guarded.tus.patch(path, 0, content).status == 204
        failed(guarded, path, "MALWARE_FOUND")


def test_a_wrong_digest_needs_no_scan(guarded: Ingest) -> None:
    """What is verified at once is answered at once, scan or not."""
    path = guarded.tus.create(5, {"Upload-Metadata": metadata(sha256="ab" * 32)})
    assert guarded.tus.patch(path, 0, b"hello").status == 422


def test_more_than_is_scanned(start_ingest: Starter, tmp_path: Path) -> None:
    """A file that the daemon is not set to take is refused, not passed."""
    with clamd(ClamdServer(tmp_path / "clamd", longest="1M")) as server:
        one = start_ingest(CLAMD_URL=server.url)
        path = one.tus.create(4 * MEGABYTE)
        assert one.tus.patch(path, 0, os.urandom(4 * MEGABYTE)).status == 204
        failed(one, path, "SCAN_LIMIT")


def test_while_the_daemon_is_away(start_ingest: Starter, tmp_path: Path) -> None:
    """Without a verdict nothing is given out; the client has its answer; it heals by itself."""
    server = ClamdServer(tmp_path / "clamd")
    one = start_ingest(CLAMD_URL=server.url)
    good, bad = os.urandom(100), MALWARE + os.urandom(100)
    paths = []
    for content in (good, bad):
        path = one.tus.create(len(content))
        assert one.tus.patch(path, 0, content).status == 204
        paths.append(path)
    time.sleep(1)
    for path in paths:
        assert one.tus.offset(path) == sidecar(one.data_dir, path).size
        assert one.tus.patch(path, one.tus.offset(path)).status == 204
        assert one.tus.ask("GET", path, {}).status == 204
        assert sidecar(one.data_dir, path).status == "quarantined"
        state, percent = status(one.tus, path)
        assert (state, percent < 100) == ("uploading", True)
        assert len(lifecycle(one.redis.url, path)) == 1
        assert not (one.data_dir / "blobs" / id_of(path)[:2] / id_of(path)).exists()
    with clamd(server):
        completed(one, paths[0])
        failed(one, paths[1], "MALWARE_FOUND")
    assert tracebacks(one.service) == []


def test_what_waits_is_not_open(start_ingest: Starter) -> None:
    """While the daemon is away, uploads that are whole must not use up those one may have."""
    one = start_ingest(CLAMD_URL="tcp://127.0.0.1:1", QUOTA_OPEN_UPLOADS_PER_USER="1")
    asked = {"Upload-Length": "4"}
    for _ in range(2):
        answers: list[Answer] = []

        def opened(answers: list[Answer] = answers) -> bool:
            answers.append(one.tus.post(asked))
            assert answers[-1].status in {201, 503}, answers[-1]
            return answers[-1].status == 201

        wait_until(opened, "the uploads are counted, and one may be opened")
        assert one.tus.patch(path_of(answers[-1]), 0, b"data").status == 204


def test_killed_in_quarantine(start_ingest: Starter, tmp_path: Path) -> None:
    """What a crash has left in quarantine is scanned by whoever starts next."""
    server = ClamdServer(tmp_path / "clamd")
    before = start_ingest(CLAMD_URL=server.url)
    path = before.tus.create(100)
    assert before.tus.patch(path, 0, os.urandom(100)).status == 204
    before.service.kill()
    assert sidecar(before.data_dir, path).status == "quarantined"
    with clamd(server):
        after = start_ingest(data_dir=before.data_dir, CLAMD_URL=server.url)
        completed(after, path)


def test_killed_during_a_scan(start_ingest: Starter, tmp_path: Path) -> None:
    """A scan that dies with its process, or with its daemon, is made again."""
    with clamd(ClamdServer(tmp_path / "clamd")) as server:
        one = start_ingest(CLAMD_URL=server.url)
        content = os.urandom(30 * MEGABYTE)
        path = one.tus.create(len(content))
        server.signal(signal.SIGSTOP)  # the scan has begun, and takes long
        assert one.tus.patch(path, 0, content).status == 204
        time.sleep(0.3)
        one.service.kill()
        assert sidecar(one.data_dir, path).status == "quarantined"
        server.kill()
        one.service.start()
        server.start()
        completed(one, path)
        assert blob(one.data_dir, path) == content


def test_deleted_during_a_scan(start_ingest: Starter, tmp_path: Path) -> None:
    """A scan holds nobody up: HEAD is answered, and DELETE ends the upload at once."""
    with clamd(ClamdServer(tmp_path / "clamd")) as server:
        one = start_ingest(CLAMD_URL=server.url)
        path = one.tus.create(30 * MEGABYTE)
        server.signal(signal.SIGSTOP)
        assert one.tus.patch(path, 0, os.urandom(30 * MEGABYTE)).status == 204
        time.sleep(0.3)
        begun = time.monotonic()
        assert one.tus.offset(path) == 30 * MEGABYTE
        assert one.tus.delete(path).status == 204
        assert time.monotonic() - begun < 5
        server.signal(signal.SIGCONT)
        no_file_is_left(one.data_dir, path)
        assert tracebacks(one.service) == []


def test_two_processes(bus: RedisServer, daemon: ClamdServer, tmp_path: Path) -> None:
    """Of processes on one store each upload is completed by one, and by one only."""
    ones = [
        prepare(bus, tmp_path / "data", tmp_path / f"log{n}", CLAMD_URL=daemon.url)
        for n in range(2)
    ]
    with started(*ones):
        paths = []
        for number in range(10):
            path = ones[number % 2].tus.create(100)
            threads = [
                threading.Thread(target=one.tus.patch, args=(path, 0, os.urandom(100)))
                for one in ones
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            paths.append(path)
        for path in paths:
            completed(ones[0], path)
            wait_until(lambda path=path: len(lifecycle(bus.url, path)) >= 2, "it is told")
            assert len({event.seq for event in lifecycle(bus.url, path)}) == 2
