"""``python -m services.ingest reap``: one clean-up, for a CronJob, and then the end."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, nullcontext

from services.ingest.completion import Completion
from services.ingest.progress import ProgressReporter
from services.ingest.quotas import Quotas, quota_limits
from services.ingest.reaper import Reaper, preview
from services.ingest.records import SessionRecords
from services.ingest.settings import Settings
from services.ingest.turns import TurnLost
from shared.blobs.opening import make_leases, make_store
from shared.blobs.store import BlobStore
from shared.lifecycle import background
from shared.outbox import Outbox
from shared.publisher import Publisher
from shared.serve import Command, check_redis
from shared.streams import REDIS_FAILURES, connect

__all__ = ["REAP"]

_DRAIN_S = 10.0


async def reap(settings: Settings, flags: Collection[str]) -> int:
    """Clean up, and write a line for each thing to stdout and a summary.

    ``--dry-run`` only tells, and needs no Redis. Without it Redis must be there, since it says
    whether another process is at it; nothing is touched then.

    Returns:
        The exit code: 1 if something kept it from being done.

    Raises:
        StartupError: The store cannot be opened, or Redis is not there.

    """
    leases = make_leases(settings)
    store = make_store(settings, fsync=settings.upload_fsync, leases=leases)
    lifetime_s = settings.upload_session_timeout_hours * 3600
    dry_run, count = "--dry-run" in flags, 0
    if not dry_run:
        await check_redis(settings.redis_url)
    await store.open()
    try:
        if dry_run:
            async for one in preview(store, lifetime_s):
                _say(f"would reap {one}")
                count += 1
        else:
            async with (
                leases.running() if leases else nullcontext(),
                _reaper(settings, store, lifetime_s) as reaper,
            ):
                async for one in reaper.run():
                    _say(f"reaped {one}")
                    count += 1
    except TurnLost:
        _say("another process is cleaning up")
    except REDIS_FAILURES as exc:  # OSError: of the store, too
        sys.stderr.write(f"error: stopped after {count}: {exc!r}\n")
        return 1
    finally:
        await store.close()
    _say(f"{count} {'to reap' if dry_run else 'reaped'}")
    return 0


@asynccontextmanager
async def _reaper(
    settings: Settings, store: BlobStore, lifetime_s: float
) -> AsyncIterator[Reaper]:
    redis = connect(settings.redis_url or "")
    publisher = Publisher(
        redis,
        partitions=settings.event_partitions,
        interval_s=settings.progress_update_interval,
    )
    records = SessionRecords(redis, ttl_s=lifetime_s)
    outbox = Outbox(store, publisher, redis, recent_s=float(settings.progress_ttl_seconds))
    progress = ProgressReporter(publisher, records)
    quotas = Quotas(redis, quota_limits(settings))
    try:
        async with background("publisher", publisher.run()):
            yield Reaper(
                store=store,
                redis=redis,
                outbox=outbox,
                progress=progress,
                completion=Completion(outbox, progress, quotas),
                quotas=quotas,
                lifetime_s=lifetime_s,
            )
        # What does not get out now is published by a process that serves.
        await publisher.drain(timeout_s=_DRAIN_S)
        await records.write()
        await outbox.close()
    finally:
        await redis.aclose()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


REAP = Command(reap, flags=("--dry-run",))
