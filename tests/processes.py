"""Real processes for tests: Redis servers and services, started, watched and killed by pid."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from services.embedded_redis import find_server
from tests.forking import Started, start

ROOT: Final = Path(__file__).parents[1]
READY_S: Final = 30.0


_PORTS: Final = range(10_000, 20_000)
"""Below those that the kernel gives to whoever connects somewhere: one of these, found free and
bound a moment later, may be the near end of somebody's connection by then."""
_WORKERS: Final = 16
_worker: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
_own_ports: Final = _PORTS[_worker::_WORKERS]
_turns: Final = itertools.count(random.SystemRandom().randrange(len(_own_ports)))


def free_port() -> int:
    """Return a port that nobody listens on, and that no other worker of these tests gets.

    It is not returned again for as long as there are others.
    """
    while True:
        port = _own_ports[next(_turns) % len(_own_ports)]
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def debian_redis() -> Path | None:
    """Return Debian's Redis 7.0, the oldest server that the bus must work on."""
    found = shutil.which("redis-server")
    return Path(found) if found else None


class RedisServer:
    """A Redis on a TCP port of its own, with its data in ``folder``; it can be killed."""

    def __init__(self, folder: Path, *, binary: Path | None = None, aof: bool = False) -> None:
        self.port: Final = free_port()
        self.url: Final = f"redis://127.0.0.1:{self.port}/0"
        folder.mkdir(parents=True, exist_ok=True)
        self._command: Final = [
            *(str(binary or find_server()), "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--dir", str(folder), "--save", "", "--appendonly", "yes" if aof else "no"),
            *("--appendfsync", "everysec", "--loglevel", "warning"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._answers, "Redis answers")

    def _answers(self) -> bool:
        where = ("127.0.0.1", self.port)
        with contextlib.suppress(OSError), socket.create_connection(where, timeout=1) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith(b"+PONG")
        return False

    def signal(self, number: int) -> None:
        """Send a signal to the server."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it -9, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class ServiceProcess:
    """One service as its own process, with free ports; its log goes to a file."""

    def __init__(self, name: str, env: Mapping[str, str], log: Path) -> None:
        self.name: Final = name
        self.port: Final = free_port()
        self.internal_port: Final = free_port()
        self.url: Final = f"http://127.0.0.1:{self.port}"
        self.internal_url: Final = f"http://127.0.0.1:{self.internal_port}"
        self.log: Final = log
        self._env: Final = {
            **{k: v for k, v in os.environ.items() if k in {"PATH", "HOME", "LANG", "TMPDIR"}},
            "PUBLIC_BIND": f"127.0.0.1:{self.port}",
            "INTERNAL_BIND": f"127.0.0.1:{self.internal_port}",
            "AUTH_MODE": "open",
            "LOG_FORMAT": "json",
            **env,
        }
        self._process: Started | None = None

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self._process = start(f"services.{self.name}", self._env, self.log)
        wait_until(self._ready, f"{self.name} is ready", self.tail)

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.tail()
        url = f"{self.internal_url}/readyz"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
        return False

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_text()[-2000:]

    def kill(self) -> None:
        """Kill it -9, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def terminate(self, timeout_s: float = 30) -> int:
        """Send SIGTERM; return the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(timeout_s)
        self._process = None
        return code

    def memory(self) -> int:
        """Return resident memory in bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")


@contextlib.contextmanager
def running(*parts: RedisServer | ServiceProcess) -> Iterator[None]:
    """Start the parts in order; kill them all at the end."""
    try:
        for part in parts:
            part.start()
        yield
    finally:
        for part in reversed(parts):
            part.kill()


def wait_until(
    check: object, what: str, explain: object = None, limit_s: float = READY_S
) -> None:
    """Poll until ``check()`` is true; fail with ``what`` after the limit (seconds)."""
    assert callable(check)
    deadline = time.monotonic() + limit_s
    while not check():
        if time.monotonic() > deadline:
            more = explain() if callable(explain) else ""
            raise AssertionError(f"waited {limit_s} s in vain: {what}\n{more}")
        time.sleep(0.02)
