"""Lets bytes go out once somebody has allowed it, and asks only when they are at hand.

What is allowed once is used up by being allowed. So a store that fails before the first byte,
or a process that dies while it waits for it, must not have asked yet.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeAlias, cast

__all__ = ["Claim", "Read", "claim_at_first", "claim_readable"]

Claim: TypeAlias = Callable[[], Awaitable[None]]
"""Refuses by raising."""
Read: TypeAlias = Callable[[int, int], AsyncIterator[bytes]]
"""Yields bytes from an offset, so many."""


async def claim_readable(fd: int, start: int, claim: Claim) -> None:
    """Claim the bytes of a file from an offset on, once the first can be read.

    Raises:
        OSError: It cannot; nothing was claimed.

    """
    own = os.dup(fd)  # the caller may be cancelled, and close its own
    await asyncio.to_thread(_read_and_close, own, start)
    await claim()


def _read_and_close(fd: int, start: int) -> None:
    try:
        os.pread(fd, 1, start)
    finally:
        os.close(fd)


def claim_at_first(read: Read, claim: Claim) -> Read:
    """Return what reads as ``read``, and claims before it gives its first bytes of all.

    It raises what ``claim`` raises, instead of giving any.
    """
    is_claimed = False

    async def claiming(start: int, length: int) -> AsyncIterator[bytes]:
        nonlocal is_claimed
        source = cast("AsyncGenerator[bytes]", read(start, length))
        async with aclosing(source) as pieces:
            async for piece in pieces:
                if not is_claimed:
                    await claim()
                    is_claimed = True
                yield piece

    return claiming
