"""The rules of the upload by form: fields, names, chunks that are missing, conflicts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from services.ingest import form
from services.ingest.errors import ChunkConflict, SessionMismatch
from services.ingest.form import FormLimits, Submission, parse_fields
from services.ingest.form_answer import data_of, status_code_of
from services.ingest.form_reader import disposition
from shared.blobs.store import Chunk
from shared.errors import InvalidRequest, PayloadTooLarge
from shared.percent import percent_of
from shared.sidecar import Form, Sidecar
from tests.shared.samples import cancelled, completed, new_sidecar

LIMITS = FormLimits(max_file_size=1000, max_chunk_size=100, max_chunks=100, default_priority=5)
HASH = "ab" * 32


def of_total(total: int) -> Sidecar:
    """Return the record of a session that gets so many chunks; 0: a whole file."""
    return replace(new_sidecar(), protocol="form", form=Form(total_chunks=total))


def chunk(index: int, size: int = 10, digest: str = HASH) -> Chunk:
    """Return a chunk that was received."""
    return Chunk(index=index, size=size, digest=digest, received_at=0.0)


def test_fields_of_the_single_file_upload() -> None:
    """Seed document 002, 'Single File Upload': a whole file with a priority and options."""
    said = parse_fields({"priority": "7", "options": '{"model_type": "resnet50"}'}, LIMITS)
    assert said == Submission(priority=7, options={"model_type": "resnet50"})


def test_fields_of_the_chunked_upload() -> None:
    """Seed document 002, 'Chunked Upload': which chunk of how many, and the file's hash."""
    fields = {"session_id": "session_123", "chunk_index": "9", "total_chunks": "10"}
    said = parse_fields({**fields, "file_hash": HASH.upper()}, LIMITS)
    assert said == Submission(
        session_id="session_123", chunk_index=9, total_chunks=10, file_hash=HASH, priority=5
    )
    assert said.as_form() == Form(session_id="session_123", total_chunks=10)


def test_empty_fields_count_as_left_out() -> None:
    """A browser sends the empty inputs of its page too, and would be refused for them."""
    assert parse_fields(dict.fromkeys(form.FIELDS, " "), LIMITS) == Submission(priority=5)


NO_NUMBERS = ["-1", "+1", "1.0", "1e2", "0x1", "٣", "1_0", "one", "9" * 30, "1,1"]


@pytest.mark.parametrize(
    "fields",
    [
        *({"chunk_index": text, "total_chunks": "100"} for text in [*NO_NUMBERS, "100"]),
        *({"chunk_index": "0", "total_chunks": text} for text in [*NO_NUMBERS, "0", "101"]),
        *({"priority": text} for text in [*NO_NUMBERS, "0", "11"]),
        *({"file_hash": text} for text in ["ab", "g" * 64, HASH + "0", f"sha256:{HASH}"]),
        *({"session_id": text} for text in ["a b", "a/b", "ü", "a" * 129, "a\0", "a:b", "%41"]),
        *({"options": text} for text in ["[]", "7", "null", '"a"', "{", '{"a": NaN}', "a=b"]),
        {"options": '{"a":' * 500 + "1" + "}" * 500},
        {"options": '{"a":' + "[" * 40 + "]" * 40 + "}"},
        {"chunk_index": "5", "total_chunks": "5"},
        {"total_chunks": "5"},
    ],
)
def test_bad_fields_are_refused(fields: dict[str, str]) -> None:
    """A number that is none, or a field that others cannot carry, would spoil the session."""
    with pytest.raises(InvalidRequest):
        parse_fields(fields, LIMITS)


@pytest.mark.parametrize("name", ["a", "A" * 128, "video-1.mp4_x", ".", "..", "0"])
def test_session_ids_that_clients_bring(name: str) -> None:
    """Contract, `POST /v1/upload/video`: 1 to 128 of `A-Za-z0-9._-`."""
    assert parse_fields({"session_id": name}, LIMITS).session_id == name


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ('form-data; name="file"; filename="a.mp4"', {"name": "file", "filename": "a.mp4"}),
        ("form-data; name=file; filename=a.mp4", {"name": "file", "filename": "a.mp4"}),
        (
            'form-data; name="file"; filename="a%22b.mp4"',
            {"name": "file", "filename": 'a"b.mp4'},
        ),
        ('form-data; name="file"; filename="a\\"b"', {"name": "file", "filename": 'a"b'}),
        (
            'form-data; name="file"; filename="C:\\a.mp4"',
            {"name": "file", "filename": "C:\\a.mp4"},
        ),
        ('form-data; name="file"; filename="a;b.mp4"', {"name": "file", "filename": "a;b.mp4"}),
        ('form-data; NAME="file"; filename=""', {"name": "file", "filename": ""}),
        (
            "form-data; name=\"file\"; filename*=utf-8''%C3%BC.mp4",
            {"name": "file", "filename": "ü.mp4", "filename*": "utf-8''%C3%BC.mp4"},
        ),
        ("", {}),
        ("form-data", {}),
        ('form-data; name="file', {"name": ""}),
    ],
)
def test_dispositions_as_clients_write_them(header: str, found: dict[str, str]) -> None:
    """A browser, curl and requests each quote in their own way; none may lose its file."""
    assert disposition(header) == found


# What does not fit its session.


@pytest.mark.parametrize(
    ("total", "said"),
    [
        (0, Submission(chunk_index=0, total_chunks=3, priority=5)),
        (3, Submission(priority=5)),
        (3, Submission(chunk_index=0, total_chunks=4, priority=5)),
        (3, Submission(chunk_index=0, file_hash="cd" * 32, priority=5)),
    ],
)
def test_form_that_contradicts_its_session(total: int, said: Submission) -> None:
    """Two clients that use one name for different files would make a file of both."""
    with pytest.raises(SessionMismatch):
        form.check_place(said, replace(of_total(total), expected={"sha256": HASH}))


def test_form_that_fits_its_session() -> None:
    """A client need not repeat what it said when it opened the session."""
    for said in (
        Submission(chunk_index=2, priority=5),
        Submission(chunk_index=2, total_chunks=3, file_hash=HASH, priority=9),
    ):
        form.check_place(said, replace(of_total(3), expected={"sha256": HASH}))
    with pytest.raises(InvalidRequest):
        form.check_place(Submission(chunk_index=3, priority=5), of_total(3))


def test_other_bytes_for_a_place_that_is_taken() -> None:
    """Contract: a repeated chunk with the same bytes is accepted, with other bytes refused."""
    form.check_same_bytes(HASH, chunk(0))
    with pytest.raises(ChunkConflict) as refused:
        form.check_same_bytes("cd" * 32, chunk(0))
    assert (refused.value.status, refused.value.error_code) == (409, "CHUNK_CONFLICT")


def test_room_for_a_chunk() -> None:
    """A file whose chunks are each small enough could be as large as all of them together."""
    there = [chunk(0, 600), chunk(1, 300)]
    form.check_room(there, 2, 100, 1000)
    form.check_room(there, 0, 700, 1000)  # it takes the place of what is counted
    form.check_room(there, 2, 10**9, 0)
    with pytest.raises(PayloadTooLarge):
        form.check_room(there, 2, 101, 1000)


# How far a session is.


def test_state_of_the_session_in_the_seed_document() -> None:
    """Seed document 002, 'Session Status Endpoint': 5 of 10 chunks are 50.0 percent."""
    data = data_of(of_total(10), [chunk(one) for one in (0, 2, 4, 6, 8)], 0)
    assert (data.total_chunks, data.chunks_received) == (10, 5)
    assert (data.progress_percentage, data.status) == (50.0, "active")
    assert data.missing_chunks == [1, 3, 5, 7, 9]
    assert status_code_of(data) == 202


def test_state_of_a_complete_session() -> None:
    """Once its chunks are joined they are gone, and none of them may seem to be missing."""
    before = of_total(3)
    data = data_of(before.after("completed", completed(before.upload_id, 2)), (), 30)
    assert (data.status, data.progress_percentage, data.chunks_received) == (
        "completed",
        100,
        3,
    )
    assert (data.missing_chunks, data.video_id) == ([], before.upload_id)
    assert data.analysis_id == before.facts.job_id
    assert status_code_of(data) == 201


def test_state_of_a_cancelled_session() -> None:
    """A client that polls must see the end, and not a session that lost its chunks."""
    before = of_total(3)
    data = data_of(before.after("cancelled", cancelled(before.upload_id, 2)), (), 0)
    assert (data.status, data.video_id, data.redirect_url) == ("cancelled", None, None)


@given(st.integers(1, 100).flatmap(lambda n: st.tuples(st.just(n), st.permutations(range(n)))))
def test_any_order_of_chunks(total_and_order: tuple[int, list[int]]) -> None:
    """Whatever order chunks come in, what is missing and what is there make up the file."""
    total, order = total_and_order
    sidecar, there, before = of_total(total), list[Chunk](), 0.0
    for index in order:
        there.append(chunk(index, size=7 if index == total - 1 else 10))
        data = data_of(sidecar, there, 0)
        received = {one.index for one in there}
        assert sorted(received | set(data.missing_chunks)) == list(range(total))
        assert not received & set(data.missing_chunks)
        assert before <= data.progress_percentage < 100
        before = data.progress_percentage
    assert not data_of(sidecar, there, 0).missing_chunks


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=20), st.integers(0, 20))
def test_percentage_of_bytes_never_goes_back(sizes: list[int], more: int) -> None:
    """Chunks of very different sizes would make a progress bar jump back and forth."""
    total, before = len(sizes) + more, 0.0
    for count in range(1, len(sizes) + 1):
        there = [chunk(one, sizes[one]) for one in range(count)]
        size, offset = form.estimated_size(there, total), sum(sizes[:count])
        assert size is not None
        assert size >= offset
        percentage = percent_of(offset, size, complete=False)
        assert percentage >= min(before, 99.99)
        before = percentage
    assert form.estimated_size([], total) is None


def test_options_keep_their_numbers() -> None:
    """Options are carried by every event: what is read must be what was written."""
    text = '{"a": [1, 2.5, true, null, "ü"], "b": {"c": 18446744073709551616}}'
    assert parse_fields({"options": text}, LIMITS).options == json.loads(text)
