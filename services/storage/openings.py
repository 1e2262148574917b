"""Opens files to be sent, quickly those that were opened a moment ago.

What players and download managers ask for by hundreds of ranges is found by two threads' work
once. After that one look at the record tells whether it is still the same, and the bytes are
opened at once: on a local disk what was read a moment ago is in memory, so that neither waits.
Other file systems, and stores without files, are asked anew each time.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from email.utils import formatdate
from typing import Final

import msgspec
from msgspec.structs import replace
from multidict import CIMultiDict

from services.storage.conditions import Validators
from services.storage.disposition import content_disposition
from services.storage.files import Files
from services.storage.record import etag_of
from services.storage.sendfile import tells_what_is_cached
from shared.blobs.filesystem import FilesystemStore
from shared.blobs.store import BlobStore, Stored, UploadNotFound
from shared.identity import Principal

__all__ = ["Opened", "Openings", "headers_of", "validators_of"]

_FRESH_S: Final = 10.0
"""For so long what was looked at stays in memory, unless that is very short."""
_REMEMBERED: Final = 1000
"""Files."""
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_SAFE_HEADERS: Final = {
    # Whatever the bytes are, they must not act on the page that shows them (items 5 to 7).
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    # Rights end and files are deleted: what is kept may be used once it is confirmed.
    "Cache-Control": "private, no-cache",
    "Accept-Ranges": "bytes",
}

_Mark = tuple[int, int, int, int]
"""Tells one state of a record from the next, which is another inode."""


class Opened(msgspec.Struct, frozen=True):
    """A file that can be read until its descriptor is closed, by whoever has it."""

    stored: Stored
    fd: int | None
    """``None``: the store has no files."""
    content_type: str
    validators: Validators
    headers: CIMultiDict[str]
    """Of every answer about it."""
    disposition: str


class _Recent(msgspec.Struct, frozen=True):
    opened: Opened
    """Its descriptor is closed."""
    record: str
    blob: str
    mark: _Mark


class Openings:
    """The files that were opened last.

    Args:
        files: Finds the others.
        store: Keeps them.

    """

    def __init__(self, files: Files, store: BlobStore) -> None:
        self._files: Final = files
        self._store: Final = store if isinstance(store, FilesystemStore) else None
        self._recent: Final = OrderedDict[str, tuple[_Recent, float]]()

    async def open(self, file_id: str, caller: Principal) -> Opened:
        """Return the caller's file; the descriptor is the caller's to close.

        Raises:
            NotFound, Quarantined, Forbidden, SidecarDamaged, FileDamaged: As ``Files.find``
                and ``Files.open``.

        """
        opened = self._again(file_id, caller)
        if opened is not None:
            return opened
        # Before the record is read: if it changes meanwhile, the mark is already outdated.
        mark = await self._look(file_id)
        opened = await self.open_found(await self._files.find(file_id, caller))
        fd = opened.fd
        if mark is not None and fd is not None and tells_what_is_cached(fd):
            self._remember(file_id, opened, mark)
        return opened

    async def open_found(self, stored: Stored) -> Opened:
        """Return a file that was found; the descriptor is the caller's to close.

        Raises:
            NotFound, FileDamaged: As ``Files.open``.

        """
        fd = await self._files.open(stored)
        try:
            content_type = await self._files.content_types.of(stored, fd)
        except BaseException:
            if fd is not None:
                os.close(fd)
            raise
        return _opened(stored, fd, content_type)

    async def _look(self, file_id: str) -> _Mark | None:
        if self._store is None:
            return None
        try:
            return await self._store.run(_mark, str(self._store.path(file_id, ".info")))
        except (OSError, ValueError):
            return None  # the search that follows tells why

    def _remember(self, file_id: str, opened: Opened, mark: _Mark) -> None:
        if self._store is None:
            return
        record, blob = (str(self._store.path(file_id, one)) for one in (".info", ""))
        recent = _Recent(replace(opened, fd=None), record, blob, mark)
        self._recent[file_id] = recent, time.monotonic()
        self._recent.move_to_end(file_id)
        if len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)

    def _again(self, file_id: str, caller: Principal) -> Opened | None:
        """Return a file that was opened a moment ago, if it and its record are the same."""
        recent, seen_at = self._recent.get(file_id, (None, 0.0))
        now = time.monotonic()
        if recent is None:
            return None
        facts = recent.opened.stored.sidecar.facts
        if now - seen_at > _FRESH_S or not caller.owns(
            user_id=facts.user_id, tenant=facts.tenant
        ):
            return None
        try:
            if _mark(recent.record) != recent.mark:
                raise UploadNotFound(file_id)
            fd = os.open(recent.blob, _FLAGS)
        except (OSError, UploadNotFound):
            del self._recent[file_id]
            return None
        self._recent[file_id] = recent, now
        return replace(recent.opened, fd=fd)


def _mark(record: str) -> _Mark:
    look = os.lstat(record)
    return look.st_ino, look.st_mtime_ns, look.st_ctime_ns, look.st_size


def _opened(stored: Stored, fd: int | None, content_type: str) -> Opened:
    validators = validators_of(stored)
    headers = headers_of(validators)
    disposition = content_disposition(stored.sidecar.facts.filename)
    return Opened(stored, fd, content_type, validators, headers, disposition)


def headers_of(validators: Validators) -> CIMultiDict[str]:
    """Return the headers of every answer about bytes that have these validators (RFC 9110)."""
    headers = CIMultiDict(_SAFE_HEADERS)
    headers["ETag"] = validators.etag
    # Section 8.8.2.1: never later than this answer, whatever the clock of the writer said.
    modified_s = min(validators.modified_s, time.time())
    headers["Last-Modified"] = formatdate(modified_s, usegmt=True)
    return headers


def validators_of(stored: Stored) -> Validators:
    """Return what tells the bytes of a file: their hash if it is known, else its id.

    A file may be hashed only after it can be downloaded. The tag that was sent until then
    stays good, so that downloads that have begun go on.
    """
    sidecar = stored.sidecar
    modified_s = int((sidecar.completed_at or 0) / 1000)
    return Validators(etag_of(sidecar), modified_s, f'"{sidecar.upload_id}"')
