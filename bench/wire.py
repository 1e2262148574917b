"""The least HTTP/1.1 and tus client that a measurement needs: one blocking socket.

Reads answers only as far as the next request requires. Not a client for anything else.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

__all__ = ["Answer", "Connection"]

_TUS = {"Tus-Resumable": "1.0.0"}
_BODY = {**_TUS, "Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}


class Answer(NamedTuple):
    """Status and headers (names in lower case); the body is read and dropped."""

    status: int
    headers: dict[str, str]


class Connection:
    """One kept-alive connection; not for two threads at once."""

    def __init__(self, port: int) -> None:
        self._host = f"127.0.0.1:{port}"
        self._socket = socket.create_connection(("127.0.0.1", port), 60)
        self._socket.settimeout(None)  # a timeout would make sendfile return early
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = self._socket.makefile("rb")

    def close(self) -> None:
        """Close it at once."""
        self._reader.close()
        self._socket.close()

    def discover(self, collection: str) -> None:
        """Ask what the server supports."""
        _expect(self.ask("OPTIONS", collection, _TUS), 204, f"OPTIONS {collection}")

    def create(
        self, collection: str, size: int, headers: Mapping[str, str] | None = None
    ) -> str:
        """Open an upload of so many bytes; return its path."""
        answer = self.open(collection, {"Upload-Length": str(size), **(headers or {})})
        return urlsplit(answer.headers["location"]).path

    def open(self, collection: str, headers: Mapping[str, str]) -> Answer:
        """Open an upload; return the answer."""
        answer = self.ask("POST", collection, {**_TUS, **headers})
        _expect(answer, 201, f"POST {collection}")
        return answer

    def ask(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
    ) -> Answer:
        """Send a request, head and body in one write; return its answer."""
        length = {"Content-Length": str(len(body))}
        self._socket.sendall(self._head(method, path, {**headers, **length}) + body)
        return self._answer()

    def append(self, path: str, body: bytes) -> None:
        """Send the whole upload in one PATCH, head and body in one write."""
        _expect(self.ask("PATCH", path, _BODY, body), 204, f"PATCH {path}")

    def append_file(self, path: str, fd: int, size: int, *, start: int = 0) -> None:
        """Send the whole upload in one PATCH, the body from a file by ``sendfile``."""
        answer = self.send_file("PATCH", path, _BODY, fd, start, size)
        _expect(answer, 204, f"PATCH {path}")

    def send_file(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        fd: int,
        start: int,
        size: int,
        *,
        around: tuple[bytes, bytes] = (b"", b""),
    ) -> Answer:
        """Send a part of a file by ``sendfile``, with bytes around it; return the answer."""
        before, after = around
        length = {"Content-Length": str(len(before) + size + len(after))}
        done = 0
        with contextlib.suppress(ConnectionError):  # refused half-way: the answer says why
            self._socket.sendall(self._head(method, path, {**headers, **length}) + before)
            while done < size:
                done += os.sendfile(self._socket.fileno(), fd, start + done, size - done)
            self._socket.sendall(after)
        return self._answer()

    def _head(self, method: str, path: str, headers: Mapping[str, str]) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode()

    def _answer(self) -> Answer:
        first = self._reader.readline()
        if not first:
            raise SystemExit("the server closed the connection without an answer")
        status = int(first.split()[1])
        headers: dict[str, str] = {}
        while line := self._reader.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        if status != 204:
            self._drop_body(headers)
        return Answer(status, headers)

    def _drop_body(self, headers: Mapping[str, str]) -> None:
        if headers.get("transfer-encoding") == "chunked":
            while size := int(self._reader.readline().strip(), 16):
                self._reader.read(size + 2)
            self._reader.readline()
        else:
            self._reader.read(int(headers.get("content-length", 0)))


def _expect(answer: Answer, status: int, what: str) -> None:
    if answer.status != status:
        raise SystemExit(f"{what} was answered {answer.status}, not {status}")
