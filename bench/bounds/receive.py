"""Bound of receiving: the syscalls that no server can do without, and nothing else.

Reads the head, then one buffer from the socket to a new file until the length is reached, one
``fdatasync``, then the answer. One connection after another.

Usage: ``python -m bench.bounds.receive PORT DIRECTORY``
"""

from __future__ import annotations

import os
import re
import socket
import sys
import tempfile
from pathlib import Path

_BUFFER = 1 << 20


def _serve_one(connection: socket.socket, directory: Path, buffer: memoryview) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        piece = connection.recv(4096)
        if not piece:
            return
        head += piece
    head, _, begun = head.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    left = int(length[1]) - len(begun) if length else 0
    fd = tempfile.mkstemp(dir=directory)[0]
    try:
        os.write(fd, begun)
        while left:
            got = connection.recv_into(buffer)
            if not got:
                return
            os.write(fd, buffer[:got])
            left -= got
        getattr(os, "fdatasync", os.fsync)(fd)
    finally:
        os.close(fd)
    connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")


def main(port: int, directory: Path) -> None:
    """Serve until the process is ended."""
    buffer = memoryview(bytearray(_BUFFER))
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                _serve_one(connection, directory, buffer)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
