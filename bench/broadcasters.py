"""Servers that send one event to many sockets, each with its way in: what fan-out compares.

Bounds take no events: they send one frame as often as they can. The gateway and the peers take
theirs from Redis. A peer is run as its own documents start it, and written to in its own way:
Socket.IO (npm) by an entry of its adapter's stream, Django Channels (PyPI) by ``group_send``
from another process, Centrifugo (Go) by its HTTP API. All send the same payload.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import aiohttp
from redis.asyncio import Redis

from bench.feed import Milestones, Positions
from bench.load import compiled
from bench.payload import little
from bench.processes import ROOT, Server, free_port, scratch, service, started
from bench.uploads import AUTH, Upload, announce, new_uploads, opening
from services.embedded_redis import embedded_redis
from shared.streams import command, connect

__all__ = ["Broadcast", "Subject", "bounds", "gateway", "gateway_of_job", "peers"]

_PEERS: Final = ROOT / "bench" / "peers"
_OUT: Final = ROOT / "bench" / "out"
_CHANNELS: Final = _OUT / ".channels"
_GO: Final = "/usr/local/go/bin"
"""Where Go's own installer puts it, for shells that do not look there."""
_CENTRIFUGO: Final = "github.com/centrifugal/centrifugo/v6@latest"


class Broadcast(NamedTuple):
    """A running server, how its sockets are opened, and how an event gets to all of them."""

    server: Server
    openings: list[str]
    add: Callable[[], Awaitable[None]] | None = None
    """Writes the next event; ``None`` if the server needs none."""
    speech: str = "plain"
    uploads: int = 1
    """Frames that one event makes on each socket."""


Start = Callable[[Path, int], AbstractAsyncContextManager[Broadcast]]
"""Takes a directory with the payload in ``payload``, and the number of sockets to come."""


class Subject(NamedTuple):
    """One of them, or why it is not here."""

    name: str
    start: Start
    absence: str = ""


def bounds() -> list[Subject]:
    """Return what sends without being told."""
    plain = (sys.executable, "-m", "bench.bounds.send_str")
    return [
        Subject("bound: one `send()` a frame", partial(_bound, None)),
        Subject("aiohttp, `await ws.send_str`", partial(_bound, plain)),
    ]


@asynccontextmanager
async def _bound(
    program: tuple[str, ...] | None, directory: Path, sockets: int
) -> AsyncIterator[Broadcast]:
    port = free_port()
    argv = program or compiled("bounds/fanout.c", "bench.bounds.fanout", directory)
    command_line = [*argv, str(port), str(sockets), str(directory / "payload")]
    with started(command_line, port) as server:
        yield Broadcast(server, ["/"] * sockets)


@asynccontextmanager
async def gateway(
    path: str, uploads: int, directory: Path, sockets: int
) -> AsyncIterator[Broadcast]:
    """Run ours with one user's uploads; ``{}`` in the path stands for the first one's id."""
    own = new_uploads(uploads)
    async with _gateway(own, sockets) as (server, redis):
        target = opening(path.format(own[0].upload_id), own[0].user_id)
        positions = Positions(redis, [one.upload_id for one in own])
        yield Broadcast(server, [target] * sockets, positions.add, uploads=uploads)


@asynccontextmanager
async def _gateway(
    uploads: Sequence[Upload], sockets: int
) -> AsyncIterator[tuple[Server, Redis]]:
    """Run ours with room for so many sockets, until it knows the uploads; yield its Redis."""
    with scratch() as data, embedded_redis(data) as url:
        settings = {**AUTH, "WEBSOCKET_MAX_CONNECTIONS_TOTAL": str(sockets + 100)}
        with service("gateway", url, data, settings) as server:
            redis = connect(url)
            await announce(redis, uploads)
            yield server, redis
            await redis.aclose()


@asynccontextmanager
async def gateway_of_job(directory: Path, sockets: int) -> AsyncIterator[Broadcast]:
    """Run ours with a job whose lifecycle events go to all sockets: none may be thinned."""
    own = new_uploads(1)
    async with _gateway(own, sockets) as (server, redis):
        target = opening(f"/progress/ws/{own[0].job_id}", own[0].user_id)
        yield Broadcast(server, [target] * sockets, Milestones(redis, own[0]).add)


def peers() -> list[Subject]:
    """Return the servers of others, in the order of the table."""
    channels = _why_no_channels()
    return [
        Subject("Socket.IO, Redis Streams adapter", _socketio, _why_no_socketio()),
        Subject("Django Channels, core layer", partial(_channels, "core"), channels),
        Subject("Django Channels, pubsub layer", partial(_channels, "pubsub"), channels),
        Subject("Centrifugo, Redis engine", _centrifugo, _why_no_centrifugo()),
    ]


@functools.cache
def _why_no_socketio() -> str:
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        return "there is no node or npm here"
    if not (_PEERS / "node_modules" / "socket.io").is_dir():
        return _failed([npm, "ci", "--ignore-scripts"], _PEERS)
    return ""


@functools.cache
def _why_no_channels() -> str:
    if (_CHANNELS / "bin" / "uvicorn").exists():
        return ""
    wanted = ["--require-hashes", "-r", str(_PEERS / "channels" / "requirements.txt")]
    return _failed([sys.executable, "-m", "venv", str(_CHANNELS)], ROOT) or _failed(
        [str(_CHANNELS / "bin" / "pip"), "install", "-q", *wanted], ROOT
    )


@functools.cache
def _why_no_centrifugo() -> str:
    if (_OUT / "bin" / "centrifugo").is_file():
        return ""
    go = shutil.which("go", path=f"{os.environ.get('PATH', '')}{os.pathsep}{_GO}")
    if go is None:
        return "there is no Go here to build it"
    return _failed([go, "install", _CENTRIFUGO], ROOT, GOBIN=str(_OUT / "bin"))


def _failed(argv: list[str], where: Path, **env: str) -> str:
    """Fetch or build a peer; return what went wrong, or nothing."""
    if little():
        return "nothing is fetched where little is to be done"
    try:
        done = subprocess.run(
            argv,
            cwd=where,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"`{Path(argv[0]).name} {argv[1]}` failed: {exc}"
    if not done.returncode:
        return ""
    last = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1].strip()
    return f"`{Path(argv[0]).name} {argv[1]}` failed: {last}"


@asynccontextmanager
async def _socketio(directory: Path, sockets: int) -> AsyncIterator[Broadcast]:
    port = free_port()
    packet = {
        "type": 2,
        "data": ["progress", json.loads((directory / "payload").read_text())],
        "nsp": "/",
    }
    data = json.dumps({"packet": packet, "opts": {"rooms": ["bench"], "except": []}})
    fields = ("uid", "bench", "nsp", "/", "type", "3", "data", data)
    with scratch() as home, embedded_redis(home) as url:
        argv = ["node", str(_PEERS / "socketio.mjs"), str(port), url.removeprefix("unix://")]
        env = {"NODE_ENV": "production"}
        with started(argv, port, env=env, output=subprocess.DEVNULL) as server:
            redis = connect(url)

            async def add() -> None:
                await command(redis, "XADD", "socket.io", "MAXLEN", "~", 10000, "*", *fields)

            openings = ["/socket.io/?EIO=4&transport=websocket"] * sockets
            yield Broadcast(server, openings, add, "socketio")
            await redis.aclose()


@asynccontextmanager
async def _channels(layer: str, directory: Path, sockets: int) -> AsyncIterator[Broadcast]:
    port, python = free_port(), str(_CHANNELS / "bin" / "python")
    home = _PEERS / "channels"
    with scratch() as data, embedded_redis(data) as url:
        argv = [python, str(home / "server.py"), str(port), layer, url]
        feed = [python, str(home / "feed.py"), layer, url, str(directory / "payload")]
        with (
            started(argv, port, output=subprocess.DEVNULL) as server,  # it moans at its end
            subprocess.Popen(feed, stdin=subprocess.PIPE) as feeder,
        ):

            async def add() -> None:
                if feeder.stdin is not None:
                    feeder.stdin.write(b"\n")
                    feeder.stdin.flush()

            yield Broadcast(server, ["/"] * sockets, add)
            feeder.communicate()


@asynccontextmanager
async def _centrifugo(directory: Path, sockets: int) -> AsyncIterator[Broadcast]:
    port = free_port()
    body = {"channel": "bench", "data": json.loads((directory / "payload").read_text())}
    with scratch() as home, embedded_redis(home) as url:
        config = {
            "http_server": {"address": "127.0.0.1", "port": str(port)},
            "engine": {"type": "redis", "redis": {"address": url}},
            "http_api": {"insecure": True},
            "client": {"insecure": True, "allowed_origins": ["*"]},
            "uni_websocket": {"enabled": True},
            "log": {"level": "error"},
        }
        (home / "config.json").write_text(json.dumps(config))
        argv = [str(_OUT / "bin" / "centrifugo"), "-c", str(home / "config.json")]
        with started(argv, port, output=subprocess.DEVNULL) as server:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

                async def add() -> None:
                    async with session.post("/api/publish", json=body) as answer:
                        answer.raise_for_status()

                openings = ["/connection/uni_websocket"] * sockets
                yield Broadcast(server, openings, add, "centrifugo")
