"""What waits for one socket: frames, and what will be a frame when it leaves. No I/O.

What can be told at any time as it then is (the state of an upload, its progress) waits as a
reference to what it is about. So it takes a few bytes however long it waits, it is newest when
it leaves, and nothing is encoded that nobody takes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, TypeAlias, cast

from services.gateway.dialects.protocol import Dialect

__all__ = ["Later", "Owed", "Source", "all_due", "due"]

_MAX_WRITE: Final = 32 * 1024
"""Bytes in one write. What a transport has taken can no more be replaced by what is newer."""


class Source(ABC):
    """What sockets are told of. It has a state, and progress of one or more kinds."""

    __slots__ = ()

    @abstractmethod
    def shown(self, dialect: Dialect, *, gap: bool) -> bytes:
        """Return the frame with the state as it is now, arguments as of ``Dialect.show``.

        Empty, if the dialect has no message for it.
        """

    @abstractmethod
    def moved(self, dialect: Dialect, kind: object) -> bytes:
        """Return the frame with the newest progress of a kind; empty, likewise."""


Later: TypeAlias = bool | Source
"""What has no frame yet: the state of the source that is the key, and whether it is told
because of a gap; or of a source, the progress of the kind that is the key."""
Owed: TypeAlias = dict[object, bytes | Later]
"""In order. Frames that nothing replaces stand under numbers."""


def due(owed: Owed, dialect: Dialect) -> tuple[Sequence[object], Sequence[bytes]]:
    """Return the keys of what goes into one write, the oldest, and its frames."""
    keys: list[object] = []
    frames: list[bytes] = []
    size = 0
    for key, one in owed.items():
        frame = one if type(one) is bytes else _encoded(key, one, dialect)
        size += len(frame)
        if size > _MAX_WRITE and keys:
            break
        keys.append(key)
        if frame:
            frames.append(frame)
    return keys, frames


def all_due(owed: Owed, dialect: Dialect) -> Sequence[bytes]:
    """Return the frames of all that is owed."""
    found = [_encoded(key, one, dialect) for key, one in owed.items()]
    return [frame for frame in found if frame]


def _encoded(key: object, owed: bytes | Later, dialect: Dialect) -> bytes:
    if isinstance(owed, bytes):
        return owed
    if isinstance(owed, Source):
        return owed.moved(dialect, key)
    return cast("Source", key).shown(dialect, gap=owed)
