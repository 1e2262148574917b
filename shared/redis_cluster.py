"""Commands and pipelines on Redis Cluster, sent to the node that has the key.

redis-py asks a server for the keys of commands whose keys move about, such as XREAD, each
time; here they are found in the command itself. A pipeline goes to all nodes at once: what
belongs together must stand in one slot, or be sent one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeGuard

from redis.asyncio import Redis, RedisCluster
from redis.crc import key_slot
from redis.exceptions import (
    ClusterDownError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

__all__ = ["by_slot", "is_cluster", "key_of", "run", "run_pipelined"]

_KEYLESS: Final = frozenset(
    {"ACL", "CLIENT", "CLUSTER", "CONFIG", "DBSIZE", "FLUSHALL", "INFO", "PING", "SCRIPT"}
)
_PLACES: Final = {"EVAL": 3, "EVALSHA": 3, "XGROUP": 2, "XINFO": 2}


def is_cluster(redis: Redis) -> TypeGuard[RedisCluster]:
    """Tell whether a client made by ``shared.redis_urls.connect`` is one of a cluster."""
    return isinstance(redis, RedisCluster)


def key_of(command: Sequence[object]) -> str | None:
    """Return the first key of a command, ``None`` for one that has no key."""
    name = command[0]
    if name in _KEYLESS:
        return None
    if name in {"XREAD", "XREADGROUP"}:
        place = command.index("STREAMS") + 1
    else:
        place = _PLACES.get(str(name), 1)
    key = command[place]
    return key.decode() if isinstance(key, bytes) else str(key)


def by_slot(keys: Iterable[str]) -> list[list[str]]:
    """Return the keys in groups, one a slot: those that one command may name together."""
    groups: dict[int, list[str]] = {}
    for key in keys:
        groups.setdefault(key_slot(key.encode()), []).append(key)
    return list(groups.values())


async def run(cluster: RedisCluster, command: Sequence[Any]) -> Any:
    """Send one command to the node that has its key, and return its reply."""
    _ = await cluster.initialize()
    return await cluster.execute_command(*command, **_target(cluster, command))


async def run_pipelined(cluster: RedisCluster, commands: Iterable[Sequence[Any]]) -> list[Any]:
    """Send the commands, one write a node; a refused one's reply is its error.

    A node that does not answer is no refusal: it raises, though others may have done their
    part. The nodes and their slots are looked up again then.

    Raises:
        RedisError, RedisClusterException: A node is away, or the cluster is down.

    """
    try:
        _ = await cluster.initialize()
        pipe = cluster.pipeline(transaction=False)
        for command in commands:
            _ = pipe.execute_command(*command, **_target(cluster, command))
        replies: list[Any] = await pipe.execute(raise_on_error=False)
        for reply in replies:
            refused = isinstance(reply, ResponseError)
            down = isinstance(reply, ClusterDownError)
            if isinstance(reply, Exception) and (down or not refused):
                raise reply
    except (RedisError, RedisClusterException, OSError):
        await cluster.aclose()
        raise
    return replies


def _target(cluster: RedisCluster, command: Sequence[object]) -> dict[str, Any]:
    key = key_of(command)
    return {} if key is None else {"target_nodes": cluster.get_node_from_key(key)}
