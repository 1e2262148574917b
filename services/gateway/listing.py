"""One user's sessions in pages, newest first, with counts of all of them.

A page begins where the last one ended, at a session and not at a number, so sessions that
appear meanwhile shift nothing. Of those that are not on the page only what counting and sorting
need is read.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from redis.asyncio import Redis

from services.gateway.keys import Keys
from services.gateway.relay import Relay
from services.gateway.state import ID_FORM, ProgressState
from shared.errors import InvalidRequest
from shared.streams import Command, command, pipelined

__all__ = ["Brief", "Listing", "Page", "Position", "cursor_of", "page_of", "position_of"]

_BATCH: Final = 500
_CURSOR: Final = re.compile(r"(\d{1,15})\.(.+)", re.ASCII)
_LONGEST: Final = 256
"""Characters of a cursor."""


class Position(NamedTuple):
    """Where a session stands in the order: by its time, ms; by its id if that is the same."""

    started_at: int
    session_id: str


class Brief(NamedTuple):
    """What counting and sorting need of a session."""

    position: Position
    status: str


class Page(msgspec.Struct, frozen=True):
    """A page, and how many sessions of each status there are on all pages."""

    sessions: Sequence[ProgressState]
    counts: Mapping[str, int]
    next_cursor: str | None


class _Fields(NamedTuple):
    """What is read of every session, as it is recorded."""

    tenant: bytes | None
    status: bytes | None
    started_at_ms: bytes | None
    seq: bytes | None


def cursor_of(position: Position) -> str:
    """Return a position as clients bring it back; opaque to them."""
    text = f"{position.started_at}.{position.session_id}"
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def position_of(cursor: str) -> Position:
    """Return the position that a cursor stands for.

    Raises:
        InvalidRequest: We did not make it.

    """
    try:
        if len(cursor) > _LONGEST:
            raise ValueError
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        text = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
    except (ValueError, binascii.Error):
        text = ""
    match = _CURSOR.fullmatch(text)
    if match is None or not ID_FORM.fullmatch(match[2]):
        raise InvalidRequest("cursor must be the next_cursor of another page.")
    return Position(int(match[1]), match[2])


def page_of(
    briefs: Iterable[Brief], *, limit: int, after: Position | None
) -> tuple[list[Position], Position | None]:
    """Return the positions on a page, newest first, and the last one if there is more."""
    found = sorted(
        (one.position for one in briefs if after is None or one.position < after), reverse=True
    )
    page = found[:limit]
    return page, page[-1] if len(found) > limit else None


class Listing:
    """Reads the sessions of users.

    Args:
        redis: Client made by ``shared.streams.connect``.
        keys: Where everything is.
        relay: Knows what the projections may not have yet.

    """

    def __init__(self, redis: Redis, keys: Keys, relay: Relay) -> None:
        self._redis: Final = redis
        self._keys: Final = keys
        self._relay: Final = relay

    async def page(
        self, user_id: str, tenant: str, *, limit: int, after: Position | None
    ) -> Page:
        """Return a page of a user's sessions in a tenant.

        Raises:
            RedisError, OSError, EOFError: Redis is away.

        """
        members = await command(self._redis, "SMEMBERS", self._keys.user(user_id))
        recorded = {one.decode(errors="replace") for one in members}
        heard = set(self._relay.recent_of(user_id, tenant))
        found = await self._recorded(recorded | heard)
        lagging = [
            one for one in heard if self._relay.is_ahead_of(one, _number(found[one].seq))
        ]
        briefs = {one: _read_brief(one, tenant, reply) for one, reply in found.items()}
        briefs |= {
            one: _brief(state) for one, state in (await self._relay.load_all(lagging)).items()
        }
        gone = [one for one in recorded if found[one].tenant is None and one not in heard]
        if gone:  # or the set of somebody who is never idle would grow forever
            await command(self._redis, "SREM", self._keys.user(user_id), *gone)
        alive = [one for one in briefs.values() if one is not None and one.status != "deleted"]
        positions, last = page_of(alive, limit=limit, after=after)
        shown = await self._relay.load_all([one.session_id for one in positions])
        return Page(
            [one for one in shown.values() if one.status != "deleted"],
            Counter(one.status for one in alive),
            cursor_of(last) if last is not None else None,
        )

    async def _recorded(self, session_ids: Iterable[str]) -> dict[str, _Fields]:
        found: dict[str, _Fields] = {}
        todo = list(session_ids)
        for start in range(0, len(todo), _BATCH):
            batch = todo[start : start + _BATCH]
            reading: list[Command] = [
                ("HMGET", self._keys.upload(one), *_Fields._fields) for one in batch
            ]
            replies = await pipelined(self._redis, reading)
            found |= {one: _Fields(*reply) for one, reply in zip(batch, replies, strict=True)}
        return found


def _brief(state: ProgressState) -> Brief:
    return Brief(Position(state.started_at, state.session_id), state.status)


def _read_brief(session_id: str, tenant: str, fields: _Fields) -> Brief | None:
    """Return what was read of a session; ``None`` for another tenant's, or a damaged one."""
    started_at = _number(fields.started_at_ms)
    if fields.tenant != tenant.encode() or fields.status is None or started_at < 0:
        return None
    return Brief(Position(started_at, session_id), fields.status.decode(errors="replace"))


def _number(text: bytes | None) -> int:
    return int(text) if text is not None and text.isdigit() else -1
