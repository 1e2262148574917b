"""The durable record of an upload: its rules, and files that are damaged or newer."""

from __future__ import annotations

import contextlib
import json
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from shared.sidecar import SidecarDamaged, decode, encode, is_upload_id, new_id
from tests.shared.samples import FACTS, cancelled, completed, created, new_sidecar


def test_a_record_comes_back_as_it_was() -> None:
    """Writing and reading a record changes nothing, its outbox included."""
    one = new_sidecar()
    done = one.after("completed", completed(one.upload_id), completed_at=5)
    assert decode(encode(done)) == done
    assert [event.seq for event in done.outbox] == [1, 2]


def test_a_change_and_its_event_are_one_record() -> None:
    """The record after an event has its state and its facts, and expects the next event."""
    one = new_sidecar()
    size = replace(FACTS, size=77)
    event = replace(completed(one.upload_id), upload=size)
    done = one.after("completed", event, completed_at=5)
    assert (done.status, done.size, done.completed_at, done.next_seq) == ("completed", 77, 5, 3)
    assert one.next_seq == 2


@pytest.mark.parametrize("seq", [0, 1, 3])
def test_an_event_out_of_turn_is_refused(seq: int) -> None:
    """The events of an upload are numbered without holes."""
    one = new_sidecar()
    event = replace(completed(one.upload_id), seq=seq)
    with pytest.raises(ValueError, match="does not follow 1"):
        one.after("completed", event)


def test_the_first_event_has_number_one() -> None:
    """A record with no event yet waits for the first."""
    one = replace(new_sidecar(), outbox=())
    assert one.next_seq == 1
    assert one.after("created", created(one.upload_id)).next_seq == 2


def test_only_ends_without_a_file_leave_a_tombstone() -> None:
    """A failed or completed upload still answers; a cancelled one is gone."""
    one = new_sidecar()
    assert not one.is_gone
    assert not one.after("completed", completed(one.upload_id)).is_gone
    assert not replace(one, status="failed").is_gone
    for status in ("cancelled", "expired", "deleted"):
        assert one.after(status, cancelled(one.upload_id)).is_gone


def test_a_record_cut_short_anywhere_is_damaged() -> None:
    """No prefix of a record passes for a record."""
    content = encode(new_sidecar())
    for length in range(len(content)):
        with pytest.raises(SidecarDamaged):
            decode(content[:length])


@given(st.data())
def test_a_record_with_a_wrong_byte_never_crashes_its_reader(data: st.DataObject) -> None:
    """Bit rot gives a record or ``SidecarDamaged``, nothing else."""
    content = bytearray(encode(new_sidecar()))
    where = data.draw(st.integers(0, len(content) - 1))
    content[where] = data.draw(st.integers(0, 255))
    with contextlib.suppress(SidecarDamaged):
        decode(bytes(content))


@given(st.binary(max_size=100))
def test_any_bytes_are_damaged(content: bytes) -> None:
    """What is no record is said to be damaged."""
    with pytest.raises(SidecarDamaged):
        decode(content)


def test_endless_nesting_is_damaged() -> None:
    """A record made to exhaust the stack is damaged like any other broken one."""
    content = encode(new_sidecar())
    with pytest.raises(SidecarDamaged):
        decode(content[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def test_fields_of_a_newer_build_are_ignored() -> None:
    """Old and new builds meet on one disk."""
    one = new_sidecar()
    fields = {**json.loads(encode(one)), "later": {"a": [1]}}
    assert decode(json.dumps(fields).encode()) == one


def test_new_ids_are_ids_and_differ() -> None:
    """An id is a random UUID in its canonical form."""
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(is_upload_id(one) and uuid.UUID(one).version == 4 for one in ids)


GOOD = "0b7f7a52-63a5-4b8e-9d4c-6d5f0c1a2b3c"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "../" + GOOD,
        GOOD + "/..",
        GOOD + "\n",
        GOOD + "\0",
        GOOD + ".info",
        GOOD.upper(),
        GOOD.replace("-", ""),
        "{" + GOOD + "}",
        "urn:uuid:" + GOOD,
        GOOD[:-1] + "g",
        GOOD[:-1] + "\u0663",
        GOOD[:-1],
        " " + GOOD,
    ],
)
def test_other_spellings_are_no_ids(text: str) -> None:
    """One upload has one name; what could leave its folder is no name."""
    assert is_upload_id(GOOD)
    assert not is_upload_id(text)


@given(st.text(max_size=40))
def test_no_text_but_a_uuid_is_an_id(text: str) -> None:
    """Arbitrary text is an id only if it reads back as the same UUID."""
    if is_upload_id(text):
        assert str(uuid.UUID(text)) == text
