"""Dismissing sessions: all that gateways keep about them goes, what is told later too.

The file itself stays; this is the deletion of *progress data* of seed document 000 (lines 167
to 173). In the place of the projection stands a tombstone that is ahead of every event, so
neither a late event nor one that is published again brings the session back, on whatever
gateway it arrives. Nothing is told to the others: each asks for the tombstone before it answers
from memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from redis.asyncio import Redis

from services.gateway.keys import Keys
from services.gateway.record import to_fields
from services.gateway.sessions_index import NOTING, SessionsIndex
from services.gateway.state import AFTER_ALL, ProgressState
from shared.redis_script import RedisScript, run_mixed
from shared.streams import Command

__all__ = ["Dismissals", "tombstone_of"]

_DISMISS: Final = RedisScript(Path(__file__).with_name("dismiss.lua"))
_FORGET_NAME: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 0
"""
"""The name may stand for another upload by now."""


class Dismissals:
    """Dismisses sessions.

    Args:
        redis: Client made by ``shared.streams.connect``.
        keys: Where everything is.
        index: Knows them too.

    """

    def __init__(self, redis: Redis, keys: Keys, index: SessionsIndex) -> None:
        self._redis: Final = redis
        self._keys: Final = keys
        self._index: Final = index

    async def dismiss(self, states: Sequence[ProgressState], *, for_s: int) -> list[bool]:
        """Remove sessions that are over, and keep them away for so many seconds.

        Returns which ones were removed by this very call: of several at once, one has done it.

        Raises:
            RedisError, OSError, EOFError: Redis is away. Some may be dismissed then, each
                either whole or so that doing it again completes it.

        """
        if not states:
            return []
        tombstones = [tombstone_of(one) for one in states]
        dismissing = [self._dismissing(one, for_s) for one in tombstones]
        rest = [part for one in states for part in self._forgetting(one)]
        noting = self._index.noting(tombstones)
        # The tombstones come last: whoever is cut off before them can begin again.
        commands = [*rest, *noting, *dismissing]
        replies = await run_mixed(self._redis, commands, NOTING, _DISMISS)
        return [bool(one) for one in replies[-len(dismissing) :]]

    def _dismissing(self, tombstone: ProgressState, for_s: int) -> Command:
        fields = [part for pair in to_fields(tombstone).items() for part in pair]
        return _DISMISS.call([self._keys.upload(tombstone.session_id)], for_s, *fields)

    def _forgetting(self, state: ProgressState) -> list[Command]:
        commands: list[Command] = [
            ("SREM", self._keys.user(state.user_id), state.session_id),
            ("DEL", self._keys.log(state.session_id)),
        ]
        if state.job_id:
            commands.append(("DEL", self._keys.job(state.job_id)))
        if state.client_name:
            key = self._keys.name(state.tenant, state.user_id, state.client_name)
            commands.append(("EVAL", _FORGET_NAME, 1, key, state.session_id))
        return commands


def tombstone_of(state: ProgressState) -> ProgressState:
    """Return what stays of a session: whose it was, and that it is gone."""
    return ProgressState(
        session_id=state.session_id,
        seq=AFTER_ALL,
        user_id=state.user_id,
        tenant=state.tenant,
        status="deleted",
        bytes_uploaded=0,
        total_bytes=None,
        upload_speed=0.0,
        filename="",
        content_type="",
        started_at=state.started_at,
        last_updated=state.last_updated,
        job_seq=AFTER_ALL,
    )
