"""S3 servers for tests and for trying things out: moto's, and OpenStack Swift with s3api.

Each runs as processes of its own on free ports of the loopback interface and is killed by pid.
By hand: ``python -m tests.s3_servers moto`` (or ``swift``) prints what to set, until Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import getpass
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import get_session

from shared.blobs.s3_calls import S3Options
from tests.processes import free_port, wait_until

__all__ = ["BUCKET", "MotoServer", "S3Server", "SwiftServer", "can_run_swift"]

BUCKET: Final = "uploads"
_LEAST_PART: Final = 256
"""So that tests of many parts are quick. Servers of the real world insist on 5 MiB."""


class Reachable(Protocol):
    """Where a server with one bucket can be reached."""

    @property
    def url(self) -> str:
        """Where it listens."""

    @property
    def access_key_id(self) -> str:
        """Who calls."""

    @property
    def secret_access_key(self) -> str:
        """Proves it."""


class S3Server(Reachable, Protocol):
    """A server with one bucket."""

    def start(self) -> None:
        """Start it, make the bucket, and return when that is there."""

    def kill(self) -> None:
        """Kill it -9, if it runs."""


class _Processes:
    access_key_id = "test:tester"
    secret_access_key = "testing"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port: Final = free_port()
        self._folder: Final = folder
        self._log: Final = folder / "server.log"
        self._running: Final[list[subprocess.Popen[bytes]]] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def _run(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        with self._log.open("ab") as out:
            process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self._running.append(process)

    def _await_bucket(self) -> None:
        client = client_of(self)
        with contextlib.closing(client):
            wait_until(lambda: self._has_bucket(client), f"{self.url} answers", self._tail)

    def _has_bucket(self, client: Any) -> bool:
        assert all(one.poll() is None for one in self._running), self._tail()
        try:
            client.create_bucket(Bucket=BUCKET)
        except ClientError as exc:
            return bool(exc.response["Error"]["Code"] == "BucketAlreadyOwnedByYou")
        except BotoCoreError:
            return False
        return True

    def _tail(self) -> str:
        return self._log.read_text()[-3000:]

    def kill(self) -> None:
        """Kill it -9, if it runs."""
        while self._running:
            process = self._running.pop()
            process.kill()
            process.wait()


@functools.cache
def _session() -> Any:
    return get_session()  # which reads all that it knows of S3 once


def client_of(server: _Processes | S3Server) -> Any:
    """Return a plain, blocking client that does not try again."""
    return _session().create_client(
        "s3",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
            connect_timeout=2,
            read_timeout=10,
        ),
    )


def options_of(server: Reachable, **more: Any) -> S3Options:
    """Return how the store reaches the server's bucket."""
    given = {
        "bucket": BUCKET,
        "endpoint_url": server.url,
        "access_key_id": server.access_key_id,
        "secret_access_key": server.secret_access_key,
        **more,
    }
    return S3Options(**given)


class MotoServer(_Processes):
    """moto's server. It checks no signatures, and keeps everything in memory."""

    def __init__(self, folder: Path, *, least_part: int = _LEAST_PART) -> None:
        super().__init__(folder)
        self._least_part: Final = least_part

    def start(self) -> None:
        """Start it, make the bucket, and return when that is there."""
        code = "import sys; from moto.server import main; main(sys.argv[1:])"
        self._run(
            [sys.executable, "-c", code, "-H", "127.0.0.1", "-p", str(self.port)],
            {"S3_UPLOAD_PART_MIN_SIZE": str(self._least_part)},
        )
        self._await_bucket()


def can_run_swift(folder: Path) -> str:
    """Return why Swift cannot keep its objects in a folder; empty if it can."""
    try:
        import swift  # type: ignore[import-untyped]  # noqa: F401, PLC0415
    except ImportError:
        return "the package swift is not installed"
    probe = folder / "probe"
    probe.write_bytes(b"")
    try:
        os.setxattr(probe, "user.swift.metadata", b"x" * 1000)
    except OSError as exc:
        return f"no extended attributes in {folder} ({errno.errorcode.get(exc.errno or 0)})"
    return ""


class SwiftServer(_Processes):
    """Swift with s3api: another implementation, with real signatures and a real disk.

    One account, container, object and proxy server each, rings of one device, no memcached.
    """

    def start(self) -> None:
        """Start it, make the bucket, and return when that is there."""
        (self._folder / "devices" / "disk").mkdir(parents=True, exist_ok=True)
        (self._folder / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_suffix = tests\nswift_hash_path_prefix = tests\n"
        )
        ports = {kind: free_port() for kind in ("account", "container", "object")}
        self._make_rings(ports)
        for kind, port in ports.items():
            self._serve(
                kind,
                port,
                f"[pipeline:main]\npipeline = {kind}-server\n"
                f"[app:{kind}-server]\nuse = egg:swift#{kind}\n",
            )
        self._serve("proxy", self.port, _PROXY.format(least_part=1))
        self._await_bucket()

    def _make_rings(self, ports: Mapping[str, int]) -> None:
        commands = [
            ["ring", str(self._folder / f"{kind}.builder"), *arguments]
            for kind, port in ports.items()
            for arguments in (
                ("create", "4", "1", "0"),
                ("add", f"r1z1-127.0.0.1:{port}/disk", "1"),
                ("rebalance",),
            )
        ]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _RINGS, json.dumps(commands)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _serve(self, kind: str, port: int, app: str) -> None:
        config = self._folder / f"{kind}.conf"
        config.write_text(
            "[DEFAULT]\n"
            f"bind_ip = 127.0.0.1\nbind_port = {port}\nworkers = 0\n"
            f"user = {getpass.getuser()}\nswift_dir = {self._folder}\n"
            f"devices = {self._folder / 'devices'}\nmount_check = false\n"
            f"recon_cache_path = {self._folder}\nlog_level = ERROR\n" + app
        )
        code = f"import sys; from swift.{kind}.server import main; sys.exit(main())"
        if kind == "object":
            code = code.replace("swift.object", "swift.obj")
        self._run([sys.executable, "-W", "ignore", "-c", code, str(config)])


_RINGS: Final = """
import json, sys
from swift.cli.ringbuilder import main

for arguments in json.loads(sys.argv[1]):
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    if code:
        sys.exit(code)
"""
"""One process for all of them: to load Swift takes longer than to make a ring."""

_PROXY: Final = """
[pipeline:main]
pipeline = catch_errors gatekeeper listing_formats s3api tempauth bulk copy slo proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:gatekeeper]
use = egg:swift#gatekeeper

[filter:listing_formats]
use = egg:swift#listing_formats

[filter:s3api]
use = egg:swift#s3api
location = us-east-1
min_segment_size = {least_part}
max_upload_part_num = 10000

[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin .reseller_admin

[filter:bulk]
use = egg:swift#bulk

[filter:copy]
use = egg:swift#copy

[filter:slo]
use = egg:swift#slo
max_manifest_segments = 10000
rate_limit_after_segment = 10000
"""


@contextlib.contextmanager
def _running(kind: str) -> Iterator[S3Server]:
    with tempfile.TemporaryDirectory(prefix="s3-") as name:
        server = (MotoServer if kind == "moto" else SwiftServer)(Path(name))
        try:
            server.start()
            yield server
        finally:
            server.kill()


def main() -> None:
    """Run one server until it is interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=["moto", "swift"])
    with _running(parser.parse_args().kind) as server, contextlib.suppress(KeyboardInterrupt):
        sys.stdout.write(
            f"BLOB_STORE=s3://{BUCKET}\nS3_ENDPOINT_URL={server.url}\n"
            f"S3_ACCESS_KEY_ID={server.access_key_id}\n"
            f"S3_SECRET_ACCESS_KEY={server.secret_access_key}\n"
        )
        sys.stdout.flush()
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
