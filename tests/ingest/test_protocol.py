"""The core of tus 1.0.0 over real sockets, item by item of the conformance list.

The extensions are in ``test_protocol_extensions.py``. Items that bind only clients are left
out; where the protocol is silent, the test states what this server does.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.ingest.location import COLLECTION
from tests.ingest.conftest import LARGEST, Ingest, Starter
from tests.ingest.evidence import blob, completed_once, no_file_is_left, snapshot
from tests.ingest.tus_client import CHUNK, TUS, Tus, unknown, wait_for_offset
from tests.ingest.wire import Answer, Connection, Cut, ask, chunk, head_of

NO_NUMBER = ["-1", "abc", "1.5", "0x10", "", " ", "0,0", "+5", "1e3", "\xb2", "0 0", "5;x"]
HUGE = [str(2**63), str(2**64), "1" + "0" * 30, "9" * 5000]


@pytest.fixture
def tus(ingest: Ingest) -> Tus:
    """A client of the shared process."""
    return ingest.tus


@pytest.mark.parametrize("value", NO_NUMBER + HUGE)
def test_item_001_offset_is_a_number(tus: Tus, value: str) -> None:
    """An Upload-Offset that is no plain number is refused, and nothing is written."""
    path = tus.create(10)
    assert tus.patch(path, value, b"hello").status == 400
    assert tus.offset(path) == 0


def test_item_001_offset_is_given_once(tus: Tus) -> None:
    """Two Upload-Offset lines are refused: another reader may believe the other one."""
    path = tus.create(10)
    pairs = [*CHUNK.items(), ("Upload-Offset", "0"), ("Upload-Offset", "5")]
    assert ask(tus.port, "PATCH", path, pairs, b"hello").status == 400
    assert tus.offset(path) == 0


@pytest.mark.parametrize("value", NO_NUMBER + HUGE)
def test_item_002_length_is_a_number(ingest: Ingest, value: str) -> None:
    """An Upload-Length that is no plain number is refused, and no upload is opened."""
    before = snapshot(ingest.data_dir)
    assert ingest.tus.post({"Upload-Length": value}).status == 400
    assert snapshot(ingest.data_dir) == before


def test_item_002_length_is_given_once(ingest: Ingest) -> None:
    """Two Upload-Length lines are refused, and no upload is opened."""
    before = snapshot(ingest.data_dir)
    pairs = [*TUS.items(), ("Upload-Length", "5"), ("Upload-Length", "6")]
    assert ask(ingest.service.port, "POST", COLLECTION, pairs).status == 400
    assert snapshot(ingest.data_dir) == before


@pytest.mark.parametrize("target", [COLLECTION, unknown()])
def test_item_003_versions_are_listed(tus: Tus, target: str) -> None:
    """OPTIONS lists the versions that are spoken."""
    assert tus.ask("OPTIONS", target, {}).headers["Tus-Version"] == "1.0.0"


def every_kind_of_answer(tus: Tus) -> list[tuple[int, Answer]]:
    """Return answers of all statuses that are easy to provoke, with the status expected."""
    path, done = tus.create(5), tus.create(0)
    offset = {**CHUNK, "Upload-Offset": "0"}
    return [
        (201, tus.post({"Upload-Length": "5"})),
        (201, tus.post({**CHUNK, "Upload-Length": "2"}, b"hi")),
        (200, tus.head(path)),
        (200, tus.head(done)),
        (204, tus.patch(path, 0, b"he")),
        (204, tus.ask("GET", path, {})),
        (307, tus.ask("GET", done, {})),
        (400, tus.patch(path, "x")),
        (400, tus.post()),
        (404, tus.head(unknown())),
        (404, tus.patch(unknown(), 0)),
        (404, tus.delete(unknown())),
        (404, tus.ask("GET", unknown(), {})),
        (404, tus.ask("GET", path + "/more", {})),
        (405, tus.ask("PUT", path, TUS)),
        (405, tus.ask("DELETE", COLLECTION, TUS)),
        (405, tus.ask("POST", path, TUS)),
        (409, tus.patch(path, 0, b"he")),
        (412, tus.ask("POST", COLLECTION, {"Upload-Length": "5"})),
        (413, tus.patch(path, 2, b"too long")),
        (413, tus.post({"Upload-Length": str(LARGEST + 1)})),
        (415, tus.ask("PATCH", path, {**TUS, "Upload-Offset": "2"}, b"x")),
        (417, tus.ask("PATCH", path, {**offset, "Expect": "tea"}, b"x")),
        (204, tus.delete(path)),
    ]


def test_item_004_version_in_every_answer(tus: Tus) -> None:
    """Every answer names the version, errors of the router and of middleware included."""
    for expected, answer in every_kind_of_answer(tus):
        assert answer.status == expected, answer
        assert answer.headers.getall("Tus-Resumable") == ["1.0.0"], answer


REFUSED_VERSIONS = [None, "", "0.2.2", "1.0", "1.0.1", "2.0.0", "1.0.0,0.2.2"]


def in_version(tus: Tus, version: str | None, path: str) -> list[Answer]:
    """Send one request of each kind in a version, or in none."""
    said = {} if version is None else {"Tus-Resumable": version}
    piece = {**said, "Content-Type": CHUNK["Content-Type"]}
    answers = [
        tus.ask("POST", COLLECTION, {**said, "Upload-Length": "5"}),
        tus.ask("POST", COLLECTION, {**piece, "Upload-Length": "5"}, b"hello"),
        tus.ask("PATCH", path, {**piece, "Upload-Offset": "0"}, b"hello" * 100),
    ]
    if version is not None:  # without one these belong to the IETF's protocol (item 170)
        answers += [
            tus.ask("HEAD", path, said),
            tus.ask("DELETE", path, said),
            tus.ask("POST", path, {**said, "X-HTTP-Method-Override": "DELETE"}),
        ]
    return answers


@pytest.mark.parametrize("version", REFUSED_VERSIONS)
def test_items_005_to_007_other_versions_change_nothing(
    ingest: Ingest, version: str | None
) -> None:
    """Another version, or none, gets 412 with the right one, and is not processed at all."""
    path = ingest.tus.create(1000)
    before = snapshot(ingest.data_dir)
    for answer in in_version(ingest.tus, version, path):
        assert answer.status == 412, answer
        assert answer.headers["Tus-Version"] == "1.0.0"
        assert answer.headers["Tus-Resumable"] == "1.0.0"
    assert snapshot(ingest.data_dir) == before


def test_item_007_get_needs_no_version(tus: Tus) -> None:
    """GET lies outside the protocol and needs no version."""
    assert tus.ask("GET", tus.create(5), {}).status == 204


def test_item_008_extensions_are_listed(tus: Tus) -> None:
    """What is announced is what works: no checksum and no concatenation."""
    names = tus.ask("OPTIONS", COLLECTION, {}).headers["Tus-Extension"].split(",")
    assert set(names) == {
        *("creation", "creation-with-upload", "creation-defer-length"),
        *("termination", "expiration"),
    }
    assert "Tus-Checksum-Algorithm" not in tus.ask("OPTIONS", COLLECTION, {}).headers


def test_item_009_largest_size_is_told(tus: Tus) -> None:
    """The largest size of an upload is told."""
    assert tus.ask("OPTIONS", COLLECTION, {}).headers["Tus-Max-Size"] == str(LARGEST)


def test_item_009_no_limit_is_no_header(start_ingest: Starter) -> None:
    """Without a limit there is no header, and larger uploads are opened."""
    tus = start_ingest(UPLOAD_MAX_FILE_SIZE="0").tus
    assert "Tus-Max-Size" not in tus.ask("OPTIONS", COLLECTION, {}).headers
    assert tus.offset(tus.create(10**17)) == 0


@pytest.mark.parametrize("real", ["POST", "GET", "PATCH", "DELETE", "HEAD"])
def test_item_010_method_is_overridden(tus: Tus, real: str) -> None:
    """The method in X-HTTP-Method-Override counts, in any case, and the real one does not."""
    path = tus.create(5)

    def overridden(method: str, headers: dict[str, str], body: bytes = b"") -> Answer:
        told = {**headers, "X-HTTP-Method-Override": method}
        return tus.ask(real, path, told, body)

    patch = overridden("PATCH", {**CHUNK, "Upload-Offset": "0"}, b"hel")
    assert (patch.status, patch.headers["Upload-Offset"]) == (204, "3")
    head = overridden("head", TUS)
    assert (head.status, head.headers["Upload-Length"]) == (200, "5")
    assert "Tus-Version" in overridden("OPTIONS", {}).headers
    assert overridden("GET", {}).status == 204
    assert overridden("TEA", TUS).status == 405
    assert overridden("POST", TUS).status == 405
    assert overridden("dElEtE", TUS).status == 204
    assert tus.head(path).status == 404


def test_item_010_override_on_the_collection(ingest: Ingest) -> None:
    """On the collection POST and OPTIONS can be asked for, nothing else."""
    tus = ingest.tus

    def overridden(real: str, method: str) -> Answer:
        told = {**TUS, "Upload-Length": "5", "X-HTTP-Method-Override": method}
        return tus.ask(real, COLLECTION, told)

    before = snapshot(ingest.data_dir)
    assert "Tus-Version" in overridden("POST", "OPTIONS").headers
    assert "Tus-Version" in overridden("GET", "options").headers
    assert overridden("POST", "PATCH").status == 405
    assert overridden("POST", "DELETE").status == 405
    assert overridden("POST", "").status == 405
    assert snapshot(ingest.data_dir) == before
    assert overridden("POST", "post").status == 201


def test_items_012_013_head_tells_offset_and_length(tus: Tus) -> None:
    """HEAD tells offset and length from the start, on the way, and at the end."""
    path = tus.create(10)
    for offset in (0, 4, 10):
        tus.patch(path, tus.offset(path), b"x" * (offset - tus.offset(path)))
        headers = tus.head(path).headers
        assert (headers["Upload-Offset"], headers["Upload-Length"]) == (str(offset), "10")


STRANGE_IDS = [
    *("x", "..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "%2e%2e%2fepoch", "%252e%252e", "%00"),
    *("a%00b", "%ff%fe", "%c0%ae%c0%ae", "..%5c..", ";", "%0d%0aX-A:b", "A" * 300, "a" * 4096),
    *("%7B%7D", "*", "~", ".", "due", "ask", "epoch", "00", "%2f", "C:", "CON", "a:b"),
]


@pytest.mark.parametrize("strange", STRANGE_IDS)
def test_item_014_strange_ids_are_not_found(ingest: Ingest, strange: str) -> None:
    """An id that cannot be one is not found, by any method, and has no offset."""
    target = f"{COLLECTION}/{strange}"
    before = snapshot(ingest.data_dir)
    tus = ingest.tus
    for answer in (tus.head(target), tus.patch(target, 0, b"x"), tus.delete(target)):
        assert answer.status in {404, 405}, answer
        assert "Upload-Offset" not in answer.headers
    assert snapshot(ingest.data_dir) == before


def test_item_014_unknown_upload_has_no_offset(tus: Tus) -> None:
    """An unknown upload is not found, and its answer carries no offset."""
    answer = tus.head(unknown())
    assert answer.status == 404
    assert "Upload-Offset" not in answer.headers


def test_items_015_016_head_is_200_and_not_stored(tus: Tus) -> None:
    """HEAD succeeds with 200, and no cache may keep any of its answers."""
    path = tus.create(5)
    assert tus.head(path).status == 200
    tus.patch(path, 0, b"hello")
    for target in (path, unknown()):
        assert tus.head(target).headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("target", [None, unknown(), f"{COLLECTION}/x", "/nowhere"])
def test_item_017_head_has_no_body(tus: Tus, target: str | None) -> None:
    """After the head of any answer to HEAD comes the next answer, no body."""
    with Connection(tus.port) as one:
        for _ in range(3):
            one.send(head_of("HEAD", target or tus.create(5), TUS))
            assert one.read(no_body=True).status == (404 if target else 200)


def test_item_018_head_ends_a_running_patch(tus: Tus) -> None:
    """HEAD tells an offset that the next PATCH can use, even while another one is running."""
    path = tus.create(1000)
    with tus.begin_patch(path, 0, 1000, b"x" * 400) as running:
        wait_for_offset(tus, path, 400)
        offset = tus.offset(path)
        assert offset == 400
        assert tus.patch(path, offset, b"y" * 600).status == 204
        assert running.read().status == 423


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


@pytest.mark.parametrize("offset", [0, 1, 299, 301, 600, 10**17])
def test_items_021_022_wrong_offset_changes_nothing(ingest: Ingest, offset: int) -> None:
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
        assert time.monotonic() - started < 1


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


@pytest.mark.parametrize("headers", [{}, TUS, {"Tus-Resumable": "9.9.9"}])
@pytest.mark.parametrize("target", [COLLECTION, unknown()])
def test_items_034_035_options(tus: Tus, target: str, headers: dict[str, str]) -> None:
    """OPTIONS is answered in any version, or none, for the collection and for uploads."""
    answer = tus.ask("OPTIONS", target, headers)
    assert answer.status == 204
    assert answer.headers["Tus-Version"] == "1.0.0"


def test_item_037_parallel_patches_never_mix(ingest: Ingest) -> None:
    """Of two PATCHes at one offset at most one succeeds, and the bytes are of one body only."""
    tus, size = ingest.tus, 4_000_000
    for _ in range(3):
        path = tus.create(size)
        bodies = [bytes([kind]) * size for kind in (1, 2)]
        barrier = threading.Barrier(2)

        def send(body: bytes, path: str = path, barrier: threading.Barrier = barrier) -> int:
            barrier.wait()
            return tus.patch(path, 0, body).status

        with ThreadPoolExecutor(2) as pool:
            statuses = list(pool.map(send, bodies))
        assert statuses.count(204) <= 1, statuses
        assert set(statuses) <= {204, 409, 423}, statuses
        content = blob(ingest.data_dir, path)
        assert len(set(content)) == 1
        assert tus.offset(path) == len(content)


def test_item_037_stale_patch_does_not_disturb(tus: Tus) -> None:
    """A PATCH at an offset that has been passed gets 409, and the running one goes on."""
    path = tus.create(1000)
    with tus.begin_patch(path, 0, 1000, b"x" * 400) as running:
        wait_for_offset(tus, path, 400)
        assert tus.patch(path, 0, b"y" * 1000).status == 409
        running.send(b"x" * 600)
        assert running.read().status == 204


def test_item_038_delete_during_patch(ingest: Ingest) -> None:
    """DELETE ends a running PATCH and succeeds; nothing of the upload stays."""
    tus = ingest.tus
    path = tus.create(1000)
    with tus.begin_patch(path, 0, 1000, b"x" * 400) as running:
        wait_for_offset(tus, path, 400)
        assert tus.delete(path).status == 204
        assert running.read().status == 423
    assert tus.head(path).status == 404
    no_file_is_left(ingest.data_dir, path)


def test_item_038_delete_racing_patches(ingest: Ingest) -> None:
    """However DELETE and PATCHes meet, the upload is gone afterwards, with all its files."""
    tus = ingest.tus
    for delay in (0.0, 0.001, 0.003, 0.01):
        path = tus.create(2_000_000)
        with ThreadPoolExecutor(3) as pool:
            racing = [pool.submit(tus.patch, path, 0, b"x" * 2_000_000) for _ in range(2)]
            time.sleep(delay)
            deleted = pool.submit(tus.delete, path)
            assert deleted.result().status == 204
            assert {one.result().status for one in racing} <= {204, 404, 409, 423}
        assert tus.head(path).status == 404
        no_file_is_left(ingest.data_dir, path)


def late_bytes_go_nowhere(old: Connection) -> None:
    """Send on a connection that was taken over until it is closed."""
    with pytest.raises((ConnectionError, EOFError)):  # noqa: PT012
        for _ in range(1000):
            old.send(b"late" * 10_000)
        old.read()
        old.read()


def test_item_040_reconnect_while_the_old_request_hangs(ingest: Ingest) -> None:
    """A client that comes back is let in at once; its old connection writes no more."""
    tus = ingest.tus
    path = tus.create(1_000_000)
    with tus.begin_patch(path, 0, 1_000_000, b"x" * 300_000) as old:
        wait_for_offset(tus, path, 300_000)
        started = time.monotonic()
        offset = tus.offset(path)
        assert time.monotonic() - started < 1
        assert offset == 300_000
        late_bytes_go_nowhere(old)
        assert tus.patch(path, offset, b"y" * 700_000).status == 204
    assert blob(ingest.data_dir, path) == b"x" * 300_000 + b"y" * 700_000


def test_item_042_offset_never_decreases(ingest: Ingest) -> None:
    """Whatever happens to connections, HEAD never tells less than before."""
    tus, content = ingest.tus, os.urandom(400_000)
    path = tus.create(len(content))
    seen: list[int] = [0]
    ends: list[Callable[[Connection], None]] = [
        lambda one: one.cut("rst"),
        lambda one: one.cut("fin"),
        lambda one: one.cut("half-close"),
        lambda one: None,
    ]
    for turn in range(40):
        at = seen[-1]
        with tus.begin_patch(path, at, len(content) - at, content[at : at + 10_000]) as one:
            ends[turn % 4](one)
            seen.append(tus.offset(path))
    assert seen == sorted(seen)
    assert tus.patch(path, seen[-1], content[seen[-1] :]).status == 204
    assert blob(ingest.data_dir, path) == content
