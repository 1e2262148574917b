"""Benchmarks that nobody runs for months must still run."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.processes import ROOT


def _run(name: str) -> str:
    """Run one with little to do, in a process of its own, because it pins itself to a core."""
    command = [sys.executable, "-m", "bench", name, "--repeat", "1", "--small"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    return done.stdout


def _cells(page: str, first: str) -> list[str]:
    """Return the cells of the row that begins so."""
    (row,) = re.findall(rf"^\| {re.escape(first)} \|(.*)\|$", page, re.MULTILINE)
    return [one.strip() for one in row.split("|")]


def _number(cell: str) -> float:
    return float(cell.removesuffix("%").replace(",", ""))


def test_a_benchmark_runs() -> None:
    """Servers start, bytes are sent and answered; the page has a figure for each subject."""
    page = _run("hashing")

    assert len(re.findall(r"^\| ingest.*\| [0-9]+\.[0-9]{2} \|", page, re.MULTILINE)) == 2


def test_ages_are_measured_of_every_event() -> None:
    """A receiver that lost or mistook events would show ages of others, or of too few."""
    page = _run("latency")

    for scene in ("quiet", "busy"):
        _, arrived, p50, p99, bare50, bare99, *_ = map(_number, _cells(page, scene)[:7])
        assert 90 <= arrived <= 100
        assert 0 < p50 <= p99
        assert 0 < bare50 <= bare99


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_subject_of_the_fan_out_sends() -> None:
    """A peer that is started or fed wrongly sends nothing, and would be beaten by anyone."""
    page = _run("fanout")

    rows = re.findall(r"^\| (?!subject|---)(.*) \|$", page, re.MULTILINE)
    assert sum(row.startswith("gateway, ") for row in rows) == 6
    for row in rows:
        assert _number(row.split(" | ")[1]) > 0, row


@pytest.mark.slow
def test_a_dashboard_is_measured() -> None:
    """What was delivered when nothing may be conflated is what was written."""
    page = _run("dashboard")

    written, delivered, conflated, *_ = _cells(page, "each round")
    assert _number(conflated) <= 25  # the round that was under way at the end
    assert _number(delivered) == pytest.approx(_number(written), rel=0.25)
    assert _number(_cells(page, "paced")[1]) > 0


@pytest.mark.slow
def test_unwanted_events_are_written_while_a_socket_has_its_own() -> None:
    """A gateway that reads nothing at all would cost nothing."""
    page = _run("unwanted")

    for feed in ("positions", "positions and lifecycle"):
        assert _number(_cells(page, feed)[0]) > 1000


@pytest.mark.slow
def test_idle_and_stalled_sockets_are_weighed() -> None:
    """Sockets that were refused, or closed meanwhile, would weigh little."""
    page = _run("idle")
    for server in ("aiohttp, handlers that wait", "gateway"):
        assert _number(_cells(page, server)[2]) > 0

    page = _run("stalled")
    assert _cells(page, "one upload")[-1] == "50"
    assert _cells(page, "dashboard, 1,000 uploads")[-1] == "10"


@pytest.mark.slow
def test_downloads_are_measured() -> None:
    """A client that was refused, or got less than it asked for, would be fast."""
    page = _run("download")

    rows = re.findall(r"^\| [^|]* \| storage \| ([0-9.,]+) \| ([0-9.,]+) ", page, re.MULTILINE)
    assert len(rows) == 3
    assert all(_number(cell) > 0 for row in rows for cell in row)
    assert _number(_cells(page, "storage")[0]) > 0
