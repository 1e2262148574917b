"""Tasks that are neither lost nor silent: jobs as long as their application, and short ones."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog

__all__ = ["TaskSet", "background", "has_died", "stop_process"]

log = structlog.stdlib.get_logger(__name__)

_CANCEL_AGAIN_S: Final = 0.5


_died: Final[list[str]] = []


def has_died() -> bool:
    """Tell whether a job of this process has ended on its own."""
    return bool(_died)


def stop_process() -> None:
    """Ask this process to shut down in good order."""
    os.kill(os.getpid(), signal.SIGTERM)


@asynccontextmanager
async def background(
    name: str, job: Coroutine[Any, Any, None], *, on_death: Callable[[], None] = stop_process
) -> AsyncIterator[None]:
    """Run ``job`` until the context exits, then cancel it and wait for it.

    The job is meant to run forever. If it ends on its own, the process cannot do its work, so
    it stops as a whole and its supervisor starts a fresh one.
    """

    stopping = False

    def notice_death(task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        failure = task.exception()
        if not stopping:
            log.critical("background_job_died", job=name, exc_info=failure)
            _died.append(name)
            on_death()
        elif failure is not None:
            log.error("background_job_failed_at_its_end", job=name, exc_info=failure)

    task = asyncio.create_task(job, name=name)  # noqa: TID251 - the one place
    task.add_done_callback(notice_death)
    try:
        yield
    finally:
        stopping = True
        # Once is not enough: before Python 3.12 asyncio.wait_for, which redis-py sends every
        # command with, swallows a cancellation that comes just as the sending ends.
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_CANCEL_AGAIN_S)


class TaskSet:
    """Short tasks that nobody awaits: kept alive, and a failure is logged."""

    def __init__(self, name: str) -> None:
        self._name: Final = name
        self._tasks: Final[set[asyncio.Task[None]]] = set()

    def start(self, job: Coroutine[Any, Any, None]) -> None:
        """Run ``job`` now, on its own."""
        task = asyncio.create_task(job, name=self._name)  # noqa: TID251 - the one place
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()):
            log.error("task_failed", task=self._name, exc_info=failure)

    async def join(self) -> None:
        """Wait until all are done."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))
