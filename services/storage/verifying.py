"""``python -m services.storage verify``: looks for files whose bytes are not what they were.

Disks lose and change bytes without a word, and nobody notices until somebody needs them. Every
file is read again, at a pace that leaves the disk to those who are served, and its SHA-256
compared with the one that was computed when it came. Of files whose digest was never computed
only the size is compared.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing
from typing import Final, Literal, cast

import msgspec

from services.storage.progress_line import ProgressLine
from services.storage.rebuilding import fraction_at
from services.storage.settings import Settings
from shared.blobs.opening import make_leases, make_store
from shared.blobs.store import BlobStore, UploadNotFound
from shared.serve import Command
from shared.sidecar import Sidecar, SidecarDamaged

__all__ = ["VERIFY", "Damage", "Pace", "Verifying"]

_NOTE: Final = "verify"
"""Holds how far the last run came, as the first two characters of ids."""
_LONGEST_REST_S: Final = 0.5


class Damage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is wrong with one file."""

    file_id: str
    what: Literal["record", "missing", "size", "sha256", "unreadable"]
    """``record``: its sidecar cannot be read. ``missing``: it has no bytes. ``size``,
    ``sha256``: its bytes are others. ``unreadable``: the store does not give them."""
    expected: str | int = ""
    found: str | int = ""


class Pace:
    """Keeps work below a rate.

    Args:
        rate: Bytes per second; 0: as fast as it goes.

    """

    def __init__(self, rate: int) -> None:
        self._rate: Final = rate
        self._free_at = time.monotonic()

    async def keep(self, size: int) -> None:
        """Wait as long as it takes until so many bytes more may be read."""
        if self._rate:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - _LONGEST_REST_S) + size / self._rate
            if self._free_at > now:
                await asyncio.sleep(self._free_at - now)


class Verifying:
    """One pass over a store.

    Args:
        store: Has the files.
        pace: How fast they may be read.

    """

    def __init__(self, store: BlobStore, pace: Pace) -> None:
        self._store: Final = store
        self._pace: Final = pace
        self.files = 0
        """Those that were looked at."""
        self.unhashed = 0
        """Those of them without a digest."""
        self.bytes_read = 0

    async def run(self, *, begin: str = "") -> AsyncIterator[tuple[str, Damage | None]]:
        """Yield the id of every record, and what is wrong with its file.

        Args:
            begin: First two characters of the ids to begin with.

        Raises:
            OSError: The store cannot list its files.

        """
        async for file_id in self._store.ids():
            if file_id[:2] >= begin:
                yield file_id, await self._check(file_id)

    async def _check(self, file_id: str) -> Damage | None:
        try:
            sidecar = await self._store.load(file_id)
        except UploadNotFound:
            return None
        except SidecarDamaged as exc:
            return Damage(file_id=file_id, what="record", found=str(exc))
        except OSError as exc:
            return Damage(file_id=file_id, what="unreadable", found=str(exc))
        if sidecar.status != "completed":
            return None
        self.files += 1
        damage = await self._check_bytes(sidecar)
        return damage if damage and await self._is_still_there(file_id) else None

    async def _is_still_there(self, file_id: str) -> bool:
        """Tell whether a file is one still: it may have been deleted while it was read."""
        try:
            return (await self._store.load(file_id)).status == "completed"
        except UploadNotFound:
            return False
        except (SidecarDamaged, OSError):
            return True

    async def _check_bytes(self, sidecar: Sidecar) -> Damage | None:
        file_id, size = sidecar.upload_id, sidecar.size or 0
        try:
            stored = await self._store.read(file_id)
            if not stored.visible:
                return Damage(file_id=file_id, what="missing", expected=size)
            if stored.offset != size:
                found = stored.offset
                return Damage(file_id=file_id, what="size", expected=size, found=found)
            expected = sidecar.digests.get("sha256")
            if expected is None:
                self.unhashed += 1
                return None
            found_digest = await self._hash(file_id, size)
        except UploadNotFound:
            return Damage(file_id=file_id, what="missing", expected=size)
        except SidecarDamaged as exc:
            return Damage(file_id=file_id, what="record", found=str(exc))
        except OSError as exc:
            return Damage(file_id=file_id, what="unreadable", found=str(exc))
        if found_digest == expected:
            return None
        return Damage(file_id=file_id, what="sha256", expected=expected, found=found_digest)

    async def _hash(self, file_id: str, size: int) -> str:
        digest = hashlib.sha256()
        source = cast("AsyncGenerator[bytes]", self._store.read_range(file_id, 0, size))
        async with aclosing(source) as pieces:
            async for piece in pieces:
                digest.update(piece)
                self.bytes_read += len(piece)
                await self._pace.keep(len(piece))
        return digest.hexdigest()


async def verify(settings: Settings, flags: Collection[str]) -> int:
    """Check every file; write a line of JSON to stdout for each that is damaged.

    With ``--resume`` it goes on where the last run was cut off. Needs no Redis.

    Returns:
        The exit code: 1 if something is damaged, or the store failed.

    Raises:
        StartupError: The store cannot be opened.

    """
    store = make_store(settings, leases=make_leases(settings))
    line = ProgressLine()
    verifying = Verifying(store, Pace(settings.verify_rate))
    damaged = 0
    await store.open()
    try:
        begin, at = await store.note(_NOTE) if "--resume" in flags else "", ""
        async for file_id, damage in verifying.run(begin=begin):
            if file_id[:2] != at:
                at = file_id[:2]
                await store.write_note(_NOTE, at)
            if damage is not None:
                damaged += 1
                line.clear()
                sys.stdout.write(msgspec.json.encode(damage).decode() + "\n")
                sys.stdout.flush()
            line.show(fraction_at(file_id), f"{_told(verifying)}, {damaged} damaged")
        await store.write_note(_NOTE, "")
    except OSError as exc:
        line.clear()
        sys.stderr.write(f"error: stopped after {_told(verifying)}: {exc!r}\n")
        return 1
    finally:
        await store.close()
    line.clear()
    sys.stderr.write(f"{_told(verifying)}, {damaged} damaged\n")
    return 1 if damaged else 0


def _told(verifying: Verifying) -> str:
    megabytes = verifying.bytes_read / 1e6
    return (
        f"{verifying.files} files ({verifying.unhashed} without a digest), "
        f"{megabytes:.0f} MB read"
    )


VERIFY = Command(verify, flags=("--resume",))
