"""What decides whether bytes survive: all are written, and synced before anybody is told.

The order of system calls is read off the kernel's own log of a child process (strace), and a
disk that fails is had by letting the kernel answer EIO.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.blobs.durable import start_writeback, sync_data, sync_directory, write_all
from shared.blobs.filesystem import FilesystemStore
from shared.blobs.store import FsyncPolicy
from shared.sidecar import new_id
from tests.processes import wait_until
from tests.shared.blobs.child import Child, Reply, pattern

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace is not installed: make setup-system does it"
)


@given(st.lists(st.binary(max_size=40), max_size=40), st.integers(1, 60))
def test_all_pieces_are_written_in_order(pieces: list[bytes], times: int) -> None:
    """However many and however small or empty they are."""
    with tempfile.TemporaryFile() as file:
        assert write_all(file.fileno(), pieces * times) == len(b"".join(pieces)) * times
        file.seek(0)
        assert file.read() == b"".join(pieces) * times


@pytest.mark.parametrize("most", [1, 7, 10, 33])
def test_short_writes_are_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """A write that takes only a part, in the middle of a piece, is followed by the rest."""
    write = os.write

    def short(fd: int, pieces: Sequence[bytes]) -> int:
        return write(fd, b"".join(pieces)[:most])

    monkeypatch.setattr(os, "writev", short)
    pieces = [pattern(10, start) for start in range(0, 1000, 10)]
    with (tmp_path / "file").open("wb", buffering=0) as file:
        assert write_all(file.fileno(), [b"", *pieces, b""]) == 1000
    assert (tmp_path / "file").read_bytes() == pattern(1000)


def test_a_refused_write_says_why(tmp_path: Path) -> None:
    """The error of the system call reaches the caller."""
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        write_all(fd, [b"x"])
    os.close(fd)


def test_syncing_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    """A sync that cannot have worked never passes for one that did."""
    closed = os.open(tmp_path, os.O_RDONLY)
    os.close(closed)
    with pytest.raises(OSError, match="Bad file descriptor"):
        sync_data(closed)
    with pytest.raises(FileNotFoundError):
        sync_directory(tmp_path / "away")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        sync_directory(tmp_path / "file")


def test_a_hint_never_fails() -> None:
    """Starting the write-out of what is no file does nothing."""
    start_writeback(-1, 0, 10)


# The order of system calls.


class Call(NamedTuple):
    """One line of strace's log."""

    name: str
    text: str


def calls_of(trace: Path) -> list[Call]:
    """Return the calls that succeeded, in the order in which they ended."""
    found: list[Call] = []
    begun: dict[str, str] = {}
    for line in trace.read_text(errors="replace").splitlines():
        pid, _, rest = line.partition(" ")
        rest = rest.strip()
        if rest.endswith("<unfinished ...>"):
            begun[pid] = rest.removesuffix("<unfinished ...>")
            continue
        if match := re.match(r"<\.\.\. \w+ resumed>(.*)", rest):
            rest = begun.pop(pid) + match[1]
        if (match := re.match(r"(\w+)\(.*\) += (-?\d+)", rest)) and int(match[2]) >= 0:
            found.append(Call(match[1], rest))
    return found


class Log:
    """The calls of a child, in which a test goes forward."""

    def __init__(self, calls: list[Call]) -> None:
        self._calls = calls
        self._at = 0

    def expect(self, *steps: tuple[str, str]) -> None:
        """Check that calls with these names and parts follow, others between them or not."""
        for name, part in steps:
            rest = self._calls[self._at :]
            fits = (call.name == name and part in call.text for call in rest)
            ahead = [number for number, fit in enumerate(fits) if fit]
            assert ahead, f"no {name}({part}) in\n" + "\n".join(call.text for call in rest)
            self._at += ahead[0] + 1

    def before(self, name: str, part: str) -> list[Call]:
        """Go on to a call; return all calls up to it."""
        start = self._at
        self.expect((name, part))
        return self._calls[start : self._at - 1]


ANSWER = ("write", "write(1<pipe:")


def traced(folder: Path, policy: FsyncPolicy, *commands: str) -> Log:
    """Let a child carry out the commands; return what it did from the first one on."""
    trace = folder / "trace"
    child = Child(folder / "data", policy=policy, trace=trace)
    for command in commands:
        assert child.do(command).how == "ok"
    child.close()
    log = Log(calls_of(trace))
    log.expect(("unlink", ".probe-"), ANSWER)  # the store is open
    return log


@needs_strace
def test_a_new_upload_is_durable_before_it_is_answered(folder: Path) -> None:
    """Marker, then record, which stands for the marker after a power cut, and its name."""
    one = new_id()
    log = traced(folder, "always", f"create {one}")
    log.expect(
        ("openat", f"{one}.part"),
        ("openat", f"due/{one}.1"),
        ("fchmod", f"{one}.info.new>, 01600"),
        ("writev", f"{one}.info.new>"),
        ("fdatasync", f"{one}.info.new>"),
        ("rename", f'{one}.info")'),
        ("fsync", f"/{one[:2]}>"),
        ANSWER,
    )


@needs_strace
def test_an_offset_is_durable_before_it_is_acknowledged(folder: Path) -> None:
    """Each batch that is answered for has been synced after its last byte was written."""
    one = new_id()
    log = traced(
        folder,
        "always",
        *(f"create {one}", f"acquire {one}", "write 1000", "sync", "write 9999 7", "sync"),
        *("close", f"acquire {one}"),
    )
    log.expect(ANSWER, ANSWER)
    for _ in range(2):
        log.expect(("writev", f"{one}.part>"), ANSWER)
        written = log.before(*ANSWER)
        assert [call.name for call in written] == ["fdatasync"]
        assert f"{one}.part>" in written[0].text
    log.expect(ANSWER)
    log.expect(("fdatasync", f"{one}.part>"), ANSWER)  # a predecessor may not have synced


@needs_strace
@pytest.mark.parametrize("policy", ["always", "complete"])
def test_a_finished_upload_is_durable_before_it_is_answered(
    folder: Path, policy: FsyncPolicy
) -> None:
    """Bytes, then their name, then the marker and the record that says so, then the names."""
    one = new_id()
    log = traced(
        folder, policy, f"create {one}", f"acquire {one}", "write 1000", "sync", "finish"
    )
    log.expect(ANSWER, ANSWER, ("writev", f"{one}.part>"), ANSWER)
    synced = log.before(*ANSWER)
    if policy == "complete":
        assert synced == []
        log.expect(("fdatasync", f"{one}.part>"))
    else:
        assert [call.name for call in synced] == ["fdatasync"]
    log.expect(
        ("rename", f'{one}.part"'),
        ("openat", f"due/{one}.2"),
        ("fchmod", f"{one}.info.new>, 01600"),
        ("writev", f"{one}.info.new>"),
        ("fdatasync", f"{one}.info.new>"),
        ("rename", f'{one}.info")'),
        ("fsync", f"/{one[:2]}>"),
        ANSWER,
    )


@needs_strace
def test_an_end_is_durable_before_the_bytes_go(folder: Path) -> None:
    """The tombstone is safe first: a crash between leaves no bytes without a record."""
    one = new_id()
    log = traced(folder, "always", f"create {one}", f"acquire {one}", "write 10", "bury")
    log.expect(ANSWER, ANSWER, ANSWER)
    earlier = log.before("fsync", f"/{one[:2]}>")
    assert not [call for call in earlier if call.name == "unlink"]
    log.expect(("unlink", f"{one}.part"), ANSWER)


@needs_strace
def test_the_policy_never_syncs_nothing(folder: Path) -> None:
    """Who says so gets what he asked for."""
    one = new_id()
    log = traced(
        folder, "never", f"create {one}", f"acquire {one}", "write 10", "sync", "finish"
    )
    names = {call.name for call in log._calls}
    assert "writev" in names
    assert not names & {"fsync", "fdatasync"}


# A disk that fails.


@contextmanager
def failing(child: Child, *calls: str) -> Iterator[None]:
    """Let system calls of a running child fail with EIO."""
    number = child.process.pid
    rules = [f"inject={call}:error=EIO" for call in calls]
    strace = subprocess.Popen(
        ["strace", "-f", "-qq", "-p", str(number), "-o", "/dev/null"]
        + [part for rule in rules for part in ("-e", rule)],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        tasks = list(Path(f"/proc/{number}/task").iterdir())

        def attached() -> bool:
            assert strace.poll() is None, strace.stderr and strace.stderr.read()
            states = [(task / "status").read_text() for task in tasks]
            return all(f"TracerPid:\t{strace.pid}\n" in state for state in states)

        wait_until(attached, "strace is attached", limit_s=10)
        yield
    finally:
        strace.terminate()
        strace.communicate()


@pytest.fixture
def child(folder: Path) -> Iterator[Child]:
    """A process that works on a store."""
    one = Child(folder / "data")
    yield one
    one.kill()


@needs_strace
def test_a_failed_sync_takes_back_what_is_not_safe(folder: Path, child: Child) -> None:
    """The offset never runs ahead of the last good sync, not even when a later one works.

    The kernel forgets pages that it could not write: a second sync succeeds without them.
    """
    one = new_id()
    store = FilesystemStore(folder / "data")
    part = store.path(one, ".part")
    child.do(f"create {one}")
    child.do(f"acquire {one}")
    child.do("write 1000")
    assert child.do("sync") == Reply("ok", 1000)
    for _ in range(2):
        assert child.do("write 500") == Reply("ok", 1500)
        with failing(child, "fdatasync"):
            assert child.do("sync") == Reply("EIO", 1000)
        assert part.stat().st_size == 1000
        assert child.do("sync") == Reply("ok", 1000)
    assert child.do("write 700") == Reply("ok", 1700)
    assert child.do("sync") == Reply("ok", 1700)
    child.do("close")
    assert child.do(f"acquire {one}") == Reply("ok", 1700)
    assert part.read_bytes() == pattern(1700)
    asyncio.run(store.close())


@needs_strace
def test_a_disk_that_refuses_even_to_cut_gives_an_honest_offset(
    folder: Path, child: Child
) -> None:
    """What cannot be taken back is written over."""
    one = new_id()
    child.do(f"create {one}")
    child.do(f"acquire {one}")
    child.do("write 1000")
    child.do("sync")
    child.do("write 500")
    with failing(child, "fdatasync", "ftruncate"):
        assert child.do("sync") == Reply("EIO", 1000)
    assert child.do("sync") == Reply("ok", 1000)
    assert child.do("write 700") == Reply("ok", 1700)
    assert child.do("sync") == Reply("ok", 1700)
    assert child.do("finish") == Reply("ok", 1700)
    assert (folder / "data" / one[:2] / one).read_bytes() == pattern(1700)


@needs_strace
@pytest.mark.parametrize("policy", ["always", "complete"])
def test_an_upload_whose_sync_fails_is_not_finished(folder: Path, policy: FsyncPolicy) -> None:
    """It does not become visible, and what is not known to be safe does not count."""
    one = new_id()
    child = Child(folder / "data", policy=policy)
    child.do(f"create {one}")
    child.do(f"acquire {one}")
    child.do("write 1000")
    child.do("sync")
    child.do("close")
    assert child.do(f"acquire {one}") == Reply("ok", 1000)
    child.do("write 500")
    safe = 1000 if policy == "always" else 0
    with failing(child, "fdatasync"):
        assert child.do("finish") == Reply("EIO", safe)
    folder = folder / "data" / one[:2]
    assert {path.name for path in folder.iterdir()} == {f"{one}.part", f"{one}.info"}
    assert child.do(f"write {1500 - safe}") == Reply("ok", 1500)
    assert child.do("finish") == Reply("ok", 1500)
    child.close()
    assert (folder / one).read_bytes() == pattern(1500)


@needs_strace
@pytest.mark.parametrize("call", ["fdatasync", "fsync", "rename", "openat"])
def test_a_creation_on_a_failing_disk_leaves_nothing(
    folder: Path, child: Child, call: str
) -> None:
    """Whichever step fails, the client is told, and no beginning of an upload is left."""
    one = new_id()
    with failing(child, call):
        assert child.do(f"create {one}").how == "EIO"
    left = [path for path in (folder / "data").rglob("*") if path.is_file()]
    assert left == []
    assert child.do(f"create {one}").how == "ok"


@needs_strace
def test_an_upload_that_cannot_be_synced_is_not_handed_out(folder: Path, child: Child) -> None:
    """A predecessor's unsynced bytes are made safe before they count, or nobody gets them."""
    one = new_id()
    child.do(f"create {one}")
    child.do(f"acquire {one}")
    child.do("write 1000")
    child.do("close")
    with failing(child, "fdatasync"):
        assert child.do(f"acquire {one}").how == "EIO"
    assert child.do(f"acquire {one}") == Reply("ok", 1000)
