"""The servers that are compared: ingest, a bare loop, and the peers that can run here.

Peers are ``@tus/server`` (npm), where there is node, and tusd, where there is Go to build it.
Both are pinned by lock files below ``bench/peers``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from redis import Redis

from bench.processes import ROOT, Server, free_port, service, started
from services.embedded_redis import embedded_redis

__all__ = ["NODE", "TusServer", "absences", "bare_loop", "ingest", "peers"]

NODE: Final = "`@tus/server`, never syncs"
_TUSD: Final = "tusd, never syncs"
_PEERS: Final = ROOT / "bench" / "peers"
_BUILT: Final = ROOT / "bench" / "out" / "bin"
_GO: Final = "/usr/local/go/bin"
"""Where Go's own installer puts it, for shells that do not look there."""


class TusServer(NamedTuple):
    """How to run one of them on an empty directory."""

    name: str
    start: Callable[[Path], AbstractContextManager[Server]]
    collection: str
    """Path at which uploads are created; empty if a PATCH to any path will do."""


def ingest(settings: Mapping[str, str] | None = None) -> TusServer:
    """Return ours with a new Redis, its changed settings as part of its name."""
    name = ", ".join(["ingest", *(f"`{k}={v}`" for k, v in (settings or {}).items())])
    return TusServer(name, partial(_ingest, settings), "/api/v1/uploads")


def bare_loop() -> TusServer:
    """Return the bound: the system calls that no server can do without."""
    return TusServer("bound: recv, write, one fdatasync", _bare_loop, "")


def peers() -> list[TusServer]:
    """Return the peers that can run here; ``absences`` explains those that are missing."""
    found = []
    if not _why_no_node():
        found.append(TusServer(NODE, _node_server, "/files"))
    if not _why_no_tusd():
        found.append(TusServer(_TUSD, _tusd, "/files/"))
    return found


def absences() -> list[str]:
    """Return why peers are missing, a sentence for each."""
    return [why for why in (_why_no_node(), _why_no_tusd()) if why]


@functools.cache
def _why_no_node() -> str:
    """Return why ``@tus/server`` cannot run here, or nothing once it is installed."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        return "`@tus/server` was left out: there is no node or npm here."
    if not (_PEERS / "node_modules" / "@tus" / "server").is_dir():
        command = [npm, "ci", "--ignore-scripts"]
        if subprocess.run(command, cwd=_PEERS, capture_output=True, check=False).returncode:
            return "`@tus/server` was left out: `npm ci` failed."
    return ""


@functools.cache
def _why_no_tusd() -> str:
    """Return why tusd cannot run here, or nothing once it is built."""
    if (_BUILT / "tusd").is_file():
        return ""
    go = shutil.which("go", path=f"{os.environ.get('PATH', '')}{os.pathsep}{_GO}")
    if go is None:
        return "tusd was left out: there is no Go here to build it."
    done = subprocess.run(
        [go, "install", "github.com/tus/tusd/v2/cmd/tusd"],
        cwd=_PEERS / "tusd",
        env={**os.environ, "GOBIN": str(_BUILT)},
        capture_output=True,
        check=False,
    )
    return "tusd was left out: `go install` failed." if done.returncode else ""


@contextlib.contextmanager
def _ingest(settings: Mapping[str, str] | None, directory: Path) -> Iterator[Server]:
    with embedded_redis(directory) as url, Redis.from_url(url) as redis:
        redis_pid = int(redis.info("server")["process_id"])
        with service("ingest", url, directory, settings) as server:
            yield server._replace(redis_pid=redis_pid)


@contextlib.contextmanager
def _node_server(directory: Path) -> Iterator[Server]:
    port = free_port()
    argv = ["node", str(_PEERS / "tus_server.mjs"), str(port), str(directory)]
    with started(argv, port) as server:
        yield server


@contextlib.contextmanager
def _tusd(directory: Path) -> Iterator[Server]:
    port = free_port()
    where = ["-host", "127.0.0.1", "-port", str(port), "-upload-dir", str(directory)]
    argv = [str(_BUILT / "tusd"), *where, "-show-greeting=false", "-verbose=false"]
    with started(argv, port, output=subprocess.DEVNULL) as server:  # it logs each request
        yield server


@contextlib.contextmanager
def _bare_loop(directory: Path) -> Iterator[Server]:
    port = free_port()
    argv = [sys.executable, "-m", "bench.bounds.receive", str(port), str(directory)]
    with started(argv, port) as server:
        yield server
