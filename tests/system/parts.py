"""The whole system as separate processes, and what tests use to look at it from outside."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from email.message import Message
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.processes import RedisServer, ServiceProcess, wait_until

__all__ = [
    "CHUNK",
    "COLLECTION",
    "TUS",
    "Answer",
    "System",
    "Watcher",
    "ask",
    "assert_told_in_order",
    "complaints",
    "download",
    "lines_of",
    "running_system",
    "watching",
]

COLLECTION: Final = "/api/v1/uploads"
TUS: Final = {"Tus-Resumable": "1.0.0"}
CHUNK: Final = {**TUS, "Content-Type": "application/offset+octet-stream"}
LIMIT_S: Final = 30.0
PROGRAM_S: Final = 90.0
"""How long a client may take, however busy the machine is."""
MiB: Final = 1024 * 1024


class Answer:
    """One HTTP answer, read."""

    def __init__(self, status: int, headers: Message, body: bytes) -> None:
        self.status: Final = status
        self.headers: Final = headers
        self.body: Final = body

    def __repr__(self) -> str:
        return f"{self.status} {self.body[:200]!r}"

    @property
    def offset(self) -> int:
        """``Upload-Offset``; fails where there is none."""
        return int(self.headers["Upload-Offset"])


def ask(
    method: str, url: str, headers: Mapping[str, str] = {}, body: bytes | None = None
) -> Answer:
    """Send a request and return the answer, whatever its status.

    Raises:
        OSError: There is nobody, or the connection ended before the answer.

    """
    request = urllib.request.Request(url, body, dict(headers), method=method)
    try:
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as refusal:
        with refusal:
            return Answer(refusal.code, refusal.headers, refusal.read())


def download(url: str) -> tuple[int, str]:
    """Fetch a file; return how many bytes it has, and their SHA-256 in hex."""
    seen, size = hashlib.sha256(), 0
    with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:
        while data := answer.read(MiB):
            seen.update(data)
            size += len(data)
    return size, seen.hexdigest()


class System:
    """Ingest, gateway and storage on one Redis and one data folder.

    Args:
        folder: Of the data, the logs and Redis.
        env: Settings of all services.

    """

    def __init__(self, folder: Path, env: Mapping[str, str] = {}) -> None:
        self.data_dir: Final = folder / "data"
        self.redis: Final = RedisServer(folder / "redis", aof=True)
        self._folder: Final = folder
        self._env: Final = {
            "REDIS_URL": self.redis.url,
            "DATA_DIR": str(self.data_dir),
            **env,
        }
        self.ingest: Final = self.service("ingest")
        self.gateway: Final = self.service("gateway")
        self.storage: Final = self.service("storage")
        self._started: Final[list[ServiceProcess]] = []

    def service(self, name: str, log: str = "") -> ServiceProcess:
        """Return one more process of a service; it is not started."""
        return ServiceProcess(name, self._env, self._folder / f"{log or name}.log")

    def start(self, *more: ServiceProcess) -> None:
        """Start Redis, then the services, all at once."""
        self.redis.start()
        self._started.extend([self.ingest, self.gateway, self.storage, *more])
        with ThreadPoolExecutor() as threads:
            list(threads.map(ServiceProcess.start, self._started))

    def kill(self) -> None:
        """Kill all that runs."""
        for one in self._started:
            one.kill()
        self.redis.kill()

    @property
    def started(self) -> list[ServiceProcess]:
        """The services that were started."""
        return self._started

    # Uploads through one process or the other.

    def create(self, size: int, *, at: ServiceProcess | None = None) -> str:
        """Open an upload; return its id."""
        headers = {**TUS, "Upload-Length": str(size)}
        answer = ask("POST", f"{(at or self.ingest).url}{COLLECTION}", headers)
        assert answer.status == 201, answer
        return urlsplit(answer.headers["Location"]).path.rpartition("/")[2]

    def upload_url(self, upload_id: str, at: ServiceProcess | None = None) -> str:
        """Return where an upload is, at one ingest process."""
        return f"{(at or self.ingest).url}{COLLECTION}/{upload_id}"

    def patch(
        self, upload_id: str, offset: int, body: bytes, *, at: ServiceProcess | None = None
    ) -> Answer:
        """Send a chunk."""
        headers = {**CHUNK, "Upload-Offset": str(offset)}
        return ask("PATCH", self.upload_url(upload_id, at), headers, body)

    def offset(self, upload_id: str, *, at: ServiceProcess | None = None) -> int:
        """Return where an upload can be resumed, as HEAD says."""
        answer = ask("HEAD", self.upload_url(upload_id, at), TUS)
        assert answer.status == 200, answer
        return answer.offset

    def received(self, upload_id: str) -> int:
        """Return how many bytes are there, without disturbing who sends them."""
        answer = ask("GET", f"{self.ingest.url}{COLLECTION}/meta/{upload_id}/status")
        assert answer.status == 200, answer
        return int(json.loads(answer.body)["offset"])

    def file_url(self, upload_id: str) -> str:
        """Return where a file can be fetched."""
        return f"{self.storage.url}/api/v1/storage/{upload_id}"

    def progress(self, upload_id: str) -> Answer:
        """Return what the gateway says over HTTP."""
        url = f"{self.gateway.url}/v1/dashboard/upload/progress/{upload_id}"
        return ask("GET", url)

    def progress_status(self, upload_id: str) -> tuple[int, str]:
        """Return the status code of that, and the status in it."""
        answer = self.progress(upload_id)
        status = json.loads(answer.body).get("status") if answer.status == 200 else ""
        return answer.status, status

    def media_url(self, upload_id: str) -> str:
        """Return the socket of dialect media."""
        return f"ws://127.0.0.1:{self.gateway.port}/api/v1/ws/{upload_id}"

    @property
    def dashboard_url(self) -> str:
        """The socket of dialect dashboard, for all of the caller's uploads."""
        return f"ws://127.0.0.1:{self.gateway.port}/ws/upload-progress"

    def traces(self, upload_id: str) -> list[str]:
        """Return the files in the data folder that name an upload."""
        return [str(one) for one in self.data_dir.rglob(f"*{upload_id}*")]

    def assert_gone(self, upload_id: str) -> None:
        """Wait until nothing is left of an upload, and nobody knows it."""
        wait_until(lambda: not self.traces(upload_id), "no file is left", limit_s=20)
        wait_until(lambda: self.progress(upload_id).status == 404, "it is forgotten")
        assert ask("GET", self.file_url(upload_id)).status == 404
        assert ask("HEAD", self.upload_url(upload_id), TUS).status == 404


@contextmanager
def running_system(
    folder: Path, env: Mapping[str, str] = {}, *, ingests: int = 1
) -> Iterator[System]:
    """Run a system as long as the context lasts; its logs must tell of no error.

    Args:
        folder: Emptied of data at the end.
        env: Settings of all services.
        ingests: Processes of ingest; those beyond the first are the last ones started.

    """
    folder.mkdir(parents=True, exist_ok=True)
    system = System(folder, env)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, system.data_dir, ignore_errors=True)
        stack.callback(system.kill)
        system.start(*(system.service("ingest", f"ingest{n}") for n in range(1, ingests)))
        yield system
        for service in system.started:
            assert complaints(service) == []


_COMPLAINTS: Final = (
    *("Traceback", '"exception"', '"level": "error"', '"level": "critical"'),
    *("never retrieved", "never awaited", "Warning:"),
)


def complaints(service: ServiceProcess) -> list[str]:
    """Return the lines of a service's log that tell of an error or an exception."""
    lines = service.log.read_text().splitlines()
    return [line for line in lines if any(mark in line for mark in _COMPLAINTS)]


@asynccontextmanager
async def lines_of(*command: str) -> AsyncIterator[asyncio.StreamReader]:
    """Run a program as long as the context lasts, and yield what it prints.

    It must have ended well when the context ends; it is killed if anything goes wrong.
    """
    program = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert program.stdout is not None
    try:
        async with asyncio.timeout(PROGRAM_S):
            yield program.stdout
            assert await program.wait() == 0, command
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()


class Watcher:
    """One WebSocket, and all that has come through it."""

    def __init__(self, socket: ClientConnection) -> None:
        self.messages: Final[list[dict[str, Any]]] = []
        self.is_open = True
        self._socket: Final = socket
        self._news: Final = asyncio.Condition()

    async def collect(self) -> None:
        """Read to the end."""
        with contextlib.suppress(ConnectionClosed):
            async for text in self._socket:
                async with self._news:
                    self.messages.append(json.loads(text))
                    self._news.notify_all()
        async with self._news:
            self.is_open = False
            self._news.notify_all()

    async def until(self, check: Callable[[list[dict[str, Any]]], Any], what: str) -> None:
        """Return when the messages so far are as wanted; fail after a while."""
        try:
            async with asyncio.timeout(LIMIT_S), self._news:
                await self._news.wait_for(lambda: check(self.messages) or not self.is_open)
        except TimeoutError:
            pass
        assert check(self.messages), f"{what}; open: {self.is_open}; last: {self.messages[-3:]}"

    async def until_complete(self) -> None:
        """Return when the upload, of dialect media, is complete."""
        await self.until(lambda seen: seen and seen[-1]["type"] == "complete", "complete")

    async def until_closed(self) -> None:
        """Return when the server's side has ended."""
        async with asyncio.timeout(LIMIT_S), self._news:
            await self._news.wait_for(lambda: not self.is_open)


@asynccontextmanager
async def watching(url: str) -> AsyncIterator[Watcher]:
    """Watch as long as the context lasts."""
    async with connect(url, proxy=None, open_timeout=LIMIT_S) as socket:
        watcher = Watcher(socket)
        collecting = asyncio.ensure_future(watcher.collect())
        try:
            yield watcher
        finally:
            await socket.close()
            await collecting


def assert_told_in_order(messages: list[dict[str, Any]], size: int) -> None:
    """Check a whole story in dialect media: no way back, one end, 100 percent only there."""
    *before, end = messages
    assert end["type"] == "complete"
    assert (end["progress"], end["bytes_sent"], end["status"]) == (100.0, size, "completed")
    assert all(one["type"] in {"created", "progress"} for one in before), before
    assert all(one["total_size"] == size for one in messages)
    assert all(one["progress"] < 100.0 for one in before)
    positions = [one["bytes_sent"] for one in messages]
    assert positions == sorted(positions)
    percents = [one["progress"] for one in messages]
    assert percents == sorted(percents)
