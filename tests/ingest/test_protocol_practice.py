"""What other servers get wrong, and what the library lets through, item by item."""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from services.ingest.location import COLLECTION
from tests.ingest.conftest import Ingest
from tests.ingest.evidence import blob, completed_once, files_of, snapshot, tracebacks
from tests.ingest.system_calls import injecting
from tests.ingest.tus_client import CHUNK, TUS, Tus, id_of, wait_for_offset
from tests.ingest.wire import Connection, head_of
from tests.processes import ServiceProcess, running


def test_item_173_finishing_is_made_up_for(ingest: Ingest) -> None:
    """When finishing was interrupted, the next request for the upload finishes it, once."""
    path = ingest.tus.create(10)
    file = files_of(ingest.data_dir, path)
    [part] = [name for name in file if name.endswith(".part")]
    with open(part, "ab") as out:  # as if the process had died after the last byte
        out.write(b"0123456789")
    headers = ingest.tus.head(path).headers
    assert headers["Upload-Offset"] == headers["Upload-Length"] == "10"
    assert ingest.tus.ask("GET", path, {}).status == 307
    ingest.tus.patch(path, 10)
    completed_once(ingest.redis, path)


@pytest.fixture(scope="module")
def guarded(
    ingest: Ingest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Tus, Path]]:
    """A client with credentials of a process that wants them, and its data folder."""
    folder = tmp_path_factory.mktemp("guarded")
    secret = "a secret of more than thirty-two bytes"
    env = {
        "REDIS_URL": ingest.redis.url,
        "DATA_DIR": str(folder / "data"),
        "AUTH_MODE": "required",
        "AUTH_JWT_SECRET": secret,
    }
    service = ServiceProcess("ingest", env, folder / "log")
    token = jwt.encode({"sub": "alice", "exp": time.time() + 600}, secret, "HS256")
    with running(service):
        yield Tus(service.port, {"Authorization": f"Bearer {token}"}), folder / "data"


@pytest.mark.parametrize("size", [5, 3_000_000])
def test_item_173_refused_patches_write_nothing(guarded: tuple[Tus, Path], size: int) -> None:
    """The bytes of a PATCH that is answered with 401 or 415 would be written all the same."""
    tus, data_dir = guarded
    path = tus.create(size)
    before = snapshot(data_dir)
    stranger = Tus(tus.port)
    assert stranger.patch(path, 0, b"x" * size).status == 401
    assert tus.patch(path, 0, b"x" * size, {"Content-Type": "text/plain"}).status == 415
    assert snapshot(data_dir) == before
    assert tus.offset(path) == 0


def file_of(ingest: Ingest, path: str, suffix: str) -> Path:
    """Return a file of an upload."""
    return ingest.data_dir / "blobs" / id_of(path)[:2] / f"{id_of(path)}{suffix}"


def test_item_173_no_end_before_it_is_finished(mortal: Ingest) -> None:
    """HEAD would tell the whole length although finishing failed, and the client go home."""
    tus = mortal.tus
    path = tus.create(5)
    with injecting(mortal.service.pid, "rename", file_of(mortal, path, ".part"), "error=EIO"):
        assert tus.patch(path, 0, b"hello").status == 503
    assert tus.ask("GET", path, {}).status == 204
    assert tus.offset(path) == 5
    assert tus.ask("GET", path, {}).status == 307
    completed_once(mortal.redis, path)


def test_item_173_offset_after_a_failed_write(mortal: Ingest) -> None:
    """Offset and bytes would drift apart after a write that the disk refused."""
    tus = mortal.tus
    path = tus.create(10)
    tus.patch(path, 0, b"hello")
    part = file_of(mortal, path, ".part")
    with injecting(mortal.service.pid, "writev", part, "error=ENOSPC"):
        assert tus.patch(path, 5, b"world").status == 507
    assert tus.offset(path) == part.stat().st_size == 5
    assert tus.patch(path, 5, b"world").status == 204
    assert blob(mortal.data_dir, path) == b"helloworld"


def test_item_173_record_survives_a_crash(mortal: Ingest) -> None:
    """A record that is written anew in place would be lost with the process."""
    tus = mortal.tus
    path = tus.create(None)
    record = file_of(mortal, path, ".info.new")
    with (
        injecting(mortal.service.pid, "fdatasync", record, "signal=SIGKILL"),
        pytest.raises((EOFError, ConnectionError)),
    ):
        tus.patch(path, 0, b"hello", {"Upload-Length": "5"})
    mortal.service.kill()
    mortal.service.start()
    assert tus.offset(path) == 0
    assert tus.patch(path, 0, b"hello", {"Upload-Length": "5"}).status == 204
    completed_once(mortal.redis, path, repeats=True)


def test_item_174_get(tus: Tus) -> None:
    """GET tells how far an upload is, then where its file is, and 404 once it is deleted."""
    path = tus.create(5)
    before = tus.ask("GET", path, {})
    assert (before.status, before.headers["Upload-Offset"]) == (204, "0")
    tus.patch(path, 0, b"hello")
    after = tus.ask("GET", path, {})
    assert after.status == 307
    assert after.headers["Location"] == f"/api/v1/storage/{path.rpartition('/')[2]}"
    tus.delete(path)
    assert tus.ask("GET", path, {}).status == 404


def test_item_175_buffered_bytes_survive_a_reset(ingest: Ingest) -> None:
    """Bytes that the server had received before a reset are kept, however many."""
    content = os.urandom(2_000_000)
    path = ingest.tus.create(3_000_000)
    with ingest.tus.begin_patch(path, 0, 3_000_000, content) as one:
        wait_for_offset(ingest.tus, path, 1_900_000)
        one.cut("rst")
    offset = ingest.tus.offset(path)
    assert 1_900_000 <= offset <= 2_000_000
    assert blob(ingest.data_dir, path) == content[:offset]


def test_item_176_connection_goes_on(tus: Tus) -> None:
    """An interim answer, or a status of tus's own, would spoil what follows on the wire."""
    path = tus.create(15)
    expecting = {**CHUNK, "Content-Length": "5", "Expect": "100-continue"}
    wrong = {"Upload-Checksum": "sha1 " + "A" * 27 + "="}
    with Connection(tus.port) as one:
        for offset in (0, 5):
            one.send(head_of("PATCH", path, {**expecting, "Upload-Offset": str(offset)}))
            assert one.read_interim() == 100
            one.send(b"hello")
            assert one.read().headers["Upload-Offset"] == str(offset + 5)
            one.request(
                "PATCH", path, {**CHUNK, **wrong, "Upload-Offset": str(offset + 5)}, b"x"
            )
            answer = one.read()
            assert answer.status == 460
            assert answer.raw_head.startswith(b"HTTP/1.1 460 Checksum Mismatch\r\n")
        one.request("HEAD", path, TUS)
        assert one.read(no_body=True).headers["Upload-Offset"] == "10"


def test_item_177_absolute_form_bends_nothing(tus: Tus) -> None:
    """A request line with another host in it would become the Location's."""
    target = f"http://evil.example{COLLECTION}"
    answer = tus.ask("POST", target, {**TUS, "Upload-Length": "5", "Host": "127.0.0.1"})
    assert answer.status in {201, 404}
    assert "evil" not in answer.headers.get("Location", "")


def test_item_177_nothing_is_unpacked(ingest: Ingest) -> None:
    """A small compressed body would become a large one."""
    bomb = gzip.compress(b"x" * 50_000_000)
    told = {**CHUNK, "Content-Encoding": "gzip", "Upload-Length": "60000000"}
    before = snapshot(ingest.data_dir)
    assert ingest.tus.post(told, bomb).status == 415
    assert snapshot(ingest.data_dir) == before


def test_item_177_large_bodies_are_streamed(tus: Tus) -> None:
    """The library's own limit of 1 MiB would refuse them, or let any other one through."""
    path = tus.create(3_000_000)
    assert tus.patch(path, 0, b"x" * 3_000_001).status == 413
    assert tus.patch(path, 0, b"x" * 3_000_000).status == 204


@pytest.mark.parametrize(
    "raw",
    [
        b"PATCH /x HTTP/1.1\r\nUpload-Off\x00set: 5\r\n\r\n",
        b"HEAD /x HTTP/1.1\r\nno colon\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"PATCH /x HTTP/1.1\r\nTransfer-Encoding: tea\r\nHost: a\r\n\r\n",
    ],
)
def test_item_177_malformed_requests_leave_no_traceback(ingest: Ingest, raw: bytes) -> None:
    """Anybody could fill the log with tracebacks."""
    with Connection(ingest.service.port) as one:
        one.send(raw, b"\r\n\r\n")
        assert one.read().status == 400
    assert tracebacks(ingest.service) == []


def test_item_178_statuses_that_clients_understand(tus: Tus) -> None:
    """A PATCH that lost its turn is told so with 423, which clients retry."""
    path = tus.create(100)
    with tus.begin_patch(path, 0, 100, b"x" * 10) as running:
        wait_for_offset(tus, path, 10)
        assert tus.offset(path) == 10
        answer = running.read()
        assert answer.status == 423
        assert b"taken over" in answer.body
