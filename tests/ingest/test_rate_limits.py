"""Rate limits as a client of tus meets them."""

from __future__ import annotations

from tests.ingest.conftest import Starter
from tests.ingest.evidence import tracebacks
from tests.ingest.form_client import Forms, Reply, body_of, file_part, text_parts
from tests.processes import wait_until


def test_too_many_creations(start_ingest: Starter) -> None:
    """They get 429 in tus's short form and open nothing; the upload that runs goes on."""
    ingest = start_ingest(RATE_LIMIT_ENABLED="true", RATE_LIMIT_CREATE="1/s burst 1")
    tus = ingest.tus
    path = tus.create(300)
    opened = 1
    while (
        refused := tus.post({"Upload-Length": "300", "Origin": "https://a.example"})
    ).status == 201:
        opened += 1  # it took us a second to ask
        assert opened < 10
    assert refused.status == 429
    assert refused.headers["Content-Type"].startswith("text/plain")
    assert refused.headers["Retry-After"] == "1"
    assert refused.headers["RateLimit"].startswith('"create";r=0;')
    assert refused.headers["Tus-Resumable"] == "1.0.0"
    assert len(list(ingest.data_dir.rglob("*.info"))) == opened
    for offset in range(0, 300, 10):
        assert tus.offset(path) == offset
        assert tus.patch(path, offset, b"x" * 10).status == 204
    assert tus.ask("OPTIONS", path, {}).status == 204
    assert tracebacks(ingest.service) == []


def test_forms(start_ingest: Starter) -> None:
    """Only what opens a session is a creation, and no header makes chunks reads."""
    ingest = start_ingest(RATE_LIMIT_ENABLED="true", RATE_LIMIT_CREATE="1/s burst 1")
    forms = Forms(ingest.service.port)
    replies: list[Reply] = []

    def opens() -> bool:  # another test may just have used the bucket up
        replies.append(forms.post(b"x", chunk_index=0, total_chunks=3))
        return replies[-1].status == 202

    wait_until(opens, "one session may be opened")
    session_id = replies[-1].data["session_id"]
    opened = 1
    for more in ({}, {"chunk_index": 0, "total_chunks": 2}):
        while (reply := forms.post(b"x", **more)).status != 429:
            opened += 1
            assert reply.answer.headers["RateLimit"].startswith('"create"'), reply
        assert reply.code == "RATE_LIMITED"
    assert len(list(ingest.data_dir.rglob("*.info"))) == opened
    fields = {"session_id": session_id, "chunk_index": 1, "total_chunks": 3}
    assert forms.post(b"y", **fields).status == 202
    body = body_of([*text_parts({**fields, "chunk_index": 2}), file_part(b"z")])
    last = forms.post_body(body, X_HTTP_Method_Override="GET")
    assert last.status == 201
    assert last.answer.headers["RateLimit"].startswith('"change"')
