"""Clients of Redis by URL: one server, a master that Sentinels name, or a cluster.

``redis://``, ``rediss://``, ``unix://``
    As everywhere.
``redis+sentinel://[user:password@]host:26379,host:26379/<master>[/<db>]``
    User and password are those of Redis; ``?sentinel_username=`` and ``?sentinel_password=``
    are for the Sentinels. The master is asked for at each new connection.
``redis+cluster://[user:password@]host:6379,host:6379``
    Some of the nodes; the others are found.

With ``rediss+`` all connections are encrypted. Other options follow the ``?`` as for a single
server.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, cast
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

__all__ = ["connect", "fails_over"]

_SOCKET_TIMEOUT_S: Final = 5.0
_CONNECT_TIMEOUT_S: Final = 2.0
_CONNECTIONS_PER_NODE: Final = 1000
_SCHEMES: Final = (
    "redis://, rediss:// or unix://, redis+sentinel://host:26379,host:26379/master "
    "or redis+cluster://host:6379,host:6379"
)

_RAW_REPLIES: Final = (
    *("XAUTOCLAIM", "XINFO CONSUMERS", "XINFO GROUPS", "XINFO", "XPENDING"),
    *("XREAD", "XREADGROUP", "XREVRANGE", "XRANGE"),
)


def connect(url: str, *, timeout_s: float = _SOCKET_TIMEOUT_S) -> Redis:
    """Return a client whose calls fail fast; callers own the retries.

    redis-py's defaults (ten silent retries, 5 s each) hide an outage for a minute. RESP2 is
    pinned because the shape of stream replies differs between protocol versions, and its own
    parsing of stream replies is switched off: it is slow, and wrong for some forms.

    That of a cluster is a ``RedisCluster``: it has the same commands, each for one slot.

    Args:
        url: As above.
        timeout_s: How long a server may take for an answer before it counts as away, unless
            the URL says so; longer than any command of the client waits for an entry.

    Raises:
        ValueError, TypeError: The URL is none of those above, or an option is not known.

    """
    scheme = url.partition("://")[0]
    if scheme in {"redis+sentinel", "rediss+sentinel"}:
        redis = _of_sentinels(url, _defaults(timeout_s))
    elif scheme in {"redis+cluster", "rediss+cluster"}:
        redis = _of_cluster(url, _defaults(timeout_s))
    elif scheme in {"redis", "rediss", "unix"}:
        redis = Redis.from_url(url, **_defaults(timeout_s))
    else:
        raise ValueError(f"expected {_SCHEMES}")
    for name in _RAW_REPLIES:
        redis.set_response_callback(name, cast(Any, _raw))
    return redis


def fails_over(url: str) -> bool:
    """Tell whether another server may take over while one refuses to answer."""
    return "+" in url.partition("://")[0]


def _raw(reply: object, **_: object) -> object:
    return reply


def _defaults(timeout_s: float) -> dict[str, Any]:
    return {
        "protocol": 2,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": min(timeout_s, _CONNECT_TIMEOUT_S),
        "retry": Retry(NoBackoff(), 0),
    }


class _Many(NamedTuple):
    """What a URL with several hosts says."""

    hosts: list[tuple[str, int]]
    path: list[str]
    options: dict[str, Any]


def _parse(url: str, port: int) -> _Many:
    """Take such a URL apart; the options are read as redis-py reads them.

    Raises:
        ValueError: It has no host, a port is none, or an option has a value that it cannot.

    """
    parts = urlsplit(url)
    credentials, at, netloc = parts.netloc.rpartition("@")
    hosts = []
    for one in netloc.split(","):
        host = urlsplit(f"//{one}")
        if not host.hostname:
            raise ValueError(f"a host is missing: expected {_SCHEMES}")
        hosts.append((unquote(host.hostname), host.port or port))
    options: dict[str, Any] = dict(parse_url(f"redis://{credentials}{at}x?{parts.query}"))
    del options["host"]
    if parts.scheme.startswith("rediss"):
        options["ssl"] = True
    return _Many(hosts, [unquote(one) for one in parts.path.split("/") if one], options)


def _of_cluster(url: str, defaults: dict[str, Any]) -> Redis:
    hosts, path, options = _parse(url, 6379)
    if path not in ([], ["0"]) or options.pop("db", 0):
        raise ValueError("a cluster has no databases: nothing may follow the hosts")
    return cast(
        Redis,
        RedisCluster(
            startup_nodes=[ClusterNode(*one) for one in hosts],
            **{**defaults, "max_connections": _CONNECTIONS_PER_NODE, **options},
        ),
    )


class _Sentinels(Sentinel):
    """Says in few words that there is no master just now."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        try:
            host, port = await super().discover_master(service_name)
        except MasterNotFoundError:
            raise MasterNotFoundError(
                f"no Sentinel that answers knows a master {service_name!r} that is up"
            ) from None
        return host, port


class _SentinelPool(SentinelConnectionPool):
    """Closes the connections to the Sentinels together with those to the master."""

    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


def _of_sentinels(url: str, defaults: dict[str, Any]) -> Redis:
    hosts, path, options = _parse(url, 26379)
    if len(path) not in {1, 2} or (len(path) == 2 and not path[1].isdecimal()):
        raise ValueError("expected redis+sentinel://host:26379,host:26379/master/db")
    if len(path) == 2:
        options["db"] = int(path[1])
    of_sentinels = {
        name: options.pop(f"sentinel_{name}")
        for name in ("username", "password")
        if f"sentinel_{name}" in options
    }
    shared = {
        name: value for name, value in options.items() if name.startswith(("ssl", "socket_"))
    }
    sentinel = _Sentinels(hosts, sentinel_kwargs={**defaults, **shared, **of_sentinels})  # type: ignore[no-untyped-call]
    redis: Redis = sentinel.master_for(
        path[0], connection_pool_class=_SentinelPool, **{**defaults, **options}
    )
    return redis
