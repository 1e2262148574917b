"""Processes that die, and a Redis that is away, during uploads of the IETF's protocol."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.ingest.conftest import Ingest, Starter
from tests.ingest.evidence import blob, completed_once, tracebacks
from tests.ingest.ietf_client import VERSIONS, Ietf
from tests.ingest.system_calls import injecting
from tests.ingest.tus_client import id_of, wait_for_offset
from tests.processes import RedisServer, running


def restart(ingest: Ingest) -> None:
    """Kill the process -9 and start it again."""
    ingest.service.kill()
    ingest.service.start()


def test_killed_between_appends(mortal: Ingest) -> None:
    """After each kill -9 the upload goes on from what was acknowledged, in every draft."""
    content = os.urandom(len(VERSIONS) * 300_000)
    path = Ietf(mortal.service.port).create()
    at = 0
    for interop in VERSIONS:
        client = Ietf(mortal.service.port, interop)
        assert client.offset(path) == at
        answer = client.append(path, at, content[at : at + 100_000])
        at = int(answer.headers["Upload-Offset"])
        end = at + 200_000
        with client.begin_append(path, at, len(content) - at, content[at:end]):
            wait_for_offset(mortal.tus, path, end)
            restart(mortal)
        at = end  # a process that dies loses nothing that the kernel has
    client = Ietf(mortal.service.port)
    assert client.append(path, at, complete=True).status == 201
    assert blob(mortal.data_dir, path) == content
    completed_once(mortal.redis, path)


@pytest.mark.skipif(not shutil.which("strace"), reason="strace stops the process between steps")
@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_killed_while_completing(mortal: Ingest, call: str) -> None:
    """A completion that kill -9 interrupts is made up for, and its answer can be had."""
    client, content = Ietf(mortal.service.port), os.urandom(10_000)
    path = client.create(content)
    root, upload_id = mortal.data_dir / "blobs", id_of(path)
    # Before the file has its name; and after it, before the record says so.
    place = root / upload_id[:2] / (f"{upload_id}.part" if call == "rename" else "")
    with (
        injecting(mortal.service.pid, call, place, "signal=SIGKILL"),
        suppress(EOFError, ConnectionError),
    ):
        client.append(path, len(content), complete=True)
    restart(mortal)
    head = client.head(path)
    assert head.headers["Upload-Offset"] == "10000"
    answer = client.append(path, len(content), complete=True)
    assert (answer.status, client.is_complete(answer)) == (201, True)
    assert client.is_complete(client.head(path))
    assert blob(mortal.data_dir, path) == content
    completed_once(mortal.redis, path, repeats=True)


def test_redis_away(start_ingest: Starter, tmp_path: Path) -> None:
    """Without Redis an upload is opened, continued and completed; its events come later."""
    redis = RedisServer(tmp_path / "redis", aof=True)
    with running(redis):
        ingest = start_ingest(redis=redis)
        client = Ietf(ingest.service.port)
        path = client.create(b"hello")
        redis.signal(signal.SIGSTOP)
        redis.kill()
        assert client.append(path, 5, b" ").status == 204
        other = client.post(b"all at once", complete=True)
        assert other.status == 201
        assert client.append(path, 6, b"world", complete=True).status == 201
        assert blob(ingest.data_dir, path) == b"hello world"
        redis.start()
        completed_once(redis, path, repeats=True)
        assert tracebacks(ingest.service) == []
