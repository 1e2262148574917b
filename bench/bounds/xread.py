"""Bound of an event's age: a process that does nothing but read a stream, blocking.

Leaves in a log of the form of ``sockets.c`` when it had which entry: the number in field ``n``.

Usage: ``python -m bench.bounds.xread REDIS_URL STREAM LOG_FILE``
"""

from __future__ import annotations

import mmap
import sys
import time
from typing import Any

from redis import Redis


def main(url: str, stream: str, log_file: str) -> None:
    """Read until the process is ended."""
    with open(log_file, "r+b") as file:
        log = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
    cursor: Any = "0-0"
    with Redis.from_url(url, protocol=2) as redis:
        redis.ping()
        print("ready", flush=True)
        while True:
            reply: Any = redis.xread({stream: cursor}, block=1000)
            at = time.monotonic_ns()
            for entry_id, fields in reply[0][1] if reply else ():
                cursor, record = entry_id, 1 + 3 * log[0]
                if record + 3 <= len(log):
                    log[record + 1], log[record + 2] = int(fields[b"n"]), at
                    log[0] += 1


if __name__ == "__main__":
    main(*sys.argv[1:4])
