"""Downloads of what ingest has stored: from the filesystem beside nginx, from S3 beside a read.

nginx serves the very file that ingest wrote, by sendfile, from one process without a log; ours
has its request log turned off too (its lines are written at another level than is shown). All
servers have one core, the client has the other; its share of that core is told, since a client
at 100 % would be what is measured. The file is in the page cache.

From S3, the object is read by aiobotocore in a process of its own, and through storage by the
same client. Moto's server shares the client's core and is slow itself; the ratio says whether
storage keeps up with it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, NamedTuple

from bench import tables
from bench.load import compiled
from bench.machine import (
    SERVER_CORE,
    cpu_seconds,
    forget_peak,
    peak_bytes,
    resident_bytes,
    settle,
    starting_on,
)
from bench.nginx import nginx, why_no_nginx
from bench.payload import MIB, payload, scaled
from bench.processes import ROOT, Server, scratch, service
from bench.s3 import BUCKET, credentials, s3_server, store_settings
from bench.tus_servers import ingest
from bench.wire import Connection
from services.embedded_redis import embedded_redis

__all__ = ["report"]

_LARGE: Final = 1 << 30
_SMALL: Final = 10 * MIB
_CLIENTS: Final = 64
_SPAN: Final = 64 << 10
_RANGES: Final = 40_000
_AT_ONCE: Final = 16
_FROM_S3: Final = 256 * MIB


class _Scene(NamedTuple):
    """What is asked for."""

    title: str
    target: str
    large: bool
    connections: int
    requests: int
    span: int = 0


class _Run(NamedTuple):
    seconds: float
    size: float
    requests: int
    client_share: float
    cpu_s: float
    growth_mib: float

    @property
    def mb_per_s(self) -> float:
        return self.size / 1e6 / self.seconds

    @property
    def per_s(self) -> float:
        return self.requests / self.seconds


class _Subject(NamedTuple):
    start: Callable[[], AbstractContextManager[Server]]
    path: Callable[[str], str]
    """From the id of a file."""


def report(repeat: int) -> str:
    """Measure all, ``repeat`` times; return the Markdown sections."""
    return f"{_from_files(repeat)}\n{_from_s3(repeat)}"


def _scenes() -> list[_Scene]:
    return [
        _Scene("1 GiB to one client", ">= 0.80", True, 1, 1),
        _Scene("10 MiB to each of 64 clients", ">= 0.70", False, _CLIENTS, _CLIENTS),
        _Scene(
            "random 64 KiB ranges of 1 GiB, 16 clients",
            ">= 0.30",
            True,
            _AT_ONCE,
            scaled(_RANGES),
            _SPAN,
        ),
    ]


def _from_files(repeat: int) -> str:
    rows = [["scene", "server", "MB/s", "requests/s", "x nginx", "target"]]
    rows[0] += ["server CPU s", "growth MiB", "client's core %"]
    with scratch() as data:
        large, small = _stored(data, _LARGE), _stored(data, _SMALL)
        subjects = _subjects(data)
        for scene in _scenes():
            runs: dict[str, list[_Run]] = {name: [] for name in subjects}
            file_id, size = (large, scaled(_LARGE)) if scene.large else (small, scaled(_SMALL))
            for _ in range(repeat):
                for name, subject in subjects.items():
                    with subject.start() as server:
                        path = subject.path(file_id)
                        runs[name].append(_measured(server, scene, path, size, data))
            rows += _rows(scene, runs)
    notes = ["MB = 10⁶ bytes; median (least-greatest).", why_no_nginx()]
    return tables.markdown("Downloads from the filesystem", notes, rows)


def _stored(data: Path, size: int) -> str:
    """Let ingest store a file of so many bytes; return its id."""
    settings = {"ENABLE_DEDUPLICATION": "false"}
    with payload(max(size, 16 * MIB)) as content, ingest(settings).start(data) as server:
        client = Connection(server.port)
        path = client.create("/api/v1/uploads", scaled(size))
        client.append_file(path, content.fd, scaled(size))
        client.close()
    return path.rpartition("/")[2]


def _subjects(data: Path) -> dict[str, _Subject]:
    blobs = data / "blobs"
    found = {}
    if not why_no_nginx():
        found["nginx"] = _Subject(
            lambda: nginx(blobs, data), lambda file_id: f"/{file_id[:2]}/{file_id}"
        )
    found["storage"] = _Subject(lambda: _storage(data), "/api/v1/storage/{}".format)
    return found


@contextlib.contextmanager
def _storage(data: Path, settings: dict[str, str] | None = None) -> Iterator[Server]:
    with embedded_redis(data) as url, service("storage", url, data, settings) as server:
        yield server


def _measured(server: Server, scene: _Scene, path: str, size: int, directory: Path) -> _Run:
    _download(server, path, directory, 1, 1)  # into the page cache, and past what is lazy
    settle()
    idle = resident_bytes(server.pid)
    forget_peak(server.pid)
    cpu = cpu_seconds(server.pid)
    more = (scene.span, size) if scene.span else ()
    took, count, client_cpu = _download(
        server, path, directory, scene.connections, scene.requests, *more
    )
    cpu = cpu_seconds(server.pid) - cpu
    growth = (peak_bytes(server.pid) - idle) / MIB
    return _Run(took, count, scene.requests, 100 * client_cpu / took, cpu, growth)


def _download(server: Server, path: str, directory: Path, *numbers: int) -> list[float]:
    """Run the client; return seconds, bytes, and its seconds of CPU."""
    program = compiled("downloads.c", "bench.downloads", directory)
    argv = [*program, str(server.port), path, *map(str, numbers)]
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit("the downloads failed")
    return [float(one) for one in done.stdout.split()]


def _rows(scene: _Scene, runs: dict[str, list[_Run]]) -> list[list[str]]:
    bound = [one.per_s for one in next(iter(runs.values()))]
    rows = []
    for name, own in runs.items():
        rows.append(
            [
                scene.title,
                name,
                tables.spread([one.mb_per_s for one in own]),
                tables.median([one.per_s for one in own], ",.1f"),
                tables.ratio([one.per_s for one in own], bound),
                scene.target if name == "storage" else "",
                tables.median([one.cpu_s for one in own], ".2f"),
                tables.spread([one.growth_mib for one in own], ".1f"),
                tables.median([one.client_share for one in own], ".0f"),
            ]
        )
    return rows


def _from_s3(repeat: int) -> str:
    runs: dict[str, list[_Run]] = {"bound: aiobotocore": [], "storage": []}
    with scratch() as data, payload(_FROM_S3) as content, s3_server() as url:
        settings = dict(store_settings(url))
        with ingest(settings).start(data) as server:
            client = Connection(server.port)
            path = client.create("/api/v1/uploads", content.size)
            client.append_file(path, content.fd, content.size)
            client.close()
        file_id = path.rpartition("/")[2]
        scene = _Scene("one object", ">= 0.80", True, 1, 1)
        for _ in range(repeat):
            settle()
            runs["bound: aiobotocore"].append(_read(url, file_id))
            with _storage(data, settings) as server:
                path = f"/api/v1/storage/{file_id}"
                runs["storage"].append(_measured(server, scene, path, content.size, data))
    rows = [["subject", "MB/s", "x bound", "CPU s", "growth MiB"]]
    bound = [one.mb_per_s for one in runs["bound: aiobotocore"]]
    for name, own in runs.items():
        speed = [one.mb_per_s for one in own]
        cpu = tables.median([one.cpu_s for one in own], ".2f")
        growth = tables.spread([one.growth_mib for one in own], ".1f")
        rows.append([name, tables.spread(speed), tables.ratio(speed, bound), cpu, growth])
    notes = [f"{content.size // MIB} MiB from moto's server. Target: x bound >= 0.80."]
    return tables.markdown("Downloads through storage from S3", notes, rows)


def _read(url: str, file_id: str) -> _Run:
    """Read the object without storage."""
    argv = [sys.executable, "-m", "bench.bounds.s3_read", url, BUCKET, f"uploads/{file_id}"]
    with starting_on(SERVER_CORE):
        process = subprocess.Popen(
            argv,
            cwd=ROOT,
            env={**os.environ, **credentials("aws")},
            stdout=subprocess.PIPE,
            text=True,
        )
    told, _ = process.communicate()
    if process.returncode:
        raise SystemExit("the plain read failed")
    took, count, cpu = map(float, told.split())
    return _Run(took, count, 1, 0, cpu, float("nan"))
