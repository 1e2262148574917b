"""Systems of separate processes: one that a module's tests share, and one to be broken."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.system.parts import System, running_system


@pytest.fixture(scope="module")
def shared_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system that nobody harms."""
    with running_system(tmp_path_factory.mktemp("system")) as system:
        yield system


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """A system of the test's own."""
    with running_system(tmp_path / "system") as one:
        yield one


@pytest.fixture(scope="session")
def tus_js() -> list[str]:
    """The command that uploads with tus-js-client: ENDPOINT FILE [OPTIONS] follow."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is missing: make setup-system installs it")
    clients = ROOT / "tests" / "clients"
    if not (clients / "node_modules" / "tus-js-client").is_dir():
        pytest.skip("tus-js-client is missing: make setup installs it")
    return [node, str(clients / "tus_js.mjs")]
