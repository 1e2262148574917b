"""Real ingest and storage processes: what is uploaded is listed, whatever dies meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
import redis as blocking_redis
from redis.asyncio import Redis

from shared import sidecar as sidecars
from shared.events import FileDeleted, FileStored, UploadCompleted, UploadCreated
from shared.sidecar import new_id
from tests.ingest.evidence import tracebacks
from tests.ingest.tus_client import Tus, id_of, metadata, path_of
from tests.processes import ROOT, RedisServer, ServiceProcess, running, wait_until
from tests.redis_topologies import cluster
from tests.storage.stored_files import lifecycle

if TYPE_CHECKING:
    from tests.s3_servers import MotoServer

PATH: Final = "/api/v1/storage"


def ask(url: str, method: str = "GET") -> tuple[int, Any]:
    """Return the status and the body of an answer."""
    try:
        with urlopen(Request(url, method=method), timeout=20) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except HTTPError as refusal:
        return refusal.code, json.loads(refusal.read())


class Catalogue:
    """One ingest and two storages on one data folder."""

    def __init__(self, folder: Path) -> None:
        self.redis: Final = RedisServer(folder / "redis", aof=True)
        env = {"REDIS_URL": self.redis.url, "DATA_DIR": str(folder / "data")}
        self.blobs: Final = folder / "data" / "blobs"
        self.ingest: Final = ServiceProcess("ingest", env, folder / "ingest.log")
        self.storages: Final = [
            ServiceProcess("storage", env, folder / f"storage-{n}.log") for n in range(2)
        ]
        self.tus: Final = Tus(self.ingest.port)

    def upload(self, name: str, headers: Mapping[str, str] = {}, *, size: int = 9) -> str:
        """Upload a file of its own content; return its id."""
        about = metadata(filename=name, filetype="text/plain")
        path = self.tus.create(size, {"Upload-Metadata": about, **headers})
        content = (name.encode() * size)[:size]
        assert self.tus.patch(path, 0, content).status == 204
        return id_of(path)

    def listed(self, storage: int = 0, query: str = "limit=200") -> list[str]:
        """Return the ids of the files that one of the storages lists."""
        status, page = ask(f"{self.storages[storage].url}{PATH}?{query}")
        return [one["file_id"] for one in page["files"]] if status == 200 else []

    def sidecar(self, file_id: str) -> sidecars.Sidecar:
        """Return the record beside the bytes of a file."""
        path = self.blobs / file_id[:2] / f"{file_id}.info"
        return sidecars.decode(path.read_bytes())

    def wait_for(self, file_ids: list[str]) -> None:
        """Return when both storages list these files, and no others."""
        wanted = set(file_ids)
        wait_until(
            lambda: all(set(self.listed(n)) == wanted for n in range(2)),
            f"these are listed: {wanted}",
        )

    def wait_until_told(self, file_ids: list[str]) -> None:
        """Return when each of the files has its ``file.stored`` on the stream."""

        def all_told() -> bool:
            return all(
                any(isinstance(event, FileStored) for event in lifecycle(self.redis.url, one))
                for one in file_ids
            )

        # What a killed member of the group had been handed is claimed after thirty seconds.
        wait_until(all_told, "all are told of", limit_s=60)


@contextmanager
def running_catalogue(folder: Path) -> Iterator[Catalogue]:
    """Run one; its logs must tell of no bug at its end."""
    one = Catalogue(folder)
    with running(one.redis, one.ingest, *one.storages):
        yield one
        for service in (one.ingest, *one.storages):
            assert tracebacks(service) == []


@pytest.fixture(scope="module")
def shared_catalogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalogue]:
    """One that nobody harms."""
    with running_catalogue(tmp_path_factory.mktemp("catalogue")) as one:
        yield one


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    """One of the test's own."""
    with running_catalogue(tmp_path) as one:
        yield one


def test_from_upload_to_delete(shared_catalogue: Catalogue) -> None:
    """Each file is there at once, listed by both storages, told of once, and then gone."""
    one = shared_catalogue
    file_ids = [one.upload(f"file {n}", size=20 + n) for n in range(12)]
    assert ask(f"{one.storages[1].url}{PATH}/{file_ids[-1]}/meta")[0] == 200

    one.wait_for(file_ids)
    one.wait_until_told(file_ids)
    for file_id in file_ids:
        told = lifecycle(one.redis.url, file_id)
        assert [type(event) for event in told] == [UploadCreated, UploadCompleted, FileStored]
        assert [event.seq for event in told] == [1, 2, 3]
        assert list(one.sidecar(file_id).outbox) == told
    assert one.listed(query="sort=name&limit=2") == sorted(file_ids, key=file_ids.index)[:2]
    assert one.listed(query="sort=size&limit=1") == file_ids[-1:]
    assert one.listed(1, "name=FILE%2011&type=text") == file_ids[-1:]

    url = f"{one.storages[0].url}{PATH}/{file_ids[3]}"
    assert ask(url, "DELETE")[0] == 204
    assert ask(f"{url}/meta")[0] == 404
    one.wait_for([other for other in file_ids if other != file_ids[3]])
    last = lifecycle(one.redis.url, file_ids[3])[-1]
    assert (type(last), last.seq) == (FileDeleted, 4)
    for other in one.listed():
        assert ask(f"{one.storages[0].url}{PATH}/{other}", "DELETE")[0] == 204
    one.wait_for([])


def test_pieces_are_no_files(shared_catalogue: Catalogue) -> None:
    """Of uploads that are joined only the whole is listed, and told of."""
    one = shared_catalogue
    parts = [one.upload(f"part {n}", {"Upload-Concat": "partial"}) for n in range(2)]
    paths = " ".join(f"/api/v1/uploads/{part}" for part in parts)
    whole = id_of(path_of(one.tus.post({"Upload-Concat": f"final;{paths}"})))

    one.wait_for([whole])
    one.wait_until_told([whole])
    assert all(len(lifecycle(one.redis.url, part)) == 2 for part in parts)
    assert ask(f"{one.storages[0].url}{PATH}/{whole}", "DELETE")[0] == 204
    one.wait_for([])


def test_links_lead_over_all_pages(shared_catalogue: Catalogue) -> None:
    """Following `Link` keeps what was asked for, and ends."""
    one = shared_catalogue
    file_ids = [one.upload(f"ünï & {n}.txt") for n in range(5)]
    one.wait_for(file_ids)
    base = f"{one.storages[0].url}{PATH}"
    target, seen = f"?limit=2&sort=name&name={quote('Ü')}", list[str]()
    while target:
        with urlopen(base + target, timeout=20) as answer:
            seen += [each["file_id"] for each in json.load(answer)["files"]]
            link = answer.headers.get("Link", "")
        assert link == "" or link.endswith('>; rel="next"')
        target = link.partition("<")[2].partition(">")[0]

    assert seen == file_ids
    for file_id in file_ids:
        assert ask(f"{base}/{file_id}", "DELETE")[0] == 204
    one.wait_for([])


def test_a_wiped_redis(catalogue: Catalogue) -> None:
    """Files come back by themselves, those that no event tells of any more too."""
    file_ids = [catalogue.upload(f"file {n}") for n in range(8)]
    catalogue.wait_until_told(file_ids)
    client: Any = blocking_redis.Redis.from_url(catalogue.redis.url)
    # As long ago as no outbox is published again for.
    for file_id in file_ids[:4]:
        path = catalogue.blobs / file_id[:2] / f"{file_id}.info"
        os.utime(path, (1_600_000_000, 1_600_000_000))

    client.flushall()
    client.close()

    for file_id in file_ids:
        assert ask(f"{catalogue.storages[0].url}{PATH}/{file_id}/meta")[0] == 200
    catalogue.wait_for(file_ids)
    wait_until(
        lambda: ask(f"{catalogue.storages[0].url}{PATH}")[1].get("complete"), "all was found"
    )
    later = catalogue.upload("later")
    catalogue.wait_for([*file_ids, later])


def test_without_redis(catalogue: Catalogue) -> None:
    """While Redis is away there is no list, but each file is known; nothing is lost by it."""
    first = catalogue.upload("first")
    catalogue.wait_for([first])
    url = f"{catalogue.storages[0].url}{PATH}"
    catalogue.redis.kill()

    status, body = ask(url)
    assert (status, body["error_code"]) == (503, "SERVICE_UNAVAILABLE")
    assert ask(f"{url}/{first}/meta")[1]["filename"] == "first"
    second = catalogue.upload("second")
    assert ask(f"{url}/{second}/meta")[0] == 200
    assert ask(f"{url}/{first}", "DELETE")[0] == 204
    catalogue.redis.start()

    catalogue.wait_for([second])
    catalogue.wait_until_told([second])


def test_storages_that_are_killed(catalogue: Catalogue) -> None:
    """Wherever SIGKILL hits a storage, every file is listed, and told of once, in the end."""
    file_ids: list[str] = []

    def upload_all() -> None:
        for n in range(60):
            file_ids.append(catalogue.upload(f"file {n}"))

    uploading = threading.Thread(target=upload_all)
    uploading.start()
    for goal in (10, 20, 30, 40, 50):
        while len(file_ids) < goal:
            uploading.join(0.01)
            assert uploading.is_alive()
        victim = catalogue.storages[goal // 10 % 2]
        victim.kill()
        victim.start()
    uploading.join()

    catalogue.wait_for(file_ids)
    for storage in catalogue.storages:  # what it left undone is found at its next start
        storage.kill()
        storage.start()
    catalogue.wait_until_told(file_ids)
    for file_id in file_ids:
        outbox = catalogue.sidecar(file_id).outbox
        assert [event.seq for event in outbox] == [1, 2, 3]
        assert isinstance(outbox[-1], FileStored)


def test_on_s3(
    tmp_path: Path, redis_server: RedisServer, moto_server: MotoServer, redis: Redis
) -> None:
    """Where leases and objects stand for locks and files, a file is listed and told of, too."""
    env = {
        "REDIS_URL": redis_server.url,
        "DATA_DIR": str(tmp_path / "data"),
        "BLOB_STORE": f"s3://uploads/{new_id()}",
        "S3_ENDPOINT_URL": moto_server.url,
        "S3_ACCESS_KEY_ID": moto_server.access_key_id,
        "S3_SECRET_ACCESS_KEY": moto_server.secret_access_key,
    }
    ingest = ServiceProcess("ingest", env, tmp_path / "ingest.log")
    storage = ServiceProcess("storage", env, tmp_path / "storage.log")
    with running(ingest, storage):
        tus, url = Tus(ingest.port), f"{storage.url}{PATH}"
        path = tus.create(3)
        wait_until(lambda: tus.patch(path, 0, b"abc").status == 204, "it may be written to")
        file_id = id_of(path)

        assert ask(f"{url}/{file_id}/meta")[1]["size"] == 3
        wait_until(lambda: len(lifecycle(redis_server.url, file_id)) == 3, "it is told of")
        wait_until(lambda: ask(url)[1]["total_files"] == 1, "it is listed")
        assert ask(f"{url}/{file_id}", "DELETE")[0] == 204
        wait_until(lambda: ask(url)[1]["total_files"] == 0, "it is not listed any more")
    assert tracebacks(storage) == []


def test_on_a_cluster(tmp_path: Path) -> None:
    """Records and lists lie in many slots: files are listed, dropped and found again there."""
    with cluster(tmp_path) as nodes:
        env = {"REDIS_URL": nodes.url, "DATA_DIR": str(tmp_path / "data")}
        ingest = ServiceProcess("ingest", env, tmp_path / "ingest.log")
        storage = ServiceProcess("storage", env, tmp_path / "storage.log")
        with running(ingest, storage):
            tus, url = Tus(ingest.port), f"{storage.url}{PATH}"
            paths = [tus.create(3) for _ in range(6)]
            file_ids = {id_of(path) for path in paths}
            assert all(tus.patch(path, 0, b"abc").status == 204 for path in paths)

            def shown() -> set[str]:
                status, page = ask(f"{url}?sort=name&limit=200&name=")
                return {one["file_id"] for one in page["files"]} if status == 200 else set()

            wait_until(lambda: shown() == file_ids, "all are listed", storage.tail)
            gone = file_ids.pop()
            assert ask(f"{url}/{gone}", "DELETE")[0] == 204
            wait_until(lambda: shown() == file_ids, "one is not listed any more")
            done = subprocess.run(
                [sys.executable, "-m", "services.storage", "reindex"],
                cwd=ROOT,
                env={**os.environ, **env},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.stdout == "5 files: 0 recorded, 0 dropped\n", done.stderr
            assert shown() == file_ids
        assert tracebacks(storage) == []
