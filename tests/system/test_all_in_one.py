"""``python -m services``: everything on one port, started with nothing and ended in any way."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final, cast

import pytest
import redis

from tests.processes import ROOT, free_port, wait_until
from tests.system.parts import (
    CHUNK,
    COLLECTION,
    TUS,
    MiB,
    ask,
    assert_told_in_order,
    download,
    watching,
)

CONTENT: Final = os.urandom(3 * MiB + 1)
STOPPED_S: Final = 15.0
"""Longer than an orderly end takes on a busy machine."""


class Everything:
    """One ``python -m services``, with nothing in its environment but what is given.

    Args:
        folder: Of the data, the home and the logs.
        env: Settings besides the ports and the data folder.

    """

    def __init__(self, folder: Path, env: Mapping[str, str] = {}) -> None:
        self.port: Final = free_port()
        self.url: Final = f"http://127.0.0.1:{self.port}"
        self.internal_port: Final = free_port()
        self.data_dir: Final = folder / "data"
        self.home: Final = folder / "home"
        self.home.mkdir(exist_ok=True)
        self._out: Final = folder / "stdout"
        self._err: Final = folder / "stderr"
        self._env: Final = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.home),
            "DATA_DIR": str(self.data_dir),
            "PUBLIC_BIND": f"127.0.0.1:{self.port}",
            "INTERNAL_BIND": f"127.0.0.1:{self.internal_port}",
            **env,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start it, and do not wait."""
        command = [sys.executable, "-W", "error", "-m", "services", *arguments]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=self._env, stdout=out, stderr=err
            )
        return self._process

    def start(self) -> None:
        """Start it and wait until it says where it is."""
        process = self.spawn()
        wait_until(lambda: self.url in self.stdout or process.poll() is not None, "it is up")
        assert process.poll() is None, self.stderr

    @property
    def stdout(self) -> str:
        """What it has printed."""
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        """What it has complained about."""
        return self._err.read_text()

    def refused(self) -> str:
        """Start it where it cannot start; return the one line that says why."""
        code = self.spawn().wait(60)
        lines = self.stderr.splitlines()
        assert (code, len(lines)) == (2, 1), (code, self.stderr)
        assert "Traceback" not in self.stdout
        assert f"curl -i -X POST {self.url}" not in self.stdout, "it claims to serve"
        assert lines[0].startswith("error: ")
        return lines[0]

    def signal(self, number: int) -> int:
        """Send it a signal; return its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(STOPPED_S)

    def kill(self) -> None:
        """Kill it -9, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def redis_pid(self) -> int:
        """Return the pid of its Redis."""
        path = self.data_dir / "redis" / "redis.sock"
        client = redis.Redis(unix_socket_path=str(path), decode_responses=True)
        try:
            info = client.info("server")
            return int(cast("dict[str, str]", info)["process_id"])
        finally:
            client.close()

    def upload(self, content: bytes) -> str:
        """Upload a file with one POST; return its id."""
        headers = {**CHUNK, "Upload-Length": str(len(content))}
        answer = ask("POST", f"{self.url}{COLLECTION}", headers, content)
        assert (answer.status, answer.offset) == (201, len(content)), answer
        return str(answer.headers["Location"]).rpartition("/")[2]

    def file_url(self, file_id: str) -> str:
        """Return where a file can be fetched."""
        return f"{self.url}/api/v1/storage/{file_id}"

    def progress(self, upload_id: str) -> tuple[int, str]:
        """Return status code and status of the progress of an upload."""
        answer = ask("GET", f"{self.url}/v1/dashboard/upload/progress/{upload_id}")
        return answer.status, json.loads(answer.body).get("status", "")


Start = Callable[..., Everything]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Start]:
    """Make systems in the test's folder; what runs of them in the end is killed."""
    with ExitStack() as stack:

        def make_one(**env: str) -> Everything:
            one = Everything(tmp_path, env)
            stack.callback(one.kill)
            return one

        yield make_one


@pytest.fixture
def started(make: Start) -> Everything:
    """A system that runs."""
    one = make()
    one.start()
    return one


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_whole_path_on_one_port(started: Everything) -> None:
    """Upload, watch, download and delete work right after the start, with nothing set."""
    headers = {**TUS, "Upload-Length": str(len(CONTENT))}
    created = ask("POST", f"{started.url}{COLLECTION}", headers)
    location = str(created.headers["Location"])
    assert location.startswith(f"{started.url}{COLLECTION}/")
    upload_id = location.rpartition("/")[2]
    async with watching(f"{started.url}/api/v1/ws/{upload_id}".replace("http", "ws")) as seen:
        chunk = {**CHUNK, "Upload-Offset": "0"}
        answer = await asyncio.to_thread(ask, "PATCH", location, chunk, CONTENT)
        assert answer.status == 204
        await seen.until_complete()
        assert_told_in_order(seen.messages, len(CONTENT))
    url = started.file_url(upload_id)
    assert download(url) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert ask("DELETE", url).status == 204
    assert ask("GET", url).status == 404
    wait_until(lambda: started.progress(upload_id)[0] == 404, "it is forgotten")
    assert list(started.home.iterdir()) == []
    assert started.stderr == ""


def test_commands_of_the_banner(started: Everything, tmp_path: Path) -> None:
    """The lines that it prints to try work as they stand, but for the id."""
    (tmp_path / "README.md").write_bytes(CONTENT)
    text = started.stdout
    upload, form, progress, fetch = re.findall(r"^  (curl .*)$", text, re.MULTILINE)

    ids = []
    for line in (upload, form):
        posted = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, check=True)
        answer = json.loads(posted.stdout)
        ids.append(answer.get("data", answer)["upload_id"])
    upload_id = ids[0]
    assert len(set(ids)) == 2
    shown, _ = (
        subprocess.run(
            line.replace("ID", upload_id),
            shell=True,
            cwd=tmp_path,
            capture_output=True,
            check=True,
        )
        for line in (progress, fetch)
    )

    assert json.loads(shown.stdout)["status"] == "completed"
    assert (tmp_path / "download").read_bytes() == CONTENT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_orderly_end(started: Everything, number: int) -> None:
    """A signal ends everything, Redis too, with exit code 0 and no complaint."""
    file_id, server = started.upload(CONTENT), started.redis_pid()

    code = started.signal(number)

    assert (code, started.stderr) == (0, "")
    assert is_gone(server)
    assert "Traceback" not in started.stdout
    started.start()
    assert download(started.file_url(file_id))[0] == len(CONTENT)


def test_killed(started: Everything) -> None:
    """After SIGKILL nothing goes on running, and the next start has all of the data."""
    file_id, server = started.upload(CONTENT), started.redis_pid()
    headers = {**TUS, "Upload-Length": str(len(CONTENT))}
    unfinished = str(ask("POST", f"{started.url}{COLLECTION}", headers).headers["Location"])
    half = {**CHUNK, "Upload-Offset": "0"}
    assert ask("PATCH", unfinished, half, CONTENT[:MiB]).offset == MiB

    started.kill()

    wait_until(lambda: is_gone(server), "Redis is gone", limit_s=10)
    started.start()
    # What the gateway had read, but not recorded, is told again.
    wait_until(lambda: started.progress(file_id) == (200, "completed"), "it is recorded")
    assert download(started.file_url(file_id))[1] == hashlib.sha256(CONTENT).hexdigest()
    assert ask("HEAD", unfinished, TUS).offset == MiB
    rest = {**CHUNK, "Upload-Offset": str(MiB)}
    assert ask("PATCH", unfinished, rest, CONTENT[MiB:]).offset == len(CONTENT)


def test_end_with_sockets_and_uploads(started: Everything) -> None:
    """Whoever is connected does not hold up the end; what has arrived is kept."""
    headers = {**TUS, "Upload-Length": str(len(CONTENT))}
    location = str(ask("POST", f"{started.url}{COLLECTION}", headers).headers["Location"])
    path = location.removeprefix(started.url)
    idle = socket.create_connection(("127.0.0.1", started.port))
    busy = socket.create_connection(("127.0.0.1", started.port))
    with idle, busy:
        head = "\r\n".join(
            [
                f"PATCH {path} HTTP/1.1",
                "Host: 127.0.0.1",
                *(f"{name}: {value}" for name, value in CHUNK.items()),
                f"Upload-Offset: 0\r\nContent-Length: {len(CONTENT)}\r\n\r\n",
            ]
        )
        busy.sendall(head.encode() + CONTENT[:MiB])
        status = f"{started.url}{COLLECTION}/meta/{location.rpartition('/')[2]}/status"
        wait_until(
            lambda: json.loads(ask("GET", status).body)["offset"] == MiB, "it has arrived"
        )
        began = time.monotonic()

        code = started.signal(signal.SIGTERM)

        assert (code, started.stderr) == (0, "")
        assert time.monotonic() - began < 10
    started.start()
    assert ask("HEAD", location, TUS).offset == MiB


# What keeps it from starting.


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        pytest.param("PUBLIC_BIND", "8080", "PUBLIC_BIND='8080'", id="no-host"),
        pytest.param("PUBLIC_BIND", "127.0.0.1:99999", "PUBLIC_BIND=", id="no-port"),
        pytest.param("PUBLIC_BIND", "192.0.2.1:80", "AUTH_MODE=open", id="not-local"),
        pytest.param("PUBLIC_BIND", "0.0.0.0:0", "AUTH_MODE=open", id="everywhere"),
        pytest.param("AUTH_MODE", "off", "AUTH_MODE='off'", id="unknown-mode"),
        pytest.param("AUTH_MODE", "required", "AUTH_JWT_SECRET", id="no-secret"),
        pytest.param("UPLOAD_FSYNC", "sometimes", "UPLOAD_FSYNC='sometimes'", id="unknown"),
        pytest.param("PROGRESS_TTL_SECONDS", "soon", "PROGRESS_TTL_SECONDS='soon'", id="text"),
        pytest.param("WEBSOCKET_PING_INTERVAL", "-1", "WEBSOCKET_PING_INTERVAL=", id="range"),
        pytest.param("CORS_ALLOWED_ORIGINS", "example.org", "CORS_ALLOWED", id="origin"),
        pytest.param("TRUSTED_PROXIES", "10.0.0.0/99", "TRUSTED_PROXIES", id="network"),
        pytest.param("REDIS_URL", "http://127.0.0.1", "REDIS_URL=http:", id="redis-scheme"),
        pytest.param("REDIS_URL", "redis://127.0.0.1:1", "no Redis answers", id="redis-away"),
        pytest.param("DATA_DIR", "/dev/null", "DATA_DIR", id="data-file"),
        pytest.param("DATA_DIR", "/proc/uploads", "DATA_DIR", id="data-nowhere"),
    ],
)
def test_wrong_setting(make: Start, variable: str, value: str, told: str) -> None:
    """A setting that cannot be is named in the one line that says why nothing starts."""
    assert told in make(**{variable: value}).refused()


@pytest.mark.parametrize("variable", ["PUBLIC_BIND", "INTERNAL_BIND"])
def test_port_in_use(make: Start, variable: str) -> None:
    """A port that is taken is named, and Redis does not stay behind."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        one = make(**{variable: f"127.0.0.1:{taken.getsockname()[1]}"})

        line = one.refused()

    assert f"{variable}=127.0.0.1" in line
    assert "the port is in use" in line
    assert not (one.data_dir / "redis" / "redis.sock").exists()


def test_second_system_on_the_same_data(started: Everything, make: Start) -> None:
    """Two systems never share a data folder; the first one goes on."""
    line = make().refused()

    assert "another system is running" in line
    assert ask("GET", f"{started.url}/api/v1/storage/x").status == 404


def test_unknown_arguments(make: Start) -> None:
    """Arguments are refused, and the line says where settings come from."""
    one = make()
    code = one.spawn("--port", "80").wait(30)

    assert (code, len(one.stderr.splitlines())) == (2, 1)
    assert "settings come from the environment" in one.stderr


def test_printed_settings_hide_secrets(make: Start) -> None:
    """--print-config shows each setting once, but no secret, and starts nothing."""
    secret = "s3cr3t-" * 8
    one = make(
        AUTH_MODE="required",
        AUTH_JWT_SECRET=secret,
        REDIS_URL="redis://user:passw0rd@redis.example:6379/0",
        UPLOAD_FSYNC="complete",
    )

    assert one.spawn("--print-config").wait(30) == 0

    names = [line.partition("=")[0] for line in one.stdout.splitlines()]
    assert len(names) == len(set(names))
    assert {"AUTH_JWT_SECRET=***", "REDIS_URL=***", "UPLOAD_FSYNC=complete"} <= set(
        one.stdout.splitlines()
    )
    assert {"WEBSOCKET_PING_INTERVAL", "DOWNLOAD_STALL_TIMEOUT"} <= set(names)
    assert secret not in one.stdout
    assert "passw0rd" not in one.stdout
    assert one.stderr == ""
    assert not one.data_dir.exists()


def test_wrong_redis_keeps_its_password(make: Start) -> None:
    """The line that names REDIS_URL leaves the password out."""
    line = make(REDIS_URL="redis://user:passw0rd@127.0.0.1:1/0").refused()

    assert "passw0rd" not in line
    assert "REDIS_URL=redis://***@127.0.0.1:1/0" in line


@pytest.mark.parametrize(
    ("host", "status"),
    [
        pytest.param("127.0.0.1", 404, id="loopback"),
        pytest.param("localhost:8080", 404, id="localhost"),
        pytest.param("[::1]:8080", 404, id="loopback-6"),
        pytest.param("evil.example", 403, id="foreign"),
        pytest.param("localhost.evil.example", 403, id="look-alike"),
        pytest.param("127.0.0.1.evil.example:80", 403, id="look-alike-address"),
        pytest.param("", 403, id="none"),
    ],
)
def test_foreign_host(shared_everything: Everything, host: str, status: int) -> None:
    """While everyone is the local user, a page under another name gets no answer."""
    one = shared_everything

    get = ask("GET", one.file_url("11111111-1111-4111-8111-111111111111"), {"Host": host})
    post = ask("POST", f"{one.url}{COLLECTION}", {**TUS, "Upload-Length": "1", "Host": host})

    assert get.status == status
    assert post.status == (201 if status == 404 else 403)


def test_a_worker_reports(shared_everything: Everything) -> None:
    """With nothing set a worker on the same machine can report on the job of an upload."""
    one = shared_everything
    progress = f"{one.url}/v1/dashboard/upload/progress/{one.upload(b'1,2')}"
    job_id = json.loads(ask("GET", progress).body)["job_id"]
    inside = f"http://127.0.0.1:{one.internal_port}/internal/v1/jobs/{job_id}/events"
    story = [
        {"type": "started", "seq": 1},
        {"type": "completed", "seq": 2, "result": {"rows": 1}},
    ]

    answer = ask(
        "POST", inside, {"Content-Type": "application/json"}, json.dumps(story).encode()
    )

    assert (answer.status, json.loads(answer.body)["accepted"]) == (202, 2)
    wait_until(lambda: b'"rows":1' in ask("GET", progress).body, "the result is told")


@pytest.fixture(scope="module")
def shared_everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Everything]:
    """A system that many tests ask."""
    one = Everything(tmp_path_factory.mktemp("everything"))
    one.start()
    yield one
    one.kill()
