"""Chunks that come apart from the others, on S3.

Below ``<id>.chunks/``: ``<index>-<SHA-256>`` holds a chunk, and ``<index>.claim`` says which
one has the place; only a chunk with a claim is committed. The claim is made if there is none,
which the server decides, or a lease where the server cannot. ``new-<random>`` is a chunk that
is too large for memory and still being received.
"""

from __future__ import annotations

import asyncio
import errno
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from shared.blobs.s3_calls import NoSuchObject, Outdated, S3Failed
from shared.blobs.s3_client import S3Client
from shared.blobs.s3_join import Source, join
from shared.blobs.s3_keys import Keys, Listed
from shared.blobs.s3_parts import MAX_PARTS
from shared.blobs.s3_sending import PartSender
from shared.blobs.store import Chunk, UploadBusy, UploadNotFound
from shared.leases import Lease, Leases

if TYPE_CHECKING:
    from shared.blobs.s3 import S3Store

__all__ = ["CLAIM", "FRESH", "S3Chunk", "chunk_key", "list_chunks"]

CLAIM: Final = ".claim"
FRESH: Final = "new-"
_NAME: Final = re.compile(r"([0-9]{6})-([0-9a-f]{64})")
_PLACING_TRIES: Final = 400
_PLACING_S: Final = 0.05
"""How often, and how long after a try, a chunk waits for one that has come to its place."""


def chunk_key(keys: Keys, upload_id: str, index: int, digest: str) -> str:
    """Return the key of a committed chunk."""
    return f"{keys.chunks(upload_id)}{index:06d}-{digest}"


def _claim_key(keys: Keys, upload_id: str, index: int) -> str:
    return f"{keys.chunks(upload_id)}{index:06d}{CLAIM}"


async def list_chunks(
    client: S3Client, keys: Keys, upload_id: str, index: int | None = None
) -> list[Chunk]:
    """Return the committed chunks by index, or the one with an index."""
    prefix = keys.chunks(upload_id)
    listed = await client.list_all(prefix + ("" if index is None else f"{index:06d}"))
    claims = {one.key for one in listed if one.key.endswith(CLAIM)}
    rivals: dict[int, list[Chunk]] = {}
    for one in listed:
        found = _chunk_of(one.key.removeprefix(prefix), one)
        if found and _claim_key(keys, upload_id, found.index) in claims:
            rivals.setdefault(found.index, []).append(found)
    choices = [partial(_chosen, client, keys, upload_id, rivals[at]) for at in sorted(rivals)]
    return [one for one in await client.each(choices) if one]


def _chunk_of(name: str, listed: Listed) -> Chunk | None:
    found = _NAME.fullmatch(name)
    return found and Chunk(
        index=int(found[1]),
        size=listed.size,
        digest=found[2],
        received_at=listed.modified_at,
    )


async def _chosen(
    client: S3Client, keys: Keys, upload_id: str, rivals: Sequence[Chunk]
) -> Chunk | None:
    """Return the chunk that has the place; only rivals cost a call."""
    if len(rivals) == 1:
        return rivals[0]
    digest = await _claimed(client, keys, upload_id, rivals[0].index)
    return next((one for one in rivals if one.digest == digest), None)


async def _claimed(client: S3Client, keys: Keys, upload_id: str, index: int) -> str:
    try:
        content, _ = await client.get(_claim_key(keys, upload_id, index))
    except NoSuchObject:
        return ""
    return content.decode()


class S3Chunk:
    """Implements ``ChunkWriter``; see there for the promises.

    Up to a part's worth of bytes is held in memory; more goes to the server part by part.

    Args:
        store: Which has made it.
        upload_id: Where it will most likely belong.
        key: Where the bytes are to stay, if they are no chunk; empty: nowhere yet.

    """

    def __init__(self, store: S3Store, upload_id: str, *, key: str = "") -> None:
        self._store: Final = store
        self._client: Final = store.client
        self._keys: Final = store.keys
        fresh = f"{store.keys.chunks(upload_id)}{FRESH}{secrets.token_hex(8)}"
        self._key: Final = key or fresh
        self._least: Final = store.part_size
        self._sender: Final = PartSender(
            store.client, self._key, _anybody, store.parallel_parts
        )
        self._held: list[bytes] = []
        self._held_size = 0
        self._multipart_id = ""
        self._sent = 0
        self._staged = False
        """Whether the bytes are an object of their own, waiting to be taken or named."""
        self.size = 0

    async def write(self, pieces: Sequence[bytes]) -> None:
        for one in pieces:
            if one:
                self._held.append(one)
                self._held_size += len(one)
                self.size += len(one)
        if self._held_size > self._part_size:
            await self._send()

    @property
    def _part_size(self) -> int:
        """Grow with what has come, as its end is unknown: 10,000 parts hold any chunk."""
        return self._least << (self._sent // (MAX_PARTS // 10))

    async def _send(self) -> None:
        """Send what is held as one part, which is at least as large as the server wants."""
        if not self._multipart_id:
            answer = await self._client.call("create_multipart_upload", Key=self._key)
            self._multipart_id = answer["UploadId"]
        await self._sender.wait_for_room(self._held_size)
        if self._sender.failure is not None:
            raise self._sender.failure
        self._sent += 1
        held, self._held, self._held_size = self._held, [], 0
        self._sender.send(self._multipart_id, self._sent, b"".join(held))

    async def commit(self, upload_id: str, index: int, digest: str) -> Chunk:
        try:
            async with _placing(self._store, upload_id, index):
                chunk = await self._place(upload_id, index, digest)
            await self._client.put(self._keys.touch(upload_id), b"")
            await self._check_wanted(upload_id)
        finally:
            await self.discard()
        return chunk

    async def _place(self, upload_id: str, index: int, digest: str) -> Chunk:
        """Put the bytes into their place, unless it is taken."""
        there = await list_chunks(self._client, self._keys, upload_id, index)
        if there:
            return there[0]
        await self._check_wanted(upload_id)
        key = chunk_key(self._keys, upload_id, index, digest)
        if self._multipart_id:
            await self.stage()
            source = Source(self._key, self.size)
            await join(self._client, _anybody, key, [source], least=self._least)
        else:
            await self._client.put(key, b"".join(self._held))
        try:
            claim = _claim_key(self._keys, upload_id, index)
            await self._client.put_if(claim, digest.encode(), "")
        except Outdated:
            if await _claimed(self._client, self._keys, upload_id, index) != digest:
                await self._client.remove([key])
        return (await list_chunks(self._client, self._keys, upload_id, index))[0]

    async def _check_wanted(self, upload_id: str) -> None:
        """Refuse a chunk of an upload that is complete or gone, and leave nothing there.

        Looked at last, too: an upload that ends meanwhile does not find what comes late.
        """
        with suppress(UploadNotFound):
            if (await self._store.load(upload_id)).status == "created":
                return
        listed = await self._client.list_all(self._keys.chunks(upload_id))
        own = [one.key for one in listed if one.key != self._key]
        await self._client.remove([*own, self._keys.touch(upload_id)])
        raise UploadNotFound(upload_id)

    async def stage(self) -> None:
        """Make an object of the bytes that were sent part by part. May be repeated."""
        if self._staged or not self._multipart_id:
            return
        if self._held:
            await self._send()
        done, failure = await self._sender.settle()
        if failure is not None:
            raise failure
        parts = [done[number] for number in sorted(done)]
        await self._client.complete(self._key, self._multipart_id, parts, self.size)
        self._staged = True

    async def keep(self) -> None:
        """Make the bytes an object that stays, under the key that was given."""
        if self._multipart_id:
            await self.stage()
            self._multipart_id, self._staged = "", False
        else:
            await self._client.put(self._key, b"".join(self._held))

    async def content(self) -> AsyncGenerator[list[bytes], None]:
        """Yield the bytes of a chunk that was not committed."""
        if not self._multipart_id:
            yield self._held
            return
        await self.stage()
        async for piece in self._client.stream(self._key, 0, self.size):
            yield [piece]

    async def discard(self) -> None:
        self._held, self._held_size = [], 0
        await self._sender.settle()
        multipart_id, self._multipart_id = self._multipart_id, ""
        if self._staged:
            await self._client.remove([self._key])
        elif multipart_id:
            await self._client.abort(self._key, multipart_id)


@asynccontextmanager
async def _placing(store: S3Store, upload_id: str, index: int) -> AsyncIterator[None]:
    """Let one at a time decide who has the place of a chunk, where the server cannot.

    Raises:
        S3Failed: Somebody else takes too long.
        LeaseUnavailable: Redis is away.

    """
    if store.client.conditional:
        yield
        return
    lease = await _await_lease(store.leases, f"{upload_id}.{index}")
    try:
        yield
    finally:
        await lease.release()


async def _await_lease(leases: Leases, name: str) -> Lease:
    for _ in range(_PLACING_TRIES):
        with suppress(UploadBusy):
            return await leases.acquire(name)
        await asyncio.sleep(_PLACING_S)
    raise S3Failed(errno.EBUSY, "somebody else commits this chunk")


def _anybody() -> None:
    """Chunks need no right to write."""
