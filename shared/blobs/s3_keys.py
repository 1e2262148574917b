"""How the objects of a store on S3 are named. Pure.

Below the store's prefix: ``<id>.info`` is the sidecar, ``<id>`` the bytes once they are all
there, ``<id>.tail.<turn>.<start>`` a piece of an unfinished upload, ``<id>.parts.<turn>`` its
layout as of that turn (the newest one counts), ``<id>.chunks/…`` what came apart from the
others, ``<id>.touch`` when the last of it came, and ``<id>.artifacts/…`` what was made of it.
``open/<id>`` says that an upload is unfinished, ``due/<id>.<seq>`` marks an event that may be
unpublished, ``notes/<name>`` holds a text. All of one upload but those marks begins with its
id, so that one listing tells everything about it.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from shared.blobs.s3_parts import Piece, Turn
from shared.blobs.store import Due
from shared.sidecar import is_upload_id

__all__ = ["Keys", "Listed"]

_PIECE: Final = re.compile(r"\.tail\.([0-9]{20})-([0-9]{4})\.([0-9]{16})")
_LAYOUT: Final = re.compile(r"\.parts\.([0-9]{20})-([0-9]{4})")
_ID_LENGTH: Final = 36


class Listed(msgspec.Struct, frozen=True, order=True):
    """An object as a listing shows it."""

    key: str
    size: int
    modified_at: float
    """By the server's clock; UTC, seconds since the epoch."""
    tag: str = ""
    """The ETag, without its quotes."""


class Keys:
    """The names below one prefix.

    Args:
        prefix: Begins every key; empty, or with a slash at its end.

    """

    def __init__(self, prefix: str) -> None:
        self.prefix: Final = prefix

    def blob(self, upload_id: str) -> str:
        """Return the key of the bytes; all keys of the upload begin with it.

        Raises:
            ValueError: This is no id. Callers check ids where they enter; this keeps a slip
                from ever naming another's object.

        """
        if not is_upload_id(upload_id):
            raise ValueError(f"no upload id: {upload_id!r}")
        return f"{self.prefix}{upload_id}"

    def info(self, upload_id: str) -> str:
        """Return the key of the sidecar."""
        return f"{self.blob(upload_id)}.info"

    def chunks(self, upload_id: str) -> str:
        """Return what the keys of an upload's chunks begin with."""
        return f"{self.blob(upload_id)}.chunks/"

    def artifacts(self, upload_id: str) -> str:
        """Return what the keys of an upload's artifacts begin with."""
        return f"{self.blob(upload_id)}.artifacts/"

    def piece(self, upload_id: str, piece: Piece) -> str:
        """Return the key of a piece."""
        return f"{self.blob(upload_id)}.tail.{_turn_name(piece.turn)}.{piece.start:016d}"

    def layout(self, upload_id: str, turn: Turn) -> str:
        """Return the key of the layout as a turn left it."""
        return f"{self.blob(upload_id)}.parts.{_turn_name(turn)}"

    def touch(self, upload_id: str) -> str:
        """Return the key whose time says when the last chunk came."""
        return f"{self.blob(upload_id)}.touch"

    def open_mark(self, upload_id: str) -> str:
        """Return the key that says that an upload is unfinished."""
        self.blob(upload_id)
        return f"{self.prefix}open/{upload_id}"

    def due(self, upload_id: str, seq: int | str) -> str:
        """Return the key of the mark of a lifecycle event."""
        self.blob(upload_id)
        return f"{self.prefix}due/{upload_id}.{seq}"

    def note(self, name: str) -> str:
        """Return the key of a text."""
        return f"{self.prefix}notes/{name}"

    def id_of(self, key: str) -> str:
        """Return the upload that one of its keys or its open mark belongs to, or nothing."""
        name = key.removeprefix(self.prefix).removeprefix("open/")
        return name[:_ID_LENGTH] if is_upload_id(name[:_ID_LENGTH]) else ""

    def rest_of(self, key: str) -> str:
        """Return what follows the id in one of an upload's keys: ``.info``, ``.chunks/…``."""
        return key.removeprefix(self.prefix)[_ID_LENGTH:]

    def due_of(self, key: str) -> Due | None:
        """Return the event that a mark stands for."""
        upload_id, _, seq = key.removeprefix(f"{self.prefix}due/").partition(".")
        return Due(upload_id, int(seq)) if is_upload_id(upload_id) and seq.isdecimal() else None

    def piece_of(self, listed: Listed) -> Piece | None:
        """Return the piece that an object is, if it is one."""
        name = _PIECE.fullmatch(self.rest_of(listed.key))
        return name and Piece(Turn(int(name[1]), int(name[2])), int(name[3]), listed.size)

    def layout_turn_of(self, key: str) -> Turn | None:
        """Return the turn that left the layout in an object, if it is one."""
        name = _LAYOUT.fullmatch(self.rest_of(key))
        return name and Turn(int(name[1]), int(name[2]))


def _turn_name(turn: Turn) -> str:
    return f"{turn.fence:020d}-{turn.attempt:04d}"
