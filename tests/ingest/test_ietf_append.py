"""Continuing, looking at and cancelling uploads in the IETF's protocol, item by item."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.ingest.location import COLLECTION
from tests.ingest.conftest import LARGEST, Ingest
from tests.ingest.evidence import (
    blob,
    completed_once,
    lifecycle,
    no_file_is_left,
    snapshot,
)
from tests.ingest.ietf_client import PROBLEMS, VERSIONS, Ietf, limits_of, problem_of
from tests.ingest.tus_client import unknown, wait_for_offset
from tests.ingest.wire import Cut, chunk

NO_COUNTS = ["abc", "-1", "1.0", '"5"', "?1", "", "5, 5", "1" * 16]
NO_BOOLEANS = ["true", "1", "?2", '"?1"', "?1, ?1", ""]


@pytest.fixture
def client(ingest: Ingest) -> Ietf:
    """A client of the shared process."""
    return Ietf(ingest.service.port)


@pytest.mark.parametrize("interop", VERSIONS)
def test_whole_life_in_every_draft(ingest: Ingest, interop: int | None) -> None:
    """Create, append, lose the connection, ask, go on, complete: in the words of each draft."""
    client = Ietf(ingest.service.port, interop)
    content = os.urandom(500_000)
    path = client.create(content[:100_000])
    answer = client.append(path, 100_000, content[100_000:200_000])
    assert answer.status == (204 if interop in {8, None} else 201)
    assert not client.is_complete(answer)
    assert answer.headers["Upload-Offset"] == "200000"
    with client.begin_append(path, 200_000, 300_000, content[200_000:350_000]) as one:
        wait_for_offset(ingest.tus, path, 350_000)
        one.cut("rst")
    head = client.head(path)
    assert head.status == 204
    assert not client.is_complete(head)
    assert head.headers["Upload-Offset"] == "350000"
    assert head.headers["Cache-Control"] == "no-store"
    last = client.append(path, 350_000, content[350_000:], complete=True)
    assert last.status == 201
    assert client.is_complete(last)
    assert last.headers["Upload-Offset"] == "500000"
    assert client.is_complete(client.head(path))
    assert blob(ingest.data_dir, path) == content
    completed_once(ingest.redis, path)


@pytest.mark.parametrize("value", NO_COUNTS)
def test_item_105_other_offsets_are_ignored(client: Ietf, value: str) -> None:
    """An append whose offset means nothing has none, and is refused."""
    path = client.create(b"hello")
    answer = client.append(path, value, b"world")
    assert answer.status == 400
    assert not client.is_complete(answer)
    assert client.offset(path) == 5


@pytest.mark.parametrize("value", NO_BOOLEANS)
def test_item_106_other_completeness_is_ignored(client: Ietf, value: str) -> None:
    """An append whose Upload-Complete means nothing does not tell whether it is the last."""
    path = client.create(b"hello")
    answer = client.append(path, 5, b"world", {"Upload-Complete": value})
    assert answer.status == 400
    assert client.offset(path) == 5


def test_item_110_lost_bytes_end_the_upload(client: Ietf, ingest: Ingest) -> None:
    """An upload whose bytes were lost is gone, rather than back at an earlier offset."""
    path = client.create(b"hello")
    (part,) = (ingest.data_dir / "blobs").rglob(f"{path.rpartition('/')[2]}.part")
    part.unlink()
    assert client.head(path).status == 404
    assert client.append(path, 5, b"world").status == 404
    assert client.append(path, 0, b"world").status == 404


@pytest.mark.parametrize("complete", [True, False])
def test_item_112_nothing_is_added_to_what_is_complete(
    client: Ietf, ingest: Ingest, complete: bool
) -> None:
    """After the answer that says so, an upload never changes."""
    path = client.create(b"hello")
    assert client.append(path, 5, b"", complete=True).status == 201
    before = snapshot(ingest.data_dir)
    answer = client.append(path, 5, b"more", complete=complete)
    assert answer.status == 400
    assert not client.is_complete(answer)
    assert problem_of(answer)["type"] == f"{PROBLEMS}completed-upload"
    assert snapshot(ingest.data_dir) == before


@pytest.mark.parametrize("interop", VERSIONS)
def test_item_113_all_bytes_are_not_yet_complete(ingest: Ingest, interop: int | None) -> None:
    """An upload with all its bytes waits for its client to say that it was all."""
    client = Ietf(ingest.service.port, interop)
    path = client.create(b"hello", {"Upload-Length": "10"})
    assert not client.is_complete(client.append(path, 5, b"world"))
    for _ in range(2):
        head = client.head(path)
        assert head.headers["Upload-Offset"] == "10"
        assert not client.is_complete(head)
    assert client.ask("GET", path).status == 204
    assert len(lifecycle(ingest.redis.url, path)) <= 1
    assert client.is_complete(client.append(path, 10, b"", complete=True))
    completed_once(ingest.redis, path)


@pytest.mark.parametrize(
    ("body", "headers", "complete"),
    [
        (b"world", {"Upload-Length": "11"}, False),
        (b"worl", {}, True),
        (b"", {}, True),
        (b"w", {"Upload-Length": "6"}, True),
    ],
)
def test_item_115_lengths_of_all_requests_agree(
    client: Ietf, body: bytes, headers: Mapping[str, str], complete: bool
) -> None:
    """A request that contradicts an earlier one is refused; the upload goes on."""
    path = client.create(b"hello", {"Upload-Length": "10"})
    answer = client.append(path, 5, body, headers, complete=complete)
    assert answer.status == 400
    assert not client.is_complete(answer)
    assert problem_of(answer)["type"] == f"{PROBLEMS}inconsistent-upload-length"
    assert client.offset(path) == 5
    assert client.append(path, 5, b"world", complete=True).status == 201


def test_item_115_length_below_the_offset(client: Ietf) -> None:
    """A length that is told late cannot be less than what is there."""
    path = client.create(b"hello")
    answer = client.append(path, 5, b"", {"Upload-Length": "4"})
    assert problem_of(answer)["type"] == f"{PROBLEMS}inconsistent-upload-length"
    assert client.offset(path) == 5


def test_item_116_length_is_recorded_late(client: Ietf, ingest: Ingest) -> None:
    """A length is recorded with the request that brings it, also if that is cut."""
    path = client.create(b"hello")
    assert "Upload-Length" not in client.head(path).headers
    with client.begin_append(path, 5, 20, b"world"):
        wait_for_offset(ingest.tus, path, 10)
    assert client.head(path).headers["Upload-Length"] == "25"
    other = client.create(b"hello")
    assert client.append(other, 5, b"", {"Upload-Length": "9"}).status == 204
    assert client.head(other).headers["Upload-Length"] == "9"


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("framed", [True, False])
def test_item_117_body_that_passes_the_end(
    client: Ietf, ingest: Ingest, complete: bool, framed: bool
) -> None:
    """Once more comes than was told, the upload is of no use, and nothing more is taken."""
    path = client.create(b"x" * 10, {"Upload-Length": "50"})
    body = chunk(b"y" * 100) if framed else b"y" * 100
    length = None if framed else 100
    with client.begin_append(path, 10, length, body, complete=complete) as one:
        answer = one.read()
    assert answer.status == 400
    assert not client.is_complete(answer)
    assert problem_of(answer)["type"] == f"{PROBLEMS}inconsistent-upload-length"
    assert client.head(path).status == 410
    assert client.append(path, 10, b"y" * 40).status == 410
    assert client.append(path, 0, b"", complete=True).status == 410
    assert type(lifecycle(ingest.redis.url, path)[-1]).__name__ == "UploadFailed"


def test_item_123_append_over_the_limit(client: Ietf) -> None:
    """A body that would make the upload too large is refused with the limit, unread."""
    path = client.create(b"hello")
    with client.begin_append(path, 5, LARGEST - 4, complete=False) as one:
        answer = one.read()
    assert answer.status == 413
    assert not client.is_complete(answer)
    assert limits_of(answer)["max-size"] == LARGEST
    assert client.offset(path) == 5


@pytest.mark.parametrize("interop", VERSIONS)
def test_item_137_state(ingest: Ingest, interop: int | None) -> None:
    """HEAD tells offset, completeness, length and limits, as far as the draft knows them."""
    client = Ietf(ingest.service.port, interop)
    path = client.create(b"hello", {"Upload-Length": "10"})
    head = client.head(path)
    assert (head.status, head.body) == (204, b"")
    assert head.headers["Upload-Offset"] == "5"
    assert head.headers["Cache-Control"] == "no-store"
    assert not client.is_complete(head)
    if interop in {3, 5}:
        assert not {"Upload-Limit", "Upload-Length"} & set(head.headers)
    else:
        assert head.headers["Upload-Length"] == "10"
        assert limits_of(head)["max-size"] == LARGEST
    client.append(path, 5, b"world", complete=True)
    head = client.head(path)
    assert (head.status, head.headers["Upload-Offset"]) == (204, "10")
    assert client.is_complete(head)
    if interop in {8, None}:
        assert limits_of(head) == {"max-size": LARGEST}  # it does not end any more


def test_item_137_get_means_the_same(client: Ietf, ingest: Ingest) -> None:
    """GET by a client of the protocol takes over as HEAD does."""
    path = client.create()
    with client.begin_append(path, 0, 10, b"hello") as one:
        wait_for_offset(ingest.tus, path, 5)
        answer = client.ask("GET", path)
        assert (answer.status, answer.headers["Upload-Offset"]) == (204, "5")
        assert one.read().status == 423
    assert not client.is_complete(answer)
    assert limits_of(answer)


def test_item_138_no_redirection_that_changes_the_method(client: Ietf) -> None:
    """HEAD and DELETE are answered where they are sent, also of a complete upload."""
    path = client.create(b"hello")
    assert client.head(path).status == 204
    client.append(path, 5, complete=True)
    for answer in (client.head(path), client.delete(path)):
        assert (answer.status, "Location" in answer.headers) == (204, False)


def test_item_139_get(client: Ietf, ingest: Ingest) -> None:
    """GET serves nothing while bytes are missing, and then leads to the file by 307."""
    path = client.create(b"hello")
    plain = Ietf(ingest.service.port, None)
    for one in (client, plain):
        answer = one.ask("GET", path)
        assert (answer.status, answer.body) == (204, b"")
        assert not one.is_complete(answer)
    client.append(path, 5, complete=True)
    for one in (client, plain):
        answer = one.ask("GET", path)
        assert answer.status == 307
        assert answer.headers["Location"] == path.replace("uploads", "storage")
        assert one.is_complete(answer)


FIELDS = ["Upload-Offset", "Upload-Complete", "Upload-Length"]


def refused_undisturbed(ingest: Ingest, client: Ietf, method: str, name: str) -> None:
    """Send a request with a field that has no meaning there, while another one is served."""
    path = client.create(b"hello")
    value = "?1" if name == "Upload-Complete" else "5"
    with client.begin_append(path, 5, 10, b"wor", complete=False) as one:
        wait_for_offset(ingest.tus, path, 8)
        answer = client.ask(method, path, {name: value})
        assert answer.status == 400
        assert not client.is_complete(answer)
        one.send(b"ld12345")
        assert one.read().headers["Upload-Offset"] == "15"


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("interop", VERSIONS)
def test_item_141_head_with_fields(ingest: Ingest, interop: int | None, name: str) -> None:
    """HEAD that says where it goes on is a mistake, and disturbs nobody."""
    refused_undisturbed(ingest, Ietf(ingest.service.port, interop), "HEAD", name)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("interop", VERSIONS)
def test_item_154_delete_with_fields(ingest: Ingest, interop: int | None, name: str) -> None:
    """DELETE that says where it goes on was meant to be something else, and deletes nothing."""
    refused_undisturbed(ingest, Ietf(ingest.service.port, interop), "DELETE", name)


@pytest.mark.parametrize("interop", VERSIONS)
def test_item_142_unknown_uploads(ingest: Ingest, interop: int | None) -> None:
    """What is not there, or cannot be, is not found by any method."""
    client = Ietf(ingest.service.port, interop)
    for target in (unknown(), f"{COLLECTION}/x", f"{COLLECTION}/{'a' * 300}"):
        for answer in (
            client.head(target),
            client.append(target, 0, b"x"),
            client.delete(target),
        ):
            assert answer.status == 404
            assert not client.is_complete(answer)
            assert "Upload-Offset" not in answer.headers


@pytest.mark.parametrize("kind", ["text/plain", "application/offset+octet-stream", ""])
def test_item_143_media_type(client: Ietf, kind: str) -> None:
    """An append of another type is refused, and adds nothing."""
    path = client.create(b"hello")
    answer = client.append(path, 5, b"world", {"Content-Type": kind})
    assert answer.status == 415
    assert not client.is_complete(answer)
    assert client.offset(path) == 5


@pytest.mark.parametrize("missing", ["Upload-Offset", "Upload-Complete"])
def test_item_143_fields_are_needed(client: Ietf, missing: str) -> None:
    """An append that does not tell where, or whether it is the last, is refused."""
    path = client.create(b"hello")
    headers = client.append_headers(5, True)
    del headers[missing]
    answer = client.ask("PATCH", path, headers, b"world")
    assert answer.status == 400
    assert not client.is_complete(answer)
    assert client.offset(path) == 5


@pytest.mark.parametrize("interop", VERSIONS)
@pytest.mark.parametrize("offset", [0, 4, 6, 10, 10**15 - 1])
def test_item_144_wrong_offset(ingest: Ingest, interop: int | None, offset: int) -> None:
    """A body for another place is refused with what it takes to do better."""
    client = Ietf(ingest.service.port, interop)
    path = client.create(b"hello", {"Upload-Length": "10"})
    answer = client.append(path, offset, b"world"[: max(10 - offset, 0)])
    assert answer.status == 409
    assert not client.is_complete(answer)
    assert answer.headers["Upload-Offset"] == "5"
    problem = problem_of(answer)
    assert problem["type"] == f"{PROBLEMS}mismatching-upload-offset"
    assert (problem["expected-offset"], problem["provided-offset"]) == (5, offset)
    assert blob(ingest.data_dir, path) == b"hello"


def test_item_144_wrong_offset_of_a_complete_upload(client: Ietf) -> None:
    """It stays an answer of the machinery, though the upload is complete."""
    path = client.create(b"hello")
    client.append(path, 5, complete=True)
    answer = client.append(path, 3, b"", complete=True)
    assert answer.status == 409
    assert not client.is_complete(answer)
    assert answer.headers["Upload-Offset"] == "5"


@pytest.mark.parametrize("interop", VERSIONS)
def test_item_145_last_append(ingest: Ingest, interop: int | None) -> None:
    """The last part is answered as the whole would have been, if it had come at once."""
    client = Ietf(ingest.service.port, interop)
    at_once = client.post(b"hello world", complete=True)
    path = client.create(b"hello")
    last = client.append(path, 5, b" world", complete=True)
    assert client.is_complete(last)
    assert last.status == at_once.status == 201
    told = [json.loads(answer.body) for answer in (at_once, last)]
    ids = [one.pop("upload_id") for one in told]
    assert [one.pop("location") for one in told] == [f"/api/v1/storage/{one}" for one in ids]
    assert told[0] == told[1]
    completed_once(ingest.redis, path)


@pytest.mark.parametrize("interop", VERSIONS)
def test_item_146_append_with_more_to_come(ingest: Ingest, interop: int | None) -> None:
    """A part is acknowledged with the offset, and it is said that more must come."""
    client = Ietf(ingest.service.port, interop)
    answer = client.append(client.create(b"hello"), 5, b" world")
    assert answer.status == (204 if interop in {8, None} else 201)
    assert not client.is_complete(answer)
    assert answer.headers["Upload-Offset"] == "11"


@pytest.mark.parametrize("how", ["fin", "rst", "half-close"])
def test_item_148_interrupted_append(client: Ietf, ingest: Ingest, how: Cut) -> None:
    """What arrived of an append is kept; the upload is not complete."""
    content = os.urandom(300_000)
    path = client.create(content[:1000])
    with client.begin_append(path, 1000, 299_000, content[1000:200_000]) as one:
        wait_for_offset(ingest.tus, path, 200_000)
        one.cut(how)
    head = client.head(path)
    assert not client.is_complete(head)
    assert head.headers["Upload-Offset"] == "200000"
    assert client.append(path, 200_000, content[200_000:], complete=True).status == 201
    assert blob(ingest.data_dir, path) == content


def test_item_149_empty_appends(client: Ietf, ingest: Ingest) -> None:
    """An empty append does nothing, or completes what is there."""
    path = client.create(b"hello")
    for _ in range(3):
        answer = client.append(path, 5)
        assert (answer.status, answer.headers["Upload-Offset"]) == (204, "5")
    assert client.append(path, 5, complete=True).status == 201
    assert client.head(path).headers["Upload-Length"] == "5"
    completed_once(ingest.redis, path)


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("interop", VERSIONS)
def test_item_150_lost_answer(ingest: Ingest, interop: int | None, framed: bool) -> None:
    """A client that lost the last answer may ask for it again, and gets the same."""
    client = Ietf(ingest.service.port, interop)
    path = client.create(b"hello")
    first = client.append(path, 5, b" world", complete=True)
    for _ in range(2):
        length, body = (None, chunk(b"")) if framed else (0, b"")
        with client.begin_append(path, 11, length, body) as one:
            again = one.read()
        assert (again.status, again.body) == (first.status, first.body)
        assert client.is_complete(again)
        assert again.headers["Location"] == first.headers["Location"]
    completed_once(ingest.redis, path)
    refused = client.append(path, 11)  # one that would not complete it repeats nothing
    assert refused.status == 400
    assert not client.is_complete(refused)


def test_item_150_more_chunks_for_a_complete_upload(client: Ietf, ingest: Ingest) -> None:
    """A chunked body is looked at before the last answer is repeated to it."""
    path = client.create(b"hello")
    client.append(path, 5, complete=True)
    with client.begin_append(path, 5, None, chunk(b"more")) as one:
        assert one.read().status == 400
    assert blob(ingest.data_dir, path) == b"hello"


@pytest.mark.parametrize("interop", VERSIONS)
def test_item_151_completeness_in_every_answer(ingest: Ingest, interop: int | None) -> None:
    """Every answer says whether it is that of a complete upload, refusals included."""
    client = Ietf(ingest.service.port, interop)
    path = client.create(b"hello")
    answers = [
        client.append(path, 5, b"x"),
        client.append(path, 5, b"x"),
        client.append(path, "x", b"x"),
        client.append(unknown(), 0, b"x"),
        client.append(path, 6, b"x", {"Content-Encoding": "br"}),
        client.append(path, 6, b"x", {"Expect": "tea"}),
        client.head(path),
        client.ask("PUT", path, client.told(False)),
        client.ask("POST", path, client.told(False)),
    ]
    expected = [204 if interop in {8, None} else 201, 409, 400, 404, 415, 417, 204, 405, 405]
    assert [answer.status for answer in answers] == expected
    assert not any(client.is_complete(answer) for answer in answers)


def test_item_152_framing_is_not_counted(client: Ietf, ingest: Ingest) -> None:
    """Offsets count the bytes of the file, not those of its chunks on the wire."""
    path = client.create()
    framed = b"".join(chunk(b"abc") for _ in range(100)) + chunk(b"")
    with client.begin_append(path, 0, None, framed, complete=False) as one:
        assert one.read().headers["Upload-Offset"] == "300"
    assert blob(ingest.data_dir, path) == b"abc" * 100


@pytest.mark.parametrize("interop", VERSIONS)
def test_item_153_cancellation(ingest: Ingest, interop: int | None) -> None:
    """A cancelled upload is gone with its bytes, and the request that wrote to it ends."""
    client = Ietf(ingest.service.port, interop)
    path = client.create()
    with client.begin_append(path, 0, 10, b"hello") as one:
        wait_for_offset(ingest.tus, path, 5)
        assert client.delete(path).status == 204
        assert one.read().status == 423
    for answer in (client.head(path), client.append(path, 5, b"world"), client.delete(path)):
        assert answer.status == 404
    no_file_is_left(ingest.data_dir, path)
    kinds = [type(event).__name__ for event in lifecycle(ingest.redis.url, path)]
    assert kinds == ["UploadCreated", "UploadCancelled"]


def test_item_156_parallel_appends(client: Ietf, ingest: Ingest) -> None:
    """Of many bodies for one place at most one gets it whole; they are never mixed."""
    path = client.create()
    bodies = [bytes([65 + n]) * 50_000 for n in range(6)]
    barrier = threading.Barrier(len(bodies))

    def send(body: bytes) -> int:
        barrier.wait()
        return client.append(path, 0, body).status

    with ThreadPoolExecutor(len(bodies)) as threads:
        statuses = list(threads.map(send, bodies))
    assert statuses.count(204) <= 1
    assert set(statuses) <= {204, 409, 423}
    stored = blob(ingest.data_dir, path)
    assert any(body.startswith(stored) for body in bodies)
    assert client.offset(path) == len(stored)


def test_item_156_offset_can_be_used(client: Ietf, ingest: Ingest) -> None:
    """The offset that HEAD tells while another request hangs is the one to go on from."""
    content = os.urandom(400_000)
    path = client.create()
    hanging = []
    try:
        for end in range(100_000, 400_000, 100_000):
            at = client.offset(path)
            hanging.append(client.begin_append(path, at, 400_000 - at, content[at:end]))
            wait_for_offset(ingest.tus, path, end)
        at = client.offset(path)
        assert client.append(path, at, content[at:], complete=True).status == 201
        for one in hanging:
            assert one.read().status == 423
    finally:
        for one in hanging:
            one.socket.close()
    assert blob(ingest.data_dir, path) == content


@pytest.mark.parametrize("newer", ["HEAD", "PATCH", "DELETE"])
def test_item_157_newer_request_ends_the_older(
    client: Ietf, ingest: Ingest, newer: str
) -> None:
    """A creation whose client went silent makes way at once for one that lives."""
    headers = {**client.told(True), "Content-Length": "10"}
    with client.begin("POST", COLLECTION, headers, b"hello") as one:
        path = one.read_interim_answer().headers["Location"].partition("127.0.0.1")[2]
        wait_for_offset(ingest.tus, path, 5)
        if newer == "PATCH":
            assert client.append(path, 5, b"world", complete=True).status == 201
        else:
            assert client.ask(newer, path).status == 204
        assert one.read().status == 423


def test_item_172_status_of_both_protocols(client: Ietf, ingest: Ingest) -> None:
    """What is told by status and body differs: too long ends one upload, and not the other."""
    tus = ingest.tus.create(10)
    assert ingest.tus.patch(tus, 0, b"x" * 11).status == 413
    assert ingest.tus.offset(tus) == 0
    assert ingest.tus.patch(tus, 0, b"x" * 10).status == 204
    mine = client.create(headers={"Upload-Length": "10"})
    assert client.append(mine, 0, b"x" * 11, complete=True).status == 400
    assert client.head(mine).status == 410
