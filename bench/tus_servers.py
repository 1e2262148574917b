"""The tus servers that are compared: ingest and, where node is, ``@tus/server`` (npm)."""

from __future__ import annotations

import contextlib
import functools
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from redis import Redis

from bench.processes import ROOT, Server, free_port, service, started
from services.embedded_redis import embedded_redis

__all__ = ["TusServer", "ingest", "peers", "why_absent"]

_PEERS: Final = ROOT / "bench" / "peers"


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


def peers() -> list[TusServer]:
    """Return the peers that can run here; ``why_absent`` explains an empty list."""
    if why_absent():
        return []
    return [TusServer("`@tus/server`, no sync at all", _node_server, "/files")]


@functools.cache
def why_absent() -> str:
    """Return why the peer cannot run here, or nothing once it is installed."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        return "`@tus/server` was left out: there is no node or npm here."
    if not (_PEERS / "node_modules" / "@tus" / "server").is_dir():
        command = [npm, "ci", "--ignore-scripts"]
        if subprocess.run(command, cwd=_PEERS, capture_output=True, check=False).returncode:
            return "`@tus/server` was left out: `npm ci` failed."
    return ""


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
