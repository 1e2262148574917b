"""Descriptions as data, and the document that is made of them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from shared.errors import ApiError, Conflict, NotFound, Unavailable
from shared.openapi import document
from shared.operations import (
    JSON,
    PROBLEM,
    TEXT,
    Body,
    Header,
    Operation,
    Parameter,
    Response,
    Section,
    merged,
)
from shared.web import problem


class Thing(msgspec.Struct, frozen=True):
    """A body of these tests."""

    name: str
    size: int | None = None


def operation(**changes: Any) -> Operation:
    """Return an operation, changed."""
    plain = Operation(
        name="read_thing",
        method="GET",
        path="/things/{id}",
        summary="Read it",
        parameters=(Parameter("id", "path", str, "Its id."),),
        responses={200: Response("Here it is.", media={JSON: Thing})},
    )
    return msgspec.structs.replace(plain, **changes)


def described(*operations: Operation) -> dict[str, Any]:
    """Return the document of one section."""
    return document("Things", "", merged([Section("Things", "", operations)]))


def test_bodies_are_generated_from_types() -> None:
    """A member that is added to a body shows up, with whether it may be missing."""
    made = described(operation())

    answer = made["paths"]["/things/{id}"]["get"]["responses"]["200"]
    assert answer["content"] == {JSON: {"schema": {"$ref": "#/components/schemas/Thing"}}}
    assert made["components"]["schemas"]["Thing"]["required"] == ["name"]


def test_refusals_come_from_error_classes() -> None:
    """Status, meaning, body and headers of a refusal are what its class says."""
    made = described(operation(errors=(NotFound, Unavailable)))

    answers = made["paths"]["/things/{id}"]["get"]["responses"]
    assert answers.keys() == {"200", "401", "403", "404", "429", "500", "503"}
    assert answers["404"]["description"] == "There is no such thing, or it is gone."
    assert answers["404"]["content"].keys() == {PROBLEM}
    assert answers["503"]["headers"]["Retry-After"]["required"]
    assert "WWW-Authenticate" in answers["401"]["headers"]


def test_public_operations_refuse_nobody() -> None:
    """What anyone may ask for is not answered 401."""
    made = described(operation(access="public"))["paths"]["/things/{id}"]["get"]

    assert made["responses"].keys() == {"200", "429", "500"}
    assert made["security"] == []


def test_answers_to_head_have_no_body() -> None:
    """A HEAD's refusals have a status and headers only."""
    made = described(operation(method="HEAD", errors=(NotFound,)))

    assert "content" not in made["paths"]["/things/{id}"]["head"]["responses"]["404"]


def test_a_refusal_may_say_more() -> None:
    """What an operation adds to a refusal stands beside what the class says."""
    more = Response("Its state is told.", (Header("State", str, "Of it"),))
    made = described(operation(errors=(Conflict,), responses={409: more}))

    answer = made["paths"]["/things/{id}"]["get"]["responses"]["409"]
    assert answer["description"].startswith("The request does not fit the state of the thing.")
    assert answer["description"].endswith("Its state is told.")
    assert answer["headers"].keys() == {"State", "X-Request-ID"}
    assert answer["content"].keys() == {PROBLEM}


def test_error_codes_are_listed_with_their_meaning() -> None:
    """The codes of a document are those of the errors in it, and of the HTTP library."""
    codes = described(operation(errors=(Conflict,)))["components"]["schemas"]["ErrorCode"]

    told = dict(zip(codes["enum"], codes["x-enum-descriptions"], strict=True))
    assert told["CONFLICT"].startswith("409: The request does not fit")
    assert {"INTERNAL_SERVER_ERROR", "UNAUTHORIZED_ACCESS", "METHOD_NOT_ALLOWED"} <= told.keys()
    assert "STORAGE_FULL" not in told


def test_an_error_may_have_further_codes() -> None:
    """A code that a place gives to an error of a general kind is listed too."""
    further = {"THING_LOCKED": "409: Somebody else has it."}
    made = described(operation(errors=(Conflict,), codes=further))

    codes = made["components"]["schemas"]["ErrorCode"]
    told = dict(zip(codes["enum"], codes["x-enum-descriptions"], strict=True))
    assert told["THING_LOCKED"] == "409: Somebody else has it."


def test_problem_is_what_is_sent() -> None:
    """The body of an error has exactly the described members."""
    sent = json.loads(problem(ApiError("No.")).text or "")

    schema = described(operation())["components"]["schemas"]["Problem"]
    assert sent.keys() == set(schema["required"]) == schema["properties"].keys()


def test_two_operations_of_one_name_are_refused() -> None:
    """Anchors and generated clients would mix them up."""
    with pytest.raises(ValueError, match="read_thing"):
        described(operation(), operation(path="/other/{id}"))


def test_protocols_on_one_route_are_joined() -> None:
    """Two descriptions of a route become one operation that allows what either allows."""
    octets = {"type": "string", "format": "binary"}
    one = operation(
        method="POST",
        about="One way.",
        parameters=(
            Parameter("id", "path", str, "Its id."),
            Parameter("Version", "header", str, "Which."),
        ),
        body=Body({"a/a": octets}, "As A."),
        headers=(Header("Version", str, "Which"),),
        responses={201: Response("Made.", (Header("Location", str, "Where"),))},
        errors=(NotFound,),
        errors_in=(TEXT,),
        examples=("first",),
    )
    other = operation(
        name="another_way",
        method="POST",
        about="Another way.",
        body=Body({"b/b": octets}, "As B."),
        responses={
            201: Response(
                "Made.", (Header("Location", str, "Where"), Header("Limit", str, ""))
            ),
            200: Response("Done."),
        },
        errors=(NotFound, Conflict),
        examples=("second",),
    )
    sections = merged([Section("Things", "A.", (one,)), Section("Things", "B.", (other,))])
    made = document("Things", "", sections)

    assert made["tags"] == [{"name": "Things", "description": "A.\n\nB."}]
    both = made["paths"]["/things/{id}"]["post"]
    assert both["operationId"] == "read_thing"
    assert both["description"] == "One way.\n\nAnother way."
    needed = {each["name"]: each["required"] for each in both["parameters"]}
    assert needed == {"id": True, "Version": False}
    assert both["requestBody"]["content"].keys() == {"a/a", "b/b"}
    assert both["responses"].keys() == {
        "200",
        "201",
        "401",
        "403",
        "404",
        "409",
        "429",
        "500",
        "503",
    }
    found = both["responses"]["201"]["headers"]
    required = {name: each["required"] for name, each in found.items()}
    assert required == {
        "Location": True,
        "Limit": False,
        "Version": False,
        "X-Request-ID": True,
    }
    assert both["responses"]["404"]["content"].keys() == {TEXT, PROBLEM}
    assert [each["source"] for each in both["x-codeSamples"]] == ["first", "second"]


@pytest.mark.parametrize("swapped", [False, True])
def test_a_body_of_one_protocol_is_optional(swapped: bool) -> None:
    """Where only one of two protocols sends a body, none may come."""
    one = operation(method="POST", body=Body({"a/a": {}}, "As A."))
    other = operation(method="POST")
    made = described(*((other, one) if swapped else (one, other)))

    assert made["paths"]["/things/{id}"]["post"]["requestBody"]["required"] is False


class Hello(msgspec.Struct, frozen=True, tag_field="type", tag="hello"):
    """A message of these tests."""


def test_messages_of_a_socket_are_named() -> None:
    """What is said on a socket stands beside the operation that opens it, by reference."""
    one = operation(receives=(Hello,))
    made = described(one, operation(name="other_way", receives=(Hello,), sends=(Thing,)))

    got = made["paths"]["/things/{id}"]["get"]["x-messages"]
    assert got == {
        "receives": [{"$ref": "#/components/schemas/Hello"}],
        "sends": [{"$ref": "#/components/schemas/Thing"}],
    }
    assert made["components"]["schemas"]["Hello"]["properties"] == {"type": {"enum": ["hello"]}}
