"""What keeps ingest from starting is told in one line on stderr, with exit code 2."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.ingest.app import create_app
from services.ingest.settings import Settings
from shared.errors import StartupError
from shared.serve import serve
from shared.settings import load
from tests.processes import ROOT, RedisServer, free_port


@pytest.fixture
def good(bus: RedisServer, data_dir: Path) -> dict[str, str]:
    """An environment in which ingest starts."""
    return {
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        "REDIS_URL": bus.url,
        "DATA_DIR": str(data_dir),
        "AUTH_MODE": "open",
        "PUBLIC_BIND": f"127.0.0.1:{free_port()}",
        "INTERNAL_BIND": f"127.0.0.1:{free_port()}",
    }


def said(env: Mapping[str, str], *command: str) -> str:
    """Start ingest as a process, which must refuse; return the one line that says why."""
    done = subprocess.run(
        command or (sys.executable, "-m", "services.ingest"),
        cwd=ROOT,
        env=env,
        capture_output=True,
        timeout=30,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done
    assert "Traceback" not in done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


async def refusal(env: Mapping[str, str]) -> str:
    """Start ingest in this process, which must refuse; return the reason."""
    with pytest.raises(StartupError) as refused:  # noqa: PT012 - whichever comes first
        settings = load(Settings, env)
        await serve(create_app(settings), settings)
    return str(refused.value)


@contextmanager
def listening(*, answer: bytes | None = None) -> Iterator[int]:
    """Listen on a port; answer each connection with some bytes, or never."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def answer_all() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                if answer is not None:
                    client.sendall(answer)
                held.append(client)

        thread = threading.Thread(target=answer_all, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for client in held:
                client.close()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("UPLOAD_FSYNC", "sometimes", "UPLOAD_FSYNC='sometimes'"),
        ("DATA_DIR", "/dev/null/x", "DATA_DIR"),
        ("REDIS_URL", "", "REDIS_URL is not set"),
        ("REDIS_URL", "redis://:s3cret@127.0.0.1:1/0", "REDIS_URL=redis://***@127.0.0.1:1/0"),
        ("REDIS_URL", "localhost:6379", "REDIS_URL"),
        ("AUTH_MODE", "required", "AUTH_JWT_SECRET"),
        ("INTERNAL_BIND", "a..b:9090", "INTERNAL_BIND"),
    ],
)
def test_the_process_says_one_line(
    good: dict[str, str], name: str, value: str, told: str
) -> None:
    """Whatever is wrong, the process ends with exit code 2, one line, and no traceback."""
    assert told in said({**good, name: value})


@pytest.mark.parametrize("name", ["PUBLIC_BIND", "INTERNAL_BIND"])
def test_port_in_use(good: dict[str, str], name: str) -> None:
    """A port that another program has is named, with what to do."""
    with listening() as port:
        line = said({**good, name: f"127.0.0.1:{port}"})
    assert f"{name}=127.0.0.1:{port}" in line
    assert "in use" in line


def test_unknown_argument(good: dict[str, str]) -> None:
    """Arguments are not ignored."""
    assert "--port" in said(good, sys.executable, "-m", "services.ingest", "--port", "80")


@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv takes root's powers away")
def test_read_only_data_dir(good: dict[str, str], tmp_path: Path) -> None:
    """A folder that this user may not write to is named."""
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)
    powerless = (
        ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if not os.geteuid() else ()
    )
    line = said(
        {**good, "DATA_DIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        *(*powerless, sys.executable, "-m", "services.ingest"),
    )
    assert f"DATA_DIR: {folder}" in line


@pytest.mark.parametrize(
    "folder", ["/dev/null", "/dev/null/x", "/proc/x", "/sys/x", "x" * 300, "/etc/passwd"]
)
async def test_impossible_data_dir(good: dict[str, str], folder: str) -> None:
    """A folder that cannot be made is named, with what to do."""
    assert "DATA_DIR" in await refusal({**good, "DATA_DIR": folder})


@pytest.mark.parametrize(
    "bind",
    ["8080", ":8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "::1"],
)
async def test_malformed_address(good: dict[str, str], bind: str) -> None:
    """An address that is none is refused by the name of its setting."""
    assert "PUBLIC_BIND" in await refusal({**good, "PUBLIC_BIND": bind})


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a..b", "x" * 300])
async def test_impossible_address(good: dict[str, str], host: str) -> None:
    """A host that is not this machine, or no host at all, is refused by name."""
    assert "INTERNAL_BIND" in await refusal({**good, "INTERNAL_BIND": f"{host}:9090"})


@pytest.mark.parametrize("bind", ["0.0.0.0:0", "[::]:0", "example.com:80"])
async def test_open_to_nobody_else(good: dict[str, str], bind: str) -> None:
    """AUTH_MODE=open on an address that others can reach is refused."""
    assert "AUTH_MODE" in await refusal({**good, "PUBLIC_BIND": bind})


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:6379", "http://localhost", "redis", "redis:/x", "://", "redis://[::1"),
        *(
            "redis://h:port/0",
            "redis://h:99999999/0",
            "redis://a..b:1/0",
            f"redis://{'x' * 300}",
        ),
        *("redis://127.0.0.1:1/0?socket_timeout=soon", "redis://127.0.0.1:1/0?tea=1"),
        *("redis://127.0.0.1:1/x", "unix:///no/such/socket", "rediss://127.0.0.1:1", "unix://"),
    ],
)
async def test_bad_redis_url(good: dict[str, str], url: str) -> None:
    """A URL that is none, or that nobody answers at, is named."""
    assert "REDIS_URL" in await refusal({**good, "REDIS_URL": url})


async def test_wrong_redis_password(good: dict[str, str], bus: RedisServer) -> None:
    """A password that Redis does not want is not shown."""
    url = f"redis://somebody:s3cret@127.0.0.1:{bus.port}/0"
    reason = await refusal({**good, "REDIS_URL": url})
    assert "s3cret" not in reason
    assert "REDIS_URL" in reason


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff\x00" * 50])
async def test_no_redis_there(good: dict[str, str], answer: bytes) -> None:
    """Something that is no Redis is told from one."""
    with listening(answer=answer) as port:
        url = f"redis://127.0.0.1:{port}/0"
        assert "REDIS_URL" in await refusal({**good, "REDIS_URL": url})


async def test_redis_that_hangs(good: dict[str, str]) -> None:
    """A Redis that accepts and then says nothing is given up in seconds."""
    with listening() as port:
        url = f"redis://127.0.0.1:{port}/0"
        assert "REDIS_URL" in await refusal({**good, "REDIS_URL": url})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("UPLOAD_MAX_FILE_SIZE", value) for value in ("-1", "many", "1.5", "9" * 40, "nan")),
        *(("UPLOAD_SESSION_TIMEOUT_HOURS", value) for value in ("0", "-1", "x", "nan", "inf")),
        *(("UPLOAD_IDLE_TIMEOUT", value) for value in ("0", "-5", "x", "nan", "inf", "1e300")),
        *(("SHUTDOWN_TIMEOUT", value) for value in ("-1", "x", "nan")),
        *(("PROGRESS_UPDATE_INTERVAL", value) for value in ("0", "-1", "nan")),
        *(("EVENT_PARTITIONS", value) for value in ("0", "101", "x", "1.5")),
        *(("UPLOAD_FSYNC", value) for value in ("sometimes", "ALWAYS", "true")),
        *(
            ("PUBLIC_URL", value)
            for value in ("up.example", "ftp://x", "https://a b", "https://")
        ),
        *(("TRUSTED_PROXIES", value) for value in ("x", "10.0.0.0/33", "10.0.0.1/8")),
        *(("AUTH_MODE", value) for value in ("none", "OPEN")),
        *(("LOG_LEVEL", value) for value in ("loud", "INFO ,")),
        ("LOG_FORMAT", "xml"),
        ("CORS_ALLOWED_ORIGINS", "app.example"),
    ],
)
async def test_wrong_value(good: dict[str, str], name: str, value: str) -> None:
    """A value that is not allowed is named with its setting."""
    assert name in await refusal({**good, name: value})


async def test_secret_is_not_shown(good: dict[str, str]) -> None:
    """A secret that is too short is told, not shown."""
    env = {**good, "AUTH_MODE": "required", "AUTH_JWT_SECRET": "s3cret"}
    reason = await refusal(env)
    assert "AUTH_JWT_SECRET" in reason
    assert "s3cret" not in reason
