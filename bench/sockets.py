"""The receiving end of the fan-out runs where there is no C compiler; see ``sockets.c``.

Same arguments, same counts file, but it may well be slower than what it measures: its CPU
share stands in the table.

Usage: ``python -m bench.sockets PORT PATH N COUNTS_FILE``
"""

from __future__ import annotations

import mmap
import selectors
import socket
import sys

_HEAD = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class _Peer:
    """One socket and the part of a frame that has arrived on it."""

    def __init__(self, port: int, path: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 30)
        self.socket.sendall(_HEAD.format(path=path, port=port).encode())
        self.rest = b""
        while b"\r\n\r\n" not in self.rest:
            piece = self.socket.recv(4096)
            if not piece:
                raise SystemExit("the handshake was not answered")
            self.rest += piece
        if not self.rest.startswith(b"HTTP/1.1 101"):
            raise SystemExit(f"refused: {self.rest[:60]!r}")
        self.rest = self.rest.partition(b"\r\n\r\n")[2]
        self.socket.setblocking(False)

    def take(self, piece: bytes) -> int:
        """Return how many text frames are complete with this piece."""
        data, at, frames = self.rest + piece, 0, 0
        while len(data) - at >= 2:
            size, head = data[at + 1] & 0x7F, 2
            if size >= 126:
                head = 4 if size == 126 else 10
                size = int.from_bytes(data[at + 2 : at + head])
            if len(data) - at < head + size:
                break
            frames += data[at] & 0x0F == 1
            at += head + size
        self.rest = data[at:]
        return frames


def main(port: int, path: str, count: int, counts_file: str) -> None:
    """Open the sockets, then count until the process is ended."""
    with open(counts_file, "r+b") as file:
        file.truncate(8 * (2 + count))
        counts = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
    selector = selectors.DefaultSelector()
    peers = [_Peer(port, path) for _ in range(count)]
    for index, peer in enumerate(peers):
        selector.register(peer.socket, selectors.EVENT_READ, index)
        counts[2 + index] = peer.take(b"")
    counts[1] = sum(counts[2:])
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            peer = peers[key.data]
            piece = peer.socket.recv(1 << 18)
            if not piece:
                selector.unregister(peer.socket)
                counts[0] += 1
                continue
            frames = peer.take(piece)
            counts[1] += frames
            counts[2 + key.data] += frames


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4])
