"""What an HTTP interface offers, as plain data, and the OpenAPI 3.1 document made of it.

Services describe their operations beside their routes; bodies are msgspec types, refusals are
the error classes themselves, so neither can be described differently from what is sent. Knows
nothing of HTTP libraries and does no I/O.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec

from shared.errors import ApiError, Forbidden, Problem, RateLimited, Unauthorized

__all__ = [
    "JSON",
    "PROBLEM",
    "TEXT",
    "Body",
    "Header",
    "Kind",
    "Operation",
    "Parameter",
    "Response",
    "Section",
    "document",
    "merged",
]

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
TEXT: Final = "text/plain"

Kind: TypeAlias = Any
"""A type that msgspec knows, or a mapping: a JSON schema as it stands."""
Access: TypeAlias = Literal["caller", "socket", "public"]
"""Who may: callers with credentials; those who may show them later, on a socket; anyone."""


class Parameter(msgspec.Struct, frozen=True):
    """Something that a request says in its path, its query or a header."""

    name: str
    where: Literal["path", "query", "header"]
    kind: Kind
    meaning: str
    always: bool = True
    """Whether a request needs it."""


class Header(msgspec.Struct, frozen=True):
    """A header of a response."""

    name: str
    kind: Kind
    meaning: str
    always: bool = True
    """Whether each response of this status has it."""


class Body(msgspec.Struct, frozen=True):
    """What a request carries, by media type."""

    media: Mapping[str, Kind]
    meaning: str
    required: bool = True


class Response(msgspec.Struct, frozen=True):
    """What a request is answered with; an entry for a refusal adds to what the error says."""

    meaning: str
    headers: tuple[Header, ...] = ()
    media: Mapping[str, Kind] = {}


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path."""

    name: str
    """Unique in a document; the anchor on the page."""
    method: str
    path: str
    summary: str
    about: str = ""
    """Paragraphs, parted by empty lines; code in backticks."""
    access: Access = "caller"
    parameters: tuple[Parameter, ...] = ()
    body: Body | None = None
    responses: Mapping[int, Response]
    errors: tuple[type[ApiError], ...] = ()
    """Besides 429 and 500, and 401 and 403 where callers are known."""
    codes: Mapping[str, str] = {}
    """Further codes of these errors: status and meaning, as in ``"410: It was cancelled."``"""
    errors_in: tuple[str, ...] = (PROBLEM,)
    """Media types of refusals."""
    headers: tuple[Header, ...] = ()
    """Of every response, refusals included."""
    examples: tuple[str, ...] = ()
    """Command lines; `$URL` is the base of the service and `$TOKEN` the caller's token."""


class Section(msgspec.Struct, frozen=True):
    """Operations that belong together."""

    title: str
    about: str
    operations: tuple[Operation, ...]


T = TypeVar("T", Parameter, Header)

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
_SECURITY: Final[Mapping[Access, list[dict[str, list[str]]]]] = {
    "caller": [{"bearer": []}],
    "socket": [{"bearer": []}, {"token": []}, {}],
    "public": [],
}
_SCHEMES: Final = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A JWT with `sub` (user id), `exp`, and if wanted `tenant` and `scope`.",
    },
    "token": {
        "type": "apiKey",
        "in": "query",
        "name": "token",
        "description": "The same JWT, for browsers, which cannot set headers on a WebSocket.",
    },
}


def _phrase_code(status: int) -> str:
    """Return the code of a refusal that has no class of its own, such as ``NOT_FOUND``."""
    letters = (c if c.isalpha() else "_" for c in HTTPStatus(status).phrase.upper())
    return "".join(letters)


def merged(sections: Iterable[Section]) -> list[Section]:
    """Return the sections with those of one title joined, and operations of one route too.

    So two protocols on the same URLs can be described apart. A parameter is required, and a
    header always there, only if it is in both.
    """
    found: dict[str, Section] = {}
    for one in sections:
        known = found.get(one.title, Section(one.title, "", ()))
        operations = _joined(known.operations + one.operations)
        found[one.title] = Section(one.title, _paragraphs(known.about, one.about), operations)
    return list(found.values())


def _paragraphs(*texts: str) -> str:
    return "\n\n".join(dict.fromkeys(text for text in texts if text))


def _joined(operations: Iterable[Operation]) -> tuple[Operation, ...]:
    found: dict[tuple[str, str], Operation] = {}
    for one in operations:
        key = (one.method, one.path)
        found[key] = _both(found[key], one) if key in found else one
    return tuple(found.values())


def _both(a: Operation, b: Operation) -> Operation:
    return msgspec.structs.replace(
        a,
        about=_paragraphs(a.about, b.about),
        parameters=_union(a.parameters, b.parameters),
        body=_both_bodies(a.body, b.body),
        responses={
            status: _both_responses(a.responses.get(status), b.responses.get(status))
            for status in sorted({*a.responses, *b.responses})
        },
        errors=tuple(dict.fromkeys(a.errors + b.errors)),
        codes={**a.codes, **b.codes},
        errors_in=tuple(dict.fromkeys(a.errors_in + b.errors_in)),
        headers=_union(a.headers, b.headers),
        examples=a.examples + b.examples,
    )


def _union(first: tuple[T, ...], second: tuple[T, ...]) -> tuple[T, ...]:
    """Return the parameters or headers of both, by name."""
    group = first + second
    return tuple([_named(name, group) for name in dict.fromkeys(one.name for one in group)])


def _named(name: str, group: Iterable[T]) -> T:
    same = [one for one in group if one.name == name]
    meaning = " ".join(dict.fromkeys(one.meaning for one in same))
    always = len(same) == 2 and all(one.always for one in same)
    return msgspec.structs.replace(same[0], meaning=meaning, always=always)


def _both_bodies(a: Body | None, b: Body | None) -> Body | None:
    if a is None or b is None:
        one = a or b
        return None if one is None else msgspec.structs.replace(one, required=False)
    return Body(
        {**a.media, **b.media}, _paragraphs(a.meaning, b.meaning), a.required and b.required
    )


def _both_responses(a: Response | None, b: Response | None) -> Response:
    if a is None or b is None:
        one = a or b
        if one is None:
            raise AssertionError("a status of neither operation")
        return one
    return Response(
        _paragraphs(a.meaning, b.meaning),
        _union(a.headers, b.headers),
        {**a.media, **b.media},
    )


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
    known = () if operation.access == "public" else (Unauthorized, Forbidden)
    limited = () if operation.method == "OPTIONS" else (RateLimited,)
    return tuple(dict.fromkeys((*operation.errors, *known, *limited, ApiError)))


def _responses(operation: Operation) -> dict[int, Response]:
    """Return all responses of an operation, refusals included, by status."""
    found = dict(operation.responses)
    for error in _errors(operation):
        status, refusal = error.status, _refusal(error, operation)
        known = found.get(status)
        if known is None:
            found[status] = refusal
        elif refusal.meaning not in known.meaning:
            text = f"{refusal.meaning} {known.meaning}".strip()
            found[status] = Response(text, known.headers, {**refusal.media, **known.media})
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
