"""Every message shape that the five documents have, with its line and its members.

Written down from the documents, apart from the tables of the tests: so neither can forget what
the other has. A member's type is a tuple of the JSON types that it may have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

__all__ = ["SHAPES", "Shape", "faults_in", "shape_of"]

Kinds: TypeAlias = tuple[type, ...]

TEXT: Final[Kinds] = (str,)
COUNT: Final[Kinds] = (int,)
NUMBER: Final[Kinds] = (int, float)
OBJECT: Final[Kinds] = (dict,)
NOTHING: Final = type(None)


@dataclass(frozen=True)
class Shape:
    """One message as a document has it."""

    line: str
    """``document:line``."""
    dialect: str
    to_client: bool
    marks: Mapping[str, str]
    """What tells it from the others of its dialect."""
    members: Mapping[str, Kinds]
    """What it has, by a dotted path."""


def _out(line: str, dialect: str, marks: Mapping[str, str], **members: Kinds) -> Shape:
    dotted = {name.replace("__", "."): kinds for name, kinds in members.items()}
    return Shape(line, dialect, True, marks, dotted)


def _in(line: str, dialect: str, kind: str, **members: Kinds) -> Shape:
    return Shape(line, dialect, False, {"type": kind}, members)


_ENVELOPE: Final[dict[str, Kinds]] = {
    "session_id": TEXT,
    "user_id": TEXT,
    "timestamp": TEXT,
    "data__percentage": NUMBER,
    "data__bytes_uploaded": COUNT,
    "data__total_bytes": (int, NOTHING),
    "data__upload_speed": NUMBER,
    "data__estimated_completion": (str, NOTHING),
}
_FLAT: Final[dict[str, Kinds]] = {
    "upload_id": TEXT,
    "progress": NUMBER,
    "bytes_sent": COUNT,
    "total_size": COUNT,
}
_EVENT: Final[dict[str, Kinds]] = {"session_id": (str, NOTHING), "timestamp": TEXT}
_JOB: Final[dict[str, Kinds]] = {
    "job_id": TEXT,
    "progress": NUMBER,
    "message": (str, NOTHING),
    "timestamp": TEXT,
    "metadata": OBJECT,
}


def _dashboard() -> Iterator[Shape]:
    yield _out("000:189", "dashboard", {"event_type": "upload_progress"}, **_ENVELOPE)
    ids: dict[str, Kinds] = {
        "data__video_id": TEXT,
        "data__analysis_id": TEXT,
        "data__redirect_url": (str, NOTHING),
    }
    yield _out("000:198", "dashboard", {"event_type": "upload_complete"}, **_ENVELOPE, **ids)
    why: dict[str, Kinds] = {"data__error_message": TEXT}
    yield _out("000:201", "dashboard", {"event_type": "upload_error"}, **_ENVELOPE, **why)
    for kind in ("subscribe_session", "unsubscribe_session"):
        yield _in("000:180", "dashboard", kind, session_id=TEXT)
    for kind in ("ping", "get_stats"):
        yield _in("000:180", "dashboard", kind)
    yield Shape("000:182", "dashboard", False, {}, {"token": TEXT})


def _media() -> Iterator[Shape]:
    for line, kind, status in (
        ("001:33", "created", "created"),
        ("001:34", "progress", "uploading"),
        ("001:35", "complete", "completed"),
    ):
        yield _out(line, "media", {"type": kind, "status": status}, **_FLAT)
    yield _out("001:36", "media", {"type": "error", "status": "failed"}, **_FLAT, message=TEXT)


def _pipeline() -> Iterator[Shape]:
    more: dict[str, dict[str, Kinds]] = {
        "upload_progress": {"progress_percentage": NUMBER},
        "processing_progress": {"progress_percentage": NUMBER},
        "processing_completed": {"result": OBJECT},
        "duplicate_detected": {"cached_result": (dict, NOTHING)},
    }
    for first, kinds in (
        (213, ("upload_started", "upload_progress", "upload_completed", "upload_failed")),
        (
            219,
            (
                *("processing_initiated", "processing_progress"),
                *("processing_completed", "processing_failed"),
            ),
        ),
        (225, ("duplicate_detected", "session_expired", "error", "heartbeat")),
    ):
        for line, kind in enumerate(kinds, first):
            members = {**_EVENT, **more.get(kind, {})}
            yield _out(f"002:{line}", "pipeline", {"event_type": kind}, **members)


def _processing() -> Iterator[Shape]:
    yield _in("003:182", "processing", "authenticate", token=TEXT)
    yield _in("003:190", "processing", "ping", timestamp=NUMBER)
    yield _out("003:200", "processing", {"type": "authenticated"}, message=TEXT)
    status: dict[str, Kinds] = {
        "message": TEXT,
        "progress": NUMBER,
        "rows_processed": COUNT,
        "total_rows": COUNT,
    }
    for line, name in (
        ("003:24", "pending"),
        ("003:68", "validating"),
        ("003:64", "processing"),
        ("003:88", "completed"),
    ):
        yield _out(line, "processing", {"type": "status", "status": name}, **status)
    yield _out("003:208", "processing", {"type": "status"}, status=TEXT, **status)
    counts = {"current": COUNT, "total": COUNT}
    yield _out(
        "003:220", "processing", {"type": "progress"}, percent=NUMBER, message=TEXT, **counts
    )
    yield _out("003:231", "processing", {"type": "error"}, message=TEXT, details=TEXT)
    denied = {"type": "error", "message": "Access denied to this upload"}
    yield _out("003:286", "processing", denied)
    yield _out("003:240", "processing", {"type": "complete"}, message=TEXT, results=OBJECT)
    yield _out("003:260", "processing", {"type": "pong"}, timestamp=NUMBER)


def _jobs() -> Iterator[Shape]:
    for line, status in (
        ("004:149", "pending"),
        ("004:68", "queued"),
        ("004:69", "in_progress"),
        ("004:70", "in_progress"),
        ("004:71", "completed"),
        ("004:72", "failed"),
    ):
        yield _out(line, "jobs", {"status": status}, **_JOB)
    yield _out("004:25", "jobs", {"type": "pong"})
    yield _out("004:26", "jobs", {"type": "heartbeat"})
    yield _out("004:27", "jobs", {"type": "error"}, message=TEXT)
    yield _in("004:45", "jobs", "subscribe", job_id=TEXT)
    yield _in("004:58", "jobs", "unsubscribe", job_id=TEXT)
    yield _in("004:25", "jobs", "ping")


SHAPES: Final = (*_dashboard(), *_media(), *_pipeline(), *_processing(), *_jobs())


def shape_of(dialect: str, message: Mapping[str, Any]) -> Shape | None:
    """Return the shape of a message to clients; ``None``: the documents have no such."""
    for one in SHAPES:
        fits = all(message.get(name) == value for name, value in one.marks.items())
        if one.dialect == dialect and one.to_client and fits:
            return one
    return None


def faults_in(shape: Shape, message: Mapping[str, Any]) -> list[str]:
    """Return what a message lacks of its shape, or has of another type."""
    faults = [name for name, value in shape.marks.items() if message.get(name) != value]
    for path, kinds in shape.members.items():
        value: Any = message
        for name in path.split("."):
            value = value.get(name, ...) if isinstance(value, Mapping) else ...
        if type(value) not in kinds:
            faults.append(f"{path}: {value!r}")
    return faults
