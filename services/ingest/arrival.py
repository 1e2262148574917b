"""What is done with the bytes of a request as they come, beside writing them."""

from __future__ import annotations

from typing import Final

from services.ingest.hashing import Hashing
from services.ingest.signatures import HEAD
from services.ingest.validation import Inspection
from shared.blobs.store import BlobStore
from shared.sidecar import Sidecar

__all__ = ["Arrival", "first_bytes"]


async def first_bytes(store: BlobStore, upload_id: str, most: int) -> bytes:
    """Return what an upload begins with, as much of it as tells what it is.

    Raises:
        UploadNotFound: There is no such upload.

    """
    pieces = store.read_range(upload_id, 0, min(most, HEAD))
    return b"".join([piece async for piece in pieces])


class Arrival:
    """Judges the first bytes of an upload, and feeds its hash.

    Args:
        sidecar: Of the upload.
        offset: Where the request's bytes go.
        head: What is there already, as far as it is to be judged; empty if that is over.
        inspection: Judges.
        hashing: Hashes.

    """

    def __init__(
        self,
        sidecar: Sidecar,
        offset: int,
        *,
        head: bytes,
        inspection: Inspection,
        hashing: Hashing,
    ) -> None:
        self._sidecar: Final = sidecar
        self._at = offset
        self._head = head
        self._inspection: Final = inspection
        self._hashing: Final = hashing
        self._undecided = len(head) == offset < HEAD and bool(inspection.claims(sidecar))

    def see(self, piece: bytes) -> None:
        """Look at the next bytes, before they are written.

        Raises:
            ContentMismatch: The upload cannot be what it claims to be. More bytes would be
                sent in vain.

        """
        if self._undecided and piece:
            self._head += piece[: HEAD - len(self._head)]
            self._undecided = not self._inspection.check_start(
                self._sidecar, self._head, complete=False
            )
        self._hashing.feed(self._sidecar, self._at, piece)
        self._at += len(piece)
