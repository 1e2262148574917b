"""Bytes are sent: right, wrong, cut, late, twice, or for another place."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import strategies as st
from hypothesis.stateful import (
    rule,
)

from tests.ingest.interleavings.looking import (
    CHECKSUMS,
    SIZES,
    UPLOADS,
    Checksum,
    Looking,
    checksum,
)
from tests.ingest.interleavings.upload import Upload
from tests.ingest.tus_client import CHUNK
from tests.ingest.wire import Answer, Connection, Cut, head_of

__all__ = ["Sending"]


class Sending(Looking):
    """Clients that send bytes."""

    @rule(one=UPLOADS, size=SIZES, sum_=CHECKSUMS, tell=st.booleans())
    def send(self, one: Upload, size: int, sum_: Checksum | None, tell: bool) -> None:
        """Send a piece, with its length or a checksum, which may be that of another one."""
        if one.kind == "form":
            return
        is_open = self.look(one)
        at = one.least
        piece = one.content[at : at + size]
        if not is_open or one.kind == "final":
            self.is_refused(one, self.patch(one, at, piece, {}))
            return
        told = {"Upload-Length": str(one.length)} if tell and one.deferred else {}
        promised = checksum(piece, sum_) if one.kind != "ietf" else {}
        was_late, end = one.is_late, at + len(piece)
        one.sent(end)
        answer = self.patch(one, at, piece, {**told, **promised})
        if answer.status in {404, 409, 423} and was_late:  # what was cut has had its turn
            return
        if promised and sum_ == "wrong":
            assert answer.status == 460, answer
            one.most = one.most if was_late else at
            return
        one.deferred = one.deferred and not told
        if one.is_doomed and end == one.length:
            assert answer.status == 422, answer
            one.failed()
            return
        assert answer.status == (201 if one.kind == "ietf" and end == one.length else 204)
        assert answer.headers["Upload-Offset"] == str(end)
        self.took(one, end)

    @rule(one=UPLOADS, wrong=st.integers(-2000, 2000).filter(bool), size=SIZES)
    def send_elsewhere(self, one: Upload, wrong: int, size: int) -> None:
        """Send a piece for another place."""
        is_open = self.look(one) and one.kind != "form"
        at = one.least + wrong
        if one.kind == "form" or at < 0 or one.least <= at <= one.most:
            return
        answer = self.patch(one, at, b"!" * size, {})
        if is_open and one.kind != "final" and not (one.is_doomed and one.is_late):
            assert answer.status in ({400, 409} if one.kind == "ietf" else {409}), answer
        else:
            self.is_refused(one, answer)

    def is_refused(self, one: Upload, answer: Answer) -> None:
        """Check what is said to bytes for an upload that takes none."""
        if one.state in {"gone", "failed"}:
            assert answer.status == 404, answer
        elif one.is_expired:
            assert answer.status == 410, answer
        elif one.kind == "final":
            assert answer.status == 403, answer
        else:
            assert answer.status in {201, 204, 400, 409}, answer

    def patch(self, one: Upload, at: int, piece: bytes, headers: dict[str, str]) -> Answer:
        """PATCH in the protocol of the upload."""
        if one.kind != "ietf":
            return self.tus.patch(one.path, at, piece, headers)
        whole = at + len(piece) == one.length
        return self.ietf.append(one.path, at, piece, complete=whole)

    def begin(self, one: Upload, size: int) -> Connection:
        """Announce the rest of an open upload, and send some of it."""
        at = one.least
        rest = one.length - at
        piece = one.content[at:][: min(size, rest - 1) if one.kind == "ietf" else size]
        one.sent(at + len(piece), late=True)
        if one.kind == "ietf":
            return self.ietf.begin_append(one.path, at, rest, piece)
        return self.tus.begin_patch(one.path, at, rest, piece)

    @rule(one=UPLOADS, size=SIZES, how=st.sampled_from(["fin", "rst", "half-close"]))
    def send_and_leave(self, one: Upload, size: int, how: Cut) -> None:
        """Send a part of what was announced, or all of it, then end the connection."""
        if not self.look(one) or one.kind in {"final", "form"}:
            return
        with self.begin(one, size) as connection:
            connection.cut(how)

    @rule(one=UPLOADS, size=SIZES)
    def send_and_hang(self, one: Upload, size: int) -> None:
        """Send a part of what was announced, once it is wanted, then fall silent."""
        if not self.look(one) or one.kind in {"final", "ietf", "form"} or not one.is_settled:
            return
        at = one.least
        piece = one.content[at : min(at + size, one.length - 1)]
        headers = {"Upload-Offset": str(at), "Content-Length": str(one.length - at)}
        one.holder = Connection(self.tus.port)
        expecting = {**CHUNK, **headers, "Expect": "100-continue"}
        one.holder.send(head_of("PATCH", one.path, expecting))
        assert one.holder.read_interim() == 100
        one.holder.send(piece)
        one.sent(at + len(piece))
        one.begun = at + len(piece)

    @rule(one=UPLOADS)
    def go_on(self, one: Upload) -> None:
        """Send the rest on a connection that was silent, if nobody has taken over."""
        if one.holder is None:
            return
        self.touched.add(one)
        with one.holder as holder:
            holder.send(one.content[one.begun :])
            one.sent(one.length)
            answer = holder.read()
        one.holder = None
        if one.is_doomed:
            assert answer.status == 422, answer
            one.failed()
        else:
            assert answer.status == 204, answer
            self.took(one, one.length)

    @rule()
    def late_bytes(self) -> None:
        """Send more on a connection from which another one has taken over."""
        while self.stale:
            with self.stale.pop() as connection, suppress(ConnectionError, EOFError):
                connection.send(b"late" * 10)
                assert connection.read().status == 423

    @rule(one=UPLOADS, size=SIZES)
    def send_twice(self, one: Upload, size: int) -> None:
        """Send a piece over two connections at once: it counts once, or not at all."""
        if not self.look(one) or one.kind in {"final", "ietf", "form"} or one.is_doomed:
            return
        at = one.least
        piece = one.content[at : at + size]
        headers = {**CHUNK, "Upload-Offset": str(at), "Content-Length": str(len(piece))}
        one.sent(at + len(piece))
        pair = [Connection(self.tus.port) for _ in range(2)]
        for connection in pair:
            connection.send(head_of("PATCH", one.path, headers))
        for connection in pair:
            with suppress(ConnectionError):  # it was refused already
                connection.send(piece)
        for connection in pair:
            with connection:
                assert connection.read().status in {204, 409, 423}
        self.look(one)
