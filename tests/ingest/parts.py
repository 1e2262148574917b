"""Partial and final uploads, as tests make them."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.ingest.conftest import Ingest
from tests.ingest.tus_client import Tus, id_of
from tests.ingest.wire import Answer
from tests.processes import wait_until

__all__ = ["PARTIAL", "held", "join", "joined", "part"]

PARTIAL: Final = {"Upload-Concat": "partial"}


def part(tus: Tus, content: bytes, received: int | None = None) -> str:
    """Open a partial upload and send it, or so many bytes of it; return its path."""
    path = tus.create(len(content), PARTIAL)
    tus.patch(path, 0, content[:received])
    return path


def join(tus: Tus, *urls: str, **headers: str) -> Answer:
    """Ask for a final upload."""
    return tus.post({"Upload-Concat": f"final;{' '.join(urls)}", **headers})


def joined(tus: Tus, path: str) -> None:
    """Wait until a final upload has its bytes, without asking for it as HEAD does."""
    wait_until(lambda: tus.ask("GET", path, {}).status == 307, "the parts are joined")


@contextmanager
def held(ingest: Ingest, path: str) -> Iterator[Path]:
    """Keep the right to write to an upload from everybody; yield its file."""
    upload_id = id_of(path)
    file = ingest.data_dir / "blobs" / upload_id[:2] / f"{upload_id}.part"
    with file.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield file
