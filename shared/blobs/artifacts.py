"""What a blob store promises of artifacts: files made of an upload's bytes, beside them.

Thumbnails, tables, results. They belong to whom the upload belongs, and go with it. Each
appears as a whole, may be replaced, and then has another tag. They count in no quota: quotas
limit what users bring, and these are made by workers.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator
from typing import Final, Protocol

import msgspec

__all__ = ["Artifact", "Artifacts", "is_artifact_name"]

_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


def is_artifact_name(text: str) -> bool:
    """Tell whether ``text`` may name an artifact; check it before any path is built.

    Names that begin with a dot are the store's own, for what is not whole yet.
    """
    return _NAME.fullmatch(text) is not None


class Artifact(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One artifact as the store has it."""

    name: str
    size: int
    """Bytes."""
    modified_at: float
    """UTC, seconds since the epoch."""
    tag: str
    """Another one whenever it has been replaced; letters, digits and dashes."""


class Artifacts(Protocol):
    """The artifacts of all uploads. Every method may raise ``OSError``: the store failed."""

    async def put(self, upload_id: str, name: str, content: AsyncIterable[bytes]) -> Artifact:
        """Make or replace an artifact of a complete upload; durable when this returns.

        Needs no right to write. Should the upload end meanwhile, nothing is left.

        Raises:
            ValueError: This is no name for an artifact.
            UploadNotFound: There is no such upload, or it is not complete.

        """

    async def all(self, upload_id: str) -> list[Artifact]:
        """Return the artifacts of an upload by name; none if there is no such upload."""

    async def open(self, upload_id: str, name: str) -> tuple[Artifact, int | None]:
        """Return an artifact, and a descriptor of its bytes that the caller closes.

        ``None``: this store has no files. Use ``read_range``.

        Raises:
            UploadNotFound: There is no such artifact.

        """

    def read_range(
        self, upload_id: str, artifact: Artifact, start: int, length: int
    ) -> AsyncIterator[bytes]:
        """Yield so many bytes from ``start``, in pieces of at most 1 MiB.

        Raises:
            UploadNotFound: It has gone.
            OSError: Or it has been replaced since it was opened.

        """

    async def remove(self, upload_id: str) -> None:
        """Remove all artifacts of an upload."""
