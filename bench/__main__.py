"""``python -m bench``: measures, then prints one Markdown page; fails only if it cannot run."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench import (
    dashboard,
    download,
    duplicates,
    fanout,
    form,
    hashing,
    idle,
    latency,
    machine,
    payload,
    receive,
    s3,
    small_uploads,
    stalled,
    unwanted,
)

_BENCHMARKS: Final[dict[str, Callable[[int], str]]] = {
    "receive": receive.report,
    "fanout": fanout.report,
    "latency": latency.report,
    "dashboard": dashboard.report,
    "unwanted": unwanted.report,
    "idle": idle.report,
    "stalled": stalled.report,
    "small": small_uploads.report,
    "hashing": hashing.report,
    "duplicates": duplicates.report,
    "form": form.report,
    "s3": s3.report,
    "download": download.report,
}


def main() -> None:
    """Read the arguments, run what they name, print the page."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("what", choices=[*_BENCHMARKS, "all"], nargs="*", default="all")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="runs of each")
    parser.add_argument("--small", action="store_true", help="send little: does it work?")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="also write the page here")
    options = parser.parse_args()
    if options.small:
        payload.send_little()
    chosen = list(_BENCHMARKS) if "all" in options.what else options.what
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers end with us
    facts = machine.facts()
    machine.pin(machine.LOAD_CORE)
    machine.raise_file_limit()
    sections = [_BENCHMARKS[name](max(options.repeat, 1)) for name in chosen]
    page = "\n".join(["# Measured", "", facts, "", *sections])
    print(page)
    if options.out is not None:
        options.out.write_text(page)


if __name__ == "__main__":
    main()
