"""HTTP/1.1 by hand over a socket, so that a test decides about every byte and every cut.

Knows nothing of tus; ``tests/ingest/tus_client.py`` does.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Self

from multidict import CIMultiDict

__all__ = ["Answer", "Connection", "Cut", "Headers", "ask", "chunk", "head_of"]

Headers = Mapping[str, str] | Iterable[tuple[str, str]]
Cut = Literal["fin", "rst", "half-close"]

LIMIT_S: Final = 20.0
"""How long any one step may take before the test fails."""


@dataclass(frozen=True)
class Answer:
    """One response, and the interim ones before it."""

    status: int
    headers: CIMultiDict[str]
    body: bytes = b""
    interim: tuple[int, ...] = ()
    interim_headers: tuple[CIMultiDict[str], ...] = ()
    """Of the interim ones."""
    raw_head: bytes = field(default=b"", repr=False)


def head_of(method: str, target: str, headers: Headers) -> bytes:
    """Return a request line and header lines; values go out as Latin-1, as they are."""
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
    if not any(name.lower() == "host" for name, _ in pairs):
        pairs.insert(0, ("Host", "127.0.0.1"))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in pairs)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body; of ``b""``, the last one."""
    return b"%x\r\n%s\r\n" % (len(data), data)


class Connection:
    """One connection to a server on this machine; as a context it is closed at the end."""

    def __init__(self, port: int, *, host: str = "127.0.0.1") -> None:
        self.socket: Final = socket.create_connection((host, port), timeout=LIMIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._seen = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        """Send all of it."""
        for part in parts:
            self.socket.sendall(part)

    def request(self, method: str, target: str, headers: Headers, body: bytes = b"") -> None:
        """Send a whole request; ``Content-Length`` is added if the method wants one."""
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
        framing = {"content-length", "transfer-encoding"}
        framed = framing.intersection(name.lower() for name, _ in pairs)
        if not framed and (body or method in {"POST", "PATCH"}):
            pairs.append(("Content-Length", str(len(body))))
        self.send(head_of(method, target, pairs), body)

    def read(self, *, no_body: bool = False) -> Answer:
        """Return the next final response.

        Args:
            no_body: It answers a HEAD, so no body follows whatever its headers say.

        Raises:
            EOFError: The server closed the connection instead.

        """
        interim, interim_headers = [], []
        while True:
            status, headers, raw = self._read_head()
            if status >= 200:
                break
            interim.append(status)
            interim_headers.append(headers)
        body = b""
        if not no_body and status not in {204, 304}:
            body = self._read_exactly(int(headers.get("Content-Length", "0")))
        return Answer(status, headers, body, tuple(interim), tuple(interim_headers), raw)

    def read_interim(self) -> int:
        """Return the status of the next response, which must be an interim one."""
        status, _, _ = self._read_head()
        assert status < 200, f"{status} instead of an interim response"
        return status

    def read_interim_answer(self) -> Answer:
        """Return the next response, which must be an interim one, with its headers."""
        status, headers, raw = self._read_head()
        assert status < 200, f"{status} instead of an interim response"
        return Answer(status, headers, raw_head=raw)

    def _read_head(self) -> tuple[int, CIMultiDict[str], bytes]:
        while b"\r\n\r\n" not in self._seen:
            self._more()
        raw, _, self._seen = self._seen.partition(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")
        headers: CIMultiDict[str] = CIMultiDict()
        for line in lines:
            name, _, value = line.partition(":")
            headers.add(name, value.strip())
        return int(first.split(" ")[1]), headers, raw

    def _read_exactly(self, size: int) -> bytes:
        while len(self._seen) < size:
            self._more()
        body, self._seen = self._seen[:size], self._seen[size:]
        return body

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError("the server closed the connection")
        self._seen += data

    def has_answer(self) -> bool:
        """Tell whether the server has said something, or closed, without waiting for it."""
        readable, _, _ = select.select([self.socket], [], [], 0)
        return bool(readable)

    def is_closed_by_server(self) -> bool:
        """Wait until the server ends the connection; False if it says something instead."""
        with contextlib.suppress(ConnectionError):
            return self.socket.recv(1) == b""
        return True

    def cut(self, how: Cut = "fin") -> None:
        """End the connection from this side, whatever is under way."""
        if how == "half-close":
            self.socket.shutdown(socket.SHUT_WR)
            return
        if how == "rst":
            linger = struct.pack("ii", 1, 0)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.socket.close()


def ask(port: int, method: str, target: str, headers: Headers, body: bytes = b"") -> Answer:
    """Send one request on a connection of its own; return the answer."""
    with Connection(port) as one:
        # A server may refuse and close before it has read all of the body.
        with contextlib.suppress(ConnectionError):
            one.request(method, target, headers, body)
        return one.read(no_body=method == "HEAD")
