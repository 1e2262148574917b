"""The upload by form against a real process: what seed document 002 shows, and every order."""

from __future__ import annotations

import random

import pytest

from tests.ingest.conftest import Ingest
from tests.ingest.evidence import (
    blob,
    completed_once,
    sidecar,
)
from tests.ingest.form_client import Forms

MEMBERS = {
    *("upload_id", "session_id", "filename", "status", "progress_percentage"),
    *("chunks_received", "total_chunks", "missing_chunks", "video_id", "analysis_id"),
    *("redirect_url", "duplicate", "cached_result"),
}
"""Contract, `POST /v1/upload/video`."""


@pytest.fixture
def forms(ingest: Ingest) -> Forms:
    """A client of the shared process."""
    return Forms(ingest.service.port)


def pieces(count: int, size: int = 100_000, *, seed: int = 0) -> list[bytes]:
    """Return so many chunks, the last one shorter."""
    source = random.Random(seed or count)
    return [source.randbytes(size if one < count - 1 else size // 3) for one in range(count)]


def is_whole(ingest: Ingest, upload_id: str, content: bytes) -> None:
    """Check that an upload is complete, once, with these bytes, and nothing beside them."""
    completed_once(ingest.redis, upload_id)
    assert blob(ingest.data_dir, upload_id) == content
    folder = ingest.data_dir / "blobs" / upload_id[:2]
    assert {one.name for one in folder.glob(f"{upload_id}*")} == {
        upload_id,
        f"{upload_id}.info",
    }


# What seed document 002 shows.


@pytest.mark.parametrize("file_first", [False, True])
@pytest.mark.parametrize("size", [0, 5, 300_000, 12_000_000])
def test_single_file_upload(ingest: Ingest, forms: Forms, file_first: bool, size: int) -> None:
    """002, 'Single File Upload': a short or a long file, before or after its fields."""
    content = random.Random(size).randbytes(size)
    options = '{"model_type": "resnet50"}'
    reply = forms.post(content, file_first=file_first, priority=7, options=options)
    assert reply.status == 201, reply
    data = reply.data
    assert data.keys() - {"error_code", "error_message"} == MEMBERS
    upload_id = data["upload_id"]
    assert data == {
        "upload_id": upload_id,
        "session_id": upload_id,
        "filename": "video.mp4",
        "status": "completed",
        "progress_percentage": 100.0,
        "chunks_received": 1,
        "total_chunks": 1,
        "missing_chunks": [],
        "video_id": upload_id,
        "analysis_id": data["analysis_id"],
        "duplicate": False,
        "cached_result": None,
        "redirect_url": f"/dashboard/videos/{upload_id}/results",
        "error_code": None,
        "error_message": None,
    }
    facts = sidecar(ingest.data_dir, upload_id).facts
    assert (facts.kind, facts.priority, facts.size) == ("video", 7, size)
    assert (facts.options, facts.job_id) == ({"model_type": "resnet50"}, data["analysis_id"])
    is_whole(ingest, upload_id, content)
