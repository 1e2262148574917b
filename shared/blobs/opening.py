"""Makes the blob store that ``BLOB_STORE`` names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from shared.blobs.filesystem import FilesystemStore
from shared.blobs.store import BlobStore, FsyncPolicy
from shared.errors import StartupError
from shared.settings import CommonSettings

__all__ = ["make_store"]


def make_store(settings: CommonSettings, *, fsync: FsyncPolicy = "always") -> BlobStore:
    """Return the store, not opened yet.

    Raises:
        StartupError: ``BLOB_STORE`` names no store, or its folder cannot be written to.

    """
    url = settings.blob_store
    if not url:
        return FilesystemStore(settings.data_dir / "blobs", fsync=fsync)
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path:
        return FilesystemStore(Path(unquote(parts.path)), fsync=fsync)
    raise StartupError(f"BLOB_STORE={url!r}: expected file:///folder or s3://bucket/prefix")
