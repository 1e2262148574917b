"""The upload by form against a real process: what seed document 002 shows, and every order."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis as redis_client

from shared.events import UploadCancelled, UploadCreated
from tests.ingest.conftest import Ingest, Starter
from tests.ingest.evidence import (
    blob,
    completed_once,
    digest,
    lifecycle,
    no_file_is_left,
    sidecar,
)
from tests.ingest.form_client import Forms, Reply, body_of, file_part, text_part, text_parts
from tests.ingest.media_heads import HEADS
from tests.ingest.test_dedupe import entry
from tests.processes import wait_until

MEMBERS = {
    *("upload_id", "session_id", "filename", "status", "progress_percentage"),
    *("chunks_received", "total_chunks", "missing_chunks", "video_id", "analysis_id"),
    *("redirect_url", "duplicate", "cached_result"),
}
"""Contract, `POST /v1/upload/video`."""


VIDEO = file_part(b"", filename="video.mp4", kind="video/mp4")


@pytest.fixture
def forms(ingest: Ingest) -> Forms:
    """A client of the shared process."""
    return Forms(ingest.service.port)


def pieces(count: int, size: int = 100_000) -> list[bytes]:
    """Return so many chunks of random bytes, the last one shorter."""
    return [os.urandom(size if one < count - 1 else size // 3) for one in range(count)]


def is_whole(ingest: Ingest, upload_id: str, content: bytes) -> None:
    """Check that an upload is complete, once, with these bytes, and nothing beside them."""
    completed_once(ingest.redis, upload_id)
    assert blob(ingest.data_dir, upload_id) == content
    folder = ingest.data_dir / "blobs" / upload_id[:2]
    whole = {upload_id, f"{upload_id}.info"}

    def left() -> set[str]:  # a digest may still be entered into its record
        return {one.name for one in folder.glob(f"{upload_id}*")} - whole

    wait_until(lambda: not left(), "nothing is beside it", left, limit_s=10)


# What seed document 002 shows.


@pytest.mark.parametrize("file_first", [False, True])
@pytest.mark.parametrize("size", [0, 5, 300_000, 12_000_000])
def test_single_file_upload(ingest: Ingest, file_first: bool, size: int) -> None:
    """002, 'Single File Upload': a short or a long file, before or after its fields."""
    content = HEADS["mp4"] + os.urandom(8 + size)
    forms = Forms(ingest.service.port, "video")
    options = '{"model_type": "resnet50"}'
    parts = [text_part("priority", 7), text_part("options", options), VIDEO + content]
    reply = forms.post_parts(parts[::-1] if file_first else parts)
    assert reply.status == 201, reply
    data = reply.data
    assert data.keys() - {"error_code", "error_message"} == MEMBERS
    upload_id = data["upload_id"]
    assert data == {
        "upload_id": upload_id,
        "session_id": upload_id,
        "filename": "video.mp4",
        "status": "completed",
        "progress_percentage": 100.0,
        "chunks_received": 1,
        "total_chunks": 1,
        "missing_chunks": [],
        "video_id": upload_id,
        "analysis_id": data["analysis_id"],
        "redirect_url": f"/dashboard/videos/{upload_id}/results",
        "duplicate": False,
        "cached_result": None,
        "error_code": None,
        "error_message": None,
    }
    facts = sidecar(ingest.data_dir, upload_id).facts
    assert (facts.kind, facts.priority, facts.size) == ("video", 7, len(content))
    assert (facts.options, facts.job_id) == ({"model_type": "resnet50"}, data["analysis_id"])
    is_whole(ingest, upload_id, content)


@pytest.mark.parametrize("kind", ["video", "csv", "file"])
def test_chunked_upload(ingest: Ingest, kind: str) -> None:
    """002, 'Chunked Upload' and 'Session Status': 202 while chunks are missing, then 201."""
    forms = Forms(ingest.service.port, kind)
    starts = {"video": HEADS["mp4"], "csv": b"a,b\n" * 2000, "file": b""}
    chunks = [starts[kind] + os.urandom(5000), *pieces(3)]
    content = b"".join(chunks)
    first = forms.chunk(chunks, 0, priority=9)
    session_id = first.data["session_id"]
    assert (first.status, first.data["missing_chunks"]) == (202, [1, 2, 3])
    assert session_id == first.data["upload_id"]
    for index in (1, 2):
        reply = forms.chunk(chunks, index, session_id)
        assert (reply.status, reply.data["chunks_received"]) == (202, index + 1)
    state = forms.state(session_id)
    assert state.status == 200
    expected = {"session_id": session_id, "filename": "file", "total_chunks": 4}
    expected |= {"chunks_received": 3, "progress_percentage": 75.0, "status": "active"}
    assert {name: state.data[name] for name in expected} == expected
    assert state.data["missing_chunks"] == [3]
    last = forms.chunk(chunks, 3, session_id)
    assert (last.status, last.data["status"]) == (201, "completed")
    assert forms.state(session_id).data == last.data
    record = sidecar(ingest.data_dir, session_id)
    assert (record.facts.kind, record.facts.priority) == (kind, 9)
    assert record.expected == {"sha256": digest(content)}
    is_whole(ingest, session_id, content)


def test_cancelled_session(ingest: Ingest, forms: Forms) -> None:
    """002, 'Cancel Session Endpoint': the body of the answer, and nothing is left."""
    chunks = pieces(3)
    session_id = forms.chunk(chunks, 1).data["session_id"]
    reply = forms.cancel(session_id)
    assert reply.status == 200
    message = "Upload session cancelled and cleaned up"
    assert reply.body == {"success": True, "message": message}
    no_file_is_left(ingest.data_dir, session_id)
    for again in (forms.state(session_id), forms.cancel(session_id)):
        assert (again.status, again.code) == (404, "NOT_FOUND")
    kinds = [type(one) for one in lifecycle(ingest.redis.url, session_id)]
    assert kinds == [UploadCreated, UploadCancelled]


# Orders and repetitions.


@pytest.mark.parametrize("named", [False, True])
def test_eight_clients_send_shuffled_and_repeated_chunks(
    ingest: Ingest, forms: Forms, named: bool
) -> None:
    """Chunks that race, also for opening the session, would be lost or joined wrongly."""
    chunks = pieces(24, 60_000)
    name = f"shuffled-{os.urandom(4).hex()}"
    if not named:
        name = forms.chunk(chunks, 7).data["session_id"]
    order = [index for index in range(24) for _ in range(2)]
    random.Random(7).shuffle(order)
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda index: forms.chunk(chunks, index, name), order))
    assert {reply.status for reply in replies} <= {201, 202}
    assert len({reply.data["upload_id"] for reply in replies}) == 1
    assert {reply.data["session_id"] for reply in replies} == {name}
    state = forms.state(name)
    assert state.data["status"] == "completed"
    is_whole(ingest, state.data["upload_id"], b"".join(chunks))


def test_of_two_chunks_that_race_for_a_place_one_is_refused(
    ingest: Ingest, forms: Forms
) -> None:
    """Contract: other bytes get 409, and the file has the ones that were accepted."""
    chunks = pieces(2)
    opened = forms.post(chunks[1], chunk_index=1, total_chunks=2)
    session_id = opened.data["session_id"]
    rivals = [os.urandom(50_000) for _ in range(8)]
    start = threading.Barrier(8)

    def send(content: bytes) -> int:
        start.wait()
        fields = {"session_id": session_id, "chunk_index": 0, "total_chunks": 2}
        reply = forms.post(content, **fields)
        assert reply.status != 409 or reply.code == "CHUNK_CONFLICT"
        return reply.status

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(send, rivals))
    won = blob(ingest.data_dir, session_id)[:50_000]
    # Who came after the session was complete is told so, whatever it brought.
    assert won in rivals
    assert statuses[rivals.index(won)] == 201
    assert set(statuses) <= {201, 409}
    is_whole(ingest, session_id, won + chunks[1])


def test_chunk_may_be_repeated_but_not_changed(ingest: Ingest, forms: Forms) -> None:
    """A client that lost an answer sends its chunk again; that must not look like an error."""
    chunks = pieces(3)
    session_id = forms.chunk(chunks, 0).data["session_id"]
    again = forms.chunk(chunks, 0, session_id)
    assert (again.status, again.data["chunks_received"]) == (202, 1)
    fields = {"session_id": session_id, "chunk_index": 0, "total_chunks": 3}
    assert (other := forms.post(b"other bytes", **fields)).status == 409
    assert other.code == "CHUNK_CONFLICT"
    forms.chunk(chunks, 2, session_id)
    last = forms.chunk(chunks, 1, session_id)
    assert last.status == 201
    for index in range(3):  # for a finished session the same answer
        again = forms.chunk(chunks, index, session_id)
        assert (again.status, again.data) == (201, last.data)
    is_whole(ingest, session_id, b"".join(chunks))


@pytest.mark.parametrize("place", range(4))
def test_file_may_stand_anywhere_in_the_form(ingest: Ingest, forms: Forms, place: int) -> None:
    """Contract: `file` may come before or after the fields, so also between them."""
    chunks = pieces(2)
    name = f"place-{place}-{os.urandom(4).hex()}"

    def send(index: int) -> Reply:
        texts = text_parts({"session_id": name, "chunk_index": index, "total_chunks": 2})
        return forms.post_parts([*texts[:place], file_part(chunks[index]), *texts[place:]])

    assert send(1).status == 202
    reply = send(0)
    assert reply.status == 201
    is_whole(ingest, reply.data["upload_id"], b"".join(chunks))
    no_file_stays_behind(ingest)


def no_file_stays_behind(ingest: Ingest) -> None:
    """Check that no chunk is staged, and no folder of chunks is empty."""
    blobs = ingest.data_dir / "blobs"

    def left() -> list[Path]:
        folders = [one for one in blobs.glob("??/*.chunks") if not any(one.iterdir())]
        return [*folders, *blobs.glob("??/*.chunks/new-*")]

    wait_until(lambda: not left(), "nothing is staged", left, limit_s=10)


# Names that clients give to their sessions.


def test_session_goes_by_the_name_its_client_gave_it(ingest: Ingest, forms: Forms) -> None:
    """Contract: a name is a session id wherever one is taken; `upload_id` stays a UUID."""
    chunks, name = pieces(2), f"my.video_{os.urandom(4).hex()}-1"
    first = forms.chunk(chunks, 1, name)
    assert first.data["session_id"] == name
    assert len(first.data["upload_id"]) == 36
    for one in (name, first.data["upload_id"]):
        assert forms.state(one).data == first.data
    # The id of the upload is good for sending, too.
    last = forms.chunk(chunks, 0, first.data["upload_id"])
    assert (last.status, last.data["session_id"]) == (201, name)
    is_whole(ingest, first.data["upload_id"], b"".join(chunks))


def test_name_that_looks_like_an_id(ingest: Ingest, forms: Forms) -> None:
    """Many clients make a UUID for their session: it must not be taken for one of ours."""
    chunks, name = pieces(2), "0f0e0d0c-0b0a-4908-8706-050403020100"
    first = forms.chunk(chunks, 0, name)
    assert first.data["session_id"] == name != first.data["upload_id"]
    assert forms.chunk(chunks, 1, name).status == 201
    is_whole(ingest, first.data["upload_id"], b"".join(chunks))


def test_cancelled_name_takes_no_late_chunks(ingest: Ingest, forms: Forms) -> None:
    """A chunk that was under way when its session was cancelled would open it again."""
    chunks, name = pieces(3), f"late-{os.urandom(4).hex()}"
    upload_id = forms.chunk(chunks, 0, name).data["upload_id"]
    assert forms.cancel(name).status == 200
    late = forms.chunk(chunks, 1, name)
    assert (late.status, late.code) == (410, "SESSION_CANCELLED")
    assert forms.state(name).status == 404
    no_file_is_left(ingest.data_dir, upload_id)
    no_file_stays_behind(ingest)


def test_cancelled_session_takes_no_late_chunks(ingest: Ingest, forms: Forms) -> None:
    """The id of a cancelled session must not become the name of a new one."""
    chunks = pieces(3)
    session_id = forms.chunk(chunks, 0).data["session_id"]
    assert forms.cancel(session_id).status == 200
    late = forms.chunk(chunks, 1, session_id)
    assert (late.status, late.code) == (410, "SESSION_CANCELLED")
    no_file_is_left(ingest.data_dir, session_id)


def test_cancelled_session_that_had_failed_is_gone(forms: Forms) -> None:
    """The name of a failed session would lead to its failure for a day otherwise."""
    name = f"failed-{os.urandom(4).hex()}"
    assert forms.post(b"a", session_id=name, file_hash="0" * 64).code == "HASH_MISMATCH"
    assert forms.cancel(name).status == 200
    assert forms.state(name).status == 404


def test_name_is_free_once_its_upload_was_ended_elsewhere(ingest: Ingest, forms: Forms) -> None:
    """What tus ends frees the name too; the next session of it had to wait for seconds."""
    name = f"again-{os.urandom(4).hex()}"
    first = forms.post(b"a file", session_id=name).data["upload_id"]
    assert ingest.tus.delete(f"/api/v1/uploads/{first}").status == 204
    begun = time.monotonic()
    again = forms.post(b"a file", session_id=name)
    assert again.status == 201
    assert again.data["upload_id"] != first
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("size", [1000, 3_000_000], ids=["small", "hashed-later"])
def test_whole_file_may_be_repeated_but_not_changed(forms: Forms, size: int) -> None:
    """Other bytes under a name that has a file must not be dropped with a good answer."""
    name, content = f"same-{os.urandom(4).hex()}", os.urandom(size)
    first = forms.post(content, session_id=name)
    for changed in (content[:-1] + bytes([content[-1] ^ 1]), content[:-1]):
        refused = forms.post(changed, session_id=name)
        assert (refused.status, refused.code) == (409, "CHUNK_CONFLICT")
    again = forms.post(content, session_id=name)
    assert again.status in {200, 201}
    assert again.data["upload_id"] == first.data["upload_id"]


def test_whole_file_under_a_name(ingest: Ingest, forms: Forms) -> None:
    """A client that lost the answer sends the file again, and must not get a second one."""
    name, content = f"whole-{os.urandom(4).hex()}", os.urandom(11_000_000)
    parts = [file_part(content), text_part("session_id", name)]
    replies = [forms.post_parts(one) for one in (parts, parts[::-1], parts)]
    assert [one.status for one in replies] == [201, 201, 201]
    assert len({one.data["upload_id"] for one in replies}) == 1
    assert forms.state(name).data == replies[0].data
    is_whole(ingest, replies[0].data["upload_id"], content)


def test_late_cancel_is_told_that_the_file_is_there(forms: Forms) -> None:
    """Cancelling a session that has just become a file must not delete the file silently."""
    upload_id = forms.post(b"a file").data["upload_id"]
    reply = forms.cancel(upload_id)
    assert (reply.status, reply.code) == (409, "SESSION_OVER")
    assert forms.state(upload_id).data["status"] == "completed"


# Those who watch.


def test_progress_is_told_by_bytes_of_chunks(ingest: Ingest, forms: Forms) -> None:
    """A dashboard would show nothing until the last chunk of a long upload."""
    chunks = pieces(4)
    upload_id = forms.chunk(chunks, 0).data["upload_id"]
    forms.chunk(chunks, 1, upload_id)
    client: Any = redis_client.Redis.from_url(ingest.redis.url, decode_responses=True)
    with client:

        def record() -> dict[str, str]:
            found: dict[str, str] = client.hgetall(f"upload:{upload_id}")
            return found

        wait_until(lambda: record().get("offset") == "200000", "it is told", record, 10)
        found = record()
        assert (found["status"], found["progress"]) == ("uploading", "50.0")
        assert (found["total_chunks"], found["chunks_received"]) == ("4", "2")
        assert (found["chunk_size"], found["priority"]) == ("100000", "5")
        assert found["file_hash"] == digest(b"".join(chunks))
        stored = client.hgetall(f"upload:{upload_id}:chunks")
        assert stored.keys() == {"0", "1"}
        one = json.loads(stored["1"])
        assert (one["index"], one["size"], one["hash"]) == (1, 100_000, digest(chunks[1]))
        assert (one["received"], one["verified"]) == (True, True)
        for index in (2, 3):
            forms.chunk(chunks, index, upload_id)
        wait_until(lambda: record()["status"] == "completed", "it is complete", record, 10)
        assert (record()["chunks_received"], record()["size"]) == ("4", "333333")


# Real clients.


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("size", [1000, 12_000_000])
def test_curl(ingest: Ingest, tmp_path: Path, size: int) -> None:
    """`curl -F` waits to be invited to send a long body, and must be."""
    file = tmp_path / 'a "quoted" name.bin'
    file.write_bytes(os.urandom(size))
    url = f"{ingest.service.url}/v1/upload/file"
    command = ["curl", "-sS", "-F", f'file=@"{str(file).replace(chr(34), chr(92) + chr(34))}"']
    done = subprocess.run(
        [*command, "-F", "priority=3", "-H", "Expect: 100-continue", url],
        capture_output=True,
        check=True,
        timeout=60,
    )
    data = json.loads(done.stdout)["data"]
    assert (data["status"], data["filename"]) == ("completed", file.name)
    assert blob(ingest.data_dir, data["upload_id"]) == file.read_bytes()


async def test_aiohttp_client_sends_chunked_bodies(ingest: Ingest) -> None:
    """A client that streams a form does not tell its length."""
    content = os.urandom(3_000_000)

    async def stream() -> Any:
        for start in range(0, len(content), 70_001):
            yield content[start : start + 70_001]
            await asyncio.sleep(0)

    form = aiohttp.FormData(quote_fields=False)
    form.add_field("file", stream(), filename="ümläut.bin")
    form.add_field("priority", "2")
    url = f"{ingest.service.url}/v1/upload/file"
    async with aiohttp.ClientSession() as session, session.post(url, data=form) as answer:
        assert answer.status == 201
        data = (await answer.json())["data"]
    assert data["filename"] == "ümläut.bin"
    assert blob(ingest.data_dir, data["upload_id"]) == content


async def test_chunk_named_just_file(ingest: Ingest) -> None:
    """Contract: a chunk's part is often named just `file`, with no extension and no type."""
    part = b'Content-Disposition: form-data; name="file"; filename="file"\r\n\r\nonly chunk'
    fields = text_parts({"chunk_index": 0, "total_chunks": 1})
    forms = Forms(ingest.service.port, "file")
    reply = forms.post_parts([*fields, part])
    assert (reply.status, reply.data["filename"]) == (201, "file")
    assert blob(ingest.data_dir, reply.data["upload_id"]) == b"only chunk"


# What the content turns out to be.


@pytest.mark.parametrize("file_first", [False, True])
@pytest.mark.parametrize("fields", [{}, {"chunk_index": 0, "total_chunks": 2}], ids=str)
@pytest.mark.parametrize("size", [100, 9_000_000, 12_000_000])
def test_content_that_is_no_video(
    ingest: Ingest, file_first: bool, fields: dict[str, object], size: int
) -> None:
    """Contract, 'Validation': what is not what it claims is refused by its first bytes."""
    if fields and size > 10_000_000:
        pytest.skip("no chunk is so long")
    parts = [*text_parts(fields), file_part(b"\0" * size)]
    reply = Forms(ingest.service.port, "video").post_parts(parts[::-1] if file_first else parts)
    assert (reply.status, reply.code) == (415, "CONTENT_MISMATCH")
    no_file_stays_behind(ingest)


def test_refused_before_the_rest_is_sent(ingest: Ingest) -> None:
    """A client would send a whole chunk in vain."""
    forms = Forms(ingest.service.port, "video")
    fields = {"chunk_index": 0, "total_chunks": 2}
    body = body_of([*text_parts(fields), file_part(b"\0" * 9_000_000)])
    with forms.begin(body[:400_000], length=len(body)) as one:
        assert one.read().status == 415


def test_first_chunk_that_comes_late_decides(ingest: Ingest) -> None:
    """Content alone decides once the first chunk is there, whatever came before it."""
    forms, chunks = Forms(ingest.service.port, "video"), [b"\0" * 9000, b"the rest"]
    session_id = forms.chunk(chunks, 1).data["session_id"]
    refused = forms.chunk(chunks, 0, session_id)
    assert (refused.status, refused.code) == (415, "CONTENT_MISMATCH")
    assert forms.state(session_id).data["missing_chunks"] == [0]
    fields = {"session_id": session_id, "chunk_index": 0, "total_chunks": 2}
    reply = forms.post(HEADS["mp4"], **fields)
    # It is a video; but not the one that was declared.
    assert (reply.status, reply.code) == (422, "HASH_MISMATCH")
    for again in (forms.post(HEADS["mp4"], **fields), forms.chunk(chunks, 1, session_id)):
        assert (again.status, again.code) == (422, "HASH_MISMATCH")
    state = forms.state(session_id).data
    assert (state["status"], state["error_code"]) == ("failed", "HASH_MISMATCH")


@pytest.mark.parametrize("chunked", [False, True])
def test_duplicate(ingest: Ingest, forms: Forms, chunked: bool) -> None:
    """Contract: 200 for a duplicate that is answered at once, with all bytes there."""
    chunks = pieces(3)
    content = b"".join(chunks)
    first = forms.post(content, file_hash=digest(content))
    assert (first.status, first.data["duplicate"]) == (201, False)
    tenant = sidecar(ingest.data_dir, first.data["upload_id"]).facts.tenant
    wait_until(lambda: entry(ingest, content, tenant), "the file is in the index", limit_s=10)
    whole = {"file_hash": digest(content)}
    again = forms.chunk(chunks, 1) if chunked else forms.post(content, **whole)
    assert (again.status, again.data["duplicate"]) == (200, True)
    assert again.data["status"] == "completed"
    assert again.data["upload_id"] != first.data["upload_id"]
    assert again.data["missing_chunks"] == []
    assert blob(ingest.data_dir, again.data["upload_id"]) == content
    assert sidecar(ingest.data_dir, again.data["upload_id"]).facts.size == len(content)
    no_file_stays_behind(ingest)


# Memory.


def test_memory_is_bounded_while_chunks_come(start_ingest: Starter) -> None:
    """Four chunks of 40 MB that come at once must not be held in memory."""
    size = 40_000_000
    one = start_ingest(UPLOAD_MAX_CHUNK_SIZE=str(size), UPLOAD_MAX_FILE_SIZE="0")
    forms, content = Forms(one.service.port), os.urandom(size)
    assert forms.post(b"warm", chunk_index=0, total_chunks=1).status == 201
    before, peaks, done = one.service.memory(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peaks.append(one.service.memory())

    def send(index: int) -> int:
        fields = {"session_id": "m", "chunk_index": index, "total_chunks": 4}
        return forms.post(content, **fields).status

    with ThreadPoolExecutor(5) as pool:
        watching = pool.submit(watch)
        statuses = list(pool.map(send, range(4)))
        done.set()
        watching.result()
    assert 201 in statuses
    assert set(statuses) <= {201, 202}
    assert max(peaks) - before < 4 * 12_000_000, (before, max(peaks))
