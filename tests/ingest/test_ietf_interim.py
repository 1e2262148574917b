"""Interim answers of the IETF's protocol, byte by byte and in their order."""

from __future__ import annotations

import os
import re
import time

import pytest

from services.ingest.location import COLLECTION
from tests.ingest.conftest import Ingest, Starter
from tests.ingest.evidence import blob, tracebacks
from tests.ingest.ietf_client import Ietf, limits_of
from tests.ingest.tus_client import path_of, wait_for_offset
from tests.ingest.wire import Answer, Connection, chunk, head_of

SPOKEN = [3, 5, 6, 8]


@pytest.fixture
def client(ingest: Ingest) -> Ietf:
    """A client of the shared process."""
    return Ietf(ingest.service.port)


@pytest.mark.parametrize("interop", SPOKEN)
def test_item_127_announcement(ingest: Ingest, interop: int) -> None:
    """Before a byte of the body has come, the client knows where to resume."""
    client = Ietf(ingest.service.port, interop)
    headers = {**client.told(True), "Content-Length": "5"}
    with client.begin("POST", COLLECTION, headers) as one:
        announced = one.read_interim_answer()
        one.send(b"hello")
        final = one.read()
    assert announced.raw_head.startswith(b"HTTP/1.1 104 Upload Resumption Supported\r\n")
    assert (final.status, final.interim) == (201, ())
    assert blob(ingest.data_dir, path_of(announced)) == b"hello"


@pytest.mark.parametrize("interop", SPOKEN)
def test_item_158_what_an_announcement_tells(ingest: Ingest, interop: int) -> None:
    """It tells address and limits, as far as the draft has limits, and no offset."""
    (told,) = Ietf(ingest.service.port, interop).post(b"hello").interim_headers
    limits = {"Upload-Limit"} if interop >= 6 else set()
    assert set(told) == {"Location", "Upload-Draft-Interop-Version", *limits}


@pytest.mark.parametrize("interop", SPOKEN)
def test_item_167_announcement_names_the_draft(ingest: Ingest, interop: int) -> None:
    """A client would ignore an interim answer that does not name its own draft."""
    (told,) = Ietf(ingest.service.port, interop).post(b"hello").interim_headers
    assert told["Upload-Draft-Interop-Version"] == str(interop)


def test_item_127_nothing_else_on_the_wire(client: Ietf) -> None:
    """The interim answer is whole, and the final one follows it without a byte between."""
    head = {
        **client.told(False),
        "Upload-Draft-Interop-Version": "8",
        "Content-Length": "5",
        "Connection": "close",
    }
    with Connection(client.port) as one:
        one.send(head_of("POST", COLLECTION, head), b"hello")
        got = b""
        while data := one.socket.recv(65536):
            got += data
    form = (
        rb"HTTP/1\.1 104 Upload Resumption Supported\r\n"
        rb"Location: http://127\.0\.0\.1/api/v1/uploads/[0-9a-f-]{36}\r\n"
        rb"Upload-Limit: max-size=67108864, max-age=\d+\r\n"
        rb"Upload-Draft-Interop-Version: 8\r\n\r\n"
        rb"HTTP/1\.1 201 Created\r\n(?:[A-Za-z0-9-]+: [^\r\n]*\r\n)+\r\n"
    )
    assert re.fullmatch(form, got), got


@pytest.mark.parametrize("interop", ["", "2", "4", "7", "9", "8, 8", "x", "?1", "-8", None])
def test_item_166_no_interim_answer_to_others(ingest: Ingest, interop: str | None) -> None:
    """Who names no draft, or one that is not spoken, is sent none."""
    client = Ietf(ingest.service.port, None)
    named = {} if interop is None else {"Upload-Draft-Interop-Version": interop}
    answer = client.post(b"hello", named)
    assert (answer.status, answer.interim) == (201, ())


def test_item_166_no_interim_answer_to_refusals(client: Ietf) -> None:
    """A creation that is refused is not announced, and its body not invited."""
    headers = {**client.told(True), "Expect": "100-continue", "Content-Length": "5"}
    for wrong in ({"Upload-Length": "9"}, {"Content-Encoding": "gzip"}):
        with client.begin("POST", COLLECTION, {**headers, **wrong}) as one:
            answer = one.read()
            assert answer.status in {400, 415}
            assert answer.interim == ()
            assert answer.headers["Connection"] == "close"  # nobody knows what will follow


@pytest.mark.parametrize("interop", SPOKEN)
def test_item_159_both_interim_answers(ingest: Ingest, interop: int) -> None:
    """104 does not replace 100: a client that knows only the latter would wait for ever."""
    client = Ietf(ingest.service.port, interop)
    headers = {**client.told(True), "Expect": "100-continue", "Content-Length": "5"}
    with client.begin("POST", COLLECTION, headers) as one:
        assert [one.read_interim(), one.read_interim()] == [104, 100]
        one.send(b"hello")
        assert one.read().status == 201


def test_item_159_continue_without_announcement(ingest: Ingest) -> None:
    """Who names no draft is invited as ever, at creations, appends and conventional uploads."""
    client = Ietf(ingest.service.port, None)
    path = client.create()
    waits = {"Expect": "100-continue", "Content-Length": "5"}
    for method, target, headers, status in (
        ("POST", COLLECTION, client.told(False), 201),
        ("PATCH", path, client.append_headers(0, False), 204),
        ("POST", COLLECTION, {"Content-Type": "text/plain"}, 201),
    ):
        with client.begin(method, target, {**headers, **waits}) as one:
            assert one.read_interim() == 100
            one.send(b"hello")
            assert one.read().status == status


@pytest.mark.parametrize("expect", [True, False])
def test_item_160_none_to_http_10(client: Ietf, expect: bool) -> None:
    """A client of HTTP/1.0 would take an interim answer for the final one."""
    waits = {"Expect": "100-continue"} if expect else {}
    named = {"Upload-Draft-Interop-Version": "8", "Content-Length": "5", **waits}
    for method, target, headers in (
        ("POST", COLLECTION, client.told(False)),
        ("PATCH", client.create(), client.append_headers(0, False)),
    ):
        head = head_of(method, target, {**headers, **named}).replace(b"HTTP/1.1", b"HTTP/1.0")
        with Connection(client.port) as one:
            one.send(head, b"hello")
            answer = one.read()
        assert answer.status in {201, 204}
        assert answer.interim == ()
        assert answer.raw_head.startswith(b"HTTP/1.0 ")


def send_slowly(one: Connection, content: bytes) -> Answer:
    """Send a body over more than two seconds; check what is told meanwhile.

    Returns the final answer.
    """
    with one:
        started = time.monotonic()
        for at in range(0, len(content), 1000):
            one.send(content[at : at + 1000])
            time.sleep(0.06)  # the pace of the client, not a wait for anything
        took = time.monotonic() - started
        answer = one.read()
    assert set(answer.interim) == {104}
    told = answer.interim_headers
    assert all(head["Upload-Draft-Interop-Version"] == "8" for head in told)
    assert all(set(head) == {"Upload-Offset", "Upload-Draft-Interop-Version"} for head in told)
    offsets = [int(head["Upload-Offset"]) for head in told]
    assert 1 <= len(offsets) <= took  # at most one each second
    assert offsets == sorted(set(offsets))
    assert 0 < offsets[0] <= offsets[-1] <= len(content)
    return answer


def test_item_128_progress_of_a_creation(ingest: Ingest, client: Ietf) -> None:
    """While a first body comes, its client is told now and then what it may forget."""
    content = os.urandom(40_000)
    headers = {**client.told(True), "Content-Length": str(len(content))}
    one = client.begin("POST", COLLECTION, headers)
    path = path_of(one.read_interim_answer())
    assert send_slowly(one, content).status == 201
    assert blob(ingest.data_dir, path) == content


def test_item_147_progress_of_an_append(ingest: Ingest, client: Ietf) -> None:
    """While more bytes come, the client is told the same, and no Location."""
    content = os.urandom(40_000)
    path = client.create()
    assert send_slowly(client.begin_append(path, 0, len(content)), content).status == 201
    assert blob(ingest.data_dir, path) == content


def test_item_147_no_progress_in_draft_01(ingest: Ingest) -> None:
    """Draft -01 knows 104 only as an announcement."""
    client = Ietf(ingest.service.port, 3)
    with client.begin_append(client.create(), 0, 30) as one:
        for _ in range(30):
            one.send(b"x")
            time.sleep(0.05)
        answer = one.read()
    assert (answer.status, answer.interim) == (201, ())


def test_item_111_what_was_told_survives(mortal: Ingest) -> None:
    """After kill -9 the upload has at least the bytes that 104 told to be safe."""
    client = Ietf(mortal.service.port)
    content = os.urandom(2_000_000)
    path = client.create()
    with client.begin_append(path, 0, len(content)) as one:
        one.send(content[:1_000_000])
        wait_for_offset(mortal.tus, path, 1_000_000)
        time.sleep(1.1)  # then the next bytes are a reason to tell
        one.send(content[1_000_000:1_500_000])
        told = int(one.read_interim_answer().headers["Upload-Offset"])
        mortal.service.kill()
    mortal.service.start()
    assert told >= 1_000_000
    at = client.offset(path)
    assert told <= at <= 1_500_000
    assert client.append(path, at, content[at:], complete=True).status == 201
    assert blob(mortal.data_dir, path) == content


def test_client_that_does_not_read(ingest: Ingest, client: Ietf) -> None:
    """A client that has gone before it is told loses nothing of what it sent."""
    content = os.urandom(100_000)
    headers = {**client.told(True), "Content-Length": "200000"}
    with client.begin("POST", COLLECTION, headers) as one:
        path = path_of(one.read_interim_answer())
        one.send(content[:50_000])
        wait_for_offset(ingest.tus, path, 50_000)
        time.sleep(1.1)
        one.send(content[50_000:])
        one.cut("fin")
    wait_for_offset(ingest.tus, path, len(content))
    assert client.offset(path) == len(content)
    assert blob(ingest.data_dir, path) == content


def test_item_168_interim_answers_can_be_configured(start_ingest: Starter) -> None:
    """They can be sent to everyone, once the drafts are past, or to nobody."""
    eager = start_ingest(IETF_SEND_104="always", UPLOAD_MAX_FILE_SIZE="0")
    client = Ietf(eager.service.port, None)
    answer = client.post(b"hello")
    assert answer.interim == (104,)
    assert limits_of(answer).keys() == {"max-age"}  # there is no limit of size
    assert client.append(path_of(answer), 5, complete=True).status == 201
    assert limits_of(client.head(path_of(answer))) == {"min-size": 0}  # item 119
    shy = start_ingest(IETF_SEND_104="never")
    assert Ietf(shy.service.port).post(b"hello").interim == ()
    for one in (eager, shy):
        assert tracebacks(one.service) == []


def test_pipelined_requests(client: Ietf) -> None:
    """Two requests at once on one connection are answered in order, each with its own 104."""
    told = {"Upload-Draft-Interop-Version": "8", **client.told(False)}
    first = head_of("POST", COLLECTION, {**told, "Content-Length": "5"}) + b"hello"
    framed = {**told, "Transfer-Encoding": "chunked"}
    second = head_of("POST", COLLECTION, framed) + chunk(b"world!") + chunk(b"")
    with Connection(client.port) as one:
        one.send(first + second)
        answers = [one.read(), one.read()]
    assert [answer.interim for answer in answers] == [(104,), (104,)]
    assert [answer.headers["Upload-Offset"] for answer in answers] == ["5", "6"]
