"""Ingest on each kind of store, with what a test must be able to do there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, Protocol

from botocore.exceptions import ClientError

from tests.ingest.conftest import Ingest, prepare
from tests.ingest.evidence import files_of
from tests.ingest.tus_client import id_of
from tests.processes import ROOT, RedisServer
from tests.s3_servers import BUCKET, MotoServer, client_of

__all__ = ["BucketPlace", "FolderPlace", "Place"]

PATIENT: Final = {
    # Nothing that a test does may depend on how long it takes.
    "UPLOAD_IDLE_TIMEOUT": "3600",
    "UPLOAD_MIN_RATE": "0",
    "REAPER_INTERVAL": "0",
    "RATE_LIMIT_ENABLED": "false",
    "AUTH_MODE": "open",
    "LOG_FORMAT": "json",
}


class Place(Protocol):
    """An ingest process and its store."""

    ingest: Ingest
    reads_cheaply: bool
    """Whether all bytes can be looked at after each step, of unfinished uploads too."""
    can_age: bool
    """Whether single uploads can be made to look old."""

    def content(self, path: str) -> bytes | None:
        """Return the bytes of an upload; ``None``: they cannot be seen yet."""

    def left(self, path: str) -> list[str]:
        """Return what the store has of an upload, but for notes."""

    def age(self, path: str) -> None:
        """Have an upload look as if its last byte came longer ago than sessions last."""

    def reap(self, *flags: str) -> list[str]:
        """Clean up in a process of its own; return the lines that it wrote.

        Where no single upload can be made old, what is older than a second goes.
        """


def _reap(env: dict[str, str], *flags: str) -> list[str]:
    kept = {k: v for k, v in os.environ.items() if k in {"PATH", "HOME", "LANG"}}
    done = subprocess.run(
        [sys.executable, "-m", "services.ingest", "reap", *flags],
        cwd=ROOT,
        env={**kept, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done
    assert "Traceback" not in done.stderr, done
    *lines, summary = done.stdout.splitlines()
    assert summary.startswith(f"{len(lines)} "), done
    return lines


class FolderPlace:
    """On a file system."""

    reads_cheaply = True
    can_age = True

    def __init__(self, redis: RedisServer, folder: Path) -> None:
        self._env: Final = {
            **PATIENT,
            "REDIS_URL": redis.url,
            "DATA_DIR": str(folder / "data"),
        }
        self.ingest = prepare(redis, folder / "data", folder / "log", **PATIENT)

    def content(self, path: str) -> bytes | None:
        """Return the bytes, complete or not."""
        for file in (self._file(path, ""), self._file(path, ".part")):
            if file.exists():
                return file.read_bytes()
        return None

    def _file(self, path: str, suffix: str) -> Path:
        upload_id = id_of(path)
        return self.ingest.data_dir / "blobs" / upload_id[:2] / f"{upload_id}{suffix}"

    def left(self, path: str) -> list[str]:
        """Return the names of its files, and of markers of due events."""
        return [Path(one).name for one in files_of(self.ingest.data_dir, path)]

    def age(self, path: str) -> None:
        """Set the times of its files back by more than a day."""
        then = time.time() - 25 * 3600
        for suffix in ("", ".part", ".chunks"):
            file = self._file(path, suffix)
            if file.exists():
                os.utime(file, (then, then))

    def reap(self, *flags: str) -> list[str]:
        """Clean up what is older than a day."""
        return _reap(self._env, *flags)


class BucketPlace:
    """On an S3 server, which alone says how old something is."""

    reads_cheaply = False
    can_age = False
    _LIFETIME_S: Final = 1.0

    def __init__(
        self, redis: RedisServer, server: MotoServer, prefix: str, folder: Path
    ) -> None:
        self._client: Final = client_of(server)  # making one takes longer than most calls
        self._prefix: Final = prefix
        store = {
            "BLOB_STORE": f"s3://{BUCKET}/{prefix}",
            "S3_ENDPOINT_URL": server.url,
            "S3_ACCESS_KEY_ID": server.access_key_id,
            "S3_SECRET_ACCESS_KEY": server.secret_access_key,
            "S3_PART_SIZE": str(5 * 1024 * 1024),
        }
        self._env: Final = {
            **PATIENT,
            **store,
            "REDIS_URL": redis.url,
            "DATA_DIR": str(folder / "data"),
            "UPLOAD_SESSION_TIMEOUT_HOURS": str(self._LIFETIME_S / 3600),
        }
        self.ingest = prepare(redis, folder / "data", folder / "log", **PATIENT, **store)

    def content(self, path: str) -> bytes | None:
        """Return the finished object."""
        key = f"{self._prefix}/{id_of(path)}"
        try:
            return bytes(self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read())
        except ClientError as exc:
            if exc.response["Error"]["Code"] == "NoSuchKey":
                return None
            raise

    def left(self, path: str) -> list[str]:
        """Return the names of its objects, its marks, and its multipart uploads."""
        keys = []
        for folder in ("", "open/", "due/"):
            prefix = f"{self._prefix}/{folder}{id_of(path)}"
            found: Any = self._client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
            keys += [one["Key"] for one in found.get("Contents", ())]
        prefix = f"{self._prefix}/{id_of(path)}"
        found = self._client.list_multipart_uploads(Bucket=BUCKET, Prefix=self._prefix)
        parts = (one["Key"] for one in found.get("Uploads", ()))
        keys += [f"{key} (multipart)" for key in parts if key.startswith(prefix)]
        return [one.removeprefix(f"{self._prefix}/") for one in keys]

    def age(self, path: str) -> None:
        """Nothing: the server's clock cannot be set."""

    def reap(self, *flags: str) -> list[str]:
        """Clean up what is older than a second, once that is so of everything."""
        time.sleep(self._LIFETIME_S + 1.2)  # times are told in whole seconds
        return _reap(self._env, *flags)
