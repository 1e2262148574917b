"""``python -m services.storage reindex``: makes the records of all files anew, and ends."""

from __future__ import annotations

import sys
from collections.abc import Collection

from services.storage.progress_line import ProgressLine
from services.storage.rebuilding import Rebuilding
from services.storage.records import Records
from services.storage.settings import Settings
from shared.blobs.opening import make_leases, make_store
from shared.serve import Command, check_redis
from shared.streams import REDIS_FAILURES, connect

__all__ = ["REINDEX"]


async def reindex(settings: Settings, flags: Collection[str]) -> int:
    """Record every file of the store, drop the records of others, and say how many.

    ``--dry-run`` only looks. Services may run meanwhile.

    Returns:
        The exit code: 1 if something kept it from being done. What was done stays; do it again.

    Raises:
        StartupError: The store cannot be opened, or Redis is not there.

    """
    await check_redis(settings.redis_url)
    store = make_store(settings, leases=make_leases(settings))
    redis = connect(settings.redis_url or "")
    line, dry_run = ProgressLine(), "--dry-run" in flags
    records = Records(redis)

    async def show(fraction: float) -> None:
        found = rebuilding.found
        line.show(fraction, f"{found.files} files, {found.written} missing")

    rebuilding = Rebuilding(store, records, dry_run=dry_run, on_batch=show)
    await store.open()
    try:
        await rebuilding.record_all()
        await rebuilding.drop_strays()
        if not dry_run:
            await records.mark_complete()
    except REDIS_FAILURES as exc:  # OSError: of the store, too
        line.clear()
        sys.stderr.write(f"error: stopped after {rebuilding.found.files} files: {exc!r}\n")
        return 1
    finally:
        await redis.aclose()
        await store.close()
    line.clear()
    found = rebuilding.found
    done = ("to record", "to drop") if dry_run else ("recorded", "dropped")
    sys.stdout.write(
        f"{found.files} files: {found.written} {done[0]}, {found.dropped} {done[1]}\n"
    )
    return 0


REINDEX = Command(reindex, flags=("--dry-run",))
