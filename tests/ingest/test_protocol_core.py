"""What every request and answer of tus 1.0.0 has, HEAD and OPTIONS, item by item.

Over real sockets. Items that bind only clients are left out; where the protocol is silent, the
test states what this server does.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.ingest.location import COLLECTION
from tests.ingest.conftest import LARGEST, Ingest, Starter
from tests.ingest.evidence import snapshot
from tests.ingest.tus_client import CHUNK, TUS, Tus, unknown, wait_for_offset
from tests.ingest.wire import Answer, Connection, ask, head_of
from tests.processes import ServiceProcess, running

NO_NUMBER = ["-1", "abc", "1.5", "0x10", "", " ", "0,0", "+5", "1e3", "\xb2", "0 0", "5;x"]


HUGE = [str(2**63), str(2**64), "1" + "0" * 30, "9" * 5000]


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
        (412, tus.ask("HEAD", path, {"Tus-Resumable": "0.2.2"})),
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
    if version is not None:  # without one, these belong to the IETF's protocol (item 170)
        answers += [
            tus.ask("HEAD", path, said),
            tus.ask("DELETE", path, said),
            tus.ask("POST", path, {**said, "X-HTTP-Method-Override": "DELETE"}),
        ]
    return answers


@pytest.mark.parametrize("version", REFUSED_VERSIONS[1:])
def test_item_005_other_versions_are_refused(tus: Tus, version: str) -> None:
    """Another version gets 412, with the one that is spoken."""
    for answer in in_version(tus, version, tus.create(1000)):
        assert answer.status == 412, answer
        assert answer.headers["Tus-Version"] == "1.0.0"
        assert answer.headers["Tus-Resumable"] == "1.0.0"


@pytest.mark.parametrize("version", REFUSED_VERSIONS)
def test_item_006_other_versions_change_nothing(ingest: Ingest, version: str | None) -> None:
    """A request in another version, or in none, is not processed, whatever body it has."""
    path = ingest.tus.create(1000)
    before = snapshot(ingest.data_dir)
    in_version(ingest.tus, version, path)
    assert snapshot(ingest.data_dir) == before


def test_item_007_version_is_needed(tus: Tus) -> None:
    """A request that names no version gets 412 as one in another version does."""
    for answer in in_version(tus, None, tus.create(1000)):
        assert (answer.status, answer.headers["Tus-Version"]) == (412, "1.0.0")


def test_item_007_get_needs_no_version(tus: Tus) -> None:
    """GET lies outside the protocol and needs no version."""
    assert tus.ask("GET", tus.create(5), {}).status == 204


def test_item_008_extensions_are_listed(tus: Tus) -> None:
    """What is announced is what works: each name has its tests here, and no other is there."""
    names = tus.ask("OPTIONS", COLLECTION, {}).headers["Tus-Extension"].split(",")
    assert sorted(names) == [
        *("checksum", "concatenation", "concatenation-unfinished"),
        *("creation", "creation-defer-length", "creation-with-upload"),
        *("expiration", "termination"),
    ]


def test_item_009_largest_size_is_told(tus: Tus) -> None:
    """The largest size of an upload is told."""
    assert tus.ask("OPTIONS", COLLECTION, {}).headers["Tus-Max-Size"] == str(LARGEST)


def test_item_009_no_limit_is_no_header(start_ingest: Starter) -> None:
    """Without a limit there is no header, and larger uploads are opened."""
    tus = start_ingest(UPLOAD_MAX_FILE_SIZE="0", UPLOAD_MIN_FREE_BYTES="0").tus
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


def on_the_way(tus: Tus) -> Iterator[tuple[int, Answer]]:
    """Yield what HEAD says of an upload of 10 bytes: at the start, on the way, at the end."""
    path, at = tus.create(10), 0
    for offset in (0, 4, 10):
        tus.patch(path, at, b"x" * (offset - at))
        at = offset
        yield offset, tus.head(path)


def test_item_012_head_tells_the_offset(tus: Tus) -> None:
    """HEAD tells the offset from the start, on the way, and at the end."""
    for offset, answer in on_the_way(tus):
        assert answer.headers.getall("Upload-Offset") == [str(offset)]


def test_item_013_head_tells_the_length(tus: Tus) -> None:
    """HEAD tells the length from the start, on the way, and at the end."""
    for _, answer in on_the_way(tus):
        assert answer.headers.getall("Upload-Length") == ["10"]


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


def test_item_015_head_is_200(tus: Tus) -> None:
    """HEAD succeeds with 200, as some clients want it exactly."""
    assert [answer.status for _, answer in on_the_way(tus)] == [200, 200, 200]


def test_item_016_head_is_not_stored(tus: Tus) -> None:
    """No cache may keep any answer to HEAD: the next one would be outdated."""
    path = tus.create(5)
    assert tus.head(path).headers["Cache-Control"] == "no-store"
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


@pytest.mark.parametrize("target", [COLLECTION, unknown()])
def test_item_034_options_tells_what_is_supported(tus: Tus, target: str) -> None:
    """OPTIONS tells versions, extensions and limits, of the collection and of uploads."""
    answer = tus.ask("OPTIONS", target, {})
    assert (answer.status, answer.body) == (204, b"")
    assert {"Tus-Version", "Tus-Extension", "Tus-Max-Size"} <= set(answer.headers)


@pytest.mark.parametrize("version", ["1.0.0", "9.9.9", "x", ""])
@pytest.mark.parametrize("target", [COLLECTION, unknown()])
def test_item_035_options_heeds_no_version(tus: Tus, target: str, version: str) -> None:
    """A client that names a version that is not spoken could never learn which one is."""
    answer = tus.ask("OPTIONS", target, {"Tus-Resumable": version})
    assert answer.status == 204
    assert answer.headers["Tus-Version"] == "1.0.0"


def test_item_036_options_needs_no_credentials(guarded: Tus) -> None:
    """A page, whose preflight has no credentials, could not learn what is supported."""
    override = {"X-HTTP-Method-Override": "OPTIONS"}
    for target in (COLLECTION, unknown()):
        for answer in (
            guarded.ask("OPTIONS", target, {}),
            guarded.ask("POST", target, override),
        ):
            assert answer.status == 204
            assert "Tus-Extension" in answer.headers


@pytest.fixture(scope="module")
def guarded(ingest: Ingest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tus]:
    """A client without credentials of a process that wants them."""
    folder = tmp_path_factory.mktemp("guarded")
    env = {
        "REDIS_URL": ingest.redis.url,
        "DATA_DIR": str(folder / "data"),
        "AUTH_MODE": "required",
        "AUTH_JWT_SECRET": "a secret of more than thirty-two bytes",
    }
    service = ServiceProcess("ingest", env, folder / "log")
    with running(service):
        yield Tus(service.port)


def test_item_010_override_decides_about_credentials(guarded: Tus) -> None:
    """A real method of OPTIONS would let anybody in, under another name."""
    for method in ("POST", "PATCH", "HEAD", "DELETE", "GET"):
        told = {**CHUNK, "Upload-Offset": "0", "X-HTTP-Method-Override": method}
        for target in (COLLECTION, unknown()):
            assert guarded.ask("OPTIONS", target, told, b"").status in {401, 405}


@pytest.mark.parametrize("credentials", [{}, {"Authorization": "Bearer nonsense"}])
def test_item_004_version_where_credentials_are_missing(
    guarded: Tus, credentials: dict[str, str]
) -> None:
    """A client would take the refusal of a middleware for that of some other server."""
    for method, target in (("POST", COLLECTION), ("PATCH", unknown()), ("DELETE", unknown())):
        answer = guarded.ask(method, target, {**CHUNK, **credentials, "Upload-Offset": "0"})
        assert (answer.status, answer.headers["Tus-Resumable"]) == (401, "1.0.0")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert answer.body.count(b"\n") == 1
