"""The answer for bytes that are there already, against a Redis round trip.

The decision is one question to Redis and a look into memory. The answer is all that a client
waits for: HTTP, the decision, and the record that makes the upload durable. Beside it stand an
answer that does nothing (OPTIONS) and a creation that finds nothing, on the same connection.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench import tables
from bench.machine import settle
from bench.processes import scratch, service
from bench.wire import Connection
from services.embedded_redis import embedded_redis
from services.ingest.dedupe import Dedupe
from shared.blobs.filesystem import FilesystemStore
from shared.streams import command, connect

__all__ = ["report"]

_COLLECTION = "/api/v1/uploads"
_SIZE = 100_000
_TIMES = 300
_WARM = 50


def report(repeat: int) -> str:
    """Measure ``repeat`` times; return the Markdown section."""
    runs = [_measure() for _ in range(repeat)]
    ping = [one["Redis PING, through the same client"] for one in runs]
    rows = [["what", "p50, µs", "x PING"]]
    for name in runs[0]:
        own = [one[name] for one in runs]
        rows.append([name, tables.spread(own), tables.ratio(own, ping)])
    notes = [f"Medians of {_TIMES} in a row, over {repeat} runs. Target: x PING <= 2."]
    return tables.markdown("Duplicates of a declared digest", notes, rows)


def _measure() -> dict[str, float]:
    content = os.urandom(_SIZE)
    sha256 = hashlib.sha256(content).hexdigest()
    with scratch() as data:
        settle()
        with embedded_redis(data) as url, service("ingest", url, data, None) as server:
            client = Connection(server.port)
            client.append(client.create(_COLLECTION, _SIZE), content)
            decision = asyncio.run(_decision(url, data, sha256))
            told = base64.b64encode(sha256.encode()).decode()
            held = {"Upload-Metadata": f"sha256 {told}"}
            answers = {
                "answer that does nothing": _p50(client.discover, _COLLECTION),
                "creation of what is not there": _p50(client.create, _COLLECTION, _SIZE),
                "answer for what is there": _p50(client.create, _COLLECTION, _SIZE, held),
            }
            client.close()
    return {**decision, **answers}


def _p50(job: Callable[..., object], *args: object) -> float:
    took = []
    for _ in range(_WARM + _TIMES):
        begun = time.perf_counter()
        job(*args)
        took.append(time.perf_counter() - begun)
    return statistics.median(took[_WARM:]) * 1e6


async def _decision(url: str, data: Path, sha256: str) -> dict[str, float]:
    """Measure the round trip and the decision, as the service makes them."""
    redis = connect(url)
    store = FilesystemStore(data / "blobs")
    dedupe = Dedupe(redis, store, enabled=True)
    while await _ask(dedupe, sha256) is None:  # until it is entered
        await asyncio.sleep(0.05)
    found = {
        "Redis PING, through the same client": await _p50_of(lambda: command(redis, "PING")),
        "decision": await _p50_of(lambda: _ask(dedupe, sha256)),
    }
    await redis.aclose()
    await store.close()
    return found


def _ask(dedupe: Dedupe, sha256: str) -> Awaitable[object]:
    return dedupe.find("local", sha256, _SIZE, fresh=False)


async def _p50_of(job: Callable[[], Awaitable[object]]) -> float:
    took = []
    for _ in range(_WARM + _TIMES):
        begun = time.perf_counter()
        await job()
        took.append(time.perf_counter() - begun)
    return statistics.median(took[_WARM:]) * 1e6
