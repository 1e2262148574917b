"""Bound of fan-out where there is no C compiler: the loop of ``fanout.c`` in Python.

Usage: ``python -m bench.bounds.fanout PORT N PAYLOAD_FILE``
"""

from __future__ import annotations

import socket
import struct
import sys
from pathlib import Path

_ANSWER = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def main(port: int, count: int, payload: bytes) -> None:
    """Accept the sockets, then send to each in turn until one of them is gone."""
    size = len(payload)
    head = bytes((0x81, size)) if size < 126 else struct.pack("!BBH", 0x81, 126, size)
    frame = head + payload
    sockets: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", port), backlog=1024) as listener:
        while len(sockets) < count:
            one, _ = listener.accept()
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if b"\r\n\r\n" in one.recv(4096):
                one.sendall(_ANSWER)
                sockets.append(one)
            else:  # a probe for readiness
                one.close()
        sends = [one.send for one in sockets]
        while True:
            for send in sends:
                send(frame)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]).read_bytes())
    except OSError:
        sys.exit(0)  # the load has ended
