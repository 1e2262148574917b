"""Digests that clients of the IETF's protocol declare or ask for, items 161 to 163."""

from __future__ import annotations

import base64
import hashlib
import json
import os

import pytest
import redis as redis_client

from services.ingest.location import COLLECTION
from tests.ingest.conftest import Ingest
from tests.ingest.evidence import blob, completed_once, files_of, lifecycle, sidecar, snapshot
from tests.ingest.ietf_client import PROBLEMS, Ietf, problem_of
from tests.ingest.tus_client import path_of, wait_for_offset
from tests.ingest.wire import Answer, chunk
from tests.processes import wait_until

CONTENT = os.urandom(3_000_000)
ALGORITHMS = ["sha-256", "sha-512"]


@pytest.fixture
def client(ingest: Ingest) -> Ietf:
    """A client of the shared process."""
    return Ietf(ingest.service.port)


def digest(content: bytes, algorithm: str = "sha-256") -> str:
    """Return a digest as a header has it."""
    made = hashlib.new(algorithm.replace("-", ""), content).digest()
    return f"{algorithm}=:{base64.b64encode(made).decode()}:"


def upload_of(answer: Answer) -> str:
    """Return the path of the upload that became the file an answer tells of."""
    return f"{COLLECTION}/{json.loads(answer.body)['upload_id']}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("parts", [1, 3])
def test_item_161_file_that_is_what_was_meant(
    ingest: Ingest, client: Ietf, algorithm: str, parts: int
) -> None:
    """A file whose digest is right is stored, in however many requests it came."""
    declared = {"Repr-Digest": digest(CONTENT, algorithm)}
    size = len(CONTENT) // parts
    answer = client.post(CONTENT[:size], declared, complete=parts == 1)
    path = upload_of(answer) if parts == 1 else path_of(answer)
    for at in range(size, len(CONTENT), size):
        last = at + size == len(CONTENT)
        answer = client.append(path, at, CONTENT[at : at + size], complete=last)
    assert answer.status == 201
    assert client.is_complete(answer)
    name = algorithm.replace("-", "")
    assert (
        sidecar(ingest.data_dir, path).digests[name] == hashlib.new(name, CONTENT).hexdigest()
    )
    completed_once(ingest.redis, path)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("at_once", [True, False])
def test_item_161_file_that_is_another_one(
    ingest: Ingest, client: Ietf, algorithm: str, at_once: bool
) -> None:
    """A file whose digest is wrong fails, for all time, and leaves no byte."""
    declared = {"Repr-Digest": digest(b"other", algorithm)}
    if at_once:
        headers = {**client.told(True), **declared, "Content-Length": "5"}
        with client.begin("POST", COLLECTION, headers, b"hello") as one:
            path = path_of(one.read_interim_answer())
            answer = one.read()
    else:
        path = client.create(b"hel", declared)
        answer = client.append(path, 3, b"lo", complete=True)
    assert answer.status == 422
    assert client.is_complete(answer)  # it comes from looking at the whole (item 145)
    problem = problem_of(answer)
    assert problem["type"] == f"{PROBLEMS}digest-mismatching-values"
    assert problem["error_code"] == "HASH_MISMATCH"
    assert client.head(path).status == 410
    gone = client.append(path, 5, complete=True)
    assert (gone.status, problem_of(gone)["error_code"]) == (410, "HASH_MISMATCH")
    last = lifecycle(ingest.redis.url, path)[-1]
    assert type(last).__name__ == "UploadFailed"
    assert [one.rpartition(".")[2] for one in files_of(ingest.data_dir, path)] == ["info"]


@pytest.mark.parametrize("name", ["Repr-Digest", "Content-Digest"])
@pytest.mark.parametrize("value", ["sha-256=:AAAA:", "sha-256=?1", "sha-256", "x y"])
def test_item_163_digests_that_cannot_be_read(
    ingest: Ingest, client: Ietf, name: str, value: str
) -> None:
    """Nobody could make the check that the client relies on, so nothing is taken."""
    path = client.create(b"hello")
    before = snapshot(ingest.data_dir)
    answers = [client.post(b"hello", {name: value})]
    if name == "Content-Digest":
        answers.append(client.append(path, 5, b"world", {name: value}))
    for answer in answers:
        assert answer.status == 400
        assert problem_of(answer)["type"] == f"{PROBLEMS}digest-invalid-values"
        assert not client.is_complete(answer)
    assert snapshot(ingest.data_dir) == before


def test_item_161_unknown_algorithms(ingest: Ingest, client: Ietf) -> None:
    """Algorithms that are not known check nothing (RFC 9530 section 2)."""
    strange = {"Repr-Digest": "md5=:AAAA:", "Content-Digest": "crc32c=:AAAA:"}
    answer = client.post(b"hello", strange, complete=True)
    assert answer.status == 201
    completed_once(ingest.redis, upload_of(answer))


def test_item_161_conventional_upload(ingest: Ingest) -> None:
    """A file that comes conventionally is checked as well."""
    client = Ietf(ingest.service.port, None)
    for meant, status in ((b"hello", 201), (b"other", 422)):
        declared = {"Repr-Digest": digest(meant), "Content-Type": "text/plain"}
        assert client.ask("POST", COLLECTION, declared, b"hello").status == status


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_item_162_wanted_digest(client: Ietf, algorithm: str) -> None:
    """The digest that was asked for comes with the last answer, and when that is repeated."""
    wish = {"Want-Repr-Digest": f"{algorithm}=5, md5=9"}
    path = client.create(b"hello", wish)
    answer = client.append(path, 5, b" world", complete=True)
    assert answer.headers["Repr-Digest"] == digest(b"hello world", algorithm)
    again = client.append(path, 11, complete=True)
    assert again.headers["Repr-Digest"] == digest(b"hello world", algorithm)
    at_once = client.post(b"hello", wish, complete=True)
    assert at_once.headers["Repr-Digest"] == digest(b"hello", algorithm)


@pytest.mark.parametrize("wish", ["md5=10", "sha-256=0", "sha-256=ten", "x y", ""])
def test_item_162_wishes_that_cannot_be_met(client: Ietf, wish: str) -> None:
    """A wish that cannot be met is no reason to refuse a file."""
    answer = client.post(b"hello", {"Want-Repr-Digest": wish}, complete=True)
    assert answer.status == 201
    assert "Repr-Digest" not in answer.headers


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("framed", [True, False])
def test_item_163_body_that_is_what_was_meant(
    ingest: Ingest, client: Ietf, algorithm: str, framed: bool
) -> None:
    """A body whose digest is right becomes part of the upload."""
    path = client.create(b"hello")
    said = {**client.append_headers(5, True), "Content-Digest": digest(CONTENT, algorithm)}
    framing = {"Content-Length": str(len(CONTENT))}
    body = CONTENT
    if framed:
        framing = {"Transfer-Encoding": "chunked"}
        body = chunk(CONTENT) + chunk(b"")
    with client.begin("PATCH", path, {**said, **framing}, body) as one:
        assert one.read().status == 201
    assert blob(ingest.data_dir, path) == b"hello" + CONTENT
    completed_once(ingest.redis, path)


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("size", [5, 3_000_000])
def test_item_163_body_that_is_another_one(
    ingest: Ingest, client: Ietf, complete: bool, size: int
) -> None:
    """A body whose digest is wrong is not appended, and the right one can follow."""
    path = client.create(b"hello")
    body = CONTENT[:size]
    wrong = client.append(path, 5, body, {"Content-Digest": digest(b"x")}, complete=complete)
    assert wrong.status == 400
    assert not client.is_complete(wrong)
    assert wrong.headers["Upload-Offset"] == "5"
    assert problem_of(wrong)["type"] == f"{PROBLEMS}digest-mismatching-values"
    assert blob(ingest.data_dir, path) == b"hello"
    assert client.offset(path) == 5
    right = client.append(path, 5, body, {"Content-Digest": digest(body)}, complete=complete)
    assert right.status == (201 if complete else 204)
    assert blob(ingest.data_dir, path) == b"hello" + body


@pytest.mark.parametrize("complete", [True, False])
def test_item_163_first_body(ingest: Ingest, client: Ietf, complete: bool) -> None:
    """The body of a creation is checked too; the upload stays, without a byte."""
    headers = {**client.told(complete), "Content-Digest": digest(b"x"), "Content-Length": "5"}
    with client.begin("POST", COLLECTION, headers, b"hello") as one:
        path = path_of(one.read_interim_answer())
        answer = one.read()
    assert answer.status == 400
    assert not client.is_complete(answer)
    assert client.offset(path) == 0
    assert client.append(path, 0, b"hello", complete=True).status == 201
    completed_once(ingest.redis, path)


def test_item_163_body_that_is_cut(ingest: Ingest, client: Ietf) -> None:
    """Bytes of a body that nobody could check are not kept."""
    path = client.create(b"hello")
    said = {**client.append_headers(5, True), "Content-Digest": digest(CONTENT)}
    framing = {"Content-Length": str(len(CONTENT))}
    with client.begin("PATCH", path, {**said, **framing}, CONTENT[:2_000_000]) as one:
        one.cut("fin")
    assert client.offset(path) == 5
    assert blob(ingest.data_dir, path) == b"hello"


def test_newer_request_while_a_file_is_checked(ingest: Ingest, client: Ietf) -> None:
    """A client that lost its connection need not wait until a large file is hashed."""
    content = bytes(60_000_000)
    path = client.create(headers={"Repr-Digest": digest(content, "sha-512")})
    with client.begin_append(path, 0, len(content)) as one:
        one.send(content)
        wait_for_offset(ingest.tus, path, len(content))
        assert client.head(path).status == 204
        assert one.read().status in {201, 423}  # hashed already, or ended by HEAD
    assert client.append(path, len(content), complete=True).status == 201
    completed_once(ingest.redis, path)


@pytest.mark.parametrize("complete", [True, False, None])
def test_known_file_needs_no_body(ingest: Ingest, client: Ietf, complete: bool | None) -> None:
    """Bytes that the tenant has, by their declared digest, need not be sent once more."""
    content = os.urandom(5000)
    assert client.post(content, complete=True).status == 201
    with redis_client.Redis.from_url(ingest.redis.url) as index:
        pattern = f"dedupe:*:{hashlib.sha256(content).hexdigest()}"
        wait_until(lambda: index.keys(pattern), "the file is in the index")
    said = {"Repr-Digest": digest(content), "Content-Type": "application/octet-stream"}
    if complete is not None:
        said |= {**client.told(complete), "Upload-Length": "5000"}
    with Ietf(client.port, None).begin(
        "POST", COLLECTION, {**said, "Content-Length": "5000", "Expect": "100-continue"}
    ) as one:
        answer = one.read()  # without a byte of the body
    assert (answer.status, answer.interim) == (201, ())
    told = json.loads(answer.body)
    assert (told["duplicate"], told["size"]) == (True, 5000)
    assert blob(ingest.data_dir, upload_of(answer)) == content
    if complete is not None:
        assert client.is_complete(answer)
        assert client.is_complete(client.head(upload_of(answer)))


@pytest.mark.parametrize("complete", [True, False])
def test_content_that_is_not_what_it_claims(client: Ietf, complete: bool) -> None:
    """A file that is no video is refused by what it is; resuming it would not help."""
    path = client.create(headers={"Content-Type": "video/mp4"})
    answer = client.append(path, 0, b"<html>" * 1000, complete=complete)
    assert answer.status == 415
    assert client.is_complete(answer)  # the judgement is not that of the machinery
    assert client.head(path).status == 410
