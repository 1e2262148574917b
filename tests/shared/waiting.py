"""Waiting in tests: poll for a state with a limit, run a job beside the test."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

__all__ = ["alongside", "eventually", "stop"]


async def eventually(check: Callable[[], Any], what: str, limit_s: float = 15.0) -> Any:
    """Poll until ``check()``, awaited if need be, is true; return what it said."""
    deadline = time.monotonic() + limit_s
    while True:
        answer = check()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < deadline, f"waited {limit_s} s in vain: {what}"
        await asyncio.sleep(0.01)


async def stop(task: asyncio.Task[None]) -> None:
    """Cancel a job and wait for its end; raise what it died of, if it did before.

    Cancels again and again, as ``shared.lifecycle.background`` does and tells why.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.1)
    if not task.cancelled():
        task.result()


@asynccontextmanager
async def alongside(job: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Run a job for as long as the context lasts."""
    task = asyncio.create_task(job)
    try:
        yield task
    finally:
        await stop(task)
