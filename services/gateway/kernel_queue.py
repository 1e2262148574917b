"""What the kernel may hold for a socket whose client does not read."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from typing import Final

__all__ = ["keep_kernel_queue_short"]

_UNSENT_LOW_WATER: Final = 16 * 1024
"""Bytes the kernel takes ahead of the network. Unbounded, a client that stopped reading
swallows 4 MB of progress that is stale by the time it is read."""


def keep_kernel_queue_short(transport: asyncio.WriteTransport) -> None:
    """Have the kernel take little from now on that the network has not taken yet."""
    option = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if sys.platform == "linux" else 0x201)
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
        with contextlib.suppress(OSError):  # the client has gone
            sock.setsockopt(socket.IPPROTO_TCP, option, _UNSENT_LOW_WATER)
