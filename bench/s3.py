"""One upload through ingest to S3, beside a plain multipart upload of the same file.

Both do the same for S3: parts of the same size, four at once, signed and with the same
checksums (CRC32, the default of both), over connections that are open already; the multipart
upload is created and completed within the time that is measured. Ingest creates and finishes
a tus upload besides, with its record and its events. It has sent one byte before, as the plain
upload has sent a request: an empty Redis grants the first lease only when those that it may
have forgotten would have run out, which takes five seconds once and says nothing of speed.

Both send to moto's server, a new process on the load's core for each run, and both have the
other core. Moto keeps what it gets in memory and is slow itself, so the ratio says less of the
code than of whether it keeps the server busy: parts have to be sent while others are received.
The client gives ingest the bytes from memory, on moto's core; the plain upload reads them from
there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, NamedTuple

import botocore.session

from bench import tables
from bench.bounds.s3_multipart import CHECKSUMS, PARALLEL, PART_SIZE
from bench.machine import LOAD_CORE, SERVER_CORE, cpu_seconds, peak_bytes, settle, starting_on
from bench.payload import MIB, Payload, payload
from bench.processes import ROOT, free_port, scratch, started
from bench.tus_servers import ingest
from bench.wire import Connection

__all__ = ["BUCKET", "credentials", "report", "s3_server", "store_settings"]

_SIZE: Final = 256 * MIB
BUCKET: Final = "bench"
_KEYS: Final = {"access_key_id": "bench", "secret_access_key": "bench-secret"}
_REGION: Final = "us-east-1"


class _Run(NamedTuple):
    mb_per_s: float
    cpu_s: float
    peak_mib: float


def report(repeat: int) -> str:
    """Measure both in turn, ``repeat`` times; return the Markdown section."""
    ways: dict[str, Callable[[str, Payload], _Run]] = {
        "bound: aiobotocore, 4 parts at a time": _bound,
        "ingest, `BLOB_STORE=s3://…`": _ingest,
    }
    runs: dict[str, list[_Run]] = {name: [] for name in ways}
    with payload(_SIZE) as content:
        for _ in range(repeat):
            for name, measure in ways.items():
                settle()
                with s3_server() as url:
                    runs[name].append(measure(url, content))
    bound = [one.mb_per_s for one in next(iter(runs.values()))]
    rows = [["subject", "MB/s", "x bound", "CPU s", "peak MiB"]]
    for name, own in runs.items():
        speed = [one.mb_per_s for one in own]
        cpu = tables.median([one.cpu_s for one in own], ".2f")
        peak = tables.median([one.peak_mib for one in own], ".0f")
        rows.append([name, tables.spread(speed), tables.ratio(speed, bound), cpu, peak])
    notes = [
        f"{content.size // MIB} MiB to moto's server, creation and completion included; median "
        "(least-greatest). Target: x bound >= 0.80."
    ]
    return tables.markdown("One stream to S3", notes, rows)


@contextmanager
def s3_server() -> Iterator[str]:
    """Yield the URL of a new server with an empty bucket."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    env = {
        "MOTO_S3_CUSTOM_ENDPOINTS": url,
        "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(2 * _SIZE),  # else objects go to a disk
    }
    with started(argv, port, env=env, core=LOAD_CORE, output=subprocess.DEVNULL):
        client = botocore.session.get_session().create_client(
            "s3",
            endpoint_url=url,
            region_name=_REGION,
            aws_access_key_id=_KEYS["access_key_id"],
            aws_secret_access_key=_KEYS["secret_access_key"],
        )
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield url


def credentials(prefix: str) -> Mapping[str, str]:
    """Return credentials and region as variables, those of ingest or of botocore."""
    named = {f"{prefix}_{name}".upper(): value for name, value in _KEYS.items()}
    return {**named, ("S3_REGION" if prefix == "s3" else "AWS_DEFAULT_REGION"): _REGION}


def store_settings(url: str) -> Mapping[str, str]:
    """Return what a service is told of the server."""
    return {
        "BLOB_STORE": f"s3://{BUCKET}/uploads",
        "S3_ENDPOINT_URL": url,
        "S3_PART_SIZE": str(PART_SIZE),
        "S3_PARALLEL_PARTS": str(PARALLEL),
        "S3_CHECKSUMS": CHECKSUMS,
        **credentials("s3"),
    }


def _bound(url: str, content: Payload) -> _Run:
    argv = [sys.executable, "-m", "bench.bounds.s3_multipart", url, BUCKET, str(content.path)]
    with starting_on(SERVER_CORE):
        process = subprocess.Popen(
            argv,
            cwd=ROOT,
            env={**os.environ, **credentials("aws")},
            stdout=subprocess.PIPE,
            text=True,
        )
    told, _ = process.communicate()
    if process.returncode:
        raise SystemExit("the plain multipart upload failed")
    took, cpu = map(float, told.split())
    return _Run(content.size / 1e6 / took, cpu, float("nan"))


def _ingest(url: str, content: Payload) -> _Run:
    with scratch() as data, ingest(store_settings(url)).start(data) as server:
        client = Connection(server.port)
        client.append(client.create("/api/v1/uploads", 1), b"x")  # waits for the first lease
        cpu = cpu_seconds(server.pid)
        begun = time.perf_counter()
        path = client.create("/api/v1/uploads", content.size)
        client.append_file(path, content.fd, content.size)
        took = time.perf_counter() - begun
        cpu = cpu_seconds(server.pid) - cpu
        peak = peak_bytes(server.pid)
        client.close()
    return _Run(content.size / 1e6 / took, cpu, peak / MIB)
