"""Deferred lengths and creation with a first piece, item by item."""

from __future__ import annotations

import pytest

from services.ingest.location import COLLECTION
from shared.events import UploadCompleted
from tests.ingest.conftest import LARGEST, Ingest, Starter
from tests.ingest.evidence import (
    blob,
    completed_once,
    lifecycle,
    snapshot,
)
from tests.ingest.tus_client import CHUNK, TUS, Tus, created, path_of
from tests.ingest.wire import Connection, chunk, head_of
from tests.processes import wait_until


def test_item_059_deferral_is_listed(tus: Tus) -> None:
    """A client would send no file whose size it does not know yet."""
    assert tus.extensions().count("creation-defer-length") == 1


def test_item_060_no_deferral_is_no_header(tus: Tus) -> None:
    """An answer would tell of a deferral where there is none, or in other words than 1."""
    path = tus.create(5)
    assert "Upload-Defer-Length" not in tus.head(path).headers
    deferred = tus.create(None)
    assert tus.head(deferred).headers.getall("Upload-Defer-Length") == ["1"]
    tus.patch(deferred, 0, b"", {"Upload-Length": "10"})
    assert "Upload-Defer-Length" not in tus.head(deferred).headers


def test_item_061_deferral_is_told(tus: Tus) -> None:
    """HEAD says that the length is deferred as long as it is, and tells it after that."""
    path = tus.create(None)
    tus.patch(path, 0, b"hello")
    before = tus.head(path).headers
    assert before["Upload-Defer-Length"] == "1"
    assert "Upload-Length" not in before
    tus.patch(path, 5, b"", {"Upload-Length": "10"})
    assert tus.head(path).headers["Upload-Length"] == "10"


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


def test_item_066_first_piece_is_listed(tus: Tus) -> None:
    """A client would need two requests for a small file; or one, without `creation`."""
    assert tus.extensions().count("creation-with-upload") == 1
    assert "creation" in tus.extensions()


def test_item_067_whole_body(ingest: Ingest) -> None:
    """A POST with all the bytes makes a complete upload, which completes once."""
    answer = ingest.tus.post({**CHUNK, "Upload-Length": "5"}, b"hello")
    assert answer.headers["Upload-Offset"] == "5"
    assert "Upload-Expires" not in answer.headers
    path = created(answer)
    assert blob(ingest.data_dir, path) == b"hello"
    completed_once(ingest.redis, path)


@pytest.mark.parametrize("length", [{"Upload-Length": "9"}, {"Upload-Defer-Length": "1"}])
@pytest.mark.parametrize("body", [b"hello", b""])
def test_item_068_first_piece(tus: Tus, length: dict[str, str], body: bytes) -> None:
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


def test_item_071_refusals_name_the_upload(start_ingest: Starter) -> None:
    """A client whose first piece was refused could not go on with the upload that exists."""
    tus = start_ingest(UPLOAD_IDLE_TIMEOUT="0.4").tus
    headers = {**CHUNK, "Upload-Length": "4", "Transfer-Encoding": "chunked"}
    long = tus.post(headers, chunk(b"hello") + chunk(b""))
    assert (long.status, tus.offset(path_of(long))) == (413, 4)
    silent = tus.post({**CHUNK, "Upload-Length": "9", "Content-Length": "9"}, b"hello")
    assert (silent.status, tus.offset(path_of(silent))) == (408, 5)
