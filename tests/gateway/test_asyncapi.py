"""The AsyncAPI document: sound in itself, and true of what is really sent and understood."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, Final

import aiohttp
import jsonschema
import msgspec
import pytest

from services.gateway.asyncapi import document
from services.gateway.dialects import ALL, Dialect
from services.gateway.dialects.protocol import (
    GetStats,
    Malformed,
    Ping,
    Subscribe,
    Unsubscribe,
)
from services.gateway.folding import change_of, change_of_position, fold, move
from services.gateway.state import Change, ProgressState
from shared import events
from shared.events import JobProgress, LifecycleEvent
from shared.streams import pack_positions
from tests.gateway.dialects.harness import said
from tests.gateway.samples import ADA, START, Told
from tests.processes import ServiceProcess

WHOLE: Final = document(ALL)
NAME: Final = re.compile(r"[\w.-]+", re.ASCII)
DOCUMENTED: Final = [one for one in ALL if (one.sends or one.receives) and not one.resumable]
"""Those that are resumable pass events on; ``test_events_dialect`` has their messages."""
ANSWERS: Final[dict[type, tuple[str, dict[str, Any]]]] = {
    Subscribe: ("subscribed", {}),
    Unsubscribe: ("unsubscribed", {}),
    Ping: ("pong", {}),
    GetStats: ("stats", {"subscriptions": 3}),
}
"""What the answer to each request is made of."""


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects in a document."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from nodes(one)


def resolved(reference: str, whole: Any = WHOLE) -> Any:
    """Return what a reference leads to."""
    assert reference.startswith("#/")
    found = whole
    for part in reference[2:].split("/"):
        found = found[part]
    return found


def test_every_reference_leads_somewhere() -> None:
    """A reference that does not resolve makes the document useless to every tool."""
    references = [one["$ref"] for one in nodes(WHOLE) if isinstance(one.get("$ref"), str)]
    assert len(references) > 50
    for one in references:
        assert resolved(one)


def test_rules_of_asyncapi() -> None:
    """What AsyncAPI 3.0 demands of a document, as far as its text can be checked."""
    assert WHOLE["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= WHOLE["info"].keys()
    for server in WHOLE["servers"].values():
        assert {"host", "protocol"} <= server.keys()
        assert set(re.findall(r"{(\w+)}", server["host"])) == server["variables"].keys()
    parts = [WHOLE[key] for key in ("servers", "channels", "operations")]
    for key in itertools.chain.from_iterable((*parts, *WHOLE["components"].values())):
        assert NAME.fullmatch(key)
    for channel in WHOLE["channels"].values():
        assert set(re.findall(r"{(\w+)}", channel["address"])) == channel["parameters"].keys()
        assert not set("?#") & set(channel["address"])
        for server in channel["servers"]:
            assert server["$ref"].startswith("#/servers/")
    for name, operation in WHOLE["operations"].items():
        assert operation["action"] in {"send", "receive"}
        channel = operation["channel"]["$ref"]
        assert channel.startswith("#/channels/")
        assert operation["messages"], name
        for message in operation["messages"]:
            assert message["$ref"].startswith(f"{channel}/messages/")


def test_names_are_unique() -> None:
    """Each message of the components is used, under one name."""
    used = {
        one["$ref"].rpartition("/")[2]
        for channel in WHOLE["channels"].values()
        for one in channel["messages"].values()
    }
    assert used == WHOLE["components"]["messages"].keys()


def test_schemas_are_of_draft_07() -> None:
    """AsyncAPI reads schemas as draft 07: what is newer would be ignored without a word."""
    for schema in WHOLE["components"]["schemas"].values():
        jsonschema.Draft7Validator.check_schema(schema)
    for message in WHOLE["components"]["messages"].values():
        jsonschema.Draft7Validator.check_schema(message["payload"])
    assert not any(
        "prefixItems" in one or isinstance(one.get("discriminator"), dict)
        for one in nodes(WHOLE["components"])
    )


def test_every_path_is_a_channel() -> None:
    """A dialect that is added, or a path, is described without further ado."""
    addresses = {one["address"] for one in WHOLE["channels"].values()}
    paths = {path for dialect in ALL for path in dialect.paths}
    assert addresses == {*paths, "events:{partition}", "progress:{partition}"}


def closed(schema: Any) -> Any:
    """Return a schema that allows no member which it does not name."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if "properties" in found and found.get("type") == "object":
        found["additionalProperties"] = False
    return found


CLOSED: Final = closed(WHOLE["components"])


def matching(dialect: Dialect, message: Any, direction: str = "sends") -> list[str]:
    """Return the documented messages that a message could be, every member of it told of."""
    found = []
    for kind in getattr(dialect, direction):
        payload = CLOSED["messages"][f"{dialect.name}.{kind.__name__}"]["payload"]
        validator = jsonschema.Draft7Validator({**payload, "components": CLOSED})
        if validator.is_valid(message):
            found.append(kind.__name__)
    return found


def cached(told: Told) -> LifecycleEvent:
    """The same bytes were processed before."""
    return told.duplicate(cached_result={"rows": 3})


def stage(told: Told) -> JobProgress:
    """The worker does something else now."""
    return told.processing(50.0, stage="rows", message="Half of it", current=1, total=2)


ENDS: Final = (
    *((Told.completed,), (Told.failed,), (Told.cancelled,), (Told.expired,)),
    *((Told.duplicate,), (cached,)),
    (Told.completed, Told.started, stage, lambda told: told.processing(60.0), Told.processed),
    (Told.completed, Told.started, Told.broken),
)


def states() -> Iterator[tuple[Change, ProgressState]]:
    """Yield changes with the states after them, of uploads that end in every way."""
    for end, size in itertools.product(ENDS, (1000, None)):
        told = Told(size=size)
        state = fold(None, told.created())
        assert state is not None
        yield from ((Change.CREATED, state), (Change.SNAPSHOT, state))
        moving = move(state, told.position(5, at=START + 500, speed=100.0))
        assert moving is not None
        yield from ((Change.PROGRESS, moving), (Change.SNAPSHOT, moving))
        for step in (*end, Told.stored, Told.queued, Told.deleted):
            event = step(told)
            if isinstance(event, JobProgress):
                newer = move(state, event)
                change = change_of_position(event, state, newer or state)
            else:
                newer, change = fold(state, event), change_of(event)
            if newer is not None:
                state = newer
                yield from ((change, state), (Change.SNAPSHOT, state))


@pytest.mark.parametrize("dialect", DOCUMENTED, ids=lambda one: one.name)
def test_what_is_sent_is_documented(dialect: Dialect) -> None:
    """Each message that is really encoded is one of those, and each of those is really sent."""
    sent = [json.dumps(one) for moment in states() for one in said(dialect, *moment)]
    beat = dialect.heartbeat()
    sent += [beat.decode()] if beat is not None else []
    answers: dict[str, dict[str, Any]] = {
        "authenticated": {"message": "Authentication successful"},
        "error": {"message": "No."},
    }
    for asked in messages_of_clients(dialect):
        request = dialect.parse(json.dumps(asked)).request
        if request is not None:
            kind, data = ANSWERS[type(request)]
            answers[kind] = request.data if isinstance(request, Ping) else data
    sent += [
        dialect.reply(kind, subject="x", caller=caller, data=data).decode()
        for kind, data in answers.items()
        for caller in (ADA, None)
    ]
    met: set[str] = set()
    for payload in sent:
        found = matching(dialect, json.loads(payload))
        assert len(found) == 1, payload
        met.update(found)
    assert met == {one.__name__ for one in dialect.sends}


def example_of(schema: Any) -> Any:
    """Return something that a schema allows."""
    if "$ref" in schema:
        return example_of(resolved(schema["$ref"]))
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return example_of(schema["anyOf"][0])
    if schema["type"] == "object":
        return {name: example_of(one) for name, one in schema.get("properties", {}).items()}
    if schema["type"] == "array":
        return [example_of(schema["items"])] if isinstance(schema.get("items"), dict) else []
    return {"string": "abc", "integer": 1, "number": 1.5, "boolean": True}[schema["type"]]


def messages_of_clients(dialect: Dialect) -> Iterator[dict[str, Any]]:
    """Yield each message that a client may send, with and without what is optional."""
    for kind in dialect.receives:
        name = f"{dialect.name}.{kind.__name__}"
        schema = WHOLE["components"]["messages"][name]["payload"]
        whole = example_of(schema)
        yield whole
        required = resolved(schema["$ref"])["required"]
        yield {key: value for key, value in whole.items() if key in required}


@pytest.mark.parametrize("dialect", DOCUMENTED, ids=lambda one: one.name)
def test_what_is_documented_is_understood(dialect: Dialect) -> None:
    """Each message that a client may send is obeyed, with and without its optional members."""
    for message in messages_of_clients(dialect):
        parsed = dialect.parse(json.dumps(message))
        assert not isinstance(parsed.request, Malformed), message
        assert parsed.request is not None or parsed.token is not None


def entry_schema(name: str) -> tuple[Any, dict[str, Any]]:
    """Return what validates the fields of an entry, and the schemas of the JSON in them."""
    payload = WHOLE["components"]["messages"][name]["payload"]
    inside = {
        key: {**one["contentSchema"], "components": WHOLE["components"]}
        for key, one in payload["properties"].items()
        if "contentSchema" in one
    }
    return payload, inside


@pytest.mark.parametrize(
    "step", ["created", "completed", "failed", "duplicate", "stored", "queued", "deleted"]
)
def test_lifecycle_entries(step: str) -> None:
    """What a producer writes for an event is what the document says."""
    told = Told()
    event = getattr(told, step)()
    payload, inside = entry_schema(str(type(event).__struct_config__.tag))
    text = events.encode(event).decode()
    jsonschema.Draft7Validator(payload).validate({"i": told.id, "d": text})
    jsonschema.Draft7Validator(inside["d"]).validate(json.loads(text))
    broken = {**json.loads(text), "seq": 0}
    assert not jsonschema.Draft7Validator(inside["d"]).is_valid(broken)


def test_progress_entries() -> None:
    """What a producer writes for positions is what the document says, of jobs too."""
    job = JobProgress(upload_id="a", job_id="j", seq=1, at=START, progress=5.0)
    flat = pack_positions("me", 7, [Told().position(5), Told(size=None).position(9), job])
    texts = [one.decode() if isinstance(one, bytes) else str(one) for one in flat]
    fields = dict(zip(texts[::2], texts[1::2], strict=True))
    payload, inside = entry_schema("positions")
    assert inside.keys() <= fields.keys()
    assert fields.keys() == payload["properties"].keys()
    jsonschema.Draft7Validator(payload).validate(fields)
    for key, schema in inside.items():
        jsonschema.Draft7Validator(schema).validate(json.loads(fields[key]))
        assert not jsonschema.Draft7Validator(schema).is_valid([["x"]])


async def test_served_to_anyone(gateway: ServiceProcess) -> None:
    """It is public, and not sent again to who has it."""
    url = f"{gateway.url}/asyncapi.json"
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")
        assert msgspec.json.decode(await answer.read()) == json.loads(json.dumps(WHOLE))
        known = {"If-None-Match": answer.headers["ETag"]}
        async with http.get(url, headers=known) as again:
            assert again.status == 304
