"""What all that happens to uploads has in common: who asks, and how far they may be.

Hypothesis must draw the same again when it repeats a run, so nothing that it draws depends on
what an answer says: rules look at the state themselves, instead of by preconditions, and each
one that opens an upload adds one. What a request that was cut still does is a matter of time;
the model knows what it may do at most.
"""

from __future__ import annotations

import base64
import hashlib
from typing import ClassVar, Final, Literal

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,
)

from tests.ingest.form_client import Forms
from tests.ingest.ietf_client import Ietf
from tests.ingest.interleavings.places import Place
from tests.ingest.interleavings.upload import LARGE, LARGEST, Upload
from tests.ingest.tus_client import Tus
from tests.ingest.wire import Answer, Connection

__all__ = [
    "CHECKSUMS",
    "LENGTHS",
    "SIZES",
    "STARTS",
    "UPLOADS",
    "Checksum",
    "Looking",
    "checksum",
]

STARTS: Final = st.integers(0, 2)
LENGTHS: Final = (
    st.integers(0, 20_000) | st.integers(0, 100) | st.sampled_from([LARGE + 1, LARGEST])
)
SIZES: Final = st.integers(0, 5000) | st.integers(0, 20_000) | st.sampled_from([LARGE, LARGEST])
CHECKSUMS: Final = st.sampled_from([None, "right", "wrong"])
UPLOADS: Final = Bundle("uploads")

Checksum = Literal["right", "wrong"]


def checksum(piece: bytes, which: Checksum | None) -> dict[str, str]:
    """Return the header that promises a piece, or another one."""
    if which is None:
        return {}
    promised = piece if which == "right" else piece + b"!"
    value = base64.b64encode(hashlib.sha1(promised, usedforsecurity=False).digest())
    return {"Upload-Checksum": f"sha1 {value.decode()}"}


class Looking(RuleBasedStateMachine):
    """Clients of one ingest process that know what they may expect of their uploads."""

    place: ClassVar[Place]

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Upload] = []
        self.touched: set[Upload] = set()
        self.stale: list[Connection] = []
        """Of requests that another one has taken over from."""
        self.log_begins = self.place.ingest.service.log.stat().st_size

    @property
    def tus(self) -> Tus:
        """A client."""
        return self.place.ingest.tus

    @property
    def forms(self) -> Forms:
        """A browser."""
        return Forms(self.place.ingest.service.port)

    @property
    def ietf(self) -> Ietf:
        """Another client."""
        return Ietf(self.place.ingest.service.port)

    def note(self, one: Upload) -> Upload:
        """Remember an upload that was opened."""
        self.all.append(one)
        self.touched.add(one)
        if one.length == 0 and one.kind in {"file", "part"} and not one.deferred:
            one.completed()
        return one

    def took(self, one: Upload, end: int) -> None:
        """Note that a piece was acknowledged."""
        one.sent(end)
        one.arrived(end)
        if end == one.length and not one.deferred:
            one.completed()

    def look(self, one: Upload) -> bool:
        """Ask how far an upload is; return whether it takes bytes, and is known to be there."""
        self.touched.add(one)
        if one.kind == "form" and one.state == "open":
            return self.look_at_form(one)
        answer = self.tus.head(one.path)
        if one.state in {"gone", "failed"}:
            assert answer.status == 404, answer
        elif one.is_doubtful and answer.status == 404:
            one.deleted()
        elif one.is_expired:
            assert answer.status == 410, answer
        elif one.kind == "final" and answer.status == 404:
            assert any(part.state == "gone" for part in one.parts)
            one.failed()
        elif one.is_doomed and one.may_be_whole and answer.status in {404, 422}:
            one.failed()
        else:
            assert answer.status == 200, answer
            one.is_doubtful = False
            self.looked(one, answer)
        return one.state == "open" and not one.is_expired

    def looked(self, one: Upload, answer: Answer) -> None:
        """Take in what HEAD has told of an upload that is there."""
        if one.kind == "final" and "Upload-Offset" not in answer.headers:
            assert one.state == "open"
            return
        if one.holder is not None:
            self.stale.append(one.holder)
        one.arrived(int(answer.headers["Upload-Offset"]))
        if one.least == one.length and one.kind != "ietf" and not one.deferred:
            assert not one.is_doomed
            one.completed()

    def look_at_form(self, one: Upload) -> bool:
        """Ask which chunks a session has."""
        reply = self.forms.state(one.upload_id)
        if one.is_doubtful and reply.status in {404, 410}:
            one.deleted()
            return False
        assert reply.status == 200, reply
        one.is_doubtful = False
        there = {*range(len(one.chunks))} - {*reply.data["missing_chunks"]}
        assert one.received <= there <= one.received | one.maybe_received
        one.received, one.maybe_received = there, set()
        if reply.data["status"] == "completed":
            assert len(there) == len(one.chunks)
            one.completed()
        return one.state == "open"

    @rule(one=UPLOADS)
    def head(self, one: Upload) -> None:
        """Ask how far an upload is."""
        self.look(one)

    @invariant()
    def bytes_are_right(self) -> None:
        """What is stored is what was sent, from the beginning."""
        looked_at = self.all if self.place.reads_cheaply else self.touched
        for one in looked_at:
            self.has_right_bytes(one)
        self.touched = set()

    def has_right_bytes(self, one: Upload) -> None:
        """Check the bytes of one upload, as far as they can be seen."""
        stored = self.place.content(one.path)
        if one.state == "complete":
            assert stored == one.content, one
        elif one.state == "open" and one.kind != "final":
            assert stored is None or one.content.startswith(stored), one
            seen = stored is not None and one.kind != "form" and self.place.reads_cheaply
            assert not seen or len(stored or b"") >= one.least, one
