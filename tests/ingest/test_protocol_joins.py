"""Concatenation of tus 1.0.0, item by item: what is told of a join, and what is refused."""

from __future__ import annotations

import time

from services.ingest.location import COLLECTION
from shared.events import LifecycleEvent, UploadFailed
from shared.sidecar import new_id
from tests.ingest.conftest import LARGEST, Ingest, Starter
from tests.ingest.evidence import (
    lifecycle,
    no_file_is_left,
    snapshot,
)
from tests.ingest.parts import PARTIAL, held, join, joined, part
from tests.ingest.system_calls import injecting
from tests.ingest.tus_client import TUS, Tus, id_of, path_of, unknown
from tests.processes import wait_until


def test_item_098_no_offset_before_the_join(ingest: Ingest) -> None:
    """A client would take an upload that is still to be joined for one to be continued."""
    tus = ingest.tus
    first = part(tus, b"hello", 2)
    path = path_of(join(tus, first))
    with held(ingest, path):
        tus.patch(first, 2, b"llo")
        started = time.monotonic()
        waiting = tus.head(path)
        assert time.monotonic() - started < 4
        assert waiting.status == 200
        assert "Upload-Offset" not in waiting.headers
        assert "Upload-Expires" in waiting.headers
    wait_until(lambda: "Upload-Offset" in tus.head(path).headers, "the parts are joined")
    after = tus.head(path).headers
    assert after["Upload-Offset"] == after["Upload-Length"] == "5"


def test_item_099_head_of_a_partial(tus: Tus) -> None:
    """A client could not resume a part."""
    path = part(tus, b"hello", 2)
    assert tus.offset(path) == 2
    tus.patch(path, 2, b"llo")
    assert tus.offset(path) == 5


def test_item_100_head_tells_what_it_is(tus: Tus) -> None:
    """A client could not tell a part from a file, nor learn a length that is known."""
    first, second = part(tus, b"hello", 2), part(tus, b"world")
    head = tus.head(first).headers
    assert (head["Upload-Concat"], head["Upload-Length"]) == ("partial", "5")
    value = f"final;http://127.0.0.1{first}  {second}"
    path = path_of(tus.post({"Upload-Concat": value}))
    head = tus.head(path).headers
    assert (head["Upload-Concat"], head["Upload-Length"]) == (value, "10")
    tus.patch(first, 2, b"llo")
    joined(tus, path)
    assert tus.head(path).headers["Upload-Concat"] == value
    assert "Upload-Concat" not in tus.head(tus.create(5)).headers


def test_item_100_length_that_nobody_knows_yet(tus: Tus) -> None:
    """A final upload of parts without a length would claim one, or that it is deferred."""
    first = tus.create(None, PARTIAL)
    path = path_of(join(tus, first))
    head = tus.head(path).headers
    assert not {"Upload-Length", "Upload-Defer-Length", "Upload-Offset"} & set(head)
    tus.patch(first, 0, b"hello", {"Upload-Length": "5"})
    joined(tus, path)
    assert tus.head(path).headers["Upload-Length"] == "5"


def foreign_urls(path: str) -> list[str]:
    """Return URLs that are not those of an upload here, though they resemble one."""
    return [
        *(
            "../../etc/passwd",
            "/etc/passwd",
            "..%2f..%2fetc%2fpasswd",
            f"{path}/..",
            f"{path}/",
        ),
        *(f"{COLLECTION}/../uploads/{id_of(path)}", f"{path}?x", f"{path}#x", f"/x{path}"),
        *(f"http://evil.example{path}", f"//evil.example{path}", f"http://127.0.0.1:1{path}"),
        *(f"http://127.0.0.1@evil.example{path}", f"ftp://127.0.0.1{path}", f"file://{path}"),
        *(f"http://[{path}", path.upper(), COLLECTION, "\x80", "x", f"javascript:{path}"),
    ]


def test_item_101_foreign_urls(ingest: Ingest) -> None:
    """A URL would be read as a path, or fetched, or taken for another upload's."""
    path = part(ingest.tus, b"hello")
    before = snapshot(ingest.data_dir)
    for url in foreign_urls(path):
        assert join(ingest.tus, path, url).status == 400, url
    assert snapshot(ingest.data_dir) == before


def test_item_101_what_cannot_be_joined(ingest: Ingest) -> None:
    """What is no part, or is gone, would become part of a file."""
    tus = ingest.tus
    first, file, gone = part(tus, b"hello"), tus.create(0), part(tus, b"hi")
    tus.delete(gone)
    final = path_of(join(tus, first))
    no_file_is_left(ingest.data_dir, gone)
    before = snapshot(ingest.data_dir)
    for other, status in {unknown(): 404, gone: 404, file: 400, final: 400}.items():
        assert join(tus, first, other).status == status
    assert snapshot(ingest.data_dir) == before


def test_item_101_too_many(ingest: Ingest) -> None:
    """A list without an end would be looked up, one upload after the other."""
    before = snapshot(ingest.data_dir)
    assert join(ingest.tus, *[f"{COLLECTION}/{new_id()}"] * 10_001).status == 400
    assert snapshot(ingest.data_dir) == before


def test_item_101_part_is_deleted_meanwhile(ingest: Ingest) -> None:
    """A final upload whose part is gone would wait for ever, or be joined without it."""
    tus = ingest.tus
    first, second = part(tus, b"hello"), part(tus, b"world", 2)
    path = path_of(join(tus, first, second))
    tus.delete(first)
    tus.patch(second, 2, b"rld")
    wait_until(lambda: tus.head(path).status == 404, "the final upload has failed")

    def last() -> LifecycleEvent:
        return lifecycle(ingest.redis.url, path)[-1]

    wait_until(lambda: isinstance(last(), UploadFailed), "the failure is told")
    failure = last()
    assert isinstance(failure, UploadFailed)
    assert failure.error_code == "PART_MISSING"


def test_item_102_too_large(ingest: Ingest) -> None:
    """Parts that are small enough would be joined to more than an upload may have."""
    tus = ingest.tus
    half = tus.create(LARGEST // 2 + 1, PARTIAL)
    before = snapshot(ingest.data_dir)
    answer = join(tus, half, half)
    assert (answer.status, answer.headers["Tus-Max-Size"]) == (413, str(LARGEST))
    assert snapshot(ingest.data_dir) == before


def test_item_102_found_to_be_too_large(start_ingest: Starter) -> None:
    """Parts whose length comes later would be joined to more than an upload may have."""
    ingest = start_ingest(UPLOAD_MAX_FILE_SIZE="1000")
    tus = ingest.tus
    first = tus.create(None, PARTIAL)
    path = path_of(join(tus, first, first))
    tus.patch(first, 0, b"x" * 501, {"Upload-Length": "501"})
    wait_until(lambda: tus.head(path).status == 404, "the final upload has failed")


def test_item_102_delete_before_the_join(ingest: Ingest) -> None:
    """A final upload that was given up would be joined all the same."""
    tus = ingest.tus
    first = part(tus, b"hello", 2)
    path = path_of(join(tus, first))
    assert tus.delete(path).status == 204
    tus.patch(first, 2, b"llo")
    assert tus.head(path).status == 404
    assert tus.ask("GET", path, TUS).status == 404
    no_file_is_left(ingest.data_dir, path)


def test_item_102_slow_join(mortal: Ingest) -> None:
    """A client would wait, until it gives up, for a join that takes long."""
    tus = mortal.tus
    first = part(tus, b"hello")
    file = mortal.data_dir / "blobs" / id_of(first)[:2] / id_of(first)
    with injecting(mortal.service.pid, "copy_file_range", file, "delay_enter=9s"):
        started = time.monotonic()
        path = path_of(join(tus, first))
        assert 4 < time.monotonic() - started < 8.5
        assert "Upload-Offset" not in tus.head(path).headers
        joined(tus, path)
    assert tus.offset(path) == 5


def test_item_102_join_is_refused_by_the_disk(mortal: Ingest) -> None:
    """A client would be told of a file that the disk has no room for."""
    tus = mortal.tus
    first = part(tus, b"hello")
    before = snapshot(mortal.data_dir)
    file = mortal.data_dir / "blobs" / id_of(first)[:2] / id_of(first)
    with injecting(mortal.service.pid, "copy_file_range", file, "error=ENOSPC"):
        assert join(tus, first).status == 507
    assert snapshot(mortal.data_dir) == before
    assert tus.offset(path_of(join(tus, first))) == 5
