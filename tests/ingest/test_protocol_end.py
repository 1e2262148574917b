"""Expiration and termination of tus 1.0.0 over real sockets, item by item."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import pytest

from tests.ingest.conftest import Ingest, Starter
from tests.ingest.evidence import (
    lifecycle,
    no_file_is_left,
)
from tests.ingest.tus_client import CHUNK, Tus, created, wait_for_offset
from tests.ingest.wire import Answer
from tests.processes import ServiceProcess, running, wait_until


def expiry(answer: Answer) -> float:
    """Return when an answer says that its upload expires."""
    text = answer.headers["Upload-Expires"]
    assert text.endswith(" GMT")
    return parsedate_to_datetime(text).timestamp()


def test_item_072_expiration_is_listed(tus: Tus) -> None:
    """A client would not know that an upload may be gone when it comes back."""
    assert tus.extensions().count("expiration") == 1


def test_item_074_expiry_is_an_http_date(tus: Tus) -> None:
    """A client that reads dates as HTTP has them could not read this one."""
    text = tus.post({"Upload-Length": "10"}).headers["Upload-Expires"]
    form = r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT"
    assert re.fullmatch(form, text)


def test_item_073_expiry_is_told(tus: Tus) -> None:
    """Creation, PATCH and HEAD tell when an unfinished upload expires."""
    creation = tus.post({"Upload-Length": "10"})
    path = created(creation)
    in_a_day = time.time() + 24 * 3600
    for answer in (creation, tus.patch(path, 0, b"hello"), tus.head(path)):
        assert abs(expiry(answer) - in_a_day) < 10
    assert abs(expiry(tus.post({**CHUNK, "Upload-Length": "9"}, b"x")) - in_a_day) < 10


def test_item_073_bytes_extend_the_life(start_ingest: Starter) -> None:
    """Each PATCH with bytes moves the end of an upload's life."""
    tus = start_ingest(UPLOAD_SESSION_TIMEOUT_HOURS="0.01").tus
    creation = tus.post({"Upload-Length": "10"})
    first = expiry(creation)
    time.sleep(1.1)
    assert expiry(tus.patch(created(creation), 0, b"hello")) > first


@pytest.fixture(scope="module")
def short_lived(
    ingest: Ingest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Tus, str]]:
    """A client of a process where uploads last about a second, and one that has expired."""
    folder = tmp_path_factory.mktemp("short")
    env = {
        "REDIS_URL": ingest.redis.url,
        "DATA_DIR": str(folder / "data"),
        "UPLOAD_SESSION_TIMEOUT_HOURS": "0.0003",
    }
    service = ServiceProcess("ingest", env, folder / "log")
    with running(service):
        tus = Tus(service.port)
        path = tus.create(10)
        tus.patch(path, 0, b"hello")
        wait_until(lambda: tus.head(path).status == 410, "the upload expires", limit_s=10)
        yield tus, path


def test_item_075_expired_uploads_are_gone(short_lived: tuple[Tus, str]) -> None:
    """An upload that nobody continued gets 410 and takes no bytes."""
    tus, path = short_lived
    assert "Upload-Offset" not in tus.head(path).headers
    assert tus.patch(path, 5, b"world").status == 410
    assert tus.head(path).status == 410


def test_item_076_finished_uploads_stay(short_lived: tuple[Tus, str]) -> None:
    """A finished upload would expire as if it had been given up."""
    tus, _ = short_lived
    done = tus.create(0)
    assert "Upload-Expires" not in tus.head(done).headers
    other = tus.create(10)
    wait_until(lambda: tus.head(other).status == 410, "a later upload expires", limit_s=10)
    assert tus.head(done).status == 200
    assert tus.patch(done, 0).status == 204


def begun(tus: Tus, received: int) -> str:
    """Return the path of an upload of 10 bytes that has so many."""
    path = tus.create(10)
    tus.patch(path, 0, b"x" * received)
    return path


@pytest.mark.parametrize("received", [0, 5, 10])
def test_item_085_delete_ends_any_upload(ingest: Ingest, received: int) -> None:
    """DELETE would be refused for an upload that is finished, or has just begun."""
    assert ingest.tus.extensions().count("termination") == 1
    path = begun(ingest.tus, received)
    assert ingest.tus.delete(path).status == 204
    end = "FileDeleted" if received == 10 else "UploadCancelled"

    def kinds() -> list[str]:
        return [type(event).__name__ for event in lifecycle(ingest.redis.url, path)]

    wait_until(lambda: kinds()[-1:] == [end], "the end is told", kinds)
    assert kinds().count(end) == 1


@pytest.mark.parametrize("received", [0, 5, 10])
def test_item_086_delete_frees_everything(ingest: Ingest, received: int) -> None:
    """Bytes, record or markers would stay behind after 204."""
    path = begun(ingest.tus, received)
    answer = ingest.tus.delete(path)
    assert (answer.status, answer.body) == (204, b"")
    no_file_is_left(ingest.data_dir, path)


@pytest.mark.parametrize("received", [0, 5, 10])
def test_item_087_deleted_uploads_are_not_found(ingest: Ingest, received: int) -> None:
    """A client could go on with what it has deleted, or delete it twice."""
    tus = ingest.tus
    path = begun(tus, received)
    tus.delete(path)
    for again in (tus.head(path), tus.patch(path, received), tus.delete(path)):
        assert again.status == 404
    assert tus.ask("GET", path, {}).status == 404


def test_item_088_delete_ends_a_running_patch(ingest: Ingest) -> None:
    """A PATCH that is running when its upload is deleted ends, and writes nothing after."""
    tus = ingest.tus
    path = tus.create(1000)
    with tus.begin_patch(path, 0, 1000, b"x" * 100) as running:
        wait_for_offset(tus, path, 100)
        assert tus.delete(path).status == 204
        assert running.read().status == 423
    no_file_is_left(ingest.data_dir, path)
