"""The description over HTTP: for programs and for people, to anyone, needing nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, Request

from docs import generate
from services.ingest import api
from shared.api_page import STYLE, page
from shared.api_routes import API
from shared.serve import new_application
from shared.settings import CommonSettings

Client = TestClient[Request, Application]


@pytest.fixture
async def client(data_dir: Path) -> AsyncIterator[Client]:
    """A client without credentials, of a server that demands them."""
    settings = CommonSettings(data_dir=data_dir, auth_mode="required", auth_jwt_secret="x" * 32)
    app = new_application(settings)
    app[API].add(*api.SECTIONS)
    async with TestClient(TestServer(app)) as one:
        yield one


@pytest.mark.parametrize(
    ("path", "media_type"), [("/openapi.json", "application/json"), ("/docs", "text/html")]
)
async def test_anyone_may_read(client: Client, path: str, media_type: str) -> None:
    """Who has no credentials yet can find out how to call."""
    answer = await client.get(path)

    assert (answer.status, answer.content_type) == (200, media_type)
    assert len(await answer.read()) > 1000
    assert (await client.head(path)).status == 200


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
async def test_what_the_client_has_is_not_sent_again(client: Client, path: str) -> None:
    """The tag of a reader's copy is answered 304, another tag in full."""
    tag = (await client.get(path)).headers["ETag"]

    async def asked_with(value: str) -> ClientResponse:
        return await client.get(path, headers={"If-None-Match": value})

    same = await asked_with(f'"other", {tag}')
    assert (same.status, await same.read(), same.headers["ETag"]) == (304, b"", tag)
    assert (await asked_with("*")).status == 304
    assert (await asked_with('"other"')).status == 200


async def test_the_document_is_that_of_the_routes(client: Client) -> None:
    """What is served names what the parts of the application added, and itself."""
    paths = (await (await client.get("/openapi.json")).json())["paths"]

    assert {"/api/v1/uploads", "/openapi.json", "/docs"} <= paths.keys()
    assert "/api/v1/storage/{file_id}" not in paths


async def test_only_the_style_of_the_page_applies(client: Client) -> None:
    """The policy lets nothing in but the page's own style sheet, which really is it."""
    answer = await client.get("/docs")

    policy = answer.headers["Content-Security-Policy"]
    styles = re.findall(r"<style>(.*?)</style>", await answer.text(), re.DOTALL)
    assert len(styles) == 1
    digest = base64.b64encode(hashlib.sha256(styles[0].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


class Elements(HTMLParser):
    """The elements of a page, and whether they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Count an element in."""
        self.found.append((tag, dict(attrs)))
        if tag not in {"meta", "wbr", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close what must be the last one that is open."""
        assert self.open.pop() == tag

    def values(self, name: str) -> list[str]:
        """Return the values of an attribute, wherever it stands."""
        return [value for _, attrs in self.found if (value := attrs.get(name)) is not None]


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """The document of all services."""
    return generate.api_document()


def test_the_page_needs_nothing_else(whole: dict[str, Any]) -> None:
    """Nothing is loaded or run: the page can be read offline, and cannot betray its reader."""
    text = page(whole)
    elements = Elements(text)

    assert elements.open == []
    assert {tag for tag, _ in elements.found}.isdisjoint({"script", "link", "img", "iframe"})
    assert elements.values("src") == elements.values("style") == []
    assert all(link.startswith("#") for link in elements.values("href"))
    assert "url(" not in STYLE
    assert "@import" not in STYLE


def test_every_link_of_the_page_leads_somewhere(whole: dict[str, Any]) -> None:
    """Anchors are unique, and each link has one."""
    elements = Elements(page(whole))

    anchors = elements.values("id")
    assert len(anchors) == len(set(anchors))
    assert {link[1:] for link in elements.values("href")} <= set(anchors)


def test_the_page_tells_all(whole: dict[str, Any]) -> None:
    """Operations, parameters, codes and examples of the document can be read on the page."""
    text = page(whole)
    shown = html.unescape(re.sub("<[^>]*>", "", text))

    for path, methods in whole["paths"].items():
        assert path in shown
        for one in methods.values():
            assert f'id="{one["operationId"]}"' in text
            assert one["summary"] in shown
            assert all(each["name"] in shown for each in one["parameters"])
            told = one.get("x-messages", {"receives": [], "sends": []})
            for each in told["receives"] + told["sends"]:
                assert each["$ref"].rpartition("/")[2] in shown
            assert all(each["source"] in shown for each in one.get("x-codeSamples", ()))
    for name, schema in whole["components"]["schemas"].items():
        assert f'id="schema-{name}"' in text
        assert all(code in shown for code in schema.get("enum", ()))


def test_text_cannot_become_markup(whole: dict[str, Any]) -> None:
    """Whatever a description contains is shown, not interpreted."""
    info = {**whole["info"], "title": "<b>&", "description": "a `<i>&` b <script>"}
    text = page({**whole, "info": info})

    assert "<h1>&lt;b&gt;&amp;</h1>" in text
    assert "<p>a <code>&lt;i&gt;&amp;</code> b &lt;script&gt;</p>" in text
