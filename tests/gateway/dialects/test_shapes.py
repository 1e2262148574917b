"""All five documents at once: nothing of them is untested, and nothing else is ever said."""

from __future__ import annotations

import json
from collections import Counter
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.gateway.dialects import ALL, Dialect
from services.gateway.dialects.protocol import Message, Subscribe, Unsubscribe
from services.gateway.folding import change_of, change_of_position, fold, move
from services.gateway.state import Change
from shared.events import JobProgress, UploadProgress
from tests.gateway.dialects import (
    test_dashboard,
    test_jobs,
    test_media,
    test_pipeline,
    test_processing,
)
from tests.gateway.dialects.harness import Step, at, said, working
from tests.gateway.dialects.shapes import SHAPES, Shape, faults_in, shape_of
from tests.gateway.samples import ADA, Told

TABLES: Final = {
    one.TABLE.dialect.name: one.TABLE
    for one in (test_dashboard, test_media, test_pipeline, test_processing, test_jobs)
}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda one: f"{one.line} {[*one.marks.values()]}")
def test_no_shape_is_untested(shape: Shape) -> None:
    """Each shape of a document stands in the table of its dialect, with its line."""
    cited = [message for line, message in TABLES[shape.dialect].cited() if line == shape.line]
    assert any(not faults_in(shape, message) for message in cited), cited


def test_no_line_is_cited_for_nothing() -> None:
    """Each line that a table cites is one of a shape, or of what all of them share."""
    lines = {one.line for one in SHAPES} | {"000:179", "000:193", "004:17"}
    cited = {line for table in TABLES.values() for line, _ in table.cited()}
    assert cited <= lines


def test_the_documents_are_whole() -> None:
    """The count of their shapes, so that none is lost from the list without a word."""
    assert Counter(one.dialect for one in SHAPES) == {
        "dashboard": 8,
        "media": 4,
        "pipeline": 12,
        "processing": 13,
        "jobs": 12,
    }


STEPS: Final[dict[str, Step]] = {
    "completed": Told.completed,
    "duplicate": Told.duplicate,
    "cached": lambda told: told.duplicate(cached_result={"a": 1}),
    "failed": Told.failed,
    "cancelled": Told.cancelled,
    "expired": Told.expired,
    "stored": Told.stored,
    "deleted": Told.deleted,
    "queued": Told.queued,
    "started": Told.started,
    "validating": lambda told: told.started(stage="validating"),
    "processed": lambda told: told.processed(result={"rows": 1}),
    "broken": Told.broken,
    "bytes": at(1000, 10.0),
    "half": working(50.0, stage="half", message="Half", current=1, total=2),
    "more": working(60.0),
}


@pytest.mark.parametrize("dialect", TABLES)
@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=8))
@example(["queued", "validating", "half", "more", "processed", "deleted"])
@example(["queued", "half", "deleted", "broken"])
def test_nothing_else_is_ever_said(dialect: str, names: list[str]) -> None:
    """Whatever happens to an upload, in whatever order, each message is of a known shape."""
    spoken, told = TABLES[dialect].dialect, Told()
    state, change = fold(None, told.created()), Change.CREATED
    for name in ("", *names):
        event = STEPS[name](told) if name else None
        assert state is not None
        if isinstance(event, UploadProgress | JobProgress):
            after = move(state, event)
            change = change_of_position(event, state, after or state)
        elif event is not None:
            after, change = fold(state, event), change_of(event)
        else:
            after = state
        state = after or state
        late = said(spoken, Change.SNAPSHOT, state)
        assert late, "somebody who comes late must see something"
        for message in (*late, *(said(spoken, change, state) if after else ())):
            shape = shape_of(dialect, message)
            assert shape is not None, message
            assert faults_in(shape, message) == []


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner)),
    max_leaves=8,
)
KINDS = sorted({one.marks["type"] for one in SHAPES if not one.to_client and one.marks})
MESSAGES = st.dictionaries(
    st.sampled_from(["type", "session_id", "job_id", "token", "timestamp", "x"]),
    st.one_of(JSON, st.sampled_from(KINDS)),
)


@pytest.mark.parametrize("dialect", ALL, ids=lambda one: one.name)
@given(st.one_of(st.text(), MESSAGES.map(json.dumps), JSON.map(json.dumps)))
@example("[" * 60_000)
@example('{"type":' * 8_000)
@example('{"type":"\\ud800","session_id":"\\ud800","token":"\\ud800"}')
@example('{"type":"subscribe_session","session_id":"\\u0000"}')
@example('{"type":"ping","timestamp":1e999}')
@example('{"type":{"type":[]}}')
def test_hostile_messages_never_raise(dialect: Dialect, text: str) -> None:
    """Whatever text arrives, it is a message; and what it names can be told back."""
    message = dialect.parse(text)
    assert isinstance(message, Message)
    if isinstance(message.request, Subscribe | Unsubscribe):
        for subject in message.request.ids:
            assert dialect.reply("subscribed", subject=subject, caller=ADA, data={})


def test_paths() -> None:
    """The paths are those of the documents, and each is spoken on by one dialect of them."""
    paths = {name: table.dialect.paths for name, table in TABLES.items()}
    assert paths == {
        "dashboard": (  # 000:63 and 64
            "/ws/upload-progress",
            "/ws/upload-progress/{upload_id}",
        ),
        "media": ("/api/v1/ws/{upload_id}",),  # 001:14
        "pipeline": ("/ws",),  # 002:382
        "processing": (  # 003:53; without the last slash by the contract
            "/ws/processing/{upload_id}",
            "/ws/processing/{upload_id}/",
        ),
        "jobs": ("/progress/ws/{job_id}",),  # 004:92
    }
    assert paths.keys() <= {one.name for one in ALL}
