"""What web pages need to send and to read, item by item."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.ingest.location import COLLECTION
from shared.sidecar import new_id
from tests.ingest.conftest import Ingest
from tests.ingest.tus_client import TUS, Tus, unknown
from tests.processes import ServiceProcess, running


@pytest.fixture(scope="module")
def shared_with_pages(
    ingest: Ingest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tus]:
    """A client of a process that allows the pages of one origin."""
    folder = tmp_path_factory.mktemp("pages")
    env = {
        "REDIS_URL": ingest.redis.url,
        "DATA_DIR": str(folder / "data"),
        "CORS_ALLOWED_ORIGINS": PAGE,
        "UPLOAD_MAX_FILE_SIZE": "1000",
    }
    service = ServiceProcess("ingest", env, folder / "log")
    with running(service):
        yield Tus(service.port, {"Origin": PAGE})


PAGE = "https://app.example"


@pytest.mark.parametrize("target", [COLLECTION, f"{COLLECTION}/{new_id()}"])
@pytest.mark.parametrize("method", ["POST", "PATCH", "HEAD", "DELETE", "GET"])
def test_item_103_preflight(shared_with_pages: Tus, target: str, method: str) -> None:
    """A preflight allows every method and header that tus needs, without credentials."""
    asked = {"Access-Control-Request-Method": method}
    answer = shared_with_pages.ask("OPTIONS", target, asked)
    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert method in answer.headers["Access-Control-Allow-Methods"].split(", ")
    allowed = answer.headers["Access-Control-Allow-Headers"].lower().split(", ")
    needed = (
        "Tus-Resumable Upload-Length Upload-Offset Upload-Metadata Upload-Defer-Length "
        "Upload-Concat Upload-Checksum Content-Type X-HTTP-Method-Override "
        "X-Requested-With X-Request-ID Authorization"
    )
    assert set(needed.lower().split()) <= set(allowed)


def test_item_104_answers_are_readable(shared_with_pages: Tus) -> None:
    """Pages can read all headers of tus on every answer, errors included."""
    tus = shared_with_pages
    path = tus.create(5)
    answers = [
        tus.head(path),
        tus.patch(path, 3),
        tus.patch(path, 0, b"too long"),
        tus.ask("PATCH", path, {"Upload-Offset": "0"}),
        tus.post({"Upload-Length": "1001"}),
        tus.head(unknown()),
        tus.ask("PUT", path, TUS),
    ]
    assert [answer.status for answer in answers] == [200, 409, 413, 412, 413, 404, 405]
    needed = (
        "Location Upload-Offset Upload-Length Upload-Metadata Upload-Defer-Length "
        "Upload-Concat Upload-Expires Tus-Version Tus-Resumable Tus-Max-Size Tus-Extension "
        "Tus-Checksum-Algorithm"
    )
    for answer in answers:
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
        assert set(needed.split()) <= set(exposed)
