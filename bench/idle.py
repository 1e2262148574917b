"""What sockets cost that do nothing: to open them, and to keep them.

10,000 sockets, five of each user, each watching an upload at which nothing happens; the gateway
with them against the same gateway with none, beside an aiohttp process whose handlers only
wait. *Kernel* is what the kernel's caches (``Slab``) grew by; the clients' ends of the sockets
are in it, too, and weigh the same, and so is whatever else the machine did meanwhile.

*Connects*: how fast these sockets were opened, 64 at a time, each logged in by a token and
given its first message: a second of the clock, and a second of the server's CPU.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from bench import tables
from bench.broadcasters import bounds
from bench.load import Load, opened
from bench.machine import cpu_seconds, resident_bytes, settle, slab_bytes
from bench.payload import lasting, scaled
from bench.processes import Server, scratch, service
from bench.uploads import AUTH, announce, new_uploads, opening
from services.embedded_redis import embedded_redis
from shared.streams import connect

__all__ = ["report"]

_SOCKETS: Final = 10_000
_A_USER: Final = 5
_MOST_REPEATS: Final = 3
_FIRST_MESSAGES_S: Final = 30.0
_REST_S: Final = 2.0
"""After the opening, so that what is freed late is freed."""


class _Before(NamedTuple):
    process: float
    kernel: float
    cpu_s: float


class _Run(NamedTuple):
    """Bytes a socket; connects a second."""

    process: float
    kernel: float
    per_s: float
    per_cpu_s: float
    load: float


def report(repeat: int) -> str:
    """Measure both in turn; return the Markdown section."""
    sockets = scaled(_SOCKETS)
    plain: list[_Run] = []
    ours: list[_Run] = []
    for _ in range(min(repeat, _MOST_REPEATS)):
        settle()
        plain.append(asyncio.run(_plain(sockets)))
        settle()
        ours.append(asyncio.run(_gateway(sockets)))
    return _render({"aiohttp, handlers that wait": plain, "gateway": ours}, sockets)


async def _plain(sockets: int) -> _Run:
    """Measure a server that waits in vain for one socket more before it sends."""
    with scratch() as directory:
        (directory / "payload").write_text("{}")
        async with bounds()[1].start(directory, sockets + 1) as broadcast:
            before = _reading(broadcast.server)
            with opened(broadcast.server.port, ["/"] * sockets, directory) as load:
                return await _costs(broadcast.server, load, before, sockets, messages=0)


async def _gateway(sockets: int) -> _Run:
    users = max(sockets // _A_USER, 1)
    uploads = new_uploads(users, users=users)
    own = [opening(f"/api/v1/ws/{one.upload_id}", one.user_id) for one in uploads]
    openings = [own[n % users] for n in range(sockets)]
    with scratch() as directory, embedded_redis(directory) as url:
        settings = {**AUTH, "WEBSOCKET_MAX_CONNECTIONS_TOTAL": str(sockets + 100)}
        with service("gateway", url, directory, settings) as server:
            redis = connect(url)
            await announce(redis, uploads)
            await redis.aclose()
            await asyncio.sleep(lasting(_REST_S))
            before = _reading(server)
            with opened(server.port, openings, directory) as load:
                return await _costs(server, load, before, sockets, messages=sockets)


async def _costs(
    server: Server, load: Load, before: _Before, sockets: int, *, messages: int
) -> _Run:
    """Wait until all have their first messages; compare."""
    deadline = time.monotonic() + _FIRST_MESSAGES_S
    while load.frames() < messages:
        if time.monotonic() > deadline:
            raise SystemExit(f"{messages - load.frames()} sockets got no first message")
        await asyncio.sleep(0.001)
    took = load.open_for()
    connects_cpu, load_cpu = cpu_seconds(server.pid) - before.cpu_s, cpu_seconds(load.pid)
    await asyncio.sleep(lasting(_REST_S))
    after = _reading(server)
    return _Run(
        process=(after.process - before.process) / sockets,
        kernel=(after.kernel - before.kernel) / sockets,
        per_s=sockets / took,
        per_cpu_s=sockets / connects_cpu if connects_cpu else float("nan"),
        load=load_cpu / took,
    )


def _reading(server: Server) -> _Before:
    return _Before(resident_bytes(server.pid), slab_bytes(), cpu_seconds(server.pid))


def _render(runs: Mapping[str, Sequence[_Run]], sockets: int) -> str:
    head = ["server", "KiB a socket", "kernel, both ends, KiB", "connects/s", "per CPU s"]
    rows = [[*head, "load CPU"]]
    for name, own in runs.items():
        rows.append(
            [
                name,
                tables.spread([one.process / 1024 for one in own], ".1f"),
                tables.spread([one.kernel / 1024 for one in own], ".1f"),
                tables.spread([one.per_s for one in own]),
                tables.spread([one.per_cpu_s for one in own]),
                tables.median([one.load for one in own], ".0%"),
            ]
        )
    notes = [
        f"{sockets:,} sockets, at most {_MOST_REPEATS} rounds; aiohttp's handlers check no "
        "token. Targets: the gateway's KiB a socket <= 16; connects per CPU second >= 1,500. "
        "What the figures mean stands at the top of `bench/idle.py`."
    ]
    return tables.markdown("Idle sockets, and how fast they open", notes, rows)
