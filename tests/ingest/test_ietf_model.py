"""Random sequences of requests in all drafts, against what must hold after each step."""

from __future__ import annotations

import os
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
        self.length: int | None = None
        """As far as the server has been told."""
        self.least = 0
        """What was acknowledged."""
        self.most = 0
        """What was sent, by any request: one that was cut may come to its turn late."""
        self.complete = False
        self.hanging: list[Connection] = []

    def client(self, draft: int | None) -> Ietf:
        """Return a client that speaks a draft."""
        return Ietf(self.ingest.service.port, draft)

    @initialize(draft=drafts, first=sizes, tells=st.booleans())
    def create(self, draft: int | None, first: int, tells: bool) -> None:
        """Open an upload with a first piece, perhaps with its length."""
        self.length = len(CONTENT) if tells else None
        told = {"Upload-Length": str(self.length)} if tells else {}
        self.path = self.client(draft).create(CONTENT[:first], told)
        self.least = self.most = first

    def at(self, draft: int | None = 8) -> int:
        """Return the offset by HEAD, which must be within what is known."""
        client = self.client(draft)
        head = client.head(self.path)
        assert head.status == 204, head
        assert client.is_complete(head) is self.complete
        offset = int(head.headers["Upload-Offset"])
        assert self.least <= offset <= self.most
        if draft in {6, 8, None}:
            assert ("Upload-Length" in head.headers) == (self.length is not None)
        self.least = offset
        return offset

    @property
    def is_settled(self) -> bool:
        """Whether no request that was cut can still come to its turn."""
        return self.least == self.most

    @rule(draft=drafts, size=sizes, framed=st.booleans())
    def append(self, draft: int | None, size: int, framed: bool) -> None:
        """Send a piece in one request."""
        at, client = self.at(draft), self.client(draft)
        piece = CONTENT[at : at + size]
        settled, self.most = self.is_settled, max(self.most, at + len(piece))
        body = chunk(piece) * bool(piece) + chunk(b"") if framed else piece
        length = None if framed else len(piece)
        with client.begin_append(self.path, at, length, body, complete=False) as one:
            answer = one.read()
        if self.complete:
            assert answer.status == 400
            self.most = self.least
            return
        if answer.status in {409, 423} and not settled:
            return
        assert answer.status in {201, 204}, answer
        assert not client.is_complete(answer)
        self.least = at + len(piece)
        assert answer.headers["Upload-Offset"] == str(self.least)

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
        self.length = None  # whether the server got so far is known after the next HEAD
        head = self.client(8).head(self.path)
        if "Upload-Length" in head.headers:
            self.length = int(head.headers["Upload-Length"])
            assert self.length == len(CONTENT)

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
        client, at = self.client(draft), self.at()
        settled = self.is_settled
        self.most = max(self.most, len(CONTENT)) if not self.complete else self.most
        rest = b"" if self.complete else CONTENT[at:]
        answer = client.append(self.path, at, rest, complete=True)
        if answer.status in {409, 423} and not settled:
            return
        assert answer.status == 201, answer
        assert client.is_complete(answer)
        self.least = self.most = len(CONTENT)
        self.length, self.complete = len(CONTENT), True

    @invariant()
    def bytes_are_a_beginning(self) -> None:
        """What is stored is what was sent, from the beginning."""
        if self.path:
            stored = blob(self.ingest.data_dir, self.path)
            assert stored == CONTENT[: len(stored)]
            assert not self.complete or stored == CONTENT

    def teardown(self) -> None:
        """Finish the upload, and delete it."""
        try:
            if self.path:
                for _ in range(3):
                    if not self.complete:
                        self.finish(8)
                assert self.complete
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
