"""Asks a ClamAV daemon whether bytes are malware: its ``INSTREAM`` command, nothing else.

Protocol (``man clamd``): ``zINSTREAM`` and a NUL, then pieces with their length before each
(four bytes, big endian), then a length of 0; the answer ends in a NUL: ``stream: OK``,
``stream: <name> FOUND`` or ``<text> ERROR``. When the stream is longer than the daemon's
``StreamMaxLength`` it says so and closes, often before all of it was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterable
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from shared.errors import StartupError

__all__ = ["Clamd", "ClamdFailed", "StreamTooLong"]

_PIECE: Final = 64 * 1024
"""Bytes to a piece: with 1 KiB the daemon takes a twentieth of what it can."""

_LONGEST_REPLY: Final = 4096


class ClamdFailed(Exception):
    """The daemon gave no verdict. Ask again later."""


class StreamTooLong(ClamdFailed):
    """The daemon is set to take less than this file has; asking again does not help."""


class Clamd:
    """One daemon, reached anew for each file.

    Args:
        url: ``tcp://host:port`` or ``unix:///path``.
        timeout_s: Longest wait for the daemon to take a piece or to answer.

    Raises:
        StartupError: The URL has another form.

    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        parts = urlsplit(url)
        self._path: Final = unquote(parts.path) if parts.scheme == "unix" else ""
        self._timeout_s: Final = timeout_s
        try:
            self._host, self._port = parts.hostname or "", parts.port or 0
        except ValueError:
            self._host, self._port = "", 0
        is_tcp = parts.scheme == "tcp" and self._host and self._port
        if not is_tcp and not self._path:
            raise StartupError(f"CLAMD_URL={url!r}: expected tcp://host:port or unix:///path")

    async def scan(self, content: AsyncIterable[bytes]) -> str:
        """Return the name of what was found in the content; empty if it is clean.

        Raises:
            ClamdFailed: There is no verdict.
            OSError: As reading the content raises.

        """
        # Sockets by hand: a transport that fails to write drops the answer that has come, and
        # one that is closed still waits for the daemon to take the rest.
        with await self._connect() as connection:
            with contextlib.suppress(_Closed):
                await self._send(connection, b"zINSTREAM\0")
                async for piece in content:
                    for start in range(0, len(piece), _PIECE):
                        part = piece[start : start + _PIECE]
                        await self._send(connection, len(part).to_bytes(4, "big") + part)
                await self._send(connection, bytes(4))
            return _verdict(await self._answer(connection))

    async def _connect(self) -> socket.socket:
        failure: OSError = OSError("its name has no address")
        try:
            async with asyncio.timeout(self._timeout_s):
                for family, where in await self._addresses():
                    try:
                        return await _open(family, where)
                    except OSError as exc:
                        failure = exc
        except OSError as exc:
            failure = exc
        raise ClamdFailed(f"no connection: {failure!r}") from failure

    async def _addresses(self) -> list[tuple[socket.AddressFamily, Any]]:
        if self._path:
            return [(socket.AF_UNIX, self._path)]
        found = await asyncio.get_running_loop().getaddrinfo(
            self._host, self._port, type=socket.SOCK_STREAM
        )
        return [(family, where) for family, _, _, _, where in found]

    async def _send(self, connection: socket.socket, data: bytes) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.get_running_loop().sock_sendall(connection, data)
        except TimeoutError:
            raise ClamdFailed("the daemon takes no more bytes") from None
        except OSError:
            raise _Closed from None  # its answer may say why

    async def _answer(self, connection: socket.socket) -> bytes:
        answer, loop = b"", asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_s):
                while len(answer) < _LONGEST_REPLY and not answer.endswith(b"\0"):
                    data = await loop.sock_recv(connection, _LONGEST_REPLY)
                    if not data:
                        break
                    answer += data
        except OSError as exc:
            if not answer:
                raise ClamdFailed(f"no answer: {exc!r}") from exc
        return answer


async def _open(family: socket.AddressFamily, where: Any) -> socket.socket:
    connection = socket.socket(family)
    connection.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connection, where)
    except BaseException:
        connection.close()
        raise
    return connection


class _Closed(Exception):
    """The daemon closed the connection."""


def _verdict(answer: bytes) -> str:
    text = answer.rstrip(b"\0\n").decode("utf-8", "replace")
    if text == "stream: OK":
        return ""
    if text.endswith(" FOUND"):
        return text.removeprefix("stream: ").removesuffix(" FOUND")
    if "size limit exceeded" in text:
        raise StreamTooLong(text)
    raise ClamdFailed(text or "the connection was closed without an answer")
