"""An OpenAPI document as one page to read: static HTML that needs nothing but itself.

No script, and no style, font or image from anywhere: it works offline and under the strictest
Content-Security-Policy. Shows what ``shared.openapi`` puts into documents, not all of OpenAPI.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["STYLE", "page"]

STYLE: Final = Path(__file__).with_name("api_page.css").read_text(encoding="utf-8")
"""The style sheet, exactly as it stands in the page: a policy may name its hash."""

_CODE: Final = re.compile(r"(`+)(.+?)\1")
_EVERYWHERE: Final = {"X-Request-ID"}
"""Headers that the introduction tells of."""
_REF: Final = "#/components/schemas/"

Document = Mapping[str, Any]


class _Html(str):
    """Text that is markup already."""

    __slots__ = ()


def page(document: Document) -> str:
    """Return the page of a document."""
    info = document["info"]
    groups = _groups(document)
    main = [
        _tag("h1", info["title"]),
        _prose(info["description"]),
        *(_section(name, about, operations) for name, about, operations in groups),
        _schemas(document["components"]["schemas"]),
    ]
    body = [
        _tag("a", "Skip to the operations", href="#main", class_="skip"),
        _tag("nav", *_contents(groups), aria_label="Contents"),
        _tag("main", *main, id="main"),
    ]
    head = [
        _Html('<meta charset="utf-8">'),
        _Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        _Html('<meta name="color-scheme" content="light dark">'),
        _tag("title", info["title"]),
        _Html(f"<style>{STYLE}</style>"),
    ]
    whole = _tag("html", _tag("head", *head), _tag("body", *body), lang="en")
    return f"<!doctype html>\n{whole}\n"


_Group = tuple[str, str, list[tuple[str, str, Mapping[str, Any]]]]


def _groups(document: Document) -> list[_Group]:
    """Return name, text and operations (method, path, operation) of each tag."""
    operations: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {}
    for path, methods in document["paths"].items():
        for method, one in methods.items():
            operations.setdefault(one["tags"][0], []).append((method.upper(), path, one))
    return [
        (tag["name"], tag["description"], operations[tag["name"]]) for tag in document["tags"]
    ]


def _tag(name: str, *children: str, **attributes: str) -> _Html:
    """Return an element; children that are not markup are escaped."""
    pairs = (
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for key, value in attributes.items()
    )
    inner = "".join(one if isinstance(one, _Html) else html.escape(one) for one in children)
    return _Html(f"<{name}{''.join(pairs)}>{inner}</{name}>")


def _inline(text: str) -> _Html:
    """Return text with its code in backticks marked as code."""
    plain_and_code = _CODE.split(text)  # plain, the backticks, code, plain, …
    pieces = [
        _tag("code", piece) if index % 3 == 2 else html.escape(piece)
        for index, piece in enumerate(plain_and_code)
        if index % 3 != 1
    ]
    return _Html("".join(pieces))


def _prose(text: str) -> _Html:
    parts = [" ".join(one.split()) for one in text.split("\n\n") if one.strip()]
    return _Html("".join(_tag("p", _inline(one)) for one in parts))


def _contents(groups: Iterable[_Group]) -> Iterator[_Html]:
    for name, _, operations in groups:
        yield _tag("h2", _tag("a", name, href=f"#{_anchor(name)}"))
        items = [
            _tag("li", _tag("a", _badge(method), _path(path), href=f"#{one['operationId']}"))
            for method, path, one in operations
        ]
        yield _tag("ul", *items)
    yield _tag("h2", _tag("a", "Bodies and codes", href="#schemas"))


def _anchor(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _badge(method: str) -> _Html:
    return _tag("b", method, class_=f"method {method.lower()}")


def _path(path: str) -> _Html:
    """Return a path that may break after its slashes."""
    return _tag("code", _Html("/<wbr>".join(html.escape(part) for part in path.split("/"))))


def _section(name: str, about: str, operations: Iterable[Any]) -> _Html:
    return _tag(
        "section",
        _tag("h2", name, id=_anchor(name)),
        _prose(about),
        *(_operation(*one) for one in operations),
    )


def _operation(method: str, path: str, one: Mapping[str, Any]) -> _Html:
    anchor = one["operationId"]
    link = _tag("a", "#", href=f"#{anchor}", class_="self", aria_label="Link to this operation")
    parts = [
        _tag("h3", _badge(method), _path(path), link),
        _tag("p", one["summary"], class_="summary"),
        _prose(one.get("description", "")),
        *(_example(sample["source"]) for sample in one.get("x-codeSamples", ())),
        _parameters(one["parameters"]),
        _request(one.get("requestBody")),
        _responses(one["responses"]),
        _headers(one["responses"]),
        _messages(one.get("x-messages", {})),
    ]
    return _tag("article", *parts, id=anchor)


def _example(source: str) -> _Html:
    return _tag("pre", _tag("code", source), tabindex="0", aria_label="Example")


def _table(caption: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> _Html:
    body = [
        _tag("tr", _tag("th", first, scope="row"), *(_tag("td", cell) for cell in rest))
        for first, *rest in rows
    ]
    if not body:
        return _Html("")
    titles = _tag("tr", *(_tag("th", one, scope="col") for one in head))
    table = _tag("table", _tag("caption", caption), _tag("thead", titles), _tag("tbody", *body))
    return _tag("div", table, class_="wide")


def _parameters(parameters: Iterable[Mapping[str, Any]]) -> _Html:
    rows = (
        (
            _tag("code", one["name"]),
            one["in"] if one["required"] else f"{one['in']}, optional",
            _type(one["schema"]),
            _inline(one["description"]),
        )
        for one in parameters
    )
    return _table("Request", ("name", "in", "type", "meaning"), rows)


def _request(body: Mapping[str, Any] | None) -> _Html:
    if body is None:
        return _Html("")
    caption = "Request body" if body["required"] else "Request body, optional"
    rows = [
        (_tag("code", media), _type(content["schema"]))
        for media, content in body["content"].items()
    ]
    meaning = _prose(body["description"])
    return _Html(_table(caption, ("media type", "content"), rows) + meaning)


def _responses(responses: Mapping[str, Mapping[str, Any]]) -> _Html:
    rows = (
        (
            _tag("b", status, class_=f"status s{status[0]}"),
            _inline(one["description"]),
            _Html(" or ".join(_media(*pair) for pair in one.get("content", {}).items())),
        )
        for status, one in responses.items()
    )
    return _table("Responses", ("status", "meaning", "body"), rows)


def _headers(responses: Mapping[str, Mapping[str, Any]]) -> _Html:
    """Return the headers of all responses, each once, with the statuses that have it."""
    told: dict[str, tuple[list[str], list[str]]] = {}
    for status, one in responses.items():
        for name, header in one.get("headers", {}).items():
            if name not in _EVERYWHERE:
                statuses, meanings = told.setdefault(name, ([], []))
                statuses.append(status if header["required"] else f"{status}?")
                meanings.append(header["description"])
    rows = (
        (
            _tag("code", name),
            "all" if len(statuses) == len(responses) else ", ".join(statuses),
            _inline("; ".join(dict.fromkeys(one for one in meanings if one))),
        )
        for name, (statuses, meanings) in told.items()
    )
    return _table("Response headers", ("name", "in", "meaning"), rows)


def _messages(told: Mapping[str, Iterable[Mapping[str, Any]]]) -> _Html:
    """Return what is said on a socket, by either side."""
    rows = (
        (_type(schema), direction)
        for key, direction in (("receives", "from the client"), ("sends", "to the client"))
        for schema in told.get(key, ())
    )
    return _table("Messages", ("message", "direction"), rows)


def _media(name: str, content: Mapping[str, Any]) -> _Html:
    """Return what a body is: the type of its JSON, or its media type."""
    schema = content["schema"]
    return _type(schema) if "$ref" in schema else _tag("code", name)


def _type(schema: Mapping[str, Any]) -> _Html:
    """Return a short name of a schema, linked to where the whole of it stands."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_REF)
        return _tag("a", name, href=f"#schema-{name}")
    if "anyOf" in schema:
        return _Html(" or ".join(_type(one) for one in schema["anyOf"]))
    if "enum" in schema:
        return _Html(" | ".join(_tag("code", str(one)) for one in schema["enum"]))
    if "items" in schema:
        return _Html(f"array of {_type(schema['items'])}")
    kind = schema.get("format", schema.get("type", "any"))
    limits = [
        f"{sign} {_number(schema[key])}" for key, sign in _LIMITS.items() if key in schema
    ]
    return _Html(html.escape(" ".join([kind, ", ".join(limits)]).strip()))


_LIMITS: Final = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
}
_RAISED: Final = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def _number(value: float) -> str:
    """Return a number as people write it: 1,000, and 10⁹ for a long round one."""
    text = str(value)
    zeros = len(text) - 1
    if zeros > 6 and text == "1" + "0" * zeros:
        return "10" + str(zeros).translate(_RAISED)
    return f"{value:,}"


def _schemas(schemas: Mapping[str, Mapping[str, Any]]) -> _Html:
    parts = [_tag("h2", "Bodies and codes", id="schemas")]
    for name, one in schemas.items():
        title = _tag("h3", _tag("code", name))
        about = _prose(one.get("description", ""))
        shown = _codes(one) if "enum" in one else _members(one)
        parts.append(_tag("article", title, about, shown, id=f"schema-{name}"))
    return _tag("section", *parts)


def _codes(schema: Mapping[str, Any]) -> _Html:
    rows = (
        (_tag("code", code), _inline(meaning))
        for code, meaning in zip(schema["enum"], schema["x-enum-descriptions"], strict=True)
    )
    return _table("Codes", ("code", "status and meaning"), rows)


def _members(schema: Mapping[str, Any]) -> _Html:
    needed = schema.get("required", ())
    rows = (
        (
            _tag("code", name),
            _type(one) if name in needed else _Html(f"{_type(one)}, optional"),
            _inline(one.get("description", "")),
        )
        for name, one in schema.get("properties", {}).items()
    )
    return _table("Members", ("name", "type", "meaning"), rows)
