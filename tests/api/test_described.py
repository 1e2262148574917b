"""What the services serve and what their documents say are the same."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from openapi_spec_validator import OpenAPIV31SpecValidator

from docs import generate
from services.gateway.internal_api import internal_document
from shared.api_routes import API
from shared.errors import ApiError
from tests.architecture import rules

APPS = ["ingest", "gateway", "storage"]


def app_of(name: str, data_dir: Path) -> web.Application:
    """Return one service, not started."""
    settings = importlib.import_module(f"services.{name}.settings").Settings
    factory = importlib.import_module(f"services.{name}.app").create_app
    made = factory(settings(auth_mode="open", data_dir=data_dir))
    assert isinstance(made, web.Application)
    return made


async def served(app: web.Application) -> set[tuple[str, str]]:
    """Return method and path of all that an application serves."""
    found = set()
    for route in app.router.routes():
        resource = route.resource
        assert resource is not None
        if route.method == "*":
            methods = await allowed_by(route)
        else:
            methods = {route.method}
        found |= {(method, resource.canonical) for method in methods}
    return found


async def allowed_by(route: web.AbstractRoute) -> set[str]:
    """Return the methods of a route that looks for itself at what is asked."""
    with pytest.raises(web.HTTPMethodNotAllowed) as refused:
        await route.handler(make_mocked_request("BREW", "/"))
    return set(refused.value.allowed_methods)


def described(app: web.Application) -> set[tuple[str, str]]:
    """Return method and path of all that an application says it serves."""
    paths = app[API].document()["paths"]
    return {(method.upper(), path) for path in paths for method in paths[path]}


@pytest.mark.parametrize("name", APPS)
async def test_routes_and_descriptions_agree(name: str, tmp_path: Path) -> None:
    """No route is undescribed, and nothing is described that is not there."""
    app = app_of(name, tmp_path)

    routes, told = await served(app), described(app)

    implied = {("HEAD", path) for method, path in told if method == "GET"}
    assert routes - told - implied == set()
    assert told - routes == set()


async def test_undescribed_routes_are_found(tmp_path: Path) -> None:
    """A route that is added without a description does not go unnoticed."""

    async def handler(_: web.Request) -> web.Response:
        return web.Response()

    app = app_of("storage", tmp_path)
    app.router.add_post("/api/v1/storage/{file_id}", handler)

    assert await served(app) - described(app) == {
        ("POST", "/api/v1/storage/{file_id}"),
        ("HEAD", "/api/v1/storage"),
        ("HEAD", "/api/v1/storage/{file_id}/meta"),
        ("HEAD", "/openapi.json"),
        ("HEAD", "/docs"),
    }


@pytest.mark.parametrize("name", APPS)
def test_each_document_is_valid(name: str, tmp_path: Path) -> None:
    """A document that breaks OpenAPI 3.1 would be of no use to any tool."""
    OpenAPIV31SpecValidator(app_of(name, tmp_path)[API].document()).validate()


def test_all_services_make_one_document() -> None:
    """The document of the all-in-one is valid, and has what each service has."""
    whole = generate.api_document()

    OpenAPIV31SpecValidator(whole).validate()
    assert {"/api/v1/uploads", "/api/v1/storage/{file_id}", "/ws/upload-progress"} <= set(
        whole["paths"]
    )


def subclasses(kind: type[ApiError]) -> Iterator[type[ApiError]]:
    """Yield all kinds of an error that the project has, itself included."""
    if kind.__module__.split(".")[0] in {"services", "shared"}:
        yield kind
    for below in kind.__subclasses__():
        yield from subclasses(below)


def test_every_error_code_is_listed() -> None:
    """Programs that switch on error codes can rely on the list."""
    for name in rules.modules(generate.ROOT):
        if not name.endswith("__main__"):
            importlib.import_module(name)

    documents = (generate.api_document(), internal_document())
    listed = {
        code for one in documents for code in one["components"]["schemas"]["ErrorCode"]["enum"]
    }

    assert {one.error_code for one in subclasses(ApiError)} - listed == set()
    assert codes_in_place() - listed == set()


def codes_in_place() -> set[str]:
    """Return the codes that are given to an error where it is raised."""
    trees = (ast.parse(path.read_text()) for path in rules.modules(generate.ROOT).values())
    given = (
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "error_code"
    )
    return {str(value.value) for value in given if isinstance(value, ast.Constant)}
