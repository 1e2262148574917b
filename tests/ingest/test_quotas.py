"""Quotas: nobody passes them, whatever comes at once or fails; and they never drift."""

from __future__ import annotations

import os
import signal
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import jwt
import pytest
import redis as redis_client

from services.ingest import usage
from services.ingest.doubts import Doubts
from services.ingest.location import COLLECTION
from services.ingest.quotas import COUNTED, tenant_key
from services.ingest.usage import NOTHING, Usage
from shared.events import (
    FileDeleted,
    UploadCreated,
    UploadExpired,
    UploadFacts,
    UploadFailed,
    encode,
)
from shared.sidecar import Sidecar, new_id
from shared.streams import event_stream, partition_of
from tests.ingest.conftest import Ingest, prepare, started
from tests.ingest.evidence import completed_once, files_of, lifecycle, tracebacks
from tests.ingest.parts import PARTIAL, join, part
from tests.ingest.tus_client import Tus, id_of, path_of
from tests.ingest.wire import chunk
from tests.processes import RedisServer, running, wait_until
from tests.shared.samples import new_sidecar

SECRET = "0123456789abcdef0123456789abcdef"
LIMITS = {
    "AUTH_MODE": "required",
    "AUTH_JWT_SECRET": SECRET,
    "QUOTA_BYTES_PER_USER": "1000",
    "QUOTA_BYTES_PER_TENANT": "2500",
    "QUOTA_OPEN_UPLOADS_PER_USER": "5",
    "QUOTA_OPEN_UPLOADS_PER_TENANT": "12",
}
TWO_MIB = 2 * 1024 * 1024


def counted(server: RedisServer) -> None:
    """Wait until uploads are admitted."""
    client: Any = redis_client.Redis.from_url(server.url)
    wait_until(lambda: client.exists(COUNTED), "the uploads are counted")
    client.close()


def sums(server: RedisServer, tenant: str) -> dict[str, int]:
    """Return the bytes and open uploads that count for a tenant, and how many uploads count."""
    client: Any = redis_client.Redis.from_url(server.url)
    fields = client.hgetall(tenant_key(tenant))
    client.close()
    return {
        "bytes": int(fields.get(b"b:", 0)),
        "open": int(fields.get(b"o:", 0)),
        "uploads": sum(name.startswith(b"r:") for name in fields),
    }


class User(Tus):
    """A client with a name."""

    def __init__(self, one: Ingest, user: str = "u", tenant: str | None = None) -> None:
        self.tenant = tenant or new_id()
        claims = {"sub": user, "tenant": self.tenant, "exp": 4_000_000_000}
        token = jwt.encode(claims, SECRET, "HS256")
        super().__init__(one.service.port, {"Authorization": f"Bearer {token}"})
        self._server = one.redis

    def ask_for(self, size: int) -> int:
        """Ask for an upload of so many bytes; return the status."""
        return self.post({"Upload-Length": str(size)}).status

    def counts(self, *, bytes: int, open: int, uploads: int) -> None:
        """Wait until the tenant counts for so much."""
        expected = {"bytes": bytes, "open": open, "uploads": uploads}

        def now() -> dict[str, int]:
            return sums(self._server, self.tenant)

        wait_until(lambda: now() == expected, f"{expected}", now, limit_s=10)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ingest, Ingest]]:
    """Two processes on one store, with the same small quotas.

    Their Redis is their own: a process without quotas would take events that they wait for.
    """
    folder = tmp_path_factory.mktemp("quotas")
    server = RedisServer(folder / "redis")
    pair = tuple(prepare(server, folder / "data", folder / f"log{n}", **LIMITS) for n in (1, 2))
    with running(server), started(*pair):
        counted(server)
        yield pair  # type: ignore[misc]
    for one in pair:
        assert tracebacks(one.service) == []


def test_too_many_bytes(both: tuple[Ingest, Ingest]) -> None:
    """A user who has no room left gets 413, at the process that did not admit the rest."""
    user, there = User(both[0]), User(both[1])
    there._extra.update(user._extra)
    first = user.create(600)
    assert there.ask_for(401) == 413
    refused = there.post({"Upload-Length": "401"})
    assert b"room" in refused.body
    assert there.ask_for(400) == 201
    assert user.ask_for(1) == 413
    assert user.ask_for(0) == 201
    assert user.patch(first, 0, b"x" * 600).status == 204
    assert there.ask_for(1) == 413, "a complete file counts on"
    assert user.delete(first).status == 204
    assert there.ask_for(600) == 201


def test_a_tenant_has_a_limit_of_its_own(both: tuple[Ingest, Ingest]) -> None:
    """Users of a tenant share its quota, and those of others do not."""
    tenant = new_id()
    users = [User(both[0], name, tenant) for name in "abc"]
    assert [user.ask_for(1000) for user in users] == [201, 201, 413]
    assert users[2].ask_for(500) == 201
    assert User(both[0], "a").ask_for(1000) == 201


def test_too_many_open(both: tuple[Ingest, Ingest]) -> None:
    """Open uploads are limited; completing or cancelling one makes room for another."""
    user = User(both[0])
    paths = [user.create(10) for _ in range(5)]
    refused = user.post({"Upload-Length": "10"})
    assert refused.status == 429
    assert int(refused.headers["Retry-After"]) > 0
    user.patch(paths[0], 0, b"x" * 10)
    paths.append(user.create(10))
    assert user.ask_for(10) == 429
    user.delete(paths[1])
    assert user.ask_for(10) == 201


def test_two_hundred_at_once(both: tuple[Ingest, Ingest]) -> None:
    """Of 200 creations at once, at two processes, exactly those pass that there is room for."""
    tenant = new_id()
    users = [User(both[n % 2], f"user{n % 10}", tenant) for n in range(200)]
    with ThreadPoolExecutor(32) as pool:
        statuses = list(pool.map(lambda user: user.ask_for(300), users))
    assert sorted(set(statuses)) == [201, 413], statuses
    assert statuses.count(201) == 8  # of 2500 bytes
    users[0].counts(bytes=2400, open=8, uploads=8)


def test_two_hundred_open_at_once(both: tuple[Ingest, Ingest]) -> None:
    """The same for the number of open uploads."""
    tenant = new_id()
    users = [User(both[n % 2], f"user{n % 10}", tenant) for n in range(200)]
    with ThreadPoolExecutor(32) as pool:
        statuses = list(pool.map(lambda user: user.ask_for(1), users))
    assert statuses.count(201) == 12
    assert statuses.count(429) == 188


def test_each_end_gives_back_what_it_must(both: tuple[Ingest, Ingest]) -> None:
    """Cancelled uploads count nothing, complete ones their bytes; repeating changes nothing."""
    user = User(both[0])
    cancelled, done = user.create(100), user.create(200)
    user.counts(bytes=300, open=2, uploads=2)
    user.patch(done, 0, b"x" * 200)
    user.counts(bytes=300, open=1, uploads=2)
    user.delete(cancelled)
    assert user.delete(cancelled).status in {404, 410}
    user.counts(bytes=200, open=0, uploads=1)
    assert user.head(done).status == 200
    user.delete(done)
    user.counts(bytes=0, open=0, uploads=0)


def test_what_others_delete_counts_no_more(both: tuple[Ingest, Ingest]) -> None:
    """Storage deletes files and only tells of it; an event that comes late revives nothing."""
    user = User(both[0])
    path = user.create(100)
    user.patch(path, 0, b"x" * 100)
    completed_once(both[0].redis, path)
    user.counts(bytes=100, open=0, uploads=1)
    completed = lifecycle(both[0].redis.url, path)[-1]
    deleted = FileDeleted(
        upload_id=id_of(path), seq=3, at=completed.at, upload=completed.upload
    )
    stream = event_stream(partition_of(id_of(path), 16))
    client: Any = redis_client.Redis.from_url(both[0].redis.url)
    for file in files_of(both[0].data_dir, path):  # as storage does, or a recount finds them
        Path(file).unlink()
    for event in (deleted, deleted, completed):
        client.xadd(stream, {"i": id_of(path), "d": encode(event)})
        user.counts(bytes=0, open=0, uploads=0)
    wait_until(lambda: group_is_done(client, stream), "all events are handled")
    user.counts(bytes=0, open=0, uploads=0)
    client.close()


def group_is_done(client: Any, stream: str) -> bool:
    """Tell whether ingest has handled all entries of a stream."""
    (group,) = (one for one in client.xinfo_groups(stream) if one["name"] == b"ingest")
    last = client.xinfo_stream(stream)["last-generated-id"]
    return bool(group["pending"] == 0 and group["last-delivered-id"] == last)


def test_without_a_length_bytes_count_as_they_come(both: tuple[Ingest, Ingest]) -> None:
    """An upload that defers its length counts for what it has, and is stopped at the limit."""
    user = User(both[0])
    path = user.create(None)
    user.counts(bytes=0, open=1, uploads=1)
    assert user.patch(path, 0, b"x" * 700).status == 204
    user.counts(bytes=700, open=1, uploads=1)
    assert user.patch(path, 700, b"x" * 301).status == 413
    assert user.offset(path) == 700
    assert user.patch(path, 700, b"", {"Upload-Length": "1001"}).status == 413
    assert user.patch(path, 700, b"x" * 300, {"Upload-Length": "1000"}).status == 204
    user.counts(bytes=1000, open=0, uploads=1)


def test_a_body_that_is_cut_gives_back_the_rest(both: tuple[Ingest, Ingest]) -> None:
    """What was reserved for a body, and did not come, may be used by others."""
    user = User(both[0])
    path = user.create(None)
    with user.begin_patch(path, 0, 900, b"x" * 100) as one:
        user.counts(bytes=900, open=1, uploads=1)
        one.cut("fin")
    user.counts(bytes=100, open=1, uploads=1)


def test_a_stream_without_end_is_stopped(start_quota: Any) -> None:
    """A chunked body of an upload without a length ends near the limit; its bytes are kept."""
    one = start_quota(QUOTA_BYTES_PER_USER=str(TWO_MIB))
    user = User(one)
    path, piece = user.create(None), os.urandom(64 * 1024)
    with user.begin_patch(path, 0, None) as running_patch:
        with suppress(ConnectionError):
            for _ in range(32 * 64):
                running_patch.send(chunk(piece))
        assert running_patch.read().status == 413
    offset = user.offset(path)
    assert TWO_MIB // 2 < offset < 12 * TWO_MIB
    user.counts(bytes=offset, open=1, uploads=1)
    assert user.ask_for(10) == 413


@pytest.fixture
def start_quota(tmp_path: Path) -> Iterator[Any]:
    """Start processes with quotas and a Redis of their own, which may be killed."""
    with ExitStack() as stack:
        server = RedisServer(tmp_path / "redis")
        stack.enter_context(running(server))

        def start(**limits: str) -> Ingest:
            env = {"AUTH_MODE": "required", "AUTH_JWT_SECRET": SECRET, **limits}
            one = prepare(server, tmp_path / "data", tmp_path / "log", **env)
            stack.enter_context(started(one))
            if limits:
                counted(server)
            return one

        yield start


def test_a_wiped_redis_is_counted_anew(start_quota: Any) -> None:
    """After FLUSHALL nobody gets more than is left, and everything is as it was."""
    one = start_quota(QUOTA_BYTES_PER_USER="1000", QUOTA_OPEN_UPLOADS_PER_USER="9")
    user, other = User(one), User(one)
    done, open_, cancelled = user.create(300), user.create(400), user.create(100)
    deferred = other.create(None)
    user.patch(done, 0, b"x" * 300)
    user.delete(cancelled)
    other.patch(deferred, 0, b"x" * 50)
    client: Any = redis_client.Redis.from_url(one.redis.url)
    client.flushall()
    statuses: set[int] = set()

    def refused() -> bool:
        statuses.add(user.ask_for(301))
        return 413 in statuses

    wait_until(refused, "it is counted")
    assert statuses <= {413, 503}
    user.counts(bytes=700, open=1, uploads=2)
    other.counts(bytes=50, open=1, uploads=1)
    assert user.ask_for(300) == 201
    user.delete(open_)
    user.counts(bytes=600, open=1, uploads=2)
    client.close()


def test_counts_that_drifted_are_corrected(start_quota: Any) -> None:
    """What a crash left behind, or took away, is put right by the next count."""
    one = start_quota(QUOTA_BYTES_PER_USER="1000")
    user = User(one)
    path, lost = user.create(300), user.create(200)
    client: Any = redis_client.Redis.from_url(one.redis.url)
    key = tenant_key(user.tenant)
    fields = client.hgetall(key)
    owner = fields[f"r:{id_of(path)}".encode()].split()[2].decode()
    client.hset(key, f"r:{new_id()}", f"250 1 {owner} 1000")  # its creation crashed, long ago
    for name, amount in ((f"b:{owner}", 250), ("b:", 250), (f"o:{owner}", 1), ("o:", 1)):
        client.hincrby(key, name, amount)
    client.hdel(key, f"r:{id_of(lost)}")
    for name, amount in ((f"b:{owner}", 200), ("b:", 200), (f"o:{owner}", 1), ("o:", 1)):
        client.hincrby(key, name, -amount)
    user.counts(bytes=550, open=2, uploads=2)
    client.delete("ingest:{quota}:fresh")
    user.counts(bytes=500, open=2, uploads=2)
    client.close()


def test_redis_away(start_quota: Any) -> None:
    """Nothing new is admitted while quotas cannot be checked; what runs goes on, and counts."""
    one = start_quota(QUOTA_BYTES_PER_USER="1000")
    user = User(one)
    path = user.create(300)
    one.redis.kill()
    refused = user.post({"Upload-Length": "10"})
    assert refused.status == 503
    assert "Retry-After" in refused.headers
    assert user.patch(path, 0, b"x" * 100).status == 204
    assert user.patch(path, 100, b"x" * 200).status == 204
    one.redis.start()  # empty
    counted(one.redis)
    user.counts(bytes=300, open=0, uploads=1)
    assert user.ask_for(701) == 413
    assert user.ask_for(700) == 201


def test_late_answers_of_redis(start_quota: Any) -> None:
    """What Redis reserves after its client has given up must not count for good."""
    one = start_quota(QUOTA_BYTES_PER_USER="1000", QUOTA_OPEN_UPLOADS_PER_USER="3")
    user = User(one)
    user.create(1)  # Redis knows the script from now on
    one.redis.signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(2) as pool:
            assert set(pool.map(lambda _: user.ask_for(400), range(2))) == {503}
    finally:
        one.redis.signal(signal.SIGCONT)
    user.counts(bytes=1, open=1, uploads=1)
    assert user.ask_for(999) == 201


async def test_doubts_outlive_an_answer() -> None:
    """One success is not enough: the late question may come after it, for two minutes."""
    given_back: list[str] = []
    away = True

    async def give_back(upload_id: str, _: UploadFacts) -> None:
        if away:
            raise ConnectionError
        given_back.append(upload_id)

    doubts = Doubts(give_back)
    doubts.add("a", new_sidecar().facts)
    for _ in range(3):
        with pytest.raises(ConnectionError):
            await doubts.settle()
    away = False
    await doubts.settle()
    await doubts.settle()
    assert given_back == ["a"]
    assert len(doubts) == 1


def test_length_that_came_with_a_wrong_checksum(both: tuple[Ingest, Ingest]) -> None:
    """A length that is not kept because its body was thrown away must not count on."""
    user = User(both[0])
    path = user.create(None)
    wrong = {"Upload-Length": "900", "Upload-Checksum": f"sha1 {b64encode(bytes(20)).decode()}"}
    assert user.patch(path, 0, b"abc", wrong).status == 460
    user.counts(bytes=0, open=1, uploads=1)
    assert user.ask_for(1000) == 201


def test_without_quotas_redis_is_not_asked(start_quota: Any) -> None:
    """With no limit set, creations need no Redis, and nothing is counted."""
    one = start_quota()
    user = User(one)
    user.create(300)
    assert sums(one.redis, user.tenant)["uploads"] == 0
    one.redis.kill()
    assert user.ask_for(10) == 201


def sidecar(size: int | None, **changes: Any) -> Sidecar:
    """Return a record."""
    facts = UploadFacts(user_id="u", tenant="t", created_at=1, job_id="j", size=size)
    event = UploadCreated(upload_id="i", seq=1, at=1, upload=facts)
    return Sidecar(
        upload_id="i", facts=facts, outbox=(event,), **{"status": "created", **changes}
    )


@pytest.mark.parametrize(
    ("record", "offset", "expected"),
    [
        (sidecar(100), 0, Usage(100, 1)),
        (sidecar(None), 30, Usage(30, 1)),
        (sidecar(100, status="quarantined"), 100, Usage(100, 0)),
        (sidecar(100, status="completed"), 100, Usage(100, 0)),
        (sidecar(100, status="completed", original_id="other"), 100, Usage(100, 0)),
        (sidecar(100, status="failed"), 0, NOTHING),
        (sidecar(100, status="cancelled"), 50, NOTHING),
        (sidecar(100, status="expired"), 50, NOTHING),
        (sidecar(100, status="deleted"), 100, NOTHING),
    ],
)
def test_what_an_upload_counts_for(record: Sidecar, offset: int, expected: Usage) -> None:
    """Each state has its count: bytes as long as they exist, open as long as they may come."""
    assert usage.of(record, offset) == expected


def test_what_events_change() -> None:
    """An end counts nothing any more; an event that ends nothing changes nothing."""
    facts = UploadFacts(user_id="u", tenant="t", created_at=1, job_id="j", size=9)
    assert usage.after(UploadCreated(upload_id="i", seq=1, at=1, upload=facts)) is None
    assert usage.after(UploadExpired(upload_id="i", seq=2, at=1, upload=facts)) == NOTHING


def test_refused_beginning_names_its_upload(both: tuple[Ingest, Ingest]) -> None:
    """Without interim answers only the refusal can tell which upload is left open."""
    user = User(both[0])
    user.create(900)
    answer = user.ask("POST", COLLECTION, {"Upload-Complete": "?0"}, b"x" * 200)
    assert answer.status == 413
    assert user.delete(path_of(answer)).status == 204
    user.counts(bytes=900, open=1, uploads=1)


def test_final_upload_of_unknown_length(both: tuple[Ingest, Ingest]) -> None:
    """A part whose length comes late must not make a file that there is no room for."""
    user = User(both[0])
    part = user.create(None, PARTIAL)
    final = path_of(join(user, *[part] * 4))
    assert user.patch(part, 0, b"x" * 300, {"Upload-Length": "300"}).status == 204
    user.counts(bytes=300, open=0, uploads=1)
    wait_until(lambda: len(lifecycle(both[0].redis.url, final)) == 2, "the event is out")
    _, failed = lifecycle(both[0].redis.url, final)
    assert isinstance(failed, UploadFailed)
    assert (failed.error_code, failed.offset) == ("QUOTA_EXCEEDED", 0), "nothing was copied"


def test_a_file_in_parts_counts_once(both: tuple[Ingest, Ingest]) -> None:
    """Security item 14: clients that send in parallel must not need twice the room."""
    user = User(both[0])
    parts = [part(user, b"x" * 300) for _ in "ab"]
    final = path_of(join(user, *parts))
    user.counts(bytes=600, open=0, uploads=1)
    assert join(user, *parts).status == 413, "that would be another 600"
    assert user.ask_for(401) == 413
    assert user.ask_for(400) == 201
    assert user.delete(parts[0]).status == 204
    user.counts(bytes=1000, open=1, uploads=2)
    assert user.delete(final).status == 204
    user.counts(bytes=700, open=1, uploads=2)
    assert user.delete(parts[1]).status == 204
    user.counts(bytes=400, open=1, uploads=1)


def test_parts_that_are_still_open_make_room_too(both: tuple[Ingest, Ingest]) -> None:
    """A final upload that waits for its parts is admitted, and then counts for them."""
    user = User(both[0])
    parts = [user.create(300, PARTIAL) for _ in "ab"]
    final = path_of(join(user, *parts))
    for one in parts:
        assert user.patch(one, 0, b"x" * 300).status == 204
    user.counts(bytes=600, open=0, uploads=1)
    assert user.delete(final).status == 204
    user.counts(bytes=600, open=0, uploads=2)


def test_joined_parts_are_known_after_a_wipe(start_quota: Any) -> None:
    """A recount must not make two of a file that came in parts, whichever it meets first."""
    one = start_quota(QUOTA_BYTES_PER_USER="1000")
    user = User(one)
    parts = [part(user, b"x" * 100) for _ in "abcdef"]
    final = path_of(join(user, *parts))
    user.counts(bytes=600, open=0, uploads=1)
    client: Any = redis_client.Redis.from_url(one.redis.url)
    client.flushall()
    counted(one.redis)
    user.counts(bytes=600, open=0, uploads=1)
    gone = f"p:{new_id()}"  # of a part whose end was never told
    client.hset(tenant_key(user.tenant), gone, f"5 {id_of(final)} u 1000")
    client.delete("ingest:{quota}:fresh")
    wait_until(lambda: not client.hexists(tenant_key(user.tenant), gone), "it is dropped")
    user.counts(bytes=600, open=0, uploads=1)
    client.close()
