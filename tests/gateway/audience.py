"""Sockets for tests of the hub: everything is real but the wire, which is a list."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from services.gateway.dialects import Dialect
from services.gateway.dialects.protocol import Malformed, Message, Told
from services.gateway.flusher import Flusher
from services.gateway.hub import Hub
from services.gateway.outbound import Outbound
from services.gateway.state import Change, ProgressState
from services.gateway.topic import Watcher
from shared.identity import Principal
from tests.gateway.samples import ADA

__all__ = ["Audience", "Plain", "Sink", "settled"]


class Plain(Dialect):
    """A dialect that tells a test all it wants to know."""

    name = "plain"
    paths = ()

    def __init__(self, *, silent: frozenset[Change] = frozenset()) -> None:
        self.encoded = 0
        self._silent: Final = silent

    def encode(
        self, change: Change, state: ProgressState, told: Told | None = None
    ) -> bytes | None:
        """Count, and tell what changed, and the state's place in the order."""
        self.encoded += 1
        if change in self._silent:
            return None
        about = {"id": state.session_id, "change": change.value, "seq": state.seq}
        more = {"bytes": state.bytes_uploaded, "job_seq": state.job_seq}
        return json.dumps({**about, **more}).encode()

    def parse(self, text: str) -> Message:
        """Nobody says anything here."""
        return Message(Malformed(text))

    def reply(
        self, kind: str, *, subject: str, caller: Principal | None, data: dict[str, Any]
    ) -> bytes:
        """Nobody is answered here."""
        raise AssertionError(kind)


class Sink(asyncio.WriteTransport):
    """A transport that takes everything, or nothing while it is ``stuck``."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck = False
        self._data: Final = bytearray()

    def get_write_buffer_size(self) -> int:
        """Return something above 0 while it is stuck."""
        return int(self.stuck)

    def is_closing(self) -> bool:
        """It never is."""
        return False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take it."""
        assert not self.stuck
        self._data.extend(data)

    def messages(self) -> list[dict[str, Any]]:
        """Return what has come, message by message; short ones only."""
        found, at = [], 0
        while at < len(self._data):
            size, head = self._data[at + 1], 2
            if size == 126:
                size, head = int.from_bytes(self._data[at + 2 : at + 4]), 4
            found.append(json.loads(self._data[at + head : at + head + size]))
            at += head + size
        return found


class Audience:
    """Those who watch a hub."""

    def __init__(self, hub: Hub) -> None:
        self.hub: Final = hub
        self.flusher: Final = Flusher(asyncio.get_running_loop(), stall_limit_s=30)
        self.dialect: Final = Plain()

    def watcher(
        self, caller: Principal = ADA, dialect: Dialect | None = None
    ) -> tuple[Watcher, Sink]:
        """Return a socket of somebody, and what it gets; it is dropped if it is too slow."""
        sink = Sink()
        spoken = dialect or self.dialect
        out = Outbound(sink, self.flusher, lambda: self.hub.drop(watcher), spoken)
        watcher = Watcher(spoken, out, caller)
        return watcher, sink


async def settled() -> None:
    """Let everything that is due be written."""
    for _ in range(6):
        await asyncio.sleep(0)
