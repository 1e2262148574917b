"""The rules about the shape of the code, each as a function from a source tree to its breaches.

A tree is a folder with ``services/`` and ``shared/`` below it: the project's own, or a bad one
that a test has planted. Imports are read from the source, those inside functions too.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

__all__ = [
    "foreign_imports",
    "imports_alone",
    "imports_of",
    "impure_cores",
    "junk_names",
    "lines_of",
    "long_files",
    "modules",
    "shared_lines",
    "unshared",
]

TOPS: Final = ("services", "shared")
JUNK_NAMES: Final = frozenset(
    {
        *("utils", "util", "helpers", "helper", "common", "misc", "base", "tools"),
        *("manager", "core", "lib", "stuff"),
    }
)
LIBRARIES: Final = ("aiohttp", "aiohttp_jwt", "jwt", "prometheus_client", "redis", "structlog")
"""What takes long to import. Loaded once, before the processes that load our modules fork."""


def modules(root: Path) -> dict[str, Path]:
    """Return the files of all our modules by dotted name; a package's is its ``__init__``."""
    found = {}
    for top in TOPS:
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, name: str) -> set[str]:
    """Return the dotted names that a module imports, wherever in it.

    ``from a import b`` counts as ``a`` and as ``a.b``: only one of them may be a module.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(node, package)
            found.add(origin)
            found.update(f"{origin}.{alias.name}" for alias in node.names)
    return found


def _origin(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    above = package.split(".")
    base = above[: len(above) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def _service_of(name: str) -> str | None:
    """Return the service that a dotted name lies in; modules beside the services have none."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "services" else None


def _services(root: Path) -> set[str]:
    return {one.parent.name for one in (root / "services").glob("*/*.py")}


def foreign_imports(root: Path) -> list[str]:
    """Return the imports from one service to another, and from shared code to a service.

    Modules that lie in ``services`` itself put the services together: they may import all.
    """
    services, breaches = _services(root), []
    for name, path in modules(root).items():
        own = _service_of(name)
        for wanted in sorted(imports_of(path, name)):
            other = _service_of(wanted)
            if name.split(".")[0] == "shared":
                foreign = wanted.split(".")[0] == "services"
            else:
                foreign = own in services and other in services and other != own
            if foreign:
                breaches.append(f"{name} imports {wanted}")
    return breaches


def unshared(root: Path, excused: Mapping[str, str]) -> list[str]:
    """Return the shared modules that fewer than two services need, and excuses that are stale.

    A module is needed by a service that imports it, and by one that imports a shared module
    which needs it.
    """
    found = modules(root)
    wants = {name: imports_of(path, name) & found.keys() for name, path in found.items()}
    breaches = []
    for module in (one for one in found if one.startswith("shared.")):
        users = {service for name in _users(module, wants) if (service := _service_of(name))}
        users &= _services(root)
        if len(users) < 2 and module not in excused and found[module].name != "__init__.py":
            breaches.append(f"{module} is used by {', '.join(users) or 'no service'} only")
        elif len(users) > 1 and module in excused:
            breaches.append(f"{module} needs no excuse any more")
    return breaches + [f"{name} is excused but not there" for name in excused.keys() - found]


def _users(module: str, wants: Mapping[str, set[str]]) -> set[str]:
    """Return all modules that need ``module``, through shared code too."""
    users, reached = set(), {module}
    while reached:
        needed = reached.pop()
        for name, wanted in wants.items():
            if needed in wanted and name not in users:
                users.add(name)
                if name.startswith("shared."):
                    reached.add(name)
    return users


def lines_of(path: Path) -> int:
    """Return the number of lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def shared_lines(root: Path) -> int:
    """Return the lines of all shared code."""
    return sum(lines_of(path) for path in (root / "shared").rglob("*.py"))


def long_files(root: Path, limit: int) -> list[str]:
    """Return the files with more lines than the limit."""
    counts = {name: lines_of(path) for name, path in modules(root).items()}
    return [f"{name} has {count} lines" for name, count in counts.items() if count > limit]


def junk_names(root: Path) -> list[str]:
    """Return the modules and packages whose name says nothing."""
    return [name for name in modules(root) if JUNK_NAMES.intersection(name.split("."))]


def impure_cores(
    root: Path, cores: Collection[str], forbidden: Collection[str] = ("aiohttp", "redis")
) -> list[str]:
    """Return the forbidden libraries that the cores name; a package stands for its modules."""
    breaches = []
    for name, path in modules(root).items():
        if any(name == core or name.startswith(f"{core}.") for core in cores):
            tops = {wanted.split(".")[0] for wanted in imports_of(path, name)}
            breaches += [f"{name} imports {library}" for library in tops & set(forbidden)]
    missing = set(cores) - modules(root).keys()
    return breaches + [f"{name} is not there" for name in sorted(missing)]


def imports_alone(root: Path, names: Collection[str]) -> dict[str, list[str]]:
    """Import each module in an interpreter that has loaded none of ours, warnings as errors.

    Returns the modules that fail, with the last lines of why.
    """
    command = [sys.executable, "-W", "error", "-c", _ALONE, json.dumps(LIBRARIES), *names]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    failed: dict[str, list[str]] = {}
    for name, text in _reports(done.stdout):
        failed[name] = text.strip().splitlines()[-3:]
    return failed


def _reports(output: str) -> Iterator[tuple[str, str]]:
    for line in output.splitlines():
        name, text = json.loads(line)
        yield name, text


_ALONE: Final = """
import importlib, json, os, sys, traceback
for library in json.loads(sys.argv[1]):
    importlib.import_module(library)
sys.path.insert(0, os.getcwd())
for name in sys.argv[2:]:
    if (child := os.fork()) == 0:
        try:
            importlib.import_module(name)
        except BaseException:
            print(json.dumps([name, traceback.format_exc()]), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(json.dumps([name, "the interpreter died"]), flush=True)
"""
