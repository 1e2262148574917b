"""Everything that clients, crashes and clean-ups can do to several uploads, in any order.

Hypothesis must draw the same again when it repeats a run, so nothing that it draws depends on
what an answer says: rules look at the state themselves, instead of by preconditions, and each
one that opens an upload opens one. What a request that was cut still does is a matter of time;
the model knows what it may do at most.
"""

from __future__ import annotations

import base64
import hashlib
from contextlib import suppress
from typing import ClassVar, Literal

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)

from services.ingest.location import COLLECTION
from tests.ingest.evidence import digest, lifecycle, tracebacks
from tests.ingest.form_client import Forms, Reply, body_of, file_part, text_parts
from tests.ingest.ietf_client import Ietf
from tests.ingest.model import LARGE, LARGEST, Kind, Upload, content_of
from tests.ingest.parts import PARTIAL, join
from tests.ingest.places import Place
from tests.ingest.tus_client import CHUNK, TUS, Tus, metadata, path_of
from tests.ingest.wire import Answer, Connection, Cut, head_of
from tests.processes import wait_until

__all__ = ["Uploading"]

starts = st.integers(0, 2)
lengths = st.integers(0, 20_000) | st.integers(0, 100) | st.sampled_from([LARGE + 1, LARGEST])
sizes = st.integers(0, 5000) | st.integers(0, 20_000) | st.sampled_from([LARGE, LARGEST])
checksums = st.sampled_from([None, "right", "wrong"])
cuts = st.sampled_from(["fin", "rst", "half-close"])
Checksum = Literal["right", "wrong"]


def checksum(piece: bytes, which: Checksum | None) -> dict[str, str]:
    """Return the header that promises a piece, or another one."""
    if which is None:
        return {}
    promised = piece if which == "right" else piece + b"!"
    value = base64.b64encode(hashlib.sha1(promised, usedforsecurity=False).digest())
    return {"Upload-Checksum": f"sha1 {value.decode()}"}


class Uploading(RuleBasedStateMachine):
    """Clients of one ingest process, which may be killed; see the module."""

    place: ClassVar[Place]

    uploads = Bundle("uploads")

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

    # Opening.

    @initialize(target=uploads, start=starts, length=lengths, other=lengths)
    def create_two(self, start: int, length: int, other: int) -> object:
        """Begin with two uploads, one of them to be joined with others."""
        return multiple(
            self.open_tus(content_of(start, length), {}, "file"),
            self.open_tus(content_of(start, other), PARTIAL, "part"),
        )

    def open_tus(self, content: bytes, headers: dict[str, str], kind: Kind) -> Upload:
        """Open an upload of tus."""
        return self.note(Upload(self.tus.create(len(content), headers), kind, content))

    def note(self, one: Upload) -> Upload:
        """Remember an upload that was opened."""
        self.all.append(one)
        self.touched.add(one)
        if one.length == 0 and one.kind in {"file", "part"} and not one.deferred:
            one.completed()
        return one

    @rule(
        target=uploads,
        start=starts,
        length=lengths,
        first=sizes,
        sum_=checksums,
        partial=st.booleans(),
        deferred=st.booleans(),
    )
    def create(
        self,
        start: int,
        length: int,
        first: int,
        sum_: Checksum | None,
        partial: bool,
        deferred: bool,
    ) -> Upload:
        """Open an upload with a first piece, which may not be what its checksum says."""
        content = content_of(start, length)
        piece = content[:first]
        size = {"Upload-Defer-Length": "1"} if deferred else {"Upload-Length": str(length)}
        concat = PARTIAL if partial else {}
        kind = {"Content-Type": CHUNK["Content-Type"], **checksum(piece, sum_)}
        answer = self.tus.post({**size, **concat, **kind}, piece)
        wrong = sum_ == "wrong"
        assert answer.status == (460 if wrong else 201), answer
        one = Upload(path_of(answer), "part" if partial else "file", content, deferred=deferred)
        if not wrong:
            assert answer.headers["Upload-Offset"] == str(len(piece))
            self.took(one, len(piece))
        self.all.append(one)
        self.touched.add(one)
        return one

    @rule(target=uploads, start=starts, length=lengths, right=st.booleans())
    def create_declared(self, start: int, length: int, right: bool) -> Upload:
        """Open an upload whose SHA-256 is declared; its bytes may be there already."""
        content = content_of(start, length + 1)
        sha256 = digest(content if right else content + b"!")
        headers = {"Upload-Metadata": metadata(sha256=sha256)}
        answer = self.tus.post({"Upload-Length": str(len(content)), **headers})
        assert answer.status == 201, answer
        one = Upload(path_of(answer), "file", content, is_doomed=not right)
        if "Upload-Offset" in answer.headers:
            assert answer.headers["Upload-Offset"] == str(one.length)
            assert right
            one.completed()
        return self.note(one)

    @rule(target=uploads, start=starts, length=lengths, first=sizes)
    def create_ietf(self, start: int, length: int, first: int) -> Upload:
        """Open an upload in the other protocol, with a first piece."""
        content = content_of(start, length + 1)
        piece = content[: min(first, length)]
        headers = {"Upload-Length": str(len(content))}
        one = Upload(self.ietf.create(piece, headers), "ietf", content)
        one.least = one.most = len(piece)
        return self.note(one)

    @rule(target=uploads, parts=st.lists(uploads, min_size=1, max_size=3))
    def join(self, parts: list[Upload]) -> object:
        """Ask for a final upload of what may be parts, complete or not."""
        for one in parts:
            if one.is_doubtful:
                self.look(one)
        refusals = {400 for one in parts if one.state != "gone" and one.kind != "part"}
        refusals |= {410 for one in parts if one.is_expired}
        refusals |= {404 for one in parts if one.state == "gone"}
        answer = join(self.tus, *(one.path for one in parts))
        assert answer.status in (refusals or {201}), answer
        if answer.status != 201:
            return parts[0]
        content = b"".join(one.content for one in parts)
        final = Upload(path_of(answer), "final", content, parts=parts)
        final.most = final.length
        return self.note(final)

    @rule(
        target=uploads,
        start=starts,
        lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=4),
        first=st.integers(0, 3),
    )
    def open_form(self, start: int, lengths: list[int], first: int) -> Upload:
        """Open a session with one of the chunks of a file that comes by forms."""
        content = content_of(start, sum(lengths))
        ends = [sum(lengths[: n + 1]) for n in range(len(lengths))]
        chunks = [content[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        index = first % len(chunks)
        reply = self.forms.chunk(chunks, index)
        path = f"{COLLECTION}/{reply.data['upload_id']}"
        one = Upload(path, "form", content, chunks=chunks)
        one.most = one.length
        self.chunk_arrived(one, index, reply)
        return self.note(one)

    def chunk_arrived(self, one: Upload, index: int, reply: Reply) -> None:
        """Check the answer to a chunk."""
        one.received.add(index)
        whole = len(one.received | one.maybe_received) == len(one.chunks)
        if reply.status == 202:
            missing = set(reply.data["missing_chunks"])
            assert missing <= {*range(len(one.chunks))} - one.received
            assert missing or one.state == "complete", reply
            return
        assert reply.status in {200, 201}, reply
        assert reply.data["duplicate"] or whole
        assert reply.data["duplicate"] is (reply.status == 200)
        one.completed()

    # Looking.

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

    @rule(one=uploads)
    def head(self, one: Upload) -> None:
        """Ask how far an upload is."""
        self.look(one)

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

    # Sending.

    def took(self, one: Upload, end: int) -> None:
        """Note that a piece was acknowledged."""
        one.sent(end)
        one.arrived(end)
        if end == one.length and not one.deferred:
            one.completed()

    def patch(self, one: Upload, at: int, piece: bytes, headers: dict[str, str]) -> Answer:
        """PATCH in the protocol of the upload."""
        if one.kind != "ietf":
            return self.tus.patch(one.path, at, piece, headers)
        whole = at + len(piece) == one.length
        return self.ietf.append(one.path, at, piece, complete=whole)

    @rule(one=uploads, size=sizes, sum_=checksums, tell=st.booleans())
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

    @rule(one=uploads, wrong=st.integers(-2000, 2000).filter(bool), size=sizes)
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

    @rule(one=uploads, size=sizes, how=cuts)
    def send_and_leave(self, one: Upload, size: int, how: Cut) -> None:
        """Send a part of what was announced, or all of it, then end the connection."""
        if not self.look(one) or one.kind in {"final", "form"}:
            return
        with self.begin(one, size) as connection:
            connection.cut(how)

    def begin(self, one: Upload, size: int) -> Connection:
        """Announce the rest of an open upload, and send some of it."""
        at = one.least
        rest = one.length - at
        piece = one.content[at:][: min(size, rest - 1) if one.kind == "ietf" else size]
        one.sent(at + len(piece), late=True)
        if one.kind == "ietf":
            return self.ietf.begin_append(one.path, at, rest, piece)
        return self.tus.begin_patch(one.path, at, rest, piece)

    @rule(one=uploads, size=sizes)
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

    @rule(one=uploads)
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

    @rule(one=uploads, index=st.integers(0, 3), how=st.sampled_from(["right", "other", "cut"]))
    def send_chunk(self, one: Upload, index: int, how: str) -> None:
        """Send a chunk by form, perhaps once more, or other bytes in its place."""
        if one.kind != "form" or not self.look(one):
            return
        index %= len(one.chunks)
        if how == "right":
            self.chunk_arrived(one, index, self.send_form(one, index))
        elif how == "other" and index in one.received:
            others = [each + b"!" if n == index else each for n, each in enumerate(one.chunks)]
            reply = self.forms.post(
                others[index],
                session_id=one.upload_id,
                chunk_index=index,
                total_chunks=len(others),
                file_hash=digest(one.content),
            )
            assert reply.status == 409, reply
        elif how == "cut":
            body = self.form_of(one, index)
            with self.forms.begin(body[: len(body) // 2], length=len(body)) as connection:
                connection.cut("fin")

    def send_form(self, one: Upload, index: int) -> Reply:
        """Send a chunk of a form."""
        return self.forms.chunk(one.chunks, index, one.upload_id)

    def form_of(self, one: Upload, index: int) -> bytes:
        """Return the body of a form that brings a chunk."""
        fields = {
            "session_id": one.upload_id,
            "chunk_index": index,
            "total_chunks": len(one.chunks),
            "file_hash": digest(one.content),
        }
        return body_of([*text_parts(fields), file_part(one.chunks[index])])

    @rule()
    def late_bytes(self) -> None:
        """Send more on a connection from which another one has taken over."""
        while self.stale:
            with self.stale.pop() as connection, suppress(ConnectionError, EOFError):
                connection.send(b"late" * 10)
                assert connection.read().status == 423

    @rule(one=uploads, size=sizes)
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

    # Ending.

    @rule(one=uploads)
    def delete(self, one: Upload) -> None:
        """End an upload, whole or not."""
        self.touched.add(one)
        doubtful = one.is_doubtful or (one.state == "open" and one.kind == "final")
        doubtful = doubtful or (one.is_doomed and one.may_be_whole)
        answer = self.tus.delete(one.path)
        if one.state in {"gone", "failed"}:
            assert answer.status == 404, answer
            return
        if answer.status == 404 and doubtful:
            self.look(one)
            return
        assert answer.status == 204, answer
        if one.holder is not None:
            self.stale.append(one.holder)
        one.deleted()

    @rule(one=uploads, during=st.sampled_from(["rest", "patch", "delete", "create"]), size=sizes)
    def kill(self, one: Upload, during: str, size: int) -> None:
        """Kill ingest -9, at rest or in the midst of a request, and start it again."""
        connection = None
        if during == "patch" and self.look(one) and one.kind == "form":
            index = size % len(one.chunks)
            body = self.form_of(one, index)
            connection = self.forms.begin(body, length=len(body))
            one.maybe_received.add(index)
        elif during == "patch" and one.kind not in {"final", "form"} and self.look(one):
            connection = self.begin(one, size)
        elif during == "delete":
            connection = Connection(self.tus.port)
            connection.send(head_of("DELETE", one.path, TUS))
            one.is_doubtful = one.state in {"open", "complete"}
        elif during == "create":  # nobody learns of it: the reaper ends it one day
            connection = Connection(self.tus.port)
            headers = {**TUS, "Upload-Length": "9", "Content-Length": "0"}
            connection.send(head_of("POST", COLLECTION, headers))
        self.place.ingest.service.kill()
        for gone in (connection, *self.stale, *(each.holder for each in self.all)):
            if gone is not None:
                gone.socket.close()
        self.stale.clear()
        for each in self.all:
            each.forget_requests()
        self.place.ingest.service.start()
        self.touched.add(one)

    @rule(one=uploads)
    def age(self, one: Upload) -> None:
        """Let a session's time pass for one upload."""
        if self.place.can_age and one.kind != "form":
            self.look(one)
            if one.state == "complete" or (one.state == "open" and one.is_at_rest):
                self.place.age(one.path)
                one.is_aged = True

    @rule(dry=st.booleans())
    def reap(self, dry: bool) -> None:
        """Clean up; a dry run before that has told what would go."""
        told = self.place.reap("--dry-run") if dry else []
        lines = [line.removeprefix("reaped ") for line in self.place.reap()]
        if dry:
            foreseen = {line.removeprefix("would reap ") for line in told}
            self.are_foreseen(foreseen, set(lines))
        reaped = {name: what for what, name in (line.split(" ", 1) for line in lines)}
        for one in self.all:
            self.reaped(one, reaped.get(one.upload_id))

    def are_foreseen(self, foreseen: set[str], done: set[str]) -> None:
        """Check what a dry run has told against what was done then."""
        busy = {one.upload_id for one in self.all if one.holder or one.is_late}
        differ = {line for line in foreseen ^ done if line.split(" ")[-1] not in busy}
        assert differ == set()

    def reaped(self, one: Upload, what: str | None) -> None:
        """Take in what was done to an upload, if that was right."""
        if what is None:
            due = one.is_aged or not self.place.can_age
            busy = one.holder is not None or one.is_late or one.is_doubtful
            assert not (one.expires and due) or busy or one.kind == "final", one
            return
        self.touched.add(one)
        if what in {"upload", "part"}:
            assert one.expires and one.holder is None
            assert one.is_aged or not self.place.can_age
            one.expired()
        elif what == "record":
            assert one.state == "failed" or one.is_doomed or one.kind == "final"
            if one.state != "failed":
                one.failed()
        else:
            assert what == "unrecorded"
            assert one.may_be_whole

    # What must hold.

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

    def teardown(self) -> None:
        """Finish everything that can be, delete it, and look what is left and what was told."""
        try:
            for one in self.all:
                if one.kind != "final":
                    self.finish(one)
            for one in self.all:
                if one.kind == "final":
                    self.await_join(one)
                self.has_right_bytes(one)
            for one in self.all:
                self.delete(one)
                assert one.state in {"gone", "failed"}, one
            for one in self.all:
                self.has_left_nothing(one)
            assert tracebacks(self.place.ingest.service) == []
        finally:
            for held in (*self.stale, *(one.holder for one in self.all)):
                if held is not None:
                    held.socket.close()

    def finish(self, one: Upload) -> None:
        """Send the rest, if the upload takes it."""
        for _ in range(4):  # what was cut may come in between
            if not self.look(one):
                return
            if one.kind == "form":
                for index in {*range(len(one.chunks))} - one.received or {0}:
                    if one.state == "open":
                        self.chunk_arrived(one, index, self.send_form(one, index))
            else:
                self.send_all(one)

    def send_all(self, one: Upload) -> None:
        """Send the rest, with the length if the server does not know it."""
        told = {"Upload-Length": str(one.length)} if one.deferred else {}
        one.sent(one.length)
        answer = self.patch(one, one.least, one.content[one.least :], told)
        if answer.status in {404, 409, 423} and one.is_late:
            return
        one.deferred = False
        if one.is_doomed:
            assert answer.status == 422, answer
            one.failed()
        else:
            assert answer.status in {201, 204}, answer
            one.completed()

    def await_join(self, one: Upload) -> None:
        """Wait for a final upload whose parts are there to be joined."""
        can_be = self.look(one) and all(
            part.state == "complete" and not part.is_aged for part in one.parts
        )
        if can_be:
            wait_until(lambda: not self.look(one), "it is joined", lambda: one)

    def has_left_nothing(self, one: Upload) -> None:
        """Check what the store has of an upload that has ended, and what the streams tell."""
        kept = {f"{one.upload_id}.info"} if one.state == "failed" else set()

        def left() -> set[str]:
            return {*self.place.left(one.path)} - kept

        wait_until(lambda: not left(), "nothing is left", lambda: (one, left()), limit_s=20)
        url = self.place.ingest.redis.url
        told = {event.seq: event for event in lifecycle(url, one.path)}
        assert sorted(told) == [*range(1, len(told) + 1)], (one, told)
        created, *others, last = [type(told[seq]).__name__ for seq in sorted(told)]
        assert created == "UploadCreated", (one, told)
        assert last in one.end, (one, told)
        completions = len(others)
        assert {*others} <= {"UploadCompleted", "UploadDuplicate"}, (one, told)
        expected = {0, 1} if one.was_complete is None else {int(one.was_complete)}
        assert completions in expected, (one, told)
