"""``python -m services.ingest reap``: one clean-up, for a CronJob, and then the end."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Collection

from services.ingest.assembly import Assembly, Foundation
from services.ingest.reaper import Reaped, preview
from services.ingest.settings import Settings
from services.ingest.turns import TurnLost
from shared.serve import Command, check_redis
from shared.streams import REDIS_FAILURES

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
    foundation = Foundation(settings)
    dry_run, count = "--dry-run" in flags, 0
    if not dry_run:
        await check_redis(settings.redis_url)
    await foundation.store.open()
    try:
        async for one in _dry(foundation) if dry_run else _wet(foundation):
            _say(f"{'would reap' if dry_run else 'reaped'} {one}")
            count += 1
    except TurnLost:
        _say("another process is cleaning up")
    except REDIS_FAILURES as exc:  # OSError: of the store, too
        sys.stderr.write(f"error: stopped after {count}: {exc!r}\n")
        return 1
    finally:
        await foundation.store.close()
    _say(f"{count} {'to reap' if dry_run else 'reaped'}")
    return 0


def _dry(foundation: Foundation) -> AsyncIterator[Reaped]:
    lifetime_s = foundation.settings.upload_session_timeout_hours * 3600
    return preview(foundation.store, lifetime_s)


async def _wet(foundation: Foundation) -> AsyncIterator[Reaped]:
    parts = Assembly(foundation)
    async with parts.publishing(drain_s=_DRAIN_S):
        async for one in parts.reaper.run():
            yield one


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


REAP = Command(reap, flags=("--dry-run",))
