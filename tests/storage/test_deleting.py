"""Deletes through all services: bytes that several files have, races, and who is told."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import redis

from shared.sidecar import new_id
from tests.gateway.dialling import DIALS
from tests.ingest.tus_client import CHUNK, Tus, id_of, metadata, path_of
from tests.processes import RedisServer, ServiceProcess, running, wait_until
from tests.s3_servers import BUCKET, MotoServer, client_of
from tests.storage.stored_files import SECRET, token_of
from tests.storage.stores import s3_settings

SIZE: Final = 100_000
ALICE, BOB = token_of("alice"), token_of("bob")


class Site(NamedTuple):
    """Ingest, storage and gateway on one store."""

    redis_url: str
    ingest: ServiceProcess
    storage: ServiceProcess
    gateway: ServiceProcess
    data_dir: Path
    moto: MotoServer | None

    def tus(self, caller: dict[str, str]) -> Tus:
        """Return a client of a caller."""
        return Tus(self.ingest.port, caller)

    def upload(self, caller: dict[str, str], content: bytes) -> str:
        """Upload bytes, wait until the index has them, and return the id."""
        tus = self.tus(caller)
        path = tus.create(len(content), {"Upload-Metadata": metadata(filename="a.bin")})
        assert tus.patch(path, 0, content).status == 204
        with closing(redis.Redis.from_url(self.redis_url)) as client:
            key = f"dedupe:acme:{hashlib.sha256(content).hexdigest()}"
            wait_until(lambda: client.exists(key), "the index has it")
        return id_of(path)

    def declare(self, caller: dict[str, str], content: bytes) -> tuple[str, bool]:
        """Open an upload by the hash of its bytes; return its id and if it is complete."""
        tus, sha256 = self.tus(caller), hashlib.sha256(content).hexdigest()
        told = {
            "Upload-Metadata": metadata(filename="b.bin", sha256=sha256),
            "Upload-Length": str(len(content)),
        }
        answer = tus.post({**CHUNK, **told})
        assert answer.status == 201, answer
        is_complete = answer.headers.get("Upload-Offset") == str(len(content))
        return id_of(path_of(answer)), is_complete

    def bring(self, caller: dict[str, str], content: bytes) -> str:
        """Upload bytes by their hash, and the bytes too if they are wanted."""
        file_id, is_complete = self.declare(caller, content)
        if not is_complete:
            path = f"/api/v1/uploads/{file_id}"
            assert self.tus(caller).patch(path, 0, content).status == 204
        return file_id

    def ask(self, method: str, caller: dict[str, str], file_id: str) -> tuple[int, bytes]:
        """Send a request to storage; return status and body."""
        url = f"{self.storage.url}/api/v1/storage/{file_id}"
        try:
            request = Request(url, method=method, headers=caller)
            with urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except HTTPError as refusal:
            with refusal:
                return refusal.code, refusal.read()

    def traces(self, *file_ids: str) -> list[str]:
        """Return what the store has that names one of the files."""
        if self.moto is None:
            names = [str(one) for one in (self.data_dir / "blobs").rglob("*")]
        else:
            with closing(client_of(self.moto)) as client:
                pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
                names = [one["Key"] for page in pages for one in page.get("Contents", ())]
        return [one for one in names if any(file_id in one for file_id in file_ids)]


@pytest.fixture(scope="module", params=["filesystem", "s3"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """The services, on each store."""
    folder = tmp_path_factory.mktemp("deleting")
    server = RedisServer(folder / "redis")
    moto: Any = None
    env = {
        "REDIS_URL": server.url,
        "DATA_DIR": str(folder / "data"),
        "AUTH_MODE": "required",
        "AUTH_JWT_SECRET": SECRET,
        "RATE_LIMIT_ENABLED": "false",
    }
    if request.param == "s3":
        moto = request.getfixturevalue("moto_server")
        env |= {name.upper(): value for name, value in s3_settings(moto).items()}
    names = ("ingest", "storage", "gateway")
    parts = [ServiceProcess(one, env, folder / f"{one}.log") for one in names]
    with running(server, *parts):
        ingest, storage, gateway = parts
        yield Site(server.url, ingest, storage, gateway, folder / "data", moto)
        assert not [one.name for one in parts if "Traceback" in one.log.read_text()]


def test_two_owners(site: Site) -> None:
    """One owner's delete takes nothing from the other; the last one takes the bytes."""
    content = os.urandom(SIZE)
    first = site.upload(ALICE, content)
    second, is_complete = site.declare(BOB, content)
    assert is_complete

    assert site.ask("DELETE", BOB, first)[0] == 403
    assert site.ask("DELETE", ALICE, first) == (204, b"")
    assert site.ask("DELETE", ALICE, first)[0] == 404
    assert site.ask("GET", ALICE, first)[0] == 404
    assert site.ask("GET", BOB, second) == (200, content)

    assert site.ask("DELETE", BOB, second) == (204, b"")
    wait_until(lambda: not site.traces(first, second), "no trace is left")
    third, is_complete = site.declare(ALICE, content)
    assert not is_complete, "a hash promised bytes that are gone"
    assert site.tus(ALICE).delete(f"/api/v1/uploads/{third}").status == 204


def test_both_owners_at_once(site: Site) -> None:
    """Deletes of all that have the same bytes, each several times: each file goes once."""
    content = os.urandom(SIZE)
    ids = [site.upload(ALICE, content)]
    ids += [site.declare(ALICE, content)[0] for _ in range(3)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda one: site.ask("DELETE", ALICE, one)[0], ids * 3))
    assert sorted(answers) == [204] * 4 + [404] * 8
    wait_until(lambda: not site.traces(*ids), "no trace is left")


def test_delete_and_upload_of_the_same_bytes(site: Site) -> None:
    """However a delete falls into uploads by hash, each of these has its bytes at the end."""
    for _ in range(8):
        content = os.urandom(SIZE)
        first = site.upload(ALICE, content)
        with ThreadPoolExecutor(5) as pool:
            coming = [pool.submit(site.bring, BOB, content) for _ in range(2)]
            going = pool.submit(site.ask, "DELETE", ALICE, first)
            coming += [pool.submit(site.bring, BOB, content) for _ in range(2)]
            assert going.result()[0] == 204
            ids = [one.result() for one in coming]
        for one in ids:
            assert site.ask("GET", BOB, one) == (200, content)
        assert {site.ask("DELETE", BOB, one)[0] for one in ids} == {204}
        all_ids = [first, *ids]
        wait_until(lambda one=all_ids: not site.traces(*one), "no trace is left")


@pytest.mark.parametrize("path", ["/api/v1/ws/{}", "/ws/upload-progress/{}"])
async def test_sockets_are_told(site: Site, path: str) -> None:
    """Who watches a file when it is deleted is told so, on either kind of socket."""
    file_id = site.upload(ALICE, os.urandom(SIZE))
    async with DIALS["aiohttp"](site.gateway.url + path.format(file_id), ALICE) as peer:
        first = await peer.hear()
        while "complet" not in str(first):
            first = await peer.hear()
        assert site.ask("DELETE", ALICE, file_id)[0] == 204
        told = await peer.hear()
        while "The file was deleted." not in str(told):
            told = await peer.hear()
        assert file_id in str(told)


def test_of_nothing(site: Site) -> None:
    """What is unknown, or no id, is 404 and changes nothing."""
    for one in (new_id(), "nonsense", "..%2f..", "epoch"):
        assert site.ask("DELETE", ALICE, one)[0] == 404
