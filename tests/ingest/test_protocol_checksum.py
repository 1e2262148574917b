"""The checksum extension of tus 1.0.0 over real sockets, item by item."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import time
import zlib
from collections.abc import Callable
from typing import Final

import pytest
from blake3 import blake3

from services.ingest.location import COLLECTION
from tests.ingest.conftest import Ingest, Starter
from tests.ingest.evidence import blob, completed_once, lifecycle, snapshot
from tests.ingest.system_calls import injecting
from tests.ingest.tus_client import CHUNK, Tus, id_of, path_of
from tests.ingest.wire import Answer, Connection, Cut, chunk, head_of
from tests.processes import wait_until

MEGABYTE: Final = 1024 * 1024

DIGESTS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "sha1": lambda body: hashlib.sha1(body).digest(),
    "sha256": lambda body: hashlib.sha256(body).digest(),
    "md5": lambda body: hashlib.md5(body).digest(),
    "crc32": lambda body: zlib.crc32(body).to_bytes(4, "big"),
    "blake3": lambda body: blake3(body).digest(),
}


def said(body: bytes, algorithm: str = "sha1") -> dict[str, str]:
    """Return the header that tells the checksum of a body."""
    value = base64.b64encode(DIGESTS[algorithm](body)).decode()
    return {"Upload-Checksum": f"{algorithm} {value}"}


def test_item_077_algorithms_are_told(tus: Tus) -> None:
    """A client could not know which algorithms it may use."""
    headers = tus.ask("OPTIONS", COLLECTION, {}).headers
    assert "checksum" in headers["Tus-Extension"].split(",")
    assert headers["Tus-Checksum-Algorithm"] == ",".join(DIGESTS)


def test_item_078_sha1_is_supported(ingest: Ingest) -> None:
    """The one algorithm that every server must know would be missing, or names be changed."""
    names = ingest.tus.ask("OPTIONS", COLLECTION, {}).headers["Tus-Checksum-Algorithm"]
    assert "sha1" in names.split(",")
    assert names == names.lower()
    assert names.isascii()
    path = ingest.tus.create(5)
    known = {"Upload-Checksum": "sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00="}  # of "hello"
    assert ingest.tus.patch(path, 0, b"hello", known).status == 204


MALFORMED: Final = [
    *(
        "",
        " ",
        "sha1",
        "sha1 ",
        "sha1  qvTGHdzF6KLavt4PO0gs2a6pQ00=",
    ),
    *("sha1:qvTG", "sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00", "sha1 qv-_", "sha1 qvTG qvTG"),
    *("sha1 qvTG,sha1 qvTG", "sha1 \xe4", "sha1\tqvTG", "sha1 ===="),
]


@pytest.mark.parametrize("value", MALFORMED)
def test_item_079_malformed_checksum(ingest: Ingest, value: str) -> None:
    """A checksum that cannot be read would be passed over, and the bytes taken unverified."""
    path = ingest.tus.create(5)
    before = snapshot(ingest.data_dir)
    assert ingest.tus.patch(path, 0, b"hello", {"Upload-Checksum": value}).status == 400
    assert snapshot(ingest.data_dir) == before


def test_item_079_checksum_is_given_once(ingest: Ingest) -> None:
    """Of two checksums one would go unheeded."""
    path = ingest.tus.create(5)
    pairs = [*CHUNK.items(), ("Upload-Offset", "0"), *said(b"hello").items()]
    with Connection(ingest.service.port) as one:
        one.request("PATCH", path, [*pairs, *said(b"other").items()], b"hello")
        assert one.read().status == 400
    assert ingest.tus.offset(path) == 0


@pytest.mark.parametrize("size", [0, 1, MEGABYTE, MEGABYTE + 1, 9 * MEGABYTE + 7])
def test_item_080_whole_body_is_verified(ingest: Ingest, size: int) -> None:
    """A body that waits in memory, or beside the upload, would not be compared as a whole."""
    tus, body = ingest.tus, os.urandom(size)
    path = tus.create(size + 5)
    assert tus.patch(path, 0, body, said(body)).headers["Upload-Offset"] == str(size)
    last = b"hello"
    answer = tus.patch(path, size, last, said(last))
    assert answer.headers["Upload-Offset"] == str(size + 5)
    assert blob(ingest.data_dir, path) == body + last
    completed_once(ingest.redis, path)


@pytest.mark.parametrize("algorithm", DIGESTS)
def test_item_081_match_and_mismatch(ingest: Ingest, algorithm: str) -> None:
    """A right checksum would be refused, or a wrong one not."""
    tus = ingest.tus
    path = tus.create(10)
    wrong = tus.patch(path, 0, b"hello", said(b"other", algorithm))
    assert wrong.status == 460
    assert wrong.raw_head.split(b"\r\n")[0] == b"HTTP/1.1 460 Checksum Mismatch"
    assert tus.offset(path) == 0
    right = tus.patch(path, 0, b"hello", said(b"hello", algorithm))
    assert (right.status, right.headers["Upload-Offset"]) == (204, "5")
    assert blob(ingest.data_dir, path) == b"hello"


@pytest.mark.parametrize("algorithm", ["sha512", "SHA1", "sha-256", "crc32c", "none"])
def test_item_081_unknown_algorithm(ingest: Ingest, algorithm: str) -> None:
    """A checksum in an algorithm that is not known would pass as right."""
    path = ingest.tus.create(5)
    before = snapshot(ingest.data_dir)
    told = {"Upload-Checksum": f"{algorithm} {base64.b64encode(b'x' * 20).decode()}"}
    assert ingest.tus.patch(path, 0, b"hello", told).status == 400
    assert snapshot(ingest.data_dir) == before


def test_item_081_short_digest_is_a_mismatch(tus: Tus) -> None:
    """A digest that is cut short would match by its beginning."""
    path = tus.create(5)
    short = base64.b64encode(DIGESTS["sha1"](b"hello")[:18]).decode()
    assert tus.patch(path, 0, b"hello", {"Upload-Checksum": f"sha1 {short}"}).status == 460


@pytest.mark.parametrize("size", [5, 3 * MEGABYTE])
def test_item_082_mismatch_changes_nothing(ingest: Ingest, size: int) -> None:
    """A chunk that is wrong would leave bytes, move the offset, or finish the upload."""
    tus = ingest.tus
    path = tus.create(None)
    tus.patch(path, 0, b"hello")
    before = snapshot(ingest.data_dir)
    told = {**said(b"other"), "Upload-Length": str(5 + size)}  # it would be the last chunk
    assert tus.patch(path, 5, b"x" * size, told).status == 460
    assert {**snapshot(ingest.data_dir), **before} == snapshot(ingest.data_dir)
    assert blob(ingest.data_dir, path) == b"hello"
    head = tus.head(path).headers
    assert (head["Upload-Offset"], head["Upload-Defer-Length"]) == ("5", "1")
    assert [type(one).__name__ for one in lifecycle(ingest.redis.url, path)] == [
        "UploadCreated"
    ]
    assert staged(ingest, path) == []


def staged(ingest: Ingest, path: str) -> list[int]:
    """Return the sizes of what waits beside an upload."""
    folder = ingest.data_dir / "blobs" / id_of(path)[:2] / f"{id_of(path)}.chunks"
    return [file.stat().st_size for file in folder.glob("*")]


@pytest.mark.parametrize("how", ["fin", "rst", "half-close"])
@pytest.mark.parametrize("sent", [1000, 5 * MEGABYTE])
def test_item_082_cut_body_is_thrown_away(ingest: Ingest, how: Cut, sent: int) -> None:
    """Bytes that could not be verified would be acknowledged after the connection died."""
    tus = ingest.tus
    path = tus.create(20 * MEGABYTE)
    tus.patch(path, 0, b"hello")
    body = os.urandom(sent)
    with begin(ingest, path, 5, body, 6 * MEGABYTE) as one:
        if sent > MEGABYTE:
            wait_until(lambda: sum(staged(ingest, path)) > MEGABYTE, "bytes are staged")
        one.cut(how)
        assert tus.offset(path) == 5
    assert blob(ingest.data_dir, path) == b"hello"
    wait_until(lambda: not staged(ingest, path), "nothing is left of the chunk")


def begin(ingest: Ingest, path: str, offset: int, body: bytes, length: int) -> Connection:
    """Send the head of a PATCH with a checksum of what is sent now, and less than its body."""
    headers = {**CHUNK, "Upload-Offset": str(offset), "Content-Length": str(length)}
    one = Connection(ingest.service.port)
    one.send(head_of("PATCH", path, {**headers, **said(body)}), body)
    return one


def test_item_082_takeover_throws_away(ingest: Ingest) -> None:
    """A client that comes back would find unverified bytes of its old connection."""
    path = ingest.tus.create(20 * MEGABYTE)
    with begin(ingest, path, 0, b"x" * 5 * MEGABYTE, 6 * MEGABYTE) as old:
        wait_until(lambda: sum(staged(ingest, path)) > MEGABYTE, "bytes are staged")
        started = time.monotonic()
        assert ingest.tus.offset(path) == 0
        assert time.monotonic() - started < 5
        assert old.read().status == 423


def test_item_082_killed_in_the_middle(mortal: Ingest) -> None:
    """Bytes of a chunk that was never verified would be acknowledged after kill -9."""
    tus = mortal.tus
    path = tus.create(20 * MEGABYTE)
    tus.patch(path, 0, b"hello")
    with begin(mortal, path, 5, b"x" * 5 * MEGABYTE, 6 * MEGABYTE):
        wait_until(lambda: sum(staged(mortal, path)) > MEGABYTE, "bytes are staged")
        mortal.service.kill()
    mortal.service.start()
    assert tus.offset(path) == 5
    assert blob(mortal.data_dir, path) == b"hello"
    body = os.urandom(20 * MEGABYTE - 5)
    assert tus.patch(path, 5, body, said(body)).status == 204
    assert blob(mortal.data_dir, path) == b"hello" + body


def test_item_082_killed_while_it_is_taken(mortal: Ingest) -> None:
    """Of a chunk that was verified, other bytes than its first ones would be left."""
    tus, body = mortal.tus, os.urandom(2 * MEGABYTE)
    path = tus.create(5 + len(body))
    tus.patch(path, 0, b"hello")
    part = mortal.data_dir / "blobs" / id_of(path)[:2] / f"{id_of(path)}.part"
    with (
        injecting(mortal.service.pid, "copy_file_range", part, "signal=SIGKILL"),
        pytest.raises((EOFError, ConnectionError)),
    ):
        tus.patch(path, 5, body, said(body))
    mortal.service.kill()
    mortal.service.start()
    offset = tus.offset(path)
    assert blob(mortal.data_dir, path) == (b"hello" + body)[:offset]
    rest = body[offset - 5 :]
    assert tus.patch(path, offset, rest, said(rest)).status == 204
    assert blob(mortal.data_dir, path) == b"hello" + body


def test_item_082_slow_body_is_thrown_away(start_ingest: Starter) -> None:
    """A drip would hold its upload for ever because it waits beside it."""
    ingest = start_ingest(UPLOAD_MIN_RATE="1000", UPLOAD_MIN_RATE_WINDOW="1")
    path = ingest.tus.create(MEGABYTE)
    with begin(ingest, path, 0, b"x", MEGABYTE) as one:
        until = time.monotonic() + 20
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < until and not one.has_answer():
                one.send(b"x")
                time.sleep(0.1)
        answer = one.read()
    assert (answer.status, answer.headers["Upload-Offset"]) == (408, "0")
    assert ingest.tus.offset(path) == 0


def test_item_082_too_long_is_thrown_away(ingest: Ingest) -> None:
    """Of a body that passes the end, a part would be kept that nobody verified."""
    path = ingest.tus.create(5)
    framing = {**CHUNK, "Upload-Offset": "0", "Transfer-Encoding": "chunked"}
    with Connection(ingest.service.port) as one:
        one.send(head_of("PATCH", path, {**framing, **said(b"hello!")}))
        one.send(chunk(b"hello!"), chunk(b""))
        assert one.read().status == 413
    assert ingest.tus.offset(path) == 0


def test_item_082_length_and_last_chunk(ingest: Ingest) -> None:
    """A chunk that declares the length would not finish its upload once it is verified."""
    path = ingest.tus.create(None)
    told = {**said(b"hello"), "Upload-Length": "5"}
    assert ingest.tus.patch(path, 0, b"hello", told).status == 204
    completed_once(ingest.redis, path)


@pytest.mark.parametrize("name", ["Upload-Checksum", "X-Other, upload-checksum"])
def test_item_083_trailer_is_refused(ingest: Ingest, name: str) -> None:
    """A checksum that is promised as a trailer, and lost on the way, would count as none."""
    assert "checksum-trailer" not in ingest.tus.ask("OPTIONS", COLLECTION, {}).headers[
        "Tus-Extension"
    ].split(",")
    path = ingest.tus.create(5)
    before = snapshot(ingest.data_dir)
    assert ingest.tus.patch(path, 0, b"hello", {"Trailer": name}).status == 400
    assert ingest.tus.post({**CHUNK, "Upload-Length": "5", "Trailer": name}).status == 400
    assert snapshot(ingest.data_dir) == before
    assert ingest.tus.patch(path, 0, b"hello", {"Trailer": "X-Other"}).status == 204


def test_item_084_creation_with_checksum(ingest: Ingest) -> None:
    """The first piece would be taken unverified because it came with the creation."""
    tus = ingest.tus
    head = {**CHUNK, "Upload-Length": "5"}
    right = tus.post({**head, **said(b"hello")}, b"hello")
    assert right.headers["Upload-Offset"] == "5"
    completed_once(ingest.redis, path_of(right))
    wrong: Answer = tus.post({**head, **said(b"other")}, b"hello")
    assert wrong.status == 460
    path = path_of(wrong)
    assert tus.offset(path) == 0
    assert tus.patch(path, 0, b"hello", said(b"hello")).status == 204
    before = snapshot(ingest.data_dir)
    assert tus.post({**head, "Upload-Checksum": "sha9 qvTG"}, b"hello").status == 400
    assert snapshot(ingest.data_dir) == before


def test_item_082_memory_stays_bounded(start_ingest: Starter) -> None:
    """A large chunk would be held in memory until it is verified."""
    ingest = start_ingest()
    ingest.tus.patch(ingest.tus.create(5), 0, b"hello", said(b"hello"))
    before = ingest.service.memory()
    body = os.urandom(96 * MEGABYTE)
    path = ingest.tus.create(2 * len(body))
    for turn in range(2):
        assert ingest.tus.patch(path, turn * len(body), body, said(body)).status == 204
    assert ingest.service.memory() - before < 48 * MEGABYTE
