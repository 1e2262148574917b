"""The durable record of one upload, kept beside its bytes as ``<id>.info`` (JSON).

It is the truth about an upload; what Redis holds is derived from it. Its ``outbox`` holds the
lifecycle events with their ``seq``, so that a state change and its event are one write and
cannot come apart. Knows nothing of files; ``shared.blobs`` stores it.
"""

from __future__ import annotations

import re
import uuid
from typing import Final, Literal

import msgspec

from shared.events import LifecycleEvent, UploadFacts

__all__ = [
    "Form",
    "Protocol",
    "Sidecar",
    "SidecarDamaged",
    "Status",
    "decode",
    "encode",
    "is_upload_id",
    "new_id",
]

Status = Literal[
    "created", "quarantined", "completed", "failed", "cancelled", "expired", "deleted"
]
"""What is durable of a state. That bytes are arriving is seen from the bytes themselves.
``quarantined``: all bytes are there, and a scan must clear them before anybody gets them."""

Protocol = Literal["tus", "ietf", "form"]
"""How an upload was opened; it decides what completes it."""

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class SidecarDamaged(Exception):
    """A sidecar is there but cannot be read; its upload must not be served."""


class Form(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What only an upload by form has."""

    session_id: str = ""
    """The caller's own name for the session; empty: it goes by its upload id."""
    total_chunks: int = 0
    """0: the file comes whole."""


class Sidecar(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One upload as it stands after its last durable change."""

    upload_id: str
    status: Status
    facts: UploadFacts
    username: str = ""
    metadata_header: str = ""
    """``Upload-Metadata`` exactly as the client gave it (protocol item 55)."""
    protocol: Protocol = "tus"
    concat: str = ""
    """``Upload-Concat`` exactly as the client gave it (protocol item 100)."""
    parts: tuple[str, ...] = ()
    """The uploads that a final upload joins, in order."""
    form: Form | None = None
    expected: dict[str, str] = {}
    """Digests that the client declared for the whole, hex, by algorithm (``sha256``, …)."""
    wants_digest: str = ""
    """Algorithm of the digest that the client wants to be told at the end; empty: none."""
    digests: dict[str, str] = {}
    """Digests of the whole that were computed here, hex, by algorithm."""
    original_id: str = ""
    """The upload whose bytes this one shares; empty: it has its own."""
    completed_at: int | None = None
    """UTC, milliseconds since the epoch."""
    link_generation: int = 0
    """Links to the file are good that were made under this number: raising it revokes them."""
    outbox: tuple[LifecycleEvent, ...] = ()
    """All lifecycle events so far, oldest first."""
    version: int = 1

    @property
    def size(self) -> int | None:
        """Declared length in bytes; ``None`` while it is deferred."""
        return self.facts.size

    @property
    def next_seq(self) -> int:
        """The ``seq`` of the next lifecycle event."""
        return self.outbox[-1].seq + 1 if self.outbox else 1

    @property
    def is_partial(self) -> bool:
        """Whether it is a piece that a final upload will join, and no file of its own."""
        return self.concat == "partial"

    @property
    def is_final(self) -> bool:
        """Whether its bytes are those of its parts, joined."""
        return bool(self.parts)

    @property
    def is_gone(self) -> bool:
        """Whether the upload has ended without a file; what is left is a tombstone."""
        return self.status in {"cancelled", "expired", "deleted"}

    def after(self, status: Status, event: LifecycleEvent, **changes: object) -> Sidecar:
        """Return the record after ``event``, which must carry ``next_seq``.

        Raises:
            ValueError: The event's ``seq`` is not the next one.

        """
        if event.seq != self.next_seq:
            raise ValueError(f"seq {event.seq} does not follow {self.next_seq - 1}")
        return msgspec.structs.replace(
            self, status=status, facts=event.upload, outbox=(*self.outbox, event), **changes
        )


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Sidecar)


def new_id() -> str:
    """Return a new id (UUID 4) from the system's random source."""
    return str(uuid.uuid4())


def is_upload_id(text: str) -> bool:
    """Tell whether ``text`` could name an upload; check it before any path is built.

    Only the canonical lower-case form counts, so that one upload has one name on every file
    system (security items 1 and 2).
    """
    return _UUID.fullmatch(text) is not None


def encode(sidecar: Sidecar) -> bytes:
    """Return the content of the ``.info`` file."""
    return _encoder.encode(sidecar)


def decode(content: bytes) -> Sidecar:
    """Return the record in an ``.info`` file.

    Raises:
        SidecarDamaged: The content is cut short, not JSON, or not a sidecar.

    """
    try:
        return _decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise SidecarDamaged(str(exc)) from exc
