"""What a client asks for when it opens an upload, whichever protocol it speaks."""

from __future__ import annotations

from typing import Any

import msgspec

from services.ingest.concatenation import PARTIAL
from shared import sidecar
from shared.sidecar import Form, new_id

__all__ = ["Creation"]


class Creation(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a new upload, checked for form but not yet admitted."""

    size: int | None
    """Declared length in bytes; ``None`` while it is deferred."""
    metadata: dict[str, str] = {}
    metadata_header: str = ""
    filename: str = ""
    content_type: str = ""
    kind: str = "file"
    """``file``, ``video`` or ``csv``: what the content must turn out to be."""
    options: dict[str, Any] = {}
    priority: int = 5
    expected: dict[str, str] = {}
    """Digests that the client declares for the whole, hex, by algorithm. ``sha256`` asks for
    deduplication too."""
    wants_digest: str = ""
    """Digest that the client wants with the last answer: ``sha256``, ``sha512`` or none."""
    protocol: sidecar.Protocol = "tus"
    concat: str = ""
    parts: tuple[str, ...] = ()
    form: Form | None = None
    upload_id: str = msgspec.field(default_factory=new_id)

    @property
    def is_partial(self) -> bool:
        """Whether it is a piece that a final upload will join."""
        return self.concat == PARTIAL

    def opened_by(self, *, username: str) -> dict[str, Any]:
        """Return the fields of the sidecar that only repeat what was asked for."""
        return {
            "upload_id": self.upload_id,
            "username": username,
            "metadata_header": self.metadata_header,
            "protocol": self.protocol,
            "concat": self.concat,
            "parts": self.parts,
            "form": self.form,
            "expected": self.expected,
            "wants_digest": self.wants_digest,
        }
