"""A process that works on a blob store as it is told, so that it can be killed and traced.

Run as ``python -m tests.shared.blobs.child ROOT POLICY``. One command a line on stdin; after
each, one line on stdout: ``<error or ok> <offset>``. The other side is ``Child``.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final, Literal, NamedTuple, cast

from msgspec.structs import replace

from shared.blobs.filesystem import FilesystemStore
from shared.blobs.filesystem_writer import FilesystemWriter
from shared.blobs.store import FsyncPolicy, UploadBusy, UploadNotFound
from tests.processes import ROOT
from tests.shared.samples import cancelled, completed, new_sidecar

__all__ = ["Child", "Reply", "pattern"]

_PERIOD: Final = bytes(range(251))


def pattern(length: int, start: int = 0) -> bytes:
    """Return bytes that tell at which offset they belong."""
    first = start % 251
    return (_PERIOD * (length // 251 + 2))[first : first + length]


class Reply(NamedTuple):
    """How a command ended: ``ok`` or the name of an error, and the writer's offset."""

    how: str
    offset: int


class Child:
    """The process, seen from the test."""

    def __init__(
        self, root: Path, *, policy: FsyncPolicy = "always", trace: Path | None = None
    ) -> None:
        strace = (
            *("strace", "-f", "-y", "-s", "64", "-o", str(trace)),
            *("-e", "trace=openat,write,writev,fchmod,fdatasync,fsync,rename,ftruncate,unlink"),
        )
        command = [sys.executable, "-m", "tests.shared.blobs.child", str(root), policy]
        self.process: Final = subprocess.Popen(
            [*(strace if trace else ()), *command],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == Reply("ready", -1)

    def tell(self, command: str) -> None:
        """Send a command and do not wait for its end."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def do(self, command: str) -> Reply:
        """Carry a command out; return how it ended."""
        self.tell(command)
        return self._answer()

    def _answer(self) -> Reply:
        assert self.process.stdout is not None
        how, offset = self.process.stdout.readline().split()
        return Reply(how, int(offset))

    def kill(self) -> None:
        """Kill it -9."""
        self.process.kill()
        self.close()

    def close(self) -> None:
        """Let it end, and wait for that."""
        self.process.communicate()


class _Worker:
    """Carries the commands out."""

    def __init__(self, store: FilesystemStore) -> None:
        self._store = store
        self._writer: FilesystemWriter | None = None

    @property
    def writer(self) -> FilesystemWriter:
        assert self._writer is not None
        return self._writer

    async def answer(self, command: str) -> str:
        """Carry one command out and say how it ended."""
        name, *arguments = command.split()
        try:
            await getattr(self, name)(*arguments)
            how = "ok"
        except (UploadBusy, UploadNotFound) as exc:
            how = type(exc).__name__
        except OSError as exc:
            how = errno.errorcode[exc.errno or 0]
        return f"{how} {self._writer.offset if self._writer else -1}"

    async def create(self, upload_id: str) -> None:
        sidecar = new_sidecar()
        first = replace(sidecar.outbox[0], upload_id=upload_id)
        await self._store.create(replace(sidecar, upload_id=upload_id, outbox=(first,)))

    async def acquire(self, upload_id: str) -> None:
        self._writer = await self._store.acquire(upload_id)

    async def ask(self, upload_id: str) -> None:
        await self._store.ask_release(upload_id)

    async def write(self, length: str, pieces: str = "1") -> None:
        content = pattern(int(length), self.writer.offset)
        step = -(-len(content) // int(pieces))
        parts = [content[start : start + step] for start in range(0, len(content), step)]
        await self.writer.write(parts)

    async def sync(self) -> None:
        await self.writer.sync()

    async def finish(self) -> None:
        sidecar = self.writer.sidecar
        await self.writer.finish(sidecar.after("completed", completed(sidecar.upload_id)))

    async def bury(self) -> None:
        sidecar = self.writer.sidecar
        await self.writer.bury(sidecar.after("cancelled", cancelled(sidecar.upload_id)))

    async def close(self) -> None:
        await self.writer.close()

    async def limit(self, length: str) -> None:
        """Let no file grow beyond a length: the write that would gets EFBIG."""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft = resource.RLIM_INFINITY if length == "none" else int(length)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))


def main(root: str, policy: str) -> None:
    """Carry out commands until stdin ends."""
    store = FilesystemStore(Path(root), fsync=cast(Literal["always"], policy))
    worker = _Worker(store)
    os.write(1, b"ready -1\n")
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            answer = runner.run(worker.answer(line))
            os.write(1, answer.encode() + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
