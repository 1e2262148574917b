"""Keep one Redis server running for exactly as long as the process that started this script.

A program, not a module: ``services.embedded_redis`` runs it with ``python -I`` in a session of
its own. It uses the standard library only and knows nothing of Redis but that SIGTERM ends it.

    redis_guard.py LOCK_FD GRACE_S SCRATCH SERVER [ARGUMENT ...]

Standard input is a pipe whose other end the starter holds and never writes to. The kernel
closes it however the starter ends, SIGKILL included, so end of file is the order to stop.
A server that ends by itself, after it had settled, is started again.
LOCK_FD is an open, locked file that the server inherits: the lock is free only when both the
guard and the server are gone. SCRATCH is a directory to remove at the end, or empty.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

_STDIN: Final = 0
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG: Final = 1  # <sys/prctl.h>
_SETTLED_S: Final = 1.0
"""A server that ends sooner would end again: then its starter must hear of it."""
_CANNOT_RUN: Final = 127  # the status that shells give for a command they cannot run


def _die_with_me() -> Callable[[], None] | None:
    """Return what the server's process does before it becomes the server."""
    if sys.platform != "linux":
        return None  # no such request there: the inherited lock still keeps a second server out
    me = os.getpid()
    prctl = ctypes.CDLL(None).prctl  # looked up here: after the fork only simple calls are safe

    def ask_kernel() -> None:
        # SIGKILL, since nobody is left to insist. Redis writes a command to its AOF before it
        # answers, so nothing that it acknowledged is lost.
        prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
        if os.getppid() != me:  # the guard died before the request was in force
            os._exit(_CANNOT_RUN)

    return ask_kernel


def _signals_as_bytes() -> int:
    """Return a descriptor from which the numbers of the signals received can be read."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable)
    for number in (signal.SIGCHLD, *_STOP_SIGNALS):
        signal.signal(number, lambda *_: None)  # the byte in the pipe is what counts
    return readable


def _watch(server: subprocess.Popen[bytes], woken: int) -> bool:
    """Wait until the server has ended, or is to end; return whether it is to."""
    while server.poll() is None:
        ready, _, _ = select.select([_STDIN, woken], [], [])
        if _STDIN in ready:
            return True
        # SIGCHLD also comes when the server is paused or goes on, which is no reason to stop.
        if not set(os.read(woken, 64)).isdisjoint(_STOP_SIGNALS):
            return True
    return False


def _stop(server: subprocess.Popen[bytes], grace_s: float) -> None:
    """Let the server finish its AOF and leave; kill it after ``grace_s`` seconds."""
    server.terminate()  # does nothing to a server that has ended
    try:
        server.wait(grace_s)
    except subprocess.TimeoutExpired:
        sys.stderr.write(f"redis_guard: killed the server, still there after {grace_s} s\n")
        server.kill()
        server.wait()


def main(lock_fd: str, grace_s: str, scratch: str, *command: str) -> int:
    """Run the server to its end; return its status, as a shell would (128 + signal)."""
    woken = _signals_as_bytes()
    while True:
        started = time.monotonic()
        try:
            server = subprocess.Popen(  # noqa: S603 - the command is our starter's
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=[int(lock_fd)],
                preexec_fn=_die_with_me(),  # noqa: PLW1509 - safe: this process has one thread
            )
        except (OSError, subprocess.SubprocessError) as error:
            sys.stderr.write(f"redis_guard: {error}\n")
            return _CANNOT_RUN
        told_to_stop = _watch(server, woken)
        if told_to_stop or time.monotonic() - started < _SETTLED_S:
            break
        # Its clients reconnect, and its AOF has all that it acknowledged.
        sys.stderr.write(f"redis_guard: the server ended with {server.poll()}: once more\n")
        sys.stderr.flush()
    _stop(server, float(grace_s))
    if scratch:
        shutil.rmtree(scratch, ignore_errors=True)
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
