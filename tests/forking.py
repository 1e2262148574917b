"""Starts Python programs within milliseconds: forks of a process with the libraries loaded.

To load them costs each service more than half a second of a core, which is more than most
tests do with it. What is ours is not loaded before the fork: each program reads its own modules
and settings, as ``python -m`` has it. Where the kernel cannot tell of the end of a process by a
descriptor, programs are started as ever.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

__all__ = ["Started", "start"]

_ROOT: Final = Path(__file__).parents[1]
_LIBRARIES: Final = (
    *("aiohttp.web", "aiohttp_jwt", "blake3", "cryptography.x509", "hiredis", "jwt", "msgspec"),
    *("prometheus_client", "redis.asyncio.cluster", "redis.asyncio.sentinel", "structlog"),
)


class Started(Protocol):
    """A process, as ``subprocess`` has it."""

    @property
    def pid(self) -> int:
        """Its id."""

    def poll(self) -> int | None:
        """Return its exit code, once it has ended."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, so many seconds; return its exit code."""

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""

    def kill(self) -> None:
        """Kill it -9, if it has not ended."""


def start(module: str, env: Mapping[str, str], log: Path) -> Started:
    """Run ``python -m module`` in the project's folder, with exactly this environment.

    Args:
        module: Full name.
        env: All of its environment.
        log: File that its output is appended to.

    """
    if hasattr(os, "pidfd_open"):
        return _Fork(_parent(), module, env, log)
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", module], cwd=_ROOT, env=env, stdout=out, stderr=out
        )


class _Parent:
    """The process whose forks the programs are."""

    def __init__(self) -> None:
        ours, its = socket.socketpair()
        with its:
            self._process: Final = subprocess.Popen(
                [sys.executable, "-m", "tests.forking", str(its.fileno())],
                cwd=_ROOT,
                env={k: v for k, v in os.environ.items() if k in {"PATH", "HOME", "LANG"}},
                stdin=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
            )
        self._socket: Final = ours
        self._answers: Final = ours.makefile("rb")
        self._lock: Final = threading.Lock()

    def ask(self, **question: Any) -> int:
        """Return what it answers."""
        with self._lock:
            self._socket.sendall(json.dumps(question).encode() + b"\n")
            return int(self._answers.readline())

    def end(self) -> None:
        """Let it go; it does not outlive its socket."""
        self._answers.close()
        self._socket.close()
        self._process.wait()


@functools.cache
def _parent() -> _Parent:
    parent = _Parent()
    atexit.register(parent.end)
    return parent


class _Fork:
    """A process whose parent is asked for what only parents know."""

    def __init__(self, parent: _Parent, module: str, env: Mapping[str, str], log: Path) -> None:
        self._parent: Final = parent
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.pid: Final = parent.ask(
            module=module, env=dict(env), log=str(log.absolute()), open_files=limit
        )
        self._end: Final = os.pidfd_open(self.pid)
        self._code: int | None = None
        self._lock: Final = threading.Lock()

    def poll(self) -> int | None:
        """Return its exit code, once it has ended."""
        return self._code_within(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        code = self._code_within(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return code

    def _code_within(self, timeout: float | None) -> int | None:
        with self._lock:
            if self._code is None:
                poll = select.poll()
                poll.register(self._end, select.POLLIN)
                if poll.poll(None if timeout is None else timeout * 1000):
                    self._code = self._parent.ask(reap=self.pid)
                    os.close(self._end)
            return self._code

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        with self._lock:
            if self._code is None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._end, number)

    def kill(self) -> None:
        """Kill it -9."""
        self.send_signal(signal.SIGKILL)


def _serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork whenever asked; return the question in the child, and nothing at the end."""
    for line in control.makefile("rb"):
        question: dict[str, Any] = json.loads(line)
        if reaped := question.get("reap"):
            _, status = os.waitpid(reaped, 0)
            answer = os.waitstatus_to_exitcode(status)
        elif not (answer := os.fork()):
            return question
        control.sendall(b"%d\n" % answer)
    return None


def _become(program: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(program["env"])
    resource.setrlimit(resource.RLIMIT_NOFILE, program["open_files"])
    log = os.open(program["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    del sys.argv[1:]
    runpy.run_module(program["module"], run_name="__main__", alter_sys=True)


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, where it is the tests' own
    for name in _LIBRARIES:
        importlib.import_module(name)
    with socket.socket(fileno=int(sys.argv[1])) as control:
        program = _serve(control)
    if program is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _become(program)


if __name__ == "__main__":
    _main()
