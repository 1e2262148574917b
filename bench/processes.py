"""Starts and ends the processes that are measured; knows where they listen, not what they do.

Servers run on one core and the load on another, so that neither takes time from the other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from bench.machine import SERVER_CORE, starting_on

__all__ = ["PARTITIONS", "ROOT", "Server", "free_port", "scratch", "service", "started"]

ROOT: Final = Path(__file__).resolve().parent.parent
PARTITIONS: Final = 16
"""``EVENT_PARTITIONS`` of the services measured; the feed must know it."""

_READY_WITHIN_S: Final = 30.0
_STOP_WITHIN_S: Final = 15.0


class Server(NamedTuple):
    """A process that listens on loopback."""

    pid: int
    port: int
    redis_pid: int = 0
    """Process of the Redis that it alone uses; 0 if there is none."""
    internal: int = 0
    """Where it tells its metrics; 0 if it has none."""


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Yield an empty directory on the disk of the checkout; remove it afterwards.

    Not ``/tmp``: that may be memory, and a store in memory syncs for nothing.
    """
    parent = ROOT / "var" / "bench"
    parent.mkdir(parents=True, exist_ok=True)
    if chattr := shutil.which("chattr"):
        # ext4 then puts each new directory into another part of the disk: deleting the files
        # of one run would slow down the creation of the next one's beside them.
        subprocess.run([chattr, "+T", parent], capture_output=True, check=False)
    path = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def free_port() -> int:
    """Return a port of loopback that nobody listens on at this moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def started(
    argv: Sequence[str],
    port: int,
    *,
    env: Mapping[str, str] | None = None,
    ready_url: str | None = None,
    core: int = SERVER_CORE,
    output: int | None = None,
) -> Iterator[Server]:
    """Run a server until the block ends; enter the block once it answers.

    Args:
        argv: Its command line.
        port: Where it listens.
        env: Variables besides ours.
        ready_url: What it answers 200 once it is ready; else it is when it listens.
        core: Where it runs.
        output: As for ``subprocess.Popen``; what it prints goes where ours does if not given.

    Raises:
        SystemExit: It ended, or does not answer within half a minute.

    """
    with starting_on(core):
        process = subprocess.Popen(
            argv, cwd=ROOT, env={**os.environ, **(env or {})}, stdout=output, stderr=output
        )
    try:
        _wait_until_ready(process, port, ready_url)
        yield Server(process.pid, port)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def service(
    name: str, redis_url: str, data_dir: Path, settings: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run one of our services with every limit out of the way, everything else as shipped."""
    public, internal = free_port(), free_port()
    env = {
        "REDIS_URL": redis_url,
        "DATA_DIR": str(data_dir),
        "PUBLIC_BIND": f"127.0.0.1:{public}",
        "INTERNAL_BIND": f"127.0.0.1:{internal}",
        "AUTH_MODE": "open",
        "EVENT_PARTITIONS": str(PARTITIONS),
        "LOG_LEVEL": "warning",
        "RATE_LIMIT_ENABLED": "false",
        "UPLOAD_MAX_FILE_SIZE": "0",
        "WEBSOCKET_MAX_CONNECTIONS_PER_USER": "100000",
        "WEBSOCKET_MAX_CONNECTIONS_TOTAL": "100000",
        **(settings or {}),
    }
    argv = [sys.executable, "-m", f"services.{name}"]
    ready_url = f"http://127.0.0.1:{internal}/readyz"
    with started(argv, public, env=env, ready_url=ready_url) as server:
        yield server._replace(internal=internal)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, url: str | None) -> None:
    deadline = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} ended with {process.returncode}")
        if _answers(port, url):
            return
        time.sleep(0.05)
    raise SystemExit(f"{process.args!r} is not ready after {_READY_WITHIN_S:.0f} s")


def _answers(port: int, url: str | None) -> bool:
    try:
        if url is None:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False
