"""Clients of the IETF's protocol that this project did not write, against real processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.fault_proxy import Fault, FaultProxy
from tests.system.parts import COLLECTION, MiB, System, download, lines_of

SIZE = 24 * MiB + 4321
TOLD = ("--header", "Upload-Draft-Interop-Version: 8")
PART = ("--header", "Content-Type: application/partial-upload")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to send."""
    path = tmp_path_factory.mktemp("ietf") / "source.bin"
    path.write_bytes(os.urandom(SIZE))
    return path


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def curl(*arguments: str) -> str:
    """Run curl; return what it prints."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is missing: make setup-system installs it")
    async with lines_of(program, "--silent", "--show-error", "--fail", *arguments) as lines:
        return (await lines.read()).decode()


async def test_curl_sends_all_at_once(shared_system: System, source: Path) -> None:
    """curl sends a file in one request, reads over the 104, and gets the file's address."""
    answer = await curl(
        *("--data-binary", f"@{source}", f"{shared_system.ingest.url}{COLLECTION}", *TOLD),
        *("--header", "Content-Type: application/octet-stream", "--include"),
        *("--header", "Upload-Complete: ?1", "--header", "Want-Repr-Digest: sha-256=1"),
        *("--header", 'Content-Disposition: inline; filename="source.bin"'),
    )
    assert answer.startswith("HTTP/1.1 104 Upload Resumption Supported\r\nLocation: http")
    assert "\r\nUpload-Complete: ?1\r\n" in answer
    told = json.loads(answer.splitlines()[-1])
    assert (told["filename"], told["size"]) == ("source.bin", SIZE)
    url = f"{shared_system.storage.url}{told['location']}"
    assert download(url) == (SIZE, sha256_of(source))


async def test_curl_conventionally(shared_system: System, source: Path) -> None:
    """curl sends a file without a word of resuming."""
    answer = await curl(
        *("--data-binary", f"@{source}", f"{shared_system.ingest.url}{COLLECTION}"),
        *("--write-out", "%{http_code} %header{location}", "--output", os.devnull),
    )
    status, location = answer.split()
    assert status == "201"
    assert download(f"{shared_system.storage.url}{location}") == (SIZE, sha256_of(source))


async def test_curl_resumes(shared_system: System, source: Path, tmp_path: Path) -> None:
    """curl loses its connection in the middle, asks how far it came, and sends the rest."""
    async with FaultProxy(shared_system.ingest.port, [Fault(SIZE // 2, "rst")]) as proxy:
        head = tmp_path / "head"
        with pytest.raises(AssertionError):  # curl tells of the cut by its exit code
            await curl(
                *("--data-binary", f"@{source}", *TOLD, "--dump-header", str(head)),
                *("--header", "Upload-Complete: ?1"),
                f"http://127.0.0.1:{proxy.port}{COLLECTION}",
            )
    (location,) = (
        line.partition(" ")[2] for line in head.read_text().splitlines() if "Location" in line
    )
    upload_id = location.rpartition("/")[2]
    url = f"{shared_system.ingest.url}{COLLECTION}/{upload_id}"
    offset = int(
        await curl(
            "--head",
            url,
            *TOLD,
            "--write-out",
            "%header{upload-offset}",
            "--output",
            os.devnull,
        )
    )
    assert 0 < offset < SIZE
    rest = tmp_path / "rest"
    with source.open("rb") as file:
        file.seek(offset)
        rest.write_bytes(file.read())
    answer = await curl(
        *("--request", "PATCH", "--data-binary", f"@{rest}", url, *TOLD, *PART, "--include"),
        *("--header", "Upload-Complete: ?1", "--header", f"Upload-Offset: {offset}"),
    )
    assert "\r\nUpload-Complete: ?1\r\n" in answer
    assert download(shared_system.file_url(upload_id)) == (SIZE, sha256_of(source))


@pytest.mark.parametrize("protocol", ["ietf-draft-03", "ietf-draft-05"])
@pytest.mark.parametrize("chunk_size", [None, 5 * MiB])
@pytest.mark.parametrize("with_creation", [True, False])
async def test_tus_js_client(
    shared_system: System,
    tus_js: list[str],
    source: Path,
    protocol: str,
    chunk_size: int | None,
    with_creation: bool,
) -> None:
    """tus-js-client in its IETF modes sends a file over a connection that is cut thrice."""
    options: dict[str, object] = {
        "protocol": protocol,
        "uploadDataDuringCreation": with_creation,
    }
    if chunk_size is not None:
        options["chunkSize"] = chunk_size
    # Not before it knows where to resume, which it reads from the final answer only.
    first = 6 * MiB if with_creation else MiB
    faults = [Fault(first, "fin"), Fault(7 * MiB, "rst"), Fault(3 * MiB, "lose-answer")]
    async with FaultProxy(shared_system.ingest.port, faults) as proxy:
        endpoint = f"http://127.0.0.1:{proxy.port}{COLLECTION}"
        command = (*tus_js, endpoint, str(source), json.dumps(options), "memory")
        async with lines_of(*command) as lines:
            told = [json.loads(line) async for line in lines]
    assert proxy.struck == faults
    assert told[-1] == {"done": SIZE}, told[-5:]
    upload_id = [line["url"] for line in told if "url" in line][-1].rpartition("/")[2]
    assert download(shared_system.file_url(upload_id)) == (SIZE, sha256_of(source))
