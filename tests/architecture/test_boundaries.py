"""Rules about the shape of the code that the linters cannot express; each is shown to bite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.architecture import rules

ROOT: Final = Path(__file__).parents[2]

SHARED_LINES: Final = 12_400
"""All of ``shared/``: the wire contract, the bus, the blob store and what guards the doors.
Raising it takes a decision record."""
FILE_LINES: Final = 400

USED_BY_ONE: Final[Mapping[str, str]] = {
    "shared.stream_order": "a part of shared.stream_tail, apart from it because it is pure",
    "shared.stream_tail": "the counterpart of shared.stream_group: only the two of them may "
    "know how Redis orders, trims and loses entries",
}
"""Shared modules that fewer than two services use, with the reason."""

PURE: Final = (
    "services.gateway.asyncapi",
    "services.gateway.dialects",
    "services.gateway.folding",
    "services.gateway.hub",
    "services.gateway.interest",
    "services.gateway.job_reports",
    "services.gateway.keys",
    "services.gateway.log",
    "services.gateway.resume",
    "services.gateway.snapshot",
    "services.gateway.state",
    "services.ingest.checksums",
    "services.ingest.content_disposition",
    "services.ingest.digest_fields",
    "services.ingest.ietf",
    "services.ingest.structured_fields",
    "services.ingest.tus",
    "services.storage.conditions",
    "services.storage.content_types",
    "services.storage.disposition",
    "services.storage.link_tokens",
    "services.storage.multipart",
    "services.storage.repr_digest",
    "services.storage.paging",
    "services.storage.ranges",
    "services.storage.record",
    "shared.blobs.s3_keys",
    "shared.blobs.s3_parts",
    "shared.events",
    "shared.sidecar",
)
"""What holds rules and no I/O."""


def plant(root: Path, files: Mapping[str, str]) -> Path:
    """Write a source tree with two services and a shared package, and these files in it."""
    skeleton = dict.fromkeys(
        ("services/__init__", "services/ingest/__init__", "services/gateway/__init__"), ""
    )
    for name, text in {**skeleton, "shared/__init__": "", **files}.items():
        path = root / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_services_meet_only_on_streams() -> None:
    """No service imports another one, and shared code imports no service."""
    assert rules.foreign_imports(ROOT) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        pytest.param("services/ingest/app", "import services.gateway.app", id="plain"),
        pytest.param("services/ingest/app", "from services import gateway", id="package"),
        pytest.param("services/ingest/app", "from ..gateway import app", id="relative"),
        pytest.param(
            "services/ingest/app",
            "def f() -> None:\n    from ..gateway.app import x",
            id="lazy",
        ),
        pytest.param("services/ingest/__init__", "from ..gateway import app", id="init"),
        pytest.param("shared/web", "import services.ingest.app as app", id="shared"),
        pytest.param("shared/blobs/disk", "from services import embedded", id="shared-deep"),
    ],
)
def test_foreign_imports_are_found(tmp_path: Path, module: str, text: str) -> None:
    """Whichever way it is written, an import over a boundary is found."""
    root = plant(tmp_path, {module: text})

    assert len(rules.foreign_imports(root)) >= 1


def test_allowed_imports_are_not_reported(tmp_path: Path) -> None:
    """A service's own modules, shared code, and what puts the services together are fine."""
    files = {
        "services/__main__": "import services.ingest.app\nimport services.gateway.app",
        "services/ingest/app": "from services.ingest import tus\nimport shared.web",
        "services/gateway/app": "from . import hub\nfrom shared import web",
    }

    assert rules.foreign_imports(plant(tmp_path, files)) == []


def test_shared_modules_are_shared() -> None:
    """Two services need each shared module, by themselves or through shared code."""
    assert rules.unshared(ROOT, USED_BY_ONE) == []


def test_unshared_modules_are_found(tmp_path: Path) -> None:
    """One user is too few, a chain over shared code counts, and an excuse may not outlive."""
    files = {
        "shared/lone": "",
        "shared/deep": "",
        "shared/wide": "import shared.deep",
        "services/ingest/app": "from shared import lone, wide",
        "services/gateway/app": "import shared.wide",
        "services/__main__": "import shared.lone",
    }
    root = plant(tmp_path, files)

    assert rules.unshared(root, {}) == ["shared.lone is used by ingest only"]
    assert rules.unshared(root, {"shared.lone": "soon", "shared.deep": "why", "gone": ""}) == [
        "shared.deep needs no excuse any more",
        "gone is excused but not there",
    ]


def test_shared_stays_small() -> None:
    """The shared package keeps within its budget, so that it never becomes a framework."""
    assert rules.shared_lines(ROOT) <= SHARED_LINES


def test_shared_lines_are_counted(tmp_path: Path) -> None:
    """Sub-packages count too."""
    root = plant(tmp_path, {"shared/a": "x = 1\n" * 30, "shared/b/c": "x = 1\n" * 12})

    assert rules.shared_lines(root) == 42


def test_files_stay_short() -> None:
    """A module can be read in one go."""
    assert rules.long_files(ROOT, FILE_LINES) == []


def test_long_files_are_found(tmp_path: Path) -> None:
    """A line over the limit is too many."""
    root = plant(tmp_path, {"shared/a": "#\n" * 11, "services/ingest/b": "#\n" * 10})

    assert rules.long_files(root, 10) == ["shared.a has 11 lines"]


def test_names_say_something() -> None:
    """No module is named after nothing in particular."""
    assert rules.junk_names(ROOT) == []


def test_junk_names_are_found(tmp_path: Path) -> None:
    """A drawer is found at any depth, as a package too."""
    root = plant(tmp_path, {"shared/helpers": "", "services/ingest/core/x": ""})

    assert set(rules.junk_names(root)) == {"shared.helpers", "services.ingest.core.x"}


def test_cores_do_no_io() -> None:
    """The modules that hold the rules name neither the HTTP library nor Redis."""
    assert rules.impure_cores(ROOT, PURE) == []


def test_impure_cores_are_found(tmp_path: Path) -> None:
    """Importing inside a function does not hide it, and a core that has moved is missed."""
    files = {
        "services/ingest/tus": "def f() -> None:\n    from aiohttp import web",
        "services/gateway/dialects/x": "import redis.asyncio",
    }
    cores = ("services.ingest.tus", "services.gateway.dialects", "shared.moved")

    assert rules.impure_cores(plant(tmp_path, files), cores) == [
        "services.gateway.dialects.x imports redis",
        "services.ingest.tus imports aiohttp",
        "services.gateway.dialects is not there",
        "shared.moved is not there",
    ]


def test_each_module_imports_alone() -> None:
    """Every module can be the first one that is imported, and none warns while it is."""
    assert rules.imports_alone(ROOT, rules.modules(ROOT).keys()) == {}


def test_modules_that_do_not_import_alone_are_found(tmp_path: Path) -> None:
    """A circle, a warning and a missing name are found, and a good module is not."""
    files = {
        "shared/chicken": "from shared.egg import x\ny = 1",
        "shared/egg": "from shared.chicken import y\nx = 1",
        "shared/loud": "import warnings\nwarnings.warn('old', DeprecationWarning)",
        "shared/fine": "import shared",
        "services/ingest/dead": "import os\nos._exit(3)",
    }
    root = plant(tmp_path, files)

    failed = rules.imports_alone(root, rules.modules(root).keys())

    assert failed.keys() == {
        "shared.chicken",
        "shared.egg",
        "shared.loud",
        "services.ingest.dead",
    }
    assert "DeprecationWarning: old" in failed["shared.loud"][-1]
