"""Faults while forms come: what was acknowledged is kept, and the file is made exactly once."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.ingest.conftest import Ingest, Starter
from tests.ingest.evidence import blob, completed_once, digest, no_file_is_left, tracebacks
from tests.ingest.form_client import Forms, body_of, file_part, text_parts
from tests.ingest.system_calls import injecting
from tests.processes import RedisServer, running, wait_until

SIZE = 70_000


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, to be mistreated."""
    server = RedisServer(tmp_path / "redis")
    with running(server):
        yield server


def pieces(count: int) -> list[bytes]:
    """Return so many chunks of random bytes."""
    return [os.urandom(SIZE) for _ in range(count)]


def restart(ingest: Ingest) -> None:
    """Kill the process -9 and start it again."""
    ingest.service.kill()
    ingest.service.start()


def is_whole(ingest: Ingest, upload_id: str, chunks: list[bytes]) -> None:
    """Check that an upload completed once, with the bytes of the chunks and nothing beside."""
    completed_once(ingest.redis, upload_id, repeats=True)
    assert digest(blob(ingest.data_dir, upload_id)) == digest(b"".join(chunks))
    folder = ingest.data_dir / "blobs" / upload_id[:2]
    whole = {upload_id, f"{upload_id}.info"}

    def left() -> set[str]:  # a digest may still be entered into its record
        return {one.name for one in folder.glob(f"{upload_id}*")} - whole

    wait_until(lambda: not left(), "nothing is beside it", left, limit_s=10)


# The process dies.


def test_killed_between_chunks(mortal: Ingest) -> None:
    """Every chunk that was acknowledged is there after kill -9, and the others are missing."""
    forms, chunks = Forms(mortal.service.port), pieces(6)
    name = f"killed-{os.urandom(4).hex()}"
    acknowledged = set()
    for index in (4, 0, 3):
        assert forms.chunk(chunks, index, name).status == 202
        acknowledged.add(index)
        restart(mortal)
        state = forms.state(name)
        assert state.data["missing_chunks"] == sorted(set(range(6)) - acknowledged)
    for index in (1, 2, 5):
        last = forms.chunk(chunks, index, name)
        assert last.data["chunks_received"] == len(acknowledged | {index})
        acknowledged.add(index)
    is_whole(mortal, forms.state(name).data["upload_id"], chunks)


def test_killed_while_a_chunk_comes(mortal: Ingest) -> None:
    """Half a chunk is nothing: after kill -9 it is missing, and can be sent again."""
    forms, chunks = Forms(mortal.service.port), pieces(2)
    session_id = forms.chunk(chunks, 0).data["session_id"]
    fields = {"session_id": session_id, "chunk_index": 1, "total_chunks": 2}
    body = body_of([*text_parts(fields), file_part(chunks[1])])
    folder = mortal.data_dir / "blobs" / session_id[:2] / f"{session_id}.chunks"
    with forms.begin(body[:-1000], length=len(body)):
        wait_until(lambda: any(folder.glob("new-*")), "the chunk is on its way")
        restart(mortal)
    assert forms.state(session_id).data["missing_chunks"] == [1]
    assert forms.chunk(chunks, 1, session_id).status == 201
    is_whole(mortal, session_id, chunks)


def beside(suffix: str) -> Callable[[Path, str], Path]:
    """Return how to find a file of an upload."""
    return lambda root, one: root / one[:2] / f"{one}{suffix}"


STEPS: dict[str, tuple[str, Callable[[Path, str], Path]]] = {
    "the chunk is in place, and not told": ("utimensat", beside(".part")),
    "the bytes are being joined": ("copy_file_range", beside(".part")),
    "joined, not synced": ("fdatasync", beside(".part")),
    "the length is being recorded": ("rename", beside(".info.new")),
    "synced, not visible": ("rename", beside(".part")),
    "visible, not recorded": ("openat", lambda root, one: root / "due" / f"{one}.2"),
}


@pytest.mark.skipif(not shutil.which("strace"), reason="strace stops the process between steps")
@pytest.mark.parametrize(
    ("step", "how"), list(zip(STEPS, ["ask", "send again"] * 3, strict=True))
)
def test_killed_between_the_steps_of_joining(mortal: Ingest, step: str, how: str) -> None:
    """Wherever kill -9 interrupts the join, the next request makes up for it, exactly once."""
    forms, chunks = Forms(mortal.service.port), pieces(3)
    session_id = forms.chunk(chunks, 0).data["session_id"]
    forms.chunk(chunks, 2, session_id)
    call, place = STEPS[step]
    file = place(mortal.data_dir / "blobs", session_id)
    died = pytest.raises((EOFError, ConnectionError))
    with injecting(mortal.service.pid, call, file, "signal=SIGKILL"), died:
        forms.chunk(chunks, 1, session_id)
    restart(mortal)
    if how == "ask":
        state = forms.state(session_id)
        if state.data["missing_chunks"] == [1]:  # it was not acknowledged, nor durable
            assert forms.chunk(chunks, 1, session_id).status == 201
        else:
            assert state.data["status"] == "completed"
    else:
        assert forms.chunk(chunks, 1, session_id).status == 201
    is_whole(mortal, session_id, chunks)


def test_killed_while_a_whole_file_comes(mortal: Ingest) -> None:
    """A file that broke off begins anew under its name, and the first try goes."""
    name, content = f"broken-{os.urandom(4).hex()}", os.urandom(14_000_000)
    body = body_of([*text_parts({"session_id": name}), file_part(content)])
    forms = Forms(mortal.service.port)
    blobs = mortal.data_dir / "blobs"
    with forms.begin(body[:-1000], length=len(body)):
        large = 12_000_000
        wait_until(
            lambda: any(one.stat().st_size > large for one in blobs.glob("??/*.part")),
            "most of the file has come",
        )
        restart(mortal)
    first = forms.state(name).data
    assert (first["status"], first["missing_chunks"]) == ("active", [0])
    reply = forms.post(content, session_id=name)
    assert reply.status == 201
    assert forms.state(name).data["upload_id"] == reply.data["upload_id"]
    no_file_is_left(mortal.data_dir, first["upload_id"])
    is_whole(mortal, reply.data["upload_id"], [content])


# Several processes.


def test_chunks_go_to_any_replica(pair: tuple[Ingest, Ingest]) -> None:
    """Two processes that each get some of the chunks would each wait for the others."""
    clients = [Forms(one.service.port) for one in pair]
    for number in range(3):
        chunks, name = pieces(12), f"replicas-{number}-{os.urandom(4).hex()}"
        order = [*range(12), *range(0, 12, 2)]
        random.Random(number).shuffle(order)

        def send(turn: tuple[int, int], chunks: list[bytes] = chunks, name: str = name) -> str:
            place, index = turn
            reply = clients[place % 2].chunk(chunks, index, name)
            assert reply.status in {201, 202}, reply
            return str(reply.data["upload_id"])

        with ThreadPoolExecutor(8) as pool:
            upload_ids = set(pool.map(send, enumerate(order)))
        assert len(upload_ids) == 1
        states = [one.state(name).data for one in clients]
        assert states[0] == states[1]
        assert states[0]["status"] == "completed"
        is_whole(pair[0], upload_ids.pop(), chunks)


def test_one_replica_dies_and_the_other_goes_on(pair: tuple[Ingest, Ingest]) -> None:
    """A session belongs to no process: another one has all chunks that were acknowledged."""
    here, there = (Forms(one.service.port) for one in pair)
    chunks, name = pieces(4), f"moved-{os.urandom(4).hex()}"
    assert here.chunk(chunks, 0, name).status == there.chunk(chunks, 3, name).status == 202
    pair[0].service.kill()
    try:
        assert there.chunk(chunks, 1, name).data["missing_chunks"] == [2]
        last = there.chunk(chunks, 2, name)
        assert last.status == 201
    finally:
        pair[0].service.start()
    assert here.state(name).data == last.data
    is_whole(pair[0], last.data["upload_id"], chunks)


# Redis.


def test_redis_is_wiped_between_chunks(start_ingest: Starter, own_redis: RedisServer) -> None:
    """A name that only Redis knew would lead to a second session, without the first chunks."""
    one = start_ingest(own_redis)
    forms, chunks = Forms(one.service.port), pieces(3)
    upload_id = forms.chunk(chunks, 0, "wiped").data["upload_id"]
    for index, status in ((1, 202), (2, 201)):
        own_redis.kill()
        own_redis.start()
        reply = forms.chunk(chunks, index, "wiped")
        assert (reply.status, reply.data["upload_id"]) == (status, upload_id)
    is_whole(one, upload_id, chunks)
    assert tracebacks(one.service) == []


def test_redis_is_away(start_ingest: Starter, own_redis: RedisServer) -> None:
    """Sessions that are there go on; only a new name has to wait until Redis is back."""
    one = start_ingest(own_redis)
    forms, chunks = Forms(one.service.port), pieces(3)
    named = forms.chunk(chunks, 0, "away").data["upload_id"]
    other = forms.chunk(chunks, 0).data["upload_id"]
    own_redis.kill()
    # Those that are known by a name, or by an id, and files and sessions without a name.
    assert forms.chunk(chunks, 1, "away").data["missing_chunks"] == [2]
    assert forms.state("away").data["upload_id"] == named
    assert forms.chunk(chunks, 1, other).status == 202
    fresh = forms.chunk(chunks, 2)
    assert fresh.status == 202
    assert forms.post(b"a whole file").status == 201
    refused = forms.chunk(chunks, 0, "a new name")
    assert refused.status == 400
    refused = forms.chunk(chunks, 0, "a-new-name")
    assert (refused.status, refused.code) == (503, "SERVICE_UNAVAILABLE")
    assert refused.answer.headers["Retry-After"]
    assert forms.state("a-new-name").status == 404
    assert forms.chunk(chunks, 2, "away").status == 201
    own_redis.start()
    assert forms.chunk(chunks, 2, other).status == 201
    assert forms.state("away").data["status"] == "completed"
    assert forms.chunk(chunks, 0, "a-new-name").status == 202
    for upload_id in (named, other):
        is_whole(one, upload_id, chunks)
    assert tracebacks(one.service) == []


# The disk.


def test_chunk_that_cannot_be_made_durable(mortal: Ingest) -> None:
    """A chunk whose sync fails must not be acknowledged, and can be sent again."""
    if not shutil.which("strace"):
        pytest.skip("strace makes the sync fail")
    forms, chunks = Forms(mortal.service.port), pieces(2)
    session_id = forms.chunk(chunks, 0).data["session_id"]
    folder = mortal.data_dir / "blobs" / session_id[:2] / f"{session_id}.chunks"
    with injecting(mortal.service.pid, "fsync", folder, "error=EIO"):
        failed = forms.chunk(chunks, 1, session_id)
    assert failed.status == 503
    assert forms.chunk(chunks, 1, session_id).status == 201
    is_whole(mortal, session_id, chunks)


# Time.


def test_session_that_was_not_continued(start_ingest: Starter) -> None:
    """A session that nobody continued is over, and a chunk that comes late is told so."""
    one = start_ingest(UPLOAD_SESSION_TIMEOUT_HOURS=str(1.0 / 3600))
    forms, chunks = Forms(one.service.port), pieces(2)
    session_id = forms.chunk(chunks, 0).data["session_id"]

    def is_over() -> bool:
        return forms.state(session_id).status == 410

    wait_until(is_over, "the session has expired", limit_s=10)
    assert forms.chunk(chunks, 1, session_id).status == 410
    assert forms.cancel(session_id).status == 200
