"""The AsyncAPI 3.0 document: what is said on sockets, and what stands on streams. No I/O.

Made from the same types as everything else: dialects name structs for their messages, and the
events of the streams are structs anyway. So a field that is added shows up by itself.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from services.gateway.dialects import Dialect
from shared.events import LifecycleEvent
from shared.streams import ROWS

__all__ = ["document"]

_ABOUT: Final = """\
Live progress of uploads, and of the processing that follows, on WebSockets; and the Redis
Streams that join the services. `receive` and `send` are meant from the side of the services."""
_ID: Final = re.compile(r"{(\w+)(?::[^{}]*)?}")
_LIFECYCLE: Final[tuple[type[msgspec.Struct], ...]] = LifecycleEvent.__args__
_SCHEMAS: Final = "#/components/schemas/"

_SERVERS: Final = {
    "sockets": {
        "host": "{host}",
        "protocol": "wss",
        "description": "The public listener of a gateway; `ws` where there is no TLS.",
        "variables": {"host": {"default": "127.0.0.1:8080"}},
        "security": [
            {"$ref": "#/components/securitySchemes/bearer"},
            {"$ref": "#/components/securitySchemes/token"},
        ],
    },
    "streams": {
        "host": "{host}",
        "protocol": "redis",
        "description": "`REDIS_URL`; only for services, never for clients.",
        "variables": {"host": {"default": "127.0.0.1:6379"}},
    },
}
_SECURITY: Final = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "At the handshake; or as the subprotocols `bearer, <JWT>`; or, where a "
        "dialect has such a message, in the first one.",
    },
    "token": {
        "type": "httpApiKey",
        "in": "query",
        "name": "token",
        "description": "The same JWT, for browsers, which cannot set headers on a WebSocket.",
    },
}
_HANDSHAKE: Final = {
    "ws": {
        "method": "GET",
        "query": {"type": "object", "properties": {"token": {"type": "string"}}},
        "bindingVersion": "0.1.0",
    }
}
_PARTITION: Final = {
    "partition": {
        "description": "The partition of an upload: CRC-32 of its id, modulo "
        "`EVENT_PARTITIONS`. The braces are part of the key.",
        "examples": ["{p00}", "{p15}"],
    }
}

Json = dict[str, Any]


def document(dialects: Iterable[Dialect]) -> Json:
    """Return the document of the dialects and of the streams."""
    found = _Document()
    for dialect in dialects:
        for number, path in enumerate(dialect.paths, start=1):
            found.add_socket(dialect, f"{dialect.name}_{number}", path)
    found.add_streams()
    return found.whole()


class _Document:
    """A document in the making."""

    def __init__(self) -> None:
        self._channels: Final[Json] = {}
        self._operations: Final[Json] = {}
        self._messages: Final[dict[str, Json]] = {}
        self._types: Final[dict[str, Any]] = {}

    def add_socket(self, dialect: Dialect, name: str, path: str) -> None:
        """Add one path of a dialect."""
        ids = _ID.findall(path)
        self._channels[name] = {
            "address": _ID.sub(r"{\1}", path),
            "title": f"Dialect {dialect.name}",
            "description": inspect.getdoc(dialect) or "",
            "servers": [{"$ref": "#/servers/sockets"}],
            "parameters": {one: {"description": "What to follow."} for one in ids},
            "messages": {},
            "bindings": _HANDSHAKE,
        }
        for action, types in (("receive", dialect.receives), ("send", dialect.sends)):
            told = [self._message(one, dialect) for one in types]
            self._operation(name, action, told)

    def add_streams(self) -> None:
        """Add both families of streams."""
        lifecycle = [self._event(one) for one in _LIFECYCLE]
        about = "Lifecycle events, one an entry: each is a fact, none is ever left out."
        self._stream("events", about, lifecycle)
        about = (
            "Positions, many an entry: only the newest of an upload counts. The n-th of `d` "
            "belongs to the n-th id in `i`, and those of jobs, in `jd`, to the ids in `ji`."
        )
        self._stream("progress", about, [self._positions()])

    def whole(self) -> Json:
        """Return what has been added."""
        names = list(self._types)
        schemas, components = msgspec.json.schema_components(
            [self._types[name] for name in names], ref_template=_SCHEMAS + "{name}"
        )
        of_name = dict(zip(names, schemas, strict=True))
        for name, message in self._messages.items():
            message["payload"] = _with_schemas(message["payload"], of_name)
            message.setdefault("name", name)
        return {
            "asyncapi": "3.0.0",
            "info": {"title": "Uploads", "version": "1", "description": _ABOUT},
            "defaultContentType": "application/json",
            "servers": _SERVERS,
            "channels": self._channels,
            "operations": self._operations,
            "components": {
                "messages": _draft_07(self._messages),
                "schemas": _draft_07(components),
                "securitySchemes": _SECURITY,
            },
        }

    def _stream(self, family: str, about: str, messages: list[str]) -> None:
        self._channels[family] = {
            "address": f"{family}:{{partition}}",
            "title": f"Streams {family}",
            "description": about,
            "servers": [{"$ref": "#/servers/streams"}],
            "parameters": _PARTITION,
            "messages": {},
        }
        for action in ("send", "receive"):
            self._operation(family, action, messages)

    def _operation(self, channel: str, action: str, messages: list[str]) -> None:
        if not messages:
            return
        at = f"#/channels/{channel}"
        for name in messages:
            shared = {"$ref": f"#/components/messages/{name}"}
            self._channels[channel]["messages"][name] = shared
        self._operations[f"{channel}_{action}"] = {
            "action": action,
            "channel": {"$ref": at},
            "messages": [{"$ref": f"{at}/messages/{name}"} for name in messages],
        }

    def _message(self, kind: type, dialect: Dialect) -> str:
        """Note a message of a dialect; return its name."""
        name = f"{dialect.name}.{kind.__name__}"
        self._types[name] = kind
        self._messages[name] = {
            "title": kind.__name__,
            "summary": inspect.getdoc(kind) or "",
            "contentType": "application/msgpack" if dialect.binary else "application/json",
            "payload": {"schema": name},
        }
        return name

    def _event(self, kind: type[msgspec.Struct]) -> str:
        name = str(kind.__struct_config__.tag)
        self._types[name] = kind
        self._messages[name] = {
            "title": kind.__name__,
            "summary": inspect.getdoc(kind) or "",
            "payload": _entry({"i": "The upload's id"}, {"d": name}, ("i", "d")),
        }
        return name

    def _positions(self) -> str:
        name = "positions"
        self._types.update({f"{name}.{field}": rows for field, rows in ROWS.items()})
        texts = {
            "p": "The producer",
            "n": "Its running number in this partition: a hole tells that entries were lost",
            "i": "Ids of uploads, parted by spaces",
            "ji": "Ids of uploads whose jobs have come further, likewise",
        }
        self._messages[name] = {
            "title": "Positions",
            "summary": "How far uploads and jobs have come.",
            "payload": _entry(
                texts, {one: f"{name}.{one}" for one in ROWS}, ("p", "n", "i", "d")
            ),
        }
        return name


def _entry(
    texts: Mapping[str, str], encoded: Mapping[str, str], required: tuple[str, ...]
) -> Json:
    """Return the schema of an entry's fields, those with JSON by the names of their types."""
    properties: Json = {
        name: {"type": "string", "description": meaning} for name, meaning in texts.items()
    }
    for name, kind in encoded.items():
        properties[name] = {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"schema": kind},
        }
    return {"type": "object", "properties": properties, "required": list(required)}


def _with_schemas(payload: Any, of_name: Mapping[str, Any]) -> Any:
    """Return a payload with the schemas in the places that name them."""
    if isinstance(payload, dict):
        if payload.keys() == {"schema"}:
            return of_name[payload["schema"]]
        return {key: _with_schemas(value, of_name) for key, value in payload.items()}
    return payload


def _draft_07(schema: Any) -> Any:
    """Return schemas as AsyncAPI reads them, which is JSON Schema draft 07 and not 2020-12."""
    if isinstance(schema, list | tuple):
        return [_draft_07(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _draft_07(value) for key, value in schema.items()}
    if "prefixItems" in found:
        found["items"] = found.pop("prefixItems")
    if isinstance(found.get("discriminator"), dict):  # OpenAPI's; the tags are enums anyway
        del found["discriminator"]
    return found
