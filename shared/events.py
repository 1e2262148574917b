"""Events that cross a service boundary: the whole agreement between the services.

Knows nothing of Redis or HTTP. ``shared.streams`` says where an event is written.

Units
    Sizes and offsets are bytes. Times are UTC, milliseconds since the epoch. Speeds are
    bytes per second.

Order
    ``seq`` counts the lifecycle events of one upload from 1, without holes; those of its job
    are counted by the worker, from 1 as well. Readers drop an event whose ``seq`` they have.
    Every lifecycle event carries all facts about its upload, so that each one alone is enough
    to know its state.

Evolution
    Services are deployed one at a time, so old and new builds always meet. Names are
    final. Fields may be added, with a default; none is renamed or retyped. Readers ignore
    fields that they do not know and skip tags that they do not know.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

import msgspec

__all__ = [
    "Bytes",
    "Event",
    "FileDeleted",
    "FileStored",
    "JobCompleted",
    "JobEvent",
    "JobFailed",
    "JobProgress",
    "JobQueued",
    "JobStarted",
    "LifecycleEvent",
    "MalformedEvent",
    "Millis",
    "Percent",
    "Seq",
    "UnknownEvent",
    "UploadCancelled",
    "UploadCompleted",
    "UploadCreated",
    "UploadDuplicate",
    "UploadExpired",
    "UploadFacts",
    "UploadFailed",
    "UploadProgress",
    "decode",
    "encode",
]

Bytes: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Millis: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Seq: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
Percent: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=100)]


class UploadFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of an upload, carried by each of its lifecycle events."""

    user_id: str
    tenant: str
    created_at: Millis
    job_id: str
    """Identifies the processing that follows; also called ``analysis_id``."""
    size: Bytes | None = None
    """Declared length; ``None`` while the client defers it."""
    filename: str = ""
    content_type: str = ""
    """As declared by the client; not verified."""
    metadata: dict[str, str] = {}
    """What the client attached at creation."""
    file_hash: str = ""
    """SHA-256 of the bytes, hex; empty until it was computed here."""
    kind: str = "file"
    """``file``, ``video`` or ``csv``: what the client said it is, and it was checked to be."""
    options: dict[str, Any] = {}
    """How to process it, as the client asked."""
    priority: Annotated[int, msgspec.Meta(ge=1, le=10)] = 5
    """Of the processing: 1 is lowest."""
    partial: bool = False
    """It is a piece of a file still to be joined: nothing to process."""
    session_id: str = ""
    """The name that the client gave to its session, good for that user alone; empty: none."""


class _Lifecycle(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True
):
    upload_id: str
    seq: Seq
    at: Millis
    upload: UploadFacts
    offset: Bytes = 0
    """Bytes that were safe when the event was made."""


class UploadCreated(_Lifecycle, frozen=True, tag="upload.created"):
    """An upload was opened; its sidecar is durable."""


class UploadCompleted(_Lifecycle, frozen=True, tag="upload.completed"):
    """All bytes are durable and the file can be downloaded."""

    redirect_url: str = ""
    """Where a client's page goes next; a path on the product's own site."""


class UploadFailed(_Lifecycle, frozen=True, tag="upload.failed"):
    """The upload cannot be resumed."""

    error_code: str
    error_message: str = ""


class UploadCancelled(_Lifecycle, frozen=True, tag="upload.cancelled"):
    """The client ended the upload; its bytes are gone."""


class UploadExpired(_Lifecycle, frozen=True, tag="upload.expired"):
    """Nobody continued the upload in time; its bytes are gone."""


class UploadDuplicate(_Lifecycle, frozen=True, tag="upload.duplicate"):
    """The tenant holds the same bytes already."""

    original_id: str
    cached_result: dict[str, Any] | None = None
    """The finished analysis of the original, when there is one."""
    redirect_url: str = ""
    """As that of a completion."""


class FileStored(_Lifecycle, frozen=True, tag="file.stored"):
    """Storage has registered the file."""

    etag: str = ""


class FileDeleted(_Lifecycle, frozen=True, tag="file.deleted"):
    """The file is gone: bytes, sidecar and records. Others drop what they hold of it."""


class JobEvent(_Lifecycle, frozen=True):
    """What a worker tells of the processing of an upload; counted apart from the upload."""

    job_id: str
    stage: str = ""
    message: str = ""


class JobQueued(JobEvent, frozen=True, tag="job.queued"):
    """A job waits for a worker."""


class JobStarted(JobEvent, frozen=True, tag="job.started"):
    """A worker has begun."""


class JobCompleted(JobEvent, frozen=True, tag="job.completed"):
    """The job is done."""

    result: dict[str, Any] = {}


class JobFailed(JobEvent, frozen=True, tag="job.failed"):
    """The job has ended without a result."""

    error_code: str = ""


class JobProgress(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    tag_field="type",
    tag="job.progress",
    omit_defaults=True,
):
    """How far a job has come; only the newest one is worth anything."""

    upload_id: str
    job_id: str
    seq: Seq
    """The lifecycle event that this position follows."""
    at: Millis
    progress: Percent
    stage: str = ""
    message: str = ""
    current: int | None = None
    total: int | None = None


class UploadProgress(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    tag_field="type",
    tag="upload.progress",
    omit_defaults=True,
):
    """Where an upload stands: a position, not a difference; the newest one replaces all."""

    upload_id: str
    seq: Seq
    """The lifecycle event that this position follows."""
    at: Millis
    offset: Bytes
    """Bytes received and handed to the disk; never decreases within one upload."""
    size: Bytes | None = None
    speed: float = 0.0
    """Smoothed rate in bytes per second; 0 while nothing arrives."""


LifecycleEvent: TypeAlias = (
    UploadCreated
    | UploadCompleted
    | UploadFailed
    | UploadCancelled
    | UploadExpired
    | UploadDuplicate
    | FileStored
    | FileDeleted
    | JobQueued
    | JobStarted
    | JobCompleted
    | JobFailed
)
"""Facts: each one is delivered, in order, or its reader is told to start again."""

Event: TypeAlias = LifecycleEvent | JobProgress | UploadProgress


class UnknownEvent(Exception):
    """The tag is well formed but belongs to a newer build. Skip the event."""


class MalformedEvent(Exception):
    """The payload breaks the contract: a fault of the writer. Park and report it."""


class _Tag(msgspec.Struct):
    type: str


_encoder: Final = msgspec.json.Encoder()
_decoder: Final[msgspec.json.Decoder[LifecycleEvent]] = msgspec.json.Decoder(LifecycleEvent)
_tag_decoder: Final = msgspec.json.Decoder(_Tag)
_BROKEN: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises; the last one for a payload nested so deep that it must be an attack."""
_KNOWN_TAGS: Final = frozenset(kind.__struct_config__.tag for kind in LifecycleEvent.__args__)


def encode(event: LifecycleEvent) -> bytes:
    """Return the payload of a stream entry."""
    return _encoder.encode(event)


def decode(payload: bytes) -> LifecycleEvent:
    """Return the lifecycle event in a stream entry.

    Raises:
        UnknownEvent: The tag is not known to this build.
        MalformedEvent: The payload is not JSON or does not match its tag.

    """
    try:
        return _decoder.decode(payload)
    except _BROKEN as exc:
        # Which of the two it is matters only off the hot path.
        try:
            tag = _tag_decoder.decode(payload).type
        except _BROKEN:
            raise MalformedEvent(str(exc)) from exc
        if tag not in _KNOWN_TAGS:
            raise UnknownEvent(tag) from exc
        raise MalformedEvent(f"{tag}: {exc}") from exc
