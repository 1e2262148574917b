"""Storage on an S3 server that fails or is slow: what a link and a request cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from msgspec.structs import replace

import services.storage.app
from services.storage.settings import Settings
from shared.blobs.store import BlobStore
from tests.processes import RedisServer
from tests.s3_proxy import Call, Fate, S3Proxy
from tests.s3_servers import MotoServer
from tests.shared.waiting import eventually
from tests.storage.stored_files import SECRET, put_file, token_of
from tests.storage.stores import LINK_SECRET, opened, s3_settings

CONTENT: Final = bytes(range(256)) * 4000
OWNER: Final = token_of("alice")
Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def s3(moto_server: MotoServer) -> AsyncIterator[S3Proxy]:
    """The server, behind what makes it fail."""
    async with S3Proxy(
        moto_server.url,
        access_key_id=moto_server.access_key_id,
        secret_access_key=moto_server.secret_access_key,
    ) as one:
        yield one
        one.gate.set()


@pytest.fixture
def settings(
    data_dir: Path, redis_server: RedisServer, moto_server: MotoServer, s3: S3Proxy
) -> Settings:
    """Settings of a storage behind that server."""
    place: dict[str, Any] = {**s3_settings(moto_server), "s3_endpoint_url": s3.url}
    return Settings(
        redis_url=redis_server.url,
        data_dir=data_dir,
        auth_jwt_secret=SECRET,
        link_secrets=(LINK_SECRET,),
        **place,
    )


@pytest.fixture
async def store(settings: Settings, moto_server: MotoServer) -> AsyncIterator[BlobStore]:
    """What keeps the files, straight at the server."""
    async with opened(replace(settings, s3_endpoint_url=moto_server.url)) as one:
        yield one


@pytest.fixture
async def storage(aiohttp_client: Any, settings: Settings) -> Client:
    """The service."""
    client: Client = await aiohttp_client(services.storage.app.create_app(settings))
    return client


@pytest.fixture
async def path(store: BlobStore, storage: Client) -> str:
    """Where a file of the owner is, whose type is known."""
    file_id = await put_file(store, CONTENT, user_id="alice", tenant="acme")
    path = f"/api/v1/storage/{file_id}"
    assert (await storage.head(path, headers=OWNER)).status == 200
    return path


def gets_of(s3: S3Proxy, path: str) -> list[Call]:
    """Return the requests for a file's bytes."""
    file_id = path.rpartition("/")[2]
    return [one for one in s3.calls if one.kind == "GET" and one.key.endswith(file_id)]


async def link_once(storage: Client, path: str) -> str:
    """Return path and query of a new link that is good once."""
    answer = await storage.post(f"{path}/links", headers=OWNER, json={"single_use": True})
    url = (await answer.json())["url"]
    return str(url).removeprefix(str(storage.make_url("")).rstrip("/"))


async def test_a_store_that_fails_uses_no_link_up(
    storage: Client, path: str, s3: S3Proxy
) -> None:
    """Who got nothing because the store failed may come again, and then once only."""
    link = await link_once(storage, path)

    def refuse(call: Call) -> Fate:
        return "refuse" if call.kind == "GET" and path.endswith(call.key[-36:]) else "pass"

    s3.decide = refuse
    for headers in ({}, {"Range": "bytes=5-9,700000-700009"}):
        assert (await storage.get(link, headers=headers)).status == 503
    s3.decide = lambda _: "pass"
    part = await storage.get(link, headers={"Range": "bytes=5-9,700000-700009"})
    assert part.status == 206
    assert CONTENT[700_000:700_010] in await part.read()
    assert (await storage.get(link)).status == 410


async def test_one_of_two_that_wait_for_the_store(
    storage: Client, path: str, s3: S3Proxy
) -> None:
    """Two that both have their first bytes on the way: one gets them, the other nothing."""
    link = await link_once(storage, path)
    s3.gate.clear()
    both = [asyncio.ensure_future(storage.get(link)) for _ in range(2)]
    await eventually(lambda: s3.held >= 2, "both ask the store")
    s3.gate.set()
    answers = sorted([(one.status, await one.read()) for one in await asyncio.gather(*both)])
    assert answers[0] == (200, CONTENT)
    assert answers[1][0] == 410


async def test_a_client_that_went_uses_nothing_up(
    storage: Client, path: str, s3: S3Proxy
) -> None:
    """Whoever gave up while the store was slow finds the link as it was."""
    link, before = await link_once(storage, path), len(gets_of(s3, path))

    def held(call: Call) -> Fate:
        if call.kind == "GET" and path.endswith(call.key[-36:]):
            s3.gate.clear()
        return "pass"

    s3.decide = held
    server: Any = storage.server
    others = set(server.runner.server.connections)
    _, writer = await asyncio.open_connection(server.host, server.port)
    with closing(writer):
        writer.write(f"GET {link} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await eventually(lambda: len(gets_of(s3, path)) > before, "it waits for the store")
        [own] = set(server.runner.server.connections) - others
    with suppress(ConnectionError):
        await writer.wait_closed()
    await eventually(lambda: own.transport is None, "the service has noticed")
    s3.decide = lambda _: "pass"
    s3.gate.set()
    answer = await storage.get(link)
    assert (answer.status, await answer.read()) == (200, CONTENT)


async def test_near_ranges_are_one_read(storage: Client, path: str, s3: S3Proxy) -> None:
    """50 ranges of a byte cost the store one request, and come as they were asked for."""
    before = len(gets_of(s3, path))
    wanted = ",".join(f"{1000 * n}-{1000 * n}" for n in range(50))
    answer = await storage.get(path, headers={**OWNER, "Range": f"bytes={wanted}"})
    body = await answer.read()
    assert (answer.status, int(answer.headers["Content-Length"])) == (206, len(body))
    parts = body.split(b"\r\n\r\n")[1:]
    assert [one[:1] for one in parts] == [CONTENT[1000 * n : 1000 * n + 1] for n in range(50)]
    assert len(gets_of(s3, path)) == before + 1


async def test_a_store_that_fails_between_parts(
    storage: Client, path: str, s3: S3Proxy
) -> None:
    """The connection is cut: no refusal is written into a body that has begun."""
    before, server = len(gets_of(s3, path)), storage.server
    assert server is not None

    def refuse_the_second(call: Call) -> Fate:
        is_later = call in gets_of(s3, path)[before + 1 :]
        return "refuse" if is_later else "pass"

    s3.decide = refuse_the_second
    reader, writer = await asyncio.open_connection(server.host, server.port)
    with closing(writer):
        lines = [f"GET {path} HTTP/1.1", "Host: localhost", "Range: bytes=0-9,900000-900009"]
        lines += [f"{name}: {value}" for name, value in OWNER.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        answer = b""
        async with asyncio.timeout(30):
            with suppress(ConnectionError):
                while block := await reader.read(65536):
                    answer += block
    assert len(gets_of(s3, path)) > before + 1
    assert answer.startswith(b"HTTP/1.1 206")
    assert answer.count(b"HTTP/1.1") == 1
