"""Leases in memory, for stores in one process that play several; and for taking them away."""

from __future__ import annotations

from typing import Final

from shared.blobs.store import UploadBusy
from shared.leases import LeaseLost

__all__ = ["MemoryLease", "MemoryLeases", "Registry"]


class Registry:
    """What all who grant leases share, as Redis would be."""

    def __init__(self) -> None:
        self.holders: Final[dict[str, MemoryLease]] = {}
        self.asked: Final[set[str]] = set()
        self.fence = 0

    def expire(self, upload_id: str, *, noticed: bool = True) -> None:
        """Take a lease away, as time does; if it is not ``noticed``, its holder goes on.

        That is what a process does that was stopped just after it had looked at the clock.
        """
        lease = self.holders.pop(upload_id)
        lease.lost = noticed


class MemoryLease:
    """Implements ``Lease``."""

    def __init__(self, registry: Registry, upload_id: str, fence: int) -> None:
        self.fence = fence
        self.lost = False
        self._registry: Final = registry
        self._id: Final = upload_id

    def check(self) -> None:
        """Fail once the loss was noticed."""
        if self.lost:
            raise LeaseLost("the lease has run out")

    async def release(self) -> None:
        """Let the next one have it."""
        if self._registry.holders.get(self._id) is self:
            del self._registry.holders[self._id]


class MemoryLeases:
    """Implements ``Leases`` for one of the stores."""

    def __init__(self, registry: Registry) -> None:
        self._registry: Final = registry
        self._held: Final[dict[str, MemoryLease]] = {}

    async def acquire(self, upload_id: str, *, least_fence: int = 0) -> MemoryLease:
        """Grant the lease if nobody has it."""
        registry = self._registry
        if upload_id in registry.holders:
            raise UploadBusy(upload_id)
        registry.fence = max(registry.fence, least_fence) + 1
        registry.asked.discard(upload_id)
        lease = MemoryLease(registry, upload_id, registry.fence)
        registry.holders[upload_id] = self._held[upload_id] = lease
        return lease

    async def ask(self, upload_id: str) -> None:
        """Leave word for the holder."""
        if upload_id in self._registry.holders:
            self._registry.asked.add(upload_id)

    def asked(self) -> set[str]:
        """Return what is asked of this one."""
        held = {one for one in self._held if self._registry.holders.get(one) is self._held[one]}
        return self._registry.asked & held
