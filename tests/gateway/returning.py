"""Clients of dialect *events* that vanish at random and come back for what they have missed."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Final, cast

from tests.gateway.raw_socket import TEXT, frame

__all__ = ["Counter", "Returning"]

Counter = tuple[str, bool, int]
"""An upload, whether it is the job's event, and its number."""

_HANDSHAKE: Final = (
    b"GET /v1/events/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def counter(event: Mapping[str, Any]) -> Counter:
    """Return what tells an event from all others."""
    return event["upload_id"], event["type"].startswith("job."), event["seq"]


def place(event_id: str) -> tuple[int, int, int]:
    """Return what sorts ids as events are told; clients need not know it."""
    at, number, partition = event_id.split("-")
    return int(at), int(number), int(partition)


class _Socket(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, request: Mapping[str, Any], take: Callable[[Any], None]) -> None:
        self._request: Final = request
        self._take: Final = take
        self._data = b""
        self._open = False
        self.transport: asyncio.Transport | None = None
        self.ended: Final = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        said = frame(TEXT, json.dumps(self._request).encode())
        self.transport.write(_HANDSHAKE + said)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._open:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return
            assert head.startswith(b"HTTP/1.1 101"), head
            self._open, self._data = True, rest
        at, data = 0, self._data
        while len(data) - at >= 2:
            size, start = data[at + 1], at + 2
            if size >= 126:
                start = at + (4 if size == 126 else 10)
                size = int.from_bytes(data[at + 2 : start])
            if len(data) < start + size:
                break
            if data[at] == 0x81:
                self._take(json.loads(data[start : start + size]))
            at = start + size
        self._data = data[at:]


class Returning:
    """One client, through all its connections.

    Args:
        ports: Of gateways; each connection goes to one at random.
        uploads: What it watches; none: it follows all.
        by_id: Whether it says for each upload what it has, or for all by one id.
        chance: Where its luck comes from.

    """

    def __init__(
        self,
        ports: Sequence[int],
        uploads: Sequence[str],
        *,
        by_id: bool,
        chance: random.Random,
    ) -> None:
        self._ports: Final = ports
        self.uploads: Final = uploads
        self._by_id: Final = by_id
        self._chance: Final = chance
        self._since: Final[dict[str, str]] = {}
        self._last = ""
        self._asked = ""
        """The one id that this connection began with."""
        self.seen: Final[dict[Counter, int]] = {}
        self.ends: Final[set[str]] = set()
        self.faults: Final[list[str]] = []
        self.connections = 0
        self._changed: Final = asyncio.Event()

    def _request(self) -> dict[str, Any]:
        request: dict[str, Any] = {"type": "subscribe"}
        if self.uploads:
            request["ids"] = list(self.uploads)
        if self._by_id and self._since:
            request["since"] = dict(self._since)
        elif not self._by_id and self._last:
            request["since"] = self._last
        self._asked = self._last
        return request

    def _take(self, message: Any) -> None:
        for event in message.get("events", ()):
            self._take_event(event)
        if message.get("type") == "snapshot":
            self._take_snapshot(message)
        elif "events" not in message and message["type"] != "subscribed":
            self.faults.append(f"{message}")
        self._changed.set()

    def _take_snapshot(self, message: Mapping[str, Any]) -> None:
        upload_id, state = message["upload_id"], message["snapshot"]
        if self._by_id and upload_id in self._since:
            self.faults.append(f"a snapshot instead of events: {message}")
        self._since.setdefault(upload_id, message["since"])
        for of_job, newest in ((False, state["seq"]), (True, state["job_seq"])):
            for seq in range(1, newest + 1):
                self.seen.setdefault((upload_id, of_job, seq), 1)
        if state["job_status"] == "completed":
            self.ends.add(upload_id)

    def _take_event(self, event: Mapping[str, Any]) -> None:
        key = upload_id, of_job, seq = counter(event)
        if key in self.seen and not self._may_repeat(event["id"]):
            self.faults.append(f"twice: {key} {event['id']} after {self._asked}")
        if key not in self.seen and seq > 1 and (upload_id, of_job, seq - 1) not in self.seen:
            self.faults.append(f"out of order: {key} {event['id']} after {self._asked}")
        self.seen[key] = self.seen.get(key, 0) + 1
        self._since[upload_id] = self._last = event["id"]
        if event["type"] == "job.completed":
            self.ends.add(upload_id)

    def _may_repeat(self, event_id: str) -> bool:
        """Nothing orders what happened on two streams in the same millisecond."""
        if self._by_id or not self._asked:
            return False
        (at, _, partition), (asked_at, _, asked) = place(event_id), place(self._asked)
        return at == asked_at and partition != asked

    async def run(self, over: asyncio.Event, ends: Set[str]) -> None:
        """Come and go until ``over``, then stay until these uploads have ended."""
        while not ends <= self.ends:
            await self._visit(over, ends)

    async def _visit(self, over: asyncio.Event, ends: Set[str]) -> None:
        loop = asyncio.get_running_loop()
        port, stay_s = self._chance.choice(self._ports), self._chance.uniform(0.02, 1.2)
        socket = _Socket(self._request(), self._take)
        try:
            await loop.create_connection(lambda: socket, "127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
            return
        self.connections += 1
        assert socket.transport is not None
        try:
            async with asyncio.timeout(None if over.is_set() else stay_s):
                while not ends <= self.ends and not socket.ended.is_set():
                    self._changed.clear()
                    changed = asyncio.ensure_future(self._changed.wait())
                    ended = asyncio.ensure_future(socket.ended.wait())
                    await asyncio.wait([changed, ended], return_when=asyncio.FIRST_COMPLETED)
                    changed.cancel()
                    ended.cancel()
        except TimeoutError:
            pass
        finally:
            socket.transport.abort()
            await socket.ended.wait()
