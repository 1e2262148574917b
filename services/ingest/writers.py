"""One writer at a time per upload, and how the next one gets its turn.

A client whose connection died comes back on a new one while the old request still waits for
bytes. The newcomer therefore asks the holder to let go: the holder keeps what it has received,
answers, and releases. In this process that takes an event; to a holder in another process the
question goes through the store. Who asks last gets the upload: it is the one that lives.

While leases are needed and Redis, which grants them, is away, nobody could take over. Then no
holder is asked either: what runs goes on, and newcomers are told to come back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Literal

from services.ingest.errors import Locked
from shared.blobs.store import BlobStore, BlobWriter, LeaseUnavailable, UploadBusy
from shared.redis_leases import RedisLeases

__all__ = ["Lease", "Writers"]

Reason = Literal["takeover", "shutdown", "quota"]

_ACQUIRE_S: Final = 10.0
"""How long a newcomer waits: longer than a holder needs to sync a buffer to a slow disk."""
_RETRY_S: Final = 0.05
_POLL_S: Final = 0.2
"""How often questions from other processes are looked for while an upload is held here. Those
that come by Redis tell of themselves."""


class Lease:
    """The turn of one request: the store's writer, and the wish of others to have it."""

    def __init__(self, upload_id: str, writer: BlobWriter) -> None:
        self.upload_id: Final = upload_id
        self.writer: Final = writer
        self.asked: Reason | None = None
        """Why the holder should let go; ``None`` while nobody wants that."""
        self._released: Final = asyncio.Event()
        self._on_ask: Callable[[], None] | None = None

    def ask(self, reason: Reason) -> None:
        """Ask the holder to let go; returns at once."""
        if self.asked is None:
            self.asked = reason
            if self._on_ask is not None:
                self._on_ask()

    def when_asked(self, callback: Callable[[], None] | None) -> None:
        """Have ``callback`` called once somebody asks; at once if that has happened."""
        self._on_ask = callback
        if callback is not None and self.asked is not None:
            callback()

    async def wait_released(self) -> None:
        """Return when the holder has let go."""
        await self._released.wait()

    def mark_released(self) -> None:
        """Let those who wait try."""
        self._released.set()


class Writers:
    """The turns at the uploads of one process.

    Args:
        store: Grants the right to write, across processes.
        leases: What it asks for that, if it needs Redis.

    """

    def __init__(self, store: BlobStore, leases: RedisLeases | None = None) -> None:
        self._store: Final = store
        self._leases: Final = leases
        self._held: Final[dict[str, Lease]] = {}
        self._draining = False

    @property
    def count(self) -> int:
        """Uploads that are being written to here."""
        return len(self._held)

    def check_grantable(self) -> None:
        """Return unless it is known that no right to write can be granted.

        Raises:
            LeaseUnavailable: Redis is away, and needed for it.

        """
        if self._leases is not None and self._leases.away:
            raise LeaseUnavailable("Redis is away")

    @asynccontextmanager
    async def writing(self, upload_id: str) -> AsyncIterator[Lease]:
        """Hold the exclusive right to write to an upload.

        Raises:
            Locked: The holder did not let go in time.
            LeaseUnavailable: Redis grants the right, and it is away.
            UploadNotFound, SidecarDamaged, OSError: As ``BlobStore.acquire``.

        """
        async with self._hold(Lease(upload_id, await self._acquire(upload_id))) as lease:
            yield lease

    @asynccontextmanager
    async def holding(self, upload_id: str) -> AsyncIterator[Lease]:
        """Hold the right to write if nobody has it: for work that clients do not wait for.

        Raises:
            UploadBusy: Somebody has it; he is not disturbed.
            LeaseUnavailable, UploadNotFound, SidecarDamaged, OSError: As ``writing``.

        """
        async with self._hold(Lease(upload_id, await self._store.acquire(upload_id))) as lease:
            yield lease

    @asynccontextmanager
    async def _hold(self, lease: Lease) -> AsyncIterator[Lease]:
        self._held[lease.upload_id] = lease
        if self._draining:
            lease.ask("shutdown")
        try:
            yield lease
        finally:
            del self._held[lease.upload_id]
            await lease.writer.close()
            lease.mark_released()

    async def _acquire(self, upload_id: str) -> BlobWriter:
        try:
            async with asyncio.timeout(_ACQUIRE_S):
                while True:
                    self.check_grantable()
                    holder = self._held.get(upload_id)
                    if holder is not None:
                        holder.ask("takeover")
                        await holder.wait_released()
                    try:
                        return await self._store.acquire(upload_id)
                    except UploadBusy:
                        if upload_id not in self._held:
                            await self._store.ask_release(upload_id)
                        await asyncio.sleep(_RETRY_S)
        except TimeoutError:
            raise Locked("Another request is writing to this upload.") from None

    def let_go(self) -> None:
        """Ask all holders to finish, because the process stops."""
        self._draining = True
        for lease in self._held.values():
            lease.ask("shutdown")

    async def listen(self) -> None:
        """Pass on what other processes ask for, forever."""
        while True:
            if self._leases is None:
                await asyncio.sleep(_POLL_S)
            else:
                await self._leases.until_asked(_POLL_S)
            if self._held:
                try:
                    asked = await self._store.release_asked()
                except OSError:
                    continue  # the newcomer keeps asking
                for upload_id in asked & self._held.keys():
                    self._held[upload_id].ask("takeover")
