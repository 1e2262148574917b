"""Bad forms: the exact status, a clear error, nothing changed, nothing left, no traceback."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.ingest.conftest import Ingest, prepare, started
from tests.ingest.evidence import blob, snapshot, tracebacks
from tests.ingest.form_client import (
    BOUNDARY,
    Forms,
    body_of,
    file_part,
    text_part,
    text_parts,
)
from tests.ingest.test_bad_input import SECRET, bearer
from tests.ingest.wire import Connection, Cut, ask, chunk, head_of
from tests.processes import RedisServer, wait_until

LARGEST = 3_000_000
CHUNK = 1_000_000
FIELDS = {"session_id": "half", "chunk_index": 1, "total_chunks": 3}
KIND = f"multipart/form-data; boundary={BOUNDARY}"
HALF = os.urandom(1000)


@pytest.fixture(scope="module")
def small(bus: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingest]:
    """A process with low limits, that wants credentials, with a session of ``alice`` in it."""
    folder = tmp_path_factory.mktemp("small")
    env = {
        "UPLOAD_MAX_FILE_SIZE": str(LARGEST),
        "UPLOAD_MAX_CHUNK_SIZE": str(CHUNK),
        "UPLOAD_IDLE_TIMEOUT": "0.5",
        "AUTH_MODE": "required",
        "AUTH_JWT_SECRET": SECRET,
        "RATE_LIMIT_ENABLED": "false",
    }
    one = prepare(bus, folder / "data", folder / "log", **env)
    with started(one):
        first = client(one).post(HALF, session_id="half", chunk_index=0, total_chunks=3)
        assert first.status == 202
        yield one


def client(ingest: Ingest, user: str = "alice", tenant: str = "t1") -> Forms:
    """Return a client that shows credentials."""
    good = bearer(user, tenant, exp=time.time() + 3600)
    return Forms(ingest.service.port, headers=good)


@pytest.fixture
def alice(small: Ingest) -> Iterator[Forms]:
    """The client; after the test nothing has changed, and no traceback was logged."""
    before = snapshot(small.data_dir)
    yield client(small)

    def changed() -> set[tuple[str, str]]:
        return set(before.items()) ^ set(snapshot(small.data_dir).items())

    wait_until(lambda: not changed(), "nothing has changed", changed, limit_s=5)
    assert tracebacks(small.service) == []


def part(head: str, content: bytes = b"x") -> bytes:
    """Return a part with header lines of the test's own."""
    return head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + content


GOOD = [*text_parts(FIELDS), file_part(b"good")]
FILE = 'Content-Disposition: form-data; name="file"; filename="a.mp4"'
BAD_FORMS: dict[str, tuple[bytes, int]] = {
    "no file": (body_of(text_parts(FIELDS)), 400),
    "no part at all": (body_of([]), 400),
    "nothing": (b"", 400),
    "no boundary in it": (b"x" * 5000, 400),
    "another boundary": (body_of(GOOD, "other"), 400),
    "two files": (body_of([*GOOD, file_part(b"more")]), 400),
    "a field twice": (
        body_of([text_part("priority", 5), *GOOD, text_part("priority", 5)]),
        400,
    ),
    "a part without a name": (body_of([part("Content-Disposition: form-data"), *GOOD]), 400),
    "a part without headers": (body_of([b"\r\nx", *GOOD]), 400),
    "a broken header": (body_of([part("Content Disposition form-data"), *GOOD]), 400),
    "a NUL in a header": (body_of([part('Content-Disposition: form-data; name="a\0"')]), 400),
    "a field that is no text": (
        body_of([part(FILE), text_part("options", "")[:-1] + b"\xff"]),
        400,
    ),
    "parts of parts": (body_of([part("Content-Type: multipart/mixed; boundary=b")]), 400),
    "no end": (body_of(GOOD)[: -len(BOUNDARY) - 4], 400),
    "an end in the middle of the file": (body_of(GOOD)[:-80], 400),
    "a file in base64": (body_of([part(f"{FILE}\nContent-Transfer-Encoding: base64")]), 415),
    "quoted-printable": (
        body_of([part(f"{FILE}\nContent-Transfer-Encoding: quoted-printable")]),
        415,
    ),
    "an encoding that is none": (
        body_of([part(f"{FILE}\nContent-Transfer-Encoding: rot13")]),
        415,
    ),
    "a compressed file": (body_of([part(f"{FILE}\nContent-Encoding: gzip")]), 415),
    "too many parts": (body_of([*(text_part(f"f{n}", n) for n in range(40)), *GOOD]), 413),
    "a long field": (body_of([text_part("options", "x" * 20_000), *GOOD]), 413),
    "a long unknown field": (body_of([text_part("other", "x" * 20_000), *GOOD]), 413),
    "many headers": (body_of([part("\n".join([FILE, *["X-A: b"] * 20]))]), 400),
    "a long header": (body_of([part(f"{FILE}\nX-A: {'b' * 5000}")]), 400),
    "a long line before the first part": (b"x" * 2_000_000 + b"\r\n" + body_of(GOOD), 400),
    "a bad chunk_index": (body_of([text_part("chunk_index", "x"), file_part(b"x")]), 400),
    "chunk_index after a bad file": (
        body_of([file_part(b"x"), text_part("chunk_index", 7)]),
        400,
    ),
    "no total_chunks": (body_of([file_part(b"x"), text_part("chunk_index", 0)]), 400),
    "another number of chunks": (
        body_of([*text_parts(FIELDS | {"total_chunks": 4}), file_part(b"x")]),
        409,
    ),
    "other bytes for a chunk": (
        body_of([*text_parts(FIELDS | {"chunk_index": 0}), file_part(b"x")]),
        409,
    ),
    "a whole file for chunks": (
        body_of([text_part("session_id", "half"), file_part(b"x")]),
        409,
    ),
    "a long chunk": (body_of([*text_parts(FIELDS), file_part(b"x" * (CHUNK + 1))]), 413),
    "a long chunk before its fields": (
        body_of([file_part(b"x" * (CHUNK + 1)), *text_parts(FIELDS)]),
        413,
    ),
    "a long file": (body_of([file_part(b"x" * (LARGEST + 1))]), 413),
}


@pytest.mark.parametrize("name", BAD_FORMS)
def test_bad_form(alice: Forms, name: str) -> None:
    """Security item 15, and whatever else a form can get wrong."""
    body, status = BAD_FORMS[name]
    reply = alice.post_body(body)
    assert reply.status == status, reply.body
    assert reply.body["status"] == status
    assert reply.answer.headers["Content-Type"] == "application/problem+json"


BAD_TYPES = {
    "text/plain": 415,
    "application/x-www-form-urlencoded": 415,
    "multipart/mixed; boundary=b": 415,
    "": 415,
    "multipart/form-data": 400,
    "multipart/form-data; boundary=": 400,
    f"multipart/form-data; boundary={'b' * 71}": 400,
    "multipart/form-data; boundary=\xfc": 400,
}


@pytest.mark.parametrize("kind", BAD_TYPES)
def test_bad_content_type(alice: Forms, kind: str) -> None:
    """A request that is no form, or has no usable boundary, is refused before its body."""
    assert alice.post_body(body_of(GOOD), Content_Type=kind).status == BAD_TYPES[kind]


def test_odd_type_of_a_part(alice: Forms) -> None:
    """A part whose type is no text must not end in a 500: it has none."""
    part = file_part(b"x", kind="KIND").replace(b"KIND", b"a/\xff\xfe")
    fields = text_parts({"chunk_index": 0, "total_chunks": 2})
    opened = alice.post_parts([*fields, part])
    assert opened.status == 202
    assert alice.cancel(opened.data["session_id"]).status == 200


def test_compressed_form(alice: Forms) -> None:
    """Security item 9: a form that unpacks to more than it seems is refused."""
    assert alice.post_body(body_of(GOOD), Content_Encoding="gzip").status == 415


def test_length_that_tells_that_the_file_is_too_large(alice: Forms) -> None:
    """Contract: 413 before the bytes are read, where the length is known."""
    headers = {"Content-Type": KIND, "Content-Length": str(10**9), "Expect": "100-continue"}
    with Connection(alice.port) as one:
        one.send(head_of("POST", alice.path, {**headers, **alice.headers}))
        answer = one.read()
    assert (answer.status, answer.interim) == (413, ())
    # A chunk may be less than a file; its fields tell which of them it is.
    with alice.begin(STAGED[:-1000], length=LARGEST) as one:
        assert one.read().status == 413


def test_missing_credentials_invite_nobody(alice: Forms) -> None:
    """A client without credentials that waits to be invited must not send its file."""
    headers = {"Content-Type": KIND, "Content-Length": "1000", "Expect": "100-continue"}
    with Connection(alice.port) as one:
        one.send(head_of("POST", alice.path, headers))
        answer = one.read()
        assert (answer.status, answer.interim) == (401, ())
        assert one.is_closed_by_server()


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_wrong_method(alice: Forms, method: str) -> None:
    """Only POST takes a form."""
    assert ask(alice.port, method, alice.path, alice.headers).status == 405


NO_SESSIONS = [
    *(
        "unknown",
        "..%2f..%2fetc%2fpasswd",
        "a%00b",
        "%2e%2e",
        "x" * 300,
        "half%0d%0a",
        "h%61lf%20",
    ),
    *("00000000-0000-4000-8000-000000000000", "%ff", "half.info", "-"),
]


@pytest.mark.parametrize("session_id", NO_SESSIONS)
def test_no_such_session(alice: Forms, session_id: str) -> None:
    """Security item 2: a strange id is one that nobody has; it never becomes a path."""
    for reply in (alice.state(session_id), alice.cancel(session_id)):
        assert (reply.status, reply.code) == (404, "NOT_FOUND")


def test_session_of_another_kind(alice: Forms) -> None:
    """A session is found only where it was opened: `csv` knows nothing of videos."""
    other = Forms(alice.port, "csv", alice.headers)
    assert other.state("half").status == 404
    assert other.post(b"x", **FIELDS).status == 409


@pytest.mark.parametrize(("user", "tenant"), [("bob", "t1"), ("alice", "t2")])
def test_session_of_somebody_else(alice: Forms, small: Ingest, user: str, tenant: str) -> None:
    """Security item 19: a name is its caller's own, and an id gives no right."""
    upload_id = alice.state("half").data["upload_id"]
    other = client(small, user, tenant)
    for reply in (other.state("half"), other.cancel("half")):
        assert reply.status == 404
    for reply in (
        other.state(upload_id),
        other.cancel(upload_id),
        other.post(b"x", session_id=upload_id, chunk_index=1, total_chunks=3),
    ):
        assert (reply.status, reply.code) == (403, "UNAUTHORIZED_ACCESS")


def test_two_callers_may_use_one_name(small: Ingest) -> None:
    """Contract: a client's own session id names the session for that caller alone."""
    mine, others = client(small), client(small, "bob")
    replies = [
        one.post(b"abc", session_id="same", chunk_index=0, total_chunks=2)
        for one in (mine, others)
    ]
    assert replies[0].data["upload_id"] != replies[1].data["upload_id"]
    assert mine.post(b"1", session_id="same", chunk_index=1, total_chunks=2).status == 201
    assert others.post(b"2", session_id="same", chunk_index=1, total_chunks=2).status == 201
    contents = [blob(small.data_dir, one.data["upload_id"]) for one in replies]
    assert contents == [b"abc1", b"abc2"]


def test_chunks_that_are_too_large_together(small: Ingest) -> None:
    """A file may have more chunks of the largest size than it may have bytes."""
    alice = client(small)
    content = b"x" * CHUNK

    def send(index: int, content: bytes) -> int:
        fields = {"session_id": "sum", "chunk_index": index, "total_chunks": 4}
        return alice.post(content, **fields).status

    assert [send(index, content) for index in (3, 1, 0)] == [202, 202, 202]
    assert send(2, b"x") == 413
    assert alice.cancel("sum").status == 200


# Bodies that end early, or do not end.

LISTEN = "0A"
"""As `/proc/net/tcp` has it; 06 is a connection that only the kernel remembers."""

STAGED = body_of([*text_parts(FIELDS), file_part(b"x" * 500_000)])
LONG = body_of([file_part(b"x" * (CHUNK + 500_000))])


@pytest.mark.parametrize("body", [STAGED, LONG], ids=["chunk", "whole"])
def test_stalled_form(alice: Forms, body: bytes) -> None:
    """A client that falls silent holds a connection and a file for ever."""
    for end in (3, len(body) - 1000):
        with alice.begin(body[:end], length=len(body)) as one:
            assert one.read().status == 408


def left_open(ingest: Ingest) -> list[str]:
    """Return the files of uploads that the process has open, and its clients' connections."""
    found = []
    for one in Path(f"/proc/{ingest.service.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(one.readlink()))
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = f":{ingest.service.port:04X}"
    live = [row[3] for row in rows if row[1].endswith(ours) and row[3] not in {LISTEN, "06"}]
    return [one for one in found if str(ingest.data_dir) in one] + live


@pytest.mark.parametrize("how", ["fin", "rst", "half-close"])
@pytest.mark.parametrize("body", [STAGED, LONG], ids=["chunk", "whole"])
def test_form_that_is_cut(alice: Forms, small: Ingest, body: bytes, how: Cut) -> None:
    """Of two hundred requests that end early, no file, connection or descriptor is left."""

    def handled() -> int:
        return small.service.log.read_text().count("request_handled")

    before = handled()
    for number in range(35):
        one = alice.begin(body[: 100 + number * 12_000], length=len(body))
        one.cut(how)
        with suppress(EOFError, ConnectionError, OSError):
            one.read()
        one.socket.close()
    wait_until(lambda: handled() == before + 35, "all are handled", limit_s=10)
    wait_until(lambda: not left_open(small), "all is closed", lambda: left_open(small), 10)


def test_form_in_broken_chunks(alice: Forms) -> None:
    """A chunked body whose framing breaks would keep its request waiting."""
    headers = {"Content-Type": KIND, "Transfer-Encoding": "chunked", **alice.headers}
    with Connection(alice.port) as one, suppress(ConnectionError):
        one.send(head_of("POST", alice.path, headers), chunk(STAGED[:50_000]), b"zz\r\n")
        assert one.read().status in {400, 408}
