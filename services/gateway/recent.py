"""The lifecycle events of the last minutes, for as long as a projection may lag behind them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple

from services.gateway.folding import counter_of, fold
from services.gateway.log import LOG_LIMIT, Logged
from services.gateway.state import ProgressState
from shared.events import JobEvent, LifecycleEvent, UploadFacts, encode

__all__ = ["Recent"]

_KEEP_S: Final = 120.0
_LIMIT: Final = 50_000
_LIMIT_BYTES: Final = 64 * 1024 * 1024
_LIMIT_OF_ONE: Final = LOG_LIMIT
"""Events of one upload, and as many of its job; the newest are kept. There are about ten."""
_NOWHERE: Final = b""
_OF_ITS_JSON: Final = 3
"""An event takes about three times the bytes that it has on the stream."""


class _Remembered(NamedTuple):
    at: float
    owner: tuple[str, str]
    job_id: str
    events: list[Logged]
    size: int
    """About how many bytes it takes."""


class Recent:
    """Events by upload. All of an upload's recent ones, since each may tell what no other does.

    Args:
        keep_s: How long after its last event an upload is remembered.
        limit: Events of all uploads together; the longest silent ones go first.
        limit_bytes: What they may take together, likewise.

    """

    def __init__(
        self,
        *,
        keep_s: float = _KEEP_S,
        limit: int = _LIMIT,
        limit_bytes: int = _LIMIT_BYTES,
    ) -> None:
        self._keep_s: Final = keep_s
        self._limit: Final = limit
        self._limit_bytes: Final = limit_bytes
        self._count = self._size = 0
        self._uploads: Final[OrderedDict[str, _Remembered]] = OrderedDict()
        self._by_owner: Final[dict[tuple[str, str], set[str]]] = {}
        self._by_job: Final[dict[str, str]] = {}

    def __len__(self) -> int:
        """Return how many events are remembered."""
        return self._count

    def remember(
        self, event: LifecycleEvent, entry_id: bytes = _NOWHERE, partition: int = 0
    ) -> None:
        """Keep an event unless it is known; forget those that are too old or too many.

        Args:
            event: As it was read.
            entry_id: Of its entry on the stream; empty while it was not read from there.
            partition: Of that stream.

        """
        now = time.monotonic()
        owner = (event.upload.tenant, event.upload.user_id)
        known = self._forget(event.upload_id)
        before, size = (known.events, known.size) if known is not None else ([], 0)
        told = _with(before, Logged(entry_id, partition, event))
        if len(told) == len(before) + 1:
            size += _size_of(event)
        elif told is not before:
            size = sum(_size_of(one.event) for one in told)
        remembered = _Remembered(now, owner, event.upload.job_id, told, size)
        self._uploads[event.upload_id] = remembered
        self._by_owner.setdefault(owner, set()).add(event.upload_id)
        self._by_job[event.upload.job_id] = event.upload_id
        self._count += len(told)
        self._size += size
        while self._uploads:
            oldest = next(iter(self._uploads))
            too_many = self._count > self._limit or self._size > self._limit_bytes
            if not too_many and now - self._uploads[oldest].at <= self._keep_s:
                break
            self._forget(oldest)

    def _forget(self, upload_id: str) -> _Remembered | None:
        known = self._uploads.pop(upload_id, None)
        if known is not None:
            self._count -= len(known.events)
            self._size -= known.size
            of_owner = self._by_owner[known.owner]
            of_owner.discard(upload_id)
            if not of_owner:
                del self._by_owner[known.owner]
            self._by_job.pop(known.job_id, None)
        return known

    def of_job(self, job_id: str) -> str | None:
        """Return the upload that a job processes, if it is remembered."""
        return self._by_job.get(job_id)

    def logged(self, upload_id: str) -> list[Logged]:
        """Return the remembered events of an upload that were read from the stream."""
        known = self._uploads.get(upload_id)
        return [one for one in known.events if one.entry_id] if known is not None else []

    def facts_of(self, upload_id: str) -> UploadFacts | None:
        """Return what the newest remembered event says of an upload."""
        known = self._uploads.get(upload_id)
        return known.events[-1].event.upload if known is not None else None

    def of(self, *, tenant: str, user_id: str) -> Iterable[str]:
        """Return the uploads of a user that are remembered."""
        return tuple(self._by_owner.get((tenant, user_id), ()))

    def is_ahead_of(self, upload_id: str, seq: int) -> bool:
        """Whether the upload itself has an event that comes after ``seq``."""
        known = self._uploads.get(upload_id)
        told = (one.event for one in known.events) if known is not None else ()
        return any(one.seq > seq and not isinstance(one, JobEvent) for one in told)

    def newer(self, upload_id: str, recorded: ProgressState | None) -> ProgressState | None:
        """Return what is recorded with what is remembered and newer folded in."""
        known = self._uploads.get(upload_id)
        state = recorded
        for one in known.events if known is not None else ():
            state = fold(state, one.event) or state
        return state


def _size_of(event: LifecycleEvent) -> int:
    return _OF_ITS_JSON * len(encode(event))


def _with(told: list[Logged], one: Logged) -> list[Logged]:
    """Return the events with one more, in their own order; of a repeat, the first copy."""
    counter = counter_of(one.event)
    for at, known in enumerate(told):
        if counter_of(known.event) == counter:
            if not known.entry_id:
                told[at] = one
            return told
    told = sorted([*told, one], key=lambda each: counter_of(each.event))
    of_job = [each for each in told if isinstance(each.event, JobEvent)]
    of_upload = [each for each in told if not isinstance(each.event, JobEvent)]
    return of_upload[-_LIMIT_OF_ONE:] + of_job[-_LIMIT_OF_ONE:]
