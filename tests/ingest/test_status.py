"""The status of an upload over HTTP, field for field."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from services.ingest.location import COLLECTION
from services.ingest.status import status_of
from shared.blobs.store import Stored
from shared.events import UploadFacts
from shared.sidecar import Sidecar, Status
from tests.ingest.conftest import Ingest
from tests.ingest.tus_client import id_of, wait_for_offset

FIELDS = {
    *("token", "status", "progress", "offset", "size"),
    *("created_at", "updated_at", "completed_at"),
}


def stored(
    *,
    status: Status = "created",
    offset: int = 0,
    size: int | None = 100,
    modified_at: float = 2.0,
    completed_at: int | None = None,
) -> Stored:
    """Return an upload that was created in the first second of 1970."""
    facts = UploadFacts(user_id="u", tenant="t", created_at=1000, job_id="j", size=size)
    record = Sidecar(upload_id="id", status=status, facts=facts, completed_at=completed_at)
    return Stored(
        sidecar=record,
        offset=offset,
        modified_at=modified_at,
        visible=status == "completed",
    )


@pytest.mark.parametrize(
    ("upload", "status", "progress"),
    [
        (stored(), "created", 0.0),
        (stored(offset=1), "uploading", 1.0),
        (stored(offset=1, size=3), "uploading", 33.33),
        (stored(offset=99_999_999, size=100_000_000), "uploading", 99.99),
        (stored(offset=100), "uploading", 99.99),
        (stored(offset=50, size=None), "uploading", 0.0),
        (stored(size=None), "created", 0.0),
        (stored(size=0), "created", 0.0),
        (stored(status="completed", offset=100), "completed", 100.0),
        (stored(status="completed", size=0), "completed", 100.0),
        (stored(status="failed"), "failed", 0.0),
        (stored(status="expired", offset=10), "failed", 10.0),
    ],
)
def test_state_and_percent(upload: Stored, status: str, progress: float) -> None:
    """100 percent is said only of what is complete; without a length no percent is known."""
    found = status_of(upload)
    assert (found.status, found.progress) == (status, progress)


def test_times() -> None:
    """Times are RFC 3339 in UTC, and the last change is never before the creation."""
    running = status_of(stored(modified_at=2.5))
    assert running.created_at == "1970-01-01T00:00:01Z"
    assert running.updated_at == "1970-01-01T00:00:02.500Z"
    assert running.completed_at is None
    done = status_of(stored(status="completed", completed_at=3000))
    assert done.updated_at == done.completed_at == "1970-01-01T00:00:03Z"
    assert status_of(stored(modified_at=0.5)).updated_at == running.created_at


def ask(ingest: Ingest, token: str) -> dict[str, Any]:
    """Return the status as JSON."""
    answer = ingest.tus.ask("GET", f"{COLLECTION}/meta/{token}/status", {})
    assert answer.status == 200, answer
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.headers["Cache-Control"] == "no-store"
    body: dict[str, Any] = json.loads(answer.body)
    assert set(body) == FIELDS
    assert body["token"] == token
    return body


def test_from_creation_to_completion(ingest: Ingest) -> None:
    """The status follows an upload, and shows what has arrived while a PATCH is running."""
    path = ingest.tus.create(1000)
    token = id_of(path)
    created = ask(ingest, token)
    assert (created["status"], created["offset"], created["size"]) == ("created", 0, 1000)
    assert created["completed_at"] is None
    age = time.time() - datetime.fromisoformat(created["created_at"]).timestamp()
    assert 0 <= age < 20
    with ingest.tus.begin_patch(path, 0, 1000, b"x" * 250) as running:
        wait_for_offset(ingest.tus, path, 250)
        during = ask(ingest, token)
        assert (during["status"], during["offset"]) == ("uploading", 250)
        assert during["progress"] == 25.0
        running.send(b"x" * 750)
        assert running.read().status == 204  # the looks did not disturb it
    done = ask(ingest, token)
    assert (done["status"], done["progress"], done["offset"]) == ("completed", 100.0, 1000)
    assert done["updated_at"] == done["completed_at"]
    assert datetime.fromisoformat(done["completed_at"]).tzinfo is UTC


def test_deferred_length(ingest: Ingest) -> None:
    """While the length is deferred the size is null."""
    path = ingest.tus.create(None)
    ingest.tus.patch(path, 0, b"x" * 10)
    status = ask(ingest, id_of(path))
    assert (status["size"], status["offset"], status["progress"]) == (None, 10, 0.0)


@pytest.mark.parametrize("token", ["x", "..%2f..%2fetc", "0" * 300, "%00", "a" * 36 + ".info"])
def test_unknown_token(ingest: Ingest, token: str) -> None:
    """What is no upload, or no longer one, is not found."""
    answer = ingest.tus.ask("GET", f"{COLLECTION}/meta/{token}/status", {})
    assert answer.status == 404
    problem = json.loads(answer.body)
    assert problem["error_code"] == "NOT_FOUND"
    assert problem["status"] == 404


def test_deleted_upload(ingest: Ingest) -> None:
    """A deleted upload has no status."""
    path = ingest.tus.create(10)
    ingest.tus.delete(path)
    answer = ingest.tus.ask("GET", f"{COLLECTION}/meta/{id_of(path)}/status", {})
    assert answer.status == 404
