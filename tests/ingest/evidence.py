"""What an upload leaves behind: in the data folder, on the streams, in the log."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any, Final

import redis
from msgspec.structs import replace

from shared import events
from shared.sidecar import Sidecar, SidecarDamaged, decode
from shared.streams import event_stream, partition_of
from tests.ingest.tus_client import id_of
from tests.processes import RedisServer, ServiceProcess, wait_until

__all__ = [
    "blob",
    "completed_once",
    "digest",
    "files_of",
    "lifecycle",
    "no_file_is_left",
    "sidecar",
    "snapshot",
    "tracebacks",
]


def blob(data_dir: Path, path: str) -> bytes:
    """Return the bytes that the store has of an upload, complete or not."""
    upload_id = id_of(path)
    for suffix in ("", ".part"):
        file = data_dir / "blobs" / upload_id[:2] / f"{upload_id}{suffix}"
        if file.exists():
            return file.read_bytes()
    raise AssertionError(f"no bytes of {upload_id}")


def sidecar(data_dir: Path, path: str) -> Sidecar:
    """Return the record that the store has of an upload."""
    upload_id = id_of(path)
    return decode((data_dir / "blobs" / upload_id[:2] / f"{upload_id}.info").read_bytes())


def snapshot(data_dir: Path) -> dict[str, str]:
    """Return what is in every file below the data folder, and the names of directories.

    Of small files the SHA-256, of large ones size and time of change, which is quicker. Waits
    until the events of what happened before are published, since that removes markers.
    """
    due = data_dir / "blobs" / "due"
    wait_until(lambda: not os.listdir(due), "no event is due", limit_s=20)
    found = {}
    for folder, _, names in os.walk(data_dir):
        found[folder] = ""
        for name in names:
            if name.endswith(".info.new"):
                continue  # late digests are being recorded
            file = Path(folder) / name
            look = file.stat()
            if look.st_size > 65536:
                found[str(file)] = f"{look.st_size} {look.st_mtime_ns}"
            else:
                found[str(file)] = digest(_without_late_digests(file))
    return found


def _without_late_digests(file: Path) -> bytes:
    """Return a file's content, a record without what is computed when a client has gone."""
    content = file.read_bytes()
    if file.suffix != ".info":
        return content
    with contextlib.suppress(SidecarDamaged):
        record = decode(content)
        facts = replace(record.facts, file_hash="")
        events_ = tuple(replace(one, upload=facts) for one in record.outbox)
        bare = replace(record, digests={}, original_id="", facts=facts, outbox=events_)
        return repr(bare).encode()
    return content


def files_of(data_dir: Path, path: str) -> list[str]:
    """Return the paths of an upload's files: bytes, record, and markers of due events."""
    found = (data_dir / "blobs").rglob(f"{id_of(path)}*")
    return [str(file) for file in found if file.parent.name != "ask"]


def digest(content: bytes) -> str:
    """Return the SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def lifecycle(redis_url: str, path: str, partitions: int = 16) -> list[events.LifecycleEvent]:
    """Return the lifecycle events of an upload that are on the stream now, oldest first."""
    upload_id = id_of(path)
    client: Any = redis.Redis.from_url(redis_url)
    try:
        entries = client.xrange(event_stream(partition_of(upload_id, partitions)))
    finally:
        client.close()
    wanted = upload_id.encode()
    return [events.decode(fields[b"d"]) for _, fields in entries if fields[b"i"] == wanted]


_FAULTS: Final = (
    *("Traceback", '"exception"', '"level": "error"', '"level": "critical"'),
    *("never retrieved", "never awaited"),
)


def tracebacks(service: ServiceProcess) -> list[str]:
    """Return the lines of a service's log that tell of an exception or an error."""
    lines = service.log.read_text().splitlines()
    return [line for line in lines if any(mark in line for mark in _FAULTS)]


def completed_once(server: RedisServer, path: str, *, repeats: bool = False) -> None:
    """Wait until an upload's events are on the stream; check that it completed once.

    Args:
        server: Where the streams are.
        path: Of the upload.
        repeats: An event may stand there more than once, since something had to be published
            again; it is the same event then, and readers drop it by its ``seq``.

    """

    def kinds() -> list[str]:
        found = [(event.seq, type(event).__name__) for event in lifecycle(server.url, path)]
        return [kind for _, kind in (sorted(set(found)) if repeats else found)]

    wait_until(lambda: len(kinds()) >= 2, "the events are published", kinds, limit_s=20)
    told = [kind for kind in kinds() if kind != "FileStored"]  # where storage runs, too
    assert told == ["UploadCreated", "UploadCompleted"], kinds()
    found = lifecycle(server.url, path)
    assert all(one == other for one in found for other in found if one.seq == other.seq), found


def no_file_is_left(data_dir: Path, path: str) -> None:
    """Wait until an upload has left no file, not even a marker."""

    def left() -> list[str]:
        return files_of(data_dir, path)

    wait_until(lambda: not left(), "no file is left", left, limit_s=10)
