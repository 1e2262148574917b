"""The upload by form: 256 MiB in chunks of 8 MiB, beside the same bytes in one PATCH.

A form has to be searched for its boundary, and each of its chunks is an upload within the
upload, synced and hashed before it is answered: this shows what that costs. Informative.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NamedTuple

from bench import tables
from bench.machine import cpu_seconds, settle
from bench.payload import MIB, Payload, payload
from bench.processes import scratch
from bench.tus_servers import ingest
from bench.wire import Connection

__all__ = ["report"]

_SIZE: Final = 256 * MIB
_CHUNK: Final = 8 * MIB
_PATH: Final = "/v1/upload/file"
_BOUNDARY: Final = "----------------------------a1b2c3d4e5f6"


class _Run(NamedTuple):
    mb_per_s: float
    cpu_s: float


def report(repeat: int) -> str:
    """Measure all ways in turn, ``repeat`` times; return the Markdown section."""
    ways: dict[str, Callable[[Connection, Payload], None]] = {
        "one PATCH (tus)": _by_patch,
        "one form": partial(_by_form, chunk=0),
        f"forms of {_CHUNK // MIB} MiB": partial(_by_form, chunk=_CHUNK),
    }
    runs: dict[str, list[_Run]] = {name: [] for name in ways}
    with payload(_SIZE) as content:
        for _ in range(repeat):
            for name, send in ways.items():
                runs[name].append(_measure(send, content))
    raw = [one.mb_per_s for one in next(iter(runs.values()))]
    rows = [["way", "MB/s", "x PATCH", "CPU s"]]
    for name, own in runs.items():
        speed = [one.mb_per_s for one in own]
        cpu = tables.median([one.cpu_s for one in own], ".2f")
        rows.append([name, tables.spread(speed), tables.ratio(speed, raw), cpu])
    notes = [f"{content.size // MIB} MiB over one connection, one request after another."]
    return tables.markdown("The upload by form", notes, rows)


def _measure(send: Callable[[Connection, Payload], None], content: Payload) -> _Run:
    with scratch() as data:
        settle()
        limits = {"UPLOAD_MAX_CHUNK_SIZE": str(_SIZE)}
        with ingest(limits).start(data) as server:
            client = Connection(server.port)
            cpu = cpu_seconds(server.pid)
            begun = time.perf_counter()
            send(client, content)
            took = time.perf_counter() - begun
            cpu = cpu_seconds(server.pid) - cpu
            client.close()
    return _Run(content.size / 1e6 / took, cpu)


def _by_patch(client: Connection, content: Payload) -> None:
    path = client.create("/api/v1/uploads", content.size)
    client.append_file(path, content.fd, content.size)


def _by_form(client: Connection, content: Payload, *, chunk: int) -> None:
    """Send chunks of so many bytes; 0 sends the file whole."""
    chunk = chunk or content.size
    total = content.size // chunk
    for index in range(total):
        said = {"session_id": "bench", "chunk_index": str(index), "total_chunks": str(total)}
        expected = 202 if index + 1 < total else 201
        _send_form(client, content, said if total > 1 else {}, index * chunk, chunk, expected)


def _send_form(
    client: Connection,
    content: Payload,
    said: Mapping[str, str],
    start: int,
    size: int,
    expected: int,
) -> None:
    headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
    fields = "".join(
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in said.items()
    )
    file = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="f.bin"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    around = (f"{fields}{file}".encode(), f"\r\n--{_BOUNDARY}--\r\n".encode())
    answer = client.send_file("POST", _PATH, headers, content.fd, start, size, around=around)
    if answer.status != expected:
        raise SystemExit(f"a form was answered {answer.status}, not {expected}")
