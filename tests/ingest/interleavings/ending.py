"""Uploads end: finished, deleted, expired, or with the process that is killed."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import (
    rule,
)

from services.ingest.location import COLLECTION
from tests.ingest.evidence import lifecycle, tracebacks
from tests.ingest.interleavings.forms import SendingForms
from tests.ingest.interleavings.looking import (
    SIZES,
    UPLOADS,
)
from tests.ingest.interleavings.opening import Opening
from tests.ingest.interleavings.sending import Sending
from tests.ingest.interleavings.upload import Upload
from tests.ingest.tus_client import TUS
from tests.ingest.wire import Connection, head_of
from tests.processes import wait_until

__all__ = ["Uploading"]


class Uploading(Opening, Sending, SendingForms):
    """Clients that do everything, a process that is killed, and clean-ups; see ``looking``."""

    @rule(one=UPLOADS)
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

    @rule(
        one=UPLOADS, during=st.sampled_from(["rest", "patch", "delete", "create"]), size=SIZES
    )
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

    @rule(one=UPLOADS)
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
            assert one.expires
            assert one.holder is None
            assert one.is_aged or not self.place.can_age
            one.expired()
        elif what == "record":
            assert one.state == "failed" or one.is_doomed or one.kind == "final"
            if one.state != "failed":
                one.failed()
        else:
            assert what == "unrecorded"
            assert one.may_be_whole

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
