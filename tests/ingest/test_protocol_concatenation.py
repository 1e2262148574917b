"""Concatenation of tus 1.0.0 over real sockets, item by item: what is joined, and when."""

from __future__ import annotations

import os
import time
from email.utils import parsedate_to_datetime
from typing import Final

import pytest

from shared.events import UploadCompleted
from tests.ingest.conftest import Ingest, Starter
from tests.ingest.evidence import (
    blob,
    completed_once,
    digest,
    lifecycle,
    sidecar,
    snapshot,
    tracebacks,
)
from tests.ingest.parts import PARTIAL, held, join, joined, part
from tests.ingest.tus_client import CHUNK, Tus, id_of, metadata, path_of
from tests.processes import wait_until


def test_item_089_concatenation_is_listed(tus: Tus) -> None:
    """Clients would not send in parallel what could be joined."""
    assert tus.extensions().count("concatenation") == 1


def test_item_094_unfinished_is_listed(tus: Tus) -> None:
    """Clients would wait for their parts before they ask for the whole."""
    assert tus.extensions().count("concatenation-unfinished") == 1


def test_item_090_partial_uploads_are_no_files(ingest: Ingest) -> None:
    """A piece would be announced, or offered for download, as if it were a file."""
    tus = ingest.tus
    path = part(tus, b"hello")
    answer = tus.ask("GET", path, {})
    assert (answer.status, answer.headers["Upload-Offset"]) == (204, "5")
    assert "Location" not in answer.headers
    completed_once(ingest.redis, path)
    assert all(event.upload.partial for event in lifecycle(ingest.redis.url, path))
    assert not completions(ingest, path)[0].redirect_url


def completions(ingest: Ingest, *paths: str) -> list[UploadCompleted]:
    """Return the events that tell of a completion."""
    found = [event for path in paths for event in lifecycle(ingest.redis.url, path)]
    return [event for event in found if isinstance(event, UploadCompleted)]


def test_item_090_partial_uploads_need_a_length(ingest: Ingest) -> None:
    """A piece would have another way to its length than an upload."""
    before = snapshot(ingest.data_dir)
    assert ingest.tus.post(PARTIAL).status == 400
    assert snapshot(ingest.data_dir) == before
    deferred = ingest.tus.create(None, PARTIAL)
    assert ingest.tus.patch(deferred, 0, b"hi", {"Upload-Length": "2"}).status == 204
    assert ingest.tus.post({**PARTIAL, **CHUNK, "Upload-Length": "2"}, b"hi").status == 201


def test_item_091_urls_in_every_form(ingest: Ingest) -> None:
    """A client could not join what it names by path, or by the whole URL it was given."""
    tus = ingest.tus
    answers = [tus.post({**PARTIAL, **CHUNK, "Upload-Length": "1"}, b"x") for _ in range(4)]
    urls = [
        answers[0].headers["Location"],
        path_of(answers[1]),
        f"https://127.0.0.1{path_of(answers[2])}",
        id_of(path_of(answers[3])),
    ]
    path = path_of(join(tus, *urls))
    assert tus.offset(path) == 4
    assert sidecar(ingest.data_dir, path).parts == tuple(id_of(path_of(one)) for one in answers)


BAD_CONCAT: Final = [
    *(
        "",
        "whole",
        "Partial",
        "partial;",
        "partial;/a",
        "final",
        "final;",
        "final; ",
        "final /a",
    ),
    *("FINAL;/a", "final:/a", "final;\t"),
]


@pytest.mark.parametrize("value", BAD_CONCAT)
def test_item_091_bad_values_open_nothing(ingest: Ingest, value: str) -> None:
    """A value that says neither would be taken for the one or the other."""
    before = snapshot(ingest.data_dir)
    for length in ({}, {"Upload-Length": "5"}):
        assert ingest.tus.post({"Upload-Concat": value, **length}).status == 400
    assert snapshot(ingest.data_dir) == before


def test_item_091_given_once(ingest: Ingest) -> None:
    """Of two statements one would go unheeded."""
    path = part(ingest.tus, b"hello")
    both = {"Upload-Concat": "partial", "upload-concat": f"final;{path}"}
    before = snapshot(ingest.data_dir)
    assert ingest.tus.post(both).status == 400
    assert snapshot(ingest.data_dir) == before


def test_item_092_order_and_length(ingest: Ingest) -> None:
    """The parts would be joined in another order than they are listed in."""
    tus, a, b = ingest.tus, os.urandom(100_000), os.urandom(70_001)
    first, second = part(tus, a), part(tus, b)
    for paths, content in {
        (first, second): a + b,
        (second, first): b + a,
        (first, first): a + a,
        (second,): b,
    }.items():
        path = path_of(join(tus, *paths))
        assert blob(ingest.data_dir, path) == content
        head = tus.head(path).headers
        assert head["Upload-Length"] == head["Upload-Offset"] == str(len(content))
        completed_once(ingest.redis, path)


def test_item_092_empty_parts(ingest: Ingest) -> None:
    """A part without bytes would keep the others from being joined."""
    tus = ingest.tus
    empty = tus.create(0, PARTIAL)
    path = path_of(join(tus, empty, part(tus, b"hi"), empty))
    assert blob(ingest.data_dir, path) == b"hi"
    nothing = path_of(join(tus, empty))
    assert tus.head(nothing).headers["Upload-Offset"] == "0"
    completed_once(ingest.redis, nothing)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Upload-Length": "5"}, b"", 400),
        ({"Upload-Length": "6"}, b"", 400),
        ({"Upload-Defer-Length": "1"}, b"", 400),
        ({}, b"hello", 403),
        ({"Content-Type": CHUNK["Content-Type"]}, b"hello", 403),
    ],
)
def test_item_093_no_length_and_no_body(
    ingest: Ingest, headers: dict[str, str], body: bytes, status: int
) -> None:
    """A final upload would get a length or bytes besides those of its parts."""
    told = {**headers, "Upload-Concat": f"final;{part(ingest.tus, b'hello')}"}
    before = snapshot(ingest.data_dir)
    assert ingest.tus.post(told, body).status == status
    assert snapshot(ingest.data_dir) == before


def test_item_094_while_parts_come_in(ingest: Ingest) -> None:
    """A final upload would have to wait for its parts, or be joined before they are whole."""
    tus = ingest.tus
    first, second = part(tus, b"hello"), part(tus, b"world", 2)
    answer = join(tus, first, second)
    path = path_of(answer)
    assert "Upload-Offset" not in tus.head(path).headers
    assert tus.ask("GET", path, {}).status == 204
    assert tus.patch(second, 2, b"rld").status == 204
    joined(tus, path)
    assert blob(ingest.data_dir, path) == b"helloworld"
    completed_once(ingest.redis, path)


def test_item_094_last_part_in_another_process(pair: tuple[Ingest, Ingest]) -> None:
    """Parts that end in another process would never be joined."""
    one, other = pair
    first, second = part(one.tus, b"hello"), part(other.tus, b"world", 2)
    path = path_of(join(one.tus, first, second))
    assert other.tus.patch(second, 2, b"rld").status == 204
    joined(other.tus, path)
    assert blob(one.data_dir, path) == b"helloworld"
    # The other one tells what the first one may not have noted as told yet.
    completed_once(one.redis, path, repeats=True)


def test_item_094_opener_is_gone(start_ingest: Starter) -> None:
    """A final upload would be forgotten when the process dies that opened it."""
    one = start_ingest()
    other = start_ingest(data_dir=one.data_dir)
    first = part(one.tus, b"hello", 2)
    path = path_of(join(one.tus, first, first))
    one.service.kill()
    assert other.tus.patch(first, 2, b"llo").status == 204
    wait_until(lambda: "Upload-Offset" in other.tus.head(path).headers, "HEAD has it joined")
    assert blob(one.data_dir, path) == b"hellohello"
    completed_once(one.redis, path, repeats=True)


@pytest.mark.parametrize("left", [b"hel", b"hellohell!"])
def test_item_094_restart_takes_it_up(mortal: Ingest, left: bytes) -> None:
    """A join that a crash interrupted would be left half done, or be appended to."""
    tus = mortal.tus
    first = part(tus, b"hello", 2)
    path = path_of(join(tus, first, first))
    with held(mortal, path) as file:
        tus.patch(first, 2, b"llo")
        mortal.service.kill()
        file.write_bytes(left)  # as if it had died in the middle
    mortal.service.start()
    mortal.tus.ask("HEAD", path, {})  # another protocol's question
    joined(tus, path)
    assert blob(mortal.data_dir, path) == b"hellohello"
    completed_once(mortal.redis, path, repeats=True)


def test_item_095_metadata_is_its_own(ingest: Ingest) -> None:
    """The file would get the name or the type of one of its parts."""
    tus = ingest.tus
    first = tus.create(0, {**PARTIAL, "Upload-Metadata": metadata(filename="part.bin")})
    own = metadata(filename="whole.dat", filetype="application/x-whole")
    path = path_of(join(tus, first, **{"Upload-Metadata": own}))
    assert tus.head(path).headers["Upload-Metadata"] == own
    assert sidecar(ingest.data_dir, path).facts.filename == "whole.dat"
    bare = path_of(join(tus, first))
    assert "Upload-Metadata" not in tus.head(bare).headers
    assert sidecar(ingest.data_dir, bare).facts.metadata == {}


def test_a_whole_that_is_not_what_it_claims_is_refused(ingest: Ingest) -> None:
    """Parts are judged only once they are joined, or a video could be smuggled in pieces."""
    first = part(ingest.tus, b"no video at all" * 100)
    answer = join(ingest.tus, first, **{"Upload-Metadata": metadata(filename="whole.mp4")})
    assert answer.status == 415, answer
    assert tracebacks(ingest.service) == []


def test_item_095_declared_digest_is_of_the_whole(ingest: Ingest) -> None:
    """A digest in the metadata would be compared with a part, or with nothing."""
    tus = ingest.tus
    first, second = part(tus, b"hello"), part(tus, b"world")
    right = {"Upload-Metadata": metadata(sha256=digest(b"helloworld"))}
    path = path_of(join(tus, first, second, **right))
    assert sidecar(ingest.data_dir, path).facts.file_hash == digest(b"helloworld")
    wrong = {"Upload-Metadata": metadata(sha256=digest(b"hello"))}
    refused = join(tus, first, second, **wrong)
    assert 400 <= refused.status < 500
    assert tus.offset(first) == 5
    late = tus.create(5, PARTIAL)
    path = path_of(join(tus, late, **wrong))
    tus.patch(late, 0, b"other")
    wait_until(lambda: tus.head(path).status >= 400, "the final upload has failed")
    assert tracebacks(ingest.service) == []


def test_item_096_parts_are_used_again(ingest: Ingest) -> None:
    """Joining would take a part away from the next final upload that names it."""
    tus = ingest.tus
    first = part(tus, b"hello")
    paths = [path_of(join(tus, first, first)), path_of(join(tus, first))]
    assert [blob(ingest.data_dir, path) for path in paths] == [b"hellohello", b"hello"]
    assert tus.offset(first) == 5
    tus.delete(first)  # the files do not need it any more
    assert [blob(ingest.data_dir, path) for path in paths] == [b"hellohello", b"hello"]


def test_item_096_complete_parts_expire(start_ingest: Starter) -> None:
    """Parts that were joined would stay for good, since nobody ever deletes them."""
    ingest = start_ingest(UPLOAD_SESSION_TIMEOUT_HOURS="0.0006")
    tus = ingest.tus
    first = part(tus, b"hello")
    told = parsedate_to_datetime(tus.head(first).headers["Upload-Expires"]).timestamp()
    assert told - time.time() < 3
    path = path_of(join(tus, first))
    assert "Upload-Expires" not in tus.head(path).headers
    wait_until(lambda: tus.head(first).status == 410, "the part expires", limit_s=10)
    assert tus.patch(first, 5).status == 410
    assert join(tus, first).status == 410
    assert tus.offset(path) == 5


@pytest.mark.parametrize("received", [2, 5])
def test_item_097_patch_on_a_final(ingest: Ingest, received: int) -> None:
    """Bytes could be added to what is joined, or is still to be joined."""
    tus = ingest.tus
    first = part(tus, b"hello", received)
    path = path_of(join(tus, first))
    before = snapshot(ingest.data_dir)
    for offset in (0, 5):
        for body in (b"", b"x"):
            assert tus.patch(path, offset, body).status == 403
    assert tus.patch(path, 0, b"", {"Upload-Length": "5"}).status == 403
    assert snapshot(ingest.data_dir) == before
