"""Input that nobody should send: the exact status of each, and nothing in the store changes.

With ``AUTH_MODE=required``, so that every request also passes the checks of who is calling.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt
import pytest

from services.ingest.location import COLLECTION
from tests.ingest.conftest import Ingest, Starter
from tests.ingest.evidence import blob, snapshot, tracebacks
from tests.ingest.tus_client import CHUNK, TUS, Tus, id_of, metadata, unknown, wait_for_offset
from tests.ingest.wire import Answer, Connection, chunk, head_of
from tests.processes import RedisServer, ServiceProcess, running, wait_until

SECRET: Final = "a secret of more than thirty-two bytes"
LARGEST: Final = 10_000_000


def token(user: str, tenant: str = "t1", secret: str = SECRET, **claims: Any) -> str:
    """Return a token that is good for a minute, changed by ``claims``."""
    said = {"sub": user, "tenant": tenant, "exp": time.time() + 60, **claims}
    return jwt.encode(said, secret, "HS256")


def bearer(user: str, tenant: str = "t1", **claims: Any) -> dict[str, str]:
    """Return the header that shows a good token."""
    return {"Authorization": f"Bearer {token(user, tenant, **claims)}"}


@dataclass(frozen=True)
class Guarded:
    """An ingest process that wants credentials, with two uploads of user ``alice`` in it."""

    ingest: Ingest
    alice: Tus
    half: str
    """Path of an upload that has 300 of its 1000 bytes."""
    done: str
    """Path of a finished upload."""

    @property
    def port(self) -> int:
        """Of the public listener."""
        return self.ingest.service.port

    def raw(self, data: bytes) -> Answer | None:
        """Send bytes as they are; return the answer, ``None`` if the connection just ends."""
        with Connection(self.port) as one:
            try:
                one.send(data)
                return one.read()
            except (EOFError, ConnectionError):
                return None


@pytest.fixture(scope="module")
def setting(bus: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """The process, for all tests of this module."""
    folder = tmp_path_factory.mktemp("guarded")
    env = {
        "REDIS_URL": bus.url,
        "DATA_DIR": str(folder / "data"),
        "AUTH_MODE": "required",
        "AUTH_JWT_SECRET": SECRET,
        "UPLOAD_MAX_FILE_SIZE": str(LARGEST),
    }
    service = ServiceProcess("ingest", env, folder / "log")
    with running(service):
        alice = Tus(service.port, bearer("alice", exp=time.time() + 3600))
        half, done = alice.create(1000), alice.create(5)
        assert alice.patch(half, 0, b"x" * 300).status == 204
        assert alice.patch(done, 0, b"hello").status == 204
        epoch = folder / "data" / "blobs" / "epoch"
        wait_until(epoch.exists, "its Redis is known")
        yield Guarded(Ingest(service, bus, folder / "data"), alice, half, done)


@pytest.fixture
def guarded(setting: Guarded) -> Iterator[Guarded]:
    """The process; after the test nothing has changed, and no traceback was logged."""
    before = snapshot(setting.ingest.data_dir)
    yield setting
    assert snapshot(setting.ingest.data_dir) == before
    assert tracebacks(setting.ingest.service) == []


def test_good_input_is_taken(setting: Guarded) -> None:
    """What the bad requests below are changed from is good."""
    path = setting.alice.create(1000, {"Upload-Metadata": metadata(filename="a.bin")})
    assert setting.alice.patch(path, 0, b"x" * 1000).status == 204


BAD_LENGTHS = ["-1", "-0", "1e9", "0x5", "\xd9\xa5", "5.0", "1" * 19, ""]


@pytest.mark.parametrize("length", [*BAD_LENGTHS, "9" * 400])
def test_bad_length(guarded: Guarded, length: str) -> None:
    """A length that is no number, or too large for one, gets 400."""
    assert guarded.alice.post({"Upload-Length": length}).status == 400


@pytest.mark.parametrize("length", [LARGEST + 1, 2**53, 10**18 - 1])
def test_huge_length(guarded: Guarded, length: int) -> None:
    """A length over the limit gets 413."""
    assert guarded.alice.post({"Upload-Length": str(length)}).status == 413


@pytest.mark.parametrize("version", ["0.2.2", "1.0.1", "", "1.0.0;", "\xff"])
@pytest.mark.parametrize("method", ["POST", "PATCH", "HEAD", "DELETE"])
def test_wrong_version(guarded: Guarded, version: str, method: str) -> None:
    """Another version gets 412 from every method."""
    target = COLLECTION if method == "POST" else guarded.half
    headers = {**CHUNK, "Tus-Resumable": version, "Upload-Length": "9", "Upload-Offset": "300"}
    assert guarded.alice.ask(method, target, headers, b"").status == 412


@pytest.mark.parametrize(
    ("offset", "status"),
    [("299", 409), ("301", 409), ("0", 409), ("1000", 409), ("9" * 18, 409)]
    + [(bad, 400) for bad in ("-300", "3e2", " ", "", "300,300", "9" * 19, "0x12c", "\xb3")],
)
def test_wrong_offset(guarded: Guarded, offset: str, status: int) -> None:
    """A wrong offset gets 409, and what is no offset gets 400."""
    assert guarded.alice.patch(guarded.half, offset, b"y" * 700).status == status


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("filename !!!", 400),
        ("filename YQ", 400),
        ("filename YQ==,filename Yg==", 400),
        ("name\xe4 YQ==", 400),
        ("a " + "A" * 7000 + "=", 400),
        (",".join(f"k{n}" for n in range(40)), 400),
        ("," * 4000, 400),
        ("a " + "QUFB" * 250_000, 400),  # 1 MB: more than one header may have
    ],
)
def test_bad_metadata(guarded: Guarded, header: str, status: int) -> None:
    """Metadata that breaks the rules, or is a bomb, gets 400."""
    headers = {"Upload-Length": "5", "Upload-Metadata": header}
    assert guarded.alice.post(headers).status == status


def strange_ids(real: str) -> list[str]:
    """Return things that are no ids, made of a real one, and of ways out of the folder."""
    ways_out = [
        *("..", "../..", "%2e%2e", "%2e%2e%2f", "..%2f", "%252e%252e%252f", "..%5c", "..\\"),
        *("%c0%ae%c0%ae%c0%af", "%uff0e%uff0e", "....//", "/etc/passwd", "%2fetc%2fpasswd"),
        *("..;/", "%2e%2e;", "..%00", "..%0d%0a", "\xc0\xae\xc0\xae", "..%ef%bc%8f"),
    ]
    suffixes = [
        *(".info", ".part", ".info.new", ".lock", ".tmp", ".1", "%00", "%00.info", "%20", "."),
        *("/", "//", "/.", "/..", "%2f", "%2finfo", ";a", ":$DATA", "%0a", "\\", "\x7f", "~"),
    ]
    return [
        *(way + real for way in ways_out),
        *(real + suffix for suffix in suffixes),
        *(f"{real[:2]}/{real}", f"{real[:2]}%2f{real}", f"./{real}", f"%2e/{real}"),
        *(real.upper(), real.replace("-", ""), "{" + real + "}", "urn:uuid:" + real),
        *(real[:-1], real + "0", "%20" + real, real * 9, "x" * 300),
        *("%00", "%", "%zz", "%u0000", "\xff\xfe", "epoch", "due", "ask", ".probe", "nul", "-"),
    ]


def test_strange_ids(guarded: Guarded) -> None:
    """Ids that lead elsewhere, or name a file beside the bytes, are found by no method."""
    for strange in strange_ids(id_of(guarded.half)):
        target = f"{COLLECTION}/{strange}"
        for method in ("HEAD", "PATCH", "DELETE", "GET"):
            shown = bearer("alice")
            offset = {"Upload-Offset": "300"}
            with Connection(guarded.port) as one:
                one.request(method, target, {**CHUNK, **offset, **shown}, b"")
                answer = one.read(no_body=method == "HEAD")
            # 400: aiohttp takes no such request line. 405: it is the collection.
            assert answer.status in {404, 400, 405}, (method, strange, answer)
            assert "Upload-Offset" not in answer.headers


@pytest.mark.parametrize("strange", ["%2e%2e%2f", "..%2f..%2f", "x.info", "%00", "a" * 300])
@pytest.mark.parametrize("method", ["HEAD", "PATCH", "DELETE", "GET"])
def test_no_such_upload(guarded: Guarded, strange: str, method: str) -> None:
    """What cannot be an id gets exactly 404, as an unknown upload does."""
    for target in (f"{COLLECTION}/{strange}", unknown()):
        headers = {**CHUNK, "Upload-Offset": "0"}
        assert guarded.alice.ask(method, target, headers).status == 404


@pytest.mark.parametrize("target", ["half", "done"])
def test_body_that_is_too_long(guarded: Guarded, target: str) -> None:
    """A body that is said to pass the end gets 413, even on a finished upload."""
    path, offset = (guarded.half, 300) if target == "half" else (guarded.done, 5)
    assert guarded.alice.patch(path, offset, b"y" * 701).status == 413


def test_chunked_body_that_is_too_long(guarded: Guarded) -> None:
    """A chunked body on a finished upload gets 413 as well."""
    framed = chunk(b"!") + chunk(b"")
    with guarded.alice.begin_patch(guarded.done, 5, None, framed) as one:
        assert one.read().status == 413
    assert blob(guarded.ingest.data_dir, guarded.done) == b"hello"


def test_chunked_body_stops_at_the_length(setting: Guarded) -> None:
    """Of a chunked body exactly what fits is stored, and its answer is 413."""
    path = setting.alice.create(1000)
    framed = chunk(b"x" * 2_000_000) + chunk(b"")
    with setting.alice.begin_patch(path, 0, None) as one:
        one.send(framed)
        assert one.read().status == 413
    assert blob(setting.ingest.data_dir, path) == b"x" * 1000
    assert tracebacks(setting.ingest.service) == []


def bad_credentials() -> dict[str, Mapping[str, str]]:
    """Return headers that show nobody, or nobody that is known."""
    good = token("alice")
    head, body, signature = good.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    said = {"sub": "alice", "tenant": "t1", "exp": time.time() + 60}
    tokens = {
        "other secret": token("alice", secret="another secret of thirty-two bytes!"),
        "expired": token("alice", exp=time.time() - 3600),
        "no exp": jwt.encode({"sub": "alice"}, SECRET, "HS256"),
        "no sub": jwt.encode({"exp": time.time() + 60}, SECRET, "HS256"),
        "HS512": jwt.encode(said, SECRET * 2, "HS512"),
        "alg none": f"{none}.{body}.",
        "alg none, signed": f"{none}.{body}.{signature}",
        "cut": good[:-2],
        "no signature": f"{head}.{body}.",
        "two parts": f"{head}.{body}",
        "four parts": f"{good}.x",
        "user with a space": token("a b"),
        "user that is a number": jwt.encode({**said, "sub": 5}, SECRET, "HS256"),
        "nothing": "",
        "null": "null",
    }
    shown: dict[str, Mapping[str, str]] = {
        name: {"Authorization": f"Bearer {one}"} for name, one in tokens.items()
    }
    return shown | {
        "nobody": {},
        "basic": {"Authorization": "Basic YWxpY2U6eA=="},
        "no scheme": {"Authorization": good},
        "bearer alone": {"Authorization": "Bearer"},
        "other header": {"X-Authorization": f"Bearer {good}"},
        "cookie": {"Cookie": f"token={good}"},
    }


@pytest.mark.parametrize("name", bad_credentials())
def test_bad_credentials(guarded: Guarded, name: str) -> None:
    """Without good credentials every method gets 401, and no byte of a body is stored."""
    nobody = Tus(guarded.port, bad_credentials()[name])
    answers = [
        nobody.post({"Upload-Length": "5"}),
        nobody.post({**CHUNK, "Upload-Length": "5"}, b"hello"),
        nobody.patch(guarded.half, 300, b"y" * 700),
        nobody.head(guarded.half),
        nobody.delete(guarded.half),
        nobody.ask("GET", guarded.done, {}),
        nobody.ask("POST", guarded.half, {**TUS, "X-HTTP-Method-Override": "DELETE"}),
        nobody.ask("OPTIONS", guarded.half, {**TUS, "X-HTTP-Method-Override": "DELETE"}),
        nobody.ask("GET", f"{COLLECTION}/meta/{id_of(guarded.half)}/status", {}),
        nobody.ask("HEAD", f"{guarded.half}?token={token('alice')}", TUS),
        nobody.head(unknown()),
    ]
    for answer in answers:
        assert answer.status == 401, answer
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


STRANGERS = {
    "same tenant": bearer("bob"),
    "same name, other tenant": bearer("alice", "t2"),
    "admin of another tenant": bearer("root", "t2", scope="admin"),
    "name in other letters": bearer("Alice"),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_somebody_elses_upload(guarded: Guarded, who: str) -> None:
    """Good credentials of another one get 403 from every method, and change nothing."""
    stranger = Tus(guarded.port, STRANGERS[who])
    for path, offset in ((guarded.half, 300), (guarded.done, 5)):
        answers = [
            stranger.head(path),
            stranger.patch(path, offset, b"y"),
            stranger.patch(path, offset),
            stranger.delete(path),
            stranger.ask("GET", path, {}),
            stranger.ask("POST", path, {**TUS, "X-HTTP-Method-Override": "DELETE"}),
            stranger.ask("GET", f"{COLLECTION}/meta/{id_of(path)}/status", {}),
        ]
        for answer in answers:
            assert answer.status == 403, answer
            assert "Upload-Offset" not in answer.headers
            assert "Location" not in answer.headers


def test_strangers_disturb_nobody(setting: Guarded) -> None:
    """A running PATCH does not notice what strangers ask of its upload."""
    alice, bob = setting.alice, Tus(setting.port, bearer("bob"))
    path = alice.create(1000)
    with alice.begin_patch(path, 0, 1000, b"x" * 100) as one:
        wait_for_offset(alice, path, 100)
        for answer in (bob.head(path), bob.patch(path, 100, b"y" * 900), bob.delete(path)):
            assert answer.status == 403
        one.send(b"x" * 900)
        assert one.read().status == 204
    assert blob(setting.ingest.data_dir, path) == b"x" * 1000


def test_admin_of_the_tenant(setting: Guarded) -> None:
    """An admin of the tenant may look at, continue and delete the uploads of its users."""
    path = setting.alice.create(10)
    admin = Tus(setting.port, bearer("root", scope="admin"))
    assert admin.offset(path) == 0
    assert admin.patch(path, 0, b"hello").status == 204
    assert admin.delete(path).status == 204


def lines(*headers: bytes, line: bytes = b"HEAD /x HTTP/1.1", host: bytes = b"a") -> bytes:
    """Return the head of a request, as it is."""
    return b"\r\n".join([line, b"Host: " + host, *headers, b"", b""])


MALFORMED = {
    "no colon": lines(b"Upload-Offset 5"),
    "space before the colon": lines(b"Upload-Offset : 5"),
    "empty name": lines(b": 5"),
    "name with a space": lines(b"Upload Offset: 5"),
    "name with NUL": lines(b"Up\x00load: 5"),
    "value with NUL": lines(b"Upload-Offset: 5\x00"),
    "folded line": lines(b"Upload-Metadata: a", b" YQ=="),
    "lone LF": b"HEAD /x HTTP/1.1\nHost: a\n\n",
    "lone CR": lines(b"A: b\rUpload-Offset: 5"),
    "huge header": lines(b"Upload-Metadata: a " + b"A" * 1_000_000),
    "huge name": lines(b"A" * 100_000 + b": 5"),
    "huge path": lines(line=b"HEAD /" + b"a" * 100_000 + b" HTTP/1.1"),
    "many headers": lines(*(b"A%d: 5" % n for n in range(1000))),
    "two lengths": lines(b"Content-Length: 5", b"Content-Length: 6"),
    "length and chunked": lines(
        b"Content-Length: 5", b"Transfer-Encoding: chunked", line=b"PATCH /x HTTP/1.1"
    ),
    "length with a sign": lines(b"Content-Length: +5", line=b"PATCH /x HTTP/1.1"),
    "negative length": lines(b"Content-Length: -5", line=b"PATCH /x HTTP/1.1"),
    "huge length": lines(b"Content-Length: 99999999999999999999", line=b"PATCH /x HTTP/1.1"),
    "unknown coding": lines(b"Transfer-Encoding: tea", line=b"PATCH /x HTTP/1.1"),
    "two hosts": lines(b"Host: b"),
    "unknown method": lines(line=b"TEA /x HTTP/1.1"),
    "method in small letters": lines(line=b"head /x HTTP/1.1"),
    "huge method": lines(line=b"A" * 100_000 + b" /x HTTP/1.1"),
    "no path": lines(line=b"HEAD HTTP/1.1"),
    "path with a space": lines(line=b"HEAD /a b HTTP/1.1"),
    "other version": lines(line=b"HEAD /x HTTP/9.9"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "noise": bytes(range(256)) * 10,
    "NULs": b"\x00" * 1000,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_request(guarded: Guarded, name: str) -> None:
    """What is no HTTP gets 400 and the end of the connection, and no traceback in the log."""
    with Connection(guarded.port) as one:
        one.send(MALFORMED[name])
        answer = one.read()
        assert answer.status == 400, answer
        assert one.is_closed_by_server()


@pytest.mark.parametrize("line", [b"TRACE /x HTTP/1.1", b"CONNECT a:1 HTTP/1.1"])
def test_methods_of_proxies(guarded: Guarded, line: bytes) -> None:
    """TRACE and CONNECT do nothing."""
    with Connection(guarded.port) as one:
        one.send(lines(line=line))
        assert one.read().status in {400, 401, 404, 405}


def test_half_a_request(guarded: Guarded) -> None:
    """A client that leaves in the middle of a request line or header leaves no trace."""
    for part in (b"", b"PATCH", b"PATCH /x HTTP/1.1\r\nUpload-Off", lines()[:-2]):
        with Connection(guarded.port) as one:
            one.send(part)


def test_broken_chunks(setting: Guarded) -> None:
    """Framing that breaks ends neither the service nor the upload; the bytes before it stay."""
    path = setting.alice.create(1000)
    for broken in (b"xyz\r\n", b"-1\r\n", b"fffffffffffffffffff\r\n", b"5\r\nhelloX\r\n"):
        offset = setting.alice.offset(path)
        with setting.alice.begin_patch(path, offset, None, chunk(b"x" * 10)) as one:
            wait_for_offset(setting.alice, path, offset + 10)
            one.send(broken)
            kept = setting.alice.offset(path)
            assert offset + 10 <= kept <= offset + 15
    assert tracebacks(setting.ingest.service) == []


@pytest.mark.parametrize("size", [100, 1_000_000])
def test_chunk_extensions(setting: Guarded, size: int) -> None:
    """What chunks say besides their size is read over, however long it is."""
    path = setting.alice.create(5)
    framed = b"5;x=" + b"A" * size + b"\r\nhello\r\n" + chunk(b"")
    with setting.alice.begin_patch(path, 0, None) as one:
        one.send(framed)
        assert one.read().headers["Upload-Offset"] == "5"
    assert blob(setting.ingest.data_dir, path) == b"hello"


def test_tiny_chunks(setting: Guarded) -> None:
    """A body in chunks of one byte holds up nobody else."""
    path, framed = setting.alice.create(200_000), chunk(b"x") * 200_000 + chunk(b"")
    with setting.alice.begin_patch(path, 0, None) as one:
        sender = threading.Thread(target=one.send, args=(framed,))
        sender.start()
        started = time.monotonic()
        assert setting.alice.offset(setting.half) == 300
        assert time.monotonic() - started < 5.0
        assert one.read().headers["Upload-Offset"] == "200000"
        sender.join()


def test_requests_in_a_row(guarded: Guarded) -> None:
    """Requests that are sent before the one before is answered are answered in their order."""
    shown = {**bearer("alice"), **CHUNK, "Content-Length": "5"}
    with Connection(guarded.port) as one:
        wrong = head_of("PATCH", guarded.half, {**shown, "Upload-Offset": "0"})
        one.send(wrong + b"hello", wrong + b"hello", head_of("HEAD", guarded.half, shown)[:-2])
        one.send(b"\r\nhello")
        assert [one.read().status for _ in range(2)] == [409, 409]
        assert one.read(no_body=True).headers["Upload-Offset"] == "300"


def test_errors_tell_nothing(guarded: Guarded) -> None:
    """No answer shows a path, a version of a library, or a name of a module."""
    answers = [
        guarded.alice.patch(guarded.half, 5),
        guarded.alice.head(unknown()),
        guarded.alice.ask("GET", f"{COLLECTION}/meta/x/status", {}),
        guarded.alice.ask("TRACE", guarded.half, {}),
        guarded.alice.ask("GET", "/nowhere", {}),
        Tus(guarded.port).head(guarded.half),
    ]
    for answer in answers:
        shown = (answer.raw_head + answer.body).lower()
        for secret in (b"aiohttp", b"python", b"/tmp", b".py", b"traceback", b"redis"):
            assert secret not in shown, answer
        assert answer.headers["Server"] == "uploads"


def test_log_keeps_one_line_a_request(setting: Guarded) -> None:
    """What clients send cannot begin a line of the log, nor does a token get into it."""
    evil = f"{COLLECTION}/%0a%7B%22level%22%3A%22critical%22%7D%0d%1b[31m"
    setting.alice.ask("GET", evil, {"X-Request-ID": "evil id {}"})
    setting.alice.ask("GET", f"{setting.half}?token=s3cr3t", {})
    text = setting.ingest.service.log.read_text()
    for line in text.splitlines():
        assert json.loads(line)["level"] in {"info", "warning", "debug"}
    assert "s3cr3t" not in text
    assert "Bearer" not in text


def test_damaged_record(start_ingest: Starter) -> None:
    """An upload whose record cannot be read is served to nobody, and the others go on."""
    ingest = start_ingest()
    tus, paths = ingest.tus, [ingest.tus.create(10) for _ in range(3)]
    contents = (b"", b"{", b'{"upload_id":"x"}')
    for path, content in zip(paths, contents, strict=True):
        info = ingest.data_dir / "blobs" / id_of(path)[:2] / f"{id_of(path)}.info"
        info.write_bytes(content)
        for answer in (
            tus.head(path),
            tus.patch(path, 0, b"hello"),
            tus.delete(path),
            tus.ask("GET", path, {}),
            tus.ask("GET", f"{COLLECTION}/meta/{id_of(path)}/status", {}),
        ):
            assert answer.status == 500, answer
            assert "Upload-Offset" not in answer.headers
        assert info.read_bytes() == content
        assert blob(ingest.data_dir, path) == b""
    assert tus.offset(tus.create(10)) == 0
    assert "Traceback" not in ingest.service.log.read_text()


def test_planted_links(start_ingest: Starter, tmp_path: Path) -> None:
    """A symbolic link in place of the bytes is not followed."""
    ingest = start_ingest()
    victim = tmp_path / "victim"
    victim.write_bytes(b"secret")
    path = ingest.tus.create(10)
    part = ingest.data_dir / "blobs" / id_of(path)[:2] / f"{id_of(path)}.part"
    part.unlink()
    part.symlink_to(victim)
    assert ingest.tus.patch(path, 6, b"hell").status == 503
    assert ingest.tus.head(path).status == 423  # clients would take a 5xx for the end of it
    assert victim.read_bytes() == b"secret"
    assert "Traceback" not in ingest.service.log.read_text()


def test_head_of_a_request_is_repeatable(guarded: Guarded) -> None:
    """After a refusal the same connection goes on with the next request, body and all."""
    with Connection(guarded.port) as one:
        for _ in range(3):
            headers = {**CHUNK, "Upload-Offset": "5", **bearer("alice")}
            one.request("PATCH", guarded.half, headers, b"y" * 500)
            assert one.read().status == 409
            one.send(head_of("HEAD", guarded.half, {**TUS, **bearer("alice")}))
            assert one.read(no_body=True).headers["Upload-Offset"] == "300"
