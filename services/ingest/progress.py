"""Tells others how far uploads are, and how fast they come in.

A client may send an upload in many requests, so its speed is measured over all of them; an
upload is said to rest (speed 0) when none has come for a while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from services.ingest.records import SessionRecords
from services.ingest.speed import SpeedMeter
from shared.blobs.store import Chunk
from shared.events import UploadProgress
from shared.publisher import Publisher
from shared.sidecar import Sidecar
from shared.times import now_ms

__all__ = ["ProgressReporter"]

_REST_S: Final = 2.0
"""Longer than clients take from one request to the next."""


class ProgressReporter:
    """Reports positions of the uploads that this process receives."""

    def __init__(self, publisher: Publisher, records: SessionRecords) -> None:
        self._publisher: Final = publisher
        self._records: Final = records
        self._meters: Final[dict[str, SpeedMeter]] = {}
        self._resting: Final[dict[str, asyncio.TimerHandle]] = {}

    def begin(self, sidecar: Sidecar, offset: int) -> None:
        """Note that bytes will come from ``offset`` on."""
        self._stay_awake(sidecar.upload_id)
        if sidecar.upload_id not in self._meters:
            self._meters[sidecar.upload_id] = SpeedMeter(offset, time.monotonic())

    def advance(self, sidecar: Sidecar, offset: int, chunks: Sequence[Chunk] = ()) -> None:
        """Report that there are ``offset`` bytes now, perhaps in chunks apart.

        Of a form that tells only behind its file where that belongs nobody knows when it
        began: its speed is measured from the end of one to the end of the next.
        """
        now = time.monotonic()
        meter = self._meters.setdefault(sidecar.upload_id, SpeedMeter(offset, now))
        speed = meter.advance(offset, now)
        self._records.note(sidecar, offset, chunks)
        self._publish(sidecar, offset, speed)

    def pause(self, sidecar: Sidecar, offset: int, chunks: Sequence[Chunk] = ()) -> None:
        """Note the end of a request; report the upload at rest unless another one follows."""
        if sidecar.status != "created":
            return  # its end was reported
        self.advance(sidecar, offset, chunks)
        self._stay_awake(sidecar.upload_id)
        self._resting[sidecar.upload_id] = asyncio.get_running_loop().call_later(
            _REST_S, self._rest, sidecar, offset
        )

    def recall(self, sidecar: Sidecar, offset: int, chunks: Sequence[Chunk] = ()) -> None:
        """Say again how far an upload is, for a Redis that has lost it."""
        self._records.note(sidecar, offset, chunks)
        unfinished = sidecar.status in {"created", "quarantined"}
        # What comes in here just now, or rests soon, is told anyway, and knows more.
        if unfinished and offset and sidecar.upload_id not in self._meters:
            self._publish(sidecar, offset, 0.0)

    def changed(self, sidecar: Sidecar, offset: int) -> None:
        """Note a durable change, which has an event of its own; an end is the last one."""
        self._records.note(sidecar, offset)
        if sidecar.status != "created":
            self._forget(sidecar.upload_id)

    def _forget(self, upload_id: str) -> None:
        self._stay_awake(upload_id)
        self._meters.pop(upload_id, None)

    def _rest(self, sidecar: Sidecar, offset: int) -> None:
        self._forget(sidecar.upload_id)
        self._publish(sidecar, offset, 0.0)

    def _stay_awake(self, upload_id: str) -> None:
        timer = self._resting.pop(upload_id, None)
        if timer is not None:
            timer.cancel()

    def _publish(self, sidecar: Sidecar, offset: int, speed: float) -> None:
        self._publisher.progress(
            UploadProgress(
                upload_id=sidecar.upload_id,
                seq=sidecar.outbox[-1].seq,
                at=now_ms(),
                offset=offset,
                size=sidecar.size,
                speed=speed,
            )
        )
