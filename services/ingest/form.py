"""The rules of the upload by form (seed document 002): its fields, and how chunks make a file.

Pure: what a form says, whether it fits its session, and what is still missing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from services.ingest.errors import ChunkConflict, SessionMismatch
from shared.blobs.store import Chunk
from shared.errors import InvalidRequest, PayloadTooLarge
from shared.sidecar import Form, Sidecar

__all__ = [
    "FIELDS",
    "FormLimits",
    "Submission",
    "check_place",
    "check_room",
    "check_same_bytes",
    "check_session_id",
    "estimated_size",
    "missing_chunks",
    "parse_fields",
    "total_chunks_of",
]

FIELDS: Final = frozenset(
    {"session_id", "chunk_index", "total_chunks", "file_hash", "options", "priority"}
)
"""What a form may say beside its file; anything else in it is passed over."""

_SESSION_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_MAX_DEPTH: Final = 32


class FormLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a form may ask for. Sizes are bytes."""

    max_file_size: int
    """0 is no limit."""
    max_chunk_size: int
    max_chunks: int
    default_priority: int


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """What the fields of one form say; ``None`` or empty where they say nothing."""

    session_id: str = ""
    chunk_index: int | None = None
    """``None``: the file comes whole."""
    total_chunks: int | None = None
    file_hash: str = ""
    """SHA-256 of the whole file, lower-case hex."""
    options: dict[str, Any] = {}
    priority: int
    """1 is lowest, 10 highest."""

    def as_form(self) -> Form:
        """Return what the record of a session that this one opens keeps of it."""
        total = (self.total_chunks or 0) if self.chunk_index is not None else 0
        return Form(session_id=self.session_id, total_chunks=total)


def parse_fields(fields: Mapping[str, str], limits: FormLimits) -> Submission:
    """Return what the fields say. An empty one counts as left out, as browsers send it.

    Raises:
        InvalidRequest: One of them is not what it must be, or they contradict each other.

    """
    given = {name: text.strip() for name, text in fields.items() if text.strip()}
    index = _number(given, "chunk_index", least=0, most=limits.max_chunks - 1)
    total = _number(given, "total_chunks", least=1, most=limits.max_chunks)
    if index is None and total is not None and total > 1:
        raise InvalidRequest("total_chunks needs chunk_index: which of them is this?")
    if index is not None and total is not None and index >= total:
        raise InvalidRequest(f"chunk_index must be below total_chunks, which is {total}.")
    priority = _number(given, "priority", least=1, most=10)
    return Submission(
        session_id=check_session_id(given["session_id"]) if "session_id" in given else "",
        chunk_index=index,
        total_chunks=total,
        file_hash=_digest(given.get("file_hash", "")),
        options=_options(given.get("options", "")),
        priority=limits.default_priority if priority is None else priority,
    )


def check_session_id(text: str) -> str:
    """Return a session's name.

    Raises:
        InvalidRequest: It cannot be one.

    """
    if not _SESSION_ID.fullmatch(text):
        raise InvalidRequest("session_id must be 1 to 128 of A-Z a-z 0-9 . _ -")
    return text


def _number(given: Mapping[str, str], name: str, *, least: int, most: int) -> int | None:
    """Return a field that holds a number; ``int()`` alone would also take ``+5`` and ``٣``."""
    if name not in given:
        return None
    text = given[name]
    if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
        raise InvalidRequest(f"{name} must be a number from {least} to {most}.")
    return int(text)


def _digest(text: str) -> str:
    if text and not _SHA256.fullmatch(text):
        raise InvalidRequest("file_hash must be a SHA-256 in hex: 64 digits.")
    return text.lower()


def _options(text: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        options: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as exc:
        raise InvalidRequest("options must be a JSON object.") from exc
    if _depth(options) > _MAX_DEPTH:
        raise InvalidRequest(f"options may be nested {_MAX_DEPTH} deep.")
    return options


def _depth(value: object) -> int:
    """Return how deep a value is nested; readers of events must not run out of stack."""
    depth, level = 0, [value]
    while level := [
        inner
        for one in level
        if isinstance(one, dict | list)
        for inner in (one.values() if isinstance(one, dict) else one)
    ]:
        depth += 1
    return depth


def total_chunks_of(sidecar: Sidecar) -> int:
    """Return in how many chunks a session's file comes; 0 if it comes whole."""
    return sidecar.form.total_chunks if sidecar.form is not None else 0


def check_place(said: Submission, sidecar: Sidecar) -> None:
    """Refuse a form that does not fit the session it names.

    Raises:
        SessionMismatch: The session has another number of chunks, gets its file whole, or has
            another hash.
        InvalidRequest: There is no such chunk in it.

    """
    total = total_chunks_of(sidecar)
    if (said.chunk_index is not None) != bool(total):
        how = f"in {total} chunks" if total else "whole"
        raise SessionMismatch(f"The file of this session comes {how}.")
    if said.total_chunks is not None and said.total_chunks != (total or 1):
        raise SessionMismatch(f"This session has {total} chunks, not {said.total_chunks}.")
    if said.chunk_index is not None and said.chunk_index >= total:
        raise InvalidRequest(f"chunk_index must be below {total}.")
    expected = sidecar.expected.get("sha256", "")
    if said.file_hash and expected and said.file_hash != expected:
        raise SessionMismatch("file_hash is not what this session was opened with.")


def check_same_bytes(digest: str, there: Chunk) -> None:
    """Refuse a chunk whose place is taken by other bytes; the same bytes may be repeated.

    Raises:
        ChunkConflict: They differ.

    """
    if there.digest != digest:
        raise ChunkConflict(f"Chunk {there.index} is there already, with other bytes.")


def check_room(chunks: Sequence[Chunk], index: int, size: int, max_file_size: int) -> None:
    """Refuse a chunk with which the file would be too large.

    Raises:
        PayloadTooLarge: It would.

    """
    others = sum(one.size for one in chunks if one.index != index)
    if max_file_size and others + size > max_file_size:
        raise PayloadTooLarge(f"The file may have at most {max_file_size} bytes.")


def missing_chunks(total: int, received: Collection[int]) -> list[int]:
    """Return the indexes that have not come yet, in order."""
    return [index for index in range(total) if index not in received]


def estimated_size(chunks: Sequence[Chunk], total: int) -> int | None:
    """Return how large the file will be, if the chunks to come are like those that came.

    So a percentage of bytes is the same as one of chunks, and never goes back.
    """
    if not chunks:
        return None
    return -(-sum(one.size for one in chunks) * total // len(chunks))
