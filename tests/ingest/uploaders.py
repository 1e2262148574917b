"""Clients that upload through several replicas, whatever happens to those, and keep count."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from services.ingest.location import COLLECTION
from tests.ingest.tus_client import CHUNK, TUS
from tests.ingest.wire import Answer, Connection, head_of
from tests.processes import ServiceProcess

__all__ = ["Uploader", "kill_at_random"]

LIMIT_S: Final = 90.0
"""How long one upload may take."""
SLICE: Final = 8 * 1024
PAUSE_S: Final = 0.03
"""Between slices of a body, so that kills come in the middle of bodies."""


class Uploader:
    """One upload: created, sent in pieces to any replica, resumed after every error.

    Args:
        replicas: Any of them may be dead.
        seed: Decides about content and choices.

    """

    def __init__(self, replicas: Sequence[ServiceProcess], seed: int) -> None:
        self._replicas: Final = replicas
        self._rng: Final = random.Random(seed)
        self.content: Final = self._rng.randbytes(self._rng.randrange(50_000, 300_000))
        self.digest: Final = hashlib.sha256(self.content).hexdigest()
        self.path = ""
        self.acknowledged = 0
        """Bytes that a server has told us to be there."""
        self.resumptions = 0

    def run(self) -> None:
        """Upload everything."""
        end = time.monotonic() + LIMIT_S
        while not self.path:
            assert time.monotonic() < end, "not created"
            self._create()
        offset = 0
        while offset < len(self.content):
            assert time.monotonic() < end, f"{self.path} stays at {offset}"
            answer = self._patch(offset)
            if answer is not None and answer.status == 204:
                offset = self._note(answer)
            else:
                self.resumptions += 1
                offset = self._resume(offset)

    def _note(self, answer: Answer) -> int:
        offset = int(answer.headers["Upload-Offset"])
        assert offset >= self.acknowledged, f"{self.path}: {self.acknowledged} were promised"
        assert offset <= len(self.content)
        self.acknowledged = offset
        return offset

    def _port(self) -> int:
        return self._rng.choice(self._replicas).port

    def _create(self) -> None:
        headers = {**TUS, "Upload-Length": str(len(self.content))}
        answer = self._ask(head_of("POST", COLLECTION, {**headers, "Content-Length": "0"}))
        if answer is not None and answer.status == 201:
            self.path = urlsplit(answer.headers["Location"]).path
        else:
            assert answer is None or answer.status == 503, answer

    def _patch(self, offset: int) -> Answer | None:
        piece = self.content[offset : offset + self._rng.randrange(1, 100_000)]
        length = {"Content-Length": str(len(piece)), "Upload-Offset": str(offset)}
        answer = self._ask(head_of("PATCH", self.path, {**CHUNK, **length}), piece)
        assert answer is None or answer.status in {204, 400, 408, 409, 423, 503}, answer
        return answer

    def _resume(self, offset: int) -> int:
        answer = self._ask(head_of("HEAD", self.path, TUS), no_body=True)
        if answer is None:
            return offset
        assert answer.status in {200, 423}, answer  # at any other clients begin anew
        return self._note(answer) if answer.status == 200 else offset

    def _ask(self, head: bytes, body: bytes = b"", *, no_body: bool = False) -> Answer | None:
        """Send a request to any replica; ``None`` if the connection fails."""
        with suppress(ConnectionError, EOFError), Connection(self._port()) as one:
            with suppress(ConnectionError):  # it may have been refused in the middle
                one.send(head)
                for start in range(0, len(body), SLICE):
                    one.send(body[start : start + SLICE])
                    time.sleep(PAUSE_S)
            answer = one.read(no_body=no_body)
            if answer.status >= 400:
                time.sleep(self._rng.uniform(0, 0.2))
            return answer
        time.sleep(self._rng.uniform(0, 0.2))
        return None


def kill_at_random(
    replicas: Sequence[ServiceProcess], rng: random.Random, done: threading.Event
) -> int:
    """Kill replicas -9 and start them again until told to stop; return how many died.

    Most often one of them, sometimes all.
    """
    killed = 0
    while not done.wait(rng.uniform(0.2, 0.8)):
        victims = list(replicas) if rng.random() < 0.2 else [rng.choice(replicas)]
        for victim in victims:
            victim.kill()
        killed += len(victims)
        for victim in victims:
            victim.start()
    return killed
