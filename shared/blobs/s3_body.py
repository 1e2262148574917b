"""What an S3 server sends of an object over one connection.

Connections are few, and whoever reads decides how long one is busy. So a reader that rests
loses it, and may go on over another one; and readers get no more than their share of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

__all__ = ["Body"]

_PIECE: Final = 1024 * 1024
_REST_S: Final = 10.0
"""How long a reader keeps a connection without taking what came over it: longer than one needs
that is only slow."""


class Body:
    """The bytes of one answer. Close it at the end.

    Args:
        slots: Counts the connections that readers have; ``None``: this one is not counted.

    """

    def __init__(self, slots: asyncio.Semaphore | None) -> None:
        self._slots = slots
        self._has_slot = False
        self._source: Any = None

    async def begin(self, call: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        """Wait until a connection may be had, then for the answer; return its fields.

        Raises:
            OSError: As the call.

        """
        if self._slots is not None:
            await self._slots.acquire()
            self._has_slot = True
        answer = await call()
        self._source = answer.pop("Body")
        return answer

    @property
    def closed(self) -> bool:
        """Whether its connection has gone."""
        return self._source is None

    async def read(self) -> bytes:
        """Return the next bytes, at most 1 MiB; none at the end.

        Raises:
            OSError, aiohttp.ClientError: The connection broke.

        """
        chunk: bytes = await self._source.read(_PIECE)
        return chunk

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Close it, and forget what has come, should this take long."""
        timer = asyncio.get_running_loop().call_later(_REST_S, self.close)
        try:
            yield
        finally:
            timer.cancel()

    def close(self) -> None:
        """Let the connection go; twice does no harm."""
        source, self._source = self._source, None
        if source is not None:
            source.close()
        if self._slots is not None and self._has_slot:
            self._has_slot = False
            self._slots.release()
