"""Runs a test on both event loops: the standard library's, and the one that services use."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest
import uvloop

__all__ = ["on_both_loops"]

_LOOPS: Final = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Turn a test that awaits into one that runs a loop of each kind.

    Fixtures that await would run on another loop: such a test must do without.
    """

    def run(*, loop_name: str, **others: Any) -> None:
        with asyncio.Runner(loop_factory=_LOOPS[loop_name]) as runner:
            runner.run(_awaited(test, others))

    loop_name = inspect.Parameter("loop_name", inspect.Parameter.KEYWORD_ONLY)
    others = [
        one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for one in inspect.signature(test).parameters.values()
    ]
    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    run.__signature__ = inspect.Signature([loop_name, *others])  # type: ignore[attr-defined]
    both: Callable[..., None] = pytest.mark.parametrize("loop_name", sorted(_LOOPS))(run)
    return both


async def _awaited(test: Callable[..., Awaitable[None]], others: dict[str, Any]) -> None:
    await test(**others)
