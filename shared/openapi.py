"""The OpenAPI 3.1 document of operations. Knows nothing of HTTP libraries and does no I/O."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec

from shared.errors import ApiError, Forbidden, Problem, RateLimited, Unauthorized, Unavailable
from shared.operations import (
    PROBLEM,
    Access,
    Header,
    Kind,
    Operation,
    Parameter,
    Response,
    Section,
)

__all__ = ["document"]

_LIBRARY_STATUSES: Final = (400, 404, 405, 413, 417)
"""What the HTTP library refuses by itself, with the phrase of the status as its code."""
_ALWAYS: Final = (Header("X-Request-ID", str, "Names the request in our logs"),)
_BY_STATUS: Final[Mapping[int, tuple[Header, ...]]] = {
    401: (Header("WWW-Authenticate", str, "Which credentials are asked for (RFC 6750)"),),
    429: (
        Header("Retry-After", int, "Seconds to wait"),
        Header("RateLimit", str, "What is left, and when it is back", always=False),
        Header("RateLimit-Policy", str, "The limit that was passed", always=False),
    ),
    503: (Header("Retry-After", int, "Seconds to wait"),),
}
_CALLER: Final[list[dict[str, list[str]]]] = [{"bearer": []}, {"api_key": [], "username": []}]
_URL: Final[list[dict[str, list[str]]]] = [
    *_CALLER,
    {"token": []},
    {"ticket": []},
    {"api_key_in_url": [], "username_in_url": []},
]
_SECURITY: Final[Mapping[Access, list[dict[str, list[str]]]]] = {
    "caller": _CALLER,
    "url": _URL,
    "socket": [*_URL, {}],
    "public": [],
}


def _scheme(where: str, name: str, meaning: str) -> dict[str, str]:
    return {"type": "apiKey", "in": where, "name": name, "description": meaning}


_SCHEMES: Final = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A JWT with `sub` (user id), `exp`, and if wanted `tenant` and `scope`.",
    },
    "api_key": _scheme("header", "X-API-KEY", "A key of a tenant, `prefix_secret`."),
    "username": _scheme("header", "X-Username", "For whom the holder of the key calls."),
    "token": _scheme("query", "token", "The JWT, where a browser cannot set headers."),
    "ticket": _scheme("query", "ticket", "From `POST /v1/events/ticket`; good once, for 30 s."),
    "api_key_in_url": _scheme("query", "api_key", "The key, where headers cannot be set."),
    "username_in_url": _scheme("query", "username", "Goes with `api_key`."),
}


def _phrase_code(status: int) -> str:
    """Return the code of a refusal that has no class of its own, such as ``NOT_FOUND``."""
    letters = (c if c.isalpha() else "_" for c in HTTPStatus(status).phrase.upper())
    return "".join(letters)


def document(title: str, about: str, sections: Sequence[Section]) -> dict[str, Any]:
    """Return the OpenAPI document of the sections.

    Raises:
        ValueError: Two operations have one name.

    """
    schemas = _Schemas(sections)
    paths: dict[str, dict[str, Any]] = {}
    names: set[str] = set()
    for section in sections:
        for one in section.operations:
            if one.name in names:
                raise ValueError(f"two operations are called {one.name}")
            names.add(one.name)
            described = _operation(one, section.title, schemas)
            paths.setdefault(one.path, {})[one.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1", "description": about},
        "servers": [{"url": "/"}],
        "tags": [{"name": one.title, "description": one.about} for one in sections],
        "paths": paths,
        "components": {"schemas": schemas.components, "securitySchemes": _SCHEMES},
    }


class _Schemas:
    """JSON schemas of all kinds that the sections name."""

    def __init__(self, sections: Sequence[Section]) -> None:
        operations = [one for section in sections for one in section.operations]
        kinds = [Problem, *(kind for one in operations for kind in _kinds(one))]
        types = [kind for kind in kinds if not isinstance(kind, Mapping)]
        found, self.components = msgspec.json.schema_components(
            types, ref_template="#/components/schemas/{name}"
        )
        self._of: Final = {
            repr(kind): schema for kind, schema in zip(types, found, strict=True)
        }
        self.components["Problem"]["properties"]["error_code"] = {
            "$ref": "#/components/schemas/ErrorCode"
        }
        self.components["ErrorCode"] = _error_codes(operations)

    def of(self, kind: Kind) -> Mapping[str, Any]:
        """Return the schema of a kind, or a reference to it."""
        return kind if isinstance(kind, Mapping) else self._of[repr(kind)]


def _kinds(operation: Operation) -> Iterable[Kind]:
    yield from (one.kind for one in operation.parameters)
    yield from operation.body.media.values() if operation.body else ()
    yield from operation.receives + operation.sends
    for response in _responses(operation).values():
        yield from (one.kind for one in response.headers)
        yield from response.media.values()


def _error_codes(operations: Iterable[Operation]) -> dict[str, Any]:
    """Return the schema of all codes: of the errors' classes, and of the HTTP library."""
    meanings: dict[str, str] = {}
    for operation in operations:
        for one in _errors(operation):
            meanings.setdefault(one.error_code, f"{one.status}: {_meaning(one)}")
        for code, meaning in operation.codes.items():
            meanings.setdefault(code, meaning)
    for status in _LIBRARY_STATUSES:
        text = f"{status}: {HTTPStatus(status).description or HTTPStatus(status).phrase}."
        meanings.setdefault(_phrase_code(status), text)
    codes = sorted(meanings)
    return {
        "title": "ErrorCode",
        "description": "What programs tell refusals apart by; more may be added.",
        "type": "string",
        "enum": codes,
        "x-enum-descriptions": [meanings[code] for code in codes],
    }


def _meaning(error: type[ApiError]) -> str:
    """Return what a class says of itself: what is wrong, and what the client should do."""
    if error is ApiError:
        return "The server failed; its log tells why, under the `X-Request-ID`."
    return " ".join(inspect.cleandoc(error.__doc__ or "").partition("\n\n")[0].split())


def _errors(operation: Operation) -> tuple[type[ApiError], ...]:
    # Unavailable: the issuer's keys, or what is behind a ticket, cannot be had.
    known = () if operation.access == "public" else (Unauthorized, Forbidden, Unavailable)
    limited = () if operation.method == "OPTIONS" else (RateLimited,)
    return tuple(dict.fromkeys((*operation.errors, *known, *limited, ApiError)))


def _responses(operation: Operation) -> dict[int, Response]:
    """Return all responses of an operation, refusals included, by status."""
    found: dict[int, Response] = {}
    told = [(error.status, _refusal(error, operation)) for error in _errors(operation)]
    for status, one in (*told, *operation.responses.items()):
        known = found.get(status, Response(""))
        text = f"{known.meaning} {one.meaning}".strip()
        headers = _with(one.headers, known.headers)
        found[status] = Response(text, headers, {**known.media, **one.media})
    every = operation.headers + _ALWAYS
    return {
        status: msgspec.structs.replace(one, headers=_with(one.headers, every))
        for status, one in sorted(found.items())
    }


def _with(own: tuple[Header, ...], every: tuple[Header, ...]) -> tuple[Header, ...]:
    known = {one.name for one in own}
    return (*own, *(one for one in every if one.name not in known))


def _refusal(error: type[ApiError], operation: Operation) -> Response:
    media: dict[str, Kind] = {}
    if operation.method != "HEAD":
        media = {name: Problem if name == PROBLEM else str for name in operation.errors_in}
    return Response(_meaning(error), _BY_STATUS.get(error.status, ()), media)


def _operation(one: Operation, tag: str, schemas: _Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": one.name,
        "tags": [tag],
        "summary": one.summary,
        **({"description": one.about} if one.about else {}),
        "parameters": [_parameter(each, schemas) for each in one.parameters],
        "responses": {
            str(status): _response(response, schemas)
            for status, response in _responses(one).items()
        },
        "security": _SECURITY[one.access],
    }
    if one.body is not None:
        described["requestBody"] = {
            "description": one.body.meaning,
            "required": one.body.required,
            "content": _content(one.body.media, schemas),
        }
    if one.receives or one.sends:
        described["x-messages"] = {
            "receives": [schemas.of(kind) for kind in one.receives],
            "sends": [schemas.of(kind) for kind in one.sends],
        }
    if one.examples:
        described["x-codeSamples"] = [
            {"lang": "Shell", "source": line} for line in one.examples
        ]
    return described


def _parameter(one: Parameter, schemas: _Schemas) -> dict[str, Any]:
    return {
        "name": one.name,
        "in": one.where,
        "required": one.always,
        "description": one.meaning,
        "schema": schemas.of(one.kind),
    }


def _response(one: Response, schemas: _Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {"description": one.meaning}
    if one.headers:
        described["headers"] = {
            header.name: {
                "description": header.meaning,
                "required": header.always,
                "schema": schemas.of(header.kind),
            }
            for header in one.headers
        }
    if one.media:
        described["content"] = _content(one.media, schemas)
    return described


def _content(media: Mapping[str, Kind], schemas: _Schemas) -> dict[str, Any]:
    return {name: {"schema": schemas.of(kind)} for name, kind in media.items()}
