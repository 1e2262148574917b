"""Requests that schemathesis makes of the document, good and bad, against real processes.

None is answered 5xx, and every answer is one that the document tells of: status, media type,
body and headers. Ids are mostly those of real uploads in all states, and callers all kinds of
people, so that requests get further than the first check.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import APIOperation, Case, GenerationMode, SerializationContext
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from docs import generate
from services.ingest.ietf import PARTIAL_TYPE
from services.ingest.tus import CHUNK_TYPE
from tests.api.systems import STATES, System, all_in_one, separate
from tests.processes import RedisServer

CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
Described: TypeAlias = APIOperation[Any, Any, Any, Any]
SCHEMA: Final = schemathesis.openapi.from_dict(generate.api_document())
# Made-up credentials beside the caller's are two, and no request would get any further.
SCHEMA.config.generation.update(with_security_parameters=False)
OPERATIONS: Final[Mapping[str, Described]] = {
    one.ok().label: one.ok() for one in SCHEMA.get_all_operations() if isinstance(one, Ok)
}
REACHED: Final = {
    "POST /api/v1/uploads": {201, 400},
    "PATCH /api/v1/uploads/{upload_id}": {204, 409},
    "HEAD /api/v1/uploads/{upload_id}": {200, 404},
    "GET /api/v1/uploads/{upload_id}": {204, 307, 404},
    "GET /api/v1/uploads/meta/{token}/status": {200, 404},
    "GET /v1/dashboard/upload/progress/{session_id}": {200, 404},
    "POST /v1/events/ticket": {201, 400},
    "DELETE /v1/dashboard/upload/progress/{session_id}": {204, 400, 404},
    "GET /v1/dashboard/upload/progress/user/{user_id}/sessions": {200, 400},
    "GET /api/v1/storage": {200, 400},
    "GET /api/v1/storage/{file_id}": {200, 404},
    "GET /api/v1/storage/{file_id}/meta": {200, 404},
    "DELETE /api/v1/storage/{file_id}": {204, 404},
    "POST /api/v1/storage/{file_id}/links": {201, 400, 404},
    "DELETE /api/v1/storage/{file_id}/links": {204, 404},
    "GET /api/v1/storage/{file_id}/shared": {403},
    "GET /api/v1/storage/{file_id}/artifacts": {200, 404},
    "GET /api/v1/storage/{file_id}/artifacts/{name}": {404},
}
"""What the requests must come to, so that they prove something."""

FOR_ADMINS: Final = {
    "GET /v1/dashboard/upload/progress/user/{user_id}/sessions",
    "GET /v1/dashboard/upload/progress/stats",
    "POST /v1/dashboard/upload/progress/cleanup",
}
"""What the local user may do without credentials, and other callers may not, or not always."""

EXAMPLES: Final = {
    "PATCH /api/v1/uploads/{upload_id}": 120,
    "GET /api/v1/uploads/{upload_id}": 120,
}
"""Requests to operations that so much must fit for that fewer would seldom reach all."""

LIKELY: Final = {
    "Upload-Offset": ("0", "5", "10"),
    "Upload-Length": ("0", "10", "1001"),
    "Range": ("bytes=0-1", "bytes=9-"),
    "If-Match": ("*",),
    "If-None-Match": ("*",),
    "If-Modified-Since": ("Wed, 21 Oct 2015 07:28:00 GMT",),
    "If-Unmodified-Since": ("Wed, 21 Oct 2015 07:28:00 GMT",),
    "If-Range": (),
}
"""Values that chance would hardly find."""

PROTOCOLS: Final = {
    "tus": {"Tus-Resumable": "1.0.0", "Content-Type": CHUNK_TYPE},
    "ietf": {"Upload-Complete": "?0", "Content-Type": PARTIAL_TYPE},
    "ietf, at the end": {"Upload-Complete": "?1", "Content-Type": PARTIAL_TYPE},
}
"""Headers that together make a request of one protocol, which chance would hardly find."""

BODILESS: Final = {"POST /api/v1/uploads", "PATCH /api/v1/uploads/{upload_id}"}
"""Where a 201 has a body only if the upload is complete: OpenAPI cannot say so."""

ANSWER_S: Final = 10
_ID_FORM: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


@schemathesis.serializer(CHUNK_TYPE, PARTIAL_TYPE)
def octets(_: SerializationContext, value: Any) -> Any:
    """Return a body of bytes as it goes out."""
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture(scope="module", params=[all_in_one, separate], ids=["all", "separate"])
def system(
    request: pytest.FixtureRequest,
    redis_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[System]:
    """Everything on one port for the local user; services of their own for many users."""
    with request.param(redis_server, tmp_path_factory.mktemp("api")) as one:
        yield one


def cases(operation: Described) -> st.SearchStrategy[Case[Any]]:
    """Return requests that fit the description, and ones that do not where that is possible."""
    good = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if not list(operation.iter_parameters()) and not operation.body:
        return good
    return good | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)


def aim(case: Case[Any], system: System, data: st.DataObject) -> None:
    """Point a request at an upload that there is, mostly, and at what can be said of it."""
    offset = "0"
    for name, value in case.path_parameters.items():
        if name == "kind":
            continue
        if name == "user_id":
            users = (system.user_id, "somebody%2Felse", value)
            case.path_parameters[name] = data.draw(st.sampled_from(users), label="user")
            continue
        state = data.draw(st.sampled_from(("complete", "generated", *STATES)), label="state")
        if state == "generated":
            # The gateway waits two seconds for an id that could come to be.
            if "storage" in case.path or not _ID_FORM.fullmatch(str(value)):
                continue
            state = "deleted"
        reads = case.method in {"GET", "HEAD", "OPTIONS"}
        case.path_parameters[name] = system.upload(state, anew=not reads)
        offset = "5" if "half" in state else "0"
    known = declared(case.operation)
    for name in sorted(LIKELY.keys() & known):
        values = ("left out", "left out", "as it is", *LIKELY[name])
        choice = data.draw(st.sampled_from(values), label=name)
        if choice == "left out":
            case.headers.pop(name, None)
        elif choice != "as it is":
            case.headers[name] = choice
    if {"Tus-Resumable", "Upload-Complete"} <= known:
        spoken = data.draw(st.sampled_from(("mixed", *PROTOCOLS)), label="protocol")
        if spoken != "mixed":
            for name in known:
                case.headers.pop(name, None)
            case.headers.update({**PROTOCOLS[spoken], "Upload-Offset": offset})


def declared(operation: Described) -> set[str]:
    """Return the headers that an operation knows."""
    return {one.name for one in operation.headers}


def exercise(system: System, operation: Described, examples: int) -> set[int]:
    """Send so many requests to an operation, and check each answer; return the statuses."""
    seen = set()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases(operation), data=st.data())
    def one(case: Case[Any], data: st.DataObject) -> None:
        aim(case, system, data)
        caller = data.draw(st.sampled_from(system.callers), label="caller")
        answer = case.call(
            base_url=system.url(operation.path),
            headers=dict(caller),
            timeout=ANSWER_S,
            allow_redirects=False,
        )
        empty = answer.status_code == 201 and not answer.content
        checks = CHECKS[:2] if empty and operation.label in BODILESS else CHECKS
        case.validate_response(answer, checks=checks)
        seen.add(answer.status_code)

    one()
    return seen


@pytest.mark.parametrize("label", OPERATIONS)
def test_operation(system: System, label: str) -> None:
    """Whatever is sent, the answer is one of those that the document tells of."""
    seen = exercise(system, OPERATIONS[label], examples=EXAMPLES.get(label, 40))

    wanted = REACHED.get(label, set())
    if label in FOR_ADMINS:
        wanted = wanted | ({403} if system.owner else {200})
    assert wanted <= seen


@pytest.mark.slow
@pytest.mark.parametrize("label", OPERATIONS)
def test_operation_at_length(system: System, label: str) -> None:
    """The same, with many more requests."""
    exercise(system, OPERATIONS[label], examples=500)
