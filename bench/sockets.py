"""The receiving end of the runs where there is no C compiler; see ``sockets.c``.

Same arguments, same files, but it may well be slower than what it measures: its CPU share
stands in the table.

Usage: ``python -m bench.sockets PORT SPEECH OPENINGS_FILE COUNTS_FILE [LOG_FILE]``
"""

from __future__ import annotations

import mmap
import re
import selectors
import socket
import sys
import time
from pathlib import Path
from typing import Final

_HEAD: Final = (
    "GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{header}\r\n"
)
_CLOSED, _FRAMES, _BEGUN, _OPENED, _EACH = range(5)
_TEXT, _PING, _PONG = 1, 9, 10
_VALUE: Final = re.compile(rb'"bytes_sent":(\d+)')


class Peer:
    """One socket and the part of a frame that has arrived on it."""

    def __init__(self, port: int, speech: str, opening: str) -> None:
        self._speech = speech
        target, _, header = opening.partition("\t")
        header = f"{header}\r\n" if header else ""
        self.socket = socket.create_connection(("127.0.0.1", port), 30)
        self.socket.sendall(_HEAD.format(target=target, port=port, header=header).encode())
        self._rest = b""
        while b"\r\n\r\n" not in self._rest:
            piece = self.socket.recv(4096)
            if not piece:
                raise SystemExit("the handshake was not answered")
            self._rest += piece
        if not self._rest.startswith(b"HTTP/1.1 101"):
            raise SystemExit(f"refused: {self._rest[:60]!r}")
        self._rest = self._rest.partition(b"\r\n\r\n")[2]
        if speech == "centrifugo":
            self._say(_TEXT, b'{"subs":{"bench":{}}}')
        self.socket.setblocking(False)

    def take(self, piece: bytes) -> list[bytes]:
        """Return the text frames that count and are complete with this piece."""
        data, at, found = self._rest + piece, 0, []
        while len(data) - at >= 2:
            size, head = data[at + 1] & 0x7F, 2
            if size >= 126:
                head = 4 if size == 126 else 10
                size = int.from_bytes(data[at + 2 : at + head])
            if len(data) - at < head + size:
                break
            if self._counts(data[at] & 0x0F, payload := data[at + head : at + head + size]):
                found.append(payload)
            at += head + size
        self._rest = data[at:]
        return found

    def _counts(self, opcode: int, payload: bytes) -> bool:
        if opcode == _PING:
            self._say(_PONG, payload)
        if opcode != _TEXT or self._speech == "plain":
            return opcode == _TEXT
        if self._speech == "centrifugo":
            return b'"pub"' in payload
        if payload[:1] == b"0":
            self._say(_TEXT, b"40")
        elif payload == b"2":
            self._say(_TEXT, b"3")
        return payload[:2] == b"42"

    def _say(self, opcode: int, payload: bytes) -> None:
        self.socket.send(bytes((0x80 | opcode, 0x80 | len(payload))) + bytes(4) + payload)


def _words(name: str) -> memoryview:
    with open(name, "r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")


def main(
    port: int, speech: str, openings: list[str], counts: memoryview, log: memoryview
) -> None:
    """Open the sockets, then count until the process is ended."""

    def count(index: int, piece: bytes) -> None:
        for payload in peers[index].take(piece):
            counts[_FRAMES] += 1
            counts[_EACH + index] += 1
            record = 1 + 3 * log[0]
            if record + 3 <= len(log) and (value := _VALUE.search(payload)):
                log[record], log[record + 1] = index, int(value[1])
                log[record + 2] = time.monotonic_ns()
                log[0] += 1

    selector = selectors.DefaultSelector()
    counts[_BEGUN] = time.monotonic_ns()
    peers = [Peer(port, speech, opening) for opening in openings]
    counts[_OPENED] = time.monotonic_ns()
    for index, peer in enumerate(peers):
        selector.register(peer.socket, selectors.EVENT_READ, index)
        count(index, b"")
    print("ready", flush=True)
    while True:
        if len(log) == 1:  # no log; the reason stands in sockets.c
            time.sleep(0.0003)
        for key, _ in selector.select():
            piece = peers[key.data].socket.recv(1 << 18)
            if piece:
                count(key.data, piece)
            else:
                selector.unregister(key.fileobj)
                counts[_CLOSED] += 1


if __name__ == "__main__":
    main(
        int(sys.argv[1]),
        sys.argv[2],
        Path(sys.argv[3]).read_text().splitlines(),
        _words(sys.argv[4]),
        _words(sys.argv[5]) if len(sys.argv) > 5 else memoryview(bytearray(8)).cast("Q"),
    )
