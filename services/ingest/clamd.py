"""Asks a ClamAV daemon whether bytes are malware: its ``INSTREAM`` command, nothing else.

Protocol (``man clamd``): ``zINSTREAM`` and a NUL, then pieces with their length before each
(four bytes, big endian), then a length of 0; the answer ends in a NUL: ``stream: OK``,
``stream: <name> FOUND`` or ``<text> ERROR``. When the stream is longer than the daemon's
``StreamMaxLength`` it says so and closes, often before all of it was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable
from typing import Final
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
        reader, writer = await self._connect()
        try:
            return _verdict(await self._converse(reader, writer, content))
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(self._timeout_s):
                if self._path:
                    return await asyncio.open_unix_connection(self._path)
                return await asyncio.open_connection(self._host, self._port)
        except OSError as exc:
            raise ClamdFailed(f"no connection: {exc!r}") from exc

    async def _converse(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        content: AsyncIterable[bytes],
    ) -> bytes:
        """Send all of the content, or as much as the daemon takes; return its answer.

        It is listened to meanwhile: once the connection is reset the answer is lost.
        """
        answer = asyncio.ensure_future(reader.read(_LONGEST_REPLY))
        try:
            with contextlib.suppress(_Closed):
                await self._send(writer, b"zINSTREAM\0")
                async for piece in content:
                    for start in range(0, len(piece), _PIECE):
                        part = piece[start : start + _PIECE]
                        await self._send(writer, len(part).to_bytes(4, "big"), part)
                    if answer.done():
                        break
                await self._send(writer, bytes(4))
            async with asyncio.timeout(self._timeout_s):
                return await answer
        except OSError as exc:
            raise ClamdFailed(f"no answer: {exc!r}") from exc
        finally:
            answer.cancel()

    async def _send(self, writer: asyncio.StreamWriter, *parts: bytes) -> None:
        writer.writelines(parts)
        try:
            async with asyncio.timeout(self._timeout_s):
                await writer.drain()
        except TimeoutError:
            raise ClamdFailed("the daemon takes no more bytes") from None
        except OSError:
            raise _Closed from None  # its answer may say why


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
