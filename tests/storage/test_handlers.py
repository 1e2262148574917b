"""Downloads and deletes through the real application, with a real store and a real Redis."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import Iterator, Mapping
from email.utils import formatdate, parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient
from msgspec.structs import replace
from redis.asyncio import Redis

import services.gateway.app
import services.gateway.settings
import services.ingest.app
import services.ingest.settings
import services.storage.app
from services.storage.settings import Settings
from shared.blobs.filesystem import FilesystemStore
from shared.events import FileDeleted
from shared.operations import PROBLEM
from shared.serve import new_application
from shared.settings import load
from shared.sidecar import encode
from shared.times import now_ms
from tests.processes import RedisServer
from tests.shared.waiting import eventually
from tests.storage.stored_files import (
    SECRET,
    lifecycle,
    put_file,
    token_of,
    tombstone_of,
    traces,
)

CONTENT: Final = os.urandom(100_000)
LARGE: Final = 48 * 1024 * 1024
"""More bytes than all the buffers between a server and a client that does not read."""

Client = TestClient[web.Request, web.Application]


class MakeClient(Protocol):
    """The fixture ``aiohttp_client``."""

    async def __call__(self, app: web.Application) -> Client:
        """Serve an application until the test ends."""


@pytest.fixture
def settings(data_dir: Path, redis_server: RedisServer, redis: Redis) -> Settings:
    """Settings of a storage in which everyone is the local user."""
    return Settings(redis_url=redis_server.url, data_dir=data_dir, auth_mode="open")


@pytest.fixture
async def storage(aiohttp_client: MakeClient, settings: Settings) -> Client:
    """The storage service."""
    return await aiohttp_client(services.storage.app.create_app(settings))


@pytest.fixture
def store(data_dir: Path) -> Iterator[FilesystemStore]:
    """What keeps the files that are served."""
    one = FilesystemStore(data_dir / "blobs")
    yield one
    asyncio.run(one.close())


@pytest.fixture
async def file_id(store: FilesystemStore) -> str:
    """A file with ``CONTENT`` in it."""
    return await put_file(store, CONTENT)


def path_of(file_id: str) -> str:
    """Return where a file is."""
    return f"/api/v1/storage/{file_id}"


async def assert_problem(answer: ClientResponse, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is an error as documented, and return its body."""
    assert answer.status == status, await answer.text()
    assert answer.content_type == "application/problem+json"
    body: dict[str, Any] = await answer.json(content_type=None)
    assert body["status"] == status
    assert body["error_code"] == code
    assert body["error_message"] == body["detail"]
    return body


# Reading.


async def test_whole_file(storage: Client, file_id: str) -> None:
    """A plain GET gives all bytes, and says what they are."""
    answer = await storage.get(path_of(file_id))

    assert answer.status == 200
    assert await answer.read() == CONTENT
    assert answer.content_length == len(CONTENT)
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["ETag"] == f'"{file_id}"'
    assert "Content-Range" not in answer.headers


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        pytest.param("bytes=0-9", 0, 9, id="first-ten"),
        pytest.param("bytes=10-49999", 10, 49_999, id="middle"),
        pytest.param("bytes=0-0", 0, 0, id="one"),
        pytest.param("bytes=99990-", 99_990, 99_999, id="open"),
        pytest.param("bytes=-10", 99_990, 99_999, id="suffix"),
        pytest.param("bytes=-200000", 0, 99_999, id="long-suffix"),
        pytest.param("bytes=99999-200000", 99_999, 99_999, id="clipped"),
    ],
)
async def test_range(storage: Client, file_id: str, wanted: str, first: int, last: int) -> None:
    """A satisfiable range gives exactly its bytes."""
    answer = await storage.get(path_of(file_id), headers={"Range": wanted})

    assert answer.status == 206
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(CONTENT)}"
    assert answer.content_length == last - first + 1
    assert await answer.read() == CONTENT[first : last + 1]


@pytest.mark.parametrize("wanted", ["bytes=5-4", "bytes=0-1,6-5", "lines=1-2", "bytes=x-"])
async def test_range_that_is_ignored(storage: Client, file_id: str, wanted: str) -> None:
    """What is no range of bytes gives the whole file."""
    answer = await storage.get(path_of(file_id), headers={"Range": wanted})

    assert answer.status == 200
    assert await answer.read() == CONTENT


@pytest.mark.parametrize("wanted", ["bytes=100000-", "bytes=-0", "bytes=200000-300000"])
async def test_range_beyond_the_end(storage: Client, file_id: str, wanted: str) -> None:
    """A range without a byte of the file is refused, and the answer tells the size."""
    answer = await storage.get(path_of(file_id), headers={"Range": wanted})

    assert answer.status == 416
    assert answer.headers["Content-Range"] == "bytes */100000"
    assert (await answer.json(content_type=PROBLEM))["error_code"] == "RANGE_NOT_SATISFIABLE"


CONDITIONS: Final = [
    pytest.param({"If-None-Match": '"{id}"'}, 304, id="none-match-same"),
    pytest.param({"If-None-Match": 'W/"{id}"'}, 304, id="none-match-weak"),
    pytest.param({"If-None-Match": "*"}, 304, id="none-match-any"),
    pytest.param({"If-None-Match": '"other"'}, 200, id="none-match-other"),
    pytest.param({"If-None-Match": '"{id}"', "Range": "bytes=0-1"}, 304, id="before-range"),
    pytest.param({"If-Match": '"{id}"'}, 200, id="match-same"),
    pytest.param({"If-Match": "*"}, 200, id="match-any"),
    pytest.param({"If-Match": 'W/"{id}"'}, 412, id="match-weak"),
    pytest.param({"If-Match": '"other"'}, 412, id="match-other"),
    pytest.param({"If-Modified-Since": "{modified}"}, 304, id="not-modified-since"),
    pytest.param({"If-Modified-Since": "{earlier}"}, 200, id="modified-since"),
    pytest.param({"If-Unmodified-Since": "{earlier}"}, 412, id="not-unmodified-since"),
    pytest.param({"If-Unmodified-Since": "{modified}"}, 200, id="unmodified-since"),
    pytest.param({"If-Range": '"{id}"', "Range": "bytes=0-1"}, 206, id="if-range-same"),
    pytest.param({"If-Range": '"other"', "Range": "bytes=0-1"}, 200, id="if-range-other"),
    pytest.param({"If-Range": "{modified}", "Range": "bytes=0-1"}, 206, id="if-range-date"),
    pytest.param({"If-Range": "{earlier}", "Range": "bytes=0-1"}, 200, id="if-range-old"),
]


@pytest.mark.parametrize(("headers", "status"), CONDITIONS)
async def test_conditions(
    storage: Client, file_id: str, headers: Mapping[str, str], status: int
) -> None:
    """Each condition is obeyed, and the connection serves the next request."""
    plain = await storage.head(path_of(file_id))
    known = {
        "id": file_id,
        "modified": plain.headers["Last-Modified"],
        "earlier": formatdate(0, usegmt=True),
    }
    given = {name: value.format(**known) for name, value in headers.items()}

    answer = await storage.get(path_of(file_id), headers=given)

    assert answer.status == status
    if status == 412:
        assert (await answer.json(content_type=PROBLEM))["error_code"] == "PRECONDITION_FAILED"
    else:
        body = {200: CONTENT, 206: CONTENT[:2], 304: b""}[status]
        assert await answer.read() == body
    assert answer.headers["ETag"] == f'"{file_id}"'
    if status == 304:
        assert answer.headers.get("Content-Length", "100000") == "100000"
    again = await storage.get(path_of(file_id), headers={"Range": "bytes=-1"})
    assert await again.read() == CONTENT[-1:]


async def test_a_clock_that_is_ahead(
    storage: Client, store: FilesystemStore, file_id: str
) -> None:
    """No answer says that the file changed after it (RFC 9110, section 8.8.2.1)."""
    sidecar = await store.load(file_id)
    ahead = replace(sidecar, completed_at=now_ms() + 3_600_000)
    store.path(file_id, ".info").write_bytes(encode(ahead))
    head = await storage.head(path_of(file_id))
    modified, sent = (head.headers[name] for name in ("Last-Modified", "Date"))
    assert parsedate_to_datetime(modified) <= parsedate_to_datetime(sent)
    given = {"Range": "bytes=0-1", "If-Range": modified}
    assert (await storage.get(path_of(file_id), headers=given)).status == 200


async def test_head(storage: Client, file_id: str) -> None:
    """HEAD tells what GET would, without a byte of it; ranges do not count for it."""
    get = await storage.get(path_of(file_id))
    await get.read()

    answer = await storage.head(path_of(file_id), headers={"Range": "bytes=0-9"})

    assert answer.status == 200
    assert await answer.read() == b""
    changing = {"Date", "X-Request-ID"}
    assert {k: v for k, v in answer.headers.items() if k not in changing} == {
        k: v for k, v in get.headers.items() if k not in changing
    }


async def test_refusals_of_head_have_no_body(storage: Client, file_id: str) -> None:
    """A HEAD that fails its condition has the status alone, and the connection goes on."""
    answer = await storage.head(path_of(file_id), headers={"If-Match": '"other"'})

    assert (answer.status, await answer.read()) == (412, b"")
    assert (await storage.head(path_of(file_id))).status == 200


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({}, True),
        ({"Range": "bytes=5-9"}, True),
        ({"Range": "bytes=5-9,20-29"}, True),
        ({"Want-Repr-Digest": "sha-256=1"}, True),
        ({"Want-Repr-Digest": "sha-256=0"}, False),
        ({"Want-Repr-Digest": "sha-256=x y"}, True),
    ],
)
async def test_digest_of_the_whole(
    storage: Client, store: FilesystemStore, headers: dict[str, str], told: bool
) -> None:
    """Once it is known, each answer with bytes has the digest of all, and it is the tag."""
    file_id = await put_file(store, CONTENT)
    sha256 = hashlib.sha256(CONTENT)
    assert "Repr-Digest" not in (await storage.head(path_of(file_id))).headers
    known = replace(store.load_now(file_id), digests={"sha256": sha256.hexdigest()})
    await store.run(store.save, known)

    get = await storage.get(path_of(file_id), headers=headers)
    head = await storage.head(path_of(file_id), headers=headers)

    value = f"sha-256=:{base64.b64encode(sha256.digest()).decode()}:"
    for answer in (get, head):
        assert answer.headers.get("Repr-Digest") == (value if told else None)
        assert answer.headers["ETag"] == f'"{sha256.hexdigest()}"'


async def test_several_ranges(storage: Client, file_id: str) -> None:
    """The parts come as they were asked for, each with its place, in the announced length."""
    wanted = {"Range": "bytes=-5,0-9,5-14,50000-50000"}

    answer = await storage.get(path_of(file_id), headers=wanted)
    body = await answer.read()

    kind, _, boundary = answer.headers["Content-Type"].partition("; boundary=")
    parts = [
        (f"bytes {first}-{last}/100000", CONTENT[first : last + 1])
        for first, last in [(99_995, 99_999), (0, 14), (50_000, 50_000)]
    ]
    expected = b"".join(
        f"\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Range: {told}\r\n\r\n".encode()
        + part
        for told, part in parts
    )
    assert (answer.status, kind) == (206, "multipart/byteranges")
    assert body == expected.removeprefix(b"\r\n") + f"\r\n--{boundary}--\r\n".encode()
    assert answer.content_length == len(body)
    assert "Content-Range" not in answer.headers
    again = await storage.get(path_of(file_id), headers=wanted)
    assert again.headers["Content-Type"] != answer.headers["Content-Type"]


async def test_empty_file(storage: Client, store: FilesystemStore) -> None:
    """A file of no bytes is a file, of which no range exists."""
    path = path_of(await put_file(store, b""))

    whole = await storage.get(path)
    part = await storage.get(path, headers={"Range": "bytes=0-"})

    assert (whole.status, whole.content_length, await whole.read()) == (200, 0, b"")
    assert (part.status, part.headers["Content-Range"]) == (416, "bytes */0")


async def test_large_file_in_parallel(storage: Client, store: FilesystemStore) -> None:
    """Ranges that are fetched at the same time come together to the file."""
    content = os.urandom(4 * 1024 * 1024 + 17)
    path = path_of(await put_file(store, content))
    step = 300_000

    async def part(start: int) -> bytes:
        wanted = {"Range": f"bytes={start}-{start + step - 1}"}
        answer = await storage.get(path, headers=wanted)
        assert answer.status == 206
        return await answer.read()

    parts = await asyncio.gather(*(part(start) for start in range(0, len(content), step)))

    assert b"".join(parts) == content


# What a browser is told.


async def test_safe_headers(storage: Client, store: FilesystemStore) -> None:
    """Whatever the bytes are, a browser saves them and runs nothing of them."""
    path = path_of(await put_file(store, b"<script>", content_type="text/html"))

    answer = await storage.get(path)

    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Disposition"].startswith("attachment; ")
    assert answer.headers["Content-Security-Policy"].startswith("sandbox")
    assert answer.headers["Cache-Control"] == "private, no-cache"
    assert answer.headers["Server"] == "uploads"
    assert answer.headers["X-Request-ID"]


@pytest.mark.parametrize(
    ("filename", "told"),
    [
        pytest.param("a b.csv", "filename=\"a b.csv\"; filename*=UTF-8''a%20b.csv", id="plain"),
        pytest.param("é.csv", "filename=\"e.csv\"; filename*=UTF-8''%C3%A9.csv", id="accent"),
        pytest.param(
            '../../x";\r\nSet-Cookie: a=b', 'filename="x_;Set-Cookie: a=b";', id="evil"
        ),
        pytest.param("", "filename=\"download\"; filename*=UTF-8''download", id="none"),
    ],
)
async def test_name_of_the_file(
    storage: Client, store: FilesystemStore, filename: str, told: str
) -> None:
    """The name that the uploader gave comes back, as far as it is harmless."""
    path = path_of(await put_file(store, b"x", filename=filename))

    answer = await storage.get(path)

    assert answer.headers["Content-Disposition"].startswith(f"attachment; {told}")
    assert "Set-Cookie" not in answer.headers


# Who may, and what is there.


@pytest.mark.parametrize(
    "unknown",
    [
        pytest.param("11111111-1111-4111-8111-111111111111", id="unknown"),
        pytest.param("nonsense", id="no-id"),
        pytest.param("..%2F..%2Fepoch", id="traversal"),
        pytest.param("AAAAAAAA-1111-4111-8111-111111111111", id="upper-case"),
        pytest.param("%00", id="nul"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_unknown_file(storage: Client, method: str, unknown: str) -> None:
    """What is not there is not there, whatever its name."""
    async with storage.request(method, f"/api/v1/storage/{unknown}") as answer:
        await assert_problem(answer, 404, "NOT_FOUND")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_unfinished_upload(
    storage: Client, store: FilesystemStore, data_dir: Path, method: str
) -> None:
    """An upload is no file before its last byte is there, and cannot be deleted here."""
    unfinished = await put_file(store, b"some", complete=False)

    async with storage.request(method, path_of(unfinished)) as answer:
        await assert_problem(answer, 404, "NOT_FOUND")

    assert f"{unfinished[:2]}/{unfinished}.part" in traces(data_dir, unfinished)


async def test_wrong_method(storage: Client, file_id: str) -> None:
    """Other methods are refused, and the answer names those that are not."""
    answer = await storage.post(path_of(file_id))

    await assert_problem(answer, 405, "METHOD_NOT_ALLOWED")
    assert {"GET", "HEAD", "DELETE"} <= set(answer.headers["Allow"].split(","))


@pytest.fixture
async def guarded(aiohttp_client: MakeClient, settings: Settings) -> Client:
    """A storage that asks who is calling."""
    strict = Settings(
        redis_url=settings.redis_url,
        data_dir=settings.data_dir,
        auth_mode="required",
        auth_jwt_secret=SECRET,
    )
    return await aiohttp_client(services.storage.app.create_app(strict))


@pytest.mark.parametrize(
    ("caller", "status", "code"),
    [
        pytest.param(token_of("ann"), 200, "", id="owner"),
        pytest.param(token_of("root", scope="admin"), 200, "", id="admin"),
        pytest.param(token_of("bob"), 403, "UNAUTHORIZED_ACCESS", id="colleague"),
        pytest.param(token_of("ann", "other"), 403, "UNAUTHORIZED_ACCESS", id="namesake"),
        pytest.param(
            token_of("root", "other", "admin"), 403, "UNAUTHORIZED_ACCESS", id="foreign-admin"
        ),
        pytest.param({}, 401, "UNAUTHORIZED", id="nobody"),
        pytest.param({"Authorization": "Bearer x.y.z"}, 401, "UNAUTHORIZED", id="bad-token"),
    ],
)
async def test_who_may_read(
    guarded: Client, store: FilesystemStore, caller: dict[str, str], status: int, code: str
) -> None:
    """A file is its owner's, and the admin's of the same tenant; nobody else's."""
    file_id = await put_file(store, CONTENT, user_id="ann", tenant="acme")

    answer = await guarded.get(path_of(file_id), headers=caller)

    if status == 200:
        assert await answer.read() == CONTENT
    else:
        await assert_problem(answer, status, code)
        assert ("WWW-Authenticate" in answer.headers) == (status == 401)


@pytest.mark.parametrize("caller", [token_of("bob"), token_of("ann", "other"), {}])
async def test_who_may_not_delete(
    guarded: Client, store: FilesystemStore, data_dir: Path, caller: dict[str, str]
) -> None:
    """Nobody deletes what is not his, and trying changes nothing."""
    file_id = await put_file(store, CONTENT, user_id="ann", tenant="acme")
    before = set(traces(data_dir, file_id))

    refused = await guarded.delete(path_of(file_id), headers=caller)
    mine = await guarded.get(path_of(file_id), headers=token_of("ann"))

    assert refused.status == (403 if caller else 401)
    assert await mine.read() == CONTENT
    assert set(traces(data_dir, file_id)) == before


# Damage.


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x00" * 4096, id="zeros"),
        pytest.param(b'{"upload_id": "', id="cut"),
        pytest.param(b"[" * 100_000, id="nested"),
        pytest.param(b'{"upload_id": 7}', id="mistyped"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_damaged_record(
    storage: Client, store: FilesystemStore, file_id: str, method: str, record: bytes
) -> None:
    """A file whose owner cannot be read is served to nobody, and the answer tells no more."""
    store.path(file_id, ".info").write_bytes(record)

    async with storage.request(method, path_of(file_id)) as answer:
        body = await assert_problem(answer, 500, "INTERNAL_SERVER_ERROR")

    assert body["detail"] == "The record of this file is damaged."
    assert set(body["details"]) == {"timestamp"}
    assert store.path(file_id).read_bytes() == CONTENT


async def test_record_of_another_file(
    storage: Client, store: FilesystemStore, file_id: str
) -> None:
    """A record under the wrong name counts as damaged."""
    other = await put_file(store, b"other")
    store.path(file_id, ".info").write_bytes(store.path(other, ".info").read_bytes())

    answer = await storage.get(path_of(file_id))

    await assert_problem(answer, 500, "INTERNAL_SERVER_ERROR")


async def test_failing_disk(storage: Client, store: FilesystemStore, file_id: str) -> None:
    """When the disk does not do as it should, the client is asked to come back."""
    record = store.path(file_id, ".info")
    record.unlink()
    record.mkdir()

    answer = await storage.get(path_of(file_id))

    body = await assert_problem(answer, 503, "SERVICE_UNAVAILABLE")
    assert answer.headers["Retry-After"] == "1"
    assert str(store.root) not in str(body)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_file_that_was_cut(
    storage: Client, store: FilesystemStore, file_id: str, method: str
) -> None:
    """A file that the disk has cut short is not passed off as the one that was uploaded."""
    os.truncate(store.path(file_id), 99_000)

    async with storage.request(method, path_of(file_id)) as answer:
        assert answer.status == 500
        assert "ETag" not in answer.headers
        text = await answer.text()

    assert str(store.root) not in text
    assert method == "HEAD" or "This file is damaged." in text


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
async def test_quarantined_file(
    storage: Client, store: FilesystemStore, file_id: str, method: str
) -> None:
    """Nobody gets a file that a scan has not cleared, and its owner is told why."""
    sidecar = replace(store.load_now(file_id), status="quarantined")
    store.path(file_id, ".info").write_bytes(encode(sidecar))

    async with storage.request(method, path_of(file_id)) as answer:
        assert answer.status == 409
        assert method == "HEAD" or await assert_problem(answer, 409, "FILE_QUARANTINED")

    assert store.path(file_id).read_bytes() == CONTENT


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_piece_of_a_file(
    storage: Client, store: FilesystemStore, file_id: str, method: str
) -> None:
    """An upload that another one joins is no file, complete as it may be."""
    sidecar = replace(store.load_now(file_id), concat="partial")
    store.path(file_id, ".info").write_bytes(encode(sidecar))

    async with storage.request(method, path_of(file_id)) as answer:
        await assert_problem(answer, 404, "NOT_FOUND")

    assert store.path(file_id).read_bytes() == CONTENT


async def test_missing_bytes(storage: Client, store: FilesystemStore, file_id: str) -> None:
    """A record without its bytes is no file."""
    store.path(file_id).unlink()

    answer = await storage.get(path_of(file_id))

    await assert_problem(answer, 404, "NOT_FOUND")


# Deleting.


async def test_delete(
    storage: Client, file_id: str, data_dir: Path, redis_server: RedisServer
) -> None:
    """A delete removes every trace and tells the others; a second one finds nothing."""
    first = await storage.delete(path_of(file_id))
    second = await storage.delete(path_of(file_id))
    get = await storage.get(path_of(file_id))

    assert (first.status, await first.read()) == (204, b"")
    await assert_problem(second, 404, "NOT_FOUND")
    await assert_problem(get, 404, "NOT_FOUND")
    await eventually(lambda: not traces(data_dir, file_id), "no trace is left")
    [event] = lifecycle(redis_server.url, file_id)
    assert isinstance(event, FileDeleted)
    assert (event.seq, event.upload.filename) == (4, "report.pdf")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If-Match": '"other"'}, 412),
        ({"If-Match": 'W/"{id}"'}, 412),
        ({"If-Match": '"other", "{id}"'}, 204),
        ({"If-None-Match": "*"}, 412),
        ({"If-Unmodified-Since": formatdate(0, usegmt=True)}, 412),
        ({"If-Modified-Since": formatdate(0, usegmt=True)}, 204),
    ],
)
async def test_delete_under_conditions(
    storage: Client, file_id: str, headers: Mapping[str, str], status: int
) -> None:
    """Whoever wants other bytes deleted than those that are there deletes nothing."""
    given = {name: value.format(id=file_id) for name, value in headers.items()}

    answer = await storage.delete(path_of(file_id), headers=given)

    assert answer.status == status
    if status == 412:
        await assert_problem(answer, 412, "PRECONDITION_FAILED")
        assert answer.headers["ETag"] == f'"{file_id}"'
    left = await storage.get(path_of(file_id))
    assert left.status == (200 if status == 412 else 404)


async def test_deletes_that_race(
    aiohttp_client: MakeClient,
    settings: Settings,
    storage: Client,
    store: FilesystemStore,
    redis_server: RedisServer,
) -> None:
    """Of many deletes at once, through two processes' worth of service, one succeeds."""
    other = await aiohttp_client(services.storage.app.create_app(settings))
    files = [await put_file(store, CONTENT) for _ in range(4)]
    both = [storage, other] * 4

    for file_id in files:
        answers = await asyncio.gather(*(one.delete(path_of(file_id)) for one in both))

        assert sorted(one.status for one in answers) == [204] + [404] * 7
        told = partial(lifecycle, redis_server.url, file_id)
        assert len(await eventually(told, "it is told")) == 1


async def test_delete_of_a_busy_file(
    storage: Client, store: FilesystemStore, file_id: str
) -> None:
    """A delete waits for one who holds the file for a moment."""
    holder = await store.acquire(file_id)
    deleting = asyncio.ensure_future(storage.delete(path_of(file_id)))
    await asyncio.sleep(0.2)
    assert not deleting.done()

    await holder.close()

    assert (await deleting).status == 204


async def test_delete_during_a_download(storage: Client, store: FilesystemStore) -> None:
    """A download under way goes on to its end when the file is deleted."""
    content = os.urandom(LARGE)
    path = path_of(await put_file(store, content))
    async with storage.get(path) as answer:
        seen = hashlib.sha256(await answer.content.readexactly(100_000))

        deleted = await storage.delete(path)
        gone = await storage.get(path)
        while data := await answer.content.readany():
            seen.update(data)

    assert (deleted.status, gone.status) == (204, 404)
    assert seen.digest() == hashlib.sha256(content).digest()


async def test_downloads_and_a_delete_that_race(
    storage: Client, store: FilesystemStore
) -> None:
    """Each download that races with a delete gets all of the file or a 404."""
    for _ in range(5):
        path = path_of(await put_file(store, CONTENT))

        async def download(path: str = path) -> tuple[int, bool]:
            answer = await storage.get(path)
            return answer.status, await answer.read() == CONTENT

        *seen, _ = await asyncio.gather(*(download() for _ in range(8)), storage.delete(path))

        assert set(seen) <= {(200, True), (404, False)}


async def test_delete_reaches_everyone(
    aiohttp_client: MakeClient, settings: Settings, data_dir: Path
) -> None:
    """Sockets, projection and ingest all learn that a file is gone."""
    env = {"REDIS_URL": str(settings.redis_url), "DATA_DIR": str(data_dir)}
    app = new_application(settings)
    services.ingest.app.install(app, load(services.ingest.settings.Settings, env))
    services.gateway.app.install(app, load(services.gateway.settings.Settings, env))
    services.storage.app.install(app, settings)
    client = await aiohttp_client(app)
    tus = {"Tus-Resumable": "1.0.0"}
    created = await client.post(
        "/api/v1/uploads",
        headers={
            **tus,
            "Upload-Length": "5",
            "Content-Type": "application/offset+octet-stream",
        },
        data=b"hello",
    )
    file_id = created.headers["Location"].rpartition("/")[2]
    progress = f"/v1/dashboard/upload/progress/{file_id}"
    assert (await client.get(progress)).status == 200
    async with (
        client.ws_connect(f"/api/v1/ws/{file_id}") as media,
        client.ws_connect(f"/ws/upload-progress/{file_id}") as dashboard,
    ):
        assert (await media.receive_json(timeout=10))["type"] == "complete"
        assert (await dashboard.receive_json(timeout=10))["event_type"] == "upload_complete"

        assert (await client.delete(path_of(file_id))).status == 204

        told = await media.receive_json(timeout=10)
        assert (told["type"], told["message"]) == ("error", "The file was deleted.")
        told = await dashboard.receive_json(timeout=10)
        assert told["event_type"] == "upload_error"
        assert told["data"]["error_message"] == "The file was deleted."
    head = await client.head(f"/api/v1/uploads/{file_id}", headers=tus)
    assert head.status == 404

    async def forgotten() -> bool:
        return (await client.get(progress)).status == 404

    await eventually(forgotten, "the projection forgets it")
    await eventually(lambda: not traces(data_dir, file_id), "no trace is left")


async def test_late_delete_of_a_dead_process(
    storage: Client, store: FilesystemStore, file_id: str
) -> None:
    """A tombstone whose bytes a crash has left is gone for readers already."""
    sidecar = store.load_now(file_id)
    store.path(file_id, ".info").write_bytes(tombstone_of(sidecar))

    get = await storage.get(path_of(file_id))
    delete = await storage.delete(path_of(file_id))

    assert (get.status, delete.status) == (404, 404)
