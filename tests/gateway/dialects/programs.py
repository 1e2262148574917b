"""Clients that are programs of their own: started, heard line by line, and ended."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.processes import ROOT

__all__ = ["CLIENTS", "Program", "chromium", "node", "running_program"]

CLIENTS: Final = ROOT / "tests" / "clients"
_LIMIT_S: Final = 60.0


class Program:
    """A program that tells in JSON lines what it sees."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process: Final = process
        self.seen: Final[list[Any]] = []

    async def until(self, enough: Callable[[list[Any]], bool]) -> None:
        """Read on until what it has told is enough."""
        assert self._process.stdout is not None
        while not enough(self.seen):
            line = await self._process.stdout.readline()
            assert line, f"it has ended after {self.seen}"
            self.seen.append(json.loads(line))

    async def has(self, *lines: Any) -> None:
        """Read on until it has told all of these."""
        await self.until(lambda seen: all(one in seen for one in lines))


@asynccontextmanager
async def running_program(*command: str) -> AsyncIterator[Program]:
    """Run a program until the context ends; then its input ends, and it must end well."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    try:
        async with asyncio.timeout(_LIMIT_S):
            yield Program(process)
            process.stdin.close()
            await process.communicate()
        assert process.returncode == 0, command
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def node(package: str) -> str:
    """Return the program node; skip the test if it, or a package for it, is missing."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is missing: make setup-system installs it")
    if not (CLIENTS / "node_modules" / package).is_dir():
        pytest.skip(f"{package} is missing: make setup installs it")
    return found


def chromium() -> str:
    """Return the browser; skip the test if it is missing."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found is not None:
            return str(Path(found))
    pytest.skip("chromium is missing: make setup-system installs it")
