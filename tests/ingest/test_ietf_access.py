"""Who may do what with an upload of the IETF's protocol, and for how long (item 164)."""

from __future__ import annotations

import time

import jwt
import pytest

from services.ingest.location import COLLECTION
from tests.ingest.conftest import Ingest, Starter
from tests.ingest.evidence import blob, snapshot, tracebacks
from tests.ingest.ietf_client import Ietf, limits_of, problem_of
from tests.ingest.parts import part
from tests.ingest.tus_client import path_of, wait_for_offset
from tests.ingest.wire import Connection
from tests.processes import wait_until

SECRET = "a secret of more than thirty-two bytes"


def bearer(user: str, tenant: str = "t1", ends_in_s: float = 600) -> dict[str, str]:
    """Return the header that shows a good token."""
    said = {"sub": user, "tenant": tenant, "exp": time.time() + ends_in_s}
    return {"Authorization": f"Bearer {jwt.encode(said, SECRET, 'HS256')}"}


@pytest.fixture
def guarded(start_ingest: Starter) -> Ingest:
    """A process that wants credentials."""
    return start_ingest(AUTH_MODE="required", AUTH_JWT_SECRET=SECRET)


def test_item_164_only_the_owner_reaches_an_upload(guarded: Ingest) -> None:
    """Others, and callers without credentials, learn nothing and change nothing."""
    port = guarded.service.port
    alice = Ietf(port, headers=bearer("alice"))
    path = alice.create(b"hello", {"Upload-Length": "10"})
    before = snapshot(guarded.data_dir)
    for headers, status in (({}, 401), (bearer("bob"), 403), (bearer("alice", "t2"), 403)):
        other = Ietf(port, headers=headers)
        answers = [
            other.head(path),
            other.ask("GET", path),
            other.append(path, 5, b"world", complete=True),
            other.append(path, 3, b"world"),
            other.delete(path),
        ]
        assert [answer.status for answer in answers] == [status] * 5
        for answer in answers:
            assert not {"Upload-Offset", "Upload-Length", "Location"} & set(answer.headers)
            assert not other.is_complete(answer)
    with Ietf(port).begin(
        "POST", COLLECTION, {"Upload-Complete": "?1", "Content-Length": "99999999"}
    ) as one:
        refused = one.read()
    assert (refused.status, refused.interim) == (401, ())
    assert snapshot(guarded.data_dir) == before
    assert alice.append(path, 5, b"world", complete=True).status == 201
    assert tracebacks(guarded.service) == []


def test_item_151_the_last_request_needs_access_too(guarded: Ingest) -> None:
    """Credentials that ran out while an upload went on do not complete it."""
    path = Ietf(guarded.service.port, headers=bearer("alice")).create(b"hello")
    before = snapshot(guarded.data_dir)
    stale = Ietf(guarded.service.port, headers=bearer("alice", ends_in_s=-600))
    answer = stale.append(path, 5, complete=True)
    assert answer.status == 401
    assert not stale.is_complete(answer)
    assert snapshot(guarded.data_dir) == before


def test_item_164_addresses_tell_nothing(ingest: Ingest) -> None:
    """An address is random: neither count nor time nor name can be read from it."""
    client = Ietf(ingest.service.port)
    ids = [client.create(headers={"Content-Disposition": "inline; filename=n"}) for _ in "ab"]
    heads = {one.rpartition("/")[2][:8] for one in ids}
    assert len(heads) == 2
    assert all(one.rpartition("/")[2][14] == "4" for one in ids)  # UUID version 4


def test_item_123_expired_uploads(start_ingest: Starter) -> None:
    """After the age that was told, an upload cannot be continued, and says so."""
    ingest = start_ingest(UPLOAD_SESSION_TIMEOUT_HOURS="0.0005")
    client = Ietf(ingest.service.port)
    answer = client.post(b"hello", {"Upload-Length": "10"})
    assert limits_of(answer)["max-age"] == 1
    path = path_of(answer)
    wait_until(lambda: client.head(path).status == 410, "the upload is past its age")
    late = client.append(path, 5, b"world", complete=True)
    assert late.status == 410
    assert problem_of(late)["error_code"] == "UPLOAD_EXPIRED"


def test_item_164_silent_clients(start_ingest: Starter) -> None:
    """A client that falls silent is told how far it came, and is hung up on."""
    ingest = start_ingest(UPLOAD_IDLE_TIMEOUT="0.4")
    client = Ietf(ingest.service.port)
    path = client.create()
    with client.begin_append(path, 0, 10, b"hello") as one:
        answer = one.read()
        assert answer.status == 408
        assert answer.headers["Upload-Offset"] == "5"
        assert not client.is_complete(answer)
    assert client.append(path, 5, b"world", complete=True).status == 201


def test_shutdown_keeps_what_came(start_ingest: Starter) -> None:
    """A process that stops tells its clients to resume, and has stored all that arrived."""
    ingest = start_ingest()
    client = Ietf(ingest.service.port)
    path = client.create()
    with client.begin_append(path, 0, 10, b"hello") as one:
        wait_for_offset(ingest.tus, path, 5)
        assert ingest.service.terminate() == 0
        answer = one.read()
    assert answer.status == 503
    assert answer.headers["Retry-After"]
    assert not client.is_complete(answer)
    assert blob(ingest.data_dir, path) == b"hello"
    ingest.service.start()
    assert client.append(path, 5, b"world", complete=True).status == 201


def test_replica_takes_over(pair: tuple[Ingest, Ingest]) -> None:
    """A client that comes back to another process gets the upload from the first one."""
    here, there = (Ietf(one.service.port) for one in pair)
    path = here.create()
    with here.begin_append(path, 0, 10, b"hello") as one:
        wait_for_offset(pair[0].tus, path, 5)
        assert there.offset(path) == 5
        assert one.read().status == 423
    assert there.append(path, 5, b"world", complete=True).status == 201
    assert here.is_complete(here.head(path))
    with Connection(here.port) as again:
        again.request("PATCH", path, here.append_headers(10, True))
        assert again.read().status == 201


def test_a_piece_of_a_tus_upload_is_no_file(ingest: Ingest) -> None:
    """A complete piece must not be said to lie in storage, where it never will."""
    path = part(ingest.tus, b"piece")
    answer = ingest.tus.ask("GET", path, {"Upload-Draft-Interop-Version": "8"})
    assert (answer.status, "Location" in answer.headers) == (204, False)
