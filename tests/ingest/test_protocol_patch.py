"""PATCH of tus 1.0.0 over real sockets, item by item: which bytes are taken, and kept."""

from __future__ import annotations

import os
import time

import pytest

from tests.ingest.conftest import Ingest, Starter
from tests.ingest.evidence import blob, completed_once, snapshot
from tests.ingest.tus_client import CHUNK, TUS, Tus, unknown, wait_for_offset
from tests.ingest.wire import Connection, Cut, chunk, head_of


def test_item_019_bytes_are_applied_at_the_offset(ingest: Ingest) -> None:
    """Pieces follow one another, whatever their sizes."""
    tus, content = ingest.tus, os.urandom(100_000)
    path = tus.create(len(content))
    pieces = [content[:1], content[1:2], content[2:70_000], content[70_000:]]
    assert tus.many_patches(path, pieces) == len(content)
    assert blob(ingest.data_dir, path) == content


@pytest.mark.parametrize(
    "declared", ["text/plain", "", "application/octet-stream", "application/offset", None]
)
def test_item_020_other_types_are_refused(tus: Tus, declared: str | None) -> None:
    """A PATCH of another type, or of none, gets 415, and nothing is written."""
    path = tus.create(10)
    headers = {**TUS, "Upload-Offset": "0"}
    if declared is not None:
        headers["Content-Type"] = declared
    assert tus.ask("PATCH", path, headers, b"hello").status == 415
    assert tus.offset(path) == 0


@pytest.mark.parametrize(
    "declared",
    ["Application/Offset+Octet-Stream", "application/offset+octet-stream; charset=x"],
)
def test_item_020_type_in_other_words(tus: Tus, declared: str) -> None:
    """Case and parameters of the type do not matter."""
    path = tus.create(5)
    assert tus.patch(path, 0, b"hello", {"Content-Type": declared}).status == 204


def test_item_021_patch_goes_on_at_the_end(ingest: Ingest) -> None:
    """Of many offsets, only the one where the upload ends is taken."""
    tus = ingest.tus
    path = tus.create(6)
    tus.patch(path, 0, b"abc")
    taken = [tus.patch(path, offset, b"x").status for offset in (2, 4, 3, 3)]
    assert taken == [409, 409, 204, 409]
    assert blob(ingest.data_dir, path) == b"abcx"


@pytest.mark.parametrize("offset", [0, 1, 299, 301, 600, 10**17])
def test_item_022_wrong_offset_changes_nothing(ingest: Ingest, offset: int) -> None:
    """A PATCH at any other offset than the upload's gets 409, and changes nothing."""
    tus = ingest.tus
    path = tus.create(600)
    tus.patch(path, 0, b"x" * 300)
    before = snapshot(ingest.data_dir)
    for body in (b"", b"y", b"y" * 300, b"y" * 100_000):
        assert tus.patch(path, offset, body).status == 409
    assert snapshot(ingest.data_dir) == before
    assert tus.offset(path) == 300


def test_item_023_offset_is_needed(tus: Tus) -> None:
    """A PATCH without an offset is refused."""
    path = tus.create(5)
    assert tus.ask("PATCH", path, CHUNK, b"hello").status == 400
    assert tus.offset(path) == 0


def test_item_024_patch_tells_the_new_offset(tus: Tus) -> None:
    """A PATCH succeeds with 204 and the offset that follows its bytes."""
    path = tus.create(6)
    for offset in range(6):
        answer = tus.patch(path, offset, b"x")
        assert (answer.status, answer.headers["Upload-Offset"]) == (204, str(offset + 1))
        assert answer.body == b""


def test_item_025_unknown_upload_takes_no_bytes(ingest: Ingest) -> None:
    """A PATCH to an unknown upload gets 404 and creates nothing."""
    before = snapshot(ingest.data_dir)
    assert ingest.tus.patch(unknown(), 0, b"hello").status == 404
    assert snapshot(ingest.data_dir) == before


def test_item_026_silence_ends_the_request(start_ingest: Starter) -> None:
    """A client that falls silent gets 408 and its connection is closed; its bytes are kept."""
    tus = start_ingest(UPLOAD_IDLE_TIMEOUT="0.4").tus
    path = tus.create(1000)
    started = time.monotonic()
    with tus.begin_patch(path, 0, 1000, b"x" * 10) as silent:
        answer = silent.read()
        assert 0.4 <= time.monotonic() - started < 5
        assert (answer.status, answer.headers["Upload-Offset"]) == (408, "10")
        assert answer.headers["Connection"] == "close"
        started = time.monotonic()
        assert tus.patch(path, 10, b"y" * 990).status == 204
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("how", ["fin", "rst", "half-close"])
@pytest.mark.parametrize("chunked", [False, True])
def test_item_027_bytes_before_a_cut_are_kept(ingest: Ingest, how: Cut, chunked: bool) -> None:
    """When the connection ends early, all bytes that arrived are kept, and only they."""
    tus, content = ingest.tus, os.urandom(300_000)
    path = tus.create(1_000_000)
    framed = chunk(content[:200_000]) + chunk(content[200_000:] + b"late")[:-6]
    with tus.begin_patch(path, 0, None if chunked else 1_000_000) as one:
        one.send(framed if chunked else content)
        wait_for_offset(tus, path, 300_000)
        one.cut(how)
        assert tus.offset(path) == 300_000
    assert blob(ingest.data_dir, path) == content


def test_item_027_cut_at_once(ingest: Ingest) -> None:
    """A client that closes right after sending loses nothing of what it sent."""
    tus, content = ingest.tus, os.urandom(3_000_000)
    path = tus.create(5_000_000)
    with tus.begin_patch(path, 0, 5_000_000, content) as one:
        one.cut("fin")
    wait_for_offset(tus, path, 3_000_000)
    assert tus.offset(path) == 3_000_000
    assert blob(ingest.data_dir, path) == content


def test_item_028_many_small_patches(ingest: Ingest) -> None:
    """Hundreds of small PATCHes on one connection make one upload."""
    content = os.urandom(300 * 1024)
    path = ingest.tus.create(len(content))
    pieces = [content[at : at + 1024] for at in range(0, len(content), 1024)]
    assert ingest.tus.many_patches(path, pieces) == len(content)
    assert blob(ingest.data_dir, path) == content


def test_item_029_known_to_be_too_long(ingest: Ingest) -> None:
    """A PATCH whose Content-Length passes the end gets 413, and nothing is written."""
    path = ingest.tus.create(10)
    ingest.tus.patch(path, 0, b"hello")
    before = snapshot(ingest.data_dir)
    assert ingest.tus.patch(path, 5, b"123456").status == 413
    assert snapshot(ingest.data_dir) == before


def test_item_029_found_to_be_too_long(ingest: Ingest) -> None:
    """A chunked PATCH that passes the end gets 413; the bytes up to the end are kept."""
    tus = ingest.tus
    path = tus.create(10)
    with tus.begin_patch(path, 0, None, chunk(b"0123456789 and more") + chunk(b"")) as one:
        assert one.read().status == 413
    assert tus.offset(path) == 10
    assert blob(ingest.data_dir, path) == b"0123456789"


def test_item_030_empty_patch(tus: Tus) -> None:
    """An empty PATCH at the right offset succeeds and changes nothing."""
    path = tus.create(10)
    tus.patch(path, 0, b"hello")
    answer = tus.patch(path, 5)
    assert (answer.status, answer.headers["Upload-Offset"]) == (204, "5")


def test_item_031_empty_patch_on_a_finished_upload(ingest: Ingest) -> None:
    """Repeating the end of a finished upload succeeds, and finishes nothing twice."""
    tus = ingest.tus
    path = tus.create(5)
    tus.patch(path, 0, b"hello")
    for _ in range(3):
        answer = tus.patch(path, 5)
        assert (answer.status, answer.headers["Upload-Offset"]) == (204, "5")
    assert tus.patch(path, 5, b"!").status == 413
    assert tus.patch(path, 0, b"hello").status == 409
    completed_once(ingest.redis, path)


def test_item_032_chunked_body(ingest: Ingest) -> None:
    """A body without a length is taken."""
    path = ingest.tus.create(10)
    framed = b"".join(chunk(piece) for piece in (b"h", b"ello", b"world", b""))
    with ingest.tus.begin_patch(path, 0, None, framed) as one:
        assert one.read().headers["Upload-Offset"] == "10"
    assert blob(ingest.data_dir, path) == b"helloworld"


def test_item_032_client_of_http_10(tus: Tus) -> None:
    """A client of HTTP/1.0 is served, and its connection closed."""
    path = tus.create(5)
    headers = {**CHUNK, "Upload-Offset": "0", "Content-Length": "5"}
    with Connection(tus.port) as one:
        one.send(head_of("PATCH", path, headers).replace(b"HTTP/1.1", b"HTTP/1.0"), b"hello")
        assert one.read().headers["Upload-Offset"] == "5"
        assert one.is_closed_by_server()


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "identity, gzip"])
def test_item_033_compressed_bodies_are_refused(tus: Tus, coding: str) -> None:
    """A compressed body gets 415, and is neither stored nor unpacked."""
    path = tus.create(100)
    assert tus.patch(path, 0, b"\x1f\x8b\x08", {"Content-Encoding": coding}).status == 415
    assert tus.offset(path) == 0
