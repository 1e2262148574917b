"""Signed links: who gets them, what they allow, and what ends them."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from msgspec.structs import replace
from redis.asyncio import Redis

import services.storage.app
from services.storage.claiming import claim_readable
from services.storage.link_tokens import LinkTerms, LinkTokens
from services.storage.links import LONGEST_S
from services.storage.settings import Settings
from shared.blobs.filesystem import FilesystemStore
from shared.sidecar import encode, new_id
from tests.processes import RedisServer, ServiceProcess, running
from tests.storage.stored_files import SECRET, put_file, token_of

CONTENT: Final = bytes(range(256)) * 40
LINK_SECRET: Final = "a secret for links with 32 characters at least"
OWNER: Final = token_of("alice")
STRANGER: Final = token_of("bob")
ADMIN: Final = token_of("root", scope="admin")
FOREIGN_ADMIN: Final = token_of("root", tenant="other", scope="admin")

Client = TestClient[web.Request, web.Application]


async def put(store: FilesystemStore) -> str:
    """Keep a file of the owner; return its id."""
    return await put_file(store, CONTENT, user_id="alice", tenant="acme", filename="report.pdf")


@pytest.fixture
def settings(data_dir: Path, redis_server: RedisServer, redis: Redis) -> Settings:
    """Settings of a storage for callers with tokens, that makes links."""
    return Settings(
        redis_url=redis_server.url,
        data_dir=data_dir,
        auth_jwt_secret=SECRET,
        link_secrets=(LINK_SECRET,),
        trusted_proxies=("127.0.0.1/32",),
    )


@pytest.fixture
async def storage(aiohttp_client: Any, settings: Settings) -> Client:
    """The service."""
    client: Client = await aiohttp_client(services.storage.app.create_app(settings))
    return client


@pytest.fixture
def store(data_dir: Path) -> Iterator[FilesystemStore]:
    """What keeps the files that are served."""
    one = FilesystemStore(data_dir / "blobs")
    yield one
    asyncio.run(one.close())


@pytest.fixture
async def file_id(store: FilesystemStore) -> str:
    """A file of the owner."""
    return await put(store)


async def make(client: Client, file_id: str, **asked: object) -> str:
    """Return path and query of a new link."""
    path = f"/api/v1/storage/{file_id}/links"
    answer = await client.post(path, headers=OWNER, json=asked)
    assert answer.status == 201, await answer.text()
    assert answer.headers["Cache-Control"] == "no-store"
    return within((await answer.json())["url"])


def within(url: str) -> str:
    """Return path and query of a URL."""
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"


async def refusal(client: Client, link: str, **more: Any) -> tuple[int, str]:
    """Return status and code of the answer to a link."""
    answer = await client.get(link, **more)
    return answer.status, (await answer.json(content_type=None))["error_code"]


# What a link gives.


async def test_anybody_gets_the_file(storage: Client, file_id: str) -> None:
    """Without credentials the bytes come, safe to show, under the file's own name."""
    link = await make(storage, file_id)
    answer = await storage.get(link)
    assert (answer.status, await answer.read()) == (200, CONTENT)
    assert answer.headers["Content-Disposition"].startswith('attachment; filename="report.pdf"')
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert "sandbox" in answer.headers["Content-Security-Policy"]


async def test_parts_and_conditions(storage: Client, file_id: str) -> None:
    """A player that seeks gets its ranges, again and again, and a cache its 304."""
    link = await make(storage, file_id)
    for start in (0, 500, 100):
        part = await storage.get(link, headers={"Range": f"bytes={start}-{start + 9}"})
        assert (part.status, await part.read()) == (206, CONTENT[start : start + 10])
    head = await storage.head(link)
    assert (head.status, head.content_length) == (200, len(CONTENT))
    again = await storage.get(link, headers={"If-None-Match": head.headers["ETag"]})
    assert again.status == 304


async def test_another_name(storage: Client, file_id: str) -> None:
    """The name that was asked for is proposed, made safe as any other."""
    link = await make(storage, file_id, filename='../../Rechnung "März"\u202e.pdf')
    disposition = (await storage.get(link)).headers["Content-Disposition"]
    assert "filename*=UTF-8''Rechnung%20%22M%C3%A4rz%22.pdf" in disposition
    assert "\u202e" not in disposition


async def test_what_is_told(storage: Client, file_id: str) -> None:
    """Without a body the link is good for an hour; the answer says until when."""
    answer = await storage.post(f"/api/v1/storage/{file_id}/links", headers=OWNER)
    assert answer.status == 201
    body = await answer.json()
    assert body["single_use"] is False
    told = time.strptime(body["expires_at"], "%Y-%m-%dT%H:%M:%SZ")
    assert abs(time.mktime(told) - time.mktime(time.gmtime()) - 3600) < 5
    assert body["url"].startswith(f"http://127.0.0.1:{storage.port}/api/v1/storage/{file_id}/")


async def test_url_behind_a_proxy(storage: Client, file_id: str) -> None:
    """The URL is the one that works where the client is."""
    said = {
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "files.example.com",
        "X-Forwarded-Prefix": "/up",
    }
    answer = await storage.post(f"/api/v1/storage/{file_id}/links", headers={**OWNER, **said})
    url = (await answer.json())["url"]
    assert url.startswith(f"https://files.example.com/up/api/v1/storage/{file_id}/shared?link=")


# Who makes and ends links.


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_whose_links(storage: Client, file_id: str, method: str) -> None:
    """Only the owner and the tenant's admin make and revoke links, as others learn."""
    path = f"/api/v1/storage/{file_id}/links"
    done = {"POST": 201, "DELETE": 204}[method]
    for headers, status in (
        (OWNER, done),
        (ADMIN, done),
        (STRANGER, 403),
        (FOREIGN_ADMIN, 403),
        ({}, 401),
    ):
        answer = await storage.request(method, path, headers=headers)
        assert answer.status == status
    for unknown in (new_id(), "nonsense", "..%2f.."):
        path = f"/api/v1/storage/{unknown}/links"
        assert (await storage.request(method, path, headers=OWNER)).status == 404


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"expires_in":0}',
        b'{"expires_in":-1}',
        b'{"expires_in":1.5}',
        b'{"expires_in":"60"}',
        b'{"expires_in":%d}' % (LONGEST_S + 1),
        b'{"expires_in":99999999999999999999}',
        b'{"single_use":1}',
        b'{"filename":7}',
        b'{"filename":"\\ud800"}',
        b'{"filename":"%s"}' % (b"x" * 256),
        b'{"filename":"%s"}' % ("é" * 200).encode(),
        b'{"inline":true}',
    ],
)
async def test_bad_wishes(storage: Client, file_id: str, body: bytes) -> None:
    """A body that cannot be meant is refused with what it should be."""
    path = f"/api/v1/storage/{file_id}/links"
    answer = await storage.post(path, headers=OWNER, data=body)
    assert answer.status == 400
    assert (await answer.json(content_type=None))["error_code"] == "INVALID_REQUEST"


async def test_a_wish_that_is_too_large(storage: Client, file_id: str) -> None:
    """Nobody fills memory with the wish for a link."""
    path = f"/api/v1/storage/{file_id}/links"
    answer = await storage.post(path, headers=OWNER, data=b" " * 5000)
    assert answer.status == 413


async def test_without_secrets(aiohttp_client: Any, settings: Settings, file_id: str) -> None:
    """A service that could not verify its links makes none, and takes none."""
    app = services.storage.app.create_app(replace(settings, link_secrets=()))
    client: Client = await aiohttp_client(app)
    answer = await client.post(f"/api/v1/storage/{file_id}/links", headers=OWNER)
    assert answer.status == 501
    assert (await answer.json(content_type=None))["error_code"] == "LINKS_NOT_CONFIGURED"
    token = LinkTokens([b""]).make(file_id, terms())
    assert await refusal(client, path_of(file_id, token)) == (403, "LINK_INVALID")


async def test_for_the_local_user(
    aiohttp_client: Any, settings: Settings, store: FilesystemStore
) -> None:
    """Where everyone is the local user links need no setting."""
    file_id = await put_file(store, CONTENT)
    local = replace(settings, link_secrets=(), auth_mode="open", auth_jwt_secret=None)
    client: Client = await aiohttp_client(services.storage.app.create_app(local))
    link = await make(client, file_id)
    assert await (await client.get(link)).read() == CONTENT


# Attacks.


def terms(**changes: Any) -> LinkTerms:
    """Return what an ordinary link allows."""
    given = {"generation": 0, "expires_at": int(time.time()) + 60, **changes}
    return LinkTerms(**given)


def path_of(file_id: str, token: str) -> str:
    """Return the path of a link with this token."""
    return f"/api/v1/storage/{file_id}/shared?link={token}"


async def test_bad_links(storage: Client, file_id: str, store: FilesystemStore) -> None:
    """No token gets in that was not made here, now, for this file."""
    tokens, other_id = LinkTokens([LINK_SECRET.encode()]), await put(store)
    token = tokens.make(file_id, terms())
    assert (await storage.get(path_of(file_id, token))).status == 200
    forged = LinkTokens([b"another secret, as long as it must be"]).make(file_id, terms())
    cut, longer = token[:-1], token + "A"
    for bad in (forged, cut, longer, "", "%00", "a" * 5000, token[::-1], f"{token}%20"):
        assert await refusal(storage, path_of(file_id, bad)) == (403, "LINK_INVALID")
    assert await refusal(storage, path_of(other_id, token)) == (403, "LINK_INVALID")
    assert await refusal(storage, path_of("nonsense", token)) == (403, "LINK_INVALID")
    bare = f"/api/v1/storage/{file_id}/shared"
    assert await refusal(storage, bare, headers=OWNER) == (403, "LINK_INVALID")


async def test_a_link_opens_nothing_else(storage: Client, file_id: str) -> None:
    """With the token of a link nothing is deleted, listed or shared on."""
    query = urlsplit(await make(storage, file_id)).query
    path = f"/api/v1/storage/{file_id}"
    for method, target in (
        ("GET", path),
        ("DELETE", path),
        ("POST", f"{path}/links"),
        ("DELETE", f"{path}/links"),
        ("GET", f"{path}/artifacts"),
    ):
        assert (await storage.request(method, f"{target}?{query}")).status == 401
    assert (await storage.delete(f"{path}/shared?{query}", headers=OWNER)).status == 405


async def test_expired(storage: Client, file_id: str) -> None:
    """A link ends at its time, to the second, and says so."""
    tokens = LinkTokens([LINK_SECRET.encode()])
    token = tokens.make(file_id, terms(expires_at=int(time.time())))
    assert await refusal(storage, path_of(file_id, token)) == (410, "LINK_EXPIRED")


async def test_revoked(storage: Client, file_id: str, store: FilesystemStore) -> None:
    """Links that were made before are gone, those made after are good, the file stays."""
    before = await make(storage, file_id)
    for _ in range(2):
        answer = await storage.delete(f"/api/v1/storage/{file_id}/links", headers=OWNER)
        assert answer.status == 204
    after = await make(storage, file_id)
    assert await refusal(storage, before) == (410, "LINK_REVOKED")
    assert (await storage.get(after)).status == 200
    record = await store.load(file_id)
    assert (record.status, record.link_generation) == ("completed", 2)


async def test_deleted(storage: Client, file_id: str) -> None:
    """With its file a link is gone."""
    link = await make(storage, file_id)
    await storage.delete(f"/api/v1/storage/{file_id}", headers=OWNER)
    assert await refusal(storage, link) == (404, "NOT_FOUND")


async def test_quarantined(storage: Client, file_id: str, store: FilesystemStore) -> None:
    """A file that must be scanned is not had by a link either."""
    link = await make(storage, file_id)
    sidecar = replace(await store.load(file_id), status="quarantined")
    store.path(file_id, ".info").write_bytes(encode(sidecar))
    assert await refusal(storage, link) == (409, "FILE_QUARANTINED")


# Good once.


async def test_what_uses_a_link(storage: Client, file_id: str) -> None:
    """Bytes use it up, be they a part; looking, and what has no bytes, do not."""
    link = await make(storage, file_id, single_use=True)
    tag = (await storage.head(link)).headers["ETag"]
    for headers, status in (
        ({"If-None-Match": tag}, 304),
        ({"If-Match": '"x"'}, 412),
        ({"Range": "bytes=999999-"}, 416),
        ({"Range": "bytes=5-9"}, 206),
    ):
        assert (await storage.get(link, headers=headers)).status == status
    assert await refusal(storage, link) == (410, "LINK_USED")
    assert (await storage.get(await make(storage, file_id, single_use=True))).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"If-None-Match": "*"},
        {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"},
        {"If-Match": '"x"'},
        {"Range": "bytes=999999-"},
    ],
)
async def test_a_used_link_answers_nothing(
    storage: Client, file_id: str, headers: Mapping[str, str]
) -> None:
    """Who comes second learns neither name nor size nor tag, whatever is asked."""
    link = await make(storage, file_id, single_use=True)
    assert (await storage.get(link)).status == 200
    head = await storage.head(link)
    assert (head.status, "ETag" in head.headers) == (410, False)
    answer = await storage.get(link, headers=headers)
    assert (answer.status, "ETag" in answer.headers) == (410, False)


async def test_an_empty_file_uses_it_up(storage: Client, store: FilesystemStore) -> None:
    """All of a file without bytes is given once, too."""
    file_id = await put_file(store, b"", user_id="alice", tenant="acme")
    link = await make(storage, file_id, single_use=True)
    answer = await storage.get(link)
    assert (answer.status, await answer.read()) == (200, b"")
    assert await refusal(storage, link) == (410, "LINK_USED")


async def test_what_cannot_be_read_is_not_claimed(data_dir: Path) -> None:
    """A disk that fails to give the first byte uses nothing up."""
    claimed: list[bool] = []

    async def claim() -> None:
        claimed.append(True)

    fd = os.open(data_dir.parent, os.O_RDONLY)  # reading a folder fails
    try:
        with pytest.raises(OSError, match="directory"):
            await claim_readable(fd, 0, claim)
    finally:
        os.close(fd)
    assert claimed == []


# Over real processes.


class Site(NamedTuple):
    """Two processes that serve the same files."""

    redis: RedisServer
    store: FilesystemStore
    parts: tuple[ServiceProcess, ServiceProcess]
    tokens: list[str]
    """Of all links that were made."""

    def make(self, file_id: str, **asked: object) -> str:
        """Return path and query of a new link, made by the first process."""
        url = f"{self.parts[0].url}/api/v1/storage/{file_id}/links"
        status, _, body = ask("POST", url, OWNER, json.dumps(asked).encode())
        assert status == 201
        made = json.loads(body)["url"]
        self.tokens.append(parse_qs(urlsplit(made).query)["link"][0])
        return within(made)

    def get(self, link: str, process: int = 0) -> tuple[int, Mapping[str, str], bytes]:
        """Follow a link to one of the processes."""
        return ask("GET", self.parts[process].url + link)


def ask(
    method: str, url: str, headers: Mapping[str, str] = {}, body: bytes | None = None
) -> tuple[int, Mapping[str, str], bytes]:
    """Send a request; return status, headers and body."""
    try:
        request = Request(url, method=method, headers=dict(headers), data=body)
        with urlopen(request, timeout=20) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two processes, whose logs hold no token at the end, and no traceback."""
    folder = tmp_path_factory.mktemp("links")
    redis = RedisServer(folder / "redis", aof=True)
    env = {
        "REDIS_URL": redis.url,
        "DATA_DIR": str(folder / "data"),
        "AUTH_MODE": "required",
        "AUTH_JWT_SECRET": SECRET,
        "RATE_LIMIT_ENABLED": "false",
        "LINK_SECRETS": f"{LINK_SECRET},an older secret that is still verified",
        "LOG_LEVEL": "debug",
    }
    one, two = (ServiceProcess("storage", env, folder / f"{n}.log") for n in (1, 2))
    with running(redis, one, two):
        store = FilesystemStore(folder / "data" / "blobs")
        tokens: list[str] = []
        yield Site(redis, store, (one, two), tokens)
        logs = one.log.read_text() + two.log.read_text()
        assert tokens
        assert not [token for token in tokens if token in logs or token[-43:] in logs]
        assert "/shared" in logs
        assert "Traceback" not in logs
        asyncio.run(store.close())


async def test_every_process_takes_it(site: Site) -> None:
    """What one process has made another one takes, and the same one after a restart."""
    link = site.make(await put(site.store))
    assert site.get(link, 1)[2] == CONTENT
    site.parts[0].terminate()
    site.parts[0].start()
    assert site.get(link, 0)[2] == CONTENT


async def test_one_of_many_at_once(site: Site) -> None:
    """Of 50 that follow a link that is good once, to both processes, one gets the file."""
    file_id = await put(site.store)
    with ThreadPoolExecutor(50) as pool:
        for _ in range(3):
            link = site.make(file_id, single_use=True)
            answers = list(pool.map(lambda n, link=link: site.get(link, n % 2), range(50)))
            assert sorted(status for status, _, _ in answers) == [200] + [410] * 49
            assert [body for status, _, body in answers if status == 200] == [CONTENT]


async def test_without_redis(site: Site) -> None:
    """While Redis is away only links that are good once must wait; they are not lost."""
    file_id = await put(site.store)
    plain, once = site.make(file_id), site.make(file_id, single_use=True)
    used = site.make(file_id, single_use=True)
    assert site.get(used)[0] == 200
    site.redis.kill()
    try:
        assert site.get(plain)[2] == CONTENT
        status, headers, _ = site.get(once)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert site.get(site.make(file_id))[2] == CONTENT
    finally:
        site.redis.start()
    assert site.get(once)[0] == 200
    assert [site.get(one)[0] for one in (once, used)] == [410, 410]
