"""Makes the blob store that ``BLOB_STORE`` names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

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
        StartupError: ``BLOB_STORE`` names no store, its folder cannot be written to, or
            there are no leases where they are needed.

    """
    url = settings.blob_store
    if not url:
        return FilesystemStore(settings.data_dir / "blobs", fsync=fsync, leases=leases)
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path:
        return FilesystemStore(Path(unquote(parts.path)), fsync=fsync, leases=leases)
    if parts.scheme == "s3" and parts.netloc and not (parts.query or parts.fragment):
        return _s3_store(parts, settings, leases)
    raise StartupError(f"BLOB_STORE={url!r}: expected file:///folder or s3://bucket/prefix")


def _s3_store(place: SplitResult, settings: CommonSettings, leases: Leases | None) -> BlobStore:
    if leases is None:
        raise StartupError(f"BLOB_STORE={place.geturl()!r}: nobody grants leases to write here")
    # Loading botocore takes longer than starting without it.
    from shared.blobs.s3 import S3Store  # noqa: PLC0415
    from shared.blobs.s3_calls import S3Options  # noqa: PLC0415

    prefix = unquote(place.path).strip("/")
    options = S3Options(
        bucket=place.netloc,
        endpoint_url=settings.s3_endpoint_url,
        region=settings.s3_region,
        access_key_id=settings.s3_access_key_id,
        secret_access_key=settings.s3_secret_access_key,
        checksums=settings.s3_checksums,
        patience_s=settings.s3_patience,
    )
    return S3Store(
        options,
        prefix=f"{prefix}/" if prefix else "",
        leases=leases,
        part_size=settings.s3_part_size,
        parallel_parts=settings.s3_parallel_parts,
    )
