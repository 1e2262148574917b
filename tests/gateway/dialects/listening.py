"""What tests hear on a socket, and the parts of it that they compare."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.gateway.dialling import Peer

__all__ = ["heard", "only"]


async def heard(peer: Peer, count: int) -> list[dict[str, Any]]:
    """Return the next messages."""
    return [await peer.hear() for _ in range(count)]


def only(messages: Iterable[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    """Return some members of each message."""
    return [tuple(one.get(name) for name in names) for one in messages]
