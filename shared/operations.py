"""What an HTTP interface offers, as plain data.

Services describe their operations beside their routes; bodies are msgspec types, refusals are
the error classes themselves, so neither can be described differently from what is sent.
``shared.openapi`` makes a document of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec

from shared.errors import ApiError

__all__ = [
    "JSON",
    "PROBLEM",
    "TEXT",
    "Access",
    "Body",
    "Header",
    "Kind",
    "Operation",
    "Parameter",
    "Response",
    "Section",
    "merged",
]

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
TEXT: Final = "text/plain"

Kind: TypeAlias = Any
"""A type that msgspec knows, or a mapping: a JSON schema as it stands."""
Access: TypeAlias = Literal["caller", "url", "socket", "public"]
"""Who may: callers with credentials; those who may show them in the URL too; those who may show
them later, on a socket; anyone."""


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
    """Besides 429 and 500, and 401, 403 and 503 where callers are known."""
    codes: Mapping[str, str] = {}
    """Further codes of these errors: status and meaning, as in ``"410: It was cancelled."``"""
    errors_in: tuple[str, ...] = (PROBLEM,)
    """Media types of refusals."""
    headers: tuple[Header, ...] = ()
    """Of every response, refusals included."""
    receives: tuple[type, ...] = ()
    """Messages of clients, once this has opened a socket."""
    sends: tuple[type, ...] = ()
    """Messages to clients then."""
    examples: tuple[str, ...] = ()
    """Command lines; `$URL` is the base of the service and `$TOKEN` the caller's token."""


class Section(msgspec.Struct, frozen=True):
    """Operations that belong together."""

    title: str
    about: str
    operations: tuple[Operation, ...]


T = TypeVar("T", Parameter, Header)


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
        receives=tuple(dict.fromkeys(a.receives + b.receives)),
        sends=tuple(dict.fromkeys(a.sends + b.sends)),
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
