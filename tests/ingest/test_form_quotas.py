"""Quotas and uploads by form: chunks count as they come, whichever way they come."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis as redis_client

from services.ingest.quotas import COUNTED
from tests.ingest.conftest import Ingest, prepare, started
from tests.ingest.evidence import tracebacks
from tests.ingest.form_client import Forms
from tests.ingest.test_quotas import LIMITS, User, counted
from tests.ingest.wire import ask
from tests.processes import RedisServer, running, wait_until


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingest]:
    """A process with small quotas, and a Redis that tests may empty."""
    folder = tmp_path_factory.mktemp("form-quotas")
    redis = RedisServer(folder / "redis")
    one = prepare(redis, folder / "data", folder / "log", **LIMITS)
    with running(redis), started(one):
        counted(redis)
        yield one
    assert tracebacks(one.service) == []


def forms_of(user: User) -> Forms:
    """Return a client that sends forms for the user."""
    return Forms(user.port, "file", user._extra)


def test_refused_first_chunk_opens_nothing(limited: Ingest) -> None:
    """A first chunk there is no room for must not leave a session that nobody can name."""
    user = User(limited)
    user.create(900)
    for _ in range(6):
        refused = forms_of(user).post(b"x" * 200, chunk_index=0, total_chunks=3)
        assert (refused.status, refused.code) == (413, "QUOTA_EXCEEDED")
    user.counts(bytes=900, open=1, uploads=1)


def test_chunks_at_once_pass_no_quota(limited: Ingest) -> None:
    """Chunks that come together, each of which fits, must not make a file that does not."""
    user = User(limited)
    forms, other = forms_of(user), user.create(600)
    parts = [b"%02d" % n * 50 for n in range(8)]
    forms.chunk(parts, 0, "many")
    with ThreadPoolExecutor(7) as pool:
        replies = list(pool.map(lambda n: forms.chunk(parts, n, "many"), range(1, 8)))
    assert {one.status for one in replies} <= {202, 413}
    assert any(forms.chunk(parts, n, "many").status == 413 for n in range(8))
    assert user.delete(other).status == 204
    assert [forms.chunk(parts, n, "many").status for n in range(8)][-1] == 201
    user.counts(bytes=800, open=0, uploads=1)


def test_refused_chunk_changes_no_count(limited: Ingest) -> None:
    """A chunk in the place of another one must not change what its session counts for."""
    user = User(limited)
    forms = forms_of(user)
    assert forms.chunk([b"x" * 300, b""], 0, "one").status == 202
    assert forms.post(b"y", session_id="one", chunk_index=0, total_chunks=2).status == 409
    user.counts(bytes=300, open=1, uploads=1)


def test_wiped_redis_counts_chunks(limited: Ingest) -> None:
    """Chunks that are not joined yet must count after Redis has forgotten everything."""
    user = User(limited)
    assert forms_of(user).post(b"x" * 800, chunk_index=0, total_chunks=2).status == 202
    client = redis_client.Redis.from_url(limited.redis.url)
    client.flushall()
    wait_until(lambda: client.exists(COUNTED), "the uploads are counted")
    client.close()
    user.counts(bytes=800, open=1, uploads=1)
    assert user.ask_for(300) == 413


def test_status_counts_chunks(limited: Ingest) -> None:
    """The status of a session tells the bytes of its chunks before they are joined."""
    user = User(limited)
    session = forms_of(user).post(b"x" * 100, chunk_index=1, total_chunks=4).data
    path = f"/api/v1/uploads/meta/{session['upload_id']}/status"
    told = json.loads(ask(user.port, "GET", path, user._extra).body)
    assert (told["status"], told["offset"], told["progress"]) == ("uploading", 100, 25.0)
