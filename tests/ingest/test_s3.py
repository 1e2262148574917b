"""Ingest with its blobs on an S3 server: the same promises over another store."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import pytest

from shared.sidecar import new_id
from tests.ingest.conftest import Ingest
from tests.ingest.evidence import tracebacks
from tests.ingest.tus_client import id_of, metadata, wait_for_offset
from tests.processes import RedisServer, ServiceProcess, running, wait_until
from tests.s3_servers import BUCKET, MotoServer, client_of

MIB: Final = 1024 * 1024

Start = Callable[[], Ingest]


@pytest.fixture
def prefix() -> str:
    """A place in the bucket that is the test's own."""
    return f"ingest-{new_id()}"


@pytest.fixture
def start(bus: RedisServer, moto_server: MotoServer, prefix: str, tmp_path: Path) -> Any:
    """Start ingest processes on one place in a bucket; they end with the test."""
    with ExitStack() as stack:
        count = 0

        def start_one() -> Ingest:
            nonlocal count
            count += 1
            env = {
                "REDIS_URL": bus.url,
                "DATA_DIR": str(tmp_path / "data"),
                "BLOB_STORE": f"s3://{BUCKET}/{prefix}",
                "S3_ENDPOINT_URL": moto_server.url,
                "S3_ACCESS_KEY_ID": moto_server.access_key_id,
                "S3_SECRET_ACCESS_KEY": moto_server.secret_access_key,
                "S3_PART_SIZE": str(5 * MIB),
            }
            one = ServiceProcess("ingest", env, tmp_path / f"log{count}")
            stack.enter_context(running(one))
            return Ingest(one, bus, tmp_path / "data")

        yield start_one


def objects(server: MotoServer, prefix: str) -> dict[str, int]:
    """Return what is in the place, by name, with its size."""
    with closing(client_of(server)) as client:
        listed = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", ())
        return {one["Key"].removeprefix(f"{prefix}/"): one["Size"] for one in listed}


def body_of(server: MotoServer, prefix: str, upload_id: str) -> bytes:
    """Return the finished object."""
    with closing(client_of(server)) as client:
        answer = client.get_object(Bucket=BUCKET, Key=f"{prefix}/{upload_id}")
        return bytes(answer["Body"].read())


def test_an_upload_survives_a_kill(start: Start, moto_server: MotoServer, prefix: str) -> None:
    """30 MiB in several PATCHes, ingest killed -9 in the midst of one: nothing acknowledged
    is lost, the rest follows, the bytes are equal, and nothing else stays in the bucket."""
    body = random.Random(5).randbytes(30 * MIB)
    ingest = start()
    path = ingest.tus.create(len(body))
    acknowledged = 0
    for size in (7 * MIB, 100, 3 * MIB + 1):
        answer = ingest.tus.patch(path, acknowledged, body[acknowledged:][:size])
        assert answer.status == 204, answer
        acknowledged += size
    with ingest.tus.begin_patch(path, acknowledged, len(body) - acknowledged) as one:
        one.send(body[acknowledged : acknowledged + 8 * MIB])
        wait_for_offset(ingest.tus, path, acknowledged + 1)
        ingest.service.kill()

    ingest = start()
    offset = ingest.tus.offset(path)
    assert acknowledged <= offset <= acknowledged + 8 * MIB
    assert ingest.tus.patch(path, offset, body[offset:]).status == 204
    assert ingest.tus.offset(path) == len(body)

    upload_id = id_of(path)
    stored = body_of(moto_server, prefix, upload_id)
    assert hashlib.sha256(stored).digest() == hashlib.sha256(body).digest()
    wait_until(
        lambda: (
            set(objects(moto_server, prefix)) <= {upload_id, f"{upload_id}.info", "notes/epoch"}
        ),
        "only the file and its record are left",
        lambda: objects(moto_server, prefix),
    )
    assert tracebacks(ingest.service) == []


def test_another_process_takes_over(start: Start, moto_server: MotoServer, prefix: str) -> None:
    """A request elsewhere gets the upload from the one that holds it, with all it has."""
    one, other = start(), start()
    body = random.Random(6).randbytes(12 * MIB)
    path = one.tus.create(len(body))
    with one.tus.begin_patch(path, 0, len(body)) as held:
        held.send(body[: 6 * MIB])
        wait_for_offset(one.tus, path, 5 * MIB)
        offset = other.tus.offset(path)
        assert offset == 6 * MIB
        assert other.tus.patch(path, offset, body[offset:]).status == 204
    assert body_of(moto_server, prefix, id_of(path)) == body


def test_what_is_deleted_leaves_nothing(
    start: Start, moto_server: MotoServer, prefix: str
) -> None:
    """Item 86: parts, pieces, layout, marks and, once that is told, the record are gone."""
    ingest = start()
    path = ingest.tus.create(12 * MIB)
    assert ingest.tus.patch(path, 0, b"x" * (6 * MIB)).status == 204
    assert ingest.tus.delete(path).status == 204
    wait_until(
        lambda: set(objects(moto_server, prefix)) <= {"notes/epoch"},
        "nothing is left",
        lambda: objects(moto_server, prefix),
    )
    with closing(client_of(moto_server)) as client:
        uploads = client.list_multipart_uploads(Bucket=BUCKET, Prefix=prefix)
    assert uploads.get("Uploads", []) == []


def test_an_empty_upload_is_a_file(start: Start, moto_server: MotoServer, prefix: str) -> None:
    """Item 48: no part, no PATCH, and an object of no bytes all the same."""
    path = start().tus.create(0)
    assert body_of(moto_server, prefix, id_of(path)) == b""


def test_what_has_failed_takes_no_bytes(start: Start) -> None:
    """A client would send a file that was refused once more, and to the end, in vain."""
    tus = start().tus
    path = tus.create(5, {"Upload-Metadata": metadata(sha256=hashlib.sha256(b"x").hexdigest())})
    assert tus.patch(path, 0, b"hello").status == 422
    for answer in (tus.head(path), tus.patch(path, 0, b"hello"), tus.delete(path)):
        assert answer.status == 404, answer
