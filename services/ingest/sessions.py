"""Names that clients give to their upload sessions (contract, ``POST /v1/upload/video``).

A name is a caller's own: two callers may use the same one. Redis holds which upload a name
stands for, ``session:{tenant}:{user}:{name}``, and decides who opens a session when several
requests bring its first chunks at once, in whatever processes. The record of the upload has the
name too, so a Redis that was wiped is filled again from the store before it is believed.

While Redis is away, sessions that exist are found in the store, and go on. A new name cannot
be given out then: another process might be giving it out as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, cast
from urllib.parse import quote

import structlog
from redis.asyncio import Redis

from services.ingest.errors import Gone
from shared import events
from shared.blobs.store import BlobStore, UploadNotFound
from shared.errors import Unavailable
from shared.identity import Principal
from shared.redis_script import RedisScript
from shared.sidecar import Sidecar, SidecarDamaged
from shared.stream_group import GroupEntry
from shared.streams import REDIS_FAILURES, Command, command, pipelined

__all__ = ["SessionNames", "session_key"]

log = structlog.stdlib.get_logger(__name__)

_KNOWN: Final = "session:known"
"""Stands in a Redis that was told all names; with it, a name that is not there is free."""

_ENDED: Final = b"-"
_ENDED_MS: Final = 60_000
"""How long the name of a cancelled session is taken: until no chunk can be under way."""

_CREATION_S: Final = 5.0
"""Longer than anybody takes from getting a name to having the upload in the store."""
_POLL_S: Final = 0.02
_SURVEY_S: Final = 2.0
"""How old the list of all names may be that serves while Redis is away."""
_BATCH: Final = 500

_GONE: Final = (events.FileDeleted, events.UploadCancelled, events.UploadExpired)
_REPLACE: Final = RedisScript(Path(__file__).with_name("sessions.lua"))


def session_key(tenant: str, user_id: str, name: str) -> str:
    """Return where Redis has the upload of a caller's session."""
    return f"session:{quote(tenant, safe='')}:{quote(user_id, safe='')}:{name}"


class SessionNames:
    """Finds uploads by the names that their callers gave them.

    Args:
        store: Has the records that say which names there are.
        redis: Client made by ``shared.streams.connect``.
        ttl_s: How long a name stays after it was last used.

    """

    def __init__(self, store: BlobStore, redis: Redis, *, ttl_s: float) -> None:
        self._store: Final = store
        self._redis: Final = redis
        self._ttl_s: Final = ttl_s
        self._ttl_ms: Final = int(ttl_s * 1000)
        self._surveying: Final = asyncio.Lock()
        self._surveyed: dict[str, str] = {}
        self._surveyed_at = float("-inf")

    async def find(self, caller: Principal, name: str) -> str | None:
        """Return the id of the upload that a name stands for; ``None`` if it is free.

        Raises:
            OSError: Redis is away, and the store fails.

        """
        key = session_key(caller.tenant, caller.user_id, name)
        try:
            there = await self._read(key)
        except REDIS_FAILURES as exc:
            log.debug("session_looked_for_in_the_store", error=repr(exc))
            # No name is given out meanwhile, so an old list still has what it had.
            if found := self._surveyed.get(key):
                return found
            return (await self._survey(not_before=time.monotonic() - _SURVEY_S)).get(key)
        return None if there is None or there == _ENDED else there.decode()

    async def _read(self, key: str) -> bytes | None:
        is_known, there = await pipelined(self._redis, [("EXISTS", _KNOWN), ("GET", key)])
        if not is_known:
            await self._recall()
            there = await command(self._redis, "GET", key)
        if there not in {None, _ENDED}:
            await command(self._redis, "PEXPIRE", key, self._ttl_ms)
        return cast("bytes | None", there)

    async def claim(self, caller: Principal, name: str, upload_id: str) -> str:
        """Give a name to an upload that is about to be created; return who has it then.

        That may be another upload, which is in the store already.

        Raises:
            Gone: The session of this name was cancelled just now.
            Unavailable: Redis is away, so nobody can say whether the name is free.
            OSError: The store fails.

        """
        key = session_key(caller.tenant, caller.user_id, name)
        try:
            return await self._claim(key, upload_id)
        except REDIS_FAILURES as exc:
            log.debug("session_not_named", error=repr(exc))
        if found := (await self._survey(not_before=time.monotonic())).get(key):
            return found
        raise Unavailable("No session can be opened under this name just now. Try again.")

    async def _claim(self, key: str, upload_id: str) -> str:
        wait_until = time.monotonic() + _CREATION_S
        take: Command = ("SET", key, upload_id, "NX", "PX", self._ttl_ms)
        seen = None
        while True:
            # First whether names are known: what is taken after that was free.
            is_known = await command(self._redis, "EXISTS", _KNOWN)
            _, there = await pipelined(self._redis, [take, ("GET", key)])
            if not is_known:
                await self._recall()
                there = await command(self._redis, "GET", key)
            if there is None:
                continue
            if there == upload_id.encode():
                return upload_id
            if there == _ENDED:
                raise Gone("This session was cancelled.", error_code="SESSION_CANCELLED")
            if await self._is_there(there.decode()):
                return str(there.decode())
            if there != seen:
                seen, wait_until = there, time.monotonic() + _CREATION_S
            if time.monotonic() > wait_until and await self._replace(key, there, upload_id):
                return upload_id  # whoever had it died before the upload was created
            await asyncio.sleep(_POLL_S)

    async def _replace(self, key: str, old: bytes, upload_id: str) -> bool:
        replaced = await _REPLACE.run(self._redis, [key], old, upload_id, self._ttl_ms)
        return bool(replaced)

    async def release(self, caller: Principal, name: str, upload_id: str) -> None:
        """Free a name whose upload could not be created; others wait a while otherwise."""
        key = session_key(caller.tenant, caller.user_id, name)
        with contextlib.suppress(*REDIS_FAILURES):
            await self._replace(key, upload_id.encode(), "")

    async def end(self, sidecar: Sidecar) -> None:
        """Take the name from a session that was cancelled; chunks under way come to nothing.

        Those of a session without a name go by its id, which they must not make a name.
        While Redis is away the name stays: it leads to an upload that is gone.
        """
        facts = sidecar.facts
        key = _key_of(sidecar) or session_key(facts.tenant, facts.user_id, sidecar.upload_id)
        try:
            await command(self._redis, "SET", key, _ENDED, "PX", _ENDED_MS)
        except REDIS_FAILURES as exc:
            log.debug("session_name_not_ended", error=repr(exc))

    async def handle(self, batch: Sequence[GroupEntry]) -> None:
        """Free the names of sessions that are gone, however they went.

        Raises:
            MalformedEvent, UnknownEvent: An entry is not as the contract says.
            RedisError, OSError: Redis is away; the entries come again.

        """
        for entry in batch:
            event = events.decode(entry.fields.get(b"d", b""))
            facts = event.upload
            if isinstance(event, _GONE) and facts.session_id:
                key = session_key(facts.tenant, facts.user_id, facts.session_id)
                await self._replace(key, event.upload_id.encode(), "")

    async def _is_there(self, upload_id: str) -> bool:
        try:
            return not (await self._store.load(upload_id)).is_gone
        except UploadNotFound:
            return False
        except SidecarDamaged:
            return True

    async def _recall(self) -> None:
        """Tell a Redis that knows nothing all names that the store has."""
        names = await self._survey(not_before=time.monotonic())
        pairs = list(names.items())
        for start in range(0, len(pairs), _BATCH):
            batch = pairs[start : start + _BATCH]
            await pipelined(self._redis, [("SET", *pair, "PX", self._ttl_ms) for pair in batch])
        await command(self._redis, "SET", _KNOWN, "1")
        log.info("session_names_recalled", count=len(pairs))

    async def _survey(self, *, not_before: float) -> dict[str, str]:
        """Return the uploads of all names, as the store has them at ``not_before`` or later.

        Takes as long as there are unfinished and recent uploads, so those who wait share one.
        """
        async with self._surveying:
            if self._surveyed_at < not_before:
                at = time.monotonic()
                found: dict[str, Sidecar] = {}
                async for sidecar in self._store.survey(recent_s=self._ttl_s):
                    key = _key_of(sidecar)
                    if key and not sidecar.is_gone:
                        found[key] = _newer(sidecar, found.get(key))
                self._surveyed = {key: one.upload_id for key, one in found.items()}
                self._surveyed_at = at
            return self._surveyed


def _key_of(sidecar: Sidecar) -> str:
    if sidecar.form is None or not sidecar.form.session_id:
        return ""
    facts = sidecar.facts
    return session_key(facts.tenant, facts.user_id, sidecar.form.session_id)


def _newer(one: Sidecar, other: Sidecar | None) -> Sidecar:
    if other is None or one.facts.created_at >= other.facts.created_at:
        return one
    return other
