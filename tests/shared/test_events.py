"""The wire contract: golden samples, what newer and broken writers send, and any event."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import events
from shared.events import Event, LifecycleEvent, MalformedEvent, UnknownEvent

GOLDEN: Final = Path(__file__).with_name("golden")
UPLOAD: Final = "0b7f7a52-63a5-4b8e-9d4c-6d5f0c1a2b3c"
JOB: Final = "6f9b2c1e-4f57-4f7e-9c55-0f3d3b8f2a11"
FACTS: Final = events.UploadFacts(
    user_id="ada",
    tenant="acme",
    created_at=1_735_732_800_250,
    job_id=JOB,
    size=1_048_576,
    filename="Häuser am See.mp4",
    content_type="video/mp4",
    metadata={"filename": "Häuser am See.mp4", "project": "42"},
)
EMPTY_FACTS: Final = events.UploadFacts(user_id="u", tenant="t", created_at=0, job_id="j")


def lifecycle(seq: int, offset: int = 1_048_576) -> dict[str, Any]:
    """Return what every lifecycle event carries."""
    return {
        "upload_id": UPLOAD,
        "seq": seq,
        "at": 1_735_732_801_000 + seq,
        "upload": FACTS,
        "offset": offset,
    }


def job(seq: int) -> dict[str, Any]:
    """Return what every event of a job carries."""
    return {**lifecycle(seq), "job_id": JOB, "stage": "thumbnails", "message": "3 of 9"}


SAMPLES: Final[dict[str, Event]] = {
    "upload.created": events.UploadCreated(**lifecycle(1, 0)),
    "upload.created.least": events.UploadCreated(
        upload_id=UPLOAD, seq=1, at=0, upload=EMPTY_FACTS
    ),
    "upload.progress": events.UploadProgress(
        upload_id=UPLOAD, seq=1, at=1_735_732_801_500, offset=4096, size=1_048_576, speed=8192.5
    ),
    "upload.progress.least": events.UploadProgress(upload_id=UPLOAD, seq=1, at=0, offset=0),
    "upload.completed": events.UploadCompleted(
        **lifecycle(2), redirect_url=f"/dashboard/videos/{UPLOAD}/results"
    ),
    "upload.failed": events.UploadFailed(
        **lifecycle(2, 512), error_code="HASH_MISMATCH", error_message="Not what was declared."
    ),
    "upload.cancelled": events.UploadCancelled(**lifecycle(2, 512)),
    "upload.expired": events.UploadExpired(**lifecycle(2, 512)),
    "upload.duplicate": events.UploadDuplicate(
        **lifecycle(2, 0),
        original_id="c0ffee00-63a5-4b8e-9d4c-6d5f0c1a2b3c",
        cached_result={"frames": 240, "labels": ["house", "lake"]},
    ),
    "file.stored": events.FileStored(**lifecycle(3), etag='"5d41402a"'),
    "file.deleted": events.FileDeleted(**lifecycle(4)),
    "job.queued": events.JobQueued(**job(4)),
    "job.started": events.JobStarted(**job(5)),
    "job.progress": events.JobProgress(
        upload_id=UPLOAD,
        job_id=JOB,
        seq=5,
        at=1_735_732_806_100,
        progress=33.3,
        stage="thumbnails",
        message="3 of 9",
        current=3,
        total=9,
    ),
    "job.completed": events.JobCompleted(**job(6), result={"frames": 240}),
    "job.failed": events.JobFailed(**job(6), error_code="DECODER_CRASHED"),
}
KINDS: Final = LifecycleEvent.__args__
ONE: Final[dict[str, Any]] = json.loads(msgspec.json.encode(SAMPLES["upload.completed"]))


def payload(**changes: Any) -> bytes:
    """Return a good payload with some fields changed; ``...`` takes a field away."""
    fields = {k: v for k, v in {**ONE, **changes}.items() if v is not ...}
    return json.dumps(fields).encode()


@pytest.mark.parametrize("name", SAMPLES)
def test_golden_samples_are_written_as_ever(name: str) -> None:
    """Each event is encoded to the JSON that older builds wrote."""
    golden = json.loads((GOLDEN / f"{name}.json").read_bytes())
    assert json.loads(msgspec.json.encode(SAMPLES[name])) == golden


@pytest.mark.parametrize("name", SAMPLES)
def test_golden_samples_are_still_read(name: str) -> None:
    """What older builds wrote is read with every field where it was."""
    sample = SAMPLES[name]
    golden = (GOLDEN / f"{name}.json").read_bytes()
    if isinstance(sample, KINDS):
        assert events.decode(golden) == sample
    else:
        assert msgspec.json.decode(golden, type=type(sample)) == sample


def test_every_event_has_a_golden_sample() -> None:
    """No event joins the contract without a sample, and no sample is left over."""
    tags = {kind.__struct_config__.tag for kind in Event.__args__}
    assert tags <= SAMPLES.keys()
    assert {path.stem for path in GOLDEN.glob("*.json")} == SAMPLES.keys()


def test_tags_are_the_names_of_the_contract() -> None:
    """The fourteen names are final."""
    tags = {str(kind.__struct_config__.tag) for kind in Event.__args__}
    uploads = {"created", "progress", "completed", "failed", "cancelled", "expired"}
    jobs = {"queued", "started", "progress", "completed", "failed"}
    assert tags == {
        *(f"upload.{name}" for name in (*uploads, "duplicate")),
        *(f"job.{name}" for name in jobs),
        "file.stored",
        "file.deleted",
    }


def test_added_fields_are_ignored() -> None:
    """A newer writer may add fields anywhere."""
    facts = {**ONE["upload"], "colour": {"depth": [1, 2]}}
    assert events.decode(payload(upload=facts, later=[None, {}])) == SAMPLES["upload.completed"]


def test_fields_with_a_default_may_be_missing() -> None:
    """An older writer knows fewer fields."""
    event = events.decode(payload(redirect_url=..., offset=...))
    assert event.offset == 0
    assert isinstance(event, events.UploadCompleted)
    assert event.redirect_url == ""


def test_defaults_are_not_written() -> None:
    """An event carries no field that says nothing."""
    fields = json.loads(events.encode(events.UploadCreated(**lifecycle(1, 0))))
    assert "offset" not in fields


@pytest.mark.parametrize("tag", ["upload.paused", "", "UPLOAD.CREATED", "upload.created "])
def test_an_unknown_tag_is_told_apart(tag: str) -> None:
    """An event of a newer build is skipped, whatever else it holds."""
    for fields in (payload(type=tag), json.dumps({"type": tag}).encode()):
        with pytest.raises(UnknownEvent) as caught:
            events.decode(fields)
        assert str(caught.value) == tag


@pytest.mark.parametrize("name", ["upload.progress", "job.progress"])
def test_positions_are_no_lifecycle_events(name: str) -> None:
    """A position on a lifecycle stream is skipped, as it has no place there."""
    with pytest.raises(UnknownEvent):
        events.decode((GOLDEN / f"{name}.json").read_bytes())


@pytest.mark.parametrize("field", ["upload_id", "seq", "at", "upload"])
def test_a_missing_required_field_is_malformed(field: str) -> None:
    """An event that cannot say what it is about is its writer's fault."""
    with pytest.raises(MalformedEvent, match=r"upload\.completed"):
        events.decode(payload(**{field: ...}))


@pytest.mark.parametrize(
    "changes",
    [
        {"seq": 0},
        {"seq": -1},
        {"seq": 1.5},
        {"seq": "1"},
        {"seq": None},
        {"at": -1},
        {"offset": -1},
        {"upload_id": 7},
        {"upload": []},
        {"upload": {**ONE["upload"], "size": -1}},
        {"upload": {**ONE["upload"], "metadata": {"a": 1}}},
        {"type": 5},
        {"type": None},
        {"type": ...},
    ],
)
def test_a_field_of_the_wrong_kind_is_malformed(changes: dict[str, Any]) -> None:
    """Values outside what a field may hold are refused, not guessed at."""
    with pytest.raises(MalformedEvent):
        events.decode(payload(**changes))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'"upload.created"',
        b"\xff\xfe",
        b'{"type":"\xff"}',
        b'{"type":"upload.created"',
        b'{"type":"\\ud800"}',
        payload()[:-1],
        payload() + b"x",
        payload(seq=...)[:-1] + b',"seq":' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_event_is_malformed(content: bytes) -> None:
    """Broken JSON, broken UTF-8 and huge numbers have one and the same name."""
    with pytest.raises(MalformedEvent):
        events.decode(content)


@pytest.mark.parametrize("where", ["later", "result"])
def test_endless_nesting_is_malformed(where: str) -> None:
    """A payload made to exhaust the stack is refused like any other broken one."""
    deep = b"[" * 100_000 + b"]" * 100_000
    fields = json.dumps({**ONE, "type": "job.completed", "job_id": "j"}).encode()
    with pytest.raises(MalformedEvent):
        events.decode(fields[:-1] + b',"%s":{"a":%s}}' % (where.encode(), deep))


@given(st.binary(max_size=200))
def test_any_bytes_give_one_of_two_errors(content: bytes) -> None:
    """Nothing that stands on a stream can raise what a reader does not expect."""
    with pytest.raises((MalformedEvent, UnknownEvent)):
        events.decode(content)


JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.sampled_from(sorted({*ONE, "job_id", "result", "type"})), JSON)
def test_any_value_in_any_field_is_read_or_refused(field: str, value: Any) -> None:
    """A field with an unexpected value is either good or malformed, never a crash."""
    try:
        event = events.decode(payload(**{field: value}))
    except (MalformedEvent, UnknownEvent):
        return
    assert events.decode(events.encode(event)) == event


TEXT: Final = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
COUNT: Final = st.integers(0, 2**63 - 1)
ANY_FACTS: Final = st.builds(
    events.UploadFacts,
    user_id=TEXT,
    tenant=TEXT,
    created_at=COUNT,
    job_id=TEXT,
    size=st.none() | COUNT,
    filename=TEXT,
    content_type=TEXT,
    metadata=st.dictionaries(TEXT, TEXT, max_size=3),
)
RESULT: Final = st.dictionaries(TEXT, TEXT | st.integers(-(2**53), 2**53), max_size=3)


def any_event(kind: Any) -> st.SearchStrategy[LifecycleEvent]:
    """Return a strategy for all events of one kind."""
    by_name: dict[str, st.SearchStrategy[Any]] = {
        "seq": st.integers(1, 2**53),
        "at": COUNT,
        "offset": COUNT,
        "upload": ANY_FACTS,
        "result": RESULT,
        "cached_result": st.none() | RESULT,
    }
    names = [field.name for field in msgspec.structs.fields(kind)]
    return st.builds(kind, **{name: by_name.get(name, TEXT) for name in names})


@given(st.one_of([any_event(kind) for kind in KINDS]))
def test_every_event_comes_back_as_it_was(event: LifecycleEvent) -> None:
    """Writing and reading an event changes nothing."""
    assert events.decode(events.encode(event)) == event
