"""Benchmarks that nobody runs for months must still run."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.processes import ROOT


def test_a_benchmark_runs() -> None:
    """Servers start, bytes are sent and answered, and the page has a figure for each subject.

    In a process of its own, because it pins itself to a core.
    """
    command = [sys.executable, "-m", "bench", "hashing", "--repeat", "1", "--small"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert (
        len(re.findall(r"^\| ingest.*\| [0-9]+\.[0-9]{2} \|", done.stdout, re.MULTILINE)) == 2
    )
