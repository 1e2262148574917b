"""URLs of all topologies, where commands go on a cluster, and what does not start."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.crc import key_slot
from redis.exceptions import NoScriptError, ResponseError

from shared.errors import StartupError
from shared.redis_cluster import by_slot, is_cluster, key_of
from shared.redis_script import RedisScript, run_mixed
from shared.redis_urls import connect, fails_over
from shared.serve import check_redis
from shared.stream_group import GroupEntry, StreamGroup
from shared.streams import (
    REDIS_FAILURES,
    Command,
    event_stream,
    pipelined,
    server_runs,
    stream_names,
)
from tests.processes import RedisServer, free_port
from tests.redis_topologies import ClusterNodes, cluster
from tests.shared.conftest import ConnectTo
from tests.shared.test_stream_tail import Reader, Writer, caught_up
from tests.shared.waiting import alongside, eventually


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNodes]:
    """A cluster that the tests of this module share."""
    with ExitStack() as stack:
        yield stack.enter_context(cluster(tmp_path_factory.mktemp("cluster") / "redis"))


async def test_sentinel_urls() -> None:
    """Hosts, master, database, credentials and options all reach the pool."""
    redis = connect(
        "rediss+sentinel://me:p%40ss@one,two:1234,[::1]:99/main/3"
        "?sentinel_password=x&socket_timeout=1.5&ssl_cert_reqs=none"
    )
    pool = redis.connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    assert pool.service_name == "main"
    told = pool.connection_kwargs
    assert (told["username"], told["password"], told["db"]) == ("me", "p@ss", 3)
    assert told["socket_timeout"] == 1.5
    of_sentinels = [
        one.connection_pool.connection_kwargs for one in pool.sentinel_manager.sentinels
    ]
    assert [(one["host"], one["port"]) for one in of_sentinels] == [
        *(("one", 26379), ("two", 1234), ("::1", 99))
    ]
    assert of_sentinels[0]["password"] == "x"
    assert of_sentinels[0].get("username") is None
    assert of_sentinels[0]["ssl_cert_reqs"] == "none"
    await redis.aclose()


async def test_cluster_urls() -> None:
    """A cluster's client knows all the nodes that the URL names, and the credentials."""
    redis = connect("rediss+cluster://me:secret@one,two:1234?socket_timeout=1.5")
    assert is_cluster(redis)
    assert [(one.host, one.port) for one in redis.startup_nodes] == [
        ("one", 6379),
        ("two", 1234),
    ]
    told = redis.connection_kwargs
    assert (told["username"], told["password"]) == ("me", "secret")
    assert told["socket_timeout"] == 1.5
    assert "ssl_cert_reqs" in told


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://x", "expected redis://"),
        ("redis+sentinel://x", "/master/db"),
        ("redis+sentinel://x/main/one", "/master/db"),
        ("redis+sentinel://,x/main", "a host is missing"),
        ("redis+cluster://x/1", "no databases"),
        ("redis+cluster://x:99999", "Port out of range"),
        ("redis+cluster://x?colour=red", "colour"),
        ("redis+sentinel://127.0.0.1:1,127.0.0.1:2/main?password=hush", "no Sentinel"),
        ("redis+cluster://127.0.0.1:1,127.0.0.1:2", "no Redis answers"),
    ],
)
async def test_a_url_that_cannot_be_used(url: str, reason: str) -> None:
    """What is wrong with it is told in one line, without what is secret."""
    with pytest.raises(StartupError) as told:
        await check_redis(url)
    assert reason in str(told.value)
    assert "\n" not in str(told.value)
    assert "hush" not in str(told.value)


async def test_the_wrong_kind_of_server(three: ClusterNodes, redis_server: RedisServer) -> None:
    """A node of a cluster is no server alone, a server no cluster, and neither a Sentinel."""
    node = three.nodes[0].port
    for url, reason in (
        (f"redis://127.0.0.1:{node}", "redis+cluster://"),
        (f"redis+sentinel://127.0.0.1:{node}/main", "cannot be used"),
        (f"redis+cluster://127.0.0.1:{redis_server.port}", "Cluster mode is not enabled"),
    ):
        with pytest.raises(StartupError, match=reason.replace("+", r"\+")):
            await check_redis(url)
    await check_redis(three.url)


def test_what_can_fail_over() -> None:
    """Only a server alone proves by its refusal that nobody serves."""
    assert [fails_over(one) for one in ("redis://a", "unix://b", "rediss://c+d")] == [False] * 3
    assert fails_over("redis+sentinel://a/main")
    assert fails_over("rediss+cluster://a")


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("GET", "a"), "a"),
        (("XADD", b"a", "*", "d", "STREAMS"), "a"),
        (("XREAD", "COUNT", 1, "STREAMS", "a", "b", "0", "0"), "a"),
        (("XREADGROUP", "GROUP", "g", "c", "STREAMS", "a", ">"), "a"),
        (("XGROUP", "CREATE", "a", "g", "0"), "a"),
        (("XINFO", "GROUPS", "a"), "a"),
        (("EVALSHA", "abc", 1, "a", "b"), "a"),
        (("EVAL", "return 1", 2, "a", "b"), "a"),
        (("INFO", "server"), None),
        (("SCRIPT", "LOAD", "return 1"), None),
    ],
)
def test_keys_of_commands(words: tuple[object, ...], key: str | None) -> None:
    """The key is found in every command that is sent."""
    assert key_of(words) == key


@given(st.integers(1, 64))
def test_streams_by_slot(partitions: int) -> None:
    """Both streams of a partition stand in one slot, and no group has keys of two."""
    groups = by_slot(stream_names(partitions))
    assert sorted(key for keys in groups for key in keys) == sorted(stream_names(partitions))
    for keys in groups:
        assert len({key_slot(key.encode()) for key in keys}) == 1
    assert len(groups) <= partitions


async def test_pipelines_on_a_cluster(three: ClusterNodes, connect_to: ConnectTo) -> None:
    """Replies come in the order of the commands, from all nodes, refusals in their places."""
    redis = connect_to(three.url)
    keys = [f"key{n}" for n in range(50)]
    await pipelined(redis, [("SET", key, key) for key in keys])
    commands = [
        ("LPUSH" if n == 20 else "GET", key, "x")[: 3 - (n != 20)] for n, key in enumerate(keys)
    ]
    replies = await pipelined(redis, commands, raise_on_error=False)
    assert [one for n, one in enumerate(replies) if n != 20] == [
        key.encode() for n, key in enumerate(keys) if n != 20
    ]
    assert isinstance(replies[20], ResponseError)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await pipelined(redis, commands)
    script = "return redis.call('GET', KEYS[1])"
    calls = [("EVALSHA", "0" * 40, 1, key) for key in keys]
    with pytest.raises(NoScriptError):
        await pipelined(redis, calls)
    digest = await redis.script_load(script)
    loaded = await pipelined(redis, [("EVALSHA", digest, 1, key) for key in keys])
    assert loaded == [key.encode() for key in keys]


async def test_scripts_on_a_cluster(
    three: ClusterNodes, connect_to: ConnectTo, tmp_path: Path
) -> None:
    """A script runs on each node, known there or not."""
    text = tmp_path / "script.lua"
    text.write_text("return KEYS[1] .. ARGV[1]")
    script, redis = RedisScript(text), connect_to(three.url)
    for n in range(20):
        assert await script.run(redis, [f"key{n}"], n) == f"key{n}{n}".encode()


async def test_scripts_among_commands(
    three: ClusterNodes, connect_to: ConnectTo, tmp_path: Path
) -> None:
    """On primaries that have not seen, or have lost, a script all is done, in its order."""
    first, second = (tmp_path / name for name in ("first.lua", "second.lua"))
    first.write_text("return redis.call('SET', KEYS[1], ARGV[1], 'NX') and 1 or 0")
    second.write_text("return (redis.call('GET', KEYS[1]) or '') .. ARGV[1]")
    one, two = RedisScript(first), RedisScript(second)
    redis = connect_to(three.url)
    keys = [f"mixed{n}" for n in range(20)]
    commands: list[Command] = []
    for key in keys:
        commands += [one.call([key], "a"), two.call([key], "b"), ("STRLEN", key)]
    await one.load(redis)
    replies = await run_mixed(redis, commands, one, two)
    assert replies == [1, b"ab", 1] * len(keys)
    await redis.script_flush()
    await pipelined(redis, [("SET", key, "xy") for key in keys])
    assert await run_mixed(redis, commands, one, two) == [0, b"xyb", 2] * len(keys)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await run_mixed(redis, [*commands, ("LPUSH", keys[0], "x")], one, two)


async def test_a_tail_on_a_cluster(three: ClusterNodes, connect_to: ConnectTo) -> None:
    """Streams of several slots are followed at full speed, none missed and none doubled."""
    reader, writer = Reader(connect_to(three.url)), Writer(connect_to(three.url))
    await reader.tail.join(writer.added)
    async with writer.at_work(), alongside(reader.tail.run()):
        await eventually(lambda: writer.count > 300, "entries are added")
    async with alongside(reader.tail.run()):
        await caught_up(reader, writer, dict.fromkeys(writer.added, 0))
    assert reader.gaps == 0


async def test_a_group_on_a_cluster(three: ClusterNodes, connect_to: ConnectTo) -> None:
    """Every entry of every slot is handled, and acknowledged."""
    seen: set[bytes] = set()

    async def handle(batch: list[GroupEntry]) -> None:
        seen.update(entry.id for entry in batch)

    redis = connect_to(three.url)
    streams = [event_stream(n) for n in range(40, 48)]
    group = StreamGroup(
        connect_to(three.url),
        group="cluster",
        streams=streams,
        handle=handle,  # type: ignore[arg-type]
    )
    await group.prepare()
    added = await pipelined(redis, [("XADD", key, "*", "d", "x") for key in streams * 20])
    async with alongside(group.run()):
        await eventually(lambda: seen >= set(added), "all are handled")

        async def acknowledged() -> bool:
            pending = await pipelined(redis, [("XPENDING", key, "cluster") for key in streams])
            return all(one[0] == 0 for one in pending)

        await eventually(acknowledged, "all are acknowledged")


async def test_a_node_that_dies_is_no_success(tmp_path: Path, connect_to: ConnectTo) -> None:
    """What was to go to a node that is away raises, or a publisher would take it as written."""
    with ExitStack() as stack:
        own = stack.enter_context(cluster(tmp_path / "redis"))
        redis = connect_to(own.url)
        commands = [("XADD", event_stream(n), "*", "d", "x") for n in range(16)]
        await pipelined(redis, commands)
        before = await server_runs(redis)
        own.nodes[0].kill()
        for _ in range(3):
            with pytest.raises(REDIS_FAILURES):
                await pipelined(redis, commands, raise_on_error=False)
        own.nodes[0].start()

        async def writes() -> bool:
            try:
                replies = await pipelined(redis, commands, raise_on_error=False)
            except REDIS_FAILURES:
                return False
            return not any(isinstance(one, Exception) for one in replies)

        await eventually(writes, "it is back")
        assert await server_runs(redis) != before


async def test_a_sentinels_connections_are_closed_too(redis_server: RedisServer) -> None:
    """A client that was asked to close leaves nothing open, whatever it was connected to."""
    redis: Redis = connect(f"redis+sentinel://127.0.0.1:{free_port()}/main")
    with pytest.raises(REDIS_FAILURES):
        await redis.ping()
    await redis.aclose()
    await asyncio.sleep(0)
