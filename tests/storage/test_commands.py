"""``reindex`` and ``verify``, on a file system and on S3, with damage done to the store."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from services.storage.record import Owner, list_key, record_of_sidecar
from services.storage.records import Records
from services.storage.reindexing import reindex
from services.storage.settings import Settings
from services.storage.single_use import SingleUse
from services.storage.verifying import Pace, verify
from shared.blobs.filesystem import FilesystemStore
from shared.blobs.opening import make_store
from shared.blobs.store import BlobStore, UploadNotFound
from shared.errors import StartupError
from shared.sidecar import new_id
from shared.streams import command
from tests.processes import ROOT, RedisServer
from tests.shared.blobs.memory_leases import MemoryLeases, Registry
from tests.storage.stored_files import put_file, tombstone_of

if TYPE_CHECKING:
    from tests.s3_servers import MotoServer

LOCAL: Final = Owner("local", "local")


class Damageable:
    """A store, and a way to its bytes behind its back.

    Args:
        settings: For the commands.
        store: Where files are.
        server: Where its objects are, if they are no files.

    """

    def __init__(self, settings: Settings, store: BlobStore, server: MotoServer | None) -> None:
        self.settings: Final = settings
        self.store: Final = store
        self._server: Final = server

    async def put(self, content: bytes, *, hashed: bool = True, **more: Any) -> str:
        """Keep a file; return its id."""
        file_id = await put_file(self.store, content, **more)
        if hashed:
            writer = await self.store.acquire(file_id)
            digests = {"sha256": hashlib.sha256(content).hexdigest()}
            await writer.record(replace(writer.sidecar, digests=digests))
            await writer.close()
        return file_id

    def overwrite(self, name: str, content: bytes | None) -> None:
        """Replace what is stored under an id and a suffix; ``None``: remove it."""
        if isinstance(self.store, FilesystemStore):
            path = self.store.root / name[:2] / name
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            return
        from tests.s3_servers import BUCKET, client_of  # noqa: PLC0415

        assert self._server is not None
        client = client_of(self._server)
        key = f"{self.settings.blob_store.partition(BUCKET)[2].strip('/')}/{name}"
        if content is None:
            client.delete_object(Bucket=BUCKET, Key=key)
        else:
            client.put_object(Bucket=BUCKET, Key=key, Body=content)
        client.close()


@pytest.fixture(params=["files", "s3"])
async def kept(
    request: pytest.FixtureRequest, data_dir: Path, redis_server: RedisServer, redis: Redis
) -> AsyncIterator[Damageable]:
    """An empty store of each kind."""
    settings = Settings(redis_url=redis_server.url, data_dir=data_dir, verify_rate=0)
    server: MotoServer | None = None
    if request.param == "s3":
        server = request.getfixturevalue("moto_server")
        assert server is not None
        settings = replace(
            settings,
            blob_store=f"s3://uploads/{new_id()}",
            s3_endpoint_url=server.url,
            s3_patience=0.5,
            s3_access_key_id=server.access_key_id,
            s3_secret_access_key=server.secret_access_key,
        )
    store = make_store(settings, leases=MemoryLeases(Registry()))
    await store.open()
    yield Damageable(settings, store, server)
    await store.close()


async def listed(redis: Redis) -> set[str]:
    """Return the ids in each list of the local user, which must agree."""
    found = []
    for sort in ("created_at", "name", "size"):
        members = await command(redis, "ZRANGE", list_key(LOCAL, sort), 0, -1)
        found.append({one[-36:].decode() for one in members})
    assert found[0] == found[1] == found[2]
    return found[0]


# reindex.


async def test_reindex(
    kept: Damageable, redis: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every file and no other is recorded afterwards, whatever was there before."""
    records = Records(redis)
    file_ids = [await kept.put(b"x" * n) for n in range(3)]
    await kept.put(b"part", concat="partial")
    await kept.put(b"half", complete=False, hashed=False)
    gone = await kept.put(b"gone")
    await records.register([record_of_sidecar(await kept.store.load(gone))])
    kept.overwrite(f"{gone}.info", tombstone_of(await kept.store.load(gone)))
    await redis.zadd(list_key(LOCAL, "name"), {f"stray\0{new_id()}": 0})
    await SingleUse(redis).claim(secrets.token_bytes(16), expires_at=int(time.time()) + 60)

    assert await reindex(kept.settings, ["--dry-run"]) == 0
    assert capsys.readouterr().out == "3 files: 3 to record, 1 to drop\n"
    assert await records.find(gone) is not None
    assert not await records.is_complete()

    assert await reindex(kept.settings, []) == 0
    assert capsys.readouterr().out == "3 files: 3 recorded, 1 dropped\n"
    assert await listed(redis) == set(file_ids)
    assert await records.is_complete()
    found = await records.find(file_ids[2])
    assert found == record_of_sidecar(await kept.store.load(file_ids[2]))

    assert await reindex(kept.settings, []) == 0
    assert capsys.readouterr().out == "3 files: 0 recorded, 0 dropped\n"


async def test_reindex_of_a_wrong_store(
    kept: Damageable, redis: Redis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records that were dropped by a mistake come back with the right store."""
    file_id = await kept.put(b"there")
    assert await reindex(kept.settings, []) == 0
    wrong = replace(kept.settings, blob_store=f"file://{tmp_path}/wrong")

    assert await reindex(wrong, []) == 0
    assert await listed(redis) == set()

    assert await reindex(kept.settings, []) == 0
    assert await listed(redis) == {file_id}
    assert capsys.readouterr().out.splitlines()[1] == "0 files: 0 recorded, 1 dropped"


async def test_reindex_beside_what_cannot_be_read(
    data_dir: Path, redis_server: RedisServer, redis: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    """One record that the disk does not give keeps no other from being looked at."""
    settings = Settings(redis_url=redis_server.url, data_dir=data_dir)
    store, records = FilesystemStore(data_dir / "blobs"), Records(redis)
    file_ids = [await put_file(store, b"bytes") for _ in range(3)]
    await records.register([record_of_sidecar(await store.load(one)) for one in file_ids])
    unreadable, gone, whole = file_ids
    for one in (unreadable, gone):
        store.path(one, ".info").unlink()
    os.mkfifo(store.path(unreadable, ".info"))

    async with asyncio.timeout(30):
        assert await reindex(settings, []) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 files: 0 recorded, 1 dropped"
    assert await listed(redis) == {unreadable, whole}
    await store.close()


async def test_reindex_without_redis(data_dir: Path) -> None:
    """Without Redis it does not begin, and says so in one line."""
    settings = Settings(redis_url="redis://127.0.0.1:1/0", data_dir=data_dir)

    with pytest.raises(StartupError, match="no Redis answers"):
        await reindex(settings, [])


# verify.


async def findings(
    kept: Damageable, capsys: pytest.CaptureFixture[str], *flags: str
) -> dict[str, str]:
    """Return what is wrong with which file, and check the exit code."""
    capsys.readouterr()
    code = await verify(kept.settings, flags)
    damage = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert code == (1 if damage else 0)
    return {one["file_id"]: one["what"] for one in damage}


async def test_verify(kept: Damageable, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind of damage is found, and nothing that is whole is called damaged."""
    content = os.urandom(3_000_000)
    whole = await kept.put(content)
    await kept.put(b"")
    await kept.put(b"part", concat="partial", hashed=False)
    await kept.put(b"half", complete=False, hashed=False)
    deleted = await kept.put(b"deleted")
    kept.overwrite(f"{deleted}.info", tombstone_of(await kept.store.load(deleted)))
    kept.overwrite(deleted, None)
    assert await findings(kept, capsys) == {}

    rotten, short, lost, damaged, unhashed = [
        await kept.put(content, hashed=n < 4) for n in range(5)
    ]
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    kept.overwrite(rotten, flipped)
    kept.overwrite(short, content[:-1])
    kept.overwrite(lost, None)
    kept.overwrite(f"{damaged}.info", b'{"upload_id"')
    kept.overwrite(unhashed, flipped)  # nobody can tell

    expected = {rotten: "sha256", short: "size", lost: "missing", damaged: "record"}
    assert await findings(kept, capsys) == expected
    kept.overwrite(unhashed, content[1:])
    assert await findings(kept, capsys) == {**expected, unhashed: "size"}
    assert (await kept.store.read(whole)).offset == len(content)


async def test_verify_goes_on(kept: Damageable, capsys: pytest.CaptureFixture[str]) -> None:
    """With --resume what was read before a run was cut is not read again; else all is."""
    file_ids = sorted([await kept.put(b"x", hashed=False) for _ in range(12)])
    for one in file_ids:
        kept.overwrite(one, b"xx")
    middle = file_ids[6][:2]
    await kept.store.write_note("verify", middle)

    rest = {one for one in file_ids if one[:2] >= middle}
    assert (await findings(kept, capsys, "--resume")).keys() == rest
    assert (await findings(kept, capsys, "--resume")).keys() == set(file_ids)
    await kept.store.write_note("verify", middle)
    assert (await findings(kept, capsys)).keys() == set(file_ids)


async def test_files_that_go_while_they_are_read(
    kept: Damageable, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delete in the middle is no damage: who reports that is not believed the next time."""
    file_id = await kept.put(os.urandom(2_500_000))
    tombstone = tombstone_of(await kept.store.load(file_id))

    async def delete(_: Pace, size: int) -> None:
        assert size
        kept.overwrite(f"{file_id}.info", tombstone)
        with suppress(OSError, UploadNotFound):
            kept.overwrite(file_id, None)

    monkeypatch.setattr(Pace, "keep", delete)
    assert await findings(kept, capsys) == {}


async def test_pace() -> None:
    """Reading stays below the rate however small the pieces are, and 0 holds nothing up."""
    pace, started = Pace(1_000_000), time.monotonic()
    for _ in range(40):
        await pace.keep(10_000)
    assert 0.35 < time.monotonic() - started < 5
    free, started = Pace(0), time.monotonic()
    for _ in range(1000):
        await free.keep(10**9)
    assert time.monotonic() - started < 5


async def test_verify_as_a_program(data_dir: Path, redis_server: RedisServer) -> None:
    """Exit code and output are what a CronJob needs: 0, 1 with JSON lines, 2 in one line."""
    env = {**os.environ, "DATA_DIR": str(data_dir), "REDIS_URL": redis_server.url}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "services.storage", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )

    store = FilesystemStore(data_dir / "blobs")
    await store.open()
    file_id = await put_file(store, b"content")
    done = run("verify")
    assert (done.returncode, done.stdout) == (0, "")
    assert "1 files (1 without a digest)" in done.stderr
    store.path(file_id).write_bytes(b"other content")
    done = run("verify")
    assert done.returncode == 1
    assert json.loads(done.stdout) == {
        "file_id": file_id,
        "what": "size",
        "expected": 7,
        "found": 13,
    }
    done = run("verify", "--fast")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown arguments")
    assert done.stderr.count("\n") == 1
    assert "1 files: 1 to record, 0 to drop\n" in run("reindex", "--dry-run").stdout
    await store.close()
