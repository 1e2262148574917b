"""What the machine is and what its processes use; reads ``/proc``, knows no benchmark.

Where there is no ``/proc`` or no way to pin a process, figures are NaN and nothing is pinned.
CPU is in seconds, memory in bytes.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import math
import os
import platform
import resource
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "LOAD_CORE",
    "SERVER_CORE",
    "core_busy_seconds",
    "cpu_seconds",
    "facts",
    "forget_peak",
    "kept_waiting_seconds",
    "peak_bytes",
    "pin",
    "raise_file_limit",
    "resident_bytes",
    "settle",
    "slab_bytes",
    "starting_on",
]

_CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
SERVER_CORE, LOAD_CORE = _CORES[0], _CORES[-1]
_PINNED = len(_CORES) > 1


def facts() -> str:
    """Return one line on when and on what the run takes place; call it before the run."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    loop = _version("uvloop")
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    pins = f"server on core {SERVER_CORE}, load on core {LOAD_CORE}"
    return (
        f"{now}; {os.cpu_count()} cores, {platform.system()} {platform.release()}; "
        f"Python {platform.python_version()}, aiohttp {_version('aiohttp')}, uvloop {loop}; "
        f"{pins if _PINNED else 'nothing pinned'}; load average before the run: {load}."
    )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def pin(core: int) -> None:
    """Keep this process, and those that it starts, on one core."""
    if _PINNED:
        os.sched_setaffinity(0, {core})


@contextlib.contextmanager
def starting_on(core: int) -> Iterator[None]:
    """Let processes started in the block begin on a core; this one comes back at its end."""
    pin(core)
    try:
        yield
    finally:
        pin(LOAD_CORE)


def raise_file_limit() -> None:
    """Lift the soft limit of open files to the hard one; children inherit it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def cpu_seconds(pid: int) -> float:
    """Return the user and system time that all threads of a process have had so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return math.nan
    # proc(5) counts from 1: after pid (1) and name (2), utime (14) and stime (15) are here.
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kept_waiting_seconds(pid: int) -> float:
    """Return how long the main thread was ready to run while another process had its core.

    Anything but little means that the machine was not ours, and that rates per second of the
    clock say less than rates per second of CPU.
    """
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return math.nan


def core_busy_seconds(core: int) -> float:
    """Return the time a core has not been idle: every process and the kernel's own work."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return math.nan
    fields = next(one.split() for one in lines if one.startswith(f"cpu{core} "))
    user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> float:
    """Return the memory that a process has in RAM now."""
    return _status(pid, "VmRSS:")


def peak_bytes(pid: int) -> float:
    """Return the most it ever had, since its start or the last ``forget_peak``."""
    return _status(pid, "VmHWM:")


def forget_peak(pid: int) -> None:
    """Let the peak start again from what is resident now (proc(5), ``clear_refs``)."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid: int, key: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return math.nan
    return float(next(one.split()[1] for one in lines if one.startswith(key))) * 1024


def slab_bytes() -> float:
    """Return the memory that the kernel's own objects take, sockets among them."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.nan
    return float(next(one.split()[1] for one in lines if one.startswith("Slab:"))) * 1024


def settle() -> None:
    """Write back what the last run left dirty, so that the next one does not pay for it."""
    if hasattr(os, "sync"):
        os.sync()
    time.sleep(1.0)
