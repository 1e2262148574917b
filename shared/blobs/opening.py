"""Makes the blob store that ``BLOB_STORE`` names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from shared.blobs.filesystem import FilesystemStore
from shared.blobs.store import BlobStore, FsyncPolicy
from shared.errors import StartupError
from shared.leases import Leases
from shared.redis_leases import RedisLeases
from shared.settings import CommonSettings

__all__ = ["make_leases", "make_store"]


def make_leases(settings: CommonSettings) -> RedisLeases | None:
    """Return what grants the right to write; ``None`` where the store's own locks do."""
    has_locks = not settings.blob_store.startswith("s3:")
    if has_locks and settings.upload_lease == "auto":
        return None
    return RedisLeases(settings.redis_url or "", fenced=not has_locks)


def make_store(
    settings: CommonSettings, *, fsync: FsyncPolicy = "always", leases: Leases | None = None
) -> BlobStore:
    """Return the store, not opened yet.

    Args:
        settings: Say where.
        fsync: When bytes are forced to stable storage.
        leases: What ``make_leases`` returned for the same settings.

    Raises:
        StartupError: ``BLOB_STORE`` names no store, or its folder cannot be written to.

    """
    url = settings.blob_store
    if not url:
        return FilesystemStore(settings.data_dir / "blobs", fsync=fsync, leases=leases)
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path:
        return FilesystemStore(Path(unquote(parts.path)), fsync=fsync, leases=leases)
    raise StartupError(f"BLOB_STORE={url!r}: expected file:///folder or s3://bucket/prefix")
