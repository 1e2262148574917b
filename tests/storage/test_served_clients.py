"""Programs that people have: what they broke off they continue, and players seek."""

from __future__ import annotations

import http.client
import io
import json
import os
import random
import re
import shutil
import subprocess
import threading
import wave
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests.processes import ROOT, RedisServer
from tests.s3_servers import MotoServer
from tests.storage.served import Served, ask, served

SIZE: Final = 6_000_000
COMMANDS: Final = {
    "curl": ("-sS", "--fail", "-C", "-", "-o", "{file}", "{url}"),
    "wget": ("-q", "-c", "-O", "{file}", "{url}"),
    "aria2c": ("-q", "-c", "-x8", "-s8", "-k1M", "-d", "{folder}", "-o", "{name}", "{url}"),
}


@pytest.fixture(scope="module", params=["files", "s3"])
def both(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    redis_server: RedisServer,
) -> Iterator[Served]:
    """Storage on each kind of store."""
    s3: MotoServer | None = None
    if request.param == "s3":
        s3 = request.getfixturevalue("moto_server")
    with served(tmp_path_factory.mktemp(f"clients-{request.param}"), redis_server, s3) as one:
        yield one


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("have", [0, 1_234_567])
def test_a_download_is_continued(both: Served, tmp_path: Path, name: str, have: int) -> None:
    """What is there already is kept, and the rest comes by ranges that fit to it."""
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is missing: make setup-system installs it")
    content = random.Random(2).randbytes(SIZE)
    file = tmp_path / "file"
    if have:
        file.write_bytes(content[:have])
    known = {
        "file": file,
        "folder": tmp_path,
        "name": file.name,
        "url": f"{both.storage.url}{both.upload(content)}",
    }
    command = [program, *(one.format(**known) for one in COMMANDS[name])]

    done = subprocess.run(command, capture_output=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    assert file.read_bytes() == content


def sound(seconds: int) -> bytes:
    """Return noise as a WAV file: 8 kHz, one byte each."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 1, 8000, 0, "NONE", ""))
        writer.writeframes(random.Random(3).randbytes(8000 * seconds))
    return file.getvalue()


@pytest.fixture(scope="module")
def seek() -> Sequence[str]:
    """The command that plays and seeks: ORIGIN PATH SECONDS follow."""
    node, chromium = shutil.which("node"), shutil.which("chromium")
    if node is None or chromium is None:
        pytest.skip("node or chromium is missing: make setup-system installs them")
    clients = ROOT / "tests" / "clients"
    if not (clients / "node_modules" / "playwright-core").is_dir():
        pytest.skip("playwright-core is missing: make setup installs it")
    return [node, str(clients / "seek.mjs"), chromium]


def test_a_browser_seeks(both: Served, seek: Sequence[str]) -> None:
    """A player that jumps fetches what is there, not all that comes before it."""
    seconds, to = 3600, 3000
    path = both.upload(sound(seconds), "audio/wav")

    done = subprocess.run(
        [*seek, both.storage.url, path, str(to)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["at"] == pytest.approx(to, abs=1)
    assert told["duration"] == pytest.approx(seconds, abs=1)
    starts = [
        int(found[1]) for one in told["ranges"] if (found := re.match(r"bytes (\d+)", one))
    ]
    assert any(8000 * (to - 60) < start <= 8000 * to + 44 for start in starts), told


def test_downloads_that_race_with_a_delete(both: Served) -> None:
    """Each gets bytes of that file only: all of them, a clean 404, or a cut connection."""
    content = os.urandom(3_000_000)
    for turn in range(4):
        path = both.upload(content)
        begin = threading.Barrier(7)

        def download(place: int, path: str = path, begin: threading.Barrier = begin) -> str:
            link = http.client.HTTPConnection("127.0.0.1", both.storage.port, timeout=30)
            begin.wait()
            wanted = {} if place % 2 else {"Range": "bytes=100-199,2000000-2900000"}
            try:
                reply = ask(link, path, wanted)
            except (http.client.IncompleteRead, ConnectionError):
                return "cut"
            finally:
                link.close()
            if reply.status == 206:
                assert content[100:200] in reply.body
                assert content[2_000_000:2_900_001] in reply.body
            elif reply.status == 200:
                assert reply.body == content
            else:
                assert reply.status == 404
            return str(reply.status)

        def delete(path: str = path, begin: threading.Barrier = begin) -> None:
            link = http.client.HTTPConnection("127.0.0.1", both.storage.port, timeout=30)
            begin.wait()
            assert ask(link, path, {}, "DELETE").status == 204
            assert ask(link, path, {}).status == 404
            link.close()

        with ThreadPoolExecutor(7) as pool:
            ends = [pool.submit(download, turn + place) for place in range(6)]
            pool.submit(delete).result()
            assert {one.result() for one in ends} <= {"200", "206", "404", "cut"}
