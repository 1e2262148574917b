"""How a store on S3 is opened, and what it says when it cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from services.ingest.settings import Settings
from shared.blobs.opening import make_store
from shared.blobs.s3 import S3Store
from shared.errors import StartupError
from shared.settings import CommonSettings, load
from tests.processes import ROOT, free_port
from tests.s3_servers import BUCKET, MotoServer, S3Server, SwiftServer, options_of
from tests.shared.blobs.conformance import opened
from tests.shared.blobs.memory_leases import MemoryLeases, Registry
from tests.shared.samples import new_sidecar

MIB: Final = 1024 * 1024


def environment(server: S3Server, **more: str) -> dict[str, str]:
    """Return the variables that lead to a server's bucket."""
    return {
        "BLOB_STORE": f"s3://{BUCKET}/some/where/",
        "S3_ENDPOINT_URL": server.url,
        "S3_ACCESS_KEY_ID": server.access_key_id,
        "S3_SECRET_ACCESS_KEY": server.secret_access_key,
        "S3_PATIENCE": "0.2",
        **more,
    }


def store_of(env: dict[str, str]) -> Any:
    """Return the store that an environment names."""
    return make_store(load(CommonSettings, env), leases=MemoryLeases(Registry()))


async def test_a_store_is_made_from_settings(moto_server: MotoServer) -> None:
    """All settings arrive where they count, and keys lie below the prefix."""
    env = environment(moto_server, S3_PART_SIZE=str(6 * MIB), S3_PARALLEL_PARTS="3")
    store = store_of({**env, "S3_CHECKSUMS": "when_required"})
    assert isinstance(store, S3Store)
    assert (store.part_size, store.parallel_parts) == (6 * MIB, 3)
    assert store.client.options.checksums == "when_required"
    async with opened(store):
        sidecar = new_sidecar()
        await store.create(sidecar)
        listed = await store.client.list_all(f"some/where/{sidecar.upload_id}")
        assert [one.key for one in listed] == [f"some/where/{sidecar.upload_id}.info"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"BLOB_STORE": "s3://nobody-has-this-bucket"}, "no such bucket"),
        ({"S3_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}, "cannot be used"),
    ],
    ids=["bucket", "endpoint"],
)
async def test_a_store_that_is_not_there_is_explained(
    moto_server: MotoServer, change: dict[str, str], words: str
) -> None:
    """One line that names the place and what is wrong with it."""
    store = store_of({**environment(moto_server), **change})
    with pytest.raises(StartupError, match=words) as caught:
        await store.open()
    assert "\n" not in str(caught.value)
    await store.close()


@pytest.mark.parametrize(
    "change",
    [{"S3_SECRET_ACCESS_KEY": "wrong"}, {"S3_ACCESS_KEY_ID": "test:nobody"}],
    ids=["secret", "id"],
)
async def test_wrong_keys_are_explained(
    swift_server: SwiftServer, change: dict[str, str]
) -> None:
    """The message names the settings, and does not show the secret."""
    store = store_of({**environment(swift_server), **change})
    with pytest.raises(StartupError, match="S3_ACCESS_KEY_ID") as caught:
        await store.open()
    assert "wrong" not in str(caught.value)
    await store.close()


def test_a_store_without_leases_is_refused(moto_server: MotoServer) -> None:
    """S3 has no locks; two writers would mix their bytes."""
    with pytest.raises(StartupError, match="leases"):
        make_store(load(CommonSettings, environment(moto_server)))


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix", "s3://bucket/a?x=1", "s3://bucket#x"])
def test_a_place_that_is_none_is_refused(url: str) -> None:
    """Whatever is not a bucket with a prefix is not guessed at."""
    with pytest.raises(StartupError, match="s3://bucket/prefix"):
        store_of({"BLOB_STORE": url})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("S3_PART_SIZE", str(5 * MIB - 1)),
        ("S3_PARALLEL_PARTS", "0"),
        ("S3_CHECKSUMS", "never"),
        ("S3_ENDPOINT_URL", "ftp://example.org"),
        ("S3_PATIENCE", "0"),
    ],
)
def test_settings_that_cannot_work_are_refused(name: str, text: str) -> None:
    """Before anything is opened, with the name of the setting."""
    with pytest.raises(StartupError, match=name):
        load(CommonSettings, {name: text})


def test_other_stores_do_not_load_botocore() -> None:
    """It takes longer than all the rest of a start."""
    code = (
        "import sys; from shared.blobs import opening; import services.storage.app; "
        "sys.exit('botocore' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_the_lifecycle_document_outlasts_sessions() -> None:
    """A rule shorter than a session would take acknowledged bytes away."""
    document = json.loads(Path(ROOT, "deploy", "s3-lifecycle.json").read_text())
    days = [
        rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"]
        for rule in document["Rules"]
        if "AbortIncompleteMultipartUpload" in rule
    ]
    assert days
    assert min(days) * 24 > Settings().upload_session_timeout_hours


async def test_a_server_without_conditions_is_noticed(
    swift_server: SwiftServer, moto_server: MotoServer
) -> None:
    """Where the server cannot decide who was first, leases must."""
    for server, expected in ((swift_server, False), (moto_server, True)):
        store = S3Store(
            options_of(server),
            prefix="conditions/",
            leases=MemoryLeases(Registry()),
            part_size=MIB,
        )
        async with opened(store):
            assert store.client.conditional is expected
            assert await store.client.list_all("conditions/") == []
