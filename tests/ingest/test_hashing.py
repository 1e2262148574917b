"""Tests of digests: right whatever happens on the way, and waited for only if declared."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from services.ingest.hashing import SMALL, Hashing, check_declared
from shared.blobs.filesystem import FilesystemStore
from shared.blobs.store import BlobWriter, UploadNotFound
from shared.errors import InvalidRequest
from shared.events import UploadCreated, UploadFacts, UploadFailed
from shared.sidecar import Sidecar, new_id
from tests.ingest.conftest import Ingest, Starter
from tests.ingest.evidence import blob, digest, files_of, lifecycle, sidecar
from tests.ingest.tus_client import Tus, metadata
from tests.processes import wait_until

MEGABYTE = 1024 * 1024


@pytest.fixture
async def store(data_dir: Path) -> AsyncIterator[FilesystemStore]:
    """A store with nothing in it."""
    one = FilesystemStore(data_dir, fsync="never")
    yield one
    await one.close()


@pytest.fixture
async def hashing(store: FilesystemStore) -> AsyncIterator[Hashing]:
    """A hashing that wants SHA-256 of each upload."""
    one = Hashing(store, every=True)
    yield one
    await one.close()


async def opened(store: FilesystemStore, size: int, **changes: object) -> BlobWriter:
    """Open an upload and take the right to write to it."""
    upload_id = new_id()
    facts = UploadFacts(user_id="u", tenant="t", created_at=1, job_id=new_id(), size=size)
    event = UploadCreated(upload_id=upload_id, seq=1, at=1, upload=facts)
    one = Sidecar(upload_id=upload_id, status="created", facts=facts, outbox=(event,))
    await store.create(replace(one, **changes))
    return await store.acquire(upload_id)


async def test_follows_an_upload(store: FilesystemStore, hashing: Hashing) -> None:
    """What was hashed while it came is not hashed again, and the digest is right."""
    content = os.urandom(3 * MEGABYTE)
    writer = await opened(store, len(content))
    await writer.write([content[: 2 * MEGABYTE]])
    hashing.advance(writer.sidecar, writer.offset)
    while hashing.left(writer.sidecar, len(content)) > MEGABYTE:
        await store.run(threading.Event().wait, 0.01)
    await writer.write([content[2 * MEGABYTE :]])
    found = await hashing.digests(writer.sidecar, len(content))
    assert found == {"sha256": digest(content)}
    await writer.close()


async def test_from_the_start(store: FilesystemStore, hashing: Hashing) -> None:
    """After a crash nothing is known, and everything is read again."""
    content = os.urandom(9 * MEGABYTE + 5)
    writer = await opened(store, len(content), expected={"md5": "", "sha512": ""})
    await writer.write([content])
    found = await hashing.digests(writer.sidecar, len(content))
    assert found["md5"] == hashlib.md5(content, usedforsecurity=False).hexdigest()
    assert found["sha512"] == hashlib.sha512(content).hexdigest()
    assert found["sha256"] == digest(content)
    await writer.close()


async def test_bytes_taken_back(store: FilesystemStore, hashing: Hashing) -> None:
    """A disk that takes bytes back after they were hashed does not spoil the digest."""
    first, content = os.urandom(MEGABYTE), os.urandom(MEGABYTE)
    writer = await opened(store, len(content))
    await writer.write([first])
    hashing.advance(writer.sidecar, len(first))
    while hashing.left(writer.sidecar, len(first)):
        await store.run(threading.Event().wait, 0.01)
    os.truncate(store.path(writer.sidecar.upload_id, ".part"), 0)
    hashing.begin(writer.sidecar, 0)
    await writer.close()
    again = await store.acquire(writer.sidecar.upload_id)
    await again.write([content])
    assert await hashing.digests(again.sidecar, MEGABYTE) == {"sha256": digest(content)}
    await again.close()


async def test_fed_small(store: FilesystemStore, hashing: Hashing) -> None:
    """Of a small upload the pieces themselves are hashed, in order, without gap."""
    content = os.urandom(SMALL - 1)
    writer = await opened(store, len(content))
    for at in range(0, len(content), 10_000):
        hashing.feed(writer.sidecar, at, content[at : at + 10_000])
    assert await hashing.digests(writer.sidecar, len(content)) == {"sha256": digest(content)}
    await writer.close()


async def test_fed_with_a_gap(store: FilesystemStore, hashing: Hashing) -> None:
    """A piece that was not fed is read from the store instead."""
    content = os.urandom(60_000)
    writer = await opened(store, len(content))
    await writer.write([content])
    hashing.feed(writer.sidecar, 0, content[:10_000])
    hashing.feed(writer.sidecar, 20_000, content[20_000:])
    assert await hashing.digests(writer.sidecar, len(content)) == {"sha256": digest(content)}
    await writer.close()


async def test_fed_too_much(store: FilesystemStore, hashing: Hashing) -> None:
    """What a client sends beyond the end, or the disk refuses, is not part of the file."""
    content = os.urandom(1000)
    writer = await opened(store, len(content))
    await writer.write([content])
    hashing.feed(writer.sidecar, 0, content + b"more")
    hashing.settle(writer.sidecar.upload_id, writer.offset)
    assert await hashing.digests(writer.sidecar, len(content)) == {"sha256": digest(content)}
    hashing.feed(writer.sidecar, 0, content + b"more")  # and without a word of it
    assert await hashing.digests(writer.sidecar, len(content)) == {"sha256": digest(content)}
    await writer.close()


class Remote(FilesystemStore):
    """A store that is slow to read from, and counts what is read."""

    rereads_cheaply = False  # type: ignore[misc]
    was_read = 0

    async def read_range(self, upload_id: str, start: int, length: int) -> AsyncIterator[bytes]:
        """Count, and read."""
        async for piece in super().read_range(upload_id, start, length):
            Remote.was_read += len(piece)
            yield piece


async def test_a_store_that_is_not_read_again(data_dir: Path) -> None:
    """Where reading costs, an upload is hashed from what was received, and only from that."""
    store = Remote(data_dir, fsync="never")
    hashing = Hashing(store, every=True)
    content = os.urandom(5 * MEGABYTE)
    writer = await opened(store, len(content))
    for at in range(0, len(content), MEGABYTE):
        hashing.feed(writer.sidecar, at, content[at : at + MEGABYTE])
        await writer.write([content[at : at + MEGABYTE]])
        hashing.advance(writer.sidecar, writer.offset)
    assert await hashing.digests(writer.sidecar, len(content)) == {"sha256": digest(content)}
    assert Remote.was_read == 0
    await writer.close()
    await hashing.close()
    await store.close()


async def test_bytes_that_are_missing(store: FilesystemStore, hashing: Hashing) -> None:
    """A file that is shorter than it should be, or gone, has no digest."""
    writer = await opened(store, 100)
    await writer.write([b"x" * 50])
    with pytest.raises(OSError, match="50 bytes instead of 100"):
        await hashing.digests(writer.sidecar, 100)
    await writer.bury(
        writer.sidecar.after(
            "failed",
            UploadFailed(
                upload_id=writer.sidecar.upload_id,
                seq=2,
                at=1,
                upload=writer.sidecar.facts,
                error_code="X",
            ),
        )
    )
    with pytest.raises(UploadNotFound):
        await hashing.digests(writer.sidecar, 100)
    await writer.close()


async def test_pieces_of_files_have_none(store: FilesystemStore) -> None:
    """A partial upload is no file, and without a reason nothing is hashed."""
    hashing = Hashing(store, every=True)
    partial = await opened(store, 1, concat="partial")
    assert await hashing.digests(partial.sidecar, 1) == {}
    idle = Hashing(store, every=False)
    assert idle.algorithms(replace(partial.sidecar, concat="")) == set()
    for one in (hashing, idle):
        await one.close()
    await partial.close()


async def test_spare_threads_step_back(store: FilesystemStore, hashing: Hashing) -> None:
    """The thread beside receipt gets the processor only when nobody else wants it."""
    writer = await opened(store, 2 * MEGABYTE)
    await writer.write([os.urandom(2 * MEGABYTE)])
    hashing.advance(writer.sidecar, writer.offset)
    while hashing.left(writer.sidecar, 2 * MEGABYTE):
        await store.run(threading.Event().wait, 0.01)
    threads = {one.name.rpartition("_")[0]: one.native_id for one in threading.enumerate()}
    assert os.sched_getscheduler(threads["spare-hash"] or 0) == os.SCHED_IDLE
    await writer.close()


@pytest.mark.parametrize(
    "expected",
    [{"sha256": "ab"}, {"sha256": "AB" * 32}, {"sha256": "g" * 64}, {"crc": "00"}, {"md5": ""}],
)
def test_no_digest(expected: dict[str, str]) -> None:
    """What could never be verified is refused when it is declared."""
    with pytest.raises(InvalidRequest):
        check_declared(expected)


# Through HTTP.


def declared(content: bytes, **more: str) -> dict[str, str]:
    """Return the header of an upload that declares its digest."""
    return {"Upload-Metadata": metadata(sha256=digest(content), **more)}


@pytest.mark.parametrize("size", [0, 1, SMALL, 3 * MEGABYTE])
def test_right_digest(ingest: Ingest, size: int) -> None:
    """With the declared digest an upload completes, and the digest is told with it."""
    content = os.urandom(size)
    path = ingest.tus.create(size, declared(content))
    if size:
        assert ingest.tus.patch(path, 0, content).status == 204
    found = sidecar(ingest.data_dir, path)
    assert found.digests == {"sha256": digest(content)}
    assert found.outbox[-1].upload.file_hash == digest(content)


@pytest.mark.parametrize("size", [1, 3 * MEGABYTE])
def test_wrong_digest(ingest: Ingest, size: int) -> None:
    """Without it the upload fails for good: said once, clearly, and the bytes are gone."""
    path = ingest.tus.create(size, declared(b"other"))
    answer = ingest.tus.patch(path, 0, os.urandom(size))
    assert (answer.status, answer.body[:32]) == (422, b"The content does not have the de")
    assert sidecar(ingest.data_dir, path).status == "failed"
    assert [one for one in files_of(ingest.data_dir, path) if one.endswith(".part")] == []
    wait_until(lambda: len(lifecycle(ingest.redis.url, path)) == 2, "the failure is told")
    event = lifecycle(ingest.redis.url, path)[-1]
    assert isinstance(event, UploadFailed)
    assert event.error_code == "HASH_MISMATCH"
    assert ingest.tus.head(path).status == 404


@pytest.mark.parametrize("value", ["", "x", "ab" * 31, "zz" * 32])
def test_bad_declaration(ingest: Ingest, value: str) -> None:
    """What is no digest gets 400 and opens nothing."""
    headers = {"Upload-Length": "5", "Upload-Metadata": metadata(sha256=value)}
    assert ingest.tus.post(headers).status == 400


def test_resumed_in_pieces(ingest: Ingest) -> None:
    """An upload in many requests has the digest of the whole."""
    content = os.urandom(5 * MEGABYTE)
    path = ingest.tus.create(len(content), declared(content))
    pieces = [content[at : at + 700_000] for at in range(0, len(content), 700_000)]
    assert ingest.tus.many_patches(path, pieces) == len(content)
    assert sidecar(ingest.data_dir, path).digests == {"sha256": digest(content)}


def has_digest(ingest: Ingest, path: str, content: bytes) -> None:
    """Wait until an upload has its digest."""

    def known() -> bool:
        return sidecar(ingest.data_dir, path).digests == {"sha256": digest(content)}

    wait_until(known, "the digest is recorded", limit_s=20)
    assert sidecar(ingest.data_dir, path).facts.file_hash == digest(content)


def test_undeclared_digest_comes_later(ingest: Ingest) -> None:
    """Who declares none does not wait, and the file has one before long."""
    content = os.urandom(40 * MEGABYTE)
    path = ingest.tus.create(len(content))
    assert ingest.tus.patch(path, 0, content).status == 204
    assert sidecar(ingest.data_dir, path).status == "completed"
    has_digest(ingest, path, content)
    assert len(lifecycle(ingest.redis.url, path)) == 2  # no news for anybody


def test_killed_before_it_was_hashed(start_ingest: Starter) -> None:
    """A complete file without a digest, as a crash leaves it, gets one after the next start."""
    before = start_ingest(ENABLE_DEDUPLICATION="false")
    content = os.urandom(2 * MEGABYTE)
    path = before.tus.create(len(content))
    assert before.tus.patch(path, 0, content).status == 204
    before.service.kill()
    assert sidecar(before.data_dir, path).digests == {}
    has_digest(start_ingest(data_dir=before.data_dir), path, content)


def test_killed_while_the_answer_waits(mortal: Ingest) -> None:
    """A crash between the last byte and the digest costs nothing: the next request hashes."""
    content = os.urandom(2 * MEGABYTE)
    path = mortal.tus.create(len(content), declared(content))
    assert mortal.tus.patch(path, 0, content[:MEGABYTE]).status == 204
    mortal.service.kill()
    part = next(Path(one) for one in files_of(mortal.data_dir, path) if one.endswith(".part"))
    with part.open("ab") as file:  # as far as the killed one may have come
        file.write(content[MEGABYTE:])
    mortal.service.start()
    assert Tus(mortal.service.port).offset(path) == len(content)
    assert sidecar(mortal.data_dir, path).digests == {"sha256": digest(content)}
    assert blob(mortal.data_dir, path) == content
