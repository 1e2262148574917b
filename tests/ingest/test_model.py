"""Random sequences of requests, cuts and take-overs, against what must hold after each step."""

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
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.ingest.conftest import Ingest
from tests.ingest.evidence import blob, completed_once, no_file_is_left
from tests.ingest.tus_client import Tus, wait_for_offset
from tests.ingest.wire import Connection, Cut

CONTENT = os.urandom(20_000)
sizes = st.integers(0, 3000)


class OneUpload(RuleBasedStateMachine):
    """A client that does everything with one upload, and knows what it may expect."""

    ingest: ClassVar[Ingest]

    def __init__(self) -> None:
        super().__init__()
        self.path = ""
        self.length = 0
        self.deferred = False
        self.least = 0
        """What was acknowledged."""
        self.most = 0
        """What was sent, by any request: one that was cut may come to its turn late."""
        self.hanging: list[Connection] = []

    @property
    def tus(self) -> Tus:
        """A client."""
        return self.ingest.tus

    @initialize(length=st.integers(0, len(CONTENT)), deferred=st.booleans(), first=sizes)
    def create(self, length: int, deferred: bool, first: int) -> None:
        """Open an upload, perhaps with a first piece."""
        self.length, self.deferred = length, deferred
        self.path = self.tus.create(None if deferred else length)

    def at(self) -> int:
        """Return the offset by HEAD, which must be within what is known."""
        offset = self.tus.offset(self.path)
        assert self.least <= offset <= self.most
        self.least = offset
        return offset

    @rule(size=sizes, tell=st.booleans())
    def send(self, size: int, tell: bool) -> None:
        """Send a piece in one request, with the length if that is still to be told."""
        at = self.at()
        piece = CONTENT[at : min(at + size, self.length)]
        told = {"Upload-Length": str(self.length)} if tell and self.deferred else {}
        late = self.most > at
        self.most = max(self.most, at + len(piece))
        answer = self.tus.patch(self.path, at, piece, told)
        if answer.status in {409, 423} and late:  # a request that was cut has had its turn
            return
        assert answer.status == 204, answer
        self.least = at + len(piece)
        assert answer.headers["Upload-Offset"] == str(self.least)
        self.deferred = self.deferred and not told

    @rule(wrong=st.integers(-2000, 2000).filter(bool), size=sizes)
    def send_elsewhere(self, wrong: int, size: int) -> None:
        """Send a piece for another place."""
        at = self.at()
        if at + wrong >= 0 and at + wrong not in range(at, self.most + 1):
            assert self.tus.patch(self.path, at + wrong, b"!" * size).status == 409

    @rule(size=sizes, how=st.sampled_from(["fin", "rst", "half-close"]))
    def send_and_leave(self, size: int, how: Cut) -> None:
        """Send a part of what was announced, then end the connection."""
        at = self.at()
        piece = CONTENT[at : min(at + size, self.length)]
        with self.tus.begin_patch(self.path, at, self.length - at, piece) as one:
            one.cut(how)
            self.most = max(self.most, at + len(piece))

    @rule(size=st.integers(1, 3000))
    def send_and_hang(self, size: int) -> None:
        """Send a part of what was announced, then fall silent, connected."""
        at = self.at()
        end = min(at + size, self.length - 1)
        if at >= end or self.most > at:
            return
        one = self.tus.begin_patch(self.path, at, self.length - at, CONTENT[at:end])
        self.hanging.append(one)
        wait_for_offset(self.tus, self.path, end)
        self.least = self.most = end

    @rule(surplus=st.integers(1, 100))
    def send_too_much(self, surplus: int) -> None:
        """Send more than there is room for."""
        at = self.at()
        if not self.deferred:
            body = b"!" * (self.length - at + surplus)
            assert self.tus.patch(self.path, at, body).status == 413

    @rule(other=st.integers(0, len(CONTENT)))
    def change_the_length(self, other: int) -> None:
        """Try to set another length."""
        if not self.deferred and other != self.length:
            told = {"Upload-Length": str(other)}
            assert self.tus.patch(self.path, self.at(), b"", told).status == 400

    @precondition(lambda self: self.hanging)
    @rule()
    def late_bytes(self) -> None:
        """Send more on a connection that hangs, after another one has taken over."""
        self.at()
        one = self.hanging.pop()
        try:
            one.send(b"late" * 10)
            assert one.read().status == 423
        except (ConnectionError, EOFError):
            pass
        finally:
            one.socket.close()

    @invariant()
    def bytes_are_a_beginning(self) -> None:
        """What is stored is what was sent, from the beginning."""
        if self.path:
            stored = blob(self.ingest.data_dir, self.path)
            assert stored == CONTENT[: len(stored)]
            assert len(stored) <= self.length

    def teardown(self) -> None:
        """Finish the upload, and delete it."""
        try:
            if self.path:
                at = self.at()
                told = {"Upload-Length": str(self.length)}
                rest = CONTENT[at : self.length]
                if self.tus.patch(self.path, at, rest, told).status in {409, 423}:
                    at = self.at()
                    rest = CONTENT[at : self.length]
                    assert self.tus.patch(self.path, at, rest, told).status == 204
                assert blob(self.ingest.data_dir, self.path) == CONTENT[: self.length]
                completed_once(self.ingest.redis, self.path)
                assert self.tus.delete(self.path).status == 204
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
    """In whatever order things happen, what is stored is right, and it can be finished."""
    play(ingest, examples=15, steps=12)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whatever_a_client_does_for_long(ingest: Ingest) -> None:
    """The same, many times over."""
    play(ingest, examples=200, steps=30)
