"""An upload as it stands on the server: read without disturbing whoever writes to it."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
import structlog

from shared import sidecar as sidecars
from shared.blobs.s3_calls import NoSuchObject, NoSuchUpload
from shared.blobs.s3_client import S3Client
from shared.blobs.s3_keys import Keys, Listed
from shared.blobs.s3_parts import Counted, Layout, Part, Piece, Turn, count
from shared.blobs.store import Stored, UploadNotFound
from shared.sidecar import Sidecar, SidecarDamaged

__all__ = ["View", "load", "look"]

log = structlog.stdlib.get_logger(__name__)

_LOOKS: Final = 5
"""An upload that is being finished looks torn for a moment. Twice in a row is rare."""

_PAUSE_S: Final = 0.05

_decode_layout: Final = msgspec.json.Decoder(Layout).decode


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What the objects of one upload say."""

    sidecar: Sidecar
    etag: str
    """Of the sidecar's object."""
    size: int | None
    """Of the object with all bytes; ``None`` while there is none."""
    modified_at: float
    """When bytes last arrived, by the server's clock; UTC, seconds since the epoch."""
    layout: Layout | None = None
    layouts: tuple[Turn, ...] = ()
    """The turns that have left one; the newest counts."""
    listed: dict[int, Part] = {}
    pieces: tuple[Piece, ...] = ()
    """All that are there, counted or not."""
    counted: Counted = Counted()
    turn: Turn = Turn(0)
    """The newest turn that has left anything."""

    @property
    def visible(self) -> bool:
        """Whether the upload was finished: the sidecar says so, in the same moment for all."""
        return self.size is not None and self.sidecar.status == "completed"

    @property
    def offset(self) -> int:
        """Bytes that are safe."""
        return self.counted.end if self.size is None else self.size

    def stored(self) -> Stored:
        """Return what callers of the store see."""
        return Stored(
            sidecar=self.sidecar,
            offset=self.offset,
            modified_at=self.modified_at,
            visible=self.visible,
        )


async def load(client: S3Client, keys: Keys, upload_id: str) -> tuple[Sidecar, str]:
    """Return the sidecar, a tombstone too, and its ETag.

    Raises:
        UploadNotFound: There is none.
        SidecarDamaged: It cannot be read.

    """
    try:
        content, etag = await client.get(keys.info(upload_id))
    except NoSuchObject:
        raise UploadNotFound(upload_id) from None
    record = sidecars.decode(content)
    if record.upload_id != upload_id:
        raise SidecarDamaged(f"the record of {record.upload_id} has another's name")
    return record, etag


async def look(client: S3Client, keys: Keys, upload_id: str) -> View:
    """Return the upload as it is now.

    The order matters: pieces are listed before parts. A piece goes once its bytes are in a
    part, so whoever misses the piece finds the part, and offsets that are read never shrink.

    Raises:
        UploadNotFound: There is none, or only its tombstone.
        SidecarDamaged: Its record cannot be read.

    """
    for tries_left in reversed(range(_LOOKS)):
        listing = await client.list_all(keys.blob(upload_id), deep=False)
        sidecar, etag = await load(client, keys, upload_id)
        if sidecar.is_gone:
            raise UploadNotFound(upload_id)
        view = await _view(client, keys, sidecar, etag, listing)
        if view is None and not tries_left and sidecar.status == "created":
            # The bucket's lifecycle rule was shorter than an upload may take.
            log.error("multipart_upload_lost", upload_id=upload_id)
            rest = [one for one in listing if keys.layout_turn_of(one.key) is None]
            view = await _view(client, keys, sidecar, etag, rest)
        if view is not None:
            return view
        await asyncio.sleep(_PAUSE_S)
    raise UploadNotFound(upload_id)


async def _view(
    client: S3Client, keys: Keys, sidecar: Sidecar, etag: str, listing: list[Listed]
) -> View | None:
    """Return what the objects say; ``None`` if they changed while they were looked at."""
    upload_id = sidecar.upload_id
    by_key = {one.key: one for one in listing}
    pieces = {one: listed for listed in listing if (one := keys.piece_of(listed))}
    turns = [turn for one in listing if (turn := keys.layout_turn_of(one.key))]
    newest = max([one.turn for one in pieces] + turns, default=Turn(0))
    if sidecar.status == "failed":  # its bytes were removed, its record stays
        ended_at = sidecar.outbox[-1].at / 1000
        return View(sidecar=sidecar, etag=etag, size=None, modified_at=ended_at, turn=newest)
    if whole := by_key.get(keys.blob(upload_id)):
        return View(
            sidecar=sidecar,
            etag=etag,
            size=whole.size,
            modified_at=whole.modified_at,
            turn=newest,
        )
    if sidecar.status != "created":
        return None
    layout: Layout | None = None
    listed: dict[int, Part] = {}
    marks = (by_key.get(keys.info(upload_id)), by_key.get(keys.touch(upload_id)))
    times = [one.modified_at for one in (*pieces.values(), *marks) if one]
    try:
        if turns:
            content, _ = await client.get(keys.layout(upload_id, max(turns)))
            layout = _decode_layout(content)
            listed, at = await client.parts(keys.blob(upload_id), layout.multipart_id)
            times.append(at)
    except (NoSuchObject, NoSuchUpload):
        return None
    return View(
        sidecar=sidecar,
        etag=etag,
        size=None,
        modified_at=max(times, default=0.0),
        layout=layout,
        layouts=tuple(turns),
        listed=listed,
        pieces=tuple(pieces),
        counted=count(layout.spans if layout else (), listed, tuple(pieces), sidecar.size),
        turn=newest,
    )
