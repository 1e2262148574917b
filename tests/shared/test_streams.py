"""Names, partitions and entry layouts; and the client on real servers of both kinds."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from shared.events import MalformedEvent, UploadProgress
from shared.sidecar import new_id
from shared.streams import (
    REDIS_FAILURES,
    ProgressEntry,
    command,
    connect,
    entries_of,
    entry_order,
    event_stream,
    flat_dict,
    pack_positions,
    partition_of,
    pipelined,
    progress_stream,
    read_ids,
    stream_names,
)
from tests.processes import RedisServer
from tests.shared.samples import position
from tests.shared.unpacking import unpack_positions

A = "0b7f7a52-63a5-4b8e-9d4c-6d5f0c1a2b3c"
B = "6f9b2c1e-4f57-4f7e-9c55-0f3d3b8f2a11"


def fields_of(packed: tuple[object, ...]) -> dict[bytes, bytes]:
    """Return the arguments of XADD as a reader gets them back."""
    flat = [part if isinstance(part, bytes) else str(part).encode() for part in packed]
    return flat_dict(flat)


def test_names_carry_literal_braces() -> None:
    """The braces spread the partitions over the slots of a cluster."""
    assert event_stream(3) == "events:{p03}"
    assert progress_stream(12) == "progress:{p12}"
    assert stream_names(2) == [
        *("events:{p00}", "events:{p01}", "progress:{p00}", "progress:{p01}")
    ]


def test_partitions_never_change() -> None:
    """An upload is in the same partition in every build: CRC-32, unsigned."""
    assert [partition_of(one, 16) for one in (A, B)] == [5, 12]
    assert partition_of(A, 1) == 0
    assert partition_of(A, 100) == zlib.crc32(A.encode()) % 100


def test_partitions_are_used_evenly() -> None:
    """No partition gets much more than its share of random ids."""
    counts = [0] * 16
    for _ in range(4800):
        counts[partition_of(new_id(), 16)] += 1
    assert min(counts) > 200
    assert max(counts) < 400


@given(
    st.lists(
        st.builds(
            UploadProgress,
            upload_id=st.uuids().map(str),
            seq=st.integers(1, 2**31),
            at=st.integers(0, 2**53),
            offset=st.integers(0, 2**53),
            size=st.none() | st.integers(0, 2**53),
            speed=st.floats(0, 1e12).map(lambda speed: round(speed, 1)),
        ),
        unique_by=lambda one: one.upload_id,
        max_size=20,
    )
)
def test_positions_come_back_as_they_were(positions: list[UploadProgress]) -> None:
    """An entry gives back all its positions, in order, and tells who wrote it."""
    entry = read_ids(fields_of(pack_positions("host-1", 7, positions)))
    assert (entry.producer, entry.number) == (b"host-1", 7)
    assert entry.ids == [one.upload_id.encode() for one in positions]
    assert unpack_positions(entry) == positions


@pytest.mark.parametrize("field", ["p", "n", "i", "d"])
def test_a_progress_entry_without_a_field_is_malformed(field: str) -> None:
    """Entries of another layout are refused."""
    fields = fields_of(pack_positions("p", 1, [position(A, 5)]))
    del fields[field.encode()]
    with pytest.raises(MalformedEvent):
        read_ids(fields)


def test_ids_must_be_text() -> None:
    """What could not be told to anybody is refused before it is looked for."""
    fields = fields_of(pack_positions("p", 1, [position(A, 5)]))
    for field in (b"i", b"ji"):
        with pytest.raises(MalformedEvent):
            read_ids({**fields, field: b"\xff"})


@pytest.mark.parametrize("number", [b"", b"x", b"1.5", b"9" * 5000])
def test_a_running_number_must_be_a_number(number: bytes) -> None:
    """What cannot be counted is refused."""
    fields = fields_of(pack_positions("p", 1, [position(A, 5)]))
    with pytest.raises(MalformedEvent):
        read_ids({**fields, b"n": number})


@pytest.mark.parametrize(
    ("ids", "body"),
    [
        ([A.encode()], b""),
        ([A.encode()], b"[]"),
        ([A.encode()], b"[[1,2,3,4,5.0],[1,2,3,4,5.0]]"),
        ([A.encode()], b"[[1,2,3]]"),
        ([A.encode()], b'[["1",2,3,4,5.0]]'),
        ([A.encode()], b"[[0,2,3,4,5.0]]"),
        ([A.encode()], b"[[1,-2,3,4,5.0]]"),
        ([A.encode()], b"[[1,2,-3,4,5.0]]"),
        ([A.encode()], b"[[1,2,3,-4,5.0]]"),
        ([A.encode()], b"{}"),
        ([A.encode()], b"[[1,2,3,4,5.0," + b"[" * 100_000 + b"]" * 100_000 + b"]]"),
    ],
)
def test_positions_that_do_not_fit_their_ids_are_malformed(
    ids: list[bytes], body: bytes
) -> None:
    """Each id has one position, and each value is one that can be."""
    with pytest.raises(MalformedEvent):
        unpack_positions(ProgressEntry(b"p", 1, ids, body))


@given(st.dictionaries(st.sampled_from([b"p", b"n", b"i", b"d", b"x"]), st.binary(max_size=40)))
def test_any_fields_are_read_or_malformed(fields: dict[bytes, bytes]) -> None:
    """Nothing on a stream can raise what a reader does not expect."""
    with contextlib.suppress(MalformedEvent):
        unpack_positions(read_ids(fields))


def test_positions_may_grow() -> None:
    """A newer writer may add values at the end of a position."""
    entry = ProgressEntry(b"p", 1, [A.encode()], b'[[1,2,3,4,5.0,"later"]]')
    assert [one.offset for one in unpack_positions(entry)] == [3]


def test_ids_of_entries_sort_as_numbers() -> None:
    """As text, 9-1 would come after 10-0."""
    ids = [b"9-1", b"10-0", b"10-9", b"10-10", b"1735732800250-0"]
    shuffled = [ids[n] for n in (3, 0, 4, 2, 1)]
    assert sorted(shuffled, key=entry_order) == ids
    assert entry_order(b"5") == (5, 0)


async def test_streams_are_read_raw(any_redis: Redis) -> None:
    """Entries come back by key, with ids and fields as bytes."""
    one = await command(any_redis, "XADD", "s", "*", "i", "x", "d", b"\xff")
    two = await command(any_redis, "XADD", "t", "*", "i", "y", "d", b"")
    reply = await command(any_redis, "XREAD", "STREAMS", "s", "t", "none", "0", "0", "0")
    assert entries_of(reply) == [
        ("s", [(one, {b"i": b"x", b"d": b"\xff"})]),
        ("t", [(two, {b"i": b"y", b"d": b""})]),
    ]
    assert entries_of(await command(any_redis, "XREAD", "STREAMS", "s", one)) == []


async def test_a_pipeline_tells_which_command_was_refused(any_redis: Redis) -> None:
    """The others are carried out, and the replies stand in order."""
    commands = [("SET", "a", "1"), ("XADD", "a", "*", "f", "v"), ("GET", "a")]
    replies = await pipelined(any_redis, commands, raise_on_error=False)
    assert replies[0] in {b"OK", True}
    assert isinstance(replies[1], ResponseError)
    assert replies[2] == b"1"
    with pytest.raises(ResponseError):
        await pipelined(any_redis, commands)


@contextlib.contextmanager
def hung(server: RedisServer) -> Iterator[None]:
    """Stop a server, and let it go on at the end."""
    server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.signal(signal.SIGCONT)


async def test_a_cancelled_command_never_answers_another(
    any_redis_server: RedisServer, any_redis: Redis
) -> None:
    """A reply that nobody waits for any more is not taken for the next one's."""
    for number in range(3):
        await command(any_redis, "PING")
        with hung(any_redis_server), pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await command(any_redis, "ECHO", f"lost-{number}")
        assert await command(any_redis, "ECHO", f"kept-{number}") == b"kept-%d" % number
        with hung(any_redis_server), pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await pipelined(any_redis, [("ECHO", "lost"), ("ECHO", "lost")])
        assert await pipelined(any_redis, [("ECHO", "kept")]) == [b"kept"]


async def test_a_cancelled_blocking_read_loses_no_entry(any_redis: Redis) -> None:
    """A read that is given up takes nothing with it."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await command(any_redis, "XREAD", "BLOCK", 5000, "STREAMS", "s", "0")
    entry_id = await command(any_redis, "XADD", "s", "*", "f", "v")
    reply = await command(any_redis, "XREAD", "BLOCK", 1000, "STREAMS", "s", "0")
    assert entries_of(reply) == [("s", [(entry_id, {b"f": b"v"})])]


async def test_a_dead_server_is_told_at_once() -> None:
    """No silent retries: the caller learns of an outage and decides."""
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        client = connect(f"redis://127.0.0.1:{taken.getsockname()[1]}/0")
        took = []
        for _ in range(3):
            started = time.monotonic()
            with pytest.raises(REDIS_FAILURES):
                await command(client, "PING")
            took.append(time.monotonic() - started)
        assert min(took) < 1
        await client.aclose()


async def test_a_silent_server_is_given_up(any_redis_server: RedisServer) -> None:
    """A server that accepts but does not answer counts as away after the socket timeout."""
    client = connect(f"{any_redis_server.url}?socket_timeout=0.1")
    with hung(any_redis_server), pytest.raises(REDIS_FAILURES):
        await command(client, "PING")
    await client.aclose()
