"""Requests that schemathesis makes of the internal document, against a real gateway."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from services.gateway.internal_api import internal_document
from shared.streams import connect
from tests.gateway.conftest import EVENT_PARTITIONS
from tests.gateway.feed import Feed
from tests.gateway.samples import Told
from tests.processes import RedisServer, ServiceProcess

OPERATION: Final = schemathesis.openapi.from_dict(internal_document())[
    "/internal/v1/jobs/{job_id}/events"
]["POST"]
CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
EXAMPLES: Final = 100


async def _uploads(bus: RedisServer, count: int) -> list[Told]:
    redis, uploads = connect(bus.url), [Told(at=None) for _ in range(count)]
    feed = Feed(redis, partitions=EVENT_PARTITIONS)
    await feed.tell(*(one.created() for one in uploads), *(one.completed() for one in uploads))
    await redis.aclose()
    return uploads


def _in_turn(body: Any) -> Any:
    """Number reports as a worker does: chance would leave holes, which are waited for."""
    for seq, one in enumerate(body if isinstance(body, list) else [body], start=1):
        if isinstance(one, dict) and type(one.get("seq")) is int and one["seq"] > 0:
            one["seq"] = seq
    return body


def test_every_answer_is_described(bus: RedisServer, gateway: ServiceProcess) -> None:
    """Whatever is sent, the answer is one of those that the document tells of."""
    uploads, seen = asyncio.run(_uploads(bus, 20)), set()
    good = OPERATION.as_strategy(generation_mode=GenerationMode.POSITIVE)
    bad = OPERATION.as_strategy(generation_mode=GenerationMode.NEGATIVE)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=good | bad, told=st.sampled_from(uploads))
    def one(case: Case[Any], told: Told) -> None:
        case.path_parameters["job_id"] = told.facts.job_id
        case.body = _in_turn(case.body)
        answer = case.call(base_url=gateway.internal_url, timeout=10, allow_redirects=False)
        case.validate_response(answer, checks=CHECKS)
        seen.add(answer.status_code)

    one()
    assert {202, 422} <= seen
