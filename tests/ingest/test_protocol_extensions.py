"""The extensions of tus 1.0.0 over real sockets, item by item of the conformance list.

Checksum and concatenation (items 77 to 84 and 89 to 102) are not spoken; ``test_item_008`` in
``test_protocol.py`` sees to it that they are not announced.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin, urlsplit

import pytest

from services.ingest.location import COLLECTION
from shared.events import UploadCompleted
from shared.sidecar import new_id
from tests.ingest.conftest import LARGEST, Ingest, Starter
from tests.ingest.evidence import (
    blob,
    completed_once,
    files_of,
    lifecycle,
    no_file_is_left,
    sidecar,
    snapshot,
)
from tests.ingest.tus_client import CHUNK, TUS, Tus, metadata, unknown, wait_for_offset
from tests.ingest.wire import Answer, Connection, chunk, head_of
from tests.processes import ServiceProcess, running, wait_until


@pytest.fixture
def tus(ingest: Ingest) -> Tus:
    """A client of the shared process."""
    return ingest.tus


def extensions(tus: Tus) -> list[str]:
    """Return what is announced."""
    return tus.ask("OPTIONS", COLLECTION, {}).headers["Tus-Extension"].split(",")


# Creation.


@pytest.mark.parametrize(
    "name",
    [
        *("creation", "creation-with-upload", "creation-defer-length"),
        *("termination", "expiration"),
    ],
)
def test_items_043_059_066_072_085_extension_is_listed(tus: Tus, name: str) -> None:
    """Each extension that works is announced, once."""
    assert extensions(tus).count(name) == 1


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Upload-Length": "5", "Upload-Defer-Length": "1"},
        {"Upload-Defer-Length": "0"},
        {"Upload-Defer-Length": "2"},
        {"Upload-Defer-Length": "true"},
        {"Upload-Defer-Length": ""},
        {"Upload-Length": "5", "Upload-Concat": "partial"},
    ],
)
def test_items_044_045_one_statement_of_length(ingest: Ingest, headers: dict[str, str]) -> None:
    """Neither length nor deferral, both, or a wrong deferral gets 400 and opens nothing."""
    before = snapshot(ingest.data_dir)
    assert ingest.tus.post(headers).status == 400
    assert snapshot(ingest.data_dir) == before


@pytest.mark.parametrize(
    ("headers", "base"),
    [
        ({}, "http://127.0.0.1"),
        ({"Host": "127.0.0.1:1234"}, "http://127.0.0.1:1234"),
        ({"Host": "localhost"}, "http://localhost"),
        ({"X-Forwarded-Host": "evil.example"}, "http://127.0.0.1"),
        ({"Forwarded": "host=evil.example;proto=https"}, "http://127.0.0.1"),
    ],
)
def test_item_046_location(tus: Tus, headers: dict[str, str], base: str) -> None:
    """The Location is the URL of the upload as the client sees it; strangers cannot bend it."""
    answer = tus.post({"Upload-Length": "5", **headers})
    assert answer.status == 201
    resolved = urljoin("http://127.0.0.1/api/v1/uploads", answer.headers["Location"])
    assert resolved.startswith(f"{base}{COLLECTION}/")
    assert tus.offset(urlsplit(resolved).path) == 0


def test_item_046_location_behind_an_ingress(start_ingest: Starter) -> None:
    """What a trusted ingress says of the URL is used."""
    tus = start_ingest(TRUSTED_PROXIES="127.0.0.0/8").tus
    told = {
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "up.example:8443",
        "X-Forwarded-Prefix": "/files",
    }
    answer = tus.post({"Upload-Length": "5", **told})
    base = f"https://up.example:8443/files{COLLECTION}/"
    assert answer.headers["Location"].startswith(base)


def test_item_047_begins_at_zero(tus: Tus) -> None:
    """A new upload is at offset 0."""
    assert tus.offset(tus.create(5)) == 0


def test_item_048_empty_upload_is_finished_at_once(ingest: Ingest) -> None:
    """An upload of length 0 is complete when it is created, and completes once."""
    tus = ingest.tus
    path = tus.create(0)
    headers = tus.head(path).headers
    assert (headers["Upload-Offset"], headers["Upload-Length"]) == ("0", "0")
    assert tus.patch(path, 0).status == 204
    assert tus.ask("GET", path, {}).status == 307
    assert blob(ingest.data_dir, path) == b""
    completed_once(ingest.redis, path)


def test_item_049_too_large(ingest: Ingest) -> None:
    """The largest size is taken; one byte more gets 413 with the limit and opens nothing."""
    tus = ingest.tus
    assert tus.post({"Upload-Length": str(LARGEST)}).status == 201
    before = snapshot(ingest.data_dir)
    answer = tus.post({"Upload-Length": str(LARGEST + 1)})
    assert (answer.status, answer.headers["Tus-Max-Size"]) == (413, str(LARGEST))
    assert snapshot(ingest.data_dir) == before


def test_item_050_metadata_is_used(ingest: Ingest) -> None:
    """Name and type of the file are taken from the metadata, all of it is kept."""
    told = metadata(filename="a ä.mp4", filetype="video/mp4", other="x")
    path = ingest.tus.create(5, {"Upload-Metadata": told})
    facts = sidecar(ingest.data_dir, path).facts
    assert (facts.filename, facts.content_type) == ("a ä.mp4", "video/mp4")
    assert facts.metadata["other"] == "x"


BAD_METADATA = [
    *("a YQ==,a Yg==", "a,a", "a YQ=", "a YQ==YQ==", "a  YQ==", "a -_-_", "a,,b"),
    *("\xe4 YQ==", "a \xe4", ",", "a Y Q==", ",".join(f"k{n}" for n in range(33))),
]


@pytest.mark.parametrize("header", BAD_METADATA)
def test_items_051_052_bad_metadata_opens_nothing(ingest: Ingest, header: str) -> None:
    """Metadata that breaks the rules gets 400, and no upload is opened."""
    before = snapshot(ingest.data_dir)
    answer = ingest.tus.post({"Upload-Length": "5", "Upload-Metadata": header})
    assert answer.status == 400
    assert snapshot(ingest.data_dir) == before


@pytest.mark.parametrize("header", ["is_confidential", "is_confidential ", "a YQ==,flag"])
def test_item_053_values_may_be_empty(tus: Tus, header: str) -> None:
    """A key alone is metadata too, with its space or without."""
    assert tus.post({"Upload-Length": "5", "Upload-Metadata": header}).status == 201


def test_item_054_values_reach_no_header(tus: Tus) -> None:
    """A value with line breaks in it adds no header to any answer."""
    evil = metadata(filename="a\r\nSet-Cookie: x=y", filetype="text/plain\r\nX-Evil: 1")
    path = tus.create(0, {"Upload-Metadata": evil})
    for answer in (tus.head(path), tus.ask("GET", path, {})):
        assert "Set-Cookie" not in answer.headers
        assert b"X-Evil" not in answer.raw_head


@pytest.mark.parametrize(
    "header",
    [
        "b Yg==,a YQ==",
        "a YQ==, b Yg==",
        "flag,a YQ==",
        "flag ,a YQ==",
        metadata(filename="ä", **{"x-y_z.1": "v" * 500}),
        "raw " + base64.b64encode(b"\xff\xfe").decode(),
    ],
)
def test_item_055_metadata_comes_back_as_it_was(tus: Tus, header: str) -> None:
    """HEAD gives the metadata byte for byte, before and after completion."""
    path = tus.create(2, {"Upload-Metadata": header})
    assert tus.head(path).headers["Upload-Metadata"] == header
    tus.patch(path, 0, b"hi")
    assert tus.head(path).headers["Upload-Metadata"] == header


@pytest.mark.parametrize("header", ["", " "])
def test_item_056_empty_metadata_counts_as_none(tus: Tus, header: str) -> None:
    """An empty header is no metadata."""
    path = tus.create(5, {"Upload-Metadata": header})
    assert "Upload-Metadata" not in tus.head(path).headers


def test_item_056_no_metadata_is_no_header(tus: Tus) -> None:
    """Without metadata HEAD has no such header."""
    assert "Upload-Metadata" not in tus.head(tus.create(5)).headers


@pytest.mark.parametrize("exists", [False, True])
def test_item_058_post_to_an_upload_creates_nothing(ingest: Ingest, exists: bool) -> None:
    """A POST to the URL of an upload is no creation."""
    path = ingest.tus.create(5) if exists else unknown()
    before = snapshot(ingest.data_dir)
    answer = ingest.tus.ask("POST", path, {**TUS, "Upload-Length": "5"})
    assert answer.status == 405
    assert snapshot(ingest.data_dir) == before


def test_item_048_other_bodies_do_not_matter(tus: Tus) -> None:
    """A body of another type changes nothing about an empty upload."""
    path = created(tus.post({"Upload-Length": "0", "Content-Type": "text/plain"}, b"junk"))
    assert tus.ask("GET", path, {}).status == 307


# Creation with a deferred length.


def test_items_060_061_deferral_is_told(tus: Tus) -> None:
    """HEAD says that the length is deferred as long as it is, and not any more after that."""
    path = tus.create(None)
    tus.patch(path, 0, b"hello")
    before = tus.head(path).headers
    assert before["Upload-Defer-Length"] == "1"
    assert "Upload-Length" not in before
    tus.patch(path, 5, b"", {"Upload-Length": "10"})
    after = tus.head(path).headers
    assert after["Upload-Length"] == "10"
    assert "Upload-Defer-Length" not in after


@pytest.mark.parametrize("when", ["first", "last", "empty"])
def test_item_062_length_comes_later(ingest: Ingest, when: str) -> None:
    """The length may come with the first, the last, or an empty PATCH."""
    tus = ingest.tus
    path, told = tus.create(None), {"Upload-Length": "10"}
    tus.patch(path, 0, b"hello", told if when == "first" else {})
    tus.patch(path, 5, b"world", told if when == "last" else {})
    if when == "empty":
        assert "Upload-Length" not in tus.head(path).headers
        assert tus.patch(path, 10, b"", told).status == 204
    completed_once(ingest.redis, path)
    event = lifecycle(ingest.redis.url, path)[-1]
    assert isinstance(event, UploadCompleted)
    assert (event.upload.size, event.offset) == (10, 10)


@pytest.mark.parametrize("deferred", [False, True])
def test_item_063_length_never_changes(ingest: Ingest, deferred: bool) -> None:
    """Once set, the length cannot become another one; saying it again is no error."""
    tus = ingest.tus
    path = tus.create(None if deferred else 10)
    if deferred:
        tus.patch(path, 0, b"", {"Upload-Length": "10"})
    before = snapshot(ingest.data_dir)
    for other in ("9", "11", "0", "-1"):
        assert tus.patch(path, 0, b"hello", {"Upload-Length": other}).status == 400
    assert snapshot(ingest.data_dir) == before
    assert tus.patch(path, 0, b"hello", {"Upload-Length": "10"}).status == 204


def test_item_064_length_fits_what_is_there(ingest: Ingest) -> None:
    """A length below the offset gets 400, above the limit 413; at the offset it completes."""
    tus = ingest.tus
    path = tus.create(None)
    tus.patch(path, 0, b"hello")
    before = snapshot(ingest.data_dir)
    assert tus.patch(path, 5, b"", {"Upload-Length": "4"}).status == 400
    assert tus.patch(path, 5, b"", {"Upload-Length": str(LARGEST + 1)}).status == 413
    assert tus.patch(path, 5, b"world", {"Upload-Length": "8"}).status == 413
    assert snapshot(ingest.data_dir) == before
    assert tus.patch(path, 5, b"", {"Upload-Length": "5"}).status == 204
    completed_once(ingest.redis, path)


@pytest.mark.parametrize("chunked", [False, True])
def test_item_065_deferred_uploads_are_limited(start_ingest: Starter, chunked: bool) -> None:
    """An upload without a length stops at the largest size too."""
    ingest = start_ingest(UPLOAD_MAX_FILE_SIZE="1000")
    tus = ingest.tus
    path = tus.create(None)
    assert tus.patch(path, 0, b"x" * 900).status == 204
    if chunked:
        with tus.begin_patch(path, 900, None, chunk(b"y" * 200) + chunk(b"")) as one:
            assert one.read().status == 413
    else:
        assert tus.patch(path, 900, b"y" * 101).status == 413
    assert tus.offset(path) == (1000 if chunked else 900)
    assert len(blob(ingest.data_dir, path)) <= 1000
    at = tus.offset(path)
    assert tus.patch(path, at, b"z" * (1000 - at), {"Upload-Length": "1000"}).status == 204


# Creation with a first piece.


def created(answer: Answer) -> str:
    """Return the path of the upload that was created."""
    assert answer.status == 201, answer
    return urlsplit(answer.headers["Location"]).path


def test_items_067_068_whole_body(ingest: Ingest) -> None:
    """A POST with all the bytes makes a complete upload, which completes once."""
    answer = ingest.tus.post({**CHUNK, "Upload-Length": "5"}, b"hello")
    assert answer.headers["Upload-Offset"] == "5"
    assert "Upload-Expires" not in answer.headers
    path = created(answer)
    assert blob(ingest.data_dir, path) == b"hello"
    completed_once(ingest.redis, path)


@pytest.mark.parametrize("length", [{"Upload-Length": "9"}, {"Upload-Defer-Length": "1"}])
@pytest.mark.parametrize("body", [b"hello", b""])
def test_items_067_068_first_piece(tus: Tus, length: dict[str, str], body: bytes) -> None:
    """A POST with a first piece, even an empty one, tells the offset that follows it."""
    answer = tus.post({**CHUNK, **length}, body)
    assert answer.headers["Upload-Offset"] == str(len(body))
    path = created(answer)
    last = {"Upload-Length": "9"} if "Upload-Defer-Length" in length else {}
    rest = b"x" * (9 - len(body))
    assert tus.patch(path, len(body), rest, last).headers["Upload-Offset"] == "9"


@pytest.mark.parametrize("declared", ["text/plain", "application/octet-stream", None])
def test_item_067_other_bodies_are_ignored(tus: Tus, declared: str | None) -> None:
    """A POST with a body of another type creates an empty upload."""
    headers = {"Upload-Length": "5"} | ({"Content-Type": declared} if declared else {})
    answer = tus.post(headers, b"hello")
    assert "Upload-Offset" not in answer.headers
    assert tus.offset(created(answer)) == 0


def test_item_069_invitation_follows_the_checks(tus: Tus) -> None:
    """A client that asks is told to send once its request is found good, not before."""
    headers = {
        **CHUNK,
        "Upload-Length": "5",
        "Content-Length": "5",
        "Expect": "100-continue",
    }
    with Connection(tus.port) as one:
        one.send(head_of("POST", COLLECTION, headers))
        assert one.read_interim() == 100
        one.send(b"hello")
        assert one.read().status == 201
        path = tus.create(5)
        patch = {**headers, "Upload-Offset": "0"}
        one.send(head_of("PATCH", path, patch))
        assert one.read_interim() == 100
        one.send(b"hello")
        assert one.read().status == 204


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", {**CHUNK, "Upload-Length": str(LARGEST + 1)}, 413),
        ("POST", {**CHUNK, "Upload-Length": "5"}, 413),  # the body has 100 bytes
        ("POST", {**TUS, "Content-Type": "text/plain", "Upload-Length": "5"}, 201),
        ("PATCH", {**CHUNK, "Upload-Offset": "5"}, 409),
        ("PATCH", {**CHUNK}, 400),
        ("PATCH", {**TUS, "Upload-Offset": "0"}, 415),
        ("PATCH", {"Upload-Offset": "0"}, 412),
        ("PATCH", {**CHUNK, "Upload-Offset": "0"}, 413),
    ],
)
def test_item_069_refused_without_invitation(
    tus: Tus, method: str, headers: dict[str, str], status: int
) -> None:
    """A refusal comes without an invitation, and the connection ends with it."""
    target = COLLECTION if method == "POST" else tus.create(10)
    waiting = {**headers, "Content-Length": "100", "Expect": "100-continue"}
    with Connection(tus.port) as one:
        one.send(head_of(method, target, waiting))
        answer = one.read()
        assert (answer.status, answer.interim) == (status, ())
        assert answer.headers["Connection"] == "close"


def test_item_070_interrupted_creation_expires(start_ingest: Starter) -> None:
    """When a POST is cut, the upload has the bytes so far, and it expires as any other."""
    ingest = start_ingest(UPLOAD_SESSION_TIMEOUT_HOURS="0.0003")
    headers = {**CHUNK, "Upload-Length": "1000", "Content-Length": "1000"}
    with Connection(ingest.service.port) as one:
        one.send(head_of("POST", COLLECTION, headers), b"x" * 100)
        parts = ingest.data_dir / "blobs"
        wait_until(
            lambda: [part.stat().st_size for part in parts.rglob("*.part")] == [100],
            "the bytes are there",
        )
    [part] = parts.rglob("*.part")
    path = f"{COLLECTION}/{part.stem}"
    wait_until(lambda: ingest.tus.head(path).status == 410, "the upload expires", limit_s=10)


def test_item_071_rules_of_patch_hold(ingest: Ingest) -> None:
    """A first piece longer than the upload gets 413; when that is known, nothing is opened."""
    before = snapshot(ingest.data_dir)
    tus = ingest.tus
    assert tus.post({**CHUNK, "Upload-Length": "4"}, b"hello").status == 413
    coded = {**CHUNK, "Upload-Length": "5", "Content-Encoding": "gzip"}
    assert tus.post(coded, b"hello").status == 415
    assert snapshot(ingest.data_dir) == before
    headers = {**CHUNK, "Upload-Length": "4", "Transfer-Encoding": "chunked"}
    assert tus.post(headers, chunk(b"hello") + chunk(b"")).status == 413


# Expiration.


def expiry(answer: Answer) -> float:
    """Return when an answer says that its upload expires."""
    text = answer.headers["Upload-Expires"]
    assert text.endswith(" GMT")
    return parsedate_to_datetime(text).timestamp()


def test_items_073_074_expiry_is_told(tus: Tus) -> None:
    """Creation, PATCH and HEAD tell when an unfinished upload expires, as an HTTP date."""
    creation = tus.post({"Upload-Length": "10"})
    path = created(creation)
    in_a_day = time.time() + 24 * 3600
    for answer in (creation, tus.patch(path, 0, b"hello"), tus.head(path)):
        assert abs(expiry(answer) - in_a_day) < 10
    assert abs(expiry(tus.post({**CHUNK, "Upload-Length": "9"}, b"x")) - in_a_day) < 10


def test_item_073_bytes_extend_the_life(start_ingest: Starter) -> None:
    """Each PATCH with bytes moves the end of an upload's life."""
    tus = start_ingest(UPLOAD_SESSION_TIMEOUT_HOURS="0.01").tus
    creation = tus.post({"Upload-Length": "10"})
    first = expiry(creation)
    time.sleep(1.1)
    assert expiry(tus.patch(created(creation), 0, b"hello")) > first


def test_items_075_076_expired_uploads_are_gone(start_ingest: Starter) -> None:
    """An upload that nobody continued gets 410 and takes no bytes; finished ones stay."""
    ingest = start_ingest(UPLOAD_SESSION_TIMEOUT_HOURS="0.0003")
    tus = ingest.tus
    done = tus.create(0)
    assert "Upload-Expires" not in tus.head(done).headers
    path = tus.create(10)
    tus.patch(path, 0, b"hello")
    wait_until(lambda: tus.head(path).status == 410, "the upload expires", limit_s=10)
    assert "Upload-Offset" not in tus.head(path).headers
    assert tus.patch(path, 5, b"world").status == 410
    assert tus.head(done).status == 200
    assert tus.patch(done, 0).status == 204


# Termination.


@pytest.mark.parametrize("received", [0, 5, 10])
def test_items_085_to_087_delete(ingest: Ingest, received: int) -> None:
    """DELETE ends an upload, finished or not: no file stays, and it is not found any more."""
    tus = ingest.tus
    path = tus.create(10)
    tus.patch(path, 0, b"x" * received)
    answer = tus.delete(path)
    assert (answer.status, answer.body) == (204, b"")
    for again in (tus.head(path), tus.patch(path, received), tus.delete(path)):
        assert again.status == 404
    assert tus.ask("GET", path, {}).status == 404
    no_file_is_left(ingest.data_dir, path)
    kinds = [type(event).__name__ for event in lifecycle(ingest.redis.url, path)]
    end = "FileDeleted" if received == 10 else "UploadCancelled"
    assert kinds[-1] == end
    assert kinds.count(end) == 1


def test_item_088_delete_ends_a_running_patch(ingest: Ingest) -> None:
    """A PATCH that is running when its upload is deleted ends, and writes nothing after."""
    tus = ingest.tus
    path = tus.create(1000)
    with tus.begin_patch(path, 0, 1000, b"x" * 100) as running:
        wait_for_offset(tus, path, 100)
        assert tus.delete(path).status == 204
        assert running.read().status == 423
    no_file_is_left(ingest.data_dir, path)


# Web pages.


@pytest.fixture(scope="module")
def shared_with_pages(
    ingest: Ingest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tus]:
    """A client of a process that allows the pages of one origin."""
    folder = tmp_path_factory.mktemp("pages")
    env = {
        "REDIS_URL": ingest.redis.url,
        "DATA_DIR": str(folder / "data"),
        "CORS_ALLOWED_ORIGINS": PAGE,
        "UPLOAD_MAX_FILE_SIZE": "1000",
    }
    service = ServiceProcess("ingest", env, folder / "log")
    with running(service):
        yield Tus(service.port, {"Origin": PAGE})


PAGE = "https://app.example"


@pytest.mark.parametrize("target", [COLLECTION, f"{COLLECTION}/{new_id()}"])
@pytest.mark.parametrize("method", ["POST", "PATCH", "HEAD", "DELETE", "GET"])
def test_item_103_preflight(shared_with_pages: Tus, target: str, method: str) -> None:
    """A preflight allows every method and header that tus needs, without credentials."""
    asked = {"Access-Control-Request-Method": method}
    answer = shared_with_pages.ask("OPTIONS", target, asked)
    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert method in answer.headers["Access-Control-Allow-Methods"].split(", ")
    allowed = answer.headers["Access-Control-Allow-Headers"].lower().split(", ")
    needed = (
        "Tus-Resumable Upload-Length Upload-Offset Upload-Metadata Upload-Defer-Length "
        "Upload-Concat Upload-Checksum Content-Type X-HTTP-Method-Override "
        "X-Requested-With X-Request-ID Authorization"
    )
    assert set(needed.lower().split()) <= set(allowed)


def test_item_104_answers_are_readable(shared_with_pages: Tus) -> None:
    """Pages can read all headers of tus on every answer, errors included."""
    tus = shared_with_pages
    path = tus.create(5)
    answers = [
        tus.head(path),
        tus.patch(path, 3),
        tus.patch(path, 0, b"too long"),
        tus.ask("PATCH", path, {"Upload-Offset": "0"}),
        tus.post({"Upload-Length": "1001"}),
        tus.head(unknown()),
        tus.ask("PUT", path, TUS),
    ]
    assert [answer.status for answer in answers] == [200, 409, 413, 412, 413, 404, 405]
    needed = (
        "Location Upload-Offset Upload-Length Upload-Metadata Upload-Defer-Length "
        "Upload-Concat Upload-Expires Tus-Version Tus-Resumable Tus-Max-Size Tus-Extension "
        "Tus-Checksum-Algorithm"
    )
    for answer in answers:
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
        assert set(needed.split()) <= set(exposed)


# What other servers get wrong.


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


def test_item_178_statuses_that_clients_understand(tus: Tus) -> None:
    """A PATCH that lost its turn is told so with 423, which clients retry."""
    path = tus.create(100)
    with tus.begin_patch(path, 0, 100, b"x" * 10) as running:
        wait_for_offset(tus, path, 10)
        assert tus.offset(path) == 10
        answer = running.read()
        assert answer.status == 423
        assert b"taken over" in answer.body
