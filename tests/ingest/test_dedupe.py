"""Tests of deduplication: bytes are stored once, and nobody gets what he never had."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis as redis_client

from services.ingest.dedupe import cached_result
from shared.blobs.filesystem import FilesystemStore
from shared.events import UploadCompleted, UploadCreated, UploadDuplicate
from shared.sidecar import decode, new_id
from tests.ingest.conftest import Ingest, Starter, prepare, started
from tests.ingest.evidence import (
    blob,
    digest,
    files_of,
    lifecycle,
    no_file_is_left,
    sidecar,
    snapshot,
    tracebacks,
)
from tests.ingest.media_heads import HEADS
from tests.ingest.test_bad_input import SECRET, bearer
from tests.ingest.tus_client import CHUNK, TUS, Tus, id_of, metadata, path_of
from tests.ingest.wire import Answer, Connection, head_of
from tests.processes import RedisServer, running, wait_until

MEGABYTE = 1024 * 1024
COLLECTION = "/api/v1/uploads"


@pytest.fixture(scope="module")
def shop(bus: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingest]:
    """An ingest process that wants credentials."""
    folder = tmp_path_factory.mktemp("shop")
    settings = {"AUTH_MODE": "required", "AUTH_JWT_SECRET": SECRET}
    one = prepare(bus, folder / "data", folder / "log", **settings)
    with started(one):
        yield one
    assert tracebacks(one.service) == []


def as_user(ingest: Ingest, user: str, tenant: str = "t1") -> Tus:
    """Return a client of that user."""
    return Tus(ingest.service.port, bearer(user, tenant, exp=time.time() + 600))


def declared(content: bytes, **more: str) -> dict[str, str]:
    """Return the headers of a creation that declares size and digest."""
    told = metadata(sha256=digest(content), **more)
    return {"Upload-Length": str(len(content)), "Upload-Metadata": told}


def store(tus: Tus, content: bytes) -> str:
    """Upload bytes without saying what they are; return the path."""
    path = tus.create(len(content))
    assert tus.patch(path, 0, content).status == 204
    return path


def entry(ingest: Ingest, content: bytes, tenant: str = "t1") -> str:
    """Return the id that the index has for these bytes."""
    client: Any = redis_client.Redis.from_url(ingest.redis.url)
    with client:
        return bytes(client.get(f"dedupe:{tenant}:{digest(content)}") or b"").decode()


def known(ingest: Ingest, content: bytes, tenant: str = "t1") -> None:
    """Wait until the index has these bytes."""
    wait_until(lambda: entry(ingest, content, tenant), "the file is in the index")


def held(ingest: Ingest, tus: Tus, content: bytes) -> str:
    """Upload bytes, and wait until the index has them; return the path."""
    path = store(tus, content)
    known(ingest, content)
    return path


def inode(ingest: Ingest, path: str) -> int:
    """Return the number of the file that holds an upload's bytes."""
    upload_id = id_of(path)
    return (ingest.data_dir / "blobs" / upload_id[:2] / upload_id).stat().st_ino


def stored_once(ingest: Ingest, *paths: str) -> None:
    """Wait until the uploads share their bytes."""
    wait_until(lambda: len({inode(ingest, one) for one in paths}) == 1, "stored once")


def duplicate(answer: Answer, size: int) -> str:
    """Check that an upload was complete at once; return its path."""
    assert answer.status == 201, answer
    assert answer.headers["Upload-Offset"] == answer.headers["Upload-Length"] == str(size)
    return COLLECTION + answer.headers["Location"].partition(COLLECTION)[2]


# What the tenant has.


def test_answered_without_the_body(shop: Ingest) -> None:
    """What the caller's tenant has is complete at once, told, and stored once."""
    content, tus = os.urandom(MEGABYTE), as_user(shop, "ada")
    first = held(shop, tus, content)
    headers = {**tus._extra, **CHUNK, **declared(content, filename="b.bin")}
    with Connection(shop.service.port) as one:  # not a byte of the body is sent
        length = {"Content-Length": str(len(content))}
        one.send(head_of("POST", COLLECTION, {**headers, **length}))
        answer = one.read()
        path = duplicate(answer, len(content))
        assert answer.headers["Connection"] == "close"
    assert inode(shop, path) == inode(shop, first)
    record = sidecar(shop.data_dir, path)
    assert (record.status, record.original_id) == ("completed", id_of(first))
    assert record.digests == {"sha256": digest(content)}
    wait_until(lambda: len(lifecycle(shop.redis.url, path)) == 2, "both events are told")
    created, told = lifecycle(shop.redis.url, path)
    assert isinstance(created, UploadCreated)
    assert isinstance(told, UploadDuplicate)
    assert (told.original_id, told.cached_result) == (id_of(first), None)
    assert (told.offset, told.upload.file_hash) == (len(content), digest(content))
    assert tus.offset(path) == len(content)
    assert tus.ask("GET", path, {}).status == 307


def test_without_a_body_the_connection_stays(shop: Ingest) -> None:
    """A creation that brings no body leaves its connection to the next request."""
    content, tus = os.urandom(100), as_user(shop, "ada")
    held(shop, tus, content)
    with Connection(shop.service.port) as one:
        for _ in range(2):
            one.request("POST", COLLECTION, {**tus._extra, **TUS, **declared(content)})
            duplicate(one.read(), len(content))


def test_finished_analysis_comes_along(shop: Ingest) -> None:
    """Where the bytes were analysed before, the event carries the result."""
    content, tus = os.urandom(100), as_user(shop, "ada")
    held(shop, tus, content)
    name = f"{digest(b't1')}.{digest(content)}"
    results = shop.data_dir / "blobs" / "results"
    results.mkdir(exist_ok=True)
    (results / name).write_text(json.dumps({"label": "cat"}))
    path = duplicate(tus.post(declared(content)), 100)
    wait_until(lambda: len(lifecycle(shop.redis.url, path)) == 2, "both events are told")
    told = lifecycle(shop.redis.url, path)[-1]
    assert isinstance(told, UploadDuplicate)
    assert told.cached_result == {"label": "cat"}


async def test_damaged_analysis(data_dir: Path) -> None:
    """A result that cannot be read is none, and not an error of the upload."""
    one = FilesystemStore(data_dir)
    name = f"results/{digest(b't')}.{'ab' * 32}"
    assert await cached_result(one, "t", "ab" * 32) is None
    for text, expected in [("{", None), ("[1]", None), ('{"a":1}', {"a": 1})]:
        await one.write_note(name, text)
        assert await cached_result(one, "t", "ab" * 32) == expected
    assert await cached_result(one, "../x", "ab" * 32) is None
    await one.close()


def test_another_user_of_the_tenant(shop: Ingest) -> None:
    """A colleague gets an upload of his own, which is nobody else's."""
    content, ada, bob = os.urandom(100), as_user(shop, "ada"), as_user(shop, "bob")
    first = held(shop, ada, content)
    path = duplicate(bob.post(declared(content)), 100)
    assert bob.offset(path) == 100
    assert bob.head(first).status == 403
    assert ada.head(path).status == 403


@pytest.mark.parametrize("which", ["original", "copy"])
def test_deleting_one_keeps_the_other(shop: Ingest, which: str) -> None:
    """Bytes go with the last upload that has them."""
    content, tus = os.urandom(1000), as_user(shop, "ada")
    first = held(shop, tus, content)
    second = duplicate(tus.post(declared(content)), 1000)
    gone, kept = (first, second) if which == "original" else (second, first)
    assert tus.delete(gone).status == 204
    no_file_is_left(shop.data_dir, gone)
    assert blob(shop.data_dir, kept) == content
    assert tus.offset(kept) == 1000
    assert tus.delete(kept).status == 204
    no_file_is_left(shop.data_dir, kept)


def test_original_is_gone(shop: Ingest) -> None:
    """When a file is deleted its entry goes, and the next upload is the new original."""
    content, tus = os.urandom(1000), as_user(shop, "ada")
    first = held(shop, tus, content)
    assert tus.delete(first).status == 204
    wait_until(lambda: not entry(shop, content), "the entry is gone")
    answer = tus.post(declared(content))
    assert "Upload-Offset" not in answer.headers
    path = COLLECTION + answer.headers["Location"].partition(COLLECTION)[2]
    assert tus.patch(path, 0, content).status == 204
    wait_until(lambda: entry(shop, content) == id_of(path), "the new one is the original")


def test_original_went_a_moment_ago(shop: Ingest) -> None:
    """A file that goes before its entry does is none, whatever the copy is to be called."""
    for name in ("a.bin", "a.mp4"):
        content, tus = HEADS["mp4"] + os.urandom(100), as_user(shop, "ada")
        first = held(shop, tus, content)
        for path in files_of(shop.data_dir, first):  # as another process may do it
            os.unlink(path)
        answer = tus.post(declared(content, filename=name))
        assert (answer.status, "Upload-Offset" in answer.headers) == (201, False)
        assert entry(shop, content) == ""


@pytest.mark.parametrize("damage", ["lost", "truncated", "nonsense", "another's"])
def test_wrong_entries(shop: Ingest, damage: str) -> None:
    """An entry that leads nowhere, or to other bytes, is removed; the upload is a new one."""
    content, tus = os.urandom(1000), as_user(shop, "ada")
    first = held(shop, tus, content)
    target = shop.data_dir / "blobs" / id_of(first)[:2] / id_of(first)
    client: Any = redis_client.Redis.from_url(shop.redis.url)
    key = f"dedupe:t1:{digest(content)}"
    if damage == "lost":
        client.set(key, new_id())
    elif damage == "truncated":
        os.truncate(target, 10)
    elif damage == "nonsense":
        client.set(key, b"../../\xff\xfe")
    else:
        client.set(key, id_of(held(shop, tus, os.urandom(1000))))
    answer = tus.post(declared(content))
    assert (answer.status, "Upload-Offset" in answer.headers) == (201, False)
    assert client.get(key) is None
    client.close()
    path = COLLECTION + answer.headers["Location"].partition(COLLECTION)[2]
    assert tus.patch(path, 0, content).status == 204
    assert blob(shop.data_dir, path) == content


def test_another_size_is_another_file(shop: Ingest) -> None:
    """The digest of a held file with another length is a wrong declaration, found at last."""
    content, tus = os.urandom(1000), as_user(shop, "ada")
    held(shop, tus, content)
    answer = tus.post({**declared(content), "Upload-Length": "999"})
    assert "Upload-Offset" not in answer.headers
    path = COLLECTION + answer.headers["Location"].partition(COLLECTION)[2]
    assert tus.patch(path, 0, content[:999]).status == 422


def test_a_copy_must_be_what_it_claims(shop: Ingest) -> None:
    """A table cannot become a video by declaring its digest; nothing is opened."""
    content, tus = b"a,b\n1,2\n" * 50 + os.urandom(8).hex().encode(), as_user(shop, "ada")
    held(shop, tus, content)
    before = snapshot(shop.data_dir)
    assert tus.post(declared(content, filename="a.mp4")).status == 415
    assert snapshot(shop.data_dir) == before
    duplicate(tus.post(declared(content, filename="a.csv")), len(content))


def test_a_copy_of_a_video(shop: Ingest) -> None:
    """A video that is held under another name is one under this one too."""
    content, tus = HEADS["mp4"] + os.urandom(100), as_user(shop, "ada")
    held(shop, tus, content)
    duplicate(tus.post(declared(content, filename="a.mp4")), len(content))


# What it does not have.


def test_another_tenant_learns_nothing(shop: Ingest) -> None:
    """Who only knows the digest of another tenant's file gets what any stranger gets.

    The attack: declare the digest, and see whether the bytes need not be sent. Answers and
    what is done for them are the same for a file that is elsewhere and one that is nowhere.
    """
    content, eve = os.urandom(1000), as_user(shop, "eve", "t2")
    held(shop, as_user(shop, "ada"), content)
    seen = []
    for secret in (content, os.urandom(1000)):
        with commands(shop) as asked:
            answer = eve.post(declared(secret))
            time.sleep(0.3)  # what is entered behind an answer would be seen too
        path = COLLECTION + answer.headers["Location"].partition(COLLECTION)[2]
        names = [name for name in answer.headers if name != "X-Request-ID"]
        files = sorted(one.rpartition(".")[2] for one in files_of(shop.data_dir, path))
        offset, wrong = eve.offset(path), eve.patch(path, 0, os.urandom(1000))
        after = (wrong.status, wrong.body, eve.ask("GET", path, {}).status)
        seen.append((answer.status, names, answer.body, files, asked, offset, after))
    assert seen[0] == seen[1]
    status, names, _, _, asked, offset, after = seen[0]
    assert (status, asked, offset, after[0]) == (201, ["GET"], 0, 422)
    assert "Upload-Offset" not in names


@contextmanager
def commands(ingest: Ingest) -> Iterator[list[str]]:
    """Collect the names of the commands on keys of the index meanwhile."""
    found: list[str] = []
    client: Any = redis_client.Redis.from_url(ingest.redis.url)
    with client.monitor() as monitor:
        thread = threading.Thread(target=_listen, args=(monitor, found), daemon=True)
        thread.start()
        yield found
        client.set("the end", "1")
        thread.join(10)
    client.close()


def _listen(monitor: Any, found: list[str]) -> None:
    for one in monitor.listen():
        if one["command"] == "SET the end 1":
            return
        if "dedupe:" in one["command"]:
            found.append(one["command"].split(" ")[0])


def test_an_entry_of_another_tenant_is_not_believed(shop: Ingest) -> None:
    """Even an index that was tampered with opens no other tenant's file."""
    content, eve = os.urandom(1000), as_user(shop, "eve", "t2")
    first = held(shop, as_user(shop, "ada"), content)
    client: Any = redis_client.Redis.from_url(shop.redis.url)
    client.set(f"dedupe:t2:{digest(content)}", id_of(first))
    client.close()
    assert "Upload-Offset" not in eve.post(declared(content)).headers


def test_a_declaration_proves_nothing(shop: Ingest) -> None:
    """A digest gets into the index by its bytes only, not by having been declared."""
    content, tus = os.urandom(1000), as_user(shop, "ada")
    for sent in (os.urandom(1000), content[:500]):
        answer = tus.post(declared(content))
        assert "Upload-Offset" not in answer.headers
        path = COLLECTION + answer.headers["Location"].partition(COLLECTION)[2]
        tus.patch(path, 0, sent)
    assert entry(shop, content) == ""


def test_tenants_with_strange_names(shop: Ingest) -> None:
    """A tenant cannot be named so that its entries are another one's."""
    content = os.urandom(100)
    store(as_user(shop, "ada", "t1:x/{}"), content)
    known(shop, content, "t1%3Ax%2F%7B%7D")


def test_duplicate_tells_where_the_page_goes(shop: Ingest) -> None:
    """The event of a duplicate leads to its results, as that of a completion does."""
    content, tus = os.urandom(100), as_user(shop, "ada")
    store(tus, content)
    wait_until(lambda: entry(shop, content), "the bytes are known")
    path = path_of(tus.post(declared(content)))
    wait_until(lambda: lifecycle(shop.redis.url, path), "the event is out")
    event = lifecycle(shop.redis.url, path)[-1]
    assert isinstance(event, UploadDuplicate)
    assert event.redirect_url == f"/dashboard/videos/{id_of(path)}/results"


# Without a declaration.


def test_small_duplicates_are_stored_once(shop: Ingest) -> None:
    """A small file shares its bytes before long, with no event of that."""
    content, tus = os.urandom(5000), as_user(shop, "ada")
    first = held(shop, tus, content)
    second = store(tus, content)
    stored_once(shop, first, second)
    assert sidecar(shop.data_dir, second).original_id == id_of(first)
    wait_until(lambda: len(lifecycle(shop.redis.url, second)) == 2, "both events are told")
    assert isinstance(lifecycle(shop.redis.url, second)[-1], UploadCompleted)
    assert blob(shop.data_dir, second) == content


def test_large_duplicates_are_stored_once(shop: Ingest) -> None:
    """A large one is found later, when it has been hashed, and stays downloadable."""
    content, tus = os.urandom(20 * MEGABYTE), as_user(shop, "ada")
    first = held(shop, tus, content)
    second = store(tus, content)
    stored_once(shop, first, second)
    assert blob(shop.data_dir, second) == content
    wait_until(
        lambda: sidecar(shop.data_dir, second).original_id == id_of(first), "it is recorded"
    )
    assert sidecar(shop.data_dir, first).original_id == ""


def test_at_once(shop: Ingest) -> None:
    """Of the same bytes in several uploads at once, one copy stays in the end."""
    content, tus = os.urandom(3 * MEGABYTE), as_user(shop, "ada")
    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(lambda _: store(tus, content), range(6)))
    stored_once(shop, *paths)
    assert all(blob(shop.data_dir, one) == content for one in paths)


def test_switched_off(start_ingest: Starter) -> None:
    """Without deduplication nothing is shared, and a declared digest is still verified."""
    one = start_ingest(ENABLE_DEDUPLICATION="false")
    content = os.urandom(1000)
    first = store(one.tus, content)
    answer = one.tus.post(declared(content))
    assert "Upload-Offset" not in answer.headers
    path = COLLECTION + answer.headers["Location"].partition(COLLECTION)[2]
    assert one.tus.patch(path, 0, os.urandom(1000)).status == 422
    assert sidecar(one.data_dir, first).digests == {}


# Faults.


def test_redis_is_away(start_ingest: Starter, tmp_path: Path) -> None:
    """Without Redis nothing is found and nothing waits; its index is filled again after."""
    server = RedisServer(tmp_path / "redis")
    content = os.urandom(1000)
    with running(server):
        one = start_ingest(server)
        first = store(one.tus, content)
        known(one, content, "local")
        server.kill()
        begun = time.monotonic()
        answer = one.tus.post(declared(content))
        assert "Upload-Offset" not in answer.headers
        path = COLLECTION + answer.headers["Location"].partition(COLLECTION)[2]
        assert one.tus.patch(path, 0, content).status == 204
        assert time.monotonic() - begun < 4.5
        server.start()  # it has forgotten everything
        known(one, content, "local")
        stored_once(one, first, path)
        assert tracebacks(one.service) == []


def test_redis_answers_nobody(start_ingest: Starter, tmp_path: Path) -> None:
    """A Redis that hangs costs one upload a moment, not all of them."""
    server = RedisServer(tmp_path / "redis")
    with running(server):
        one = start_ingest(server)
        server.signal(19)
        begun = time.monotonic()
        for _ in range(5):
            store(one.tus, os.urandom(1000))
        assert time.monotonic() - begun < 4.5
        server.signal(18)


@pytest.mark.slow
def test_killed_at_any_point(bus: RedisServer, tmp_path: Path) -> None:
    """Whenever the process dies, the original and each copy have their bytes or none."""
    one = prepare(bus, tmp_path / "data", tmp_path / "log")
    content, chance = os.urandom(5000), random.Random(4)
    with started(one):
        first = store(one.tus, content)
        for _ in range(12):
            known(one, content, "local")
            stop = threading.Event()
            threads = [
                threading.Thread(target=_hammer, args=(one.tus, content, stop, declare))
                for declare in (True, True, False)
            ]
            for thread in threads:
                thread.start()
            time.sleep(chance.uniform(0.02, 0.2))
            one.service.kill()
            stop.set()
            for thread in threads:
                thread.join()
            one.service.start()
    assert blob(one.data_dir, first) == content
    ends = [_end_of(path, content) for path in (one.data_dir / "blobs").rglob("*.info")]
    assert ends.count("completed") > 20, ends


def _hammer(tus: Tus, content: bytes, stop: threading.Event, declare: bool) -> None:
    with suppress(OSError, EOFError, AssertionError):
        while not stop.is_set():
            if declare:
                tus.post(declared(content))
            else:
                store(tus, content)


def _end_of(info: Path, content: bytes) -> str:
    record = decode(info.read_bytes())
    whole, part = info.with_suffix(""), info.with_suffix(".part")
    if record.status == "completed":
        assert whole.read_bytes() == content
        return "completed"
    found = whole if whole.exists() else part
    assert content.startswith(found.read_bytes())
    return record.status
