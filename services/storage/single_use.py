"""Which links that are good once have been used.

Keys ``file:link:{nonce}`` in Redis, until the link would have expired anyway. While Redis is
away nobody can tell, and such links are refused; a Redis that lost its memory lets those that
have not expired be used once more.
"""

from __future__ import annotations

import secrets
import time
from typing import Final

from redis.asyncio import Redis

from shared.errors import Unavailable
from shared.streams import REDIS_FAILURES, command

__all__ = ["SingleUse"]

_KEPT_LONGER_S: Final = 3600
"""By how much clocks of processes may differ."""


class SingleUse:
    """Lets each link through once, across all processes.

    Args:
        redis: Client made by ``shared.streams.connect``.

    """

    def __init__(self, redis: Redis) -> None:
        self._redis: Final = redis

    async def is_used(self, nonce: bytes) -> bool:
        """Tell whether a link has been used.

        Raises:
            Unavailable: Redis is away.

        """
        try:
            return bool(await command(self._redis, "EXISTS", _key(nonce)))
        except REDIS_FAILURES:
            raise _unknown() from None

    async def claim(self, nonce: bytes, expires_at: int) -> bool:
        """Use a link; return whether this is the first time.

        The client repeats a command whose answer was lost, so what it finds may be its own
        word.

        Raises:
            Unavailable: Redis is away.

        """
        own = secrets.token_bytes(8)
        kept_s = max(expires_at - int(time.time()), 0) + _KEPT_LONGER_S
        try:
            before = await command(
                self._redis, "SET", _key(nonce), own, "NX", "GET", "EX", kept_s
            )
        except REDIS_FAILURES:
            raise _unknown() from None
        return before in {None, own}


def _key(nonce: bytes) -> str:
    return f"file:link:{nonce.hex()}"


def _unknown() -> Unavailable:
    return Unavailable("Whether this link was used cannot be told now.")
