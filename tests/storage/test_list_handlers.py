"""The list and the facts of files through the real application: who may see what."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from msgspec.structs import replace
from redis.asyncio import Redis
from yarl import URL

import services.storage.app
from services.storage.settings import Settings
from shared.blobs.filesystem import FilesystemStore
from shared.sidecar import encode, new_id
from tests.processes import RedisServer
from tests.shared.waiting import eventually
from tests.storage.stored_files import SECRET, put_file, token_of, tombstone_of

PATH: Final = "/api/v1/storage"

Client = TestClient[web.Request, web.Application]


class MakeClient(Protocol):
    """The fixture ``aiohttp_client``."""

    async def __call__(self, app: web.Application) -> Client:
        """Serve an application until the test ends."""


@pytest.fixture
def store(data_dir: Path) -> Iterator[FilesystemStore]:
    """What keeps the files that are listed."""
    one = FilesystemStore(data_dir / "blobs")
    yield one
    asyncio.run(one.close())


@pytest.fixture
async def ann_file(store: FilesystemStore) -> str:
    """A file of Ann, of the tenant acme."""
    return await put_file(store, b"content", user_id="ann", tenant="acme")


@pytest.fixture
async def storage(
    aiohttp_client: MakeClient,
    data_dir: Path,
    redis_server: RedisServer,
    redis: Redis,
    ann_file: str,
) -> Client:
    """A storage that asks who is calling, and has recorded what it found at its start."""
    settings = Settings(
        redis_url=redis_server.url,
        data_dir=data_dir,
        auth_mode="required",
        auth_jwt_secret=SECRET,
    )
    client = await aiohttp_client(services.storage.app.create_app(settings))

    async def is_complete() -> bool:
        return bool((await listed(client, token_of("ann")))["complete"])

    await eventually(is_complete, "the files are found again")
    return client


async def listed(client: Client, caller: dict[str, str], query: str = "") -> dict[str, Any]:
    """Return the first page of a list."""
    answer = await client.get(PATH + query, headers=caller)
    assert answer.status == 200, await answer.text()
    assert answer.headers["Cache-Control"] == "no-store"
    body: dict[str, Any] = await answer.json()
    return body


async def test_who_sees_which_files(storage: Client, ann_file: str) -> None:
    """Everyone lists the own files; an admin those of others in the tenant, and no further."""
    page = await listed(storage, token_of("ann"))
    assert [one["file_id"] for one in page["files"]] == [ann_file]
    assert (page["user_id"], page["total_files"]) == ("ann", 1)
    assert (await listed(storage, token_of("bob")))["files"] == []
    assert (await listed(storage, token_of("ann", "other")))["files"] == []
    admin = token_of("root", scope="admin")
    assert (await listed(storage, admin))["files"] == []
    assert (await listed(storage, admin, "?user=ann"))["files"] == page["files"]
    assert (await listed(storage, token_of("ann"), "?user=ann"))["files"] == page["files"]
    foreign = token_of("root", "other", "admin")
    assert (await listed(storage, foreign, "?user=ann"))["files"] == []

    for caller, query, status in (
        (token_of("bob"), "?user=ann", 403),
        (token_of("bob"), "?user=nobody", 403),  # nobody learns who is there
        (admin, "?user=", 400),
        (admin, "?user=a%20b", 400),
        (token_of("ann"), "?limit=0", 400),
        ({}, "", 401),
    ):
        answer = await storage.get(PATH + query, headers=caller)
        assert answer.status == status, (query, await answer.text())
        assert answer.content_type == "application/problem+json"


async def test_who_sees_the_facts(storage: Client, ann_file: str) -> None:
    """The facts of a file are for those who may have its bytes, with the same refusals."""
    url = f"{PATH}/{ann_file}"
    for caller, status in (
        (token_of("ann"), 200),
        (token_of("root", scope="admin"), 200),
        (token_of("bob"), 403),
        (token_of("root", "other", "admin"), 403),
        ({}, 401),
    ):
        seen = [(await storage.get(one, headers=caller)).status for one in (url, f"{url}/meta")]
        assert seen == [status, status]
    for unknown in (new_id(), "nonsense", "..%2fepoch", ann_file.upper()):
        answer = await storage.get(f"{PATH}/{unknown}/meta", headers=token_of("ann"))
        assert answer.status == 404


async def test_facts(storage: Client, store: FilesystemStore, ann_file: str) -> None:
    """What is told of a file is what its download says, and its URL leads there."""
    ann = token_of("ann")
    sidecar = store.load_now(ann_file)
    facts = replace(sidecar.facts, metadata={"k": "v"})
    known = replace(sidecar, facts=facts, digests={"sha256": "ab" * 32}, original_id=new_id())
    store.path(ann_file, ".info").write_bytes(encode(known))

    answer = await storage.get(f"{PATH}/{ann_file}/meta", headers=ann)
    body = await answer.json()
    assert answer.status == 200
    assert body["metadata"] == {"k": "v"}
    assert (body["size"], body["status"], body["sha256"]) == (7, "stored", "ab" * 32)
    assert body["duplicate_of"] == known.original_id
    url = answer.url.join(URL(body["url"]))
    assert url.path == f"{PATH}/{ann_file}"
    download = await storage.head(url.path, headers=ann)
    assert download.headers["ETag"] == body["etag"]
    # The digest came after the file was recorded; who asks for it has it recorded.
    assert (await listed(storage, ann))["files"][0]["sha256"] == "ab" * 32


async def test_facts_of_what_is_no_file(
    storage: Client, store: FilesystemStore, ann_file: str
) -> None:
    """What waits for its scan is told so; pieces, halves and dead files are not there."""
    ann = token_of("ann")
    waiting = await put_file(store, b"virus?", user_id="ann", tenant="acme")
    sidecar = replace(store.load_now(waiting), status="quarantined", completed_at=None)
    store.path(waiting, ".info").write_bytes(encode(sidecar))
    part = await put_file(store, b"part", user_id="ann", tenant="acme", concat="partial")
    half = await put_file(store, b"half", user_id="ann", tenant="acme", complete=False)
    damaged = await put_file(store, b"damaged", user_id="ann", tenant="acme")
    store.path(damaged, ".info").write_bytes(b"{}")
    store.path(ann_file, ".info").write_bytes(tombstone_of(store.load_now(ann_file)))

    answer = await storage.get(f"{PATH}/{waiting}/meta", headers=ann)
    body = await answer.json()
    assert (answer.status, body["status"], body["completed_at"]) == (200, "quarantined", None)
    assert (await storage.get(f"{PATH}/{waiting}", headers=ann)).status == 409
    answer = await storage.get(f"{PATH}/{waiting}/meta", headers=token_of("bob"))
    assert answer.status == 403
    for one in (part, half, ann_file):
        answer = await storage.get(f"{PATH}/{one}/meta", headers=ann)
        assert answer.status == 404
    assert (await storage.get(f"{PATH}/{damaged}/meta", headers=ann)).status == 500
    shown = {one["file_id"] for one in (await listed(storage, ann))["files"]}
    assert shown <= {ann_file}
