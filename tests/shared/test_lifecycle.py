"""Jobs that live as long as their application, and short ones that nobody awaits."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from shared.lifecycle import TaskSet, background, stop_process
from tests.shared.waiting import eventually


class Deaths:
    """Counts how often a job's death was told."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture(autouse=True)
def fresh_logger(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the logs be captured, whatever was configured and cached before."""
    before = structlog.get_config()
    structlog.reset_defaults()
    monkeypatch.setattr("shared.lifecycle.log", structlog.stdlib.get_logger())
    yield
    structlog.configure(**before)


async def forever() -> None:
    """Do nothing, without end."""
    await asyncio.Event().wait()


async def test_a_job_lives_as_long_as_its_context() -> None:
    """It runs from the beginning, and has ended when the context has."""
    steps: list[str] = []

    async def job() -> None:
        steps.append("begun")
        try:
            await forever()
        finally:
            await asyncio.sleep(0.01)
            steps.append("ended")

    deaths = Deaths()
    async with background("job", job(), on_death=deaths):
        await asyncio.sleep(0)
        assert steps == ["begun"]
    assert steps == ["begun", "ended"]
    assert deaths.count == 0


async def test_a_job_that_fails_takes_its_process_along() -> None:
    """Its death is told once, with the reason in the log."""

    async def job() -> None:
        raise ValueError("a fault of ours")

    deaths = Deaths()
    with capture_logs() as logs:
        async with background("fragile", job(), on_death=deaths):
            await eventually(lambda: deaths.count, "the death is told")
    assert deaths.count == 1
    assert [(one["event"], one["job"], one["log_level"]) for one in logs] == [
        ("background_job_died", "fragile", "critical")
    ]
    assert str(logs[0]["exc_info"]) == "a fault of ours"


async def test_a_job_that_ends_takes_its_process_along() -> None:
    """It is meant to run forever."""

    async def job() -> None:
        return

    deaths = Deaths()
    with capture_logs():
        async with background("short", job(), on_death=deaths):
            await eventually(lambda: deaths.count, "the death is told")
    assert deaths.count == 1


async def test_an_error_in_the_context_ends_the_job_too() -> None:
    """And it reaches the caller as it was."""
    ended = asyncio.Event()

    async def job() -> None:
        try:
            await forever()
        finally:
            ended.set()

    async def use() -> None:
        async with background("job", job(), on_death=Deaths()):
            await asyncio.sleep(0)
            raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        await use()
    assert ended.is_set()


async def test_a_cancellation_that_was_swallowed_is_repeated() -> None:
    """A library may take one for its own; the shutdown must not wait forever for that."""
    swallowed = 0

    async def job() -> None:
        nonlocal swallowed
        while swallowed < 1:
            try:
                await forever()
            except asyncio.CancelledError:
                swallowed += 1
        await forever()

    deaths = Deaths()
    async with asyncio.timeout(10), background("deaf", job(), on_death=deaths):
        await asyncio.sleep(0)
    assert swallowed == 1
    assert deaths.count == 0


async def swallow() -> None:
    """End in good order when cancelled."""
    try:
        await forever()
    except asyncio.CancelledError:
        return


async def fail_at_the_end() -> None:
    """Fail when cancelled."""
    try:
        await forever()
    finally:
        raise OSError("cannot close")


@pytest.mark.parametrize(
    ("job", "told"),
    [(swallow, []), (fail_at_the_end, ["background_job_failed_at_its_end"])],
)
async def test_an_end_that_was_asked_for_is_no_death(
    job: Callable[[], Any], told: list[str]
) -> None:
    """A second signal would cut the shutdown short, so none is sent."""
    deaths = Deaths()
    with capture_logs() as logs:
        async with background("job", job(), on_death=deaths):
            await asyncio.sleep(0)
    assert deaths.count == 0
    assert [one["event"] for one in logs] == told


async def test_a_process_is_stopped_like_any_supervisor_would() -> None:
    """By SIGTERM, so that it ends in good order."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    try:
        stop_process()
        async with asyncio.timeout(5):
            await told.wait()
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def test_short_tasks_are_kept_and_joined() -> None:
    """None is lost to the garbage collector, and those started meanwhile are waited for."""
    done: list[int] = []
    tasks = TaskSet("short")

    async def job(number: int) -> None:
        await asyncio.sleep(0.01)
        if number < 10:
            tasks.start(job(number + 10))
        done.append(number)

    for number in range(10):
        tasks.start(job(number))
    gc.collect()
    await tasks.join()
    assert sorted(done) == list(range(20))
    await tasks.join()


async def test_a_short_task_that_fails_is_logged() -> None:
    """Nobody awaits it, so nobody else would know; the others go on."""
    done: list[bool] = []

    async def fail() -> None:
        raise ValueError("a fault of ours")

    async def work() -> None:
        await asyncio.sleep(0.01)
        done.append(True)

    tasks = TaskSet("marks")
    with capture_logs() as logs:
        tasks.start(fail())
        tasks.start(work())
        await tasks.join()
    assert done == [True]
    assert [(one["event"], one["task"], one["log_level"]) for one in logs] == [
        ("task_failed", "marks", "error")
    ]
