"""Downloads from S3 itself: where a client is sent, when, and when not."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestClient
from msgspec.structs import replace

import services.storage.app
from services.storage.link_tokens import LinkTerms, LinkTokens
from services.storage.settings import Settings
from shared.blobs.store import BlobStore
from tests.processes import RedisServer
from tests.s3_servers import MotoServer
from tests.storage.stored_files import SECRET, put_file, token_of
from tests.storage.stores import LINK_SECRET, opened, s3_settings

CONTENT: Final = bytes(range(256)) * 40
OWNER: Final = token_of("alice")
Client = TestClient[web.Request, web.Application]


@pytest.fixture
def settings(data_dir: Path, redis_server: RedisServer, moto_server: MotoServer) -> Settings:
    """Settings of a storage that sends its clients to S3."""
    return Settings(
        redis_url=redis_server.url,
        data_dir=data_dir,
        auth_jwt_secret=SECRET,
        link_secrets=(LINK_SECRET,),
        s3_download="redirect",
        **s3_settings(moto_server),  # type: ignore[arg-type]
    )


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[BlobStore]:
    """What keeps the files that are served."""
    async with opened(settings) as one:
        yield one


@pytest.fixture
async def storage(aiohttp_client: Any, settings: Settings) -> Client:
    """The service."""
    client: Client = await aiohttp_client(services.storage.app.create_app(settings))
    return client


@pytest.fixture
async def path(store: BlobStore) -> str:
    """Where a file of the owner is."""
    file_id = await put_file(
        store,
        CONTENT,
        user_id="alice",
        tenant="acme",
        filename='<"März">.html',
        content_type="text/html",
    )
    return f"/api/v1/storage/{file_id}"


async def sent_to(storage: Client, path: str, **headers: str) -> str:
    """Return where a GET is sent."""
    answer = await storage.get(path, headers=headers, allow_redirects=False)
    assert answer.status == 307
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert await answer.read() == b""
    return answer.headers["Location"]


async def test_redirect(storage: Client, path: str, moto_server: MotoServer) -> None:
    """S3 gives the bytes under the safe name and type, to anybody, for a minute."""
    url = await sent_to(storage, path, **OWNER)
    assert url.startswith(moto_server.url)
    query = parse_qs(urlsplit(url).query)
    assert int(query["X-Amz-Expires"][0]) <= 60
    async with ClientSession() as session, session.get(url) as answer:
        assert (answer.status, await answer.read()) == (200, CONTENT)
        assert answer.headers["Content-Type"] == "application/octet-stream"
        disposition = answer.headers["Content-Disposition"]
        assert disposition.startswith("attachment; ")
        assert disposition.endswith("filename*=UTF-8''%3C%22M%C3%A4rz%22%3E.html")
    headers = {"Range": "bytes=5-9"}
    async with ClientSession() as session, session.get(url, headers=headers) as answer:
        assert (answer.status, await answer.read()) == (206, CONTENT[5:10])


async def test_only_what_s3_can_answer(storage: Client, path: str) -> None:
    """Refusals, looks, and conditions on tags that S3 does not know are answered here."""
    head = await storage.head(path, headers=OWNER, allow_redirects=False)
    assert (head.status, head.content_length) == (200, len(CONTENT))
    tag = head.headers["ETag"]
    for more, status in (
        ({"If-None-Match": tag}, 304),
        ({"If-Match": '"x"'}, 412),
        ({"Range": "bytes=99999-"}, 416),
        ({"If-Match": tag}, 200),
        ({"If-Range": tag, "Range": "bytes=0-0"}, 206),
        ({"If-Unmodified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"}, 200),
        ({"Range": "bytes=0-0"}, 307),
    ):
        answer = await storage.get(path, headers={**OWNER, **more}, allow_redirects=False)
        assert answer.status == status, more
    assert (await storage.get(path, headers=token_of("bob"))).status == 403


async def test_links(storage: Client, path: str) -> None:
    """A link leads there too, with its name; one that is good once does not: S3 would ask
    nobody."""
    answer = await storage.post(f"{path}/links", headers=OWNER, json={"filename": "x.bin"})
    link = (await answer.json())["url"].removeprefix(str(storage.make_url("")).rstrip("/"))
    assert "filename%3D%22x.bin%22" in await sent_to(storage, link)
    answer = await storage.post(f"{path}/links", headers=OWNER, json={"single_use": True})
    link = (await answer.json())["url"].removeprefix(str(storage.make_url("")).rstrip("/"))
    whole = await storage.get(link, allow_redirects=False)
    assert (whole.status, await whole.read()) == (200, CONTENT)


async def test_no_url_outlives_its_link(storage: Client, path: str) -> None:
    """Where a link leads ends with the link; if that is at once, the bytes come from here."""
    tokens, file_id = LinkTokens([LINK_SECRET.encode()]), path.rpartition("/")[2]
    for left_s in (20, 7200):
        ends_at = int(time.time()) + left_s
        token = tokens.make(file_id, LinkTerms(generation=0, expires_at=ends_at))
        url = await sent_to(storage, f"{path}/shared?link={token}")
        query = parse_qs(urlsplit(url).query)
        signed_at = datetime.strptime(f"{query['X-Amz-Date'][0]}+0000", "%Y%m%dT%H%M%SZ%z")
        good_until = signed_at.timestamp() + int(query["X-Amz-Expires"][0])
        assert good_until <= min(ends_at, time.time() + 60)
        assert good_until > time.time()


async def test_quarantined(storage: Client, path: str, store: BlobStore) -> None:
    """A file that must be scanned is served by nobody."""
    writer = await store.acquire(path.rpartition("/")[2])
    await writer.record(replace(writer.sidecar, status="quarantined"))
    await writer.close()
    answer = await storage.get(path, headers=OWNER, allow_redirects=False)
    assert answer.status == 409


async def test_deleted(storage: Client, path: str) -> None:
    """A URL that was given before the delete gives nothing after it."""
    url = await sent_to(storage, path, **OWNER)
    assert (await storage.delete(path, headers=OWNER)).status == 204
    async with ClientSession() as session, session.get(url) as answer:
        assert answer.status in {403, 404}  # who may not list is not told which
    assert (await storage.get(path, headers=OWNER)).status == 404


async def test_files_have_no_urls(aiohttp_client: Any, settings: Settings) -> None:
    """On a file system the setting changes nothing."""
    local = replace(settings, blob_store="")
    client: Client = await aiohttp_client(services.storage.app.create_app(local))
    async with opened(local) as store:
        file_id = await put_file(store, CONTENT, user_id="alice", tenant="acme")
    answer = await client.get(
        f"/api/v1/storage/{file_id}", headers=OWNER, allow_redirects=False
    )
    assert (answer.status, await answer.read()) == (200, CONTENT)
