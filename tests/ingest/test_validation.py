"""Tests of claims and names, and of the refusal on the wire before the rest is sent."""

from __future__ import annotations

import base64
import hashlib
import os

import pytest
from msgspec.structs import replace

from services.ingest.creation import Creation
from services.ingest.errors import ContentMismatch, UnsupportedMediaType
from services.ingest.signatures import HEAD
from services.ingest.validation import Inspection, claims_of, extension_of, kind_of
from shared.events import UploadFacts, UploadFailed
from shared.sidecar import Sidecar, new_id
from tests.ingest.conftest import LARGEST, Ingest, Starter
from tests.ingest.evidence import blob, files_of, lifecycle, sidecar, snapshot
from tests.ingest.media_heads import HEADS, THEORA, ogg
from tests.ingest.tus_client import CHUNK, metadata
from tests.ingest.wire import Connection, head_of
from tests.processes import wait_until

MP4 = HEADS["mp4"]


@pytest.mark.parametrize(
    ("filename", "extension"),
    [
        ("a.mp4", "mp4"),
        ("A.MP4", "mp4"),
        ("a.b.Csv", "csv"),
        ("a.exe.", "exe"),
        ("a.exe . ", "exe"),
        ("c:\\x.y\\film", ""),
        ("dir.d/film", ""),
        ("film", ""),
        (".csv", "csv"),
        ("", ""),
        ("...", ""),
    ],
)
def test_extension(filename: str, extension: str) -> None:
    """The extension is what a desktop would take for it."""
    assert extension_of(filename) == extension


@pytest.mark.parametrize(
    ("content_type", "filename", "kind"),
    [
        ("video/mp4", "a.mp4", "video"),
        ("", "a.webm", "video"),
        ("video/quicktime; codecs=x", "", "video"),
        ("text/csv; charset=utf-8", "x", "csv"),
        ("application/vnd.ms-excel", "a.csv", "csv"),
        ("audio/ogg", "a.ogg", "file"),
        ("", "a.ogg", "file"),
        ("video/x-ms-wmv", "a.wmv", "file"),
        ("application/octet-stream", "a.bin", "file"),
        ("", "", "file"),
    ],
)
def test_kind(content_type: str, filename: str, kind: str) -> None:
    """What nobody named a kind for is a video or a table if it says so itself."""
    assert kind_of(content_type, filename) == kind


def test_claims_add_up() -> None:
    """Kind, type and extension must all hold, so two that differ can hold for no file."""
    claims = claims_of("video", "video/mp4", "a.avi")
    assert len(claims) == 3
    assert claims_of("file", "image/png", "a.png") == set()


def upload(kind: str = "file", filename: str = "", content_type: str = "") -> Sidecar:
    """Return the record of an upload that claims this."""
    facts = UploadFacts(
        user_id="u",
        tenant="t",
        created_at=1,
        job_id=new_id(),
        filename=filename,
        content_type=content_type,
        kind=kind,
    )
    return Sidecar(upload_id=new_id(), status="created", facts=facts)


def judged(one: Sidecar, head: bytes, *, complete: bool = True) -> bool | str:
    """Return what the inspection says: decided, not yet, or refused."""
    try:
        return Inspection().check_start(one, head, complete)
    except ContentMismatch as exc:
        return exc.error_code


VIDEOS = [name for name in HEADS if name.startswith(("m4v", "mov", "mp4", "webm", "mkv"))]


@pytest.mark.parametrize("name", [*VIDEOS, "avi", "ogv"])
def test_every_video_is_one(name: str) -> None:
    """Each of the supported formats passes where a video is asked for."""
    assert judged(upload("video"), HEADS[name]) is True


OTHERS = [name for name in HEADS if name not in {*VIDEOS, "avi"} and name[:3] != "ogv"]


@pytest.mark.parametrize("name", OTHERS)
def test_only_videos_are(name: str) -> None:
    """Sound, pictures, archives and programs do not, whatever their name says."""
    assert judged(upload("video", "a.mp4", "video/mp4"), HEADS[name]) == "CONTENT_MISMATCH"


@pytest.mark.parametrize(
    ("one", "head", "expected"),
    [
        (upload("file", "a.bin"), b"", True),
        (upload("file", "a.mp4"), MP4, True),
        (upload("file", "a.mov"), MP4, True),
        (upload("file", "a.mp4"), b"", "CONTENT_MISMATCH"),
        (upload("file", "a.mp4"), HEADS["avi"], "CONTENT_MISMATCH"),
        (upload("file", "a.mp4", "video/webm"), MP4, "CONTENT_MISMATCH"),
        (upload("file", "a.ogg"), HEADS["ogg"], True),
        (upload("video", "a.ogg"), HEADS["ogg"], "CONTENT_MISMATCH"),
        (upload("video", "a.ogg"), ogg(THEORA), True),
        (upload("csv"), b"a,b\n1,2\n", True),
        (upload("csv"), MP4, "CONTENT_MISMATCH"),
        (upload("video"), b"a,b\n1,2\n", "CONTENT_MISMATCH"),
        (replace(upload("video", "a.mp4"), concat="partial"), b"x", True),
    ],
)
def test_judgement(one: Sidecar, head: bytes, expected: bool | str) -> None:
    """Claims are borne out or not; what claims nothing, and pieces of files, pass."""
    assert judged(one, head) == expected


def test_undecided() -> None:
    """While the bytes may become what is claimed, nothing is decided."""
    assert judged(upload("video"), MP4[:6], complete=False) is False
    assert judged(upload("csv"), b"a,b\n", complete=False) is False
    assert judged(upload("csv"), b"a,b\n" * HEAD, complete=False) is True


def named(filename: str, kind: str = "file", concat: str = "") -> Creation:
    """Return a request for an upload of that name."""
    return Creation(size=1, filename=filename, kind=kind, concat=concat)


@pytest.mark.parametrize(
    ("inspection", "creation", "fine"),
    [
        (Inspection(), named("a.exe"), True),
        (Inspection(denied=["exe"]), named("a.EXE."), False),
        (Inspection(denied=[".exe"]), named("a.exe"), False),
        (Inspection(denied=["exe"]), named("a.exe", concat="partial"), True),
        (Inspection(allowed=["mp4", "CSV"]), named("a.csv"), True),
        (Inspection(allowed=["mp4"]), named("a.csv"), False),
        (Inspection(allowed=["mp4"]), named("a"), False),
        (Inspection(allowed=["mp4"]), named("file", "video"), True),
        (Inspection(), named("a.csv", "video"), False),
        (Inspection(), named("a.mp4", "csv"), False),
        (Inspection(), named("a.txt", "csv"), True),
        (Inspection(allowed=["mkv"]), named("a.mp4", "video"), False),
    ],
)
def test_names(inspection: Inspection, creation: Creation, fine: bool) -> None:
    """Lists bind every name; without an extension a video is judged by its content."""
    if fine:
        inspection.check_name(creation)
    else:
        with pytest.raises(UnsupportedMediaType):
            inspection.check_name(creation)


# On the wire.

FILM = {"Upload-Metadata": metadata(filename="a.mp4", filetype="video/mp4")}


def failed(ingest: Ingest, path: str) -> None:
    """Check that an upload has failed for its content, and that its bytes are gone."""
    assert sidecar(ingest.data_dir, path).status == "failed"
    left = [one for one in files_of(ingest.data_dir, path) if "/due/" not in one]
    assert [one.rpartition(".")[2] for one in left] == ["info"]

    def told() -> bool:
        last = lifecycle(ingest.redis.url, path)[-1:]
        return bool(last) and isinstance(last[0], UploadFailed)

    wait_until(told, "the failure is told")
    event = lifecycle(ingest.redis.url, path)[-1]
    assert isinstance(event, UploadFailed)
    assert event.error_code == "CONTENT_MISMATCH"
    assert ingest.tus.head(path).status == 404


def test_refused_before_the_rest_is_sent(ingest: Ingest) -> None:
    """A client that has sent the first bytes of what is no video hears it at once."""
    path = ingest.tus.create(LARGEST, FILM)
    with ingest.tus.begin_patch(path, 0, LARGEST, HEADS["png"]) as one:
        answer = one.read()
    assert (answer.status, answer.headers["Connection"]) == (415, "close")
    failed(ingest, path)


def test_refused_when_the_first_bytes_came_before(ingest: Ingest) -> None:
    """First bytes that decide nothing alone are remembered by the next request."""
    path = ingest.tus.create(LARGEST, FILM)
    assert ingest.tus.patch(path, 0, MP4[:6]).status == 204
    with ingest.tus.begin_patch(path, 6, LARGEST - 6, b"xx") as one:
        assert one.read().status == 415
    failed(ingest, path)


def test_failed_upload_is_not_called_complete(ingest: Ingest) -> None:
    """Whoever looks at an upload that failed must not be told that it is all there."""
    path = ingest.tus.create(6, FILM)
    assert ingest.tus.patch(path, 0, MP4[:6]).status == 415
    answer = ingest.tus.ask("GET", path, {})
    assert (answer.status, "Upload-Complete" in answer.headers) == (410, False)


def test_refused_with_a_checksum(ingest: Ingest) -> None:
    """A checksum says that the bytes arrived, not that they are a video."""
    path, body = ingest.tus.create(LARGEST, FILM), HEADS["png"] * 100
    checksum = base64.b64encode(hashlib.sha1(body).digest()).decode()
    damaged = {"Upload-Checksum": "sha1 " + base64.b64encode(bytes(20)).decode()}
    assert ingest.tus.patch(path, 0, body, damaged).status == 460
    answer = ingest.tus.patch(path, 0, body, {"Upload-Checksum": f"sha1 {checksum}"})
    assert answer.status == 415
    failed(ingest, path)


def test_refused_in_a_creation(ingest: Ingest) -> None:
    """The piece that comes with a creation is judged too."""
    headers = {**CHUNK, **FILM, "Upload-Length": str(LARGEST), "Content-Length": str(LARGEST)}
    with Connection(ingest.service.port) as one:
        one.send(head_of("POST", "/api/v1/uploads", headers), HEADS["zip"])
        assert one.read().status == 415


def test_taken_byte_by_byte(ingest: Ingest) -> None:
    """A good video that trickles in is never refused on the way."""
    path = ingest.tus.create(len(MP4), FILM)
    pieces = [MP4[at : at + 1] for at in range(16)] + [MP4[16:]]
    assert ingest.tus.many_patches(path, pieces) == len(MP4)
    assert blob(ingest.data_dir, path) == MP4
    facts = sidecar(ingest.data_dir, path).facts
    assert (facts.kind, sidecar(ingest.data_dir, path).status) == ("video", "completed")


def test_too_short_to_be_a_video(ingest: Ingest) -> None:
    """What could have become a video is none if it ends before it is one."""
    path = ingest.tus.create(6, FILM)
    assert ingest.tus.patch(path, 0, MP4[:6]).status == 415
    failed(ingest, path)


def test_a_deferred_length_is_judged_in_the_end(ingest: Ingest) -> None:
    """A table is judged when it is declared complete, even if no byte comes with that."""
    table = {"Upload-Metadata": metadata(filename="a.csv")}
    path = ingest.tus.create(None, table)
    assert ingest.tus.patch(path, 0, b" \n \n").status == 204
    answer = ingest.tus.patch(path, 4, b"", {"Upload-Length": "4"})
    assert answer.status == 415
    failed(ingest, path)


def test_a_table(ingest: Ingest) -> None:
    """A table passes, and is told to be one."""
    content = b"a;b\n1;2\n" * 1000
    path = ingest.tus.create(len(content), {"Upload-Metadata": metadata(filename="a.csv")})
    assert ingest.tus.patch(path, 0, content).status == 204
    assert sidecar(ingest.data_dir, path).facts.kind == "csv"


def test_what_claims_nothing_passes(ingest: Ingest) -> None:
    """Any bytes may be a plain file."""
    path = ingest.tus.create(500, {"Upload-Metadata": metadata(filename="a.bin")})
    assert ingest.tus.patch(path, 0, os.urandom(500)).status == 204


def test_lists_of_extensions(start_ingest: Starter) -> None:
    """A name that the lists refuse opens nothing."""
    one = start_ingest(UPLOAD_ALLOWED_EXTENSIONS="bin, mp4", UPLOAD_DENIED_EXTENSIONS="MP4")
    before = snapshot(one.data_dir)
    for filename in ("a.txt", "a.mp4", "a", ""):
        headers = {"Upload-Length": "5", "Upload-Metadata": metadata(filename=filename)}
        assert one.tus.post(headers).status == 415
    assert snapshot(one.data_dir) == before
    one.tus.create(5, {"Upload-Metadata": metadata(filename="a.bin")})
