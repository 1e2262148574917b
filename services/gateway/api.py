"""What the gateway offers, for its OpenAPI document."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Final

from services.gateway.dialects import ALL, Dialect
from services.gateway.errors import ProgressNotFound
from services.gateway.rest import Progress
from services.gateway.tickets import TICKET_S, MadeTicket, TicketRequest
from shared.errors import InvalidRequest, PayloadTooLarge, Problem, Unavailable
from shared.operations import (
    JSON,
    PROBLEM,
    Body,
    Header,
    Operation,
    Parameter,
    Response,
    Section,
)

__all__ = ["IN_URL", "PROGRESS", "SECTIONS", "SOCKETS", "TICKETS"]

PROGRESS: Final = Section(
    "Progress",
    "How far uploads and their processing are.",
    (
        Operation(
            name="read_progress",
            method="GET",
            path="/v1/dashboard/upload/progress/{session_id}",
            summary="Ask how far an upload is",
            about="An id that is not known yet is waited for, up to two seconds: its first "
            "event may be under way.",
            parameters=(Parameter("session_id", "path", str, "Id of the upload."),),
            responses={
                200: Response(
                    "Where it is.",
                    (Header("Cache-Control", str, "`no-store`"),),
                    {JSON: Progress},
                )
            },
            errors=(ProgressNotFound, Unavailable),
            examples=(
                'curl $URL/v1/dashboard/upload/progress/$ID -H "Authorization: Bearer $TOKEN"',
            ),
        ),
    ),
)

IN_URL: Final = (
    Parameter("token", "query", str, "A JWT, for browsers; it reaches no log.", always=False),
    Parameter("ticket", "query", str, "Better than a token in a URL.", always=False),
    Parameter("api_key", "query", str, "With `username`; it reaches no log.", always=False),
    Parameter("username", "query", str, "For whom the key is used.", always=False),
)
"""Credentials where headers cannot be set."""

_ACCEPTED: Final = Response(
    "The socket is open.",
    (
        Header("Upgrade", str, "`websocket`"),
        Header("Connection", str, "`upgrade`"),
        Header("Sec-WebSocket-Accept", str, "Proves that the handshake was understood"),
    ),
)

_NO_HANDSHAKE: Final = Response(
    "The request is no WebSocket handshake.", media={PROBLEM: Problem}
)


def _sockets(dialect: Dialect) -> Iterator[Operation]:
    """Yield the paths of a dialect, told apart by the parameters in them."""
    name = type(dialect).__name__.lower()
    for number, path in enumerate(dialect.paths):
        ids = re.findall(r"{(\w+)}", path)
        whose = f"one {ids[0].removesuffix('_id')}" if ids else "all that is the caller's"
        shown = re.sub(r"{\w+}", "$ID", path)
        yield Operation(
            name=f"{name}_socket_{number + 1}",
            method="GET",
            path=path,
            summary=f"Follow {whose} (dialect {name})",
            about=inspect.getdoc(dialect) or "",
            access="socket",
            parameters=(
                *(Parameter(one, "path", str, "What to follow.") for one in ids),
                *IN_URL,
            ),
            responses={101: _ACCEPTED, 400: _NO_HANDSHAKE},
            errors=(Unavailable,),
            examples=(f"websocat ws://${{URL#http://}}{shown}?token=$TOKEN",),
        )


SOCKETS: Final = Section(
    "Live progress",
    "WebSockets with JSON text messages: the current state comes first, lifecycle events each "
    "once and in order, of progress the newest. A client says who it is by `Authorization`, "
    "`X-API-KEY` and `X-Username`, `?ticket=`, `?token=`, `?api_key=&username=`, the "
    "subprotocols `bearer, <JWT>`, or a first message with `token`. Messages and close codes "
    "stand in `docs/websocket.md`.",
    tuple(one for dialect in ALL for one in _sockets(dialect)),
)

TICKETS: Final = Section(
    "Tickets",
    "What a browser puts into the URL of a socket or an event stream instead of a token.",
    (
        Operation(
            name="make_ticket",
            method="POST",
            path="/v1/events/ticket",
            summary="Get a ticket for a URL",
            about=f"Good once, within {TICKET_S} seconds, for the caller and for pages of one "
            "origin: the `Origin` of this request or, if a server asks for one of its pages, "
            "the `origin` in the body. With neither it is good for programs only.",
            body=Body({JSON: TicketRequest}, "Whose page will use it.", required=False),
            responses={
                201: Response(
                    "The ticket.",
                    (Header("Cache-Control", str, "`no-store`"),),
                    {JSON: MadeTicket},
                )
            },
            errors=(InvalidRequest, PayloadTooLarge, Unavailable),
            examples=(
                'curl -X POST $URL/v1/events/ticket -H "Authorization: Bearer $TOKEN"',
                'curl $URL/v1/events/ticket -H "X-API-KEY: $KEY" -H "X-Username: ada" '
                """--json '{"origin":"https://app.example.com"}'""",
                "websocat ws://${URL#http://}/ws/upload-progress?ticket=$TICKET",
            ),
        ),
    ),
)

SECTIONS: Final = (PROGRESS, TICKETS, SOCKETS)
