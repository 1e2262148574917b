"""The creation extensions of tus 1.0.0 over real sockets, item by item."""

from __future__ import annotations

import base64
from urllib.parse import urljoin, urlsplit

import pytest

from services.ingest.location import COLLECTION
from tests.ingest.conftest import LARGEST, Ingest, Starter
from tests.ingest.evidence import (
    blob,
    completed_once,
    sidecar,
    snapshot,
)
from tests.ingest.tus_client import TUS, Tus, created, metadata, unknown


def test_item_043_creation_is_listed(tus: Tus) -> None:
    """A client would not know that it may open uploads."""
    assert tus.extensions().count("creation") == 1


@pytest.mark.parametrize("headers", [{}, {"Upload-Length": "5", "Upload-Defer-Length": "1"}])
def test_item_044_one_statement_of_length(ingest: Ingest, headers: dict[str, str]) -> None:
    """Neither length nor deferral, or both, gets 400 and opens nothing."""
    before = snapshot(ingest.data_dir)
    assert ingest.tus.post(headers).status == 400
    assert snapshot(ingest.data_dir) == before


@pytest.mark.parametrize("value", ["0", "2", "true", "", " ", "01", "1,1"])
def test_item_045_deferral_is_1(ingest: Ingest, value: str) -> None:
    """A wrong deferral gets 400 and opens nothing."""
    before = snapshot(ingest.data_dir)
    assert ingest.tus.post({"Upload-Defer-Length": value}).status == 400
    assert snapshot(ingest.data_dir) == before


@pytest.mark.parametrize(
    ("headers", "base"),
    [
        ({}, "http://127.0.0.1"),
        ({"Host": "127.0.0.1:1234"}, "http://127.0.0.1:1234"),
        ({"Host": "localhost"}, "http://localhost"),
        ({"X-Forwarded-Host": "evil.example"}, "http://127.0.0.1"),
        ({"Forwarded": "host=evil.example;proto=https"}, "http://127.0.0.1"),
    ],
)
def test_item_046_location(tus: Tus, headers: dict[str, str], base: str) -> None:
    """The Location is the URL of the upload as the client sees it; strangers cannot bend it."""
    answer = tus.post({"Upload-Length": "5", **headers})
    assert answer.status == 201
    resolved = urljoin("http://127.0.0.1/api/v1/uploads", answer.headers["Location"])
    assert resolved.startswith(f"{base}{COLLECTION}/")
    assert tus.offset(urlsplit(resolved).path) == 0


def test_item_046_location_behind_an_ingress(start_ingest: Starter) -> None:
    """What a trusted ingress says of the URL is used."""
    tus = start_ingest(TRUSTED_PROXIES="127.0.0.0/8").tus
    told = {
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "up.example:8443",
        "X-Forwarded-Prefix": "/files",
    }
    answer = tus.post({"Upload-Length": "5", **told})
    base = f"https://up.example:8443/files{COLLECTION}/"
    assert answer.headers["Location"].startswith(base)


def test_item_047_begins_at_zero(tus: Tus) -> None:
    """A new upload is at offset 0."""
    assert tus.offset(tus.create(5)) == 0


def test_item_048_empty_upload_is_finished_at_once(ingest: Ingest) -> None:
    """An upload of length 0 is complete when it is created, and completes once."""
    tus = ingest.tus
    path = tus.create(0)
    headers = tus.head(path).headers
    assert (headers["Upload-Offset"], headers["Upload-Length"]) == ("0", "0")
    assert tus.patch(path, 0).status == 204
    assert tus.ask("GET", path, {}).status == 307
    assert blob(ingest.data_dir, path) == b""
    completed_once(ingest.redis, path)


def test_item_049_too_large(ingest: Ingest) -> None:
    """The largest size is taken; one byte more gets 413 with the limit and opens nothing."""
    tus = ingest.tus
    assert tus.post({"Upload-Length": str(LARGEST)}).status == 201
    before = snapshot(ingest.data_dir)
    answer = tus.post({"Upload-Length": str(LARGEST + 1)})
    assert (answer.status, answer.headers["Tus-Max-Size"]) == (413, str(LARGEST))
    assert snapshot(ingest.data_dir) == before


def test_item_050_metadata_is_used(ingest: Ingest) -> None:
    """Name and type of the file are taken from the metadata, all of it is kept."""
    told = metadata(filename="a ä.mp4", filetype="video/mp4", other="x")
    path = ingest.tus.create(5, {"Upload-Metadata": told})
    facts = sidecar(ingest.data_dir, path).facts
    assert (facts.filename, facts.content_type) == ("a ä.mp4", "video/mp4")
    assert facts.metadata["other"] == "x"


BAD_PAIRS = [
    *("a YQ=", "a YQ==YQ==", "a  YQ==", "a -_-_", "a \xe4", "a Y Q==", "a\tYQ=="),
]


BAD_KEYS = [
    *("a YQ==,a Yg==", "a,a", "a,,b", "\xe4 YQ==", ","),
    ",".join(f"k{n}" for n in range(33)),
]


@pytest.mark.parametrize("header", BAD_PAIRS)
def test_item_051_pairs_of_key_and_base64(ingest: Ingest, header: str) -> None:
    """A value that is not Base64, or not one space away, gets 400 and opens nothing."""
    before = snapshot(ingest.data_dir)
    answer = ingest.tus.post({"Upload-Length": "5", "Upload-Metadata": header})
    assert answer.status == 400
    assert snapshot(ingest.data_dir) == before


@pytest.mark.parametrize("header", BAD_KEYS)
def test_item_052_bad_keys_open_nothing(ingest: Ingest, header: str) -> None:
    """Keys that are empty, doubled, not ASCII, or too many get 400 and open nothing."""
    before = snapshot(ingest.data_dir)
    answer = ingest.tus.post({"Upload-Length": "5", "Upload-Metadata": header})
    assert answer.status == 400
    assert snapshot(ingest.data_dir) == before


@pytest.mark.parametrize("header", ["is_confidential", "is_confidential ", "a YQ==,flag"])
def test_item_053_values_may_be_empty(tus: Tus, header: str) -> None:
    """A key alone is metadata too, with its space or without."""
    assert tus.post({"Upload-Length": "5", "Upload-Metadata": header}).status == 201


def test_item_054_values_reach_no_header(tus: Tus) -> None:
    """A value with line breaks in it adds no header to any answer."""
    evil = metadata(filename="a\r\nSet-Cookie: x=y", filetype="text/plain\r\nX-Evil: 1")
    path = tus.create(0, {"Upload-Metadata": evil})
    for answer in (tus.head(path), tus.ask("GET", path, {})):
        assert "Set-Cookie" not in answer.headers
        assert b"X-Evil" not in answer.raw_head


@pytest.mark.parametrize(
    "header",
    [
        "b Yg==,a YQ==",
        "a YQ==, b Yg==",
        "flag,a YQ==",
        "flag ,a YQ==",
        metadata(filename="ä", **{"x-y_z.1": "v" * 500}),
        "raw " + base64.b64encode(b"\xff\xfe").decode(),
    ],
)
def test_item_055_metadata_comes_back_as_it_was(tus: Tus, header: str) -> None:
    """HEAD gives the metadata byte for byte, before and after completion."""
    path = tus.create(2, {"Upload-Metadata": header})
    assert tus.head(path).headers["Upload-Metadata"] == header
    tus.patch(path, 0, b"hi")
    assert tus.head(path).headers["Upload-Metadata"] == header


@pytest.mark.parametrize("header", ["", " "])
def test_item_056_empty_metadata_counts_as_none(tus: Tus, header: str) -> None:
    """An empty header is no metadata."""
    path = tus.create(5, {"Upload-Metadata": header})
    assert "Upload-Metadata" not in tus.head(path).headers


def test_item_056_no_metadata_is_no_header(tus: Tus) -> None:
    """Without metadata HEAD has no such header."""
    assert "Upload-Metadata" not in tus.head(tus.create(5)).headers


@pytest.mark.parametrize("exists", [False, True])
def test_item_058_post_to_an_upload_creates_nothing(ingest: Ingest, exists: bool) -> None:
    """A POST to the URL of an upload is no creation."""
    path = ingest.tus.create(5) if exists else unknown()
    before = snapshot(ingest.data_dir)
    answer = ingest.tus.ask("POST", path, {**TUS, "Upload-Length": "5"})
    assert answer.status == 405
    assert snapshot(ingest.data_dir) == before


def test_item_048_other_bodies_do_not_matter(tus: Tus) -> None:
    """A body of another type changes nothing about an empty upload."""
    path = created(tus.post({"Upload-Length": "0", "Content-Type": "text/plain"}, b"junk"))
    assert tus.ask("GET", path, {}).status == 307
