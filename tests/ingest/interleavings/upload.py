"""What a client may expect of its uploads, whatever has happened to them so far.

Requests that were cut may still come to their turn, and a process that was killed may have done
what it did not tell. So a model does not know where an upload is; it knows the limits.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from tests.ingest.tus_client import id_of
from tests.ingest.wire import Connection

__all__ = ["LARGE", "LARGEST", "Kind", "State", "Upload", "content_of"]

MIB: Final = 1024 * 1024
LARGE: Final = 6 * MIB
"""Bytes of a piece that is more than a part on S3."""
LARGEST: Final = 11 * MIB

_POOL: Final = random.Random(11).randbytes(LARGEST + 8)

Kind = Literal["file", "part", "final", "ietf", "form"]
State = Literal["open", "complete", "failed", "gone"]


def content_of(start: int, length: int) -> bytes:
    """Return some bytes; few starts make equal files, which may be stored once."""
    return _POOL[start : start + length]


@dataclass(eq=False)
class Upload:
    """One upload, as its client knows it."""

    path: str
    kind: Kind
    content: bytes = field(repr=False)
    """What it is to become."""
    deferred: bool = False
    """Whether the server still has to be told the length."""
    is_doomed: bool = False
    """Whether the declared digest is that of other bytes."""
    parts: Sequence[Upload] = field(default=(), repr=False)
    """What a final upload joins."""
    chunks: Sequence[bytes] = field(default=(), repr=False)
    """Of a form."""
    received: set[int] = field(default_factory=set)
    """Chunks of a form that were acknowledged."""
    maybe_received: set[int] = field(default_factory=set)
    """Chunks of a form that may be there beside these."""

    state: State = "open"
    is_doubtful: bool = False
    """Whether somebody was killed while deleting it."""
    is_late: bool = False
    """Whether requests that were cut may still come to their turn."""
    is_aged: bool = False
    """Whether no byte came for longer than a session lasts."""
    least: int = 0
    """Bytes that were acknowledged."""
    most: int = 0
    """Bytes that may be there, or come."""
    was_complete: bool | None = False
    """``None``: nobody has seen it, but it may have been."""
    end: set[str] = field(default_factory=set)
    """Events that may have ended it, once it is gone or has failed."""
    holder: Connection | None = None
    """A request that has its turn, and is silent."""
    begun: int = 0
    """How much it has sent."""

    @property
    def upload_id(self) -> str:
        """Its id."""
        return id_of(self.path)

    @property
    def length(self) -> int:
        """How many bytes it is to have."""
        return len(self.content)

    @property
    def is_settled(self) -> bool:
        """Whether it is certain how far it is."""
        return self.is_at_rest and self.least == self.most

    @property
    def is_at_rest(self) -> bool:
        """Whether no request can change it."""
        return not (self.is_late or self.is_doubtful or self.holder)

    @property
    def expires(self) -> bool:
        """Whether it ends when no byte comes: all but files."""
        return self.state == "open" or (self.state == "complete" and self.kind == "part")

    @property
    def is_expired(self) -> bool:
        """Whether it was left for too long, and nobody has cleaned it up yet."""
        return self.is_aged and self.expires

    def arrived(self, offset: int) -> None:
        """Note an offset that the server has told."""
        assert self.least <= offset <= self.most, (self, offset)
        self.least = offset
        self.holder = None
        if not self.is_late:
            self.most = offset

    def sent(self, end: int, *, late: bool = False) -> None:
        """Note that bytes up to there are under way; ``late``: nobody waits for an answer."""
        self.most = max(self.most, end)
        self.is_late = self.is_late or late

    def completed(self) -> None:
        """Note that it is a file, or a part to be joined."""
        self.state, self.was_complete = "complete", True
        self.least = self.most = self.length
        self.is_late = False

    def failed(self) -> None:
        """Note that it cannot become a file."""
        self.state, self.end = "failed", {"UploadFailed"}

    def deleted(self) -> None:
        """Note that a client has ended it."""
        files = {"FileDeleted"} if self.kind != "part" else {"UploadCancelled"}
        if self.state == "complete":
            self.gone(files)
        elif self.may_be_whole:
            self.gone({"UploadCancelled", *files})
        else:
            self.gone({"UploadCancelled"})

    def expired(self) -> None:
        """Note that it was cleaned up."""
        self.gone({"UploadExpired"})

    def gone(self, end: set[str]) -> None:
        """Note that nothing is left of it."""
        if self.state == "open" and self.may_be_whole:
            self.was_complete = None
        self.state, self.end = "gone", end
        self.is_doubtful = self.is_late = False
        self.holder = None

    @property
    def may_be_whole(self) -> bool:
        """Whether all its bytes may be there, without its client being told."""
        if self.kind == "final":
            return True
        if self.kind == "form":
            return len(self.received | self.maybe_received) == len(self.chunks)
        return self.most == self.length and not self.deferred

    def forget_requests(self) -> None:
        """Note that no request can come any more: the server was killed."""
        self.is_late = False
        self.holder = None
