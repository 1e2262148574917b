"""Who may write to an upload, where the store itself cannot tell.

A file system has locks that end with their process. Object stores have none, and neither have
some network file systems: there a lease in Redis decides. A lease runs out, so its holder may
believe that it still has it; therefore each grant carries a fence, a number that only grows,
and the store keeps what an older fence writes from being seen.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Lease", "LeaseLost", "Leases"]


class LeaseLost(OSError):
    """The lease has run out or went to somebody else. What was safe before stays so."""


class Lease(Protocol):
    """The right of one holder to one upload."""

    fence: int
    """Greater than that of every earlier holder of the same upload."""

    def check(self) -> None:
        """Return if it is still safe to write; looks at the clock, not at Redis.

        Raises:
            LeaseLost: It may be somebody else's by now.

        """

    async def release(self) -> None:
        """Give it up. Does nothing a second time, or once it is lost; never fails."""


class Leases(Protocol):
    """Grants leases, and passes on who waits for one."""

    async def acquire(self, upload_id: str, *, least_fence: int = 0) -> Lease:
        """Take the lease of an upload.

        Args:
            upload_id: Of the upload.
            least_fence: The last fence that the store has seen; a Redis that was wiped has
                forgotten it, so the new one must be greater than this too.

        Raises:
            UploadBusy: Somebody else has it.
            LeaseUnavailable: Redis is away.

        """

    async def ask(self, upload_id: str) -> None:
        """Ask the holder, in whatever process, to let go. Never fails."""

    def asked(self) -> set[str]:
        """Return the uploads held here that somebody waits for."""
