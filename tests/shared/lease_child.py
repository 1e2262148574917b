"""A process that holds a lease, and tells all the time whether it believes in it.

``python -m tests.shared.lease_child URL UPLOAD TTL`` writes ``held <fence>`` once, then
``<time> ok`` or ``<time> lost`` (monotonic clock, read before the check) until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
import time

import structlog

from shared.blobs.store import LeaseUnavailable, UploadBusy
from shared.leases import Lease, LeaseLost
from shared.redis_leases import RedisLeases


async def hold(url: str, upload_id: str, ttl_s: float) -> None:
    """Hold the lease until killed."""
    leases = RedisLeases(url, fenced=True, ttl_s=ttl_s)
    async with leases.running():
        lease = await take(leases, upload_id)
        tell(f"held {lease.fence}")
        while True:
            now = time.monotonic()
            tell(f"{now} {belief(lease)}")
            await asyncio.sleep(0.005)


async def take(leases: RedisLeases, upload_id: str) -> Lease:
    """Return the lease once it is granted."""
    while True:
        try:
            return await leases.acquire(upload_id)
        except (UploadBusy, LeaseUnavailable):
            await asyncio.sleep(0.01)


def belief(lease: Lease) -> str:
    """Return what the holder thinks of its lease."""
    try:
        lease.check()
    except LeaseLost:
        return "lost"
    return "ok"


def tell(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(hold(sys.argv[1], sys.argv[2], float(sys.argv[3])))
