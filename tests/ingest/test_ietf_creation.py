"""Opening uploads in the IETF's protocol over real sockets, item by item."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest

from services.ingest.location import COLLECTION
from shared.sidecar import new_id
from tests.ingest.conftest import LARGEST, Ingest, Starter
from tests.ingest.evidence import (
    blob,
    completed_once,
    lifecycle,
    no_file_is_left,
    sidecar,
    snapshot,
)
from tests.ingest.ietf_client import PROBLEMS, VERSIONS, Ietf, limits_of, problem_of
from tests.ingest.tus_client import CHUNK, TUS, metadata, path_of, wait_for_offset
from tests.ingest.wire import Answer, Connection, chunk, head_of
from tests.processes import wait_until

NO_COUNTS = ["abc", "-1", "1.0", '"5"', "?1", "", "5, 6", "1" * 16]
NO_BOOLEANS = ["true", "1", "?2", '"?1"', "?1, ?1", ""]


@pytest.fixture
def client(ingest: Ingest) -> Ietf:
    """A client of the shared process."""
    return Ietf(ingest.service.port)


def file_of(answer: Answer) -> str:
    """Return the path of the upload whose file an answer names, which must be consistent."""
    told = json.loads(answer.body)
    assert answer.headers["Location"] == told["location"]
    assert told["location"] == f"/api/v1/storage/{told['upload_id']}"
    assert told["status"] == "completed"
    return f"{COLLECTION}/{told['upload_id']}"


@pytest.mark.parametrize("interop", VERSIONS)
def test_item_126_creation_without_content(ingest: Ingest, interop: int | None) -> None:
    """An upload can be opened before there is a byte, to be complete or not."""
    client = Ietf(ingest.service.port, interop)
    path = client.create()
    assert client.offset(path) == 0
    whole = client.post(complete=True)
    assert whole.status == 201
    assert client.is_complete(whole)
    completed_once(ingest.redis, file_of(whole))
    assert blob(ingest.data_dir, file_of(whole)) == b""


@pytest.mark.parametrize("interop", VERSIONS)
def test_item_129_creation_of_all_at_once(ingest: Ingest, interop: int | None) -> None:
    """A body that is said to be all becomes a file, and the answer is that of the file."""
    client = Ietf(ingest.service.port, interop)
    content = os.urandom(10_000)
    answer = client.post(content, complete=True)
    assert answer.status == 201
    assert client.is_complete(answer)
    assert answer.headers["Upload-Offset"] == "10000"
    path = file_of(answer)
    assert json.loads(answer.body)["size"] == 10_000
    assert blob(ingest.data_dir, path) == content
    assert sidecar(ingest.data_dir, path).size == 10_000
    completed_once(ingest.redis, path)


def test_item_129_creation_of_all_in_chunks(client: Ietf, ingest: Ingest) -> None:
    """A body without a length is all when it ends, and the upload then has its length."""
    framing = {"Transfer-Encoding": "chunked", **client.told(True)}
    body = chunk(b"hello ") + chunk(b"world") + chunk(b"")
    with client.begin("POST", COLLECTION, framing, body) as one:
        answer = one.read()
    assert (answer.status, client.is_complete(answer)) == (201, True)
    path = file_of(answer)
    assert blob(ingest.data_dir, path) == b"hello world"
    assert client.head(path).headers["Upload-Length"] == "11"


@pytest.mark.parametrize("interop", VERSIONS)
def test_item_130_creation_of_a_part(ingest: Ingest, interop: int | None) -> None:
    """A first part is answered with where to go on, within which limits, and how far it is."""
    client = Ietf(ingest.service.port, interop)
    answer = client.post(b"hello")
    assert answer.status == 201
    assert not client.is_complete(answer)
    assert answer.headers["Upload-Offset"] == "5"
    assert blob(ingest.data_dir, path_of(answer)) == b"hello"
    if interop in {3, 5}:
        assert "Upload-Limit" not in answer.headers
        return
    age = "expires" if interop == 6 else "max-age"
    limits = limits_of(answer)
    assert limits.keys() == {"max-size", age}
    assert limits["max-size"] == LARGEST
    assert 86_300 < limits[age] <= 86_400


def test_item_130_location_resolves(client: Ietf) -> None:
    """The Location of an upload leads to it."""
    answer = client.post(b"hello", {"Host": "localhost:81"})
    assert answer.headers["Location"].startswith(f"http://localhost:81{COLLECTION}/")
    assert client.head(path_of(answer)).status == 204


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_item_126_only_post_creates(ingest: Ingest, client: Ietf, method: str) -> None:
    """The collection takes files by POST; another method is refused, and nothing is opened."""
    before = snapshot(ingest.data_dir)
    answer = client.ask(method, COLLECTION, client.told(True), b"hello")
    assert answer.status == 405
    assert "POST" in answer.headers["Allow"]
    assert snapshot(ingest.data_dir) == before


@pytest.mark.parametrize("value", NO_BOOLEANS)
def test_item_106_other_completeness_makes_it_conventional(
    ingest: Ingest, client: Ietf, value: str
) -> None:
    """A POST whose Upload-Complete means nothing is an ordinary one: its body is a file."""
    answer = client.ask("POST", COLLECTION, {"Upload-Complete": value}, b"hello")
    assert answer.status == 201
    assert "Upload-Complete" not in answer.headers
    assert answer.interim == ()
    assert blob(ingest.data_dir, file_of(answer)) == b"hello"


@pytest.mark.parametrize("value", NO_COUNTS)
def test_item_107_other_lengths_are_ignored(client: Ietf, value: str) -> None:
    """An Upload-Length that means nothing is not there: the upload has no length yet."""
    path = client.create(b"hello", {"Upload-Length": value})
    assert "Upload-Length" not in client.head(path).headers


def test_item_109_parameters_are_ignored(client: Ietf) -> None:
    """Parameters behind values do not change them."""
    fields = {"Upload-Complete": "?0; x=1", "Upload-Length": "9;y"}
    answer = client.ask("POST", COLLECTION, fields, b"hello")
    head = client.head(path_of(answer)).headers
    assert (head["Upload-Offset"], head["Upload-Length"]) == ("5", "9")


@pytest.mark.parametrize("interop", [6, 8, None])
def test_item_116_length_is_recorded(ingest: Ingest, interop: int | None) -> None:
    """A length that was told is answered to HEAD, wherever it came from."""
    client = Ietf(ingest.service.port, interop)
    path = client.create(b"hello", {"Upload-Length": "9"})
    assert client.head(path).headers["Upload-Length"] == "9"
    if interop is None:
        return  # nobody is told where an upload is before its body has come
    with client.begin(
        "POST", COLLECTION, {**client.told(True), "Content-Length": "9"}, b"hello"
    ) as one:
        location = one.read_interim_answer()
        wait_for_offset(ingest.tus, path_of(location), 5)
    assert client.head(path_of(location)).headers["Upload-Length"] == "9"


@pytest.mark.parametrize(
    ("complete", "told", "body"), [(True, 9, 5), (True, 3, 5), (False, 3, 5), (True, 5, 0)]
)
def test_item_115_lengths_of_one_request_agree(
    ingest: Ingest, client: Ietf, complete: bool, told: int, body: int
) -> None:
    """A request that contradicts itself is refused, and no upload is opened."""
    before = snapshot(ingest.data_dir)
    answer = client.post(b"x" * body, {"Upload-Length": str(told)}, complete=complete)
    assert answer.status == 400
    assert problem_of(answer)["type"] == f"{PROBLEMS}inconsistent-upload-length"
    assert not client.is_complete(answer)
    assert snapshot(ingest.data_dir) == before


def test_item_115_chunked_body_that_ends_early(ingest: Ingest, client: Ietf) -> None:
    """A chunked body that is said to be all, and is less, completes nothing."""
    framing = {"Transfer-Encoding": "chunked", "Upload-Length": "9", **client.told(True)}
    with client.begin("POST", COLLECTION, framing, chunk(b"hello") + chunk(b"")) as one:
        path = path_of(one.read_interim_answer())
        answer = one.read()
    assert answer.status == 400
    assert problem_of(answer)["type"] == f"{PROBLEMS}inconsistent-upload-length"
    assert client.offset(path) == 5
    assert client.append(path, 5, b"last", complete=True).status == 201
    assert blob(ingest.data_dir, path) == b"hellolast"


def test_item_117_chunked_body_that_passes_the_end(ingest: Ingest, client: Ietf) -> None:
    """A body that turns out longer than was told ends the upload for good."""
    framing = {"Transfer-Encoding": "chunked", "Upload-Length": "50", **client.told(False)}
    body = chunk(b"x" * 100) + chunk(b"")
    with client.begin("POST", COLLECTION, framing, body) as one:
        path = path_of(one.read_interim_answer())
        answer = one.read()
    assert answer.status == 400
    assert not client.is_complete(answer)
    assert problem_of(answer)["error_code"] == "UPLOAD_OVER_LENGTH"
    assert client.head(path).status == 410
    kinds = [type(event).__name__ for event in lifecycle(ingest.redis.url, path)]
    assert kinds == ["UploadCreated", "UploadFailed"]


def test_item_118_addresses_are_not_used_again(client: Ietf) -> None:
    """Each upload has an address of its own, also when another one has gone."""
    paths = [client.create() for _ in range(20)]
    assert len(set(paths)) == 20
    assert client.delete(paths[0]).status == 204
    assert client.create() not in paths
    assert client.head(paths[0]).status == 404


@pytest.mark.parametrize("target", [COLLECTION, f"{COLLECTION}/{new_id()}"])
def test_item_119_limits_are_discovered(ingest: Ingest, target: str) -> None:
    """OPTIONS tells the limits, and the type of parts, beside what it tells of tus."""
    answer = Ietf(ingest.service.port, None).ask("OPTIONS", target)
    assert answer.status == 204
    assert limits_of(answer) == {"max-size": LARGEST, "max-age": 86_400}
    types = answer.headers["Accept-Patch"].split(", ")
    assert types == ["application/partial-upload", "application/offset+octet-stream"]
    assert answer.headers["Tus-Version"] == "1.0.0"


def test_item_120_no_limits_of_the_whole_server(client: Ietf) -> None:
    """Other resources of the host have other limits, so none are told of all of them."""
    with Connection(client.port) as one:
        one.send(head_of("OPTIONS", "*", {}))
        answer = one.read()
        assert answer.status == 404
        assert not {"Upload-Limit", "Accept-Patch"} & set(answer.headers)


def test_item_121_limits_are_the_real_ones(ingest: Ingest, client: Ietf) -> None:
    """What OPTIONS allows is taken, and one byte more is not."""
    largest = limits_of(client.ask("OPTIONS", COLLECTION))["max-size"]
    assert client.post(b"", {"Upload-Length": str(largest)}).status == 201
    before = snapshot(ingest.data_dir)
    assert client.post(b"", {"Upload-Length": str(largest + 1)}).status == 413
    assert snapshot(ingest.data_dir) == before


def test_item_122_limits_do_not_tighten(client: Ietf) -> None:
    """From answer to answer the size stays, and the end of life never moves closer."""
    answers, ends = [client.post(b"hello", {"Upload-Length": "20"})], []
    path = path_of(answers[0])
    for at in (5, 10):
        answers += [client.head(path), client.append(path, at, b"hello")]
    for answer in answers:
        limits = limits_of(answer)
        ends.append(time.time() + limits["max-age"])
        assert limits["max-size"] == LARGEST
    assert all(late > early - 2 for early, late in pairwise(ends))


@pytest.mark.parametrize("interop", [6, 8, None])
def test_item_124_refusals_tell_the_limit(ingest: Ingest, interop: int | None) -> None:
    """What is over the limit is refused with the limit, before a byte of it is read."""
    client = Ietf(ingest.service.port, interop)
    before = snapshot(ingest.data_dir)
    declared = {"Upload-Length": str(LARGEST + 1)}
    body = {"Content-Length": str(LARGEST + 1)}
    for headers in (
        {**client.told(False), **declared},
        {**client.told(True), **body},
        {**client.told(False), **body},
        {**client.told(True), **body, "Expect": "100-continue"},
    ):
        with client.begin("POST", COLLECTION, headers) as one:
            answer = one.read()
        assert answer.status == 413
        assert answer.interim == ()
        assert limits_of(answer)["max-size"] == LARGEST
        assert not client.is_complete(answer)
    assert snapshot(ingest.data_dir) == before


def test_item_123_chunked_body_over_the_limit(start_ingest: Starter) -> None:
    """A body of unknown length is stopped at the limit, and its upload ends."""
    ingest = start_ingest(UPLOAD_MAX_FILE_SIZE="1000")
    client = Ietf(ingest.service.port)
    framing = {"Transfer-Encoding": "chunked", **client.told(True)}
    with client.begin("POST", COLLECTION, framing, chunk(b"x" * 2000)) as one:
        path = path_of(one.read_interim_answer())
        answer = one.read()
    assert answer.status == 413
    assert limits_of(answer) == {"max-size": 1000}
    assert client.head(path).status == 410


@pytest.mark.parametrize("interop", VERSIONS)
def test_item_132_completeness_in_every_answer(ingest: Ingest, interop: int | None) -> None:
    """Each answer to a creation says whether it is that of a complete upload."""
    client = Ietf(ingest.service.port, interop)
    answers = [
        client.post(b"hello", complete=True),
        client.post(b"hello"),
        client.post(b"hello", {"Upload-Length": "3"}),
        client.post(b"hello", {"Content-Encoding": "br"}),
        client.post(b"hello", {"Upload-Length": str(LARGEST + 1)}),
        client.post(b"hello", {"Expect": "tea"}),
    ]
    assert [answer.status for answer in answers] == [201, 201, 400, 415, 413, 417]
    told = [client.is_complete(answer) for answer in answers]
    assert told == [True, False, False, False, False, False]


@pytest.mark.parametrize("how", ["fin", "rst", "half-close"])
def test_item_133_interrupted_creation(ingest: Ingest, client: Ietf, how: str) -> None:
    """What arrived of a first body is kept; it is not complete, and can be continued."""
    content = os.urandom(300_000)
    headers = {**client.told(True), "Content-Length": str(len(content))}
    with client.begin("POST", COLLECTION, headers, content[:200_000]) as one:
        path = path_of(one.read_interim_answer())
        one.cut(how)  # type: ignore[arg-type]
        wait_for_offset(ingest.tus, path, 1 if how == "rst" else 200_000)
    head = client.head(path)
    assert not client.is_complete(head)
    at = int(head.headers["Upload-Offset"])
    assert 0 < at <= 200_000
    assert client.append(path, at, content[at:], complete=True).status == 201
    assert blob(ingest.data_dir, path) == content
    completed_once(ingest.redis, path)


def test_item_134_metadata_of_the_file(ingest: Ingest, client: Ietf) -> None:
    """Name and type come with the first request, and only then."""
    path = client.create(
        b"hello",
        {
            "Content-Type": "Text/Plain; charset=x",
            "Content-Disposition": "inline; filename=\"n.txt\"; filename*=UTF-8''n%C3%A4.txt",
        },
    )
    later = {"Content-Disposition": "inline; filename=other"}
    assert client.append(path, 5, b"", later).status == 204
    facts = sidecar(ingest.data_dir, path).facts
    assert (facts.filename, facts.content_type) == ("nä.txt", "text/plain")


@pytest.mark.parametrize(
    ("headers", "name", "kind"),
    [
        ({"Content-Disposition": "inline; filename*=UTF-8''a%0d%0ab"}, "ab", ""),
        ({"Content-Disposition": 'inline; filename="broken'}, "", ""),
        ({"Content-Disposition": 'inline; filename="\xff\xfe"'}, "", ""),
        ({"Content-Type": "no type"}, "", ""),
        ({"Content-Type": "text/\xff"}, "", ""),
        ({"Content-Type": "application/partial-upload"}, "", ""),
        ({"Upload-Metadata": metadata(filename="t.bin", filetype="a/b")}, "t.bin", "a/b"),
        ({"Upload-Metadata": "filename !!!"}, "", ""),
    ],
)
def test_item_134_metadata_that_cannot_be_read(
    ingest: Ingest, client: Ietf, headers: Mapping[str, str], name: str, kind: str
) -> None:
    """What cannot be read of name and type is left out; what tus-js-client sends is taken."""
    facts = sidecar(ingest.data_dir, client.create(b"hello", headers)).facts
    assert (facts.filename, facts.content_type) == (name, kind)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "identity, br"},
        {"Content-Type": "multipart/form-data; boundary=x"},
    ],
)
@pytest.mark.parametrize("complete", [True, False, None])
def test_item_134_bodies_that_are_no_file(
    ingest: Ingest, client: Ietf, headers: Mapping[str, str], complete: bool | None
) -> None:
    """A compressed body or a form would become a file that nobody can use."""
    before = snapshot(ingest.data_dir)
    told = {} if complete is None else client.told(complete)
    answer = client.ask("POST", COLLECTION, {**told, **headers}, b"\x1f\x8bhello")
    assert answer.status == 415
    if "Content-Type" in headers:
        assert "/v1/upload/file" in problem_of(answer)["detail"]
    assert snapshot(ingest.data_dir) == before


# Conventional uploads.


@pytest.mark.parametrize("chunked", [False, True])
def test_item_136_conventional_upload(ingest: Ingest, chunked: bool) -> None:
    """A POST that says nothing of resuming stores its body as a file."""
    client = Ietf(ingest.service.port, None)
    headers = {
        "Content-Type": "text/csv",
        "Content-Disposition": 'attachment; filename="a.csv"',
        **({"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": "11"}),
    }
    body = b"hello world"
    framed = chunk(body) + chunk(b"") if chunked else body
    with client.begin("POST", COLLECTION, headers, framed) as one:
        answer = one.read()
    assert (answer.status, answer.interim) == (201, ())
    assert not {"Upload-Complete", "Upload-Offset", "Tus-Resumable"} & set(answer.headers)
    path = file_of(answer)
    facts = sidecar(ingest.data_dir, path).facts
    assert (facts.filename, facts.content_type, facts.size) == ("a.csv", "text/csv", 11)
    assert blob(ingest.data_dir, path) == body
    completed_once(ingest.redis, path)


def test_item_136_conventional_upload_is_all_or_nothing(ingest: Ingest) -> None:
    """Nobody could continue it, so nothing stays of one that is cut."""
    client = Ietf(ingest.service.port, None)
    known = set(ingest.data_dir.joinpath("blobs").rglob("*.part"))

    def new() -> set[Path]:
        return set(ingest.data_dir.joinpath("blobs").rglob("*.part")) - known

    headers = {"Content-Type": "text/plain", "Content-Length": "100000"}
    with client.begin("POST", COLLECTION, headers, b"x" * 50_000) as one:
        wait_until(lambda: any(part.stat().st_size for part in new()), "bytes are there")
        (part,) = new()
        one.cut("fin")
        no_file_is_left(ingest.data_dir, f"/{part.stem}")
    kinds = [type(event).__name__ for event in lifecycle(ingest.redis.url, f"/{part.stem}")]
    assert kinds == ["UploadCreated", "UploadCancelled"]


def test_item_136_pages_of_others_cannot_upload(ingest: Ingest) -> None:
    """A browser asks nobody before it posts plain text for a page, so the answer is no."""
    client = Ietf(ingest.service.port, None)
    before = snapshot(ingest.data_dir)
    page = {"Content-Type": "text/plain", "Origin": "https://evil.example"}
    assert client.ask("POST", COLLECTION, page, b"hello").status == 403
    assert snapshot(ingest.data_dir) == before
    own = {**page, "Host": f"127.0.0.1:{client.port}"}
    own["Origin"] = f"http://{own['Host']}"
    assert client.ask("POST", COLLECTION, own, b"hello").status == 201


def test_item_136_nothing_to_store(ingest: Ingest) -> None:
    """A POST without any content is taken for tus without its version, and changes nothing."""
    before = snapshot(ingest.data_dir)
    answer = Ietf(ingest.service.port, None).ask("POST", COLLECTION)
    assert answer.status == 412
    assert answer.headers["Tus-Version"] == "1.0.0"
    assert snapshot(ingest.data_dir) == before


def test_item_131_locations_of_one_request_are_the_same(client: Ietf) -> None:
    """Interim and final answer to a part name the same upload."""
    headers = {**client.told(False), "Content-Length": "5"}
    with client.begin("POST", COLLECTION, headers, b"hello") as one:
        interim, final = one.read_interim_answer(), one.read()
    assert interim.headers["Location"] == final.headers["Location"]


def test_item_171_answers_carry_no_version_of_tus(client: Ietf) -> None:
    """Answers in one protocol do not speak of the other."""
    created = client.post(b"hello")
    path = path_of(created)
    for answer in (created, client.head(path), client.append(path, 9), client.delete(path)):
        assert "Tus-Resumable" not in answer.headers


# Two protocols on one upload.


def test_tus_looks_at_an_upload_of_the_other_protocol(ingest: Ingest, client: Ietf) -> None:
    """HEAD, GET and DELETE of tus work on any upload."""
    path = client.create(b"hello")
    head = ingest.tus.head(path)
    assert (head.status, head.headers["Upload-Offset"]) == (200, "5")
    assert head.headers["Upload-Defer-Length"] == "1"
    assert ingest.tus.ask("GET", path, {}).status == 204
    assert ingest.tus.delete(path).status == 204
    assert client.head(path).status == 404


def test_tus_cannot_continue_an_upload_of_the_other_protocol(
    ingest: Ingest, client: Ietf
) -> None:
    """tus would complete it by its length, which its own client may not mean."""
    path = client.create(b"hello", {"Upload-Length": "10"})
    answer = ingest.tus.patch(path, 5, b"world")
    assert answer.status == 403
    assert blob(ingest.data_dir, path) == b"hello"
    client.append(path, 5, b"world")
    assert ingest.tus.offset(path) == 10  # which completes an upload of tus
    assert not client.is_complete(client.head(path))


def test_an_upload_of_tus_cannot_be_continued_in_the_other_protocol(
    ingest: Ingest, client: Ietf
) -> None:
    """The other way round it is refused too; looking and cancelling work."""
    path = ingest.tus.create(10)
    with ingest.tus.begin_patch(path, 0, 10, b"hello") as one:
        wait_for_offset(ingest.tus, path, 5)
        answer = client.append(path, 5, b"world", complete=True)
        assert answer.status == 403
        assert problem_of(answer)["error_code"] == "PROTOCOL_MISMATCH"
        one.send(b"world")  # it was not even disturbed
        assert one.read().status == 204
    head = client.head(path)
    assert client.is_complete(head)
    assert head.headers["Upload-Length"] == "10"
    assert client.delete(path).status == 204
    assert ingest.tus.head(path).status == 404


def test_item_169_version_of_tus_wins(ingest: Ingest) -> None:
    """A request that names a version of tus is tus, whatever else it says."""
    client = Ietf(ingest.service.port)
    answer = client.ask("POST", COLLECTION, {**TUS, **client.told(True)}, b"hello")
    assert answer.status == 400  # no length
    assert answer.headers["Tus-Resumable"] == "1.0.0"
    path = ingest.tus.create(5)
    answer = client.ask(
        "PATCH", path, {**CHUNK, "Upload-Offset": "0", **client.told(False)}, b"hello"
    )
    assert answer.status == 204
    completed_once(ingest.redis, path)


def test_method_override(client: Ietf) -> None:
    """Clients that cannot send PATCH or DELETE name them, in this protocol too."""
    path = client.create(b"hello")
    said = {**client.append_headers(5, False), "X-HTTP-Method-Override": "PATCH"}
    assert client.ask("POST", path, said, b"world").status == 204
    assert client.ask("POST", path, {"X-HTTP-Method-Override": "DELETE"}).status == 204
    assert client.head(path).status == 404


def test_answers_keep_the_connection(client: Ietf) -> None:
    """A whole upload, with its refusals, fits on one connection."""
    with Connection(client.port) as one:
        told = {"Upload-Draft-Interop-Version": "8", **client.told(False)}
        one.request("POST", COLLECTION, told, b"hello")
        path = path_of(one.read())
        part = {**told, "Content-Type": "application/partial-upload"}
        for offset, status in (("4", 409), ("5", 204), ("5", 409), ("10", 204)):
            one.request("PATCH", path, {**part, "Upload-Offset": offset}, b"world")
            assert one.read().status == status
        one.send(head_of("HEAD", path, {}))
        assert one.read(no_body=True).headers["Upload-Offset"] == "15"
