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

__all__ = ["Sidecar", "SidecarDamaged", "Status", "decode", "encode", "is_upload_id", "new_id"]

Status = Literal["created", "completed", "failed", "cancelled", "expired", "deleted"]
"""What is durable of a state. That bytes are arriving is seen from the bytes themselves."""

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class SidecarDamaged(Exception):
    """A sidecar is there but cannot be read; its upload must not be served."""


class Sidecar(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One upload as it stands after its last durable change."""

    upload_id: str
    status: Status
    facts: UploadFacts
    username: str = ""
    metadata_header: str = ""
    """``Upload-Metadata`` exactly as the client gave it (protocol item 55)."""
    completed_at: int | None = None
    """UTC, milliseconds since the epoch."""
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
