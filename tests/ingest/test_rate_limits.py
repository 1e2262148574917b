"""Rate limits as a client of tus meets them."""

from __future__ import annotations

from tests.ingest.conftest import Starter
from tests.ingest.evidence import tracebacks


def test_too_many_creations(start_ingest: Starter) -> None:
    """They get 429 in tus's short form and open nothing; the upload that runs goes on."""
    ingest = start_ingest(RATE_LIMIT_ENABLED="true", RATE_LIMIT_CREATE="1/s burst 1")
    tus = ingest.tus
    path = tus.create(300)
    refused = tus.post({"Upload-Length": "300", "Origin": "https://a.example"})
    assert refused.status == 429
    assert refused.headers["Content-Type"].startswith("text/plain")
    assert refused.headers["Retry-After"] == "1"
    assert refused.headers["RateLimit"].startswith('"create";r=0;')
    assert refused.headers["Tus-Resumable"] == "1.0.0"
    assert len(list(ingest.data_dir.rglob("*.info"))) == 1
    for offset in range(0, 300, 10):
        assert tus.offset(path) == offset
        assert tus.patch(path, offset, b"x" * 10).status == 204
    assert tus.ask("OPTIONS", path, {}).status == 204
    assert tracebacks(ingest.service) == []
