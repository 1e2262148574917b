"""Random sequences of requests in all drafts, against what must hold after each step."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.ingest.conftest import Ingest
from tests.ingest.evidence import blob, completed_once, no_file_is_left
from tests.ingest.ietf_client import VERSIONS, Ietf
from tests.ingest.tus_client import wait_for_offset
from tests.ingest.wire import Connection, Cut, chunk

CONTENT = os.urandom(20_000)
sizes = st.integers(0, 3000)
drafts = st.sampled_from(VERSIONS)


class OneUpload(RuleBasedStateMachine):
    """A client that does everything with one upload, in any draft, and knows what to expect.

    Rules look at the state themselves, instead of by preconditions: whether a request that was
    cut still had its turn is a matter of time, and hypothesis must draw the same again.
    """

    ingest: ClassVar[Ingest]

    def __init__(self) -> None:
        super().__init__()
        self.path = ""
        self.knows_length = False
        """The server was told the length, and has said so."""
        self.length_sent = False
        """It was told the length by a request that it may come to yet."""
        self.silent = 0
        """How far requests that did not tell the length were to bring the upload."""
        self.least = 0
        """What was acknowledged."""
        self.most = 0
        """What was sent, by any request: one that was cut may come to its turn late."""
        self.pending = 0
        """Requests that were cut, and may still come to their turn."""
        self.complete = False
        self.outer_error = sys.exc_info()[1]
        self.hanging: list[Connection] = []

    def client(self, draft: int | None) -> Ietf:
        """Return a client that speaks a draft."""
        return Ietf(self.ingest.service.port, draft)

    @initialize(draft=drafts, first=sizes, tells=st.booleans())
    def create(self, draft: int | None, first: int, tells: bool) -> None:
        """Open an upload with a first piece, perhaps with its length."""
        self.knows_length = tells
        told = {"Upload-Length": str(len(CONTENT))} if tells else {}
        self.path = self.client(draft).create(CONTENT[:first], told)
        self.least = self.most = self.silent = first

    def at(self, draft: int | None = 8, *, after_refusal: bool = False) -> int:
        """Return the offset by HEAD, which must be within what is known.

        Whoever had the turn has given it up then: what came was the last of that request.
        Bytes that nobody acknowledged are those of a request that was cut, unless one
        that came whole was just refused, and may have left its own.
        """
        client = self.client(draft)
        head = client.head(self.path)
        assert head.status == 204, head
        assert client.is_complete(head) is self.complete
        offset = int(head.headers["Upload-Offset"])
        assert self.least <= offset <= self.most
        if draft in {6, 8, None}:
            self.check_length(head.headers.get("Upload-Length"), offset)
        if offset > self.least and self.pending and not after_refusal:
            self.pending -= 1
        self.least = offset
        if self.is_settled:
            self.most = offset
        return offset

    def check_length(self, told: str | None, offset: int) -> None:
        """Check ``Upload-Length`` of a HEAD (items 116 and 137).

        The length is recorded before the first byte of the request that tells it.
        """
        if self.knows_length or offset > self.silent:
            assert told is not None
        assert told in {None, str(len(CONTENT))}
        assert told is None or self.knows_length or self.length_sent
        self.knows_length = told is not None

    @property
    def is_settled(self) -> bool:
        """Whether no request that was cut can still come to its turn."""
        return not self.pending

    @rule(draft=drafts, size=sizes, framed=st.booleans())
    def append(self, draft: int | None, size: int, framed: bool) -> None:
        """Send a piece in one request."""
        self.until_it_is_taken(lambda: self.is_appended(draft, size, framed))

    def until_it_is_taken(self, send: Callable[[], bool]) -> None:
        """Send a request again for as long as those that were cut come in between."""
        for _ in range(self.pending + 1):
            if send():
                return
            self.at(after_refusal=True)
        assert send()

    def is_appended(self, draft: int | None, size: int, framed: bool) -> bool:
        """Send a piece once; return whether it had its turn."""
        at, client = self.at(draft), self.client(draft)
        piece = CONTENT[at : at + size]
        settled, self.most = self.is_settled, max(self.most, at + len(piece))
        self.silent = max(self.silent, at + len(piece))
        body = chunk(piece) * bool(piece) + chunk(b"") if framed else piece
        length = None if framed else len(piece)
        with client.begin_append(self.path, at, length, body, complete=False) as one:
            answer = one.read()
        if self.complete:
            assert answer.status == 400
            self.most = self.least
            return True
        if answer.status in {409, 423} and not settled:
            return False
        assert answer.status in {201, 204}, answer
        assert not client.is_complete(answer)
        self.least = at + len(piece)
        assert answer.headers["Upload-Offset"] == str(self.least)
        return True

    @rule(draft=drafts, wrong=st.integers(-2000, 2000).filter(bool), complete=st.booleans())
    def append_elsewhere(self, draft: int | None, wrong: int, complete: bool) -> None:
        """Send a piece for another place."""
        at = self.at()
        if at + wrong < 0 or at + wrong in range(at, self.most + 1):
            return
        answer = self.client(draft).append(self.path, at + wrong, b"!", complete=complete)
        assert answer.status == 409
        assert self.least <= int(answer.headers["Upload-Offset"]) <= self.most

    @rule(draft=drafts, size=sizes, how=st.sampled_from(["fin", "rst", "half-close"]))
    def append_and_leave(self, draft: int | None, size: int, how: Cut) -> None:
        """Send a part of what was announced to be the rest, then end the connection."""
        at, client = self.at(), self.client(draft)
        rest = len(CONTENT) - at
        piece = CONTENT[at : at + min(size, rest - 1)]
        if self.complete or rest < 2:
            return
        with client.begin_append(self.path, at, rest, piece) as one:
            one.cut(how)
            self.most = max(self.most, at + len(piece))
        self.length_sent = True
        self.pending += 1
        self.at()

    @rule(draft=drafts, size=st.integers(1, 3000))
    def append_and_hang(self, draft: int | None, size: int) -> None:
        """Send a part of what was announced, then fall silent, connected."""
        at = self.at()
        end = min(at + size, len(CONTENT) - 1)
        if self.complete or at >= end or not self.is_settled:
            return
        one = self.client(draft).begin_append(
            self.path, at, len(CONTENT) - at, CONTENT[at:end], complete=False
        )
        self.hanging.append(one)
        wait_for_offset(self.ingest.tus, self.path, end)
        self.least = self.most = end
        self.silent = max(self.silent, end)

    @rule()
    def late_bytes(self) -> None:
        """Send more on a connection that hangs, after another one has taken over."""
        self.at()
        if not self.hanging:
            return
        one = self.hanging.pop()
        try:
            one.send(b"late" * 10)
            assert one.read().status == 423
        except (ConnectionError, EOFError):
            pass
        finally:
            one.socket.close()

    @rule(draft=drafts)
    def finish(self, draft: int | None) -> None:
        """Send the rest, and say that it is all; or repeat that."""
        self.until_it_is_taken(lambda: self.is_finished(draft))

    def is_finished(self, draft: int | None) -> bool:
        """Send the rest once; return whether it had its turn."""
        client, at = self.client(draft), self.at()
        settled = self.is_settled
        self.most = max(self.most, len(CONTENT)) if not self.complete else self.most
        self.length_sent = True
        rest = b"" if self.complete else CONTENT[at:]
        answer = client.append(self.path, at, rest, complete=True)
        if answer.status in {409, 423} and not settled:
            return False
        assert answer.status == 201, answer
        assert client.is_complete(answer)
        self.least = self.most = len(CONTENT)
        self.knows_length = self.complete = True
        self.pending = 0  # whatever comes now is refused
        return True

    @invariant()
    def bytes_are_a_beginning(self) -> None:
        """What is stored is what was sent, from the beginning."""
        if self.path:
            stored = blob(self.ingest.data_dir, self.path)
            assert stored == CONTENT[: len(stored)]
            assert not self.complete or stored == CONTENT

    def teardown(self) -> None:
        """Finish the upload, and delete it, unless a step has failed."""
        try:
            if self.path and sys.exc_info()[1] is self.outer_error:
                if not self.complete:
                    self.finish(8)
                completed_once(self.ingest.redis, self.path)
                assert self.client(8).delete(self.path).status == 204
                no_file_is_left(self.ingest.data_dir, self.path)
        finally:
            for one in self.hanging:
                one.socket.close()


def play(ingest: Ingest, *, examples: int, steps: int) -> None:
    """Play so many games of so many steps."""
    OneUpload.ingest = ingest
    run_state_machine_as_test(
        OneUpload,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_whatever_a_client_does(ingest: Ingest) -> None:
    """In whatever order things happen, in whichever draft, it can be finished, and is right."""
    play(ingest, examples=12, steps=10)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whatever_a_client_does_for_long(ingest: Ingest) -> None:
    """The same, many times over."""
    play(ingest, examples=200, steps=30)
