"""What was made of a file, over HTTP, from both stores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

import services.storage.app
from services.storage.settings import Settings
from shared.blobs.store import BlobStore
from shared.sidecar import new_id
from tests.storage import stores
from tests.storage.stored_files import put_file, token_of

settings, store = stores.settings, stores.store

CONTENT: Final = bytes(range(256)) * 40
OWNER: Final = token_of("alice")
Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def storage(aiohttp_client: Any, settings: Settings) -> Client:
    """The service."""
    client: Client = await aiohttp_client(services.storage.app.create_app(settings))
    return client


@pytest.fixture
async def file_id(store: BlobStore) -> str:
    """A file with a thumbnail and a table."""
    made = await put_file(store, b"a film", user_id="alice", tenant="acme")
    await put(store, made, "thumb.jpg", CONTENT)
    await put(store, made, "rows.parquet", b"PAR1")
    return made


async def put(store: BlobStore, file_id: str, name: str, content: bytes) -> None:
    """Make an artifact, as a worker does."""

    async def pieces() -> AsyncIterator[bytes]:
        yield content

    await store.artifacts.put(file_id, name, pieces())


async def test_listed(storage: Client, file_id: str) -> None:
    """All that there is is told, by name, with what it is served as."""
    answer = await storage.get(f"/api/v1/storage/{file_id}/artifacts", headers=OWNER)
    assert answer.status == 200
    listed = (await answer.json())["artifacts"]
    assert [(one["name"], one["size"], one["content_type"]) for one in listed] == [
        ("rows.parquet", 4, "application/vnd.apache.parquet"),
        ("thumb.jpg", len(CONTENT), "image/jpeg"),
    ]
    assert all(one["modified_at"].endswith("Z") for one in listed)


async def test_none(storage: Client, store: BlobStore) -> None:
    """A file of which nothing was made has an empty list."""
    file_id = await put_file(store, b"a film", user_id="alice", tenant="acme")
    answer = await storage.get(f"/api/v1/storage/{file_id}/artifacts", headers=OWNER)
    assert await answer.json() == {"artifacts": []}


async def test_served_as_files_are(storage: Client, file_id: str, store: BlobStore) -> None:
    """Ranges, conditions and safe headers are those of files; a new one has another tag."""
    path = f"/api/v1/storage/{file_id}/artifacts/thumb.jpg"
    whole = await storage.get(path, headers=OWNER)
    assert (whole.status, await whole.read()) == (200, CONTENT)
    assert whole.headers["Content-Type"] == "image/jpeg"
    assert whole.headers["Content-Disposition"].startswith('attachment; filename="thumb.jpg"')
    assert whole.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in whole.headers["Content-Security-Policy"]
    head = await storage.head(path, headers=OWNER)
    assert (head.status, head.content_length) == (200, len(CONTENT))
    tag = whole.headers["ETag"]
    assert head.headers["ETag"] == tag

    part = await storage.get(path, headers={**OWNER, "Range": "bytes=-10", "If-Range": tag})
    assert (part.status, await part.read()) == (206, CONTENT[-10:])
    assert (await storage.get(path, headers={**OWNER, "If-None-Match": tag})).status == 304
    missed = await storage.get(path, headers={**OWNER, "Range": "bytes=99999-"})
    assert (missed.status, missed.headers["Content-Range"]) == (416, f"bytes */{len(CONTENT)}")

    await put(store, file_id, "thumb.jpg", b"newer")
    part = await storage.get(path, headers={**OWNER, "Range": "bytes=-10", "If-Range": tag})
    assert (part.status, await part.read()) == (200, b"newer")


async def test_its_date_names_no_parts(storage: Client, file_id: str) -> None:
    """Within a second it may have been replaced: by a date nobody continues another one."""
    path = f"/api/v1/storage/{file_id}/artifacts/thumb.jpg"
    date = (await storage.head(path, headers=OWNER)).headers["Last-Modified"]
    part = await storage.get(path, headers={**OWNER, "Range": "bytes=1-", "If-Range": date})
    assert (part.status, await part.read()) == (200, CONTENT)


async def test_nobody_elses(storage: Client, file_id: str) -> None:
    """Who may not have the file has nothing that was made of it."""
    for path in ("artifacts", "artifacts/thumb.jpg", "artifacts/unknown"):
        url = f"/api/v1/storage/{file_id}/{path}"
        assert (await storage.get(url, headers=token_of("bob"))).status == 403
        assert (await storage.get(url)).status == 401
        admin = await storage.get(url, headers=token_of("root", scope="admin"))
        assert admin.status == (404 if "unknown" in path else 200)
        url = url.replace(file_id, new_id())
        assert (await storage.get(url, headers=OWNER)).status == 404


@pytest.mark.parametrize(
    "name",
    [
        "..%2fthumb.jpg",
        "%2e%2e",
        ".new-0",
        "thumb.jpg%00",
        "THUMB.jpg",
        "x" * 300,
        "a%2fb",
        "é",
    ],
)
async def test_no_such_names(storage: Client, file_id: str, name: str) -> None:
    """What is no name of an artifact is not looked for."""
    answer = await storage.get(f"/api/v1/storage/{file_id}/artifacts/{name}", headers=OWNER)
    assert answer.status == 404


async def test_gone_with_the_file(storage: Client, file_id: str, store: BlobStore) -> None:
    """A delete of the file leaves nothing of what was made of it."""
    path = f"/api/v1/storage/{file_id}"
    assert (await storage.delete(path, headers=OWNER)).status == 204
    assert (await storage.get(f"{path}/artifacts", headers=OWNER)).status == 404
    assert (await storage.get(f"{path}/artifacts/thumb.jpg", headers=OWNER)).status == 404
    assert await store.artifacts.all(file_id) == []
