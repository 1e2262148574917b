"""The blob store on a file system: its promises, and crashes, full disks and strange files."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from shared.blobs.filesystem import FilesystemStore
from shared.blobs.store import BlobStore, Due, UploadBusy, UploadNotFound
from shared.errors import StartupError
from shared.sidecar import Sidecar, SidecarDamaged, decode, encode, new_id
from tests.processes import wait_until
from tests.shared.blobs.child import Child, Reply, pattern
from tests.shared.blobs.conformance import (
    NO_IDS,
    BlobStoreConformance,
    OpenStore,
    ended,
    finished,
    writing,
)
from tests.shared.samples import new_sidecar

Open = Callable[..., FilesystemStore]


def close(store: FilesystemStore) -> None:
    """Close a store outside any loop."""
    asyncio.run(store.close())


@pytest.fixture
def open_on() -> Iterator[Open]:
    """Open stores that are closed after the test."""
    with ExitStack() as stack:

        def open_one(root: Path) -> FilesystemStore:
            store = FilesystemStore(root)
            stack.callback(close, store)
            return store

        yield open_one


@pytest.fixture
def store(open_on: Open, data_dir: Path) -> FilesystemStore:
    """A store in a fresh folder."""
    return open_on(data_dir)


@pytest.fixture
def child(store: FilesystemStore) -> Iterator[Child]:
    """Another process on the same store."""
    one = Child(store.root)
    yield one
    one.kill()


def files_below(root: Path) -> dict[str, int]:
    """Return the sizes of all files of a store by name."""
    return {path.name: path.stat().st_size for path in root.rglob("*") if path.is_file()}


async def new_upload(store: FilesystemStore, content: bytes = b"") -> Sidecar:
    """Create an upload that has some bytes."""
    sidecar = new_sidecar()
    await store.create(sidecar)
    async with writing(store, sidecar.upload_id) as writer:
        await writer.write([content])
        await writer.sync()
    return sidecar


class TestFilesystem(BlobStoreConformance):
    """The promises of every store."""

    @pytest.fixture
    def open_store(self, open_on: Open, data_dir: Path) -> OpenStore:
        """Open the same folder again."""

        def open_store() -> BlobStore:
            return open_on(data_dir)

        return open_store


# Other processes.


async def test_another_process_excludes_this_one(store: FilesystemStore, child: Child) -> None:
    """The right is exclusive across processes, and a question crosses over to them."""
    sidecar = await new_upload(store)
    assert child.do(f"acquire {sidecar.upload_id}") == Reply("ok", 0)
    with pytest.raises(UploadBusy):
        await store.acquire(sidecar.upload_id)
    assert child.do(f"ask {sidecar.upload_id}").how == "ok"
    assert await store.release_asked() == {sidecar.upload_id}
    child.do("close")
    async with writing(store, sidecar.upload_id):
        assert child.do(f"acquire {sidecar.upload_id}").how == "UploadBusy"


@pytest.mark.parametrize("stop_first", [False, True])
async def test_a_killed_process_frees_its_right(
    store: FilesystemStore, child: Child, stop_first: bool
) -> None:
    """Whatever kills the holder, the next one goes on where it was, even if it hung before."""
    sidecar = await new_upload(store, pattern(10))
    child.do(f"acquire {sidecar.upload_id}")
    assert child.do("write 90") == Reply("ok", 100)
    if stop_first:
        child.process.send_signal(signal.SIGSTOP)
    with pytest.raises(UploadBusy):
        await store.acquire(sidecar.upload_id)
    child.kill()
    async with writing(store, sidecar.upload_id) as writer:
        assert writer.offset == 100
    assert store.path(sidecar.upload_id, ".part").read_bytes() == pattern(100)


async def test_a_rename_keeps_the_right(store: FilesystemStore, child: Child) -> None:
    """The bytes get their final name while nobody else can write to them."""
    sidecar = await new_upload(store, b"all")
    child.do(f"acquire {sidecar.upload_id}")
    assert child.do("finish").how == "ok"
    assert (await store.read(sidecar.upload_id)).visible
    with pytest.raises(UploadBusy):
        await store.acquire(sidecar.upload_id)
    child.do("close")
    async with writing(store, sidecar.upload_id) as writer:
        assert writer.visible


async def test_an_upload_buried_by_another_process_is_not_found(
    store: FilesystemStore, child: Child
) -> None:
    """Whoever opened the file before it was removed does not get it."""
    sidecar = await new_upload(store, b"x")
    child.do(f"acquire {sidecar.upload_id}")

    async def acquire() -> object:
        while True:
            try:
                return await store.acquire(sidecar.upload_id)
            except UploadBusy:
                await asyncio.sleep(0)

    tasks = [asyncio.create_task(acquire()) for _ in range(8)]
    await asyncio.sleep(0.02)
    assert child.do("bury").how == "ok"
    child.do("close")
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in results] == [UploadNotFound] * 8


async def test_a_writer_that_was_fenced_off_cannot_spoil_the_next_file(
    store: FilesystemStore,
) -> None:
    """After the right was given up, a late write fails instead of landing somewhere."""
    sidecar = await new_upload(store, b"x")
    writer = await store.acquire(sidecar.upload_id)
    await writer.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        await writer.write([b"late"])
    assert store.path(sidecar.upload_id, ".part").read_bytes() == b"x"


# Crashes in the middle of a finish.


def crash_before_the_rename(store: FilesystemStore, done: Sidecar) -> None:
    """The bytes were synced; nothing else was done."""


def crash_after_the_rename(store: FilesystemStore, done: Sidecar) -> None:
    """The bytes have their final name; the record does not say so."""
    store.path(done.upload_id, ".part").rename(store.path(done.upload_id))


def crash_after_the_marker(store: FilesystemStore, done: Sidecar) -> None:
    """The event is marked as due before it exists."""
    crash_after_the_rename(store, done)
    (store.root / "due" / f"{done.upload_id}.2").touch()


def crash_in_the_record(store: FilesystemStore, done: Sidecar) -> None:
    """Half of the new record was written, beside the old one."""
    crash_after_the_marker(store, done)
    content = encode(done)
    store.path(done.upload_id, ".info.new").write_bytes(content[: len(content) // 2])


def crash_before_the_record_is_renamed(store: FilesystemStore, done: Sidecar) -> None:
    """The new record is whole, but does not have its name."""
    crash_after_the_marker(store, done)
    store.path(done.upload_id, ".info.new").write_bytes(encode(done))


def crash_after_all(store: FilesystemStore, done: Sidecar) -> None:
    """Everything was done, but nobody was told."""
    crash_before_the_record_is_renamed(store, done)
    store.path(done.upload_id, ".info.new").rename(store.path(done.upload_id, ".info"))


@pytest.mark.parametrize(
    "crash",
    [
        crash_before_the_rename,
        crash_after_the_rename,
        crash_after_the_marker,
        crash_in_the_record,
        crash_before_the_record_is_renamed,
        crash_after_all,
    ],
)
async def test_a_finish_is_repeated_after_a_crash(
    store: FilesystemStore, open_on: Open, crash: Callable[[FilesystemStore, Sidecar], None]
) -> None:
    """At each step the upload can be read, and finishing it again completes it."""
    sidecar = await new_upload(store, pattern(5000))
    one = sidecar.upload_id
    done = finished(sidecar)
    crash(store, done)
    after = open_on(store.root)
    stored = await after.read(one)
    assert stored.offset == 5000
    assert stored.sidecar == (done if crash is crash_after_all else sidecar)
    async with writing(after, one) as writer:
        assert writer.offset == 5000
        due = await writer.finish(done)
    assert due == [Due(one, 1), Due(one, 2)]
    assert files_below(after.root).keys() == {one, f"{one}.info", f"{one}.1", f"{one}.2"}
    fd = await after.open_blob(one)
    with os.fdopen(fd, "rb") as file:
        assert file.read() == pattern(5000)
    assert (await after.read(one)).sidecar == done


async def test_a_reader_during_the_rename_is_never_told_that_there_is_nothing(
    store: FilesystemStore,
) -> None:
    """Between two names an upload has one of them."""
    sidecar = await new_upload(store, b"all")
    part, final = (store.path(sidecar.upload_id, suffix) for suffix in (".part", ""))
    stop = threading.Event()

    def rename_to_and_fro() -> None:
        while not stop.is_set():
            part.rename(final)
            time.sleep(0.0002)
            final.rename(part)
            time.sleep(0.0002)

    thread = threading.Thread(target=rename_to_and_fro)
    thread.start()
    try:
        missed = 0
        for _ in range(500):
            try:
                assert (await store.read(sidecar.upload_id)).offset == 3
            except UploadNotFound:  # it went to and fro within three looks
                missed += 1
        assert missed < 50
    finally:
        stop.set()
        thread.join()


# Full disks.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no right to mount a tmpfs: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Use up what is left of a disk."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError as exc:
            assert exc.errno == errno.ENOSPC  # noqa: PT017 - the loop ends with it
    return filler


async def test_a_full_disk_gives_an_honest_offset(small_disk: Path, open_on: Open) -> None:
    """What was written is kept, what was not is not counted, and it goes on later."""
    store = open_on(small_disk)
    sidecar = await new_upload(store)
    filler = small_disk / "filler"
    filler.write_bytes(b"\0" * 1024 * 1024)
    async with writing(store, sidecar.upload_id) as writer:
        with pytest.raises(OSError, match="No space left"):
            await writer.write([pattern(1000), pattern(3_000_000, 1000)])
        kept = writer.offset
        assert 0 < kept < 2_000_000
        assert (await store.read(sidecar.upload_id)).offset == kept
        with pytest.raises(OSError, match="No space left"):
            await writer.write([pattern(8192, kept)])
        kept = writer.offset
        await writer.sync()
        filler.unlink()
        await writer.write([pattern(100_000, kept)])
        assert writer.offset == kept + 100_000
    content = store.path(sidecar.upload_id, ".part").read_bytes()
    assert content == pattern(kept + 100_000)


async def test_a_full_disk_gets_no_half_made_uploads(small_disk: Path, open_on: Open) -> None:
    """A creation that fails leaves nothing behind, and works when there is room."""
    store = open_on(small_disk)
    filler = fill(small_disk)
    before = files_below(small_disk)
    sidecars = [new_sidecar() for _ in range(20)]
    for sidecar in sidecars:
        with pytest.raises(OSError, match="No space left"):
            await store.create(sidecar)
    assert files_below(small_disk) == before
    filler.unlink()
    for sidecar in sidecars:
        await store.create(sidecar)


async def test_a_full_disk_keeps_the_old_record(small_disk: Path, open_on: Open) -> None:
    """A record that cannot be replaced stays as it was."""
    store = open_on(small_disk)
    sidecar = await new_upload(store, b"some")
    filler = fill(small_disk)
    async with writing(store, sidecar.upload_id) as writer:
        with pytest.raises(OSError, match="No space left"):
            await writer.record(replace(sidecar, username="x" * 10_000))
        assert writer.sidecar == sidecar
        assert (await store.read(sidecar.upload_id)).sidecar == sidecar
        filler.unlink()
        await writer.record(replace(sidecar, username="ada"))
    assert (await store.read(sidecar.upload_id)).sidecar.username == "ada"


@pytest.mark.parametrize("visible", [False, True])
async def test_a_full_disk_can_be_emptied(
    small_disk: Path, open_on: Open, visible: bool
) -> None:
    """Deleting an upload works where nothing can be written, and makes room."""
    store = open_on(small_disk)
    sidecar = await new_upload(store, pattern(100_000))
    async with writing(store, sidecar.upload_id) as writer:
        if visible:
            await writer.finish(finished(sidecar))
        filler = fill(small_disk)
        due = await writer.bury(ended(writer.sidecar))
    assert due[-1].seq == (3 if visible else 2)
    with pytest.raises(UploadNotFound):
        await store.read(sidecar.upload_id)
    filler.unlink()
    assert f"{sidecar.upload_id}.info" in files_below(small_disk)
    assert not {sidecar.upload_id, f"{sidecar.upload_id}.part"} & files_below(small_disk).keys()


async def test_a_file_that_may_not_grow_gives_an_honest_offset(
    store: FilesystemStore, child: Child
) -> None:
    """A short write counts for what it was; later the upload goes on from there."""
    one = new_id()
    child.do(f"create {one}")
    child.do(f"acquire {one}")
    assert child.do("limit 10000").how == "ok"
    assert child.do("write 9000 3") == Reply("ok", 9000)
    assert child.do("write 5000 2000") == Reply("EFBIG", 10_000)
    assert child.do("write 10") == Reply("EFBIG", 10_000)
    assert child.do("sync") == Reply("ok", 10_000)
    child.do("limit none")
    assert child.do("write 5000 2000") == Reply("ok", 15_000)
    assert store.path(one, ".part").read_bytes() == pattern(15_000)


async def test_a_record_that_may_not_be_written_leaves_no_upload(
    store: FilesystemStore, child: Child
) -> None:
    """Where not even the record fits, nothing is left of the creation."""
    child.do("limit 10")
    assert child.do(f"create {new_id()}").how == "EFBIG"
    assert files_below(store.root) == {}


# Strange names and files.


@pytest.mark.parametrize("upload_id", NO_IDS)
async def test_no_path_is_built_of_what_is_no_id(
    store: FilesystemStore, upload_id: str
) -> None:
    """Whatever the caller forgets to check, nothing outside the store is named."""
    before = sorted(store.root.parent.rglob("*"))
    with pytest.raises(ValueError, match="no upload id"):
        store.path(upload_id)
    with pytest.raises(ValueError, match="no upload id"):
        await store.ask_release(upload_id)
    with pytest.raises(ValueError, match="no upload id"):
        await store.mark_published(Due(upload_id, 1), last=True)
    with pytest.raises(ValueError, match="no upload id"):
        await store.remove_bytes(upload_id)
    with pytest.raises(ValueError, match="no upload id"):
        await store.create(replace(new_sidecar(), upload_id=upload_id))
    assert sorted(store.root.parent.rglob("*")) == before


@pytest.mark.parametrize("suffix", ["", ".part", ".info"])
async def test_a_planted_link_is_not_followed(
    store: FilesystemStore, tmp_path: Path, suffix: str
) -> None:
    """A link in place of a file leads nowhere, for readers and for writers."""
    sidecar = new_sidecar()
    one = sidecar.upload_id
    await store.create(sidecar)
    target = tmp_path / "target"
    target.write_bytes(encode(sidecar))
    before = target.stat()
    if suffix != ".info":
        store.path(one, ".part").unlink()
    else:
        store.path(one, ".info").unlink()
    store.path(one, suffix).symlink_to(target)
    for attempt in (store.read, store.acquire):
        with pytest.raises((OSError, UploadNotFound)):
            await attempt(one)
    if not suffix:
        with pytest.raises(OSError, match="symbolic links"):
            await store.open_blob(one)
    assert [record async for record in store.survey(recent_s=60)] == (
        [] if suffix == ".info" else [sidecar]
    )
    after = target.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("plant", [os.mkfifo, os.mkdir])
async def test_what_is_no_file_is_not_waited_for(
    store: FilesystemStore, plant: Callable[[Path], None]
) -> None:
    """A pipe or a folder in place of a file holds no thread up, nor a descriptor."""
    upload_id = (await new_upload(store, b"bytes")).upload_id
    for suffix in (".part", ".info"):
        path = store.path(upload_id, suffix)
        path.unlink()
        plant(path)
        before = os.listdir("/dev/fd")
        async with asyncio.timeout(10):
            with pytest.raises(OSError, match="no regular file"):
                await store.read(upload_id)
            assert [one async for one in store.walk()] == []
            with pytest.raises(OSError, match="no regular file"):
                await anext(store.read_range(upload_id, 0, 1))
        assert os.listdir("/dev/fd") == before


async def test_a_link_where_an_upload_would_be_created_is_not_followed(
    store: FilesystemStore, tmp_path: Path
) -> None:
    """Nor is one where its new record is written."""
    target = tmp_path / "target"
    for suffix in (".part", ".info.new"):
        sidecar = new_sidecar()
        store.path(sidecar.upload_id, suffix).symlink_to(target)
        with pytest.raises(OSError, match=r"exists|symbolic links"):
            await store.create(sidecar)
        assert not target.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"{}", encode(new_sidecar())],
    ids=["empty", "cut", "no-text", "list", "no-fields", "of-another-upload"],
)
async def test_a_damaged_record_is_not_served(store: FilesystemStore, content: bytes) -> None:
    """An upload whose record cannot be believed is refused, and its bytes are kept."""
    sidecar = await new_upload(store, b"bytes")
    one = sidecar.upload_id
    good = store.path(one, ".info").read_bytes()
    store.path(one, ".info").write_bytes(content)
    for _ in range(2):  # a refusal gives the right back
        for attempt in (store.read, store.acquire):
            with pytest.raises(SidecarDamaged):
                await attempt(one)
    assert [record async for record in store.survey(recent_s=60)] == []
    store.path(one, ".info").write_bytes(good)
    assert (await store.read(one)).offset == 5
    async with writing(store, one) as writer:
        assert writer.offset == 5


async def test_what_does_not_belong_there_is_overlooked(store: FilesystemStore) -> None:
    """Files of other names are no uploads, no markers and no questions."""
    sidecar = await new_upload(store)
    for name in ("x", f"{sidecar.upload_id}", f"{sidecar.upload_id}.x", ".1", "..1"):
        (store.root / "due" / name).touch()
    for name in ("x.part", "x.info", f"{new_id().upper()}.part", ".part"):
        (store.root / "ab" / name).touch()
    assert await store.due(older_than_s=0) == [Due(sidecar.upload_id, 1)]
    assert [record async for record in store.survey(recent_s=60)] == [sidecar]


async def test_a_failed_upload_keeps_its_record(store: FilesystemStore) -> None:
    """Its bytes were removed; what became of it can still be read."""
    sidecar = await new_upload(store, b"bad")
    failed = replace(finished(sidecar), status="failed")
    async with writing(store, sidecar.upload_id) as writer:
        await writer.record(failed)
        await store.remove_bytes(sidecar.upload_id)
    stored = await store.read(sidecar.upload_id)
    assert (stored.sidecar, stored.offset, stored.visible) == (failed, 0, False)
    with pytest.raises(UploadNotFound):
        await store.acquire(sidecar.upload_id)
    with pytest.raises(UploadNotFound):
        await store.open_blob(sidecar.upload_id)


async def test_a_complete_blob_can_be_read_while_it_is_deleted(store: FilesystemStore) -> None:
    """A download under way goes on to its end; a new one finds nothing."""
    sidecar = await new_upload(store, b"all of it")
    with pytest.raises(UploadNotFound):
        await store.open_blob(sidecar.upload_id)
    async with writing(store, sidecar.upload_id) as writer:
        await writer.finish(finished(sidecar))
        fd = await store.open_blob(sidecar.upload_id)
        await writer.bury(ended(writer.sidecar))
    with os.fdopen(fd, "rb") as file:
        assert file.read() == b"all of it"
    with pytest.raises(UploadNotFound):
        await store.open_blob(sidecar.upload_id)


# Callers that are cancelled.


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_a_cancelled_caller_waits_for_its_thread(
    store: FilesystemStore, times: int
) -> None:
    """However often it is cancelled, it ends when the disk has; no file is closed before."""
    entered, go_on = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        go_on.wait(10)

    task = asyncio.create_task(store.run(work))
    await asyncio.to_thread(entered.wait, 10)
    for _ in range(times):
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=0.05)
        assert not done
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancelled_write_leaves_whole_bytes(store: FilesystemStore) -> None:
    """The offset is where the file ends, whenever the caller was cancelled."""
    sidecar = await new_upload(store)
    order = random.Random(11)
    async with writing(store, sidecar.upload_id) as writer:
        for _ in range(40):
            task = asyncio.create_task(writer.write([pattern(200_000, writer.offset)]))
            await asyncio.sleep(order.random() / 2000)
            task.cancel()
            await asyncio.wait([task])
            path = store.path(sidecar.upload_id, ".part")
            assert path.stat().st_size == writer.offset
        size = writer.offset
    assert store.path(sidecar.upload_id, ".part").read_bytes() == pattern(size)


async def test_a_cancelled_acquisition_keeps_nothing(store: FilesystemStore) -> None:
    """Neither the right nor a descriptor is left with a caller that is gone."""
    sidecar = await new_upload(store, b"x")
    done = finished(sidecar)
    order = random.Random(13)

    async def cancelled_at_random(job: object) -> None:
        task = asyncio.ensure_future(job)  # type: ignore[call-overload]
        for _ in range(order.randrange(4)):
            await asyncio.sleep(0)
        if order.random() < 0.5:
            await asyncio.sleep(order.random() / 1000)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            result = task.result()
            if isinstance(result, int):
                os.close(result)
            else:
                await result.close()

    async with writing(store, sidecar.upload_id) as writer:
        await writer.finish(done)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        await cancelled_at_random(store.acquire(sidecar.upload_id))
        async with writing(store, sidecar.upload_id):
            pass
        await cancelled_at_random(store.open_blob(sidecar.upload_id))
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_cancelled_creation_is_whole_or_not_there(store: FilesystemStore) -> None:
    """It is carried through to its end, so the sweep finds its event."""
    for wait_s in (0, 0.0002, 0.0005, 0.001):
        sidecar = new_sidecar()
        task = asyncio.create_task(store.create(sidecar))
        await asyncio.sleep(wait_s)
        task.cancel()
        await asyncio.wait([task])
        if wait_s:
            assert (await store.read(sidecar.upload_id)).sidecar == sidecar
            assert Due(sidecar.upload_id, 1) in await store.due(older_than_s=0)


# The folder itself.


async def test_nobody_else_can_read_what_is_stored(store: FilesystemStore) -> None:
    """Folders and files are for their owner alone."""
    sidecar = await new_upload(store, b"secret")
    await store.ask_release(sidecar.upload_id)
    paths = [path for path in store.root.rglob("*") if path.name != "epoch"]
    assert {oct(path.stat().st_mode & 0o077) for path in paths} == {"0o0"}


def test_processes_may_start_at_the_same_time(folder: Path) -> None:
    """Opening one folder many times at once works: in containers they even share a pid."""
    for round_ in range(5):
        root = folder / str(round_)
        with ThreadPoolExecutor(8) as threads:
            for store in threads.map(FilesystemStore, [root] * 16):
                asyncio.run(store.close())
        assert files_below(root) == {}


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, name: str) -> None:
    """The message names the setting, the folder and the reason."""
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match=r"DATA_DIR: .*file.* is not writable \("):
        FilesystemStore(tmp_path / name)


def test_a_folder_that_disappears_is_not_writable(store: FilesystemStore) -> None:
    """The look that readiness takes tells a missing mount."""
    assert store.is_writable()
    store.root.rename(store.root.with_name("away"))
    assert not store.is_writable()


async def test_a_store_that_disappears_is_an_error_not_a_missing_upload(
    store: FilesystemStore,
) -> None:
    """Creating fails without leaving a folder of its own making."""
    store.root.rename(store.root.with_name("away"))
    with pytest.raises(OSError, match="No such file") as caught:
        await store.create(new_sidecar())
    assert caught.value.errno == errno.ENOENT
    assert not store.root.exists()


async def test_a_killed_process_leaves_records_that_can_be_read(
    store: FilesystemStore, child: Child
) -> None:
    """Killed at any moment, a process leaves each record whole: the old one or the new one."""
    order = random.Random(17)
    for _ in range(4):
        one = Child(store.root)
        ids = [new_id() for _ in range(200)]
        one.do(f"create {ids[0]}")
        for upload_id in ids[1:]:
            one.tell(f"create {upload_id}")
            one.tell(f"acquire {upload_id}")
            one.tell("write 10")
            one.tell("finish")
        await asyncio.sleep(order.random() / 20)
        one.process.kill()
        one.process.wait()
        one.close()
    records = list(store.root.glob("*/*.info"))
    assert len(records) >= 4
    for path in records:
        record = decode(path.read_bytes())
        stored = await store.read(record.upload_id)
        assert stored.visible or record.status == "created"
    wait_until(lambda: child.process.poll() is None, "the other child lives")
