"""A real ClamAV daemon that knows one virus, made up for the tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Final, Literal

import pytest

from tests.processes import free_port, wait_until

__all__ = ["MALWARE", "ClamdServer"]

MALWARE: Final = b"these bytes are the malware of our tests"
_NAME: Final = "Tests.Malware-1"


def _binary() -> str:
    found = shutil.which("clamd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        pytest.skip("no clamd here: make setup-system installs it")
    return found


class ClamdServer:
    """A daemon with its files in ``folder``; it can be killed and started again.

    Args:
        folder: For its configuration, its signatures and its log.
        listen: How it is reached.
        longest: ``StreamMaxLength``, as the daemon writes it.

    """

    def __init__(
        self, folder: Path, *, listen: Literal["tcp", "unix"] = "unix", longest: str = "100M"
    ) -> None:
        self._binary: Final = _binary()
        signatures = folder / "signatures"
        signatures.mkdir(parents=True)
        line = f"{_NAME}:0:*:{MALWARE.hex()}\n"
        (signatures / "tests.ndb").write_text(line)
        # The path of a socket has at most 107 bytes; those of tests may be longer.
        self._socket: Final = Path(tempfile.mkdtemp(prefix="clamd")) / "socket"
        self._port: Final = free_port()
        where = {
            "unix": f"LocalSocket {self._socket}",
            "tcp": f"TCPSocket {self._port}\nTCPAddr 127.0.0.1",
        }[listen]
        self.url: Final = {
            "unix": f"unix://{self._socket}",
            "tcp": f"tcp://127.0.0.1:{self._port}",
        }[listen]
        self._config: Final = folder / "clamd.conf"
        self._config.write_text(
            f"{where}\nDatabaseDirectory {signatures}\nForeground yes\n"
            f"StreamMaxLength {longest}\n"
            "MaxScanSize 0\nMaxFileSize 0\nFixStaleSocket yes\nConcurrentDatabaseReload no\n"
        )
        self._log: Final = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                [self._binary, "--config-file", str(self._config)], stdout=out, stderr=out
            )
        wait_until(self._answers, "clamd answers", self._log.read_text)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        is_unix = self.url.startswith("unix")
        family = socket.AF_UNIX if is_unix else socket.AF_INET
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.connect(str(self._socket) if is_unix else ("127.0.0.1", self._port))
            probe.sendall(b"zPING\0")
            return probe.recv(16).startswith(b"PONG")
        return False

    def signal(self, number: int) -> None:
        """Send a signal to it."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it -9, if it runs."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
