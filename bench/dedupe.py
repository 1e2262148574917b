"""How soon a creation is answered whose bytes the tenant has already: no body is read.

A file is uploaded once with its hash. Then, one request after another over one connection:
creations that declare that hash, each answered as complete; plain creations, which open an
upload; OPTIONS, which touches nothing; and PINGs to the Redis that ingest uses, over a
connection of the same kind. Figures are medians of the round trips that a client sees, so all
but the PING have HTTP in them, and creations the writes that make them durable.
"""

from __future__ import annotations

import base64
import hashlib
import os
import statistics
import time
from collections.abc import Callable
from typing import Final

from redis import Redis

from bench import tables
from bench.machine import settle
from bench.payload import MIB
from bench.processes import scratch, service
from bench.wire import Connection
from services.embedded_redis import embedded_redis

__all__ = ["report"]

_ASKED: Final = 300
_WARM: Final = 50
_COLLECTION: Final = "/api/v1/uploads"
_KNOWN_WITHIN_S: Final = 30.0


def report(repeat: int) -> str:
    """Measure all in turn, ``repeat`` times; return the Markdown section."""
    runs: dict[str, list[float]] = {}
    for _ in range(repeat):
        for name, median_s in _measure().items():
            runs.setdefault(name, []).append(median_s * 1e6)
    ping = next(iter(runs.values()))
    rows = [["round trip", "p50, µs", "x PING"]]
    for name, own in runs.items():
        rows.append([name, tables.spread(own), tables.ratio(own, ping)])
    notes = [
        f"Medians of {_ASKED} round trips a run. Target: a known hash <= 2 x PING, with no "
        "body read."
    ]
    return tables.markdown("Creations whose bytes are there already", notes, rows)


def _measure() -> dict[str, float]:
    """Return the median of each kind of round trip, in seconds."""
    settle()
    settings = {"ENABLE_DEDUPLICATION": "true"}
    with (
        scratch() as data,
        embedded_redis(data) as url,
        Redis.from_url(url) as redis,
        service("ingest", url, data, settings) as server,
    ):
        client = Connection(server.port)
        content = os.urandom(MIB)
        declared = _declaring(content)
        client.append(client.create(_COLLECTION, len(content), declared), content)
        _wait_until_known(client, declared)
        plain = {"Upload-Length": str(len(content))}
        found = {
            "`PING` to Redis": _median(redis.ping),
            "`OPTIONS`": _median(lambda: client.ask("OPTIONS", _COLLECTION, {})),
            "creation with a known hash": _median(lambda: _created(client, declared, MIB)),
            "plain creation": _median(lambda: _created(client, plain, 0)),
        }
        client.close()
    return found


def _declaring(content: bytes) -> dict[str, str]:
    digest = hashlib.sha256(content).hexdigest()
    value = base64.b64encode(digest.encode()).decode()
    return {"Upload-Length": str(len(content)), "Upload-Metadata": f"sha256 {value}"}


def _wait_until_known(client: Connection, declared: dict[str, str]) -> None:
    """Wait until the hash of the first upload has been made and noted."""
    deadline = time.monotonic() + _KNOWN_WITHIN_S
    while client.open(_COLLECTION, declared).headers.get("upload-offset") != str(MIB):
        if time.monotonic() > deadline:
            raise SystemExit("the uploaded file was never recognised by its hash")
        time.sleep(0.05)


def _created(client: Connection, headers: dict[str, str], offset: int) -> None:
    """Create an upload, which must begin at an offset."""
    answer = client.open(_COLLECTION, headers)
    if answer.headers.get("upload-offset", "0") != str(offset):
        raise SystemExit(f"a creation began at another offset than {offset}")


def _median(ask: Callable[[], object]) -> float:
    for _ in range(_WARM):
        ask()
    times = []
    for _ in range(_ASKED):
        begun = time.perf_counter()
        ask()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)
