"""What storage records of a file, and where it stands in the lists of its owner. No I/O.

A list is a sorted set whose members are compared as bytes: the key to sort by, then the id.
So a page begins right behind a member, whatever came or went meanwhile, and equal keys need no
rule of their own.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias
from urllib.parse import quote

import msgspec

from shared.events import (
    FileStored,
    LifecycleEvent,
    MalformedEvent,
    UploadCompleted,
    UploadDuplicate,
    UploadFacts,
)
from shared.sidecar import Sidecar

__all__ = [
    "FIELDS",
    "SORTS",
    "FileRecord",
    "Owner",
    "Sort",
    "etag_of",
    "fields_of",
    "folded",
    "id_in",
    "is_file",
    "is_registered",
    "list_key",
    "members_of",
    "prefix_of",
    "record_from",
    "record_key",
    "record_of_event",
    "record_of_sidecar",
]

Sort: TypeAlias = Literal["created_at", "name", "size"]
SORTS: Final[tuple[Sort, ...]] = ("created_at", "name", "size")

_ID_LENGTH: Final = 36
_NAME_LENGTH: Final = 200
"""Characters of a name that sort it; what follows is of no use to people who look."""
_LATEST_MS: Final = 250_000_000_000_000
"""In the year 9892: what RFC 3339 can still write."""
_LARGEST: Final = 2**63 - 1


class Owner(NamedTuple):
    """Whose lists they are."""

    tenant: str
    user_id: str


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A file, as it is listed."""

    file_id: str
    seq: int
    """The lifecycle event that this is known from."""
    tenant: str
    user_id: str
    filename: str
    content_type: str
    """As declared by the client."""
    size: int
    """Bytes."""
    sha256: str
    """Of the bytes, hex; empty while it is not known."""
    created_at: int
    """When the upload was opened; UTC, milliseconds since the epoch."""
    completed_at: int
    """When its last byte was safe; as ``created_at``."""

    @property
    def owner(self) -> Owner:
        """Whose it is."""
        return Owner(self.tenant, self.user_id)


FIELDS: Final = tuple(name for name in FileRecord.__struct_fields__ if name != "file_id")
_NUMBERS: Final = frozenset({"seq", "size", "created_at", "completed_at"})


def record_key(file_id: str) -> str:
    """Return the key of a record."""
    return f"file:{file_id}"


def list_key(owner: Owner, sort: Sort) -> str:
    """Return the key of a list. Those of one owner share a slot on Redis Cluster.

    Ids of users and tenants may hold anything, braces too, so they are quoted.
    """
    tenant, user_id = (quote(one, safe="") for one in owner)
    return f"files:{{{tenant}/{user_id}}}:{sort}"


def fields_of(record: FileRecord) -> list[str]:
    """Return the fields of the hash: name, value, name, value."""
    return [part for name in FIELDS for part in (name, str(getattr(record, name)))]


def record_from(file_id: str, values: Sequence[bytes | None]) -> FileRecord | None:
    """Return the record with these values of ``FIELDS``; ``None`` if there is none."""
    found: dict[str, str | int] = {"file_id": file_id}
    for name, value in zip(FIELDS, values, strict=True):
        if value is None:
            return None
        text = value.decode(errors="replace")
        if name not in _NUMBERS:
            found[name] = text
        elif text.isdecimal():
            found[name] = int(text)
        else:
            return None
    return msgspec.convert(found, FileRecord)


def folded(text: str) -> str:
    """Return a text so that those that people take for the same are equal."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def prefix_of(created_at: int) -> bytes:
    """Return what the members of the list by time begin with."""
    return b"%012x" % created_at


def members_of(file_id: str, *, created_at: int, filename: str, size: int) -> dict[Sort, bytes]:
    """Return what stands for a file in each list of its owner."""
    name = folded(filename[:_NAME_LENGTH])
    keys: Mapping[Sort, bytes] = {
        "created_at": prefix_of(created_at),
        # The zero byte has a name come before longer ones, so none may be in it.
        "name": name.encode(errors="replace").replace(b"\0", b"\1") + b"\0",
        "size": b"%016x" % size,
    }
    return {sort: key + file_id.encode() for sort, key in keys.items()}


def id_in(member: bytes) -> str:
    """Return the file that a member of a list stands for."""
    return member[-_ID_LENGTH:].decode(errors="replace")


def etag_of(sidecar: Sidecar) -> str:
    """Return the strong tag of a file's bytes: their hash once it is known, else the id."""
    return f'"{sidecar.digests.get("sha256") or sidecar.upload_id}"'


def is_file(sidecar: Sidecar) -> bool:
    """Tell whether an upload has become a file; a piece that others join is none."""
    return sidecar.status == "completed" and not sidecar.is_partial


def is_registered(sidecar: Sidecar) -> bool:
    """Tell whether the upload's own events say that storage has it."""
    return any(isinstance(event, FileStored) for event in sidecar.outbox)


def record_of_sidecar(sidecar: Sidecar) -> FileRecord:
    """Return the record of a file as the store knows it."""
    facts = sidecar.facts
    completed_at = sidecar.completed_at
    return _record(
        sidecar.upload_id,
        sidecar.outbox[-1].seq if sidecar.outbox else 0,
        facts,
        size=facts.size or 0,
        completed_at=facts.created_at if completed_at is None else completed_at,
        sha256=sidecar.digests.get("sha256", facts.file_hash),
    )


def record_of_event(event: LifecycleEvent) -> FileRecord | None:
    """Return the record of the file that an event tells of; ``None`` if it is about none.

    Raises:
        MalformedEvent: A time is none that RFC 3339 can write, or a size is absurd.

    """
    if not isinstance(event, UploadCompleted | UploadDuplicate) or event.upload.partial:
        return None
    facts = event.upload
    size = event.offset if facts.size is None else facts.size
    if max(event.at, facts.created_at) > _LATEST_MS or max(size, event.seq) > _LARGEST:
        raise MalformedEvent(f"{type(event).__name__}: a number is beyond all bounds")
    return _record(
        *(event.upload_id, event.seq, facts),
        size=size,
        completed_at=event.at,
        sha256=facts.file_hash,
    )


def _record(
    file_id: str, seq: int, facts: UploadFacts, *, size: int, completed_at: int, sha256: str
) -> FileRecord:
    return FileRecord(
        file_id=file_id,
        seq=seq,
        tenant=facts.tenant,
        user_id=facts.user_id,
        filename=facts.filename,
        content_type=facts.content_type,
        size=size,
        sha256=sha256,
        created_at=facts.created_at,
        completed_at=completed_at,
    )
