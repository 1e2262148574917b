"""The bytes of one upload on S3 as its writer adds to them."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import msgspec

from shared.blobs.s3_calls import S3Failed
from shared.blobs.s3_client import S3Client
from shared.blobs.s3_keys import Keys
from shared.blobs.s3_parts import (
    MAX_PARTS,
    Counted,
    Layout,
    Part,
    Piece,
    Range,
    Span,
    Turn,
    open_span,
)
from shared.blobs.s3_sending import PartSender
from shared.blobs.s3_view import View
from shared.leases import Lease

__all__ = ["S3Bytes", "read_pieces"]

_MOST_PIECES: Final = 32
"""Pieces behind the last part before they are made one: each is read when a part is made of
them, and each time they are made one, they are written again."""

_encode: Final = msgspec.json.Encoder().encode


async def read_pieces(
    client: S3Client, keys: Keys, upload_id: str, counted: Counted
) -> list[bytes]:
    """Return the bytes behind the parts.

    Raises:
        OSError: They are not all there.

    """

    async def read(piece: Piece, wanted: Range) -> bytes:
        stream = client.stream(keys.piece(upload_id, piece), wanted.start, wanted.length)
        content = b"".join([one async for one in stream])
        if len(content) != wanted.length:
            raise S3Failed(errno.EIO, f"{len(content)} bytes instead of {wanted.length}")
        return content

    pairs = zip(counted.pieces, counted.ranges, strict=True)
    return await client.each([partial(read, piece, wanted) for piece, wanted in pairs])


class S3Bytes:
    """What has been given to the store, and how much of it is safe.

    Args:
        client: Of the bucket.
        keys: Of the store.
        lease: The right to write, looked at before every call that writes.
        view: The upload as it stands.
        least: Least part size, in bytes.
        parallel: Most parts in flight.

    """

    def __init__(
        self,
        client: S3Client,
        keys: Keys,
        lease: Lease,
        view: View,
        *,
        least: int,
        parallel: int,
    ) -> None:
        self._client: Final = client
        self._keys: Final = keys
        self._lease: Final = lease
        self._id: Final = view.sidecar.upload_id
        self._key: Final = keys.blob(self._id)
        self._least: Final = least
        self._parallel: Final = parallel
        self._sender: Final = PartSender(client, self._key, lease.check, parallel)
        self.offset = view.offset
        self.total = view.sidecar.size
        """Declared length of the upload, kept up to date by the writer."""
        self.sealed = view.size is not None
        """Whether the object with all bytes is there."""
        self._turn = Turn(lease.fence)
        self._layout = view.layout
        self._layouts = list(view.layouts)
        """The turns whose layouts the next one replaces."""
        self._listed: Final = frozenset(view.listed)
        self._span: Span | None = None
        """Of this turn; ``None`` until it has a full part."""
        self._next = 0
        self._parts: list[Part] = list(view.counted.parts)
        self._parts_end = view.counted.parts_end
        self._base = self._parts_end
        """Offset of the next part to send."""
        self._safe = view.counted.end
        self._pieces = view.counted
        """The bytes from the last part to ``_safe``, as far as they are in pieces."""
        self._held: deque[bytes] = deque()
        self._held_from = self._safe
        """The bytes from here to ``offset`` are in memory."""
        used = set(view.counted.pieces)
        self._obsolete = [keys.piece(self._id, one) for one in view.pieces if one not in used]

    async def write(self, pieces: Sequence[bytes]) -> None:
        """Add bytes; returns when all but one part's worth are on their way.

        Raises:
            OSError: Something failed, now or before; ``offset`` says what is safe.

        """
        if self.sealed:
            raise OSError(errno.EROFS, "the upload is complete")
        for one in pieces:
            if one:
                self._held.append(one)
                self.offset += len(one)
        await self._guarded(self._send_full())

    async def sync(self) -> None:
        """Return when everything that was written is safe.

        Raises:
            OSError: It is not; ``offset`` says what is.

        """
        if not self.sealed:
            await self._guarded(self._sync())

    async def _guarded(self, job: Coroutine[Any, Any, None]) -> None:
        """Do a job; if it fails, forget what is not safe and begin a new turn."""
        try:
            await job
        except OSError:
            done, _ = await self._sender.settle()
            self._advance(done)
            self._fall_back()
            raise

    async def _sync(self) -> None:
        await self._send_full()
        await self._settle()
        if self.offset == self.total:
            await self._seal()
        elif self.offset > self._safe:
            await self._put_piece()
        self._lease.check()  # what another holder cannot have seen must not be acknowledged
        await self._remove_obsolete()

    # Parts.

    async def _send_full(self) -> None:
        """Send all that fills parts."""
        while self.offset - self._base >= self._least:
            if self._span is None:
                layout = self._next_layout()
                first = layout.spans[-1]
                if self.offset - self._base < first.part_size(first.first):
                    return
                await self._begin_span(layout)
                continue
            size = self._span.part_size(self._next)
            if self.offset - self._base < size:
                return
            if self._next > MAX_PARTS:
                raise OSError(errno.EFBIG, "no part number is left")
            await self._load()
            await self._sender.wait_for_room(size)
            if self._sender.failure:
                await self._settle()
            self._sender.send(self._multipart_id, self._next, self._cut(size))
            self._next += 1

    @property
    def _multipart_id(self) -> str:
        return self._layout.multipart_id if self._layout else ""

    def _next_layout(self) -> Layout:
        return open_span(
            self._layout or Layout(multipart_id=""),
            self._listed,
            turn=self._turn,
            start=self._base,
            cut=self._safe,
            total=self.total,
            least=self._least,
            parallel=self._parallel,
        )

    async def _begin_span(self, layout: Layout) -> None:
        """Record the span before its first byte is sent."""
        if not layout.multipart_id:
            answer = await self._client.call(
                "create_multipart_upload", check=self._lease.check, Key=self._key
            )
            layout = msgspec.structs.replace(layout, multipart_id=answer["UploadId"])
        await self._put_layout(layout)
        self._layout, self._span = layout, layout.spans[-1]
        self._next = self._span.first
        self._obsolete += [self._keys.layout(self._id, one) for one in self._layouts]
        self._layouts = [self._turn]

    async def _put_layout(self, layout: Layout) -> None:
        key = self._keys.layout(self._id, self._turn)
        await self._client.put(key, _encode(layout), check=self._lease.check)

    async def _load(self) -> None:
        """Fetch the bytes of the pieces that the next part begins with."""
        if self._held_from > self._base:
            # The later pieces may be of this turn: their bytes are in memory still.
            loaded = await read_pieces(self._client, self._keys, self._id, self._pieces)
            missing = b"".join(loaded)[: self._held_from - self._base]
            self._held.appendleft(missing)
            self._held_from = self._base

    def _cut(self, size: int) -> bytes:
        """Take the bytes of a part out of memory."""
        taken = []
        missing = size
        while missing:
            one = self._held.popleft()
            if len(one) > missing:
                self._held.appendleft(one[missing:])
                one = one[:missing]
            taken.append(one)
            missing -= len(one)
        self._base += size
        self._held_from = self._base
        return taken[0] if len(taken) == 1 else b"".join(taken)

    async def _settle(self) -> None:
        """Wait for the parts in flight.

        Raises:
            OSError: Not all have arrived.

        """
        done, failure = await self._sender.settle()
        self._advance(done)
        if failure is not None:
            raise failure
        if self._parts_end != self._base:
            raise S3Failed(errno.EIO, "a part is missing")

    def _advance(self, done: dict[int, Part]) -> None:
        """Count the parts that have arrived, up to the first that has not."""
        number = self._first_uncounted()
        while (part := done.get(number)) is not None:
            self._parts.append(part)
            self._parts_end += part.size
            number += 1
        self._safe = max(self._safe, self._parts_end)
        if self._pieces.pieces and self._parts_end >= self._pieces.end:
            self._retire(self._pieces.pieces)
            self._pieces = Counted()

    def _first_uncounted(self) -> int:
        if self._span is None:
            return 0
        last = self._parts[-1].number if self._parts else 0
        return max(last + 1, self._span.first)

    def _fall_back(self) -> None:
        """Forget what is not safe.

        What failed may land later all the same. So what comes next is of a new turn: it uses
        other part numbers, and older parts behind its begin do not count.
        """
        self._held.clear()
        self.offset = self._held_from = self._safe
        self._base = self._parts_end
        if self._span is not None and self._layout is not None:
            self._layout = msgspec.structs.replace(self._layout, next_number=self._next)
        self._span = None
        self._turn = Turn(self._turn.fence, self._turn.attempt + 1)

    # Pieces.

    async def _put_piece(self) -> None:
        """Make the bytes safe that do not fill a part."""
        whole = len(self._pieces.pieces) >= _MOST_PIECES
        if whole:
            await self._load()
        start = self._base if whole else self._safe
        body = b"".join(self._held)[start - self._held_from :]
        piece = Piece(self._turn, start, len(body))
        await self._client.put(self._keys.piece(self._id, piece), body, check=self._lease.check)
        wanted = Range(0, 0, piece.size)
        if whole:
            self._retire(self._pieces.pieces, but=piece)
            self._pieces = Counted(pieces=(piece,), ranges=(wanted,), end=piece.end)
        else:
            self._pieces = Counted(
                pieces=(*self._pieces.pieces, piece),
                ranges=(*self._pieces.ranges, wanted),
                end=piece.end,
            )
        self._safe = self.offset

    def _retire(self, pieces: Sequence[Piece], *, but: Piece | None = None) -> None:
        kept = self._keys.piece(self._id, but) if but else ""
        keys = {self._keys.piece(self._id, one) for one in pieces}
        self._obsolete += sorted(keys - {kept})

    async def _remove_obsolete(self) -> None:
        """Delete what nobody needs; it would do no harm, so a failure does none."""
        keys, self._obsolete = self._obsolete, []
        with suppress(S3Failed):
            await self._client.remove(keys)

    # The end.

    async def seal(self) -> None:
        """Make the object of all bytes, declared or not. May be repeated."""
        if not self.sealed:
            await self._guarded(self._seal_all())

    async def _seal_all(self) -> None:
        await self._send_full()
        await self._settle()
        await self._seal()

    async def _seal(self) -> None:
        if not self._parts:
            await self._load()
            body = b"".join(self._held)
            await self._client.put(self._key, body, check=self._lease.check)
        else:
            if self.offset > self._base:
                await self._send_last()
            await self._client.complete(
                self._key,
                self._multipart_id,
                self._parts,
                self.offset,
                check=self._lease.check,
            )
        self.sealed = True
        self._safe = self.offset
        self._held.clear()

    async def _send_last(self) -> None:
        if self._span is None:
            await self._begin_span(self._next_layout())
        await self._load()
        await self._sender.wait_for_room(0)
        rest = self.offset - self._base
        self._sender.send(self._multipart_id, self._next, self._cut(rest))
        self._next += 1
        await self._settle()

    def replaced(self, size: int) -> None:
        """Note that the object of all bytes was made otherwise."""
        self.sealed = True
        self.offset = self._safe = size
        self._held.clear()

    async def close(self) -> None:
        """Let what is in flight land, and say which part numbers are free."""
        await self._sender.settle()
        layout, used = self._layout, self._next
        if layout is not None and used and not self.sealed:
            with suppress(OSError):
                await self._put_layout(msgspec.structs.replace(layout, next_number=used))
