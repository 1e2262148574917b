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
        self._socket.sendall(self._head("OPTIONS", collection, _TUS))
        _expect(self._answer(), 204, f"OPTIONS {collection}")

    def create(self, collection: str, size: int, more: Mapping[str, str] | None = None) -> str:
        """Open an upload of so many bytes; return its path."""
        headers = {**_TUS, "Upload-Length": str(size), "Content-Length": "0", **(more or {})}
        self._socket.sendall(self._head("POST", collection, headers))
        answer = self._answer()
        _expect(answer, 201, f"POST {collection}")
        return urlsplit(answer.headers["location"]).path

    def append(self, path: str, body: bytes) -> None:
        """Send the whole upload in one PATCH, head and body in one write."""
        headers = {**_BODY, "Content-Length": str(len(body))}
        self._socket.sendall(self._head("PATCH", path, headers) + body)
        _expect(self._answer(), 204, f"PATCH {path}")

    def append_file(self, path: str, fd: int, size: int) -> None:
        """Send the whole upload in one PATCH, the body from a file by ``sendfile``."""
        headers = {**_BODY, "Content-Length": str(size)}
        self._socket.sendall(self._head("PATCH", path, headers))
        done = 0
        with contextlib.suppress(ConnectionError):  # refused half-way: the answer says why
            while done < size:
                done += os.sendfile(self._socket.fileno(), fd, done, size - done)
        _expect(self._answer(), 204, f"PATCH {path}")

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
