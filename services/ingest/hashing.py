"""Digests of uploads, computed beside receipt and never in its way.

SHA-256 costs more than receiving on machines without instructions for it. So the bytes are
hashed by a thread that the system runs only while nobody else wants the processor: it reads
what has been written once more, from the page cache, as the upload grows, and catches up after
the last byte. Only when an answer waits for a digest does a thread of normal priority go on.
Where reading again means asking another machine, the bytes are hashed as they come, as long as
that keeps up.

The state of a hash lives in memory. After a crash, or when bytes were taken back, an upload is
hashed again from its start.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

import structlog

from shared.blobs.store import BlobStore, UploadNotFound
from shared.errors import InvalidRequest
from shared.lifecycle import TaskSet
from shared.sidecar import Sidecar

__all__ = ["SMALL", "Hashing", "check_declared"]

T = TypeVar("T")

log = structlog.stdlib.get_logger(__name__)

_SIZES: Final = {"sha256": 32, "sha512": 64, "sha1": 20, "md5": 16}
"""The algorithms that clients may declare, and the bytes of their digests."""

SMALL: Final = 256 * 1024
"""Bytes that are hashed within a millisecond: a digest that is so near is waited for."""

_INLINE: Final = 16 * 1024
"""Bytes that cost less to hash than to hand to a thread."""

_BATCH: Final = 4 * 1024 * 1024
"""Bytes that one upload is read on before others get their turn."""

_FED: Final = 32 * 1024 * 1024
"""Bytes of all uploads that may wait to be hashed as they came."""

_TRACKS: Final = 10_000
"""Uploads whose state is remembered, at about 1 KB each; who is dropped is hashed again."""

_READ: Final = 1024 * 1024
"""Bytes that are read and hashed at once: fewer, and the thread asks for the interpreter more
often, which a thread that hardly runs may then hold for long."""

_HEX: Final = re.compile(r"[0-9a-f]*")


_local: Final = threading.local()


def _buffer() -> bytearray:
    """Return the calling thread's buffer: fresh memory for each read costs more than a read."""
    if not hasattr(_local, "buffer"):
        _local.buffer = bytearray(_READ)
    buffer: bytearray = _local.buffer
    return buffer


def check_declared(expected: Mapping[str, str]) -> None:
    """Refuse a declared digest that could never be verified.

    Raises:
        InvalidRequest: The algorithm is not known, or the value is not its digest in hex.

    """
    for algorithm, value in expected.items():
        size = _SIZES.get(algorithm)
        if size is None:
            raise InvalidRequest(f"Digests may be declared as {', '.join(_SIZES)}.")
        if len(value) != 2 * size or not _HEX.fullmatch(value):
            raise InvalidRequest(f"The declared {algorithm} must have {2 * size} hex digits.")


class _Track:
    """How far one upload is hashed."""

    def __init__(self, upload_id: str, algorithms: Iterable[str]) -> None:
        self.upload_id: Final = upload_id
        self.hashed = 0
        self.target = 0
        """Bytes that are known to be there."""
        self.fed: Final[deque[bytes]] = deque()
        """What comes after ``hashed``, as it was received."""
        self.fed_size = 0
        self.awaited = False
        """An answer waits for the digest."""
        self.running = False
        self.turn: Final = asyncio.Lock()
        self._hashes: Final = {
            one: hashlib.new(one, usedforsecurity=False) for one in algorithms
        }

    @property
    def end(self) -> int:
        """Bytes that the state stands for, or soon will."""
        return max(self.hashed + self.fed_size, self.target)

    def update(self, piece: bytes | memoryview) -> None:
        """Hash on. Blocks, without holding the interpreter."""
        for one in self._hashes.values():
            one.update(piece)

    def digests(self) -> dict[str, str]:
        """Return the digests of what is hashed, hex, by algorithm."""
        return {name: one.hexdigest() for name, one in self._hashes.items()}


class Hashing:
    """Hashes the uploads of this process.

    Args:
        store: Where their bytes are.
        every: Whether SHA-256 is wanted of each upload, declared or not.

    """

    def __init__(self, store: BlobStore, *, every: bool) -> None:
        self._store: Final = store
        self._every: Final = every
        self._tracks: Final[OrderedDict[str, _Track]] = OrderedDict()
        self._fed_size = 0
        self._spare: Final = ThreadPoolExecutor(1, "spare-hash", initializer=_step_back)
        self._urgent: Final = ThreadPoolExecutor(2, "hash")
        self._spare_turn: Final = asyncio.Semaphore(1)
        self._tasks: Final = TaskSet("hashing")
        self._closing = False

    def algorithms(self, sidecar: Sidecar) -> set[str]:
        """Return the digests that an upload is to have."""
        if sidecar.is_partial:
            return set()
        every = "sha256" if self._every else ""
        return {*sidecar.expected, sidecar.wants_digest, every} - {""}

    def begin(self, sidecar: Sidecar, offset: int) -> None:
        """Note that bytes will come from ``offset`` on."""
        track = self._tracks.get(sidecar.upload_id)
        if track is not None and track.end > offset:
            self.forget(sidecar.upload_id)

    def advance(self, sidecar: Sidecar, offset: int) -> None:
        """Note that there are ``offset`` bytes now; they are hashed when there is time."""
        if not self._store.rereads_cheaply or (sidecar.size or SMALL) < SMALL:
            return
        track = self._track(sidecar)
        if track is not None:
            track.target = max(track.target, offset)
            self._start(track)

    def feed(self, sidecar: Sidecar, at: int, piece: bytes) -> None:
        """Take bytes as they come, where they need not, or cannot well, be read again.

        Args:
            sidecar: Of the upload.
            at: Offset of the first byte.
            piece: What is about to be written there.

        """
        if self._store.rereads_cheaply and (sidecar.size or SMALL) >= SMALL:
            return
        track = self._track(sidecar)
        if track is None or track.hashed + track.fed_size != at:
            return
        if self._fed_size + len(piece) > _FED:
            return  # what is missed is read again at the end
        track.fed.append(piece)
        track.fed_size += len(piece)
        self._fed_size += len(piece)
        if track.fed_size > SMALL:
            self._start(track)

    def settle(self, upload_id: str, offset: int) -> None:
        """Note that a request has left so many bytes; what was taken back is not hashed."""
        track = self._tracks.get(upload_id)
        if track is None:
            return
        if track.end > offset:
            self.forget(upload_id)
        elif track.fed:
            self._start(track)

    def forget(self, upload_id: str) -> None:
        """Drop the state of an upload."""
        track = self._tracks.pop(upload_id, None)
        if track is not None:
            self._drop_fed(track)

    def left(self, sidecar: Sidecar, size: int) -> int:
        """Return the bytes of an upload that are still to be read and hashed."""
        track = self._tracks.get(sidecar.upload_id)
        return size if track is None else max(size - track.hashed, 0)

    async def digests(
        self, sidecar: Sidecar, size: int, *, awaited: bool = True
    ) -> dict[str, str]:
        """Return the digests of an upload whose bytes are all there, hex, by algorithm.

        Args:
            sidecar: Of the upload.
            size: Its bytes.
            awaited: Somebody waits for it, so it must not take only spare time.

        Raises:
            OSError: The bytes cannot be read, or are not as many.
            UploadNotFound: They are gone.

        """
        if not self.algorithms(sidecar):
            return {}
        known = self._tracks.get(sidecar.upload_id)
        if known is not None and known.end > size:
            self.forget(sidecar.upload_id)
        track = self._track(sidecar)
        if track is None:
            raise AssertionError("there are algorithms, so there is a track")
        track.awaited |= awaited
        track.target = size
        while track.hashed < size:
            before = track.hashed
            await self._go_on(track)
            if track.hashed == before:
                self.forget(sidecar.upload_id)
                raise OSError(f"{before} bytes instead of {size}")
        self.forget(sidecar.upload_id)
        return track.digests()

    def _track(self, sidecar: Sidecar) -> _Track | None:
        track = self._tracks.get(sidecar.upload_id)
        if track is None:
            algorithms = self.algorithms(sidecar)
            if not algorithms:
                return None
            track = self._tracks[sidecar.upload_id] = _Track(sidecar.upload_id, algorithms)
            if len(self._tracks) > _TRACKS:
                self.forget(next(iter(self._tracks)))
        return track

    def _start(self, track: _Track) -> None:
        if not track.running:
            track.running = True
            self._tasks.start(self._follow(track))

    async def _follow(self, track: _Track) -> None:
        """Hash what there is, in spare time; others get their turn after each batch."""
        try:
            while not self._closing and (track.fed or track.hashed < track.target):
                before = track.hashed
                await self._go_on(track)
                if track.hashed == before:
                    return  # nothing can be read just now; the next bytes start it again
        except (OSError, UploadNotFound) as exc:
            self.forget(track.upload_id)
            log.debug("hashing_stopped", upload_id=track.upload_id, error=repr(exc))
        finally:
            track.running = False

    async def _go_on(self, track: _Track) -> None:
        """Hash the next bytes of an upload; at most a batch."""
        spare = contextlib.nullcontext() if track.awaited else self._spare_turn
        async with spare, track.turn:
            if track.fed:
                await self._hash_fed(track)
                return
            length = min(track.target - track.hashed, _BATCH)
            if self._store.rereads_cheaply:
                job = partial(self._hash_file, track, length)
                track.hashed += await self._in_thread(track, job)
                return
            async for piece in self._store.read_range(track.upload_id, track.hashed, length):
                await self._update(track, piece)
                track.hashed += len(piece)
                if self._closing:
                    return

    def _hash_file(self, track: _Track, length: int) -> int:
        """Read and hash in one thread, into one buffer: return how many bytes it were.

        A thread of normal priority that read for the spare one would take as much from the
        receiving stream as the hash itself.
        """
        fd, done = self._store.open_now(track.upload_id), 0
        try:
            buffer = memoryview(_buffer())
            while done < length and not self._closing:
                wanted = buffer[: length - done]
                count = os.preadv(fd, [wanted], track.hashed + done)
                if not count:
                    break
                track.update(wanted[:count])
                done += count
        finally:
            os.close(fd)
        return done

    async def _hash_fed(self, track: _Track) -> None:
        end = track.hashed + _BATCH
        while track.fed and track.hashed < end and not self._closing:
            piece = track.fed[0]
            await self._update(track, piece)
            track.hashed += len(piece)
            if track.fed:  # else they were dropped meanwhile
                track.fed.popleft()
                track.fed_size -= len(piece)
                self._fed_size -= len(piece)

    def _drop_fed(self, track: _Track) -> None:
        self._fed_size -= track.fed_size
        track.fed.clear()
        track.fed_size = 0

    async def _update(self, track: _Track, piece: bytes) -> None:
        if len(piece) <= _INLINE:
            track.update(piece)
            return
        await self._in_thread(track, partial(track.update, piece))

    async def _in_thread(self, track: _Track, job: Callable[[], T]) -> T:
        pool = self._urgent if track.awaited else self._spare
        return await asyncio.get_running_loop().run_in_executor(pool, job)

    async def close(self) -> None:
        """Stop; what is not hashed yet is hashed after the next start."""
        self._closing = True
        await self._tasks.join()
        self._spare.shutdown(wait=False, cancel_futures=True)
        self._urgent.shutdown(wait=False, cancel_futures=True)


def _step_back() -> None:
    """Run the calling thread only while nobody else wants the processor, where that is known.

    It may hold the interpreter for microseconds between two pieces, no longer.
    """
    if hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
