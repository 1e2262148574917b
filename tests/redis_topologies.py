"""Redis as production runs it: a cluster of three, and a master that Sentinels watch."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.processes import debian_redis, free_port, wait_until

__all__ = ["ClusterNodes", "Node", "SentinelSet", "ask", "cluster", "sentinels"]

_BUS: Final = 10_000
"""A node of a cluster also listens on its port and this."""


def _node_port() -> int:
    while True:
        port = free_port()
        if port + _BUS < 65_536:
            with contextlib.suppress(OSError), socket.socket() as probe:
                probe.bind(("127.0.0.1", port + _BUS))
                return port


def ask(port: int, *words: str) -> str:
    """Return what a server answers to an inline command, as it stands on the wire."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as sock:
        sock.sendall(" ".join(words).encode() + b"\r\n")
        return sock.recv(65_536).decode(errors="replace")
    return ""


class Node:
    """One server of Debian's Redis 7.0, in a folder of its own."""

    def __init__(self, folder: Path, *options: str, sentinel_of: Node | None = None) -> None:
        binary = debian_redis()
        assert binary is not None
        self.port: Final = _node_port()
        folder.mkdir(parents=True)
        home = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._command = [str(binary), *home, "--save", "", *options]
        if sentinel_of is not None:
            config = folder / "sentinel.conf"
            config.write_text(
                f"port {self.port}\nbind 127.0.0.1\ndir {folder}\n"
                f"sentinel monitor main 127.0.0.1 {sentinel_of.port} 1\n"
                "sentinel down-after-milliseconds main 500\n"
                "sentinel failover-timeout main 3000\n"
            )
            self._command = [str(binary), str(config), "--sentinel"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(lambda: "PONG" in ask(self.port, "PING"), "a node answers")

    def kill(self) -> None:
        """Kill it -9, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def _running(*nodes: Node) -> Iterator[None]:
    try:
        for node in nodes:
            node.start()
        yield
    finally:
        for node in nodes:
            node.kill()


def _skip_without_redis() -> None:
    if debian_redis() is None or shutil.which("redis-cli") is None:
        pytest.skip("no redis-server and redis-cli on PATH: make setup-system installs them")


class ClusterNodes(NamedTuple):
    """A cluster."""

    url: str
    nodes: list[Node]


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[ClusterNodes]:
    """Run a cluster of three masters."""
    _skip_without_redis()
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    nodes = [Node(folder / str(number), *options) for number in range(3)]
    with _running(*nodes):
        hosts = [f"127.0.0.1:{node.port}" for node in nodes]
        subprocess.run(
            ["redis-cli", "--cluster", "create", *hosts, "--cluster-yes"],
            check=True,
            capture_output=True,
        )
        for node in nodes:
            wait_until(
                lambda node=node: "cluster_state:ok" in ask(node.port, "CLUSTER", "INFO"),
                "the cluster is one",
            )
        yield ClusterNodes(f"redis+cluster://{hosts[1]},{hosts[2]}", nodes)


class SentinelSet:
    """A master, its replica, and a Sentinel that decides which is which."""

    def __init__(self, folder: Path) -> None:
        self.master: Final = Node(folder / "master")
        self.replica: Final = Node(
            folder / "replica", "--replicaof", f"127.0.0.1 {self.master.port}"
        )
        self.sentinel: Final = Node(folder / "sentinel", sentinel_of=self.master)
        # A Sentinel that is away must not keep anybody from asking the next one.
        self.url: Final = (
            f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{self.sentinel.port}/main/0"
        )

    def knows_replica(self) -> bool:
        """Tell whether the replica is in step, and the Sentinel knows it."""
        in_step = "master_link_status:up" in ask(self.replica.port, "INFO", "replication")
        return in_step and str(self.replica.port) in ask(
            self.sentinel.port, "SENTINEL", "replicas", "main"
        )

    def replica_rules(self) -> bool:
        """Tell whether the Sentinel names the replica as the master, and it is one."""
        named = ask(self.sentinel.port, "SENTINEL", "get-master-addr-by-name", "main")
        is_master = "role:master" in ask(self.replica.port, "INFO", "replication")
        return is_master and str(self.replica.port) in named


@contextlib.contextmanager
def sentinels(folder: Path) -> Iterator[SentinelSet]:
    """Run such a set, ready for its failover."""
    _skip_without_redis()
    those = SentinelSet(folder)
    with _running(those.master, those.replica, those.sentinel):
        wait_until(those.knows_replica, "the Sentinel knows the replica")
        yield those
